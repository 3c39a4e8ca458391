"""Gauss–Newton over the family of few-step samplers (family.py), on what a Fitting measures (fitting.py).

The loss is :meth:`Fitting.loss`. One iteration linearises the residuals r in the parameters θ, some 7 to 10
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
from .fitting import Fitting, linearised

_DAMPING = 1e-4  # at first: the normal equations are near to singular
_TRIES = 6  # dampings tried in an iteration
_WANDERING = 2  # iterations without a better judgement


def normal_equations(
    problem: Fitting, point: Linear, rows: Tensor, parameters: Sequence[Parameter], rank: int
) -> tuple[Array, Array, Array]:
    """JᵀJ (n, p, p), Jᵀr (n, p) and the errors (n,) of some noises, a few at a time.

    Of a noise with NaN or inf on the way they are 0, and it is among ``problem.lost``.
    """
    products, errors = [], []
    for part in rows.split(max(1, problem.batch // rank)):
        r, jacobian = linearised(problem, point, part, parameters, rank)
        finite = r.isfinite().all(1) & jacobian.isfinite().all(2).all(1)
        problem.lost.update(part[~finite].tolist())
        errors.append(r.square().mean(1).sqrt())
        both = torch.cat([jacobian, r[:, None]], 1)
        both = torch.where(finite[:, None, None], both, 0.0)
        products.append(torch.bmm(both[:, :-1], both.mT) / r.shape[1])
    matrices = torch.cat(products).cpu().numpy()
    return matrices[..., :-1], matrices[..., -1], torch.cat(errors).cpu().numpy()


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
    """point: the best on the noises that judge, with its errors there; iterations: made before it.

    The rest is where the descent was, to go on from: ``at``, the sampler that it had reached; known, pull:
    the normal equations of the noises so far; stale: iterations since the best.
    """

    point: Linear
    errors: Array
    iterations: int = 0
    at: Linear | None = None
    known: Array | float = 0.0
    pull: Array | float = 0.0
    damping: float = _DAMPING
    stale: int = 0
    made: int = 0
    grown: int = 1  # times the noises of an iteration


def gauss_newton(
    problem: Fitting,
    start: Linear | Fit,
    rows: Tensor,
    judges: Tensor,
    how: Descent,
    observe: Callable[[Fit], object] = lambda best: None,
) -> Fit:
    """Move a sampler downhill on the noises ``rows``, as long as the ``judges`` gain.

    start: a sampler, or a fit that is to go on. observe: told of the fit so far, once an iteration."""
    fit = Fit(start, problem.errors(start, judges)) if isinstance(start, Linear) else start
    point = fit.at or fit.point
    parameters = point.parameters(how.levels, how.memory, scales_first(problem.model.schedule))
    calls = problem.model.rows_per_sample * point.nfe
    budget = problem.evals + how.allowed
    for _ in range(how.iterations):
        size = min(fit.grown * (how.subset or len(rows)), len(rows))
        trial_cost = calls * (size + len(judges))
        cost = calls * size * (how.rank + 2) + trial_cost
        if problem.evals + cost > budget or fit.stale >= how.patience:
            break
        draw = np.random.default_rng([how.seed, fit.made]).permutation(len(rows))[:size]
        some = rows[torch.from_numpy(np.sort(draw)).to(rows.device)]
        each, pulls, errors = normal_equations(problem, point, some, parameters, how.rank)
        errors = problem.counted(errors)
        floor = problem.smoothing(errors)
        now = problem.loss(errors, floor)
        weights = 1 / (errors**2 + floor**2) + 1 / (np.mean(errors**2) + floor**2)
        matrix = np.einsum("n,npq->pq", weights, each) + how.decay * fit.known
        vector = np.einsum("n,np->p", weights, pulls) + how.decay * fit.pull
        moved = None
        for _ in range(_TRIES):
            if problem.evals + trial_cost > budget:
                break
            step = damped(matrix, vector, fit.damping, point.bounds(parameters, *how.limits))
            trial = None if step is None else point.moved(parameters, step)
            if trial is not None and problem.loss(problem.errors(trial, some), floor) < now:
                moved, fit.damping = trial, max(fit.damping / 4, 1e-8)
                break
            fit.damping *= 8
        fit.known, fit.pull, fit.made = matrix, vector, fit.made + 1
        observe(fit)
        if moved is None or step is None:
            if size == len(rows) or fit.damping > 1e4:
                break
            continue
        # what those noises' residuals should be now
        fit.pull = vector + matrix @ step
        fit.at = point = moved
        judged = problem.errors(point, judges)
        fit.stale += 1
        if problem.loss(judged) < problem.loss(fit.errors):
            fit.point, fit.errors, fit.iterations, fit.stale = point, judged, fit.made, 0
        elif fit.stale == _WANDERING and size < len(rows):
            # few noises lead it about: back to the best, and on with more of them
            fit.at = point = fit.point
            fit.known, fit.pull, fit.damping, fit.grown = 0.0, 0.0, _DAMPING, 2 * fit.grown
    return fit


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
