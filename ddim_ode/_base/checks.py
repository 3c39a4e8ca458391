"""Argument checks whose messages name the value, the allowed range and the remedy."""

from __future__ import annotations

import contextlib
import difflib
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]


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


def shown(value: Any, most: int = 300) -> str:
    """A value as messages show it: its ``repr``, if that can be had at all, and no more than ``most``."""
    try:
        text = repr(value)
    except Exception:  # its own; and Python prints no whole number of more than 4300 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """``value`` if it is allowed; else a ValueError listing the valid names, nearest first."""
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return value
    if not names:
        raise ValueError(f"unknown {name} {shown(value)}: there is none here")
    plain = {name.lower(): name for name in names}
    wanted = value.lower() if isinstance(value, str) else ""
    near = difflib.get_close_matches(wanted, plain, n=len(plain), cutoff=0.0)
    near.sort(key=lambda word: plain[word] != _ALSO_CALLED.get(wanted))
    raise ValueError(
        f"unknown {name} {shown(value)}; valid, nearest first: {', '.join(plain[n] for n in near)}"
    )


def is_flag(value: Any) -> bool:
    """Whether it is one of Python's, numpy's or torch's truth values."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def flag(name: str, value: Any) -> bool:
    """``value`` if it is True or False; else a ValueError, also for what merely counts as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={shown(value)} must be True or False")
    return bool(value)


def count(name: str, value: Any, least: int = 1, most: float = sys.maxsize) -> int:
    """``value`` as an int in [least, most]; else a ValueError (bools and fractions refused)."""
    try:
        whole = None if is_flag(value) else operator.index(value)
    except Exception:  # arrays of many, and whatever an object's own conversion raises
        whole = None
    if whole is None or not least <= whole <= most:
        limited = most < sys.maxsize or (whole or 0) > most
        bound = f">= {least}" + (f" and <= {most}" if limited else "")
        raise ValueError(f"{name}={shown(value)} must be a whole number {bound}")
    return whole


def seed_of(value: Any, n: int = 1) -> int:
    """``value`` as the first of n seeds in a row, of 64 bits each; else a ValueError."""
    return count("seed", value, least=0, most=2**64 - n)


def single(value: Any) -> bool:
    """Whether it is one thing, and not several: no iterable, a string, or an array without axes."""
    text = isinstance(value, (str, bytes))
    return text or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0


def several(value: Any) -> list[Any]:
    """What there is one or several of, as a list."""
    if not single(value):
        with contextlib.suppress(Exception):  # an object's own
            return list(value)
    return [value]


def numbers(name: str, value: Any) -> Array:
    """``value`` as a new float64 array; ValueError for what does not hold real numbers alone."""
    with contextlib.suppress(Exception):  # whatever an object's own conversion raises
        array = np.asarray(value)
        if array.dtype == object and all(map(_is_real, array.flat)):
            array = array.astype(np.float64)
        if array.dtype.kind in "fiu":
            return np.array(array, dtype=np.float64)
    raise ValueError(
        f"{name}={shown(value)} must be real numbers that float64 holds, or an array of them (of a tensor: "
        "on the CPU, without a gradient and of a type that numpy has, tensor.detach().cpu().double())"
    )


def _is_real(value: Any) -> bool:
    return isinstance(value, (Real, Decimal)) and not isinstance(value, bool)


def host_numbers(name: str, value: Any) -> Array:
    """As :func:`numbers`, also of a tensor with a gradient, in any precision or on another device."""
    with contextlib.suppress(Exception):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
    return numbers(name, value)


def number(name: str, value: Any) -> float:
    """``value`` as one float, perhaps NaN or infinite; ValueError for anything else."""
    return _one(name, value, numbers(name, value))


def finite(name: str, value: Any) -> float:
    """``value`` as one float, neither NaN nor infinite; else a ValueError."""
    if not np.isfinite(real := number(name, value)):
        raise ValueError(f"{name}={real!r} must be finite")
    return real


