"""The family that every deterministic few-step sampler is a point of.

With N network calls V_k = V(y_k, σ_k), a sampler that is linear in the state and in what the network
returned is y_0 = a_0 x_T, y_{k+1} = a_{k+1} y_k + Σ_{j ≤ k} w_kj V_j, with the end state y_N: told levels
σ_k, scales a_k and a lower triangle w. In the textbook a_0 = 1, and multistep methods have a short
memory. The state need not lie on the level that the network is told, since scales and weights are free:
the "non-stationary" family of Shaul et al. 2024, "Bespoke Non-Stationary Solvers", with free levels.
Members that go the first part of the way as if x̂₀ were 0, where a call says little, and spend that call
further down, are often better ("analytic first step", Dockhorn et al. 2022, "GENIE").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..schedules.schedule import Array, Schedule
from ..solvers.chart import convert
from ..solvers.plan import Node, Op, Plan

_LONGEST = 0.5  # in ln σ: how far one move takes a level
_PART = 0.45  # of the way to its neighbour


def scales_first(schedule: Schedule) -> bool:
    """Whether the scale of the first state may be fitted: no pipeline scales what the first call sees."""
    return schedule.family == "ve"


class Parameter(NamedTuple):
    """kind: "level" (ln σ of call k), "scale" (a_k) or "weight" (w_kj)."""

    kind: str
    k: int
    j: int = -1


@dataclass(frozen=True)
class Linear:
    """A sampler of the family. sigma (N,): told levels; scale (N+1,); weights (N, N), lower triangle;
    vectors: what call k stores. plan: the one it was read from."""

    sigma: Array
    scale: Array
    weights: Array
    vectors: tuple[str, ...]
    plan: Plan

    @classmethod
    def of(cls, plan: Plan) -> Linear:
        """A plan as a point of the family; ValueError for one with step noise, or without its start.

        Its stages and committed states are written in x_T and the V's, and then each in the one before.
        """
        if plan.is_stochastic:
            raise ValueError(f"{plan.method} adds step noise: it is no deterministic sampler")
        _, _, vectors, states = plan.table()
        lost = [k for k, state in enumerate(states[:-1]) if state[0] == 0]
        if lost:
            raise ValueError(
                f"{plan.method} has lost its start x at call {lost[0] + 1} (scale 0), and a calibration "
                "moves every state from the one before; start from another plan"
            )
        sigma = np.array([node.sigma for node in plan.nodes])
        return cls.through(states, sigma, vectors, plan)

    @classmethod
    def through(cls, states: Array, sigma: Array, vectors: tuple[str, ...], plan: Plan) -> Linear:
        """The sampler of these states, coefficients (N+1, N+1) of (x_T, V_0 … V_{N−1})."""
        before, after = states[:-1], states[1:]
        ratio = after[:, 0] / before[:, 0]
        weights = (after - ratio[:, None] * before)[:, 1:]
        return cls(sigma, np.append(states[0, 0], ratio), weights, vectors, plan)

    def states(self) -> Array:
        """The coefficients of (x_T, V_0 … V_{N−1}) in the states of the calls and the end."""
        states = np.zeros((self.nfe + 1, self.nfe + 1))
        states[0, 0] = self.scale[0]
        for k in range(self.nfe):
            states[k + 1] = self.scale[k + 1] * states[k]
            states[k + 1, 1:] += self.weights[k]
        return states

    def without_calls(self, first: int, schedule: Schedule) -> Linear:
        """The sampler that does not make its first calls, and goes as if each had answered x̂₀ = 0.

        Where ᾱ² + β̄² = 1 the noise has the size of every state, to ᾱ²/2, and the first call sees it
        unscaled: programs that run plans for others can seldom scale the input of a call.
        """
        states = self.states()
        for k in range(first):
            # an x̂₀ of 0 says V = a x
            a, _ = convert("x0", self.vectors[k], *schedule.scales(self.sigma[k : k + 1]))
            states[:, 0] += states[:, 1 + k] * float(a[0]) * states[k, 0]
        kept = states[first:, [0, *range(1 + first, self.nfe + 1)]]
        if schedule.family == "vp":
            kept[0, 0] = 1.0
        return self.through(kept, self.sigma[first:], self.vectors[first:], self.plan)

    @property
    def nfe(self) -> int:
        return len(self.sigma)

    @property
    def falls(self) -> bool:
        """Whether each call is told a lower level than the one before."""
        return bool(np.all(np.diff(self.sigma) < 0))

    @property
    def can_be_fitted(self) -> bool:
        """Whether a fit may begin from it: its levels fall, and every state it shows is finite."""
        return self.falls and bool(np.all(np.isfinite(self.scale)))

    def parameters(
        self, levels: bool = True, memory: int | None = None, first_scale: bool = True
    ) -> list[Parameter]:
        """What a fit may move, in the order in which a run meets it: a level, the call, the step after.

        memory: past vectors whose weights are free, where those beyond keep their values; None for all.
        """
        out = [Parameter("scale", 0)] if first_scale else []
        for k in range(self.nfe):
            if levels and np.isfinite(self.sigma[k]):
                out.append(Parameter("level", k))
            out.append(Parameter("scale", k + 1))
            oldest = 0 if memory is None else max(0, k + 1 - memory)
            out += [Parameter("weight", k, j) for j in range(k, oldest - 1, -1)]
        return out

    def bounds(
        self, parameters: Sequence[Parameter], lowest: float, highest: float
    ) -> tuple[Array, Array]:
        """How far down and up one move may take each parameter: a level neither past its neighbours, nor
        past ``lowest`` and ``highest``, and towards all of these by less than half the way."""
        levels = np.concatenate([[highest], self.sigma, [lowest]])
        with np.errstate(invalid="ignore"):  # of a start at infinity, whose level is no parameter
            gaps = np.log(levels[:-1] / levels[1:])
        low, high = np.full(len(parameters), -np.inf), np.full(len(parameters), np.inf)
        for i, (kind, k, _) in enumerate(parameters):
            if kind == "level":
                up, down = np.clip(_PART * gaps[k : k + 2], 0.0, _LONGEST)
                low[i], high[i] = -down, up
        return low, high

    def moved(self, parameters: Sequence[Parameter], step: Array) -> Linear:
        """The sampler a step away, of ln σ, a and w."""
        sigma, scale, weights = self.sigma.copy(), self.scale.copy(), self.weights.copy()
        for (kind, k, j), change in zip(parameters, step):
            if kind == "level":
                sigma[k] *= np.exp(change)
            elif kind == "scale":
                scale[k] += change
            else:
                weights[k, j] += change
        return replace(self, sigma=sigma, scale=scale, weights=weights)

    def to_plan(self, schedule: Schedule, method: str, fit: Mapping[str, Any]) -> Plan:
        """The plan that runs this sampler; its grid is the start, the told levels below it, and 0."""
        times = schedule.time(self.sigma)
        nodes = [
            Node(float(sigma), float(t), vector)
            for sigma, t, vector in zip(self.sigma, times, self.vectors)
        ]
        ops = [Op(float(self.scale[0]), (), nodes[0], False, 0.0)]
        for k, after in enumerate([*nodes[1:], None]):
            newest_first = self.weights[k, k::-1]
            kept = np.flatnonzero(newest_first)
            length = int(kept[-1]) + 1 if kept.size else 0
            weights = tuple(newest_first[:length].tolist())
            scale = self.scale[k + 1] * (1.0 if k else self.scale[0])  # no op has committed y_0
            ops.append(Op(float(scale), weights, after, True, 0.0))
        return Plan(
            method,
            tuple(ops),
            self.plan.vector,
            self.plan.chart,
            (self.plan.grid[0], *self.sigma[1:].tolist(), 0.0),
            schedule.fingerprint,
            fit=fit,
        )
