"""One direction of the ODE between two levels > 0: the dispatch behind ``encode`` and ``decode``.

It decides as :func:`ddim_ode.sample` does, with levels that may rise and without what cannot be undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .._base.checks import exclusive, flag, refuse
from ..denoising.denoiser import Denoiser
from ..grids import check_grid, upward
from ..schedules.schedule import Array
from ..solvers.compilation import plan as compile_plan
from ..solvers.methods import Method, get_method
from ..solvers.plan import Plan
from . import adaptive, external, reversible
from .levels import Levels
from .plan_checks import check_plan
from .sampling import NOT_ADAPTIVE, check_watching, compile_for, run_plan
from .solution import Solution


@dataclass(frozen=True)
class Task:
    """How to solve, but for the direction; the arguments of :func:`encode` of those names."""

    method: str | Method | None
    placing: Mapping[str, Any]  # steps, nfe, grid, timesteps, sigma_max, sigma_min
    plan: Plan | None
    fixed: Mapping[str, Any]  # variant, start, chart
    tolerances: tuple[float | None, float | None]
    adaptive: Mapping[str, Any]  # max_nfe, error_norm, dense
    watching: Mapping[str, Any]  # progress, callback, record, on_nan
    cond: Mapping[str, Tensor] | None
    shared: Mapping[str, Any] | None

    @property
    def reversible(self) -> bool:
        return isinstance(self.method, str) and self.method.split(":")[0] == reversible.NAME


def solve(task: Task, model: Denoiser, x: Tensor, partner: Tensor | None, rising: bool) -> Solution:
    """One direction: what ``sample`` decides on the way down, with levels that may rise."""
    watching, method = task.watching, task.method
    check_watching(**watching)
    exclusive(plan=task.plan, method=method)
    untimed = dict(zip(("rtol", "atol"), task.tolerances), **task.adaptive)
    watched = dict(
        callback=watching["callback"],
        record=None if watching["record"] == "none" else watching["record"],
        on_nan=None if watching["on_nan"] == "report" else watching["on_nan"],
    )
    if not task.reversible:
        refuse("only method='reversible' has a second state", partner=partner)
    if task.plan is not None:
        refuse("plan= already fixes how and where to step", **task.placing, **task.fixed)
        refuse(NOT_ADAPTIVE, **untimed)
        return _run(task, model, x, directed(task.plan, model, rising))
    levels = _levels(task, model, rising)
    run = (task.cond, task.shared, watching["progress"])
    if task.reversible:
        others = {k: v for k, v in task.fixed.items() if k != "chart"}
        refuse(
            f"{method} has one way to step, and keeps no trajectory", **untimed, **watched, **others
        )
        return reversible.solve(model, x, partner, str(method), task.fixed["chart"], levels, *run)
    if external.is_external(method):
        others = {k: v for k, v in task.adaptive.items() if k != "max_nfe"}
        refuse(f"{method} solves the ODE by its own steps", **task.fixed, **watched, **others)
        limit = task.adaptive["max_nfe"]
        return external.sample(model, x, str(method), levels, task.tolerances, limit, None, *run)
    spec = get_method("ddim" if method is None else method, task.fixed["variant"])
    asked = any(v is not None for v in (*task.tolerances, task.adaptive["max_nfe"]))
    if adaptive.is_adaptive(spec, asked, levels.placed):
        refuse(
            f"{spec.name} solves adaptively, in its own chart (steps= makes it a fixed plan)",
            start=task.fixed["start"],
            chart=task.fixed["chart"],
            callback=watching["callback"],
        )
        exclusive(nfe=levels.nfe, max_nfe=task.adaptive["max_nfe"])
        (rtol, atol), dense = task.tolerances, task.adaptive["dense"]
        options = adaptive.Options(
            adaptive.tolerance("rtol", rtol),
            adaptive.tolerance("atol", atol),
            task.adaptive["max_nfe"],
            adaptive.error_norm(task.adaptive["error_norm"]),
            watching["record"],
            dense is None or flag("dense", dense),
        )
        return adaptive.solve(model, x, spec, levels, options, None, *run)
    refuse(NOT_ADAPTIVE, **untimed)
    start, chart = task.fixed["start"], task.fixed["chart"]
    noise = None if spec.eta in (None, 0.0) else spec.name
    refuse("step noise cannot be undone", method=noise)
    return _run(task, model, x, compile_for(spec, levels, start, chart, None, None))


def _levels(task: Task, model: Denoiser, rising: bool) -> Levels:
    grid = task.placing.get("grid")
    named = grid is None or isinstance(grid, str)
    if grid is not None and not named:
        upward(check_grid(grid, model.schedule))
    return Levels(model, **task.placing, final="sigma_min" if named else None, rising=rising)


def directed(plan: Plan, model: Denoiser, rising: bool) -> Plan:
    """The plan itself if it goes that way between levels > 0, else its method compiled to do so.

    ValueError for step noise, and for a plan that is not what compiling its own method gives.
    """
    check_plan(plan, model)
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


def _run(task: Task, model: Denoiser, x: Tensor, plan: Plan) -> Solution:
    how = task.watching
    watching = (how["progress"], how["callback"], how["record"], how["on_nan"] == "hold")
    return run_plan(model, x, plan, None, task.cond, task.shared, *watching)
