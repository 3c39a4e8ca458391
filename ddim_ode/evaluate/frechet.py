"""The Fréchet distance between two sets of features, each taken as a Gaussian.

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½)      (Dowson & Landau 1982; FID: Heusel et al. 2017)

Unit: that of the features, squared. It is biased upwards by about 1/N (Bińkowski et al. 2018), so
only equal sample sizes compare: two samples of N rows of the same standard normal in D dimensions
are 2D/N + D(D+1)/(2N) apart on average, and half of that from the exact moments.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .._base.checks import host_numbers
from .pairs import Floats, as_pair


def frechet_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """d² between features a (N, D) and b (M, D); ValueError with fewer than two rows or NaN.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 3))
    >>> round(frechet_distance(x, x + [2.0, 0.0, 0.0]), 6)
    4.0
    """
    x, y = as_pair(a, b)
    return frechet_from_moments(*moments(x), *moments(y))


def frechet_from_moments(
    mean_a: npt.ArrayLike, cov_a: npt.ArrayLike, mean_b: npt.ArrayLike, cov_b: npt.ArrayLike
) -> float:
    """d² between the Gaussians N(mean_a (D,), cov_a (D, D)) and N(mean_b, cov_b).

    >>> frechet_from_moments([0.0], [[4.0]], [3.0], [[1.0]])  # 3² + (2 − 1)²
    10.0
    """
    (m, s), (n, t) = _gaussian("a", mean_a, cov_a), _gaussian("b", mean_b, cov_b)
    if m.shape != n.shape:
        raise ValueError(f"a has {m.size} dimensions and b has {n.size}: both must be of one space")
    root = _sqrt(s)
    cross = np.linalg.eigvalsh(root @ t @ root).clip(0)
    gap = float(np.sum((m - n) ** 2))
    return max(0.0, gap + float(np.trace(s) + np.trace(t) - 2 * np.sqrt(cross).sum()))


def moments(x: Floats) -> tuple[Floats, Floats]:
    """Mean (D,) and unbiased covariance (D, D) of rows (N, D)."""
    return x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))


def _gaussian(name: str, mean: npt.ArrayLike, cov: npt.ArrayLike) -> tuple[Floats, Floats]:
    m, s = host_numbers(f"mean_{name}", mean), host_numbers(f"cov_{name}", cov)
    if m.ndim != 1 or s.shape != (m.size, m.size):
        raise ValueError(
            f"mean_{name} has shape {m.shape} and cov_{name} {s.shape}, but they must be (D,) and (D, D)"
        )
    if not (np.isfinite(m).all() and np.isfinite(s).all()):
        raise ValueError(
            f"mean_{name} or cov_{name} has NaN or inf: look at what it was computed from, and leave "
            "those samples out"
        )
    if not np.allclose(s, s.T, rtol=1e-8, atol=1e-8 * float(np.abs(s).max(initial=0.0))):
        raise ValueError(f"cov_{name} is not symmetric, so it is no covariance")
    return m, s


def _sqrt(symmetric: Floats) -> Floats:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
