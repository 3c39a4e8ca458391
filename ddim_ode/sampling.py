"""The front door: from noise to samples with any method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import adaptive, external, gradients
from ._checks import exclusive, flag, function, one_of, refuse
from .bars import progress_bar
from .denoiser import Denoiser, check_state
from .editing import Known
from .inputs import check_model, check_rank
from .integration import Progress, integrate
from .levels import Levels
from .plan_checks import check_network, check_plan, warn_of_another_ode
from .schedule import Array
from .seeding import StepNoise, check_seeds
from .solution import Solution, norm_per_sample, per_sample, warn_of_scale
from .solvers.chart import convert
from .solvers.compilation import plan as compile_plan
from .solvers.embedded import adaptive_names
from .solvers.methods import Method, get_method
from .solvers.plan import Node, Plan

NOT_ADAPTIVE = (
    "a fixed plan has no tolerance or budget of calls (adaptive are "
    f"{', '.join(adaptive_names())}, torchdiffeq:dopri5 and scipy:RK45)"
)


def sample(
    model: Denoiser,
    x: Tensor,
    method: str | Method | None = None,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: str | npt.ArrayLike | None = None,
    timesteps: npt.ArrayLike | None = None,
    plan: Plan | None = None,
    variant: str | None = None,
    start: str | None = None,
    chart: str | None = None,
    final: str | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    eta: float | None = None,
    noise_std: npt.ArrayLike | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_nfe: int | None = None,
    error_norm: str | None = None,
    dense: bool | None = None,
    seeds: Sequence[int] | None = None,
    cond: Mapping[str, Tensor] | None = None,
    shared: Mapping[str, Any] | None = None,
    progress: bool = False,
    callback: Callable[[Progress], None] | None = None,
    record: str = "none",
    on_nan: str = "report",
    differentiable: bool | str = False,
    known: Known | None = None,
) -> Solution:
    """Integrate the sampling ODE from x (B, *) at the grid's first level to its last.

    method: a name of :func:`ddim_ode.methods`, a :class:`Method`, ``"torchdiffeq:NAME"`` or
    ``"scipy:NAME"`` (default ``"ddim"``).

    Where it steps, one of: ``steps`` intervals; ``nfe``, the largest plan with at most that many network
    calls; ``timesteps`` τ in (0, T], counted from 1 also for a network on indices 0..T−1; ``grid`` as an
    array of σ; or a compiled ``plan``. With ``steps`` or ``nfe``, ``grid`` names the spacing (default:
    :func:`ddim_ode.grids.default_spacing`), ``sigma_max`` (default ``model.sigma_max``) and ``sigma_min``
    its ends. final: ``"zero"``
    lands on x̂₀ with the last call, ``"sigma_min"`` stops there. variant, start, chart: as in
    :func:`ddim_ode.plan`. (A multistep method stores its chart's vector: an x0-network started above
    σ ≈ 10³ in float32 keeps more digits in ``"data"`` or ``"flow"``.)

    eta, noise_std: step noise of ``ddim``: ς = η β̄' √(1 − (σ'/σ)²), or one standard deviation per
    step, 0 ≤ ς ≤ β̄'. seeds: one per sample, for that noise (``ddpm`` too); drawn from
    torch's global generator when not given. At ς = 0 nothing is drawn.

    rtol, atol, max_nfe: solve adaptively, each sample with its own steps (default 1e-3, 1e-3 and at most
    500 calls a sample); for rk45, bosh3 and heun, and for external solvers. rk45 and bosh3 do so as well
    where no steps, grid or timesteps are given; then ``nfe`` is a budget in which every sample arrives,
    if need be above tolerance (``sol.status``); calls are spent in whole steps (6 of rk45, 3 of bosh3, 2 of
    heun), so for a handful of them take a fixed method. error_norm: ``"sample"``, or ``"batch"``: one
    error and one step for the whole batch, as ODE packages have it. dense: False drops what ``sol.at``
    needs, three states a step.
    cond: conditions {name: tensor (B, ...)}; shared: passed to the network as it is.
    progress: a bar. callback: called with a :class:`ddim_ode.Progress` after each step. record: ``"x"``
    keeps the states, ``"x0"`` the x̂₀ of each level's call (the last entry is the end state, or where
    nothing is called there the last x̂₀ again). on_nan: ``"hold"`` keeps each sample's last finite state,
    at the cost of a check per step (adaptive solves always do).
    differentiable: keep the graph, to x, to the network's parameters and to a guidance scale that is a
    tensor; in less memory with ``"checkpoint"`` (fixed plans) or ``"adjoint"`` (torchdiffeq's solvers;
    parameters only of a net that is a ``torch.nn.Module``), see :mod:`ddim_ode.gradients`.
    known: a :class:`ddim_ode.Known`, the part of the pictures that is put back after each step of a fixed
    plan: inpainting. That solves no ODE (``alterations`` say so), and has no error estimate.

    Returns a :class:`Solution`. ValueError says which argument to drop or change.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.exponential()
    >>> model = ddim_ode.exact.gaussian([1.0], [[0.25]], schedule)
    >>> x_T = ddim_ode.noise((1,), schedule, seeds=[0, 1, 2])
    >>> sol = ddim_ode.sample(model, x_T, method="heun", steps=10)
    >>> sol.nfe, sol.status.tolist()
    (19, ['success', 'success', 'success'])
    """
    check_model(model)
    x = check_state(x)
    check_rank(model, x)
    if seeds is not None:
        seeds = check_seeds(seeds, x.shape[0])
    check_watching(progress, callback, record, on_nan)
    if known is not None and not isinstance(known, Known):
        raise ValueError(f"known must be a ddim_ode.Known, got {type(known).__name__}")
    kept = gradients.check_mode(differentiable, "sample", *gradients.WHERE)
    exclusive(plan=plan, method=method)
    exclusive(nfe=nfe, noise_std=noise_std)
    levels = Levels(model, steps, nfe, grid, timesteps, final, sigma_max, sigma_min)
    with torch.set_grad_enabled(bool(kept)):
        if external.is_external(method):
            refuse(
                f"{method} solves the ODE by its own steps",
                eta=eta,
                noise_std=noise_std,
                variant=variant,
                start=start,
                chart=chart,
                callback=callback,
                record=None if record == "none" else record,
                on_nan=None if on_nan == "report" else on_nan,
                error_norm=error_norm,
                dense=dense,
                known=known,
            )
            where = (model, x, str(method), levels, (rtol, atol), max_nfe)
            return external.sample(*where, seeds, cond, shared, progress, differentiable)
        run = (
            seeds,
            cond,
            shared,
            progress,
            callback,
            record,
            on_nan == "hold",
            differentiable,
            known,
        )
        if plan is not None:
            check_plan(plan, model)
            warn_of_another_ode(plan, model)
            check_network(plan, model)
            if plan.grid[0] < plan.grid[-1]:
                raise ValueError(
                    f"plan {plan.method!r} goes up, from σ={plan.grid[0]:g} to {plan.grid[-1]:g}; use "
                    "ddim_ode.encode"
                )
            refuse(
                "plan= already fixes how and where to step",
                steps=steps,
                nfe=nfe,
                grid=grid,
                timesteps=timesteps,
                final=final,
                sigma_max=sigma_max,
                sigma_min=sigma_min,
                variant=variant,
                start=start,
                chart=chart,
                eta=eta,
                noise_std=noise_std,
            )
            refuse(
                NOT_ADAPTIVE,
                rtol=rtol,
                atol=atol,
                max_nfe=max_nfe,
                error_norm=error_norm,
                dense=dense,
            )
            return run_plan(model, x, plan, *run)
        spec = get_method("ddim" if method is None else method, variant)
        asked = any(value is not None for value in (rtol, atol, max_nfe))
        if adaptive.is_adaptive(spec, asked, levels.placed):
            refuse(
                f"{spec.name} solves adaptively, in its own chart and without noise (steps= makes it a "
                "fixed plan)",
                eta=eta,
                noise_std=noise_std,
                start=start,
                chart=chart,
                callback=callback,
                known=known,
            )
            exclusive(nfe=nfe, max_nfe=max_nfe)
            gradients.check_mode(differentiable, f"an adaptive {spec.name}")
            options = adaptive.Options(
                adaptive.tolerance("rtol", rtol),
                adaptive.tolerance("atol", atol),
                max_nfe,
                adaptive.error_norm(error_norm),
                record,
                dense is None or flag("dense", dense),
            )
            return adaptive.solve(model, x, spec, levels, options, seeds, cond, shared, progress)
        refuse(
            NOT_ADAPTIVE, rtol=rtol, atol=atol, max_nfe=max_nfe, error_norm=error_norm, dense=dense
        )
        plan = compile_for(spec, levels, start, chart, eta, noise_std)
        return run_plan(model, x, plan, *run)


def compile_for(
    spec: Method,
    levels: Levels,
    start: str | None,
    chart: str | None,
    eta: float | None,
    noise_std: npt.ArrayLike | None,
) -> Plan:
    model = levels.model
    # A multistep plan stores its chart's vector; a one-step plan whatever the model answers with.
    vector = None
    if not spec.multistep:
        vector = "eps" if model.answers == "score" else model.answers

    def build(sigmas: Array, start: str | None) -> Plan:
        options = dict(start=start, chart=chart, vector=vector, eta=eta, noise_std=noise_std)
        options["rising"] = levels.rising
        return compile_plan(spec, model.schedule, sigmas, **options)  # type: ignore[arg-type]

    if levels.nfe is None:
        sigmas = levels.required(f"method {spec.name!r}", "give steps= or nfe=", spec.nfe_per_step)
        return build(sigmas, start)
    plan = _largest(build, levels, spec, start)
    if start is None and spec.rk_steps and plan.nfe < levels.nfe:
        # The default start changes at a number of steps, and its calls may overshoot there.
        plan = max(plan, _largest(build, levels, spec, "ramp"), key=lambda p: p.nfe)
    return plan


def _largest(
    build: Callable[[Array, str | None], Plan], levels: Levels, spec: Method, start: str | None
) -> Plan:
    """The plan of most steps with at most ``levels.nfe`` calls; ValueError if one step costs more."""
    assert levels.nfe is not None
    refusal = ValueError()
    n, most = levels.nfe // spec.nfe_per_step + 2, None
    if levels.model.snap:  # each on a trained level of its own
        n = min(n, len(levels.model.schedule.levels))
    while n > 0:
        try:
            candidate = build(levels.sigmas(n, spec.nfe_per_step), start)
        except ValueError as error:  # this many steps may not fit where fewer do (snap)
            refusal, most = error, most or _most(build, levels, start, n)
            n = min(n - 1, most)
            continue
        if candidate.nfe <= levels.nfe:
            return candidate
        refusal = ValueError(
            f"nfe={levels.nfe} is less than one step of {spec.name!r} costs ({candidate.nfe}); raise nfe"
        )
        n -= 1
    raise refusal


def _most(
    build: Callable[[Array, str | None], Plan], levels: Levels, start: str | None, refused: int
) -> int:
    """A number of steps below ``refused`` above which there is no plan, by few attempts.

    Where two neighbours of a grid are one level, so are two of the same grid in 2n steps or more: at least
    two of its levels are between these.
    """
    n = 1
    with contextlib.suppress(ValueError):
        while 2 * n < refused:
            build(levels.sigmas(n), start)
            n *= 2
    return min(2 * n - 1, refused - 1)


def run_plan(
    model: Denoiser,
    x: Tensor,
    plan: Plan,
    seeds: Sequence[int] | None,
    cond: Mapping[str, Tensor] | None,
    shared: Mapping[str, Any] | None,
    progress: bool,
    callback: Callable[[Progress], None] | None,
    record: str,
    hold: bool,
    differentiable: bool | str = False,
    known: Known | None = None,
) -> Solution:
    gradients.check_mode(differentiable, f"the fixed plan of {plan.method}", "checkpoint")
    batch = x.shape[0]
    draw = None
    if plan.is_stochastic:
        if seeds is None:
            seeds = torch.randint(2**63 - 1, (batch,)).tolist()
        draw = StepNoise(seeds, x)
    evaluate = model.bind(plan.nodes, x, cond, shared)
    if differentiable == "checkpoint":
        evaluate = gradients.checkpointed(evaluate)
    if batch == 0:  # nothing to ask the network
        evaluate = lambda y, k: y  # noqa: E731

    alterations, project = model.alterations, None
    if known is not None:
        alterations, project = (
            {**alterations, "known": True},
            known.bind(plan.grid, model.schedule, x),
        )

    trajectory: list[Tensor] = []
    if record == "x":
        trajectory.append(x if project is None else project(x, 0))
    bar = progress_bar(True, total=plan.nfe, unit="nfe", desc=plan.method) if progress else None

    level_calls = set(plan.level_calls()) if record == "x0" else set()

    def after_call(k: int, y: Tensor, vector: Tensor) -> None:
        if bar is not None:
            bar.update()
        if k in level_calls:
            trajectory.append(x0_of(model, plan.nodes[k], y, vector))

    def after_step(step: Progress) -> None:
        if record == "x":
            trajectory.append(step.x)
        if callback is not None:
            callback(step)

    with bar or contextlib.nullcontext():
        end, finite, calls, error = integrate(
            plan,
            evaluate,
            x,
            draw=draw,
            hold=hold,
            project=project,
            after_call=after_call if progress or record == "x0" else None,
            after_step=after_step if record == "x" or callback is not None else None,
        )
    if record == "x0":
        trajectory.append(end if plan.grid[-1] == 0 else trajectory[-1])
    if plan.grid[0] > plan.grid[-1]:
        warn_of_scale(end, max(plan.grid[0], model.sigma_max))
    return Solution(
        x=end,
        method=plan.method,
        sigmas=np.array(plan.grid),
        nfe=calls if batch else 0,
        sample_nfe=per_sample(calls, batch),
        net_evals=batch * model.rows([node.sigma for node in plan.nodes]),
        accepted=per_sample(plan.steps, batch),
        rejected=per_sample(0, batch),
        plan=plan,
        error=None if error is None or known is not None else norm_per_sample(error),
        trajectory=torch.stack(trajectory) if trajectory else None,
        seeds=None if seeds is None else list(seeds),
        finite=finite,
        alterations=alterations,
    )


def x0_of(model: Denoiser, node: Node, y: Tensor, vector: Tensor) -> Tensor:
    """x̂₀ (B, *) at y (B, *), of what a node stored there."""
    level = model.snapped(np.array([node.sigma]))
    a, b = convert(node.vector, "x0", *model.schedule.scales(level))
    return y * float(a[0]) + vector * float(b[0])


def check_watching(progress: Any, callback: Any, record: Any, on_nan: Any) -> None:
    """ValueError for what says wrongly how a solve is watched."""
    flag("progress", progress)
    if callback is not None:
        function("callback", callback)
    one_of("record", record, ("none", "x", "x0"))
    one_of("on_nan", on_nan, ("report", "hold"))
