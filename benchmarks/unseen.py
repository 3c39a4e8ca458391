"""The error of a plan on noises that no fit has seen, and the best textbook sampler there."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from common import SEED, Problem, Row, in_batches
from scipy.stats import t as student
from torch import Tensor

import ddim_ode
from ddim_ode.solve.reference import METHOD, in_float64
from ddim_ode.solve.solution import norm_per_sample
from ddim_ode.solvers.compilation import plan as compile_plan
from ddim_ode.solvers.methods import METHODS, VARIANTS

GRIDS = ("quadratic", "log_snr", "karras", "time")
CUTS = (1, 2, 3, 5, 10, 20, 40)
UNSEEN = 100_000  # the first seed of an evaluation


def ends(problem: Problem, plan: ddim_ode.Plan, n: int | None = None) -> Tensor:
    def solve(x: Tensor, cond: Any) -> Tensor:
        return ddim_ode.sample(problem.model, x, plan=plan, cond=cond).x

    cond = problem.cond and {key: value[:n] for key, value in problem.cond.items()}
    return in_batches(solve, problem.x[:n], cond)


def errors(problem: Problem, plan: ddim_ode.Plan, n: int | None = None) -> np.ndarray:
    return norm_per_sample(ends(problem, plan, n).double() - problem.reference[:n]).numpy()


def solved(
    name: str, model: ddim_ode.Denoiser, shape: tuple[int, ...], n: int, cond: Any = None
) -> Problem:
    """n unseen noises and where the ODE takes them, by twice the steps that suffice."""
    x = ddim_ode.noise(shape, model.schedule, seeds=range(UNSEEN, UNSEEN + n))
    steady = np.isfinite(model.schedule.sigma_max)
    grid, method = ("log_snr", "unipc2") if steady else ("time", METHOD)
    wide = Problem(name, in_float64(model), x.double(), cond, x)
    coarse, fine = (
        ends(wide, ddim_ode.plan_for(wide.model, method, steps=steps, grid=grid))
        for steps in (100, 200)
    )
    gap = float(norm_per_sample(fine - coarse).mean())
    print(f"{name}: {n} unseen noises, reference off by {gap:.1e} at most")
    return Problem(name, model, x, cond, fine)


class Baseline(NamedTuple):
    name: str
    plan: ddim_ode.Plan
    errors: np.ndarray


def baseline(problem: Problem, nfe: int, screen: tuple[int, int]) -> Baseline:
    """The best textbook sampler of at most nfe calls on these noises.

    screen: noises that all run on, and how many of them go on to all noises.
    """
    few, keep = screen
    found = []
    names = [name for name, method in METHODS.items() if not method.adds_noise]
    names += [f"{name}:{variant}" for variant, v in VARIANTS.items() for name in v.of]
    for name, grid, cut in itertools.product(names, GRIDS, CUTS):
        low = cut * problem.model.schedule.sigma_min
        try:
            plan = ddim_ode.plan_for(problem.model, name, nfe=nfe, grid=grid, sigma_min=low)
        except ValueError:  # the method needs more calls, or cannot start at this level
            continue
        first = errors(problem, plan, few)
        if np.all(np.isfinite(first)):
            found.append(Baseline(f"{name}, {grid}, {cut} σ(1)", plan, first))
    found = sorted(found, key=lambda one: float(one.errors.mean()))[:keep]
    whole = [one._replace(errors=errors(problem, one.plan)) for one in found]
    return min(whole, key=lambda one: float(one.errors.mean()))


def incumbent(plan: ddim_ode.Plan, model: ddim_ode.Denoiser) -> ddim_ode.Plan:
    """The textbook plan that a fit started from."""
    assert plan.fit is not None
    kept: Mapping[str, Any] = plan.fit["incumbent_plan"]
    grid = [float(sigma) for sigma in kept["grid"]]  # "inf" in plain data
    return compile_plan(kept["method"], model.schedule, grid, start=kept["start"])


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Ratio of the means, with a paired bootstrap interval."""
    draw = np.random.default_rng(SEED).integers(len(ours), size=(2000, len(ours)))
    low, high = np.quantile(ours[draw].mean(1) / theirs[draw].mean(1), [0.025, 0.975])
    return dict(ratio=float(ours.mean() / theirs.mean()), ratio_low=low, ratio_high=high)


def log_ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Mean of ln(ours/theirs), with Student's interval; 0 for the same plan."""
    values = np.log(ours / theirs)
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    middle = float(values.mean())
    return dict(log_ratio=middle, log_low=middle - half, log_high=middle + half)


def judged(problem: Problem, plan: ddim_ode.Plan, best: Baseline | None) -> Row:
    """Errors of a plan, against its incumbent and the baseline."""
    assert plan.fit is not None
    ours = errors(problem, plan)
    before = errors(problem, incumbent(plan, problem.model))
    fit = {key: plan.fit[key] for key in ("budget", "n", "seed", "calibrated", "incumbent")}
    row = dict(model=problem.name, nfe=plan.nfe, **fit, unseen=len(ours))
    row |= dict(error=float(ours.mean()), error_incumbent=float(before.mean()))
    row |= dict(log_ratio(ours, before), net_evals_per_noise=plan.fit["net_evals"] / plan.fit["n"])
    if best is not None:
        row |= dict(baseline=best.name, error_baseline=float(best.errors.mean()))
        row |= ratio(ours, best.errors)
    return row


def calibrated(model: ddim_ode.Denoiser, nfe: int, **options: Any) -> ddim_ode.Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a warning says is in the row
        return ddim_ode.calibrate(model, nfe, progress=False, **options)
