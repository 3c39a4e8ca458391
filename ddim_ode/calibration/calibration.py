"""Calibration: the sampler of few network calls that fits the user's own model.

Every fixed-step solver is a point of one family (family.py). ``calibrate`` finds the best textbook
point for a model, the incumbent, and goes downhill by Gauss–Newton (fitting.py), over levels, scales and
weights together, from there or from what a surrogate of the model makes of the textbook (rehearsal.py).
The network is only called, never changed or differentiated. Three quarters of the noises are fitted; the
others decide whether the fit is better than the incumbent. When to stop, the thorough budget asks all
noises, and the fast one, which cannot pay for that, those held out.
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
    batch: int = 48,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> Any:  # a Plan, or for several budgets dict[int, Plan]
    """Fit a plan of ``nfe`` network calls to a model.

    The loss is ½ mean ln e² + ½ ln mean e² over the noises, e the RMS error of the end state against a
    converged solution from the same noise. A small distance between distributions is another aim and need
    not follow: where a model's own solution is not the best picture, neither is a plan that comes close to
    it (``benchmarks/calibration.py``, shipped). ``features`` is where to say what counts.

    The held-out noises decide. If the 95 % interval of the mean of ln(e/e_incumbent) does not lie below 0
    (errors below a tenth of the incumbent's RMS smoothed to that), the incumbent, the best textbook sampler
    found, is returned with a warning. One fit does not serve all budgets (``benchmarks/calibration.py``,
    transfer). Several budgets share the converged solutions, each starts from the plan of one call fewer
    too, which it is never worse than on the held-out noises, and the fast fits of them all cost at most
    what four would. The result is deterministic for a seed, on one machine.

    Args:
        model: A model with ``snap=True`` keeps the incumbent's levels and is fitted in the weights alone.
        nfe: Network calls of the plan, or several such numbers.
        shape: Of ONE sample (default: the model's own).
        n: Noises, of the seeds seed..seed+n−1, at least 2; a quarter is held out. Below 16 a warning says
            that the held-out figures say little.
        seed: Of the first noise.
        budget: ``"fast"`` spends at most n × (100 + 12 nfe) network evaluations; ``"thorough"`` some
            n × (300 + 300 nfe), and searches all textbook samplers.
        start: A plan to improve, instead of the best textbook sampler.
        cond: Conditions {name: tensor (n, ...)}, or f(indices (n,)) that returns them. Guidance is part of
            the model.
        shared: Passed to the network as it is.
        features: f(x (b, *)) -> (b, ...), to measure the error in (default: x itself).
        sigma_max: Where the noise starts (default: ``model.sigma_max``, or where ``start`` does).
        batch: Rows the network gets at once.
        progress: Show a bar, and before it, on stderr, how long it will take, from a few network calls that
            are timed (and not counted).
        device: Where to run (default: the network's own).

    Returns:
        The :class:`ddim_ode.Plan`, or {nfe: Plan} for several; ``plan.fit`` has the figures, in plain data.

    Raises:
        ValueError: Fewer than two noises, an unknown budget, a start of another schedule, or an nfe too
            small for any sampler.
        Interrupted: On Ctrl-C; a KeyboardInterrupt whose ``partial`` holds the finished plans {nfe: Plan}.

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
    one_of("budget", budget, EFFORTS)
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
            run = Run(problem, x, features, batch, seed, budget, bar)
            run.share_among(wanted)
            run.prepare()
            for k in sorted(wanted):  # each begins from the one before
                plans[k] = run.plan(k, start)
    except KeyboardInterrupt:
        done = f"stopped: {len(plans)} of {len(wanted)} plans are fitted, and in .partial"
        raise Interrupted(done, _timed(plans, began)) from None
    plans = _timed({k: plans[k] for k in wanted}, began)
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
