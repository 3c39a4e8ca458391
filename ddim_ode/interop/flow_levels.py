"""Where a flow-matching scheduler steps, and what it tells the network there.

Its σ is a share of noise f in [0, 1], or with ``invert_sigmas`` 1 − f; our level is f/(1 − f).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .._base.checks import number, shown
from .._base.warn import warn
from ..schedules.schedule import Array, Schedule
from ..solvers.compilation import plan as compile_plan
from ..solvers.ops import Node, Op
from ..solvers.plan import Plan

_FAR = 0.05  # of a level: what is below is out of reach of an extrapolation in ln σ
Told = Mapping[float, float] | None  # by level, times that a pipeline gives beside its σ


class Clock(NamedTuple):
    """The network's time, of ``T`` training times, rising with the noise or, inverted, falling."""

    T: int
    inverted: bool

    def told(self, t: Array, sigma: Array) -> Array:
        """The network's time at schedule times t."""
        return self.T * self.turned(t)

    def turned(self, f: Array) -> Array:
        """Their σ as the share of noise, and back."""
        return 1 - f if self.inverted else f

    def level(self, times: Array, told: Told) -> Array:
        """The share of noise (n,) at network times (n,); ValueError for a time of no level."""
        if told is not None:
            known = np.array(list(told.values()))
            near = np.abs(known - times[:, None]).argmin(1)
            if (np.abs(known[near] - times) < 1e-3).all():
                levels = np.array(list(told))[near]
                return np.where(np.isinf(levels), 1.0, levels / (1 + levels))
        off = ~((times >= 0) & (times <= self.T * (1 + 1e-6)))
        if off.any():
            raise ValueError(f"timestep: {times[off].flat[0]:g} must be in [0, {self.T:g}]")
        return self.turned(np.minimum(times / self.T, 1.0))


def levels_by(
    name: str, source: Any, place: Callable[..., None], given: Mapping[str, Any], clock: Clock
) -> tuple[Array, Told]:
    """σ (N+1,) where a scheduler's own arithmetic steps, and what it tells the network there if that is not
    the time of the level.

    Args:
        name: Of its class.
        source: The scheduler; ``place(**given)`` sets its ``sigmas`` and ``timesteps``.
        place: Its ``set_timesteps``.
        given: ``num_inference_steps``, ``sigmas``, ``mu``, ``timesteps``; None for what is not given.
        clock: What the network is told.

    Raises:
        ValueError: It takes no such argument, fails, or its levels do not fall within [0, 1].
    """
    given = {key: value for key, value in given.items() if value is not None}
    for key in given.keys() - inspect.signature(place).parameters.keys():
        raise ValueError(f"{key}=: {name}, which places the levels, takes none; drop it")
    calls = given["num_inference_steps"]
    if name != "FlowMatchEulerDiscreteScheduler" and given.keys() & {"sigmas", "timesteps"}:
        del given["num_inference_steps"]  # theirs take one or the other
    how = f"mu={given['mu']:g}" if "mu" in given else f"shift={source.config.get('shift')}"
    try:
        with np.errstate(all="ignore"):
            place(**given)
    except Exception as error:  # of many kinds, by which setting is wrong
        raise ValueError(f"{name} cannot place {calls} levels at {how}: {error}") from error
    f = clock.turned(np.asarray(source.sigmas.double().cpu().numpy()))
    times = np.asarray(source.timesteps.double().cpu().numpy())
    if f.size > 2 and f[-1] == f[-2]:  # it stops there; the answer there is as good for a landing
        f = f[:-1] if f[-1] == 0 else np.append(f[:-1], 0.0)
        times = times[: f.size - 1]
    if not ((f >= 0) & (f <= 1)).all() or not (np.diff(f) < 0).all():
        raise ValueError(
            f"{calls} calls at {how} step through σ={shown(f.tolist(), 200)}, which must fall from each to "
            "the next within [0, 1], in float32; give another shift, other sigmas, or fewer calls"
        )
    with np.errstate(divide="ignore"):
        levels = f / (1 - f)
    if given.get("timesteps") is None or np.allclose(times, clock.told(f[:-1], levels), 0, 1e-3):
        return levels, None
    return levels, dict(zip(levels[:-1].tolist(), times.tolist()))


