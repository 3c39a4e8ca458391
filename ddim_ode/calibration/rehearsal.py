"""Fits without a network: a sampler goes downhill on what a surrogate of the model expects of it.

One look at a model (solve/look.py) gives what its x̂₀ does along its own paths, from which the error of
any plan follows, and by differences its derivatives. A surrogate knows a disturbance by its size alone, so
that what it expects of a fitted sampler is too good: the network has the last word, and the rehearsed
sampler is where its fit starts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..schedules.schedule import Array
from ..solvers.chart import VECTORS
from ..solvers.surrogate import Surrogate
from .descent import damped
from .family import Linear

ASTRAY = (1.0, 0.5)  # how much a disturbance counts; neither is the better on every network
_ITERATIONS, _TRIES = 24, 6
_STEP = 1e-5  # of the differences
_LEAST_GAIN = 1e-3  # of an iteration, that another follows


def residuals(surrogate: Surrogate, points: Sequence[Linear], astray: float = 1.0) -> Array:
    """(len(points), entries) of samplers alike in their calls: each row's square is the mean square error
    that the surrogate expects."""
    count, n, own = len(points), points[0].nfe, len(surrogate.levels) + 1
    sigma = np.array([point.sigma for point in points])
    scale, weights = (np.array([getattr(p, name) for p in points]) for name in ("scale", "weights"))
    alpha, beta = surrogate.schedule.scales(sigma)
    size = np.hypot(alpha, beta)
    flat = surrogate.path(sigma.ravel())
    x0, state = (part.reshape(count, n, own) for part in flat)
    along, across = (part.reshape(count, n) for part in surrogate.answers(sigma.ravel(), astray))
    root = _root(surrogate.gram)

    def measured(a: Array) -> Array:
        return np.concatenate([a[:, :own] @ root, a[:, own:]], 1)

    first = points[0].plan.grid[0]
    y = np.zeros((count, own + n))
    y[:, :own] = surrogate.path(np.array([first]))[1][0] * np.hypot(
        *surrogate.schedule.scales(first)
    )
    y *= scale[:, :1]
    past = np.zeros((count, n, own + n))
    for k, vector in enumerate(points[0].vectors):
        off = y / size[:, k, None]
        off[:, :own] -= state[:, k]
        predicted = along[:, k, None] * off
        predicted[:, :own] += x0[:, k]
        predicted[:, own + k] += across[:, k] * np.linalg.norm(measured(off), axis=1)
        a, b = alpha[:, k, None], beta[:, k, None]
        of_x0, of_eps = VECTORS[vector](a, b)
        past[:, k] = of_x0 * predicted
        if np.any(of_eps):
            past[:, k] += of_eps * (y - a * predicted) / b
        y = y * scale[:, k + 1, None] + np.einsum(
            "pj,pjc->pc", weights[:, k, : k + 1], past[:, : k + 1]
        )
    y[:, own - 1] -= 1.0
    return measured(y)


def expected(surrogate: Surrogate, point: Linear) -> float:
    """The RMS error that the surrogate expects of a sampler; inf where it has none."""
    error = float(np.linalg.norm(residuals(surrogate, [point])))
    return error if np.isfinite(error) else np.inf


def rehearsed(
    surrogate: Surrogate,
    point: Linear,
    limits: tuple[float, float],
    *,
    levels: bool = True,
    memory: int | None = None,
    first_scale: bool = True,
    astray: float = 1.0,
) -> Linear:
    """The sampler that Gauss–Newton makes of ``point`` on the surrogate, as :class:`Descent` has its
    options."""
    parameters = point.parameters(levels, memory, first_scale)
    damping = 1e-2
    here = residuals(surrogate, [point], astray)[0]
    now = float(here @ here)
    for _ in range(_ITERATIONS):
        if not (np.isfinite(now) and now > 0):
            break
        near = [point.moved(parameters, step) for step in _STEP * np.eye(len(parameters))]
        slopes = (residuals(surrogate, near, astray) - here) / _STEP
        before = now
        for _ in range(_TRIES):
            bounds = point.bounds(parameters, *limits)
            step = damped(slopes @ slopes.T / now, slopes @ here / now, damping, bounds)
            if step is None:
                return point
            trial = point.moved(parameters, step)
            there = residuals(surrogate, [trial], astray)[0]
            if there @ there < now:
                point, here, now = trial, there, float(there @ there)
                damping = max(damping / 4, 1e-8)
                break
            damping *= 8
        if not now < before * (1 - _LEAST_GAIN):
            break
    return point


def _root(gram: Array) -> Array:
    """(K, r) with root rootᵀ = gram."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
