"""Where a fit starts beside the textbook, at rehearsed samplers and those of one call fewer, and the best
fit from there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoising.denoiser import Denoiser
from ..schedules.schedule import Schedule
from ..solvers.compilation import plan as compile_plan
from ..solvers.design import designed
from ..solvers.methods import METHODS
from ..solvers.screens import TRIED
from ..solvers.surrogate import Surrogate
from .descent import Descent, Fit, gauss_newton
from .family import Linear, scales_first
from .fitting import Fitting
from .rehearsal import ASTRAY, expected, rehearsed
from .search import Candidate, Effort, apart

_REHEARSED = 3  # samplers
_DESIGNED = 3  # methods that get levels of their own
_RESIDUALS = 3  # for each parameter, at least
_WORSE = 1.4  # of the loss, which is twice an error's logarithm: beyond, a rehearsed start is none


def ranked(surrogate: Surrogate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that a fit can start from, the best first, by the error that the surrogate expects of them."""
    able = [c for c in candidates if c.point.can_be_fitted]
    scored = [c._replace(score=expected(surrogate, c.point)) for c in able]
    return sorted(scored, key=lambda c: c.score)


def rehearsals(
    model: Denoiser, surrogate: Surrogate, able: Sequence[Candidate], memory: int | None
) -> list[Candidate]:
    """What the surrogate makes of the ranked candidates from which it expects least error, of the best
    methods on levels of its own, too. No network is called."""
    if not model.snap:
        able = sorted([*able, *_on_own_levels(model, surrogate, able)], key=lambda c: c.score)
    return [
        c._replace(
            point=rehearsed(
                surrogate,
                c.point,
                (model.schedule.sigma_min, model.sigma_max),
                levels=not model.snap,
                memory=memory,
                first_scale=scales_first(model.schedule),
                astray=astray,
            ),
            rehearsed=True,
            score=math.inf,
        )
        for c in apart(able, _REHEARSED)
        for astray in ASTRAY
    ]


def _on_own_levels(
    model: Denoiser, surrogate: Surrogate, ranked: Sequence[Candidate]
) -> list[Candidate]:
    """The best methods of one call a step, on levels that the surrogate makes of the best named ones."""
    first: dict[str, Candidate] = {}
    for candidate in ranked:
        plan = candidate.plan
        if candidate.is_textbook and plan.method in TRIED and plan.nfe == plan.steps:
            first.setdefault(plan.method, candidate)
    out = []
    for name, candidate in [*first.items()][:_DESIGNED]:
        start, grid = candidate.plan.start, np.array(candidate.plan.grid)
        levels = designed(surrogate, METHODS[name], grid, begin=start).levels
        point = Linear.of(compile_plan(name, model.schedule, levels, start=start))
        score = expected(surrogate, point)
        out.append(Candidate(f"{name}, its own grid", point, "own", 0, score, True))
    return out


def with_a_call(point: Linear, schedule: Schedule, lowest: float) -> list[Linear]:
    """Samplers of one call more that make the same of every noise, one for each place of the new call.

    The new call is half-way in ln σ between two calls, or between the last and ``lowest``; its state is
    what is between those of the two where x̂₀ does not change, and nothing reads its answer yet.
    """
    out = []
    old = point.states()
    for k in range(1, point.nfe + 1):
        high, low = point.sigma[k - 1], point.sigma[k] if k < point.nfe else lowest
        between = float(np.sqrt(high * low)) if np.isfinite(high) else 4.0 * float(low)
        if not low < between < high:
            continue
        alpha, beta = schedule.scales(np.array([high, low if k < point.nfe else 0.0, between]))
        ends = np.array([alpha[:2], beta[:2]])
        try:
            share = np.linalg.solve(ends, np.array([alpha[2], beta[2]]))
        except np.linalg.LinAlgError:
            continue
        states = np.insert(old, k, share @ old[k - 1 : k + 1], axis=0)
        states = np.insert(states, k + 1, 0.0, axis=1)
        if np.any(states[:-1, 0] == 0) or not np.all(np.isfinite(states)):
            continue
        vectors = (*point.vectors[:k], point.vectors[k - 1], *point.vectors[k:])
        out.append(Linear.through(states, np.insert(point.sigma, k, between), vectors, point.plan))
    return out


def best_fit(
    problem: Fitting,
    candidates: Sequence[Candidate],
    noises: tuple[Tensor, Tensor],
    effort: Effort,
    allowed: float,
    seed: int,
    observe: Callable[[Fit], object],
) -> Fit | None:
    """The best fit from the best candidates that a fit can start from; None if there is none.

    candidates: of as many calls, the best first. noises: those to fit, and those held out, which judge.
    allowed: network rows, inf for no bound. observe: told of the fit so far, once an iteration."""
    fitted, held = noises
    model, bounded = problem.model, math.isfinite(allowed)
    able = [c for c in candidates if c.point.can_be_fitted]
    if bounded:  # it pays for few starts: those that lead furthest down
        most = able[0].score + _WORSE if able else 0.0
        able = [c for c in able if c.rehearsed and c.score < most] or able[:1]
    points = [candidate.point for candidate in apart(able, effort.starts)]
    if not points:
        return None
    judges = torch.cat([fitted, held]) if effort.pooled else held
    tries = effort.trial if len(points) > 1 else 0
    rank = min(effort.rank, problem.x[0].numel())
    # never so few that their residuals do not determine the parameters
    entries = problem.goal[0].numel()
    least = math.ceil(_RESIDUALS * len(points[0].parameters(memory=effort.memory)) / entries)
    size = max(effort.subset, least)
    if bounded:  # what leaves room for all iterations
        runs = allowed / (points[0].nfe * model.rows_per_sample)
        iterations = effort.iterations + tries * len(points)
        size = max(size, int((runs / iterations - len(judges)) / (rank + 4.5)))
    how = Descent(
        iterations=effort.iterations,
        rank=rank,
        levels=not model.snap,
        limits=(model.schedule.sigma_min, model.sigma_max),
        memory=effort.memory,
        subset=min(size, len(fitted)),
        seed=seed,
        decay=effort.decay,
        patience=effort.patience,
    )
    end = problem.evals + allowed

    def descend(start: Linear | Fit, **changes: Any) -> Fit:
        left = replace(how, allowed=end - problem.evals, **changes)
        return gauss_newton(problem, start, fitted, judges, left, observe)

    fits = [descend(point, iterations=tries) for point in points] if tries else []
    fit = descend(min(fits, key=lambda fit: problem.loss(fit.errors)) if fits else points[0])
    if effort.whole:
        fit = descend(fit.point, iterations=effort.whole, subset=None, decay=0.0, patience=3)
    return fit
