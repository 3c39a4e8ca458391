"""Maximum mean discrepancies: how far apart two samples are in the features of a kernel.

    MMD²(P, Q) = E k(x, x') + E k(y, y') − 2 E k(x, y)       (Gretton et al. 2012, Lemma 6)

Estimated over i ≠ j, so without bias at any sample size: on equal distributions it scatters around
zero, and is often negative. Only the scatter depends on N, so the average over many small samples
is the truth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._base.checks import count, number, seed_of
from .pairs import (
    BLOCK,
    Floats,
    Kernel,
    as_pair,
    as_rows,
    mean_across,
    mean_within,
    squared_distances,
)

SUBSET_SIZE = 1000


class KernelDistance(NamedTuple):
    """The mean over subsets, their standard deviation, and what was drawn.

    ``std`` says how far one subset scatters; it is no error bar of the mean, whose subsets overlap.
    """

    mean: float
    std: float
    subsets: int
    subset_size: int


def kernel_distance(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> KernelDistance:
    """KID between features a (N, D) and b (M, D): MMD² with k(x, y) = (x·y/D + 1)³.

    Unbiased for every N and size. It depends on the features' scale and on where their zero is
    (Bińkowski et al. 2018, section 4).

    Args:
        a, b: Rows of features, at least four each.
        subsets: Pairs of random subsets to average over.
        subset_size: Different rows in each. Default: the field's 1000, or half of the smaller sample where
            that is less (subsets that are the whole sample would scatter by nothing).
        seed: Of the draws.

    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).standard_normal((2, 500, 4))
    >>> abs(kernel_distance(x, y).mean) < 0.01 < kernel_distance(x, y + 1.0).mean
    True
    """
    x, y = as_pair(a, b, least=4)
    smaller = min(len(x), len(y))
    size = min(SUBSET_SIZE, smaller // 2) if subset_size is None else subset_size
    size = count("subset_size", size, 2)
    if size > smaller:
        raise ValueError(
            f"subset_size={size} is more than the {smaller} rows there are; use at most "
            f"{smaller}, or draw more samples"
        )
    rng = np.random.default_rng(seed_of(seed))
    draws = [
        _squared_mmd(cubic, _draw(rng, x, size), _draw(rng, y, size))
        for _ in range(count("subsets", subsets))
    ]
    return KernelDistance(float(np.mean(draws)), float(np.std(draws)), len(draws), size)


def mmd(
    a: npt.ArrayLike, b: npt.ArrayLike, *, bandwidth: float | None = None, seed: int = 0
) -> float:
    """MMD² (not its root) of a (N, D) and b (M, D) with k(x, y) = exp(−‖x − y‖² / 2h²).

    Args:
        a, b: Rows.
        bandwidth: h, in the unit of the rows. Default: :func:`median_bandwidth` of b, so that every sample
            held against the same b is held against the same kernel.
        seed: Of the median's draw.

    Returns:
        Without a unit, between −1/N − 1/M and 2.
    """
    x, y = as_pair(a, b)
    h = median_bandwidth(y, seed=seed) if bandwidth is None else number("bandwidth", bandwidth)
    if not 0 < h < np.inf:
        raise ValueError(f"bandwidth={h!r} must be positive and finite, in the unit of the rows")

    def gaussian(p: Floats, q: Floats) -> Floats:
        return np.exp(squared_distances(p, q) / (-2.0 * h * h))

    centre = y.mean(axis=0)
    return _squared_mmd(gaussian, x - centre, y - centre)


def median_bandwidth(x: npt.ArrayLike, *, seed: int = 0, rows: int = 1000) -> float:
    """The median distance between two rows of x (N, D), on a random ``rows`` of them if N is more."""
    y = as_rows("x", x)
    rows = count("rows", rows, 2)
    if len(y) > rows:
        y = _draw(np.random.default_rng(seed_of(seed)), y, rows)
    d = squared_distances(*(2 * [y - y.mean(axis=0)]))
    median = float(np.sqrt(np.median(d[np.triu_indices(len(y), 1)])))
    if median == 0:
        raise ValueError("more than half of the rows are the same point: give a bandwidth")
    return median


def cubic(x: Floats, y: Floats) -> Floats:
    """KID's (x_i·y_j/D + 1)³ (len(x), len(y))."""
    k = x @ y.T
    k /= x.shape[1]
    k += 1.0
    return k * k * k


def _squared_mmd(kernel: Kernel, x: Floats, y: Floats, block: int = BLOCK) -> float:
    same = mean_within(kernel, x, block) + mean_within(kernel, y, block)
    return same - 2 * mean_across(kernel, x, y, block)


def _draw(rng: np.random.Generator, x: Floats, size: int) -> Floats:
    return x[rng.choice(len(x), size, replace=False)]
