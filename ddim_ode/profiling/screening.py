"""Screening: what a surrogate expects to do well, tried on the model itself.

The candidates are, for each method, the best named grid, the default one, and two that are made from the
best: by a surrogate that counts all of what a disturbance leads astray, and by one that counts half. They
meet few noises first, and the better ones more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..denoising.denoiser import Denoiser
from ..denoising.problem import Problem
from ..schedules.schedule import Array
from ..solve.levels import Levels, on_trained_levels
from ..solve.loop import integrate
from ..solve.planning import compile_for
from ..solve.solution import norm_per_sample
from ..solvers.compilation import plan as compile_plan
from ..solvers.design import designed
from ..solvers.methods import METHODS, Method
from ..solvers.plan import Plan
from ..solvers.profile import Profile
from ..solvers.screens import TRIED, Screen, Tried, steps_within

ROWS = 12  # network rows that a screen takes, for each noise and call
_LESS_ASTRAY = 0.5
_TINY = 1e-300
_SECOND = 14  # candidates of the second round
# The share in the ranking, on a log scale, of what the surrogate expects: where one noise alone has
# measured, which says nothing of its spread, and at most.
_PRIOR, _MOST_PRIOR = 0.15, 0.5


@dataclass
class Examples:
    """Noises x (n, *) whose ends (n, *) are known, float64 on the CPU, NaN where there is no finite one."""

    problem: Problem
    x: Tensor
    ends: Tensor
    batch: int
    observe: Callable[[int], object]

    @property
    def finite(self) -> Tensor:
        """(n,) Whether a noise has a finite end."""
        return torch.isfinite(self.ends.flatten(1)).all(dim=1)

    def run(self, plan: Plan, rows: Tensor) -> Tensor:
        """Where a plan takes some noises, float64 on the CPU."""
        made = []
        for part in rows.to(self.x.device).split(self.batch):
            x = self.x[part]
            with torch.no_grad(), np.errstate(invalid="ignore"):
                end = integrate(plan, self.problem.rows(part).bind(plan.nodes, x), x).x
            made.append(end.cpu().double())
            self.observe(self.rows(plan, len(part)))
        return torch.cat(made)

    def errors(self, plan: Plan, rows: Tensor) -> Array:
        """RMS of the plan's ends to the known ones; inf where they are not finite."""
        off = norm_per_sample(self.run(plan, rows) - self.ends[rows])
        return np.nan_to_num(off.numpy(), nan=np.inf)

    def rows(self, plan: Plan, samples: int) -> int:
        """Network rows of a plan's run on so many samples."""
        return samples * self.problem.model.rows([node.sigma for node in plan.nodes])


@dataclass
class _Candidate:
    method: str
    source: str
    plan: Plan
    expected: float
    errors: Array

    @property
    def error(self) -> float:
        return float(np.mean(self.errors))


def screen(profile: Profile, examples: Examples, nfe: int) -> Screen:
    """Try the candidates of at most ``nfe`` calls.

    Raises:
        ValueError: No method has a plan of so few calls.
    """
    known = torch.nonzero(examples.finite)[:, 0]
    candidates = list(_candidates(profile, examples.problem.model, nfe))
    if not candidates:
        raise ValueError(f"nfe={nfe}: no method of {', '.join(TRIED)} has a plan of so few calls")
    n, evals = len(known), 0
    first, second = max(1, n // 8), max(1, 3 * n // 8)
    # with so few noises that not all can be tried, those that should do best
    candidates = candidates[: max(1, (ROWS * n - (n - first)) // first)]

    def judge(some: list[_Candidate], last: int) -> list[_Candidate]:
        nonlocal evals
        for one in some:
            rows = known[len(one.errors) : last]
            if len(rows):
                one.errors = np.append(one.errors, examples.errors(one.plan, rows))
                evals += examples.rows(one.plan, len(rows))
        return _ranked(some)

    ranked = judge(candidates, first)
    ranked = judge(ranked[:_SECOND], second) + ranked[_SECOND:]
    spare = ROWS * n - len(ranked) * first - min(len(ranked), _SECOND) * (second - first)
    kept = max(1, min(spare // max(n - second, 1), _SECOND))
    ranked = judge(ranked[:kept], n) + ranked[kept:]
    tried = [
        Tried(one.method, one.source, one.plan.grid, one.error, len(one.errors), one.expected)
        for one in ranked
        if np.isfinite(one.error)
    ]
    if not tried:
        raise ValueError(
            f"nfe={nfe}: nothing that was tried has a finite end; diagnose the model first"
        )
    return Screen(nfe, evals, tuple(tried))


def _ranked(some: list[_Candidate]) -> list[_Candidate]:
    """What should do best on all noises first: a few are a small sample of them, so what the surrogate
    expects has a share in the word.

    The candidates have met the same noises.
    """
    errors = np.array([one.errors for one in some])
    expected = np.log([max(one.expected, _TINY) for one in some])
    measured = np.log(np.maximum(errors.mean(axis=1), _TINY))  # +inf stays last
    fair = np.isfinite(measured)
    share = prior_share(errors[fair], measured[fair] - expected[fair])
    merit = (1 - share) * measured + share * expected
    return [some[i] for i in np.argsort(merit, kind="stable")]


def prior_share(errors: Array, missed: Array) -> float:
    """The surrogate's share: of the variance of ln(measured / expected), what the noises account for.

    Empirical Bayes: with it a weighted mean of two estimates has the least variance, that of the measured
    one being what of the spread over noises is each candidate's own (the rest is common to all, and
    changes no rank), and that of the expected one what remains of the spread of their ratio.

    Args:
        errors: (candidates, noises), finite.
        missed: ln(measured / expected) (candidates,).
    """
    candidates, n = errors.shape
    if n < 2 or candidates < 2:
        return _PRIOR
    relative = errors / np.maximum(errors.mean(axis=1, keepdims=True), _TINY)
    own = relative - relative.mean(axis=0)
    sampled = float((own**2).sum()) / ((n - 1) * (candidates - 1)) / n
    return _MOST_PRIOR if 2 * sampled >= (spread := float(missed.var(ddof=1))) else sampled / spread


def _candidates(profile: Profile, model: Denoiser, nfe: int) -> Iterator[_Candidate]:
    """Plans of at most ``nfe`` calls, each once, those of which the surrogate expects least error first."""
    found: dict[Plan, _Candidate] = {}

    def add(method: Method, source: str, levels: Array, start: str | None) -> None:
        try:
            if model.snap:
                levels = on_trained_levels(levels, model)
            plan = compile_plan(method, model.schedule, levels, start=start)
        except ValueError:
            return
        expected = profile.surrogate.error(plan)
        if np.isfinite(expected):
            found.setdefault(plan, _Candidate(method.name, source, plan, expected, np.empty(0)))

    for name in TRIED:
        method = METHODS[name]
        steps, start = steps_within(method, profile.schedule, nfe)
        if not steps:
            continue
        designs = profile.designs(method, steps, begin=start)
        first = designs[0].levels
        designs.append(designed(profile.surrogate, method, first, astray=_LESS_ASTRAY, begin=start))
        for design in designs:
            add(method, design.source, design.levels, start)
        try:
            levels = Levels(model.replace(profile=None), nfe=nfe)
            own = compile_for(method, levels)
        except ValueError:  # levels that snap to too few
            continue
        add(method, "default", np.array(own.grid), own.start)
    yield from sorted(found.values(), key=lambda one: one.expected)
