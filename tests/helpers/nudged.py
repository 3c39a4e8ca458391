"""numpy as another processor has it: what its functions compute is off by one unit in the last place.

Up for some numbers and down for others, but for the same number always the same way.
"""

import functools
import math

import numpy as np

_UFUNCS = (
    *(
        "log",
        "log1p",
        "log2",
        "log10",
        "exp",
        "exp2",
        "expm1",
        "sin",
        "cos",
        "tan",
        "arctan",
        "arctan2",
    ),
    *("sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "sqrt", "cbrt", "power", "hypot"),
)
_OTHERS = (
    "cumsum",
    "cumprod",
    "sum",
    "mean",
    "std",
    "interp",
    "dot",
    "einsum",
    "geomspace",
    "logspace",
)
_LINALG = ("eigh", "norm", "solve", "svd", "lstsq")


def apply(seed=1):
    """Nudge numpy and math from here on, in this process."""
    nextafter, where = np.nextafter, np.where

    def nudge(value):
        if isinstance(value, tuple):  # named ones, of linalg
            parts = [nudge(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        array = np.asarray(value)
        if array.dtype not in (np.float32, np.float64):
            return value
        bits = np.ascontiguousarray(array).astype(np.float64).view(np.uint64).reshape(array.shape)
        with np.errstate(over="ignore"):
            mixed = (bits ^ np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
        ends = where(mixed >> np.uint64(63) == 0, np.inf, -np.inf).astype(array.dtype)
        exact = (array == np.rint(array)) | ~np.isfinite(array)  # cos 0, √4
        moved = where(exact, array, nextafter(array, ends))
        if isinstance(value, float) and not isinstance(value, np.generic):
            return float(moved)
        return array.dtype.type(moved) if np.isscalar(value) else moved

    def nudged(function):
        @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
        def call(*args, **options):
            out = function(*args, **options)
            return out if options.get("out") is not None else nudge(out)

        return call

    for module, names in ((np, _UFUNCS + _OTHERS), (np.linalg, _LINALG)):
        for name in names:
            setattr(module, name, nudged(getattr(module, name)))
    for name in ("log", "log1p", "exp", "expm1", "sin", "cos", "tan", "pow", "hypot"):
        setattr(math, name, nudged(getattr(math, name)))
