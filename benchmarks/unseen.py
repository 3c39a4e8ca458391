"""The error of a plan on noises that no fit has seen, and the best textbook sampler there."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from common import SEED, Problem, Row
from scipy.stats import t as student
from torch import Tensor

import ddim_ode
from ddim_ode.solve.reference import METHOD, in_float64
from ddim_ode.solvers.compilation import plan as compile_plan
from ddim_ode.solvers.methods import METHODS, VARIANTS

GRIDS = ("quadratic", "log_snr", "karras", "time")
CUTS = (1, 2, 3, 5, 10, 20, 40)
UNSEEN = 100_000  # the first seed of an evaluation


def ends(problem: Problem, plan: ddim_ode.Plan, n: int | None = None) -> Tensor:
    x = problem.x[:n]
    cond = None if problem.cond is None else {k: v[:n] for k, v in problem.cond.items()}
    parts = []
    for rows in torch.arange(len(x)).split(64):
        some = None if cond is None else {k: v[rows] for k, v in cond.items()}
        parts.append(ddim_ode.sample(problem.model, x[rows], plan=plan, cond=some).x)
    return torch.cat(parts)


def errors(problem: Problem, plan: ddim_ode.Plan, n: int | None = None) -> np.ndarray:
    difference = (ends(problem, plan, n) - problem.reference[:n]).double().flatten(1)
    return np.asarray(difference.square().mean(1).sqrt())


def solved(
    name: str, model: ddim_ode.Denoiser, shape: tuple[int, ...], n: int, cond: Any = None
) -> Problem:
    """n unseen noises and where the ODE takes them, by twice the steps that suffice."""
    x = ddim_ode.noise(shape, model.schedule, seeds=range(UNSEEN, UNSEEN + n))
    steady = np.isfinite(model.schedule.sigma_max)
    grid, method = ("log_snr", "unipc2") if steady else ("time", METHOD)
    ends = [
        torch.cat(
            [
                ddim_ode.sample(
                    in_float64(model),
                    x[rows].double(),
                    method,
                    steps=steps,
                    grid=grid,
                    cond=None if cond is None else {k: v[rows] for k, v in cond.items()},
                ).x
                for rows in torch.arange(n).split(64)
            ]
        )
        for steps in (100, 200)
    ]
    gap = float((ends[1] - ends[0]).flatten(1).square().mean(1).sqrt().mean())
    print(f"{name}: {n} unseen noises, reference off by {gap:.1e} at most")
    return Problem(name, model, x, cond, ends[1])


class Baseline(NamedTuple):
    name: str
    plan: ddim_ode.Plan
    errors: np.ndarray


def baseline(problem: Problem, nfe: int, screen: tuple[int, int]) -> Baseline:
    """The best textbook sampler of at most nfe calls on these noises.

    screen: noises that all run on, and how many of them go on to all noises.
    """
    few, keep = screen
    x, cond = problem.x[:0], problem.cond and {k: v[:0] for k, v in problem.cond.items()}
    found = []
    names = [name for name in METHODS if name != "ddpm"]
    names += [f"{name}:{variant}" for variant, v in VARIANTS.items() for name in v.of]
    for name, grid, cut in itertools.product(names, GRIDS, CUTS):
        options = dict(nfe=nfe, grid=grid, sigma_min=cut * problem.model.schedule.sigma_min)
        try:
            plan = ddim_ode.sample(problem.model, x, name, cond=cond, **options).plan
        except ValueError:  # the method needs more calls, or cannot start at this level
            continue
        assert plan is not None
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
    row = dict(
        model=problem.name,
        nfe=plan.nfe,
        budget=plan.fit["budget"],
        n=plan.fit["n"],
        seed=plan.fit["seed"],
        unseen=len(ours),
        calibrated=plan.fit["calibrated"],
        incumbent=plan.fit["incumbent"],
        error=float(ours.mean()),
        error_incumbent=float(before.mean()),
        **log_ratio(ours, before),
        net_evals_per_noise=plan.fit["net_evals"] / plan.fit["n"],
    )
    if best is not None:
        row |= dict(
            baseline=best.name,
            error_baseline=float(best.errors.mean()),
            **ratio(ours, best.errors),
        )
    return row


def calibrated(model: ddim_ode.Denoiser, nfe: int, **options: Any) -> ddim_ode.Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a warning says is in the row
        return ddim_ode.calibrate(model, nfe, progress=False, **options)
