"""Argument checks whose messages name the value, the allowed range and the remedy."""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]
# What numpy, torch and Python raise for a value that is no number, or none that float64 can hold.
_UNREADABLE = (TypeError, ValueError, OverflowError, RuntimeError, NotImplementedError)


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


def count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """``value`` as an int in [least, most]; else a ValueError (bools and fractions refused)."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # arrays of many, among others
        found = None
    if found is None or found < least or (most is not None and found > most):
        bound = f">= {least}" + ("" if most is None else f" and <= {most}")
        raise ValueError(f"{name}={value!r} must be a whole number {bound}")
    return found


def numbers(name: str, value: Any) -> Array:
    """``value`` as a new float64 array; ValueError for what does not hold real numbers alone."""
    try:
        found = np.asarray(value)
        if found.dtype.kind in "fiu":
            return np.array(found, dtype=np.float64)
    except _UNREADABLE:
        pass
    raise ValueError(
        f"{name}={value!r} must be real numbers, or an array of them (of a tensor: on the CPU and "
        "without a gradient, tensor.detach().cpu())"
    )


def number(name: str, value: Any) -> float:
    """``value`` as one float, perhaps NaN or infinite; ValueError for anything else."""
    found = numbers(name, value)
    if found.ndim:
        raise ValueError(f"{name}={value!r} must be one number")
    return float(found)


def named(name: str, value: Any) -> Mapping[str, Any]:
    """``value`` as a mapping from strings; else a ValueError."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name}={value!r} must be {{name: value}}, each name a string")
    return value


def function(name: str, value: Any) -> Callable[..., Any]:
    """``value`` if it can be called; else a ValueError."""
    if not callable(value):
        raise ValueError(f"{name}={value!r} must be callable")
    return value


def path_of(name: str, value: Any) -> Path:
    """``value`` as a path; ValueError for anything but a string or a path."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise ValueError(f"{name}={value!r} must be a file's path, a string or a pathlib.Path")
    return Path(value)


def device_of(value: Any) -> torch.device:
    """``value`` as a device that tensors can be made on here; else a ValueError."""
    import torch

    try:
        return torch.empty(0, device=value).device if value is not None else torch.device("cpu")
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"device={value!r} cannot be used here ({reason}); take 'cpu', or a device that torch has"
        ) from None


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
