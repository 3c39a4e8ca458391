"""Calibration: the sampler of few network calls that fits the user's own model.

Every fixed-step solver is a point of one family (family.py). ``calibrate`` finds the best textbook
point for a model, the incumbent, and goes downhill by Gauss–Newton (descent.py), over levels, scales and
weights together, from there or from what a surrogate of the model makes of the textbook (rehearsal.py).
The network is only called, never changed or differentiated. Three quarters of the noises are fitted; the
others decide whether the fit is better than the incumbent. When to stop, the thorough budget asks all
noises, and the fast one, which cannot pay for that, those held out. Where real data are the aim
(objectives.py), the fitted plan is where matching.py begins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from .._base.bars import progress_bar
from .._base.checks import count, flag, function, number, one_of, refuse, seed_of, shown, single
from .._base.interrupted import Interrupted
from ..denoising.cost import seconds_a_call, tell_calibration
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import Cond, check_model, conditions, device_of, sample_shape
from ..denoising.problem import Problem
from ..denoising.seeding import noise
from ..evaluate.features import Features as FeatureRows
from ..solve.levels import budgets
from ..solve.model_key import model_key
from ..solve.plan_checks import check_plan
from ..solvers.plan import Plan
from .family import Linear
from .fitting import Features, Fitting
from .matching import Matching, rows_each
from .objectives import (
    NOISES,
    OBJECTIVES,
    checked_data,
    deciding,
    errors_unseen,
    features_of,
    noises_of,
)
from .run import Run
from .search import EFFORTS, incumbent_of


def calibrate(
    model: Denoiser,
    nfe: int | Iterable[int] = 6,
    *,
    objective: str = "solution",
    data: Tensor | npt.ArrayLike | None = None,
    shape: Sequence[int] | None = None,
    n: int | None = None,
    seed: int = 0,
    budget: str = "fast",
    start: Plan | None = None,
    cond: Cond | None = None,
    shared: Mapping[str, Any] | None = None,
    features: Features | FeatureRows | None = None,
    sigma_max: float | None = None,
    batch: int = 48,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> Any:  # a Plan, or for several budgets dict[int, Plan]
    """Fit a plan of ``nfe`` network calls to a model.

    What it aims at is ``objective``:

    - ``"solution"``, for latents, editing, likelihoods and comparisons, and where there are no data: the
      model's own solution from the same noise. The loss is ½ mean ln e² + ½ ln mean e² over the noises, e
      the RMS error of the end state against a converged solution.
    - ``"features"``, where only part of a sample counts: the same, with e taken in ``features``.
    - ``"data"``, where pictures are to look real: the energy distance between the features of what the plan
      makes and those of real samples. Where a model's own solution is not the best picture, neither is a
      plan that comes close to it (``benchmarks/quality.py``); a plan fitted to data no longer returns the
      solution of its noise, so do not encode, edit or compare with it. It begins from the solution plan and
      is fitted on a third of the noises; a third with data of its own decides whether it is returned, and a
      third reports (``plan.fit["data"]["unseen"]``: samples as they are, and random features, which no fit
      sees). So give conditions in turn, not sorted. Data need no conditions.

    Held-out noises decide. If the 95 % interval of the mean of ln(e/e_incumbent) does not lie below 0
    (errors below a tenth of the incumbent's RMS smoothed to that), the incumbent, the best textbook sampler
    found, is returned with a warning. Several budgets share the converged solutions; each fit starts from
    the plan of one call fewer too (not with ``snap``), and is never worse than it there in the mean of ln e
    or of e²; from 64 noises on, the fast ones of all cost at most what four would. The result is
    deterministic for a seed, on one machine.

    Args:
        model: A model with ``snap=True`` keeps the incumbent's levels and is fitted in the weights alone.
        nfe: Network calls of the plan, or several such numbers.
        objective: ``"solution"``, ``"features"`` or ``"data"``.
        data: Real samples (N, *shape) in the model's scale, at least 64, better some thousand; only with
            ``objective="data"``.
        shape: Of ONE sample (default: the model's own).
        n: Noises, of the seeds seed..seed+n−1, at least 2 (default: 128); a quarter is held out. Below 16 a
            warning says that the held-out figures say little. With ``objective="data"`` at least 48
            (default: 768), of which the solution plan is fitted to the first third, at most 128.
        seed: Of the first noise.
        budget: ``"fast"`` spends at most n × (70 + 12 nfe) network evaluations; ``"thorough"`` some
            n × (300 + 300 nfe), and searches all textbook samplers. The report of ``objective="features"``
            takes nfe/2 more for each noise, and coming near the data some 14 nfe, thorough 31 nfe.
        start: A plan to improve, instead of the best textbook sampler. With ``objective="data"``, one that
            was calibrated for this very model is the solution plan, as it is.
        cond: Conditions {name: tensor (n, ...)}, or f(indices (n,)) that returns them. Guidance is part of
            the model.
        shared: Passed to the network as it is.
        features: f(x (b, *)) -> (b, ...), or :class:`ddim_ode.evaluate.features.Features`, to measure in.
            Default: for a solution x itself; else those of the shipped classifier for 28 × 28 grey images,
            random convolutions for others, and a random layer for what is no image.
        sigma_max: Where the noise starts (default: ``model.sigma_max``, or where ``start`` does).
        batch: Rows the network gets at once.
        progress: Show a bar, and before it, on stderr, how long it will take, from a few network calls that
            are timed (and not counted).
        device: Where to run (default: the network's own).

    Returns:
        The :class:`ddim_ode.Plan`, or {nfe: Plan} for several; ``plan.fit`` has the figures, in plain data.

    Raises:
        ValueError: Too few noises or data, data of another shape or scale or with NaN, an unknown budget or
            objective, a start that is no such plan, or an nfe that no sampler has.
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
    matches = one_of("objective", objective, OBJECTIVES) == "data"
    if not matches:
        refuse(f"objective={objective!r} takes no data", data=data)
    n = noises_of(objective, n)
    seed = seed_of(seed, n)
    batch, _ = count("batch", batch), flag("progress", progress)
    if features is not None and not isinstance(features, FeatureRows):
        function("features", features)
    one_of("budget", budget, EFFORTS)
    if start is not None:
        check_plan(start, model)
        sigma_max = _first_level(start, sigma_max)
        if wanted != [start.nfe]:
            raise ValueError(f"start has nfe {start.nfe}; calibrate it with nfe={start.nfe}")
        _check_start(start)
    model, place = model.starting_at(sigma_max), device_of(model, device)
    if model.snap:
        _check_levels(model, wanted[-1])
    shape = sample_shape(model, shape)
    x = noise(shape, model.schedule, range(seed, seed + n), model.sigma_max, place)
    problem = Problem(model, conditions(cond, n, place), shared)
    real = checked_data(data, x, seed) if matches else None
    fitted_to = None if start is None else (start.fit or {}).get("model_key")
    ready = matches and fitted_to is not None and fitted_to == model_key(model)
    some, first = slice(0, batch), slice(0, min(NOISES["solution"], n // 3) if matches else n)
    if progress:
        rows = n * sum(rows_each(budget, k) for k in wanted) if matches else 0.0
        seconds = seconds_a_call(problem.rows(some), x[some])
        tell_calibration(seconds, 0 if ready else len(x[first]), budget, wanted, round(rows))
    began = time.perf_counter()
    plans: dict[int, Plan] = {}
    try:
        with torch.no_grad(), progress_bar(progress, unit="eval", unit_scale=True) as bar:
            kind = _InDefaultFeatures if objective == "features" and features is None else Run
            own = None if matches or features is None else features_of(features)
            run = kind(problem.rows(first), x[first], own, batch, seed, budget, bar)

            if not ready:
                run.share_among(wanted)
                run.prepare()
                if run.features is not None:
                    _check_features(run.problem.goal)
            if real is not None:
                whole = Fitting(model, x, x, problem.cond, shared, None, batch)
                matching = Matching(whole, real, deciding(features, real), budget, bar.update)
            for k in sorted(wanted):  # each begins from the one before
                plan = start if ready and start else run.plan(k, start)
                if real is not None:
                    plan = matching.plan(plan)
                elif objective == "features":
                    plan = _with_unseen(run, plan, start)
                plans[k] = plan
    except KeyboardInterrupt:
        done = f"stopped: {len(plans)} of {len(wanted)} plans are fitted, and in .partial"
        raise Interrupted(done, _timed(plans, began)) from None
    plans = _timed({k: plans[k] for k in wanted}, began)
    return plans[wanted[0]] if single(nfe) else plans


class _InDefaultFeatures(Run):
    """A calibration in the default features, whose scale is that of the solutions."""

    def look_at(self, target: Tensor) -> Features:
        solved = target[target[..., None].flatten(1).isfinite().all(1)]
        return deciding(None, solved if len(solved) > 1 else self.x).function


def _with_unseen(run: Run, plan: Plan, start: Plan | None) -> Plan:
    """The plan, with what features that no fit has seen say of it on held-out noises."""
    before = start or incumbent_of(plan, run.model.schedule)
    points = [Linear.of(each) for each in (before or plan, plan)]
    before_it, fit = run.problem.evals, dict(plan.fit or {}, objective="features")
    fit["unseen"] = errors_unseen(run.problem, run.held, points)
    fit["net_evals"] += run.problem.evals - before_it
    return replace(plan, fit=fit)


def _timed(plans: Mapping[int, Plan], began: float) -> dict[int, Plan]:
    """The plans, with the time that all of them took."""
    seconds = round(time.perf_counter() - began, 2)
    return {
        k: replace(plan, fit={**(plan.fit or {}), "seconds": seconds}) for k, plan in plans.items()
    }


def _check_levels(model: Denoiser, nfe: int) -> None:
    """ValueError for more calls than a model that snaps has levels."""
    levels = int((model.schedule.levels <= model.sigma_max).sum())
    if nfe > levels:
        raise ValueError(
            f"nfe={nfe}: the model has {levels} trained levels, and a fit needs one for each call; give at "
            f"most {levels}, or a model with snap=False"
        )


def _check_features(seen: Tensor) -> None:
    """ValueError for features (n, ...) that tell no sample from another."""
    if len(seen) > 1 and bool((seen == seen[:1]).all()):
        raise ValueError(
            f"features are the same for all {len(seen)} samples; they must tell them apart"
        )


def _check_start(start: Plan) -> None:
    """ValueError for a plan that no fit can begin from."""
    if not Linear.of(start).can_be_fitted:
        raise ValueError(
            f"start={start.method!r} does not fall to a lower level with each call, as a fit needs; give a "
            "plan of one call a step, such as ipndm's or unipc2's, or drop start="
        )


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
