"""ln σ, made finite where levels go up to σ = inf."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..schedules.schedule import Array

# 1/σ is counted from here where sampling starts at σ = inf: ln σ goes no higher than that of 20.
_BEND = 0.05


@dataclass(frozen=True)
class Ruler:
    """ln σ, which flattens towards σ = inf where the highest level is that."""

    bend: float

    @classmethod
    def up_to(cls, sigma_max: float) -> Ruler:
        """The ruler of levels up to that one."""
        return cls(0.0 if math.isfinite(sigma_max) else _BEND)

    def of(self, sigma: Array | float) -> Array:
        """r(σ) = −ln(1/σ + bend)."""
        with np.errstate(divide="ignore"):
            return -np.log(1 / np.asarray(sigma, np.float64) + self.bend)

    def inverse(self, r: Array) -> Array:
        """σ(r); inf at the top of a ruler that ends there."""
        with np.errstate(divide="ignore"):
            return 1 / np.maximum(np.exp(-r) - self.bend, 0.0)
