"""What was tried on a model with some number of network calls, and how it did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..schedules.schedule import Schedule
from .compilation import plan
from .methods import Method

# The methods that are tried: one call a step, and among them the best on every model that was looked at.
TRIED = ("unipc2", "unipc3", "dpmpp2m", "dpmpp3m", "ipndm", "deis3")


@dataclass(frozen=True)
class Tried:
    """A method on a grid. source: where the grid is from. levels: σ. error: on the model, the mean over
    ``n`` noises of the RMS to their converged ends. expected: what the surrogate said before."""

    method: str
    source: str
    levels: tuple[float, ...]
    error: float
    n: int
    expected: float

    @property
    def steps(self) -> int:
        return len(self.levels) - 1


@dataclass(frozen=True)
class Screen:
    """What was tried with so many network calls, the best first, and the network rows that it took."""

    nfe: int
    net_evals: int
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class Recommendation:
    """method, levels: what to sample with. error: what it errs by (RMS). measured: on the model, and not
    expected by the surrogate."""

    method: str
    levels: tuple[float, ...]
    error: float
    measured: bool

    def __str__(self) -> str:
        levels = ", ".join(f"{sigma:.3g}" for sigma in self.levels)
        known = "measured" if self.measured else "expected"
        return f"{self.method} at σ = {levels}: error {self.error:.3g}, {known}"


def calls_of(method: Method, schedule: Schedule, steps: int) -> int:
    """Network calls of so many steps of a method."""
    levels = np.append(np.geomspace(2.0, 1.0, steps) * schedule.least_cut, 0.0)
    return plan(method, schedule, levels).nfe


def steps_within(method: Method, schedule: Schedule, nfe: int) -> tuple[int, str | None]:
    """The steps and the start of the largest plan within ``nfe`` calls; 0 steps if there is none.

    Where a Runge–Kutta start leaves calls over, it is the ramp with one call a step.
    """
    steps = next((n for n in range(nfe, 0, -1) if calls_of(method, schedule, n) <= nfe), 0)
    if method.rk_steps and calls_of(method, schedule, steps) < nfe:
        return nfe, "ramp"
    return steps, None
