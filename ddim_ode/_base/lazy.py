"""Submodules that are loaded when they are first asked for."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any


def loader(package: str, path: Iterable[str]) -> Callable[[str], Any]:
    """A package's ``__getattr__``, by which its modules need no import of their own."""

    def find(name: str) -> Any:
        if name in {module.name for module in pkgutil.iter_modules(path)}:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
