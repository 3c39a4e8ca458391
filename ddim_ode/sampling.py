"""The front door: from noise to samples with any method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from . import external
from ._checks import count, one_of
from .denoiser import Denoiser
from .grids import FINALS, check_grid, from_timesteps, make_grid
from .integration import Progress, integrate
from .probability_flow import ProbabilityFlow
from .schedules import Array
from .seeding import StepNoise
from .solution import Solution, finite_samples, per_sample
from .solvers.chart import convert
from .solvers.methods import Method, get_method
from .solvers.plan import Node, Plan
from .solvers.plan import plan as compile_plan

DEFAULT_GRID = "time"
_DEFAULT_TOLERANCE = 1e-3
_DEFAULT_MAX_NFE = 500


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
    chart: str | None = None,
    final: str | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    eta: float | None = None,
    noise_std: npt.ArrayLike | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_nfe: int | None = None,
    seeds: Sequence[int] | None = None,
    cond: Mapping[str, Tensor] | None = None,
    shared: Mapping[str, Any] | None = None,
    progress: bool = False,
    callback: Callable[[Progress], None] | None = None,
    record: str = "none",
    on_nan: str = "report",
    differentiable: bool = False,
) -> Solution:
    """Integrate the sampling ODE from x (B, *) at the grid's first level to its last.

    method: a name of :func:`ddim_ode.methods`, a :class:`Method`, ``"torchdiffeq:NAME"`` or
    ``"scipy:NAME"`` (default ``"ddim"``).

    Where it steps, one of: ``steps`` intervals; ``nfe``, the largest plan with at most that many network
    calls; ``timesteps`` τ in (0, T]; ``grid`` as an array of σ; or a compiled ``plan``. With
    ``steps`` or ``nfe``, ``grid`` names the spacing (default ``"time"``), ``sigma_max`` and ``sigma_min``
    its ends. final: ``"zero"`` lands on x̂₀ with the last call, ``"sigma_min"`` stops there.
    chart: solve in another chart than the method's own.

    eta, noise_std: step noise of ``ddim``: ς = η β̄' √(1 − (σ'/σ)²), or one standard deviation per
    step, 0 ≤ ς ≤ β̄'. seeds: one per sample, for that noise (``ddpm`` too); drawn from
    torch's global generator when not given. At ς = 0 nothing is drawn.

    rtol, atol, max_nfe: for adaptive external solvers, default 1e-3, 1e-3 and 500.
    cond: conditions {name: tensor (B, ...)}; shared: passed to the network as it is.
    progress: a bar. callback: called with a :class:`Progress` after each step. record: ``"x"`` keeps the
    states, ``"x0"`` the x̂₀ of each level's call (the last entry is the end state, or where nothing
    is called there the last x̂₀ again). on_nan: ``"hold"`` keeps each sample's last
    finite state, at the cost of a check per step. differentiable: keep the graph.

    Returns a :class:`Solution`. ValueError says which argument to drop or change.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.exponential()
    >>> model = ddim_ode.exact.gaussian([1.0], [[0.25]], schedule)
    >>> x_T = ddim_ode.noise((1,), schedule, seeds=[0, 1, 2])
    >>> sol = ddim_ode.sample(model, x_T, method="heun", steps=10)
    >>> sol.nfe, sol.status.tolist()
    (19, ['success', 'success', 'success'])
    """
    x = _check_state(model, x)
    one_of("record", record, ("none", "x", "x0"))
    one_of("on_nan", on_nan, ("report", "hold"))
    if final is not None:
        one_of("final", final, FINALS)
    _exclusive(plan=plan, method=method)
    _exclusive(steps=steps, nfe=nfe, timesteps=timesteps, plan=plan)
    if plan is not None:
        _exclusive(plan=plan, grid=grid)
    if sum(a is not None for a in (timesteps, plan)) or _is_array(grid):
        where = "plan" if plan is not None else "timesteps" if timesteps is not None else "grid"
        for name, value in dict(
            steps=steps,
            nfe=nfe,
            sigma_max=sigma_max,
            sigma_min=sigma_min,
            final=None if where == "timesteps" else final,
        ).items():
            if value is not None:
                raise ValueError(f"{where}= already fixes the levels; drop {name}={value!r}")
    if timesteps is not None and grid is not None:
        raise ValueError("both timesteps and grid are given; drop one of them")
    method = "ddim" if method is None and plan is None else method

    def levels(n: int) -> Array:
        """The grid of n steps (n is not asked where the caller gave the levels)."""
        if timesteps is not None:
            sigmas = from_timesteps(model.schedule, timesteps, final or "zero")
        elif _is_array(grid):
            sigmas = check_grid(grid, model.schedule)  # type: ignore[arg-type]
        else:
            sigmas = make_grid(
                grid or DEFAULT_GRID,  # type: ignore[arg-type]
                model.schedule,
                n,
                final=final or "zero",
                sigma_max=sigma_max,
                sigma_min=sigma_min,
            )
        return _snap(model, sigmas)

    fixed_levels = timesteps is not None or _is_array(grid)
    with torch.set_grad_enabled(differentiable):
        if external.is_external(method):
            if eta is not None or noise_std is not None:
                raise ValueError(f"{method} solves the ODE and takes no eta or noise_std")
            if callback is not None or record != "none" or on_nan != "report":
                raise ValueError(
                    f"{method} gives no access to its steps: drop callback, record, on_nan"
                )
            sigmas = _external_levels(str(method), levels, steps, nfe, fixed_levels)
            return _run_external(
                model,
                x,
                str(method),
                sigmas,
                _DEFAULT_TOLERANCE if rtol is None else rtol,
                _DEFAULT_TOLERANCE if atol is None else atol,
                count("max_nfe", max_nfe or nfe or _DEFAULT_MAX_NFE),
                cond,
                shared,
                progress,
            )
        for name, value in dict(rtol=rtol, atol=atol, max_nfe=max_nfe).items():
            if value is not None:
                raise ValueError(
                    f"{name}={value!r} belongs to an adaptive solve, and a fixed plan has no use for it: "
                    "drop it, or use method='torchdiffeq:dopri5' or 'scipy:RK45'"
                )
        if plan is None:
            plan = _compile(model, method, levels, steps, nfe, fixed_levels, chart, eta, noise_std)
        else:
            _check_plan(plan, model)
        return _run_plan(
            model, x, plan, seeds, cond, shared, progress, callback, record, on_nan == "hold"
        )


def _compile(
    model: Denoiser,
    method: str | Method | None,
    levels: Callable[[int], Array],
    steps: int | None,
    nfe: int | None,
    fixed_levels: bool,
    chart: str | None,
    eta: float | None,
    noise_std: npt.ArrayLike | None,
) -> Plan:
    spec = get_method(method)  # type: ignore[arg-type]
    # A multistep plan stores its chart's vector; a one-step plan whatever the network predicts.
    vector = None
    if spec.past == 1:
        vector = "eps" if model.prediction == "score" else model.prediction

    def build(n: int) -> Plan:
        return compile_plan(
            spec,
            model.schedule,
            levels(n),
            chart=chart,
            vector=vector,
            eta=eta,
            noise_std=noise_std,
        )

    if nfe is None:
        if steps is None and not fixed_levels:
            raise ValueError(
                f"method {spec.name!r} needs to know where to step: give steps= or nfe="
            )
        return build(0 if steps is None else count("steps", steps))
    budget = count("nfe", nfe)
    for n in range(budget // spec.nfe_per_step + 1, 0, -1):
        candidate = build(n)
        if candidate.nfe <= budget:
            return candidate
    raise ValueError(
        f"nfe={nfe} is less than one step of {spec.name!r} costs ({candidate.nfe}); raise nfe"
    )


def _run_plan(
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
) -> Solution:
    batch = x.shape[0]
    draw = None
    if plan.is_stochastic:
        if seeds is None:
            seeds = torch.randint(2**31, (batch,)).tolist()
        draw = StepNoise(seeds, x)
    evaluate = model.bind(plan.nodes, x, cond, shared)
    if batch == 0:  # nothing to ask the network
        evaluate = lambda y, k: y  # noqa: E731

    trajectory: list[Tensor] = [x] if record == "x" else []
    bar = tqdm(total=plan.nfe, unit="nfe", desc=plan.method) if progress else None

    def after_call(k: int, y: Tensor, vector: Tensor, at_level: bool) -> None:
        if bar is not None:
            bar.update()
        if record == "x0" and at_level:
            trajectory.append(_to_x0(model, plan.nodes[k], y, vector))

    def after_step(step: Progress) -> None:
        if record == "x":
            trajectory.append(step.x)
        if callback is not None:
            callback(step)

    with bar or contextlib.nullcontext():
        end, finite, calls = integrate(
            plan,
            evaluate,
            x,
            draw=draw,
            hold=hold,
            after_call=after_call if progress or record == "x0" else None,
            after_step=after_step if record == "x" or callback is not None else None,
        )
    if record == "x0":
        trajectory.append(end if plan.grid[-1] == 0 else trajectory[-1])
    return Solution(
        x=end,
        method=plan.method,
        sigmas=np.array(plan.grid),
        nfe=calls if batch else 0,
        sample_nfe=per_sample(calls, batch),
        net_evals=calls * batch * model.rows_per_sample,
        accepted=per_sample(plan.steps, batch),
        rejected=per_sample(0, batch),
        plan=plan,
        trajectory=torch.stack(trajectory) if trajectory else None,
        seeds=None if seeds is None else [int(s) for s in seeds],
        finite=finite,
    )


def _to_x0(model: Denoiser, node: Node, y: Tensor, vector: Tensor) -> Tensor:
    level = model.snapped(np.array([node.sigma]))
    a, b = convert(node.vector, "x0", *model.schedule.scales(level))
    return y * float(a[0]) + vector * float(b[0])


def _external_levels(
    method: str,
    levels: Callable[[int], Array],
    steps: int | None,
    nfe: int | None,
    fixed_levels: bool,
) -> Array:
    if not external.is_fixed_step(method):
        if steps is not None or fixed_levels:
            raise ValueError(f"{method} chooses its own steps: drop steps, timesteps or grid")
        return levels(2)
    if nfe is not None:
        raise ValueError(f"nfe={nfe} cannot be planned for {method}; give steps=")
    if steps is None and not fixed_levels:
        raise ValueError(f"{method} needs to know where to step: give steps=")
    return levels(0 if steps is None else count("steps", steps))


def _run_external(
    model: Denoiser,
    x: Tensor,
    method: str,
    sigmas: Array,
    rtol: float,
    atol: float,
    max_nfe: int,
    cond: Mapping[str, Tensor] | None,
    shared: Mapping[str, Any] | None,
    progress: bool,
) -> Solution:
    lands = sigmas[-1] == 0
    positive = sigmas[:-1] if lands else sigmas
    ode = ProbabilityFlow(
        model,
        variable="log_sigma" if np.isfinite(positive[0]) else "t",
        shape=x.shape[1:],
        dtype=x.dtype,
        device=x.device,
        cond=cond,
        shared=shared,
    )
    end = external.End(x, None, 0)
    with tqdm(unit="nfe", desc=method, disable=not progress) as bar:
        if len(positive) > 1 and x.shape[0]:
            end = external.solve(
                method,
                ode,
                x,
                positive,
                rtol,
                atol,
                max_nfe - int(lands),
                lambda: bar.update() and None,
            )
    out, calls = end.x, ode.nfe
    if lands and end.failure is None and x.shape[0]:
        out, calls = model(out, positive[-1], cond, shared)[0], calls + 1
    batch = x.shape[0]
    return Solution(
        x=out,
        method=method,
        sigmas=sigmas,
        nfe=calls,
        sample_nfe=per_sample(calls, batch),
        net_evals=calls * batch * model.rows_per_sample,
        accepted=per_sample(end.accepted, batch),
        rejected=per_sample(0, batch),
        finite=finite_samples(out),
        failure=end.failure,
    )


def _snap(model: Denoiser, sigmas: Array) -> Array:
    """The grid on trained levels, where the model wants that; ValueError if levels coincide."""
    if not model.snap:
        return sigmas
    positive = model.snapped(sigmas[sigmas > 0])
    distinct = len(np.unique(positive))
    if distinct < len(positive):
        raise ValueError(
            f"snap=True: {len(positive)} levels of the grid fall on only {distinct} distinct trained "
            f"levels (of {model.schedule.T:g}); take fewer steps or another grid, or use snap=False"
        )
    return np.append(positive, 0.0) if sigmas[-1] == 0 else positive


def _check_state(model: Denoiser, x: Tensor) -> Tensor:
    if not isinstance(model, Denoiser):
        raise ValueError(
            f"model must be a Denoiser, got {type(model).__name__}: wrap the network once as "
            "ddim_ode.Denoiser(net, schedule)"
        )
    if not isinstance(x, Tensor) or x.ndim < 1 or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a floating tensor (B, *), got {got}")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_plan(plan: Plan, model: Denoiser) -> None:
    schedule = model.schedule
    if plan.schedule != schedule.fingerprint:
        raise ValueError(
            f"the plan was made for schedule {plan.schedule} and the model has {schedule.fingerprint} "
            f"({schedule!r}); compile it again for this one"
        )


def _is_array(grid: object) -> bool:
    return grid is not None and not isinstance(grid, str)


def _exclusive(**values: object) -> None:
    given = [name for name, value in values.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"both {given[0]} and {given[1]} are given; drop {given[1]}")
