"""Compilation: a method on a grid becomes a plan.

Two kinds of step are DDIM steps in any method: the landing on σ = 0, and a start from σ = inf (or, going
up, the last step to it) where the chart's clock or gauge or the ruler is infinite. So it is only where the
caller asks for such a chart, and on few steps (:mod:`.infinity`). They are exact for a
constant prediction. Nothing else depends on the direction: clocks, rulers and weights are signed.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._base.checks import flag, one_of
from ..grids import check_grid, upward
from ..schedules.schedule import Array, Schedule
from .builder import Steps
from .chart import VECTORS, get_chart
from .infinity import from_infinity
from .methods import RK_START_FROM, STARTS, Method, get_method, rk_start
from .ops import Op
from .plan import Plan
from .stochastic import Eta, check_eta, step_noise


def plan(
    method: str | Method,
    schedule: Schedule,
    grid: npt.ArrayLike,
    *,
    variant: str | None = None,
    start: str | None = None,
    chart: str | None = None,
    vector: str | None = None,
    eta: Eta | None = None,
    noise_std: npt.ArrayLike | None = None,
    rising: bool = False,
) -> Plan:
    """Compile a method on a grid.

    Args:
        method: A name of :func:`ddim_ode.methods` or a :class:`ddim_ode.Method`.
        schedule: Of the model that the plan will run on.
        grid: σ (steps+1,), strictly decreasing.
        variant: A published departure from the method, a key of ``ddim_ode.solvers.methods.VARIANTS`` or
            several joined by "+" (``"dpmpp3m:half"`` for the method says the same).
        start: How ``ab3 ab4 deis3 dpmpp3m unipc3`` begin, while there are fewer past velocities than they
            read. ``"ramp"`` reads those there are, which is globally of second order (third with a
            corrector); ``"rk"`` takes the first steps by Runge–Kutta, which keeps the order and costs 1
            (order 3), 2 (unipc3) or 4 (ab4) calls more. Default: ramp below 15 steps, rk from there.
        chart: Solve in another chart than the method's own. From σ = inf, where the methods in ε and σ have
            no finite start, these run in chart ``"flow"`` unless another is asked for, in which the first
            step is DDIM's and the order 2.
        vector: What the plan stores (default: the chart's own vector). A one-step method can store any of
            ``"eps" | "x0" | "v" | "flow" | "score" | "exp"`` (the last in chart exp only), best what its
            network predicts; a multistep method only its chart's.
        eta, noise_std: The step noise of ``ddim`` and of any method in chart "data", as in
            :func:`ddim_ode.sample`; :mod:`ddim_ode.solvers.stochastic` has the formulas.
        rising: Go up the same grid instead, as :func:`ddim_ode.encode` does.

    Returns:
        The plan; equal arguments give the same object.

    Raises:
        ValueError: An unknown name, a grid outside the schedule, a start where there is no choice, or noise
            where there is none; rising, also a grid that ends at 0, and any noise.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.exponential()
    >>> ddim_ode.plan("heun", schedule, [80.0, 1.0, 0.0]).nfe
    3
    """
    sigmas = check_grid(grid, schedule)
    spec = get_method(method, variant)
    if start is not None:
        one_of("start", start, STARTS)
    if vector is not None:
        one_of("vector", vector, VECTORS)
    if eta is not None:
        eta = check_eta(eta)
    if chart is not None:
        spec = replace(spec, chart=chart)  # checked like any method
    spec = _startable(spec, sigmas, start, chart, vector)
    if flag("rising", rising) and (eta or noise_std is not None or spec.adds_noise):
        name = "noise_std" if noise_std is not None else "eta" if eta else spec.name
        raise ValueError(f"{name}: step noise cannot be undone; go up with a deterministic method")
    noise = step_noise(spec.name, spec.eta, spec.takes_noise, schedule, sigmas, eta, noise_std)
    key = None if noise is None else tuple(noise.tolist())
    if spec.rises is not None:
        sigmas = _passed(spec, schedule, sigmas)
    levels = tuple((upward(sigmas) if rising else sigmas).tolist())
    return _compile(_Wanted(spec, schedule, levels, vector, start, key))


def draft(
    method: Method, schedule: Schedule, sigmas: Array, start: str | None = None
) -> tuple[Op, ...]:
    """The ops of :func:`plan` for a deterministic method, for searches that try thousands of levels.

    Args:
        sigmas: (steps+1,), as :func:`ddim_ode.grids.check_grid` returns them.

    Raises:
        ValueError: There is no such plan.
    """
    spec = _startable(method, sigmas, start)
    wanted = _Wanted(spec, schedule, tuple(sigmas.tolist()), start=start)
    steps, _ = _steps(wanted, estimates=False)
    return tuple(steps.ops)


def _startable(
    spec: Method,
    sigmas: Array,
    start: str | None,
    chart: str | None = None,
    vector: str | None = None,
) -> Method:
    """The method, from σ = inf in a chart in which it can start there. chart, vector: as asked for."""
    if not np.isinf(sigmas[0]):
        return spec
    many = start == "rk" or sigmas.size > RK_START_FROM
    named = spec.multistep and vector is not None  # the vector it stores is its chart's
    return from_infinity(spec, spec.chart if named else chart, many)


def _passed(method: Method, schedule: Schedule, sigmas: Array) -> Array:
    """The levels of a method with rises; ValueError for one above the schedule's."""
    assert method.rises is not None
    passed = method.rises.levels(sigmas)
    if (top := float(passed.max())) > max(schedule.sigma_max, sigmas[0]):
        raise ValueError(
            f"method {method.name!r} adds noise up to σ={top:g}, above the schedule's "
            f"{schedule.sigma_max:g}; start lower (sigma_max=), or lower high= of its rises"
        )
    return passed


def clear_cache() -> None:
    """Forget compiled plans: the last 256 are kept, by method, schedule, grid and options."""
    _compile.cache_clear()


class _Wanted(NamedTuple):
    """What decides a plan; noise: the standard deviation that each step adds."""

    method: Method
    schedule: Schedule
    grid: tuple[float, ...]
    vector: str | None = None
    start: str | None = None
    noise: tuple[float, ...] | None = None


@functools.lru_cache(maxsize=256)
def _compile(wanted: _Wanted) -> Plan:
    steps, start = _steps(wanted)
    return Plan(
        wanted.method.name,
        tuple(steps.ops),
        steps.vector,
        steps.chart.name,
        wanted.grid,
        wanted.schedule.fingerprint,
        start,
        steps.error_weights(),
    )


def _steps(wanted: _Wanted, estimates: bool = True) -> tuple[Steps, str | None]:
    """The steps of the plan, and how it starts."""
    method, schedule, grid, vector, start, noise = wanted
    chart = get_chart(method.chart, schedule)
    vector = vector or chart.vector
    if method.multistep and vector != chart.vector:
        raise ValueError(
            f"multistep method {method.name!r} in chart {chart.name!r} stores {chart.vector!r}, "
            f"not vector={vector!r}; drop vector="
        )
    euler = method.stages is None and not method.multistep
    if noise is not None and not (euler and chart.straight) and chart.name != "data":
        raise ValueError(
            f"step noise needs Euler in chart 'eps', 'data' or 'flow', or another method in chart 'data', "
            f"not {method.name!r} in chart {chart.name!r}"
        )
    n = len(grid) - 1
    start = _start(method, start, n, noise is not None)
    steps = Steps(schedule, chart, vector, np.array(grid), noise, estimates)
    first, last = steps.interior(method)
    if euler and chart.straight and method.rises is None:
        steps.ddim(0, n)
    else:
        steps.ddim(0, first)
        if method.multistep:
            rk = min(method.rk_steps, last - first) if start == "rk" else 0
            if rk:
                by = rk_start(method)
                steps.one_step(by, first, first + rk, get_chart(by.chart, schedule))
            steps.multistep(method, first, first + rk, last)
        elif method.rises is not None:
            steps.descents(method, first, last)
        else:
            steps.one_step(method, first, last)
        steps.ddim(last, n)
    ops = steps.ops
    if not math.isfinite(sum(op.scale + sum(op.weights) for op in ops)):
        raise ValueError(
            f"{method.name!r} in chart {chart.name!r}, storing {vector!r}, has no finite weights on the "
            f"grid {grid[0]:g} … {grid[-1]:g}; use another chart or a finite sigma_max"
        )
    return steps, start


def _start(method: Method, start: str | None, steps: int, noisy: bool) -> str | None:
    """The start as asked for, or the default where there is a choice."""
    if noisy and method.rk_steps:
        if start == "rk":
            raise ValueError(
                f"start='rk' of {method.name!r} adds no noise, and with noise the ramp has the same weak "
                "order; drop start="
            )
        return "ramp"
    if not method.rk_steps:
        if start is not None:
            raise ValueError(
                f"method {method.name!r} takes no start={start!r}: it has the order on its label without; "
                "drop start="
            )
        return None
    return start or ("rk" if steps >= RK_START_FROM else "ramp")
