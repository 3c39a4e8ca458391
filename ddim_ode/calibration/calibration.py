"""Calibration: the sampler of few network calls that fits the user's own model.

Every fixed-step solver is a point of one family (family.py). ``calibrate`` finds the best textbook
point for a model, which is the incumbent, and goes downhill from there by Gauss–Newton (fitting.py), over
the levels, the scales and the weights together. What it minimises is the error of the end state against
where the ODE takes the same noise. The network is only ever called; nothing of it is changed or
differentiated.

The noises are split: three quarters are fitted, one quarter is held out and decides whether the fitted plan
is better than the incumbent at all. When to stop, the thorough budget asks all of them, and the fast one,
which cannot pay for that, those held out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .._base.bars import progress_bar
from .._base.checks import count, flag, function, number, one_of, seed_of, shown, single
from .._base.interrupted import Interrupted
from ..denoising.cost import seconds_a_call, tell_calibration
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import Cond, check_model, conditions, device_of, sample_shape
from ..denoising.problem import Problem
from ..denoising.seeding import noise
from ..solve.levels import budgets
from ..solve.plan_checks import check_plan
from ..solvers.plan import Plan
from .family import Linear
from .fitting import Features, checked
from .run import Run
from .search import EFFORTS


def calibrate(
    model: Denoiser,
    nfe: int | Iterable[int] = 6,
    *,
    shape: Sequence[int] | None = None,
    n: int = 128,
    seed: int = 0,
    budget: str = "fast",
    start: Plan | None = None,
    cond: Cond | None = None,
    shared: Mapping[str, Any] | None = None,
    features: Features | None = None,
    sigma_max: float | None = None,
    batch: int = 64,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> Any:  # a Plan, or for several budgets dict[int, Plan]
    """The plan of ``nfe`` network calls with the least error on this model; ``{nfe: Plan}`` for several.

    shape: of ONE sample (default: the model's own, where it has one). n: noises, of the seeds
    seed..seed+n−1, a quarter of them held out. From two upwards; below 16 a warning says that the
    held-out figures say little. budget: ``"fast"`` spends at most n × (100 + 12 nfe) network evaluations,
    ``"thorough"`` several times that: some n × (300 + 300 nfe), and searches all textbook samplers.
    start: a plan to improve, instead of the best textbook sampler. cond: conditions {name: tensor (n,
    ...)}, or f(indices (n,)) that gives them; guidance is part of the model. shared: passed to the network
    as it is. features: f(x (b, *)) -> (b, ...), to measure the error in; default x itself. sigma_max:
    where the noise starts (default ``model.sigma_max``, or where ``start`` does). batch: rows the network
    gets at once. progress: a bar, and before it, on stderr, how long it will take, from a few network calls
    that are timed (and not counted). device: where to run (default: the network's own).

    The loss is ½ mean ln e² + ½ ln mean e² over the noises, e the RMS error of the end state against a
    converged solution from the same noise. A small distance between distributions is another aim, and
    need not follow: where a model's own solution is not the best picture, neither is a plan that comes
    close to it (benchmarks/calibration.py, shipped). ``features`` is where to say what counts.

    The held-out noises say whether the fit improves on the incumbent: if the 95 % interval of the mean of
    ln(e/e_incumbent), errors below a tenth of the incumbent's RMS smoothed to that, does not lie below 0,
    the incumbent is returned, and a warning says why. ``plan.fit`` has the figures, in plain data. A model
    with snap=True keeps the incumbent's levels and is fitted in the weights alone.

    Budgets are fitted one by one, from one reference: one fit does not serve them all. On a mixture in 64
    dimensions the levels of a fit of 6 calls, stretched to 4 to 12 and under the best textbook method for
    them, err 5 to 35 times as much as a fit of that budget (benchmarks/calibration.py, transfer).

    Deterministic for a seed, on one machine. ValueError for fewer than two noises, an unknown budget, a
    start of another schedule, or an nfe too small for any sampler. Ctrl-C raises
    ``ddim_ode.Interrupted``, a KeyboardInterrupt that holds the finished plans {nfe: Plan} as ``partial``.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.cosine()
    >>> model = ddim_ode.exact.gaussian_mixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1], schedule)
    >>> plan = ddim_ode.calibrate(model, nfe=4, n=96, progress=False)
    >>> plan.nfe, plan.fit["held_out"]["after"] < 0.7 * plan.fit["held_out"]["before"]
    (4, True)
    """
    check_model(model)
    wanted = budgets(nfe)
    n = count("n", n, least=2)
    seed = seed_of(seed, n)
    batch, _ = count("batch", batch), flag("progress", progress)
    if features is not None:
        features = checked(function("features", features))
    effort = EFFORTS[one_of("budget", budget, EFFORTS)]
    if start is not None:
        check_plan(start, model)
        sigma_max = _first_level(start, sigma_max)
        if wanted != [start.nfe]:
            raise ValueError(f"start has nfe {start.nfe}; calibrate it with nfe={start.nfe}")
        Linear.of(start)
    model, place = model.starting_at(sigma_max), device_of(model, device)
    shape = sample_shape(model, shape)
    x = noise(shape, model.schedule, range(seed, seed + n), model.sigma_max, place)
    problem = Problem(model, conditions(cond, n, place), shared)
    if progress:
        few = slice(0, batch)
        tell_calibration(seconds_a_call(problem.rows(few), x[few]), n, budget, wanted)
    began = time.perf_counter()
    plans: dict[int, Plan] = {}
    try:
        with torch.no_grad(), progress_bar(progress, unit="eval", unit_scale=True) as bar:
            run = Run(problem, x, features, batch, seed, budget, effort, bar)
            run.prepare()
            for k in wanted:
                plans[k] = run.plan(k, start)
    except KeyboardInterrupt:
        said = f"stopped: {len(plans)} of {len(wanted)} plans are fitted, and in .partial"
        raise Interrupted(said, _timed(plans, began)) from None
    plans = _timed(plans, began)
    return plans[wanted[0]] if single(nfe) else plans


def _timed(plans: Mapping[int, Plan], began: float) -> dict[int, Plan]:
    """The plans, with the time that all of them took."""
    seconds = round(time.perf_counter() - began, 2)
    return {
        k: replace(plan, fit={**(plan.fit or {}), "seconds": seconds}) for k, plan in plans.items()
    }


def _first_level(start: Plan, sigma_max: float | None) -> float:
    """Where the noise of that plan starts; ValueError if that is not where the caller said."""
    first = start.grid[0]
    if first < start.grid[-1]:
        raise ValueError("start goes up, from data to noise; give a plan that goes down")
    if sigma_max is not None and not math.isclose(
        number("sigma_max", sigma_max), first, rel_tol=1e-9
    ):
        raise ValueError(
            f"sigma_max={shown(sigma_max)}, but start begins at σ={first:g}; drop one of them"
        )
    return first
