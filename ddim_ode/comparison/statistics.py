"""Intervals for means of positive per-sample errors, and a paired decision between two of them.

The interval is the bias-corrected and accelerated bootstrap (Efron 1987, "Better bootstrap confidence
intervals"), whose level is first widened so that for normal data it has the length of Student's t
(Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3).

Two methods on the same noises are compared by the mean of ln(aᵢ/bᵢ), resampled in pairs: what a hard noise
adds to both errors cancels. The ratio of the two means would be decided by the few noises that a method
loses altogether (``python benchmarks/ranking.py`` counts how often).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit

from .._base.checks import host_numbers, number, seed_of

Array = npt.NDArray[np.float64]
RESAMPLES = 4000
_MOST_DRAWN = 8_000_000  # numbers held at once: fewer resamples of more samples


class Interval(NamedTuple):
    """low and high, None where a single sample says nothing of the spread."""

    low: float | None
    high: float | None


class Decision(NamedTuple):
    """Geometric mean of a/b over paired samples, its interval, and whether that contains 1 (a tie)."""

    ratio: float
    low: float
    high: float
    tie: bool


def mean_interval(values: npt.ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The interval of the mean of values (n,), NaN left out; ``Interval(None, None)`` for n < 2.

    >>> mean_interval([1.0, 2.0, 3.0, 2.0, 1.5, 2.5, 1.8, 2.2]).low > 1.4
    True
    """
    check_confidence(confidence)
    seed, e = seed_of(seed), host_numbers("values", values)
    e = e[~np.isnan(e)]
    if e.size < 2:
        return Interval(None, None)
    drawn = _weights(e.size, seed) @ e
    return Interval(*_accelerated(drawn, float(e.mean()), e - e.mean(), confidence))


def paired_decision(
    a: npt.ArrayLike, b: npt.ArrayLike, confidence: float = 0.95, seed: int = 0
) -> Decision:
    """Whether the errors of a (n,) and b (n,) differ, sample by sample on the same noises, as a ratio.

    Samples that are NaN in either are left out, and an error of 0 counts as the smallest there is.
    ValueError with fewer than two left, or different lengths.

    >>> e = np.linspace(1.0, 2.0, 50)
    >>> paired_decision(1.2 * e, e).tie, paired_decision(e, e).tie
    (False, True)
    """
    check_confidence(confidence)
    seed, first, second = seed_of(seed), host_numbers("a", a), host_numbers("b", b)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"errors of shapes {first.shape} and {second.shape} are no pairs; give (n,) and (n,)"
        )
    both = ~np.isnan(first + second)
    pairs = np.stack([first[both], second[both]], axis=1)
    n = len(pairs)
    if n < 2:
        raise ValueError(f"{n} samples are finished in both: a paired test needs n >= 2")
    if np.array_equal(pairs[:, 0], pairs[:, 1]):
        return Decision(1.0, 1.0, 1.0, True)
    largest = pairs.max(axis=0)
    if not largest.all():  # one of them makes no error at all
        ratio = 0.0 if largest[1] else math.inf
        return Decision(ratio, ratio, ratio, False)
    d = np.log(np.maximum(pairs, pairs[pairs > 0].min())) @ [1.0, -1.0]
    mean = float(d.mean())
    low, high = _accelerated(_weights(n, seed) @ d, mean, d - mean, confidence)
    return Decision(math.exp(mean), math.exp(low), math.exp(high), low <= 0 <= high)


def student_interval(values: Array, confidence: float, more: float = 0.0) -> Interval:
    """Student's interval of the mean of values (n,), n >= 2. more: added to the mean's variance.

    >>> student_interval(np.array([1.0, 2.0, 3.0]), 0.95).low < 0.0
    True
    """
    n, mean = values.size, float(values.mean())
    half = float(stdtrit(n - 1, 0.5 + confidence / 2) * np.sqrt(values.var(ddof=1) / n + more))
    return Interval(mean - half, mean + half)


def difference_decision(a: npt.ArrayLike, b: npt.ArrayLike, confidence: float = 0.95) -> Decision:
    """Whether the means of a (n,) and b (n,) differ, value by value, as their ratio.

    The interval is Student's of the mean of a − b, over the size of the mean of b.

    >>> e = np.linspace(1.0, 2.0, 50)
    >>> difference_decision(1.2 * e, e).tie, difference_decision(e - 2.0, e - 1.0).ratio
    (False, -1.0)
    """
    pairs = np.stack([host_numbers("a", a), host_numbers("b", b)])
    first, second = pairs[:, np.isfinite(pairs).all(axis=0)]
    if first.size < 2:
        raise ValueError(f"{first.size} values are in both: a paired test needs n >= 2")
    size = abs(float(second.mean()))
    if not size:
        raise ValueError(
            "the mean of b is 0, and nothing is a multiple of it; compare the two intervals"
        )
    difference = first - second
    low, high = student_interval(difference, check_confidence(confidence))
    ratio, low, high = (1 + float(d) / size for d in (difference.mean(), low or 0, high or 0))
    return Decision(ratio, low, high, low <= 1 <= high)


def geometric_mean(values: npt.ArrayLike) -> float:
    """Of the errors (n,) that are no NaN: NaN if there is none, 0 if one is 0.

    >>> round(geometric_mean([0.01, 1.0, float("nan")]), 9)
    0.1
    """
    e = host_numbers("values", values)
    e = e[~np.isnan(e)]
    if (e < 0).any():
        raise ValueError(f"values={e.min():g} is negative, and errors are not; give their sizes")
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(e).mean())) if e.size else math.nan


def check_confidence(confidence: float) -> float:
    """ValueError unless it is a probability strictly between 0 and 1."""
    level = number("confidence", confidence)
    if not 0 < level < 1:
        raise ValueError(f"confidence={level!r} must lie strictly between 0 and 1, such as 0.95")
    return level


@functools.lru_cache(maxsize=8)
def _weights(n: int, seed: int) -> Array:
    """(resamples, n): how often each holds each sample, over n."""
    rng = np.random.default_rng([seed, n])
    size = max(500, min(RESAMPLES, _MOST_DRAWN // n))
    return rng.multinomial(n, np.full(n, 1 / n), size=size) / n


def _accelerated(
    drawn: Array, estimate: float, influence: Array, confidence: float
) -> tuple[float, float]:
    n = influence.size
    total = float(np.sum(influence**2))
    if total == 0:
        return estimate, estimate
    # The normal quantile that gives a mean of n normal values the length of Student's t.
    z = np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.5 + confidence / 2)
    below = np.mean(drawn < estimate) + 0.5 * np.mean(drawn == estimate)
    bias = ndtri(np.clip(below, 1e-3, 1 - 1e-3))
    skew = float(np.sum(influence**3)) / (6 * total**1.5)
    ends = bias + np.array([-z, z])
    shares = ndtr(bias + ends / np.maximum(1 - skew * ends, 0.1))
    low, high = np.quantile(drawn, shares)
    return float(low), float(high)
