"""Plans whose samples lie nearest to real data: from the solution plan on, by a linear response.

A third of the noises is fitted. Their ends' features φ_i and derivatives Φ_i in the parameters θ come from
the same differences as those of Gauss–Newton (fitting.py); the distance of φ_i + Φ_i δ to the data's
features, with a derivative in closed form (objectives.py), is minimised in δ under a penalty on how far the
samples themselves move from those of the solution plan. The penalty falls as long as the second third of
the noises, run in earnest and held against other data, gains; then θ moves and all is linearised anew.
The last third reports, in three sets with data of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from torch import Tensor

from .._base.warn import warn
from ..schedules.schedule import Array
from ..solvers.plan import Plan
from .family import Linear, Parameter, scales_first
from .fitting import Fitting, linearised
from .objectives import (
    SETS,
    Seen,
    change,
    checked_rows,
    over_sets,
    pull,
    reporting,
    scale_notes,
    squared_energy,
)

RANKS, ROUNDS = {"fast": 8, "thorough": 12}, {"fast": 2, "thorough": 4}
TRIALS = 7  # penalties in a round, at most
_FIRST = 0.02  # of the samples' RMS: how far the first penalty lets them move, about
_FALL = 3.0
_STALE = 2  # penalties without a gain, after which no lower one is tried
_RIDGE = 1e-3
_LEAST = 2 * SETS  # noises of each third


def rows_each(budget: str, nfe: int) -> float:
    """Network rows for each noise, at most about."""
    return nfe * (2 + ROUNDS[budget] * (RANKS[budget] + 3 + TRIALS) / 3)


@dataclass
class Matching:
    """The noises of ``problem``, real samples (N, *) in random order, and the features that decide.

    Half the data is what the fit sees, a quarter judges it, a quarter is for the report.
    """

    problem: Fitting
    data: Tensor
    seen: Seen
    budget: str
    spent: Callable[[int], object] = lambda rows: None
    parts: tuple[Tensor, Tensor, Tensor] = field(init=False)
    real: tuple[Array, Array] = field(init=False)

    def __post_init__(self) -> None:
        n, half = len(self.problem.x), len(self.data) // 2
        fit, held, report = torch.arange(n, device=self.problem.x.device).tensor_split(3)
        self.parts = fit, held, report
        rows = checked_rows(self.seen.rows(self.data, self.problem.batch), self.seen.name)
        self.real = rows[:half], rows[half : half + half // 2]
        self.reports = self.data[half + half // 2 :].tensor_split(SETS)

    def plan(self, solution: Plan) -> Plan:
        """The plan nearest to the data, or the solution plan where none is nearer; its fit says which."""
        before = self.problem.evals
        start = Linear.of(solution)
        ends = self.ends(start, torch.cat(self.parts))
        rows = self.features(ends)
        finite = ends[..., None].flatten(1).isfinite().all(1) & torch.from_numpy(
            np.isfinite(rows).all(1)
        ).to(ends.device)
        fit, held, report = (part[finite[part]] for part in self.parts)
        lost = int((~finite).sum())
        if 2 * lost > len(ends) or min(map(len, (fit, held, report))) < _LEAST:
            raise ValueError(
                f"{lost} of {len(ends)} noises have no finite end under {solution.method}, or no finite "
                "features, too many to fit the rest to data: the network or features return NaN or inf"
            )
        notes = scale_notes(self.data, ends[finite])
        here = rows[held.cpu()]
        point, seen, trials = self._fit(start, ends, here, fit, held)
        gain, half = change(here, seen, self.real[1])
        made = ends[report] if point is start else self.ends(point, report)
        better = gain + half < 0 and bool(made.isfinite().all())
        level = squared_energy(here, self.real[1])
        held_out = dict(n=len(held), data=len(self.real[1]), before=level, after=level + gain)
        record: dict[str, Any] = dict(
            features=self.seen.name,
            matched=better,
            n=len(self.problem.x),
            data=len(self.data),
            trials=trials,
            held_out=dict(held_out, change=gain, low=gain - half, high=gain + half),
            unseen=self._report(ends[report], made if better else ends[report]),
        )
        record["net_evals"] = self.problem.evals - before
        own: dict[str, Any] = dict(solution.fit or {}, objective="data", data=record)
        own["net_evals"] = own.get("net_evals", 0) + record["net_evals"]
        own["warnings"] = list(own.get("warnings", ()))
        if lost:
            notes.append(f"{lost} of {len(ends)} noises have no finite end and are left out")
        if not better:
            more = "more noises (n=) or data may help"
            if not start.can_be_fitted:
                more = "its levels do not fall with each call, and no fit begins from such a plan"
            notes.append(
                f"no plan is nearer to the data than {solution.method} on held-out noises and data (D² "
                f"changes by {gain:.3g} ± {half:.2g}), and that is returned; {more}"
            )
        for note in (f"nfe={solution.nfe}: {note}" for note in notes):
            own["warnings"].append(note)
            warn(note)
        if better:
            record["solution"] = {name: own.get(name) for name in ("held_out", "calibrated")}
            own.update(held_out=held_out, calibrated=True)
            schedule = self.problem.model.schedule
            return point.to_plan(schedule, f"calibrated-{solution.nfe}", own)
        return replace(solution, fit=own)

    def ends(self, point: Linear, rows: Tensor) -> Tensor:
        made = []
        for part in rows.split(self.problem.batch):
            before = self.problem.evals
            made.append(self.problem.run([point], part))
            self.spent(self.problem.evals - before)
        return torch.cat(made)

    def features(self, x: Tensor) -> Array:
        return self.seen.rows(x, self.problem.batch)

    def _fit(
        self, start: Linear, ends: Tensor, here: Array, fit: Tensor, held: Tensor
    ) -> tuple[Linear, Array, int]:
        """The best sampler on the held-out noises and data, the features of its ends there, which are
        ``here`` at the start, and how many samplers were tried."""
        if not start.can_be_fitted:
            return start, here, 0
        model, real = self.problem.model, self.real[1]
        parameters = start.parameters(not model.snap, None, scales_first(model.schedule))
        limits = (model.schedule.sigma_min, model.sigma_max)
        low, high = start.bounds(parameters, *limits)
        parameters = [p for p, room in zip(parameters, high - low) if room > 0]
        size = float(ends[fit].double().square().mean().sqrt())
        best, seen, value, tried = start, here, pull(here, real)[0], 0
        offset, weight = np.zeros(len(parameters)), 0.0
        for _ in range(ROUNDS[self.budget]):
            origin, behind, before = best, offset, value
            rows, slopes, metric = self._response(origin, fit, parameters, size)
            if len(rows) < _LEAST:
                break
            bounds = origin.bounds(parameters, *limits)
            response = Response(rows, slopes, metric, self.real[0], behind, bounds)
            trial_weight, stale = weight * _FALL or response.weight(), 0
            for _ in range(TRIALS):
                step = response.step(trial_weight)
                trial, tried, stale = origin.moved(parameters, step), tried + 1, stale + 1
                made = self.ends(trial, held)
                own = self.features(made)
                if made.isfinite().all() and np.isfinite(own).all():
                    score = pull(own, real)[0]
                    if score < value:
                        best, seen, value, stale = trial, own, score, 0
                        offset, weight = behind + step, trial_weight
                if stale == _STALE:
                    break
                trial_weight /= _FALL
            if not value < before:
                break
        return best, seen, tried

    def _report(self, before: Tensor, after: Tensor) -> dict[str, dict[str, float]]:
        """D² of ends (n, *) before and after, in features that no fit has seen, over the sets."""
        out = {}
        for seen in reporting(self.data, self.seen.function):
            sets = []
            for *ends, real in zip(
                before.tensor_split(SETS), after.tensor_split(SETS), self.reports
            ):
                y = seen.rows(real, self.problem.batch)
                sets.append([squared_energy(seen.rows(x, self.problem.batch), y) for x in ends])
            first, last = np.array(sets).T
            out[seen.name] = dict(
                before=float(first.mean()), after=float(last.mean()), **over_sets(last - first)
            )
        return out

    def _response(
        self, point: Linear, rows: Tensor, parameters: list[Parameter], size: float
    ) -> tuple[Array, Array, Array]:
        """Features (n, D) of the ends, their derivatives (p, n D), and the mean square (p, p) of the
        samples' own derivatives in units of ``size``; of the noises where all of these are finite."""
        problem, width = self.problem, self.problem.x[0].numel()

        def both(x: Tensor) -> Tensor:
            return torch.cat(
                [self.seen.function(x)[..., None].flatten(1).to(x), x[..., None].flatten(1)], 1
            )

        wide = replace(problem, features=both, target=problem.x)
        ends, slopes, count = [], [], 0
        metric = np.zeros((len(parameters), len(parameters)))
        rank = min(RANKS[self.budget], width)
        for part in rows.split(max(1, problem.batch // rank)):
            residual, jacobian = linearised(wide, point, part, parameters, rank)
            at = residual + wide.goal[part]
            finite = at.isfinite().all(1) & jacobian.isfinite().all(2).all(1)
            moved = jacobian[finite][..., -width:] / size
            metric += torch.einsum("npd,nqd->pq", moved, moved).cpu().numpy() / width
            ends.append(at[finite][:, :-width].cpu().numpy())
            slopes.append(jacobian[finite][..., :-width].transpose(0, 1).float().cpu().numpy())
            count += len(moved)
            self.spent(wide.evals - problem.evals)
            problem.evals = wide.evals
        flat = np.concatenate(slopes, 1).reshape(len(parameters), -1)
        return np.concatenate(ends), flat, metric / max(count, 1)


@dataclass
class Response:
    """What the fitted noises make of a step δ: features rows + slopes δ, and from the solution plan, which
    lies ``offset`` behind, a mean square move of (offset + δ)ᵀ metric (offset + δ)."""

    rows: Array
    slopes: Array
    metric: Array
    real: Array
    offset: Array
    bounds: tuple[Array, Array]

    def __post_init__(self) -> None:
        centre = self.real.mean(0)
        self.rows, self.real = self.rows - centre, self.real - centre
        self.metric = self.metric + np.diag(_RIDGE * np.diag(self.metric) + 1e-12)
        self.last = np.zeros(len(self.offset))

    def distance(self, step: Array) -> tuple[float, Array]:
        """D² but for a constant, and its derivative in the step."""
        moved = self.rows + (step.astype(self.slopes.dtype) @ self.slopes).reshape(self.rows.shape)
        value, slope = pull(moved, self.real)
        return value, (self.slopes @ slope.ravel().astype(self.slopes.dtype)).astype(float)

    def weight(self) -> float:
        """Of the penalty under which the first step moves the samples about as far as it should."""
        slope = solve_triangular(cholesky(self.metric), self.distance(self.last)[1], trans=1)
        return float(np.linalg.norm(slope)) / (2 * _FIRST) + 1e-300

    def step(self, weight: float) -> Array:
        """The best step under a penalty of that weight; what it would move beyond a bound is held there."""
        low, high = self.bounds
        free = np.ones(len(low), bool)
        while True:
            step = self._free_step(weight, free, np.clip(self.last, low, high))
            beyond = free & ((step < low) | (step > high))
            self.last = np.clip(step, low, high)
            if not beyond.any():
                return self.last
            free &= ~beyond

    def _free_step(self, weight: float, free: Array, start: Array) -> Array:
        """The best step from ``start`` in the parameters that are free."""
        root, whole = cholesky(self.metric[np.ix_(free, free)]), start.copy()  # upper

        def penalised(u: Array) -> tuple[float, Array]:
            whole[free] = solve_triangular(root, u)
            value, slope = self.distance(whole)
            away = self.offset + whole
            drawn = self.metric @ away
            inner = solve_triangular(root, (slope + 2 * weight * drawn)[free], trans=1)
            return value + weight * float(away @ drawn), inner

        best = minimize(penalised, root @ start[free], jac=True, method="L-BFGS-B").x
        whole[free] = solve_triangular(root, best)
        return whole
