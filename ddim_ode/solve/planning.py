"""From a request to the plan that runs: compiled for it, or given and checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._base.checks import refuse
from .._base.warn import warn
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import check_model
from ..grids import TRUSTED
from ..schedules.schedule import Array
from ..solvers.compilation import plan as compile_plan
from ..solvers.methods import Method, get_method
from ..solvers.plan import Plan
from ..solvers.stochastic import Eta
from ..solvers.tableau import Tableau
from .levels import Levels
from .plan_checks import check_network, warn_of_another_ode, warn_of_another_profile
from .request import (
    PLACING,
    Request,
    SolveOptions,
    check_names,
    kind_of,
    lists_options,
    names_of,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


_Build = Callable[[Array, str | None], Plan]
_HOW = ("start", "chart", "eta", "noise_std")
_LEAP = 4.0  # times, of the first step: shorter ones leave Heun its order


@lists_options
def plan_for(
    model: Denoiser, method: str | Method | None = None, **options: Unpack[SolveOptions]
) -> Plan:
    """The plan that :func:`ddim_ode.sample` would run, without sampling anything.

    Args:
        model: What the plan is for: its schedule, its default start, the levels that it snaps to.
        method: A name of :func:`ddim_ode.methods` or a :class:`ddim_ode.Method` (default ``"ddim"``).
        **options: Of :func:`ddim_ode.sample`, those that say where it steps (``steps``, ``nfe``, ``grid``,
            ``timesteps``, ``sigma_max``, ``sigma_min``, ``final``), how (``variant``, ``start``,
            ``chart``), and with which step noise (``eta``, ``noise_std``).

    Returns:
        The plan, for ``sample(model, x, plan=plan)``.

    Raises:
        ValueError: A solver of another package, which has no plan, or options that do not go together.

    >>> import ddim_ode
    >>> model = ddim_ode.exact.gaussian([1.0], [[0.25]], ddim_ode.schedules.cosine())
    >>> ddim_ode.plan_for(model, "unipc2", nfe=8)
    Plan(unipc2, 8 steps, nfe 8, chart data)
    """
    check_names("plan_for", options)
    check_model(model)
    how = {name: options.get(name) for name in names_of("plan_for")}
    levels = Levels(model, **{name: how[name] for name in PLACING})  # type: ignore[arg-type]
    if kind_of(method, placed=True, variant=options.get("variant")) != "fixed":
        raise ValueError(f"method={method!r} has no plan; take one of ddim_ode.methods()")
    spec = get_method("ddim" if method is None else method, options.get("variant"))
    return compile_for(spec, levels, **{name: how[name] for name in _HOW})  # type: ignore[arg-type]


def plan_of(request: Request) -> Plan:
    """The plan of a request of kind "plan" or "fixed".

    Raises:
        ValueError: A plan of another schedule, or that goes the other way and cannot be turned round.
    """
    spec = request.spec
    if spec is not None:
        noise = spec.name if spec.adds_noise and request.two_way else None
        refuse("step noise cannot be undone", method=noise)
        plan = compile_for(spec, request.levels, **{name: request.options[name] for name in _HOW})
        _warn_of_a_leap(spec, plan)
        return plan
    plan = request.options["plan"]
    if request.two_way:
        return directed(plan, request.model, request.rising)
    warn_of_another_ode(plan, request.model)
    check_network(plan, request.model)
    if plan.grid[0] < plan.grid[-1]:
        raise ValueError(
            f"plan {plan.method!r} goes up, from σ={plan.grid[0]:g} to {plan.grid[-1]:g}; use "
            "ddim_ode.encode"
        )
    return plan


def _warn_of_a_leap(spec: Method, plan: Plan) -> None:
    """Warn if a trapezoid in σ steps over most of a huge σ: the slope at the far end is then of a state
    thrown far off, from which few steps never come back.
    """
    stages = spec.stages
    trapezoid = isinstance(stages, Tableau) and len(stages.c) > 1 and stages.c[-1] == 1
    first, second = plan.grid[:2]
    if trapezoid and plan.chart == "eps" and TRUSTED < first < np.inf and second < first / _LEAP:
        warn(
            f"{spec.name} steps in σ, from {first:.4g} to {second:.3g} at once, which leaves samples far "
            "from the data; give chart='flow', a lower sigma_max (80, say), or another method"
        )


def compile_for(
    spec: Method,
    levels: Levels,
    start: str | None = None,
    chart: str | None = None,
    eta: Eta | None = None,
    noise_std: npt.ArrayLike | None = None,
) -> Plan:
    """The plan of a method on those levels, or the largest of at most ``levels.nfe`` calls."""
    model = levels.model
    if (profile := levels.profile) is not None:
        warn_of_another_profile(profile, model)
    # A multistep plan stores its chart's vector; a one-step plan whatever the model answers with.
    vector = None
    if not spec.multistep:
        vector = "eps" if model.answers == "score" else model.answers

    def without(sigmas: Array, start: str | None, **noise: Any) -> Plan:
        how: dict[str, Any] = dict(start=start, chart=chart, vector=vector, rising=levels.rising)
        return compile_plan(spec, model.schedule, sigmas, **how, **noise)

    def build(sigmas: Array, start: str | None) -> Plan:
        return without(sigmas, start, eta=eta, noise_std=noise_std)

    if levels.nfe is None:
        remedy = "give steps= or nfe="
        sigmas = levels.required(f"method {spec.name!r}", remedy, spec.nfe_per_step, spec)
        return build(sigmas, start)
    counted = levels.counting()
    quiet = None if eta is None else without
    plan = _largest(build, counted, spec, start, quiet)
    if start is None and spec.rk_steps and plan.nfe < levels.nfe:
        # The default start changes at a number of steps, and its calls may overshoot there.
        ramp = _largest(build, counted, spec, "ramp", quiet)
        plan = max(plan, ramp, key=lambda p: p.nfe)
    if levels.profile is None:
        return plan
    return build(levels.sigmas(plan.steps, spec.nfe_per_step, spec), plan.start)


def _largest(
    build: _Build, levels: Levels, spec: Method, start: str | None, without: _Build | None
) -> Plan:
    """The plan of most steps with at most ``levels.nfe`` calls; ValueError if one step costs more.

    without: builds it without its step noise, if it has any. What is refused with noise and not without is
    the noise, and fewer steps would only hide that: the last one has none.
    """
    assert levels.nfe is not None
    refusal = ValueError()
    n, most = levels.nfe // spec.nfe_per_step + 2, None
    if levels.model.snap:  # each on a trained level of its own
        n = min(n, len(levels.model.schedule.levels))
    while n > 0:
        try:
            candidate = build(levels.sigmas(n, spec.nfe_per_step), start)
        except ValueError as error:  # this many steps may not fit where fewer do (snap)
            if without is not None and _fits(without, levels, start, n):
                raise
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


def _fits(build: _Build, levels: Levels, start: str | None, n: int) -> bool:
    """Whether there is a plan of n steps, of at most ``levels.nfe`` calls."""
    assert levels.nfe is not None
    try:
        return build(levels.sigmas(n), start).nfe <= levels.nfe
    except ValueError:
        return False


def _most(build: _Build, levels: Levels, start: str | None, refused: int) -> int:
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


def directed(plan: Plan, model: Denoiser, rising: bool) -> Plan:
    """The plan itself if it goes that way between levels > 0, else its method compiled to do so.

    Raises:
        ValueError: Step noise, or a plan that is not what compiling its own method gives.
    """
    goes_up = plan.grid[0] < plan.grid[-1]
    if plan.is_stochastic:
        raise ValueError(f"plan {plan.method!r} has step noise, which cannot be undone; use eta=0")
    if goes_up == rising and plan.grid[-1] > 0:
        return plan
    falling = np.sort(plan.grid)[::-1]

    def compiled(grid: Array, rising: bool) -> Plan:
        return compile_plan(
            plan.method,
            model.schedule,
            grid,
            start=plan.start,
            chart=plan.chart,
            vector=plan.vector,
            rising=rising,
        )

    try:
        textbook = compiled(falling, goes_up) == plan
    except ValueError:  # no registered method
        textbook = False
    if not textbook:
        kind = "calibrated" if plan.fit is not None else "made"
        raise ValueError(
            f"plan {plan.method!r} was {kind} for the way {'up' if goes_up else 'down to σ=0'} alone, and "
            "is no registered method that could be compiled for the other; give method=, and grid= its "
            "levels > 0"
        )
    return compiled(falling[falling > 0], rising)
