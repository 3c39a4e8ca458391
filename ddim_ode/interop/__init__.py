"""Other libraries' models and pipelines. Nothing in the core imports this package.

:mod:`ddim_ode.interop.diffusers` reads their models and runs our plans inside their pipelines.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "diffusers":
        return importlib.import_module(".diffusers", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
