"""Gauss–Newton over the family of few-step samplers (family.py), on what a Problem measures (fitting.py).

The loss is :meth:`Problem.loss`. One iteration linearises the residuals r in the parameters θ, some 7 to 10
a call, weighs every sample by w_i = 1/(e_i² + f²) + 1/(mean e² + f²) and solves the damped normal equations
(Levenberg–Marquardt) (Σ_i w_i J_iᵀ J_i + μ diag) δ = −Σ_i w_i J_iᵀ r_i. A level stays between its
neighbours; where that bounds its step, the others go where is best with the step that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import lsq_linear
from torch import Tensor

from ..schedules.schedule import Array
from .family import Linear, Parameter, scales_first
from .fitting import Problem, linearised

_TRIES = 6  # dampings tried in an iteration


def normal_equations(
    problem: Problem,
    point: Linear,
    rows: Tensor,
    weights: Array,
    parameters: Sequence[Parameter],
    rank: int,
) -> tuple[Array, Array]:
    """Σ w JᵀJ (p, p) and Σ w Jᵀr (p,) over some noises, with their weights, a few at a time.

    A noise with NaN or inf on the way is left out, and among ``problem.lost``.
    """
    p = len(parameters)
    matrix, vector = np.zeros((p, p)), np.zeros(p)
    size = max(1, problem.batch // rank)
    for part, w in zip(rows.split(size), torch.from_numpy(weights).split(size)):
        r, jacobian = linearised(problem, point, part, parameters, rank)
        finite = r.isfinite().all(1) & jacobian.isfinite().all(2).all(1)
        problem.lost.update(part[~finite].tolist())
        r, jacobian = r[finite], jacobian[finite]
        root = (w.to(r)[finite] / r.shape[1]).sqrt()
        by_parameter = (jacobian * root[:, None, None]).transpose(0, 1).flatten(1)
        matrix += (by_parameter @ by_parameter.T).cpu().numpy()
        vector += (by_parameter @ (r * root[:, None]).flatten()).cpu().numpy()
    return matrix, vector


@dataclass(frozen=True)
class Descent:
    """How a fit goes downhill.

    levels: whether the told levels move too, within ``limits``. memory: past vectors whose weights move
    (None: all). subset: noises of each iteration, drawn anew. patience: iterations without a better
    judgement. decay: of what the iterations before knew of other noises, moved to where the sampler is now
    by their own derivatives: 0 to forget it. allowed: rows of the network that may be spent; an iteration
    that might exceed them is not begun.
    """

    iterations: int
    rank: int
    levels: bool
    limits: tuple[float, float]
    memory: int | None = None
    subset: int | None = None
    patience: int = 10
    allowed: float = float("inf")
    seed: int = 0
    decay: float = 0.0


@dataclass
class Fit:
    """point: the best on the noises that judge, with its errors there; iterations: made before it."""

    point: Linear
    errors: Array
    iterations: int


def gauss_newton(
    problem: Problem,
    point: Linear,
    rows: Tensor,
    judges: Tensor,
    how: Descent,
    observe: Callable[[Fit], object] = lambda best: None,
) -> Fit:
    """Move ``point`` downhill on the noises ``rows``, as long as the ``judges`` gain.

    observe: told the best so far, once an iteration."""
    first_scale = scales_first(problem.model.schedule)
    parameters = point.parameters(how.levels, how.memory, first_scale)
    draw = np.random.default_rng(how.seed)
    size = min(how.subset or len(rows), len(rows))
    calls = problem.model.rows_per_sample * point.nfe
    budget = problem.evals + how.allowed
    best = Fit(point, problem.errors(point, judges), 0)
    damping, stale = 1e-2, 0
    p = len(parameters)
    known, pull = np.zeros((p, p)), np.zeros(p)
    for iteration in range(how.iterations):
        trial_cost = calls * (size + len(judges))
        cost = calls * size * (how.rank + 3) + trial_cost
        if problem.evals + cost > budget or stale >= how.patience:
            break
        some = rows[torch.from_numpy(np.sort(draw.permutation(len(rows))[:size])).to(rows.device)]
        errors = problem.counted(problem.errors(point, some))
        floor = problem.smoothing(errors)
        now = problem.loss(errors, floor)
        weights = 1 / (errors**2 + floor**2) + 1 / (np.mean(errors**2) + floor**2)
        matrix, vector = normal_equations(problem, point, some, weights, parameters, how.rank)
        matrix, vector = matrix + how.decay * known, vector + how.decay * pull
        moved = None
        for _ in range(_TRIES):
            if problem.evals + trial_cost > budget:
                break
            step = damped(matrix, vector, damping, point.bounds(parameters, *how.limits))
            trial = None if step is None else point.moved(parameters, step)
            if trial is not None and problem.loss(problem.errors(trial, some), floor) < now:
                moved, damping = trial, max(damping / 4, 1e-8)
                break
            damping *= 8
        observe(best)
        known, pull = matrix, vector
        if moved is None or step is None:
            if size == len(rows) or damping > 1e4:
                break
            continue
        # what those noises' residuals should be now
        pull = vector + matrix @ step
        point = moved
        judged = problem.errors(point, judges)
        stale += 1
        if problem.loss(judged) < problem.loss(best.errors):
            best, stale = Fit(point, judged, iteration + 1), 0
    return best


def damped(
    matrix: Array, vector: Array, damping: float, bounds: tuple[Array, Array]
) -> Array | None:
    """The step within bounds, in parameters scaled to unit diagonal; None where there is none."""
    size = np.sqrt(np.diag(matrix))
    if not (np.all(np.isfinite(matrix)) and np.all(np.isfinite(vector)) and size.any()):
        return None
    size = np.where(size > 0, size, 1.0)  # a parameter without effect stays
    system = matrix / size[:, None] / size + damping * np.eye(len(size))
    step = -np.linalg.solve(system, vector / size)
    low, high = (bound * size for bound in bounds)
    if np.all((low <= step) & (step <= high)):
        return step / size
    # what is held back by a bound changes what is best for the others
    factor = np.linalg.cholesky(system)
    aim = -solve_triangular(factor, vector / size, lower=True)
    return lsq_linear(factor.T, aim, (low, high), method="bvls").x / size