def through_stages(stages: Sequence[Node], tail: Plan, schedule: Schedule) -> Plan:
    """A plan that begins at the first of some calls inside of a step.

    Args:
        stages: These calls, to the step's end. Each lower level is reached by Euler's method; a call that
            is no lower than the one before counts for nothing.
        tail: The plan from the end of that step on.
        schedule: Of both.
    """
    first, *others = (node._replace(vector=tail.vector) for node in [*stages, tail.nodes[0]])
    ops, grid, age = [Op(1.0, (), first, False, 0.0)], [first.sigma], 0
    for node in others:
        op, lower = ops[0], node.sigma < grid[-1]
        if lower:
            levels = (grid[-1], node.sigma)
            op = compile_plan("ddim", schedule, levels, vector=tail.vector).ops[-1]
            op = op._replace(weights=(*(0.0,) * age, *op.weights))
            grid.append(node.sigma)
        ops.append(op._replace(node=node))
        age = 0 if lower else age + 1
    ops += tail.ops[1:]
    return replace(tail, ops=tuple(ops), grid=(*grid, *tail.grid[1:]), error_weights=())


def ends_far(grid: Array) -> bool:
    """Whether the last level above 0 is far below the one before."""
    return len(grid) > 2 and grid[-1] == 0 and bool(grid[-2] < _FAR * grid[-3] < np.inf)


def ended_by_euler(build: Callable[..., Plan], grid: Array, schedule: Schedule) -> Plan:
    """``build(grid=...)`` of all levels but the last above 0, and that one by Euler's method."""
    plan = build(grid=np.delete(grid, -2))
    last = compile_plan("ddim", schedule, grid[-3:], vector=plan.vector).ops[1:]
    ops = (*plan.ops[:-1], *last)
    return replace(plan, ops=ops, grid=tuple(grid.tolist()), error_weights=())


def place_of(timestep: Any, times: Tensor, plan: Plan) -> int:
    """Where a time is in the list (nfe,) of a plan's: by its memory, which its parts share with it, or else
    by its value; 0 if it is not there. ValueError for what is no number."""
    if isinstance(timestep, Tensor) and timestep.numel() == 1:
        if timestep.untyped_storage().data_ptr() == times.untyped_storage().data_ptr():
            return int(timestep.storage_offset() - times.storage_offset())
        if timestep.device.type == times.device.type == "cpu":
            timestep = timestep.item()
    if times.device.type != "cpu" or isinstance(timestep, Tensor):
        return 0
    t = np.float32(number("timestep", timestep))
    equal = np.flatnonzero(times.numpy() == t).tolist()
    of_levels = [k for k in equal if k in plan.level_calls()]
    return next(iter(of_levels or equal), 0)


def warn_of_another_place(plan: Plan, key: str, here: Any) -> None:
    """Warn if a calibrated plan says that it was fitted at another shift, mu or shape.

    Args:
        plan: With a fit that may say so under ``key``, numbers by name or a list of them.
        key: ``"placing"`` or ``"shape"``.
        here: The same of this run.
    """
    fitted = (plan.fit or {}).get(key)
    if not isinstance(fitted, type(here)) or _equal(fitted, here):
        return
    warn(
        f"{plan.method} was calibrated at {key} {fitted} and runs at {here}, for which its gain was not "
        "measured: another size of picture, or another shift, has a plan of its own (ddim_ode.calibrate)"
    )


def _equal(fitted: Any, here: Any) -> bool:
    if isinstance(here, Mapping):
        return fitted.keys() == here.keys() and all(_equal(fitted[key], here[key]) for key in here)
    if isinstance(here, float) and isinstance(fitted, (int, float)):
        return abs(fitted - here) <= 1e-3 * abs(here)
    return bool(fitted == here)
