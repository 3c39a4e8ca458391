"""Levels that go back up: a solver of the ODE between which noise is added, as much as leads to a higher σ.

x/ᾱ at σ plus noise of standard deviation √(σ̂² − σ²) has the distribution of x/ᾱ at σ̂ exactly, so that a
method's weak order is that of its ODE steps. A rise is a step of the plan's grid, and an op of its own,
without weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from .._base.checks import count, number
from ..schedules.schedule import Array


@runtime_checkable
class Rises(Protocol):
    """levels(grid): the levels that are passed, from those of a falling grid. noise_scale: of the noise of
    a rise, in units of √(σ̂² − σ²)."""

    @property
    def noise_scale(self) -> float: ...

    def levels(self, sigmas: Array) -> Array: ...


@dataclass(frozen=True)
class Churn:
    """Before every step between σ = low and high, up to σ(1 + γ), γ = min(amount/steps, √2 − 1).

    Args:
        amount, low, high, noise_scale: S_churn, S_min, S_max, S_noise of Karras et al. 2022, algorithm 2.
            A noise_scale other than 1 adds more or less than the step takes away, and has no weak order.

    Raises:
        ValueError: A number that is negative or not finite, or high not above low.
    """

    amount: float = 40.0
    low: float = 0.05
    high: float = 50.0
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self.low, self.high, amount=self.amount, noise_scale=self.noise_scale)

    def levels(self, sigmas: Array) -> Array:
        falls = sigmas[:-1]
        gamma = min(self.amount / falls.size, np.sqrt(2.0) - 1)
        inside = (falls >= self.low) & (falls <= self.high) & np.isfinite(falls)
        pairs = np.stack([falls, np.where(inside, falls * (1 + gamma), falls)], axis=1)
        passed = np.append(pairs.ravel(), sigmas[-1])
        return passed[np.append(True, passed[1:] != passed[:-1])]  # of ∞ − ∞ nothing is known


@dataclass(frozen=True)
class Restart:
    """Once down at the level next to σ = low, up to the one next to high and down again, some times.

    Args:
        times: K of Xu et al. 2023.
        low, high: t_min and t_max of theirs; there are the grid's own levels between.
        noise_scale: As of :class:`Churn`.

    Raises:
        ValueError: As of :class:`Churn`, or low is 0.
    """

    times: int = 2
    low: float = 0.06
    high: float = 0.30
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self.low, self.high, noise_scale=self.noise_scale)
        if self.low == 0:
            raise ValueError("low=0 is no level to go up again from; give one above 0")
        count("times", self.times, 1)

    def levels(self, sigmas: Array) -> Array:
        places = np.log(np.where(sigmas > 0, sigmas, np.nan))
        with np.errstate(invalid="ignore"):
            end = int(np.nanargmin(np.abs(places - np.log(self.low))))
            start = int(np.nanargmin(np.abs(places - np.log(self.high))))
        start = min(start, end - 1)  # a step at least
        if start < 0 or np.isinf(sigmas[start]):
            return sigmas
        again = np.tile(sigmas[start : end + 1], self.times)
        return np.concatenate([sigmas[: end + 1], again, sigmas[end + 1 :]])


@dataclass(frozen=True)
class Ancestral:
    """Further down than the step, and up to its end (Crowson 2022, k-diffusion): the method's own step goes
    to √(σ_t² − η² σ_t² (1 − (σ_t/σ_s)²)), which leaves DDPM's noise to add at η = 1.

    Euler's is ``euler_ancestral``; with ``dpm2`` it is k-diffusion's sample_dpm_2_ancestral.

    Args:
        eta: The share of DDPM's noise.
        noise_scale: As of :class:`Churn`.

    Raises:
        ValueError: A number that is negative or not finite.
    """

    eta: float = 1.0
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        _check(0.0, 1.0, eta=self.eta, noise_scale=self.noise_scale)

    def levels(self, sigmas: Array) -> Array:
        ends, ratio = sigmas[1:], sigmas[1:] / sigmas[:-1]
        share = np.minimum(self.eta * np.sqrt((1 - ratio) * (1 + ratio)), 1.0)
        down = ends * np.sqrt((1 - share) * (1 + share))
        if not down[:-1].all():
            raise ValueError(
                f"eta={self.eta!r} leaves nothing of the state before σ={ends[down == 0][0]:g}; lower it"
            )
        passed = np.append(sigmas[0], np.stack([down, ends], axis=1).ravel())
        return passed[np.append(True, passed[1:] != passed[:-1])]  # of ∞ − ∞ nothing is known


def _check(low: float, high: float, **sizes: float) -> None:
    for name, size in dict(low=low, **sizes).items():
        if not 0 <= number(name, size) < np.inf:
            raise ValueError(f"{name}={size!r} must be finite and >= 0")
    if not low < number("high", high):
        raise ValueError(f"high={high!r} must be a σ above low={low!r}")
