"""Distribution metrics of what a comparison made: its kept end states, row by row.

They are measured against real data, or against the converged solutions of the same noises. The second says
what the solver alone does to the distribution, and nothing of the model. The two samples are then pairs, so
metrics that assume independent samples are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._base.checks import one_of
from ..evaluate.features import Features
from ..evaluate.metrics import METRICS, REGISTRY, USUAL, measure
from ..evaluate.statistics import FeatureStatistics

if TYPE_CHECKING:
    from .result import Comparison

# What ``measure`` says of its numbers, and the column of a comparison that has it.
_ABOUT = dict(
    n="metrics_n",
    seed="metrics_seed",
    features_sha256="metrics_features",
    reference="metrics_reference",
    reference_n="metrics_reference_n",
)


@dataclass(frozen=True)
class Measured:
    """names: the metrics, whose values are now in the rows. against, features: in words.

    converged: the metrics of the converged solutions themselves, empty where they are what the rows are
    held against. n: samples of each.
    """

    names: tuple[str, ...]
    against: str
    features: str
    converged: dict[str, float]
    n: int

    def label(self, name: str) -> str:
        """The metric, what it sees, and what it is held against."""
        return f"{REGISTRY[name].title} of {self.n} samples in {self.features} to {self.against}"


def check_metrics(names: Sequence[str], independent: bool) -> tuple[str, ...]:
    """The names, or a default for none; ValueError for one that is unknown, or has no meaning here.

    The default against data is Fréchet and KID; against the same noises, where KID has no meaning,
    Wasserstein in its place.
    """
    for name in names:
        if REGISTRY[one_of("metric", name, METRICS)].independent and not independent:
            raise ValueError(
                f"{name} supposes independent samples, and without data the samples are held against the "
                "converged solutions of their own noises; give data, or take frechet_distance, "
                "sliced_wasserstein or energy_distance"
            )
    default = USUAL if independent else ("frechet_distance", "sliced_wasserstein")
    return tuple(dict.fromkeys(names)) or default


def measure_rows(
    result: Comparison,
    features: Features,
    data: FeatureStatistics | None = None,
    against: str = "data",
    metrics: Sequence[str] = (),
) -> Measured:
    """Put the metrics of every row into ``result.rows``; None where not all n samples are there.

    With them go metrics_n, metrics_seed, metrics_features and metrics_reference (the starts of their
    hashes) and metrics_reference_n. The comparison must have kept all end states (``keep=n``). data: what
    to hold them against, said as ``against``; None: the converged solutions of the same noises.
    """
    names = check_metrics(metrics, data is not None)
    n, exact = len(result.seeds), result.reference
    x = None if exact is None or not torch.isfinite(exact.x).all() else exact.x.float()
    if data is None:
        if x is None:
            raise ValueError("not all noises have a converged solution to hold samples against")
        data, against = FeatureStatistics.of(x, features), "the converged solutions of their noises"
        x = None

    def values(samples: Tensor) -> dict[str, Any]:
        row = measure(samples, data, features, metrics=names)
        about = {column: row[key] for key, column in _ABOUT.items()}
        return {name: float(row[name]) for name in names} | about

    for row, samples in zip(result.rows, result.samples):
        row.metrics |= dict.fromkeys((*names, *_ABOUT.values()))
        if samples is not None and len(samples) == n and not row.failed:
            row.metrics |= values(samples)
    own = values(x) if x is not None else {}
    converged = {name: own[name] for name in names if name in own}
    return Measured(names, against, f"{features.name} features", converged, n)
