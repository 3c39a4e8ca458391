"""The Fréchet distance between two sets of features, each taken as a Gaussian.

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁^½ Σ₂ Σ₁^½)^½)      (Dowson & Landau 1982; FID: Heusel et al. 2017)

It is biased upwards by about 1/N, so only equal sample sizes compare.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def frechet_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """d² between features a (N, D) and b (M, D); ValueError with fewer than two rows or NaN.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((500, 3))
    >>> round(frechet_distance(x, x + [2.0, 0.0, 0.0]), 6)
    4.0
    """
    (mean_a, cov_a), (mean_b, cov_b) = _moments("a", a), _moments("b", b)
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"features have {mean_a.size} and {mean_b.size} dimensions; need the same")
    root = _sqrt(cov_a)
    cross = np.linalg.eigvalsh(root @ cov_b @ root).clip(0)
    gap = float(np.sum((mean_a - mean_b) ** 2))
    return max(0.0, gap + float(np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(cross).sum()))


def _moments(
    name: str, features: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features {name} must be (N >= 2, D), got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"features {name} are not finite: look at the samples they come from")
    return x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))


def _sqrt(symmetric: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