def host_number(name: str, value: Any) -> float:
    """As :func:`number`, also of a tensor with a gradient, in any precision or on another device."""
    return _one(name, value, host_numbers(name, value))


def _one(name: str, value: Any, array: Array) -> float:
    if array.ndim:
        raise ValueError(f"{name}={shown(value)} must be one number")
    return float(array)


def named(name: str, value: Any) -> Mapping[str, Any]:
    """``value`` as a mapping from strings; else a ValueError."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name}={shown(value)} must be {{name: value}}, each name a string")
    return value


def function(name: str, value: Any) -> Callable[..., Any]:
    """``value`` if it can be called; else a ValueError."""
    if not callable(value):
        raise ValueError(f"{name}={shown(value)} must be callable")
    return value


def path_of(name: str, value: Any) -> Path:
    """``value`` as a path; ValueError for anything but a string or a path."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise ValueError(f"{name}={shown(value)} must be a path, a string or a pathlib.Path")
    if not os.fspath(value) or any(c < " " or c == "\x7f" for c in os.fspath(value)):
        raise ValueError(
            f"{name}={shown(value)} must be a path, not empty and without control characters"
        )
    return Path(value)


def text_of(name: str, value: Any) -> str:
    """``value`` as text that can be printed on one line; else a ValueError."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{name}={shown(value)} must be a string of printable characters")
    return value


def floating(dtype: Any) -> torch.dtype:
    """``dtype`` if it is one of torch's for real numbers; else a ValueError."""
    import torch

    if not isinstance(dtype, torch.dtype) or not has_digits(dtype):
        raise ValueError(
            f"dtype={shown(dtype)} must be a floating torch dtype such as torch.float32, of 16 bits or more"
        )
    return dtype


def has_digits(dtype: torch.dtype) -> bool:
    """Whether it is one of real numbers, and of 16 bits or more: torch computes in no narrower one."""
    return dtype.is_floating_point and dtype.itemsize > 1


def is_dense(x: torch.Tensor) -> bool:
    """Whether it holds a real number for every index: it is not sparse, nested, quantised or on "meta"."""
    import torch

    dense = x.layout == torch.strided and not (x.is_nested or x.is_quantized or x.is_meta)
    return dense and not x.is_complex()


def described(x: Any) -> str:
    """A tensor in a few words, or another value's type."""
    import torch

    if not isinstance(x, torch.Tensor):
        return type(x).__name__
    kind = "nested" if x.is_nested else "" if x.layout == torch.strided else f"{x.layout}"
    place = "on meta, where it holds no numbers" if x.is_meta else ""
    size = "" if x.is_nested else f"{tuple(x.shape)}"
    return " ".join(part for part in (f"{x.dtype}", size, kind, place) if part)


def tensor_of(name: str, value: Any) -> torch.Tensor:
    """``value``, a tensor or an array, as a dense tensor; else a ValueError."""
    import torch

    with contextlib.suppress(Exception):  # whatever an object's own conversion raises
        if not isinstance(value, torch.Tensor):
            value = torch.as_tensor(np.asarray(value))
    if not isinstance(value, torch.Tensor) or not is_dense(value):
        raise ValueError(
            f"{name} must be a dense tensor or array of numbers, got {described(value)}"
        )
    return value


def device_of(value: Any) -> torch.device:
    """``value`` as a device that tensors can be made on here; else a ValueError."""
    import torch

    try:
        device = torch.empty(0, device=value).device if value is not None else torch.device("cpu")
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        return device
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"device={shown(value)} cannot be used here ({reason}); take 'cpu', or a device that torch has"
        ) from None


def exclusive(**values: object) -> None:
    """ValueError naming the argument to drop, if more than one is given."""
    names = [name for name, value in values.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"both {names[0]} and {names[1]} are given; drop {names[1]}")


def refuse(reason: str, **values: object) -> None:
    """ValueError naming the first of the arguments that is given at all."""
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"{reason}; drop {name}={shown(value)}")
