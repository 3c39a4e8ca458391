"""Rows (N, D) in, and means of a kernel over all their pairs, a block at a time.

No N×N matrix is ever held: the largest temporary is block × block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from .._base.checks import count, host_numbers

Floats = npt.NDArray[np.float64]
Kernel = Callable[[Floats, Floats], Floats]

BLOCK = 1024
_EXACT_UP_TO = 16  # dimensions; the faster of the two from there is the matrix product, 4 × at 128


def as_rows(name: str, values: Any, least: int = 2) -> Floats:
    """``values`` as float64 (N, D); ValueError for another shape, fewer than ``least`` rows, or NaN."""
    x = host_numbers(name, values)
    if x.ndim != 2 or x.shape[1] < 1:
        hint = (
            "; one feature is x[:, None]" if x.ndim == 1 else "; images go through Features first"
        )
        raise ValueError(
            f"{name} has shape {x.shape}, but must be rows (N >= {least}, D >= 1){hint}"
        )
    if len(x) < least:
        raise ValueError(f"{name} has {len(x)} rows, but needs at least {least}: draw more samples")
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{name} has NaN or inf in {bad.size} of {len(x)} rows, the first is row {bad[0]}: "
            "look at the samples they come from, or drop these rows and say how many"
        )
    return x


def as_pair(a: Any, b: Any, least: int = 2) -> tuple[Floats, Floats]:
    """Both as rows; ValueError when their dimensions differ."""
    x, y = as_rows("a", a, least), as_rows("b", b, least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"a has {x.shape[1]} dimensions and b has {y.shape[1]}: both must be rows of the same features"
        )
    return x, y


def squared_distances(x: Floats, y: Floats) -> Floats:
    """‖x_i − y_j‖² (len(x), len(y)).

    In many dimensions by a matrix product, whose error is 1e-16 of the squared norms: centre first.
    """
    if x.shape[1] <= _EXACT_UP_TO:
        return cdist(x, y, "sqeuclidean")
    d = x @ y.T
    d *= -2.0
    d += np.einsum("ij,ij->i", x, x)[:, None]
    d += np.einsum("ij,ij->i", y, y)
    return np.maximum(d, 0.0, out=d)


def mean_across(kernel: Kernel, x: Floats, y: Floats, block: int = BLOCK) -> float:
    """Mean of kernel(x_i, y_j) over all i and j."""
    sums = (kernel(p, q).sum() for p in _split(x, block) for q in _split(y, block))
    return math.fsum(sums) / (len(x) * len(y))


def mean_within(kernel: Kernel, x: Floats, block: int = BLOCK) -> float:
    """Mean of the symmetric kernel(x_i, x_j) over all i ≠ j."""
    parts = _split(x, block)
    sums = []
    for i, p in enumerate(parts):
        k = kernel(p, p)
        sums.append(k.sum() - np.trace(k))
        sums.extend(2.0 * kernel(p, q).sum() for q in parts[i + 1 :])
    return math.fsum(sums) / (len(x) * (len(x) - 1))


def _split(x: Floats, block: int) -> list[Floats]:
    count("block", block)
    return [x[i : i + block] for i in range(0, len(x), block)]
