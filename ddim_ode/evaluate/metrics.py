"""The distribution metrics by name, and several of them at once as one row of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class Measured(NamedTuple):
    """What metrics are computed from, and how.

    rows (N, D): the samples' features. gaussian: the mean and covariance that the Fréchet distance uses,
    which may be of more rows than these. The others: see :func:`measure`.
    """

    rows: Floats
    gaussian: tuple[Floats, Floats]
    reference: FeatureStatistics
    seed: int = 0
    projections: int = 256
    subsets: int = 100
    subset_size: int | None = None


class Metric(NamedTuple):
    """function: a :class:`Measured` to {column: value}, its settings among them. independent: whether it
    is estimated without bias from independent samples only."""

    title: str
    function: Callable[[Measured], dict[str, float | int]]
    independent: bool = False


def _frechet(m: Measured) -> dict[str, float | int]:
    return {
        "frechet_distance": frechet_from_moments(*m.gaussian, m.reference.mean, m.reference.cov)
    }


def _kernel(m: Measured) -> dict[str, float | int]:
    options = dict(subsets=m.subsets, subset_size=m.subset_size, seed=m.seed)
    kid = kernel_distance(m.rows, m.reference.rows, **options)  # type: ignore[arg-type]
    return dict(
        kernel_distance=kid.mean,
        kernel_distance_std=kid.std,
        subsets=kid.subsets,
        subset_size=kid.subset_size,
    )


def _sliced(m: Measured) -> dict[str, float | int]:
    d = sliced_wasserstein(m.rows, m.reference.rows, projections=m.projections, seed=m.seed)
    return dict(sliced_wasserstein=d, projections=m.projections)


def _energy(m: Measured) -> dict[str, float | int]:
    return dict(energy_distance=energy_distance(m.rows, m.reference.rows))


def _mmd(m: Measured) -> dict[str, float | int]:
    h = median_bandwidth(m.reference.rows, seed=m.reference.seed)
    return dict(mmd=mmd(m.rows, m.reference.rows, bandwidth=h), bandwidth=h)


REGISTRY = dict(
    frechet_distance=Metric("Fréchet distance", _frechet),
    kernel_distance=Metric("kernel distance (KID)", _kernel, independent=True),
    sliced_wasserstein=Metric("sliced Wasserstein distance", _sliced),
    energy_distance=Metric("energy distance", _energy),
    mmd=Metric("MMD²", _mmd, independent=True),
)
METRICS = tuple(REGISTRY)
USUAL = METRICS[:2]  # against real data

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
    """Several metrics between samples and a reference, as one flat row. The features are taken once.

    The Fréchet distance uses all of the reference's n rows, the others those it kept. Compare rows of equal
    n only: see each metric's bias.

    Args:
        samples: (N, *shape), in the network's space.
        reference: Of real data.
        features: Those of the reference.
        metrics: Names of :data:`METRICS`.
        seed: Of the metrics' own draws.
        projections: Lines of the sliced Wasserstein distance.
        subsets: Of the kernel distance.
        subset_size: Rows of each subset; default as of :func:`.kernel.kernel_distance`.

    Returns:
        Each metric under its name (``mmd`` is squared; ``kernel_distance_std`` is over subsets) with its
        settings; n, seed, features, features_sha256 and reference (the starts of their hashes),
        reference_n and reference_rows.

    Raises:
        ValueError: Other features than the reference's, an unknown metric, or a reference without rows.

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
    rows = as_rows("the samples' features", features(samples))
    how = (seed, projections, subsets, subset_size)
    return row_of(Measured(rows, moments(rows), reference, *how), names)


def row_of(measured: Measured, names: Sequence[str]) -> dict[str, float | int | str]:
    """The row of :func:`measure`, from features already taken."""
    reference = measured.reference
    if len(reference.rows) < 4 and names != ["frechet_distance"]:
        raise ValueError(
            f"the reference keeps {len(reference.rows)} rows, and only frechet_distance does without: "
            "compute it with FeatureStatistics.of(images, features, keep=10_000)"
        )
    row: dict[str, float | int | str] = {}
    for name in names:
        row |= REGISTRY[name].function(measured)
    return row | dict(
        n=len(measured.rows),
        seed=measured.seed,
        features=reference.features,
        features_sha256=reference.features_sha256[:12],
        reference=reference.sha256[:12],
        reference_n=reference.n,
        reference_rows=len(reference.rows),
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
