"""Argument checks whose messages name the value, the allowed range and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """``value`` if it is allowed; else a ValueError listing the valid names, nearest first."""
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return value
    plain = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(value).lower(), plain, n=len(plain), cutoff=0.0)
    raise ValueError(
        f"unknown {name} {value!r}; valid, nearest first: {', '.join(plain[n] for n in near)}"
    )


def count(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int >= ``least``; else a ValueError (bools and fractions refused)."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise ValueError(f"{name}={value!r} must be a whole number >= {least}")
    return int(value)


def exclusive(**values: object) -> None:
    """ValueError naming the argument to drop, if more than one is given."""
    given = [name for name, value in values.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"both {given[0]} and {given[1]} are given; drop {given[1]}")


def refuse(reason: str, **values: object) -> None:
    """ValueError naming the first of the arguments that is given at all."""
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"{reason}; drop {name}={value!r}")
