"""Argument checks whose messages name the value, the allowed range and the remedy."""

from __future__ import annotations

import difflib
import operator
import os
import sys
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


# What others call some of our names; only for the order in which valid names are listed.
_ALSO_CALLED = {
    "euler": "ddim",
    "dopri5": "rk45",
    "rk23": "bosh3",
    "plms": "ab4",
    "dpmsolver++": "dpmpp2m",
    "epsilon": "eps",
    "noise": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "scaled_linear": "ddpm",
    "squaredcos_cap_v2": "cosine",
}


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """``value`` if it is allowed; else a ValueError listing the valid names, nearest first."""
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return value
    if not names:
        raise ValueError(f"unknown {name} {value!r}: there is none here")
    plain = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(value).lower(), plain, n=len(plain), cutoff=0.0)
    near.sort(key=lambda word: plain[word] != _ALSO_CALLED.get(str(value).lower()))
    raise ValueError(
        f"unknown {name} {value!r}; valid, nearest first: {', '.join(plain[n] for n in near)}"
    )


def is_flag(value: Any) -> bool:
    """Whether it is one of Python's, numpy's or torch's truth values."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def flag(name: str, value: Any) -> bool:
    """``value`` if it is True or False; else a ValueError, also for what merely counts as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={value!r} must be True or False")
    return bool(value)


def count(name: str, value: Any, least: int = 1, most: float = sys.maxsize) -> int:
    """``value`` as an int in [least, most]; else a ValueError (bools and fractions refused)."""
    try:
        found = None if is_flag(value) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # arrays of many, among others
        found = None
    if found is None or not least <= found <= most:
        limited = most < sys.maxsize or (found or 0) > most
        bound = f">= {least}" + (f" and <= {most}" if limited else "")
        raise ValueError(f"{name}={value!r} must be a whole number {bound}")
    return found


def seed_of(value: Any, n: int = 1) -> int:
    """``value`` as the first of n seeds in a row, of 64 bits each; else a ValueError."""
    return count("seed", value, least=0, most=2**64 - n)


def single(value: Any) -> bool:
    """Whether it is one thing, and not several: no iterable, a string, or an array without axes."""
    text = isinstance(value, (str, bytes))
    return text or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0


def several(value: Any) -> list[Any]:
    """What there is one or several of, as a list."""
    return [value] if single(value) else list(value)


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
        raise ValueError(f"{name}={value!r} must be a path, a string or a pathlib.Path")
    return Path(value)


def floating(dtype: Any) -> torch.dtype:
    """``dtype`` if it is one of torch's for real numbers; else a ValueError."""
    import torch

    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype!r} must be a floating torch dtype such as torch.float32")
    return dtype


def device_of(value: Any) -> torch.device:
    """``value`` as a device that tensors can be made on here; else a ValueError."""
    import torch

    try:
        found = torch.empty(0, device=value).device if value is not None else torch.device("cpu")
        if found.type == "meta":
            raise RuntimeError("it holds no numbers")
        return found
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
