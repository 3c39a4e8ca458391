"""Compilation: a method on a grid becomes a plan.

Two kinds of step are DDIM steps in any method: the landing on σ = 0, and a start from σ = inf (or, going
up, the last step to it) where the chart's clock or gauge or the ruler is infinite. So it is only where the
caller asks for such a chart, and on few steps (:func:`.methods.from_infinity`). They are exact for a
constant prediction. Nothing else depends on the direction: clocks, rulers and weights are signed.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .._base.checks import exclusive, flag, number, numbers, one_of
from ..grids import check_grid, upward
from ..schedules.schedule import Array, Schedule
from .builder import Steps
from .chart import VECTORS, get_chart
from .methods import RK_START_FROM, STARTS, Method, from_infinity, get_method
from .plan import Plan


def plan(
    method: str | Method,
    schedule: Schedule,
    grid: npt.ArrayLike,
    *,
    variant: str | None = None,
    start: str | None = None,
    chart: str | None = None,
    vector: str | None = None,
    eta: float | None = None,
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
        eta, noise_std: The step noise of ``ddim``, as in :func:`ddim_ode.sample`.
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
        eta = number("eta", eta)
    if chart is not None:
        spec = replace(spec, chart=chart)  # checked like any method
    if np.isinf(sigmas[0]):
        many = start == "rk" or sigmas.size > RK_START_FROM
        named = spec.multistep and vector is not None  # the vector it stores is its chart's
        spec = from_infinity(spec, spec.chart if named else chart, many)
    if flag("rising", rising) and (eta or noise_std is not None or spec.eta):
        name = "noise_std" if noise_std is not None else "eta" if eta else spec.name
        raise ValueError(f"{name}: step noise cannot be undone; go up with a deterministic method")
    noise = _step_noise(spec, schedule, sigmas, eta, noise_std)
    key = None if noise is None else tuple(noise.tolist())
    levels = tuple((upward(sigmas) if rising else sigmas).tolist())
    return _compile(spec, schedule, levels, vector, start, key)


def clear_cache() -> None:
    """Forget compiled plans: the last 256 are kept, by method, schedule, grid and options."""
    _compile.cache_clear()


def noise_bound(schedule: Schedule, sigmas: Array) -> Array:
    """The largest step noise of each step: β̄ of the level it arrives at."""
    return schedule.scales(sigmas[1:])[1]


def eta_noise(schedule: Schedule, sigmas: Array, eta: float) -> Array:
    """ς of each step for η: η β̄' √(1 − (σ'/σ)²), for VP schedules the usual
    η (β̄_{t−1}/β̄_t) √(1 − ᾱ_t²/ᾱ_{t−1}²). η = 1 is DDPM with the posterior variance."""
    ratio = sigmas[1:] / sigmas[:-1]  # 0 from σ = inf
    return eta * noise_bound(schedule, sigmas) * np.sqrt((1 - ratio) * (1 + ratio))


def _step_noise(
    method: Method,
    schedule: Schedule,
    sigmas: Array,
    eta: float | None,
    noise_std: npt.ArrayLike | None,
) -> Array | None:
    exclusive(eta=eta, noise_std=noise_std)
    if eta is None and noise_std is None:
        eta = method.eta or 0.0
    elif method.eta != 0.0:
        name = "eta" if eta is not None else "noise_std"
        raise ValueError(
            f"method {method.name!r} takes no {name}: free step noise belongs to method='ddim'"
        )
    if eta is not None:
        if not (np.isfinite(eta) and eta >= 0):
            raise ValueError(f"eta={eta!r} must be finite and >= 0 (0 is DDIM, 1 is DDPM)")
        if eta == 0:
            return None
        noise = eta_noise(schedule, sigmas, float(eta))
    else:
        noise = numbers("noise_std", noise_std)
        if noise.shape != (sigmas.size - 1,):
            raise ValueError(
                f"noise_std has shape {noise.shape}; give one standard deviation per step, "
                f"({sigmas.size - 1},)"
            )
    bound = noise_bound(schedule, sigmas)
    bad = np.flatnonzero(~((noise >= 0) & (noise <= bound * (1 + 1e-12))))
    if bad.size:
        i = int(bad[0])
        name = f"eta={eta!r} makes noise_std" if eta is not None else "noise_std"
        raise ValueError(
            f"{name}[{i}]={noise[i]:g} at σ'={sigmas[i + 1]:g}; allowed is [0, {bound[i]:g}], "
            "β̄ of the level the step arrives at"
        )
    return np.minimum(noise, bound)


@functools.lru_cache(maxsize=256)
def _compile(
    method: Method,
    schedule: Schedule,
    grid: tuple[float, ...],
    vector: str | None,
    start: str | None,
    noise: tuple[float, ...] | None,
) -> Plan:
    chart = get_chart(method.chart, schedule)
    vector = vector or chart.vector
    if method.multistep and vector != chart.vector:
        raise ValueError(
            f"multistep method {method.name!r} in chart {chart.name!r} stores {chart.vector!r}, "
            f"not vector={vector!r}; drop vector="
        )
    euler = method.stages is None and not method.multistep
    if noise is not None and not (euler and chart.straight):
        raise ValueError(
            f"step noise needs Euler in chart 'eps', 'data' or 'flow', not {method.name!r} in chart "
            f"{chart.name!r}"
        )
    n = len(grid) - 1
    start = _start(method, start, n)
    steps = Steps(schedule, chart, vector, np.array(grid))
    first, last = steps.interior(method)
    if euler and chart.straight:
        steps.ddim(0, n, noise)
    else:
        steps.ddim(0, first)
        if method.multistep:
            rk = min(method.rk_steps, last - first) if start == "rk" else 0
            if rk:
                rk_start = method.rk_start
                steps.one_step(rk_start, first, first + rk, get_chart(rk_start.chart, schedule))
            steps.multistep(method, first, first + rk, last)
        else:
            steps.one_step(method, first, last)
        steps.ddim(last, n)
    ops = steps.ops
    if not math.isfinite(sum(op.scale + sum(op.weights) for op in ops)):
        raise ValueError(
            f"{method.name!r} in chart {chart.name!r}, storing {vector!r}, has no finite weights on the "
            f"grid {grid[0]:g} … {grid[-1]:g}; use another chart or a finite sigma_max"
        )
    return Plan(
        method.name,
        tuple(ops),
        vector,
        chart.name,
        grid,
        schedule.fingerprint,
        start,
        steps.error_weights(),
    )


def _start(method: Method, start: str | None, steps: int) -> str | None:
    """The start as asked for, or the default where there is a choice."""
    if not method.rk_steps:
        if start is not None:
            raise ValueError(
                f"method {method.name!r} takes no start={start!r}: it has the order on its label without; "
                "drop start="
            )
        return None
    return start or ("rk" if steps >= RK_START_FROM else "ramp")
