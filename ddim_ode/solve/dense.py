"""Dense output: the state of every sample at any level between the ends of its adaptive solve.

On an accepted step from u₀ to u₁ = u₀ ± h, with ξ = |u − u₀|/h ∈ [0, 1] and velocities k = dz/dξ, the
state is the cubic of Hermite through (z₀, k₀) and (z₁, k₁), local error O(h⁴), or where the tableau has
mid-point weights the quartic that also goes through z(½), local error O(h⁵) (Shampine 1986, Math.
Comp. 46: the pair of Dormand and Prince has such a mid-point for free).

Kept per accepted step: the state, the velocity and, for the quartic, the mid-point; so a sample costs
three times its own size a step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import host_numbers
from .._base.tensors import column
from ..schedules.schedule import Array, Schedule
from ..solvers.clock import SMOOTH, Clock
from ..solvers.controller import Index

_SLACK = 1e-9  # of u: rounding between a level and its clock


class Arrival(NamedTuple):
    """States (n, *) that n samples reached, and the velocity dz/ds there, s the way travelled in u.

    samples (n,): which. u (n,): where. middle: the state half-way from the arrival before, if the
    tableau gives it.
    """

    samples: Index
    u: Array
    z: Tensor
    velocity: Tensor
    middle: Tensor | None = None


@dataclass
class Path:
    """Where every sample has been: its accepted states in order, the start included.

    ends: the first and the last level of the solve. multistep: whether its steps are long in ln σ and
    follow x̂₀: then x/β̄ is interpolated in 1/σ, in which a constant x̂₀ is a straight line.
    """

    batch: int
    schedule: Schedule
    ends: tuple[float, float]
    clock: Clock = SMOOTH
    multistep: bool = False
    arrivals: list[Arrival] = field(default_factory=list)

    @property
    def way(self) -> float:
        """The sign of u's change along the way."""
        return 1.0 if self.ends[1] > self.ends[0] else -1.0

    def add(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)

    @functools.cached_property
    def visits(self) -> list[list[tuple[int, int]]]:
        """For every sample, (arrival, row in it) of its accepted states in order."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(self.batch)]
        for number, arrival in enumerate(self.arrivals):
            for row, sample in enumerate(arrival.samples.tolist()):
                found[sample].append((number, row))
        return found

    def at(self, sigma: npt.ArrayLike) -> Tensor:
        """x (B, *) at one level, or one per sample; NaN beyond the level at which a sample was given up.

        ValueError outside the ends.
        """
        sigma = host_numbers("sigma", sigma)
        if sigma.ndim > 1 or sigma.size not in (1, self.batch) or not np.all(sigma > 0):
            raise ValueError(
                f"sigma={sigma} must be one level > 0, or one per sample ({self.batch})"
            )
        bottom, top = sorted(self.ends)
        outside = sigma[(sigma > top * (1 + 1e-6)) | (sigma < bottom * (1 - 1e-6))]
        if outside.size:
            raise ValueError(
                f"sigma={outside.flat[0]:g} is outside [{bottom:g}, {top:g}], where this was solved"
            )
        sigma = np.broadcast_to(sigma.clip(bottom, top), (self.batch,))
        if not self.arrivals or not self.batch:
            raise ValueError("nothing was solved: the batch is empty")
        z = self._at(self.clock.of(sigma))
        return z * column(np.hypot(*self.schedule.scales(sigma)), z)

    def _at(self, u: Array) -> Tensor:
        left, right = self._brackets(u)
        pick = self._pick
        u0, u1 = (np.array([self.arrivals[n].u[row] for n, row in side]) for side in (left, right))
        z0, z1 = pick(left, "z"), pick(right, "z")
        h = column(abs(u1 - u0), z0)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(u0 != u1, (u - u0) / (u1 - u0), 0.0)
            beyond = self.way * (u - u1) > _SLACK * (1 + abs(u1))
            share[beyond] = np.nan  # the sample never came here
        if self.multistep:
            velocities = pick(left, "velocity"), pick(right, "velocity")
            return self._between(u, (u0, u1), (z0, z1), velocities, beyond)
        xi = column(share, z0)
        k0, k1 = h * pick(left, "velocity"), h * pick(right, "velocity")
        # z = z₀ + ξ(k₀ + ξ(...)): cubic, and a quartic bump that moves the middle where it belongs.
        cubic, _ = hermite(xi, 1.0, (z0, z1), (k0, k1))
        cubic = torch.where(xi == 0, z0, cubic)  # also where its velocity is not finite
        if self.arrivals[-1].middle is None:
            return cubic
        middle = 0.5 * (z0 + z1) + 0.125 * (k0 - k1)
        bump = (4 * xi * (1 - xi)) ** 2
        return torch.where(xi == 0, z0, cubic + bump * (pick(right, "middle") - middle))

    def _between(
        self,
        u: Array,
        ends: tuple[Array, Array],
        states: tuple[Tensor, Tensor],
        velocities: tuple[Tensor, Tensor],
        beyond: npt.NDArray[np.bool_],
    ) -> Tensor:
        """The cubic of Hermite in 1/σ through x/β̄ = z/sin θ, whose slope is x̂₀."""
        theta0, theta1, theta = (self.clock.angle(at) for at in (*ends, u))
        c0, c1, c = (1 / np.tan(at) for at in (theta0, theta1, theta))  # 1/σ
        like = states[0]
        y, x0 = [], []
        for at, turned, z, velocity in zip(ends, (theta0, theta1), states, velocities):
            rate = self.way * self.clock.angle_rate(at)
            x0.append(column(np.cos(turned), z) * z - column(np.sin(turned) / rate, z) * velocity)
            y.append(z / column(np.sin(turned), z))
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(c0 != c1, (c - c0) / (c1 - c0), 0.0)
        share[beyond] = np.nan
        xi, width = column(share, like), column(c1 - c0, like)
        found, _ = hermite(xi, 1.0, (y[0], y[1]), (width * x0[0], width * x0[1]))
        found = column(np.sin(theta), like) * found
        return torch.where(xi == 0, states[0], found)

    def _brackets(self, u: Array) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The accepted states before and after u, for every sample (the last two beyond them)."""
        left, right = [], []
        for sample, visited in enumerate(self.visits):
            known = np.array([self.arrivals[n].u[row] for n, row in visited])
            place = np.searchsorted(self.way * known, self.way * u[sample])
            step = int(np.clip(place, 1, max(len(known) - 1, 1)))
            left.append(visited[step - 1])
            right.append(visited[min(step, len(known) - 1)])
        return left, right

    def _pick(self, places: list[tuple[int, int]], name: str) -> Tensor:
        """One row per sample, gathered arrival by arrival."""
        numbers = np.array([n for n, _ in places])
        rows = np.array([row for _, row in places])
        chunks, order = [], []
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            values = getattr(self.arrivals[number], name)
            if values is None:  # a sample that has not left its start: any finite value
                values = self.arrivals[number].z
            chunks.append(values[torch.as_tensor(rows[here], device=values.device)])
            order.append(here)
        back = torch.as_tensor(np.argsort(np.concatenate(order)))
        joined = torch.cat(chunks)
        return joined[back.to(joined.device)]

    def trajectory(self, record: str, end: Tensor, sigmas: list[list[float]]) -> list[Tensor]:
        """For every sample, x ("x") or x̂₀ ("x0") at each of its levels; a last jump leads to ``end``."""
        states: list[list[Tensor]] = [[] for _ in range(self.batch)]
        for samples, u, z, velocity, _ in self.arrivals:
            if record == "x":
                m = np.hypot(*self.schedule.scales(self._level(u)))
                values = column(m, z) * z
            else:  # x̂₀ = cos θ z − sin θ dz/dθ
                theta = self.clock.angle(u)
                values = column(np.cos(theta), z) * z
                slope = self.way * np.sin(theta) / self.clock.angle_rate(u)
                values = values - column(slope, z) * velocity
            for sample, value in zip(samples.tolist(), values.unbind(0)):
                states[sample].append(value)
        for sample, (visited, passed) in enumerate(zip(states, sigmas)):
            if len(passed) > len(visited):
                visited.append(end[sample])
        return [
            torch.stack(visited) if visited else end[s : s + 1] for s, visited in enumerate(states)
        ]

    def _level(self, u: Array) -> Array:
        return np.clip(self.clock.level(u), min(self.ends), max(self.ends))


def hermite(
    xi: float | Tensor,
    step: float | Tensor,
    states: tuple[Tensor, Tensor],
    velocities: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """The cubic of Hermite over a step, and its rate, at a share ξ of it."""
    rise = (states[1] - states[0]) / step
    k0, k1 = velocities
    square, cube = 3 * rise - 2 * k0 - k1, k0 + k1 - 2 * rise
    value = states[0] + step * xi * (k0 + xi * (square + xi * cube))
    return value, k0 + xi * (2 * square + 3 * xi * cube)
