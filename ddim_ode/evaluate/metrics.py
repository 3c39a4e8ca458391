"""The distribution metrics by name, and several of them at once as one row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
from torch import Tensor

from .._base.checks import one_of, seed_of, shown
from .energy import energy_distance
from .features import (
    IDENTITY,
    Features,
    classifier_features,
    content_sha256,
    default_features,
    inception_features,
)
from .frechet import frechet_distance, frechet_from_moments, moments
from .kernel import KernelDistance, kernel_distance, median_bandwidth, mmd
from .pairs import Floats, as_rows
from .sliced import sliced_wasserstein
from .statistics import FeatureStatistics

METRICS = ("frechet_distance", "kernel_distance", "sliced_wasserstein", "energy_distance", "mmd")

__all__ = [
    "IDENTITY",
    "METRICS",
    "FeatureStatistics",
    "Features",
    "KernelDistance",
    "classifier_features",
    "content_sha256",
    "default_features",
    "energy_distance",
    "frechet_distance",
    "frechet_from_moments",
    "inception_features",
    "kernel_distance",
    "measure",
    "median_bandwidth",
    "mmd",
    "sliced_wasserstein",
]


def measure(
    samples: Tensor | npt.NDArray[Any],
    reference: FeatureStatistics,
    features: Features,
    *,
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
    projections: int = 256,
    subsets: int = 100,
    subset_size: int | None = None,
) -> dict[str, float | int | str]:
    """One flat row: each metric between samples (N, *shape) in network space and the reference.

    The features are taken once. The Fréchet distance uses all of the reference's n rows, the others
    those it kept. Besides the metrics' values under their names (``mmd`` is squared,
    ``kernel_distance`` has its ``kernel_distance_std`` over subsets) the row says n, seed,
    features, reference (the starts of their hashes), reference_n and reference_rows, and each
    metric's own settings. Compare rows of equal n only: see each metric's bias. ValueError for
    another feature hash than the reference's, or an unknown metric.

    >>> import numpy as np
    >>> real, made = np.random.default_rng(0).standard_normal((2, 1000, 2))
    >>> row = measure(made, FeatureStatistics.of(real, IDENTITY), IDENTITY, metrics=["energy_distance"])
    >>> row["n"], row["features"], row["energy_distance"] < 0.1
    (1000, 'identity', True)
    """
    names = check_names(metrics)
    seed = seed_of(seed)
    if not isinstance(reference, FeatureStatistics):
        raise ValueError(
            f"reference must be FeatureStatistics, got {type(reference).__name__}; "
            "FeatureStatistics.of(images, features) makes them"
        )
    reference.check(features)
    a = as_rows("the samples' features", features(samples))
    return measure_features(
        a,
        moments(a),
        reference,
        names,
        seed=seed,
        projections=projections,
        subsets=subsets,
        subset_size=subset_size,
    )


def measure_features(
    a: Floats,
    gaussian: tuple[Floats, Floats],
    reference: FeatureStatistics,
    names: Sequence[str],
    *,
    seed: int = 0,
    projections: int = 256,
    subsets: int = 100,
    subset_size: int | None = None,
) -> dict[str, float | int | str]:
    """The row of :func:`measure` from features already taken: rows a (N, D), and the mean and covariance
    that the Fréchet distance uses, which may be of more rows than these."""
    b = reference.rows
    if len(b) < 4 and names != ["frechet_distance"]:
        raise ValueError(
            f"the reference keeps {len(b)} rows, and only frechet_distance does without: "
            "compute it with FeatureStatistics.of(images, features, keep=10_000)"
        )
    row: dict[str, float | int | str] = {}
    for name in names:
        if name == "frechet_distance":
            row[name] = frechet_from_moments(*gaussian, reference.mean, reference.cov)
        elif name == "kernel_distance":
            kid = kernel_distance(a, b, subsets=subsets, subset_size=subset_size, seed=seed)
            row |= {name: kid.mean, f"{name}_std": kid.std}
            row |= dict(subsets=kid.subsets, subset_size=kid.subset_size)
        elif name == "sliced_wasserstein":
            row[name] = sliced_wasserstein(a, b, projections=projections, seed=seed)
            row["projections"] = projections
        elif name == "energy_distance":
            row[name] = energy_distance(a, b)
        else:
            h = median_bandwidth(b, seed=reference.seed)
            row |= {name: mmd(a, b, bandwidth=h), "bandwidth": h}
    return row | dict(
        n=len(a),
        seed=seed,
        features=reference.features,
        features_sha256=reference.features_sha256[:12],
        reference=reference.sha256[:12],
        reference_n=reference.n,
        reference_rows=len(b),
    )


def check_names(metrics: Sequence[str]) -> list[str]:
    """The metrics' names; ValueError for none, or one that is unknown."""
    several = isinstance(metrics, Sequence) and not isinstance(metrics, str)
    names = [one_of("metric", m, METRICS) for m in metrics] if several else []
    if not names:
        raise ValueError(
            f"metrics={shown(metrics)} must be a list of at least one of {', '.join(METRICS)}"
        )
    return names
