"""A surrogate of a model: what its x̂₀ does along its own paths, and so what any plan would make of it.

One look at a model gives x̂₀ at K levels of a few converged paths. A plan is linear in the vectors that it
stores, so what it makes is a combination Σ aᵢ bᵢ of the start b₀ = x_T and those x̂₀ = b₁ … b_K, whatever
the noise and however large a sample is. Its error to the converged end has the mean square aᵀGa, G the Gram
matrix of the bᵢ: K² numbers stand for the model. Between the levels x̂₀ is a spline. A state that is off the
path by δ = δx/ᾱ changes it by g δ and, at right angles to all else, by √(r² − g²) |δ|, where the gain
g(σ) = ⟨δx̂₀, δ⟩/|δ|² and the response r(σ) = |δx̂₀|/|δ| are those between a coarse solve and the path.

No network is called here, so thousands of plans can be tried.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from ..schedules.schedule import Array, Schedule
from .chart import VECTORS
from .ops import Op
from .plan import Plan
from .ruler import Ruler
from .table import states

_FINE = 12  # quadrature intervals between two levels
_GAUSS = np.polynomial.legendre.leggauss(4)


@dataclass(frozen=True, eq=False)
class Surrogate:
    """What a look at a model has seen, as numbers.

    levels (K,): falling, all above 0, the first where sampling starts. gram (K+1, K+1): the mean products,
    over noises and entries, of the normed start x_T/√(ᾱ²+β̄²) and of x̂₀ at each level. gain, response (K,):
    of x̂₀ to a disturbance of the state, at those levels.
    """

    schedule: Schedule
    levels: Array
    gram: Array
    gain: Array
    response: Array

    @functools.cached_property
    def ruler(self) -> Ruler:
        return Ruler.up_to(float(self.levels[0]))

    @functools.cached_property
    def _r(self) -> Array:
        return self.ruler.of(self.levels)

    @functools.cached_property
    def _path(self) -> CubicSpline:
        """x̂₀ and x/√(ᾱ²+β̄²) on the path, each as coefficients (K+1,) of the start and of x̂₀ at the levels.

        x/β̄ moves by x̂₀ d(1/σ).
        """
        count = len(self._r)
        of_levels = CubicSpline(self._r[::-1], np.eye(count)[::-1])
        fine = np.interp(np.arange((count - 1) * _FINE + 1) / _FINE, np.arange(count), self._r)
        points, weights = _GAUSS
        width = np.diff(fine)[:, None]
        at = fine[:-1, None] + 0.5 * width * (1 + points)
        x0, steps = np.zeros((2, len(fine), count + 1))
        x0[:, 1:] = of_levels(fine)
        # 1/σ = e^{−r} − bend, whose derivative is −e^{−r}
        measure = -0.5 * width * weights * np.exp(-at)
        steps[1:, 1:] = (measure[:, None, :] @ of_levels(at))[:, 0]
        sigma = self.ruler.inverse(fine)
        sigma[0] = self.levels[0]
        alpha, beta = self.schedule.scales(sigma)
        steps[0, 0] = np.hypot(alpha[0], beta[0]) / beta[0]
        normed = np.cumsum(steps, axis=0) * (beta / np.hypot(alpha, beta))[:, None]
        return CubicSpline(fine[::-1], np.stack([x0, normed], axis=1)[::-1])

    def path(self, sigma: Array) -> tuple[Array, Array]:
        """x̂₀ and x/√(ᾱ²+β̄²) on the path at levels (n,), as coefficients (n, K+1)."""
        both = self._path(np.clip(self.ruler.of(sigma), self._r[-1], self._r[0]))
        return both[:, 0], both[:, 1]

    def answers(self, sigma: Array, astray: float = 1.0) -> tuple[Array, Array]:
        """What x̂₀ at levels (n,) answers to a unit of the normed state: along it, and at right angles."""
        r = self.ruler.of(sigma)
        gain, response = (np.interp(r, self._r[::-1], v[::-1]) for v in (self.gain, self.response))
        # |x/ᾱ| of a unit of the normed state; from ᾱ = 0 every path begins alike
        unit = np.where(np.isfinite(sigma), np.hypot(1.0, sigma), 0.0)
        return gain * unit, astray * np.sqrt(np.maximum(response**2 - gain**2, 0.0)) * unit

    def error(self, plan: Plan, astray: float = 1.0) -> float:
        """What the plan's end would err by (RMS), to the path's end or where the plan stops above σ = 0 to
        the path there.

        astray: how much of the response at right angles counts.
        """
        return self.error_of(plan.ops, plan.grid, astray)

    def error_of(self, ops: Sequence[Op], grid: Sequence[float], astray: float = 1.0) -> float:
        """:meth:`error` of the plan of these ops on that grid."""
        nodes = [op.node for op in ops if op.node is not None]
        sigma = np.array([node.sigma for node in nodes])
        n, own = len(sigma), len(self.levels) + 1
        alpha, beta = self.schedule.scales(sigma)
        size = np.hypot(alpha, beta)
        x0, state = np.zeros((2, n, own + n))
        x0[:, :own], state[:, :own] = self.path(sigma)
        along, across = self.answers(sigma, astray)

        def length(a: Array) -> float:
            return math.sqrt(
                max(float(a[:own] @ self.gram @ a[:own]), 0.0) + float(a[own:] @ a[own:])
            )

        def answer(k: int, y: Array) -> Array:
            off = y / size[k] - state[k]
            predicted = x0[k] + along[k] * off
            predicted[own + k] += across[k] * length(off)
            of_x0, of_eps = VECTORS[nodes[k].vector](alpha[k], beta[k])
            if not of_eps:
                return of_x0 * predicted
            return of_x0 * predicted + of_eps * (y - alpha[k] * predicted) / beta[k]

        start = np.zeros(own + n)
        first, last = grid[0], grid[-1]
        start[:own] = self.path(np.array([first]))[1][0] * np.hypot(*self.schedule.scales(first))
        end = np.array(states(ops, start, answer)[-1])
        if last == 0:
            end[own - 1] -= 1.0
        else:
            end[:own] -= self.path(np.array([last]))[1][0] * np.hypot(*self.schedule.scales(last))
        return length(end)
