"""How far a plan is from the textbook: the registered method nearest to it on its own grid.

A deterministic plan is a table of numbers (table.py). Here it is written in x̂₀, whatever vector the plan
stores: in ε̂ the first step from a high σ would outweigh all others. All rows count, since in x̂₀ every
method that lands by DDIM has the same last row, the x̂₀ of its last call.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..schedules.schedule import Array, Schedule
from .chart import convert
from .compilation import plan as compile_plan
from .methods import METHODS
from .plan import Plan
from .table import states


class Nearest(NamedTuple):
    """A method's name, and the distance of a plan from it."""

    name: str
    distance: float

    def __str__(self) -> str:
        return (
            f"{self.name} on the same grid, at a distance of {self.distance:.2g} (0: the same numbers, 1: "
            "as far as zeros)"
        )


def nearest(plan: Plan, schedule: Schedule) -> Nearest | None:
    """The nearest deterministic method of the registry, compiled on the plan's own grid.

    It compares the methods that make the same calls there: as many, each at the same σ. With A and B the
    two tables (c_k, W_kj) of the rows after the start, each row divided by the size √(ᾱ²+β̄²) of a state at
    its level (and c_k multiplied by that of x_T), the distance is ‖A − B‖/‖B‖ in the Frobenius norm: the
    relative RMS difference, 1 for a plan of nothing but zeros, more for a calibrated plan that tells the
    network other levels than its state is at. A plan whose first call is told a level below the start is
    compared from that call on.

    Args:
        plan: The plan.
        schedule: That of its model.

    Returns:
        The method's name and the distance; None for a plan with step noise, or if no method makes the same
        calls.

    Raises:
        ValueError: The plan is of another schedule.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.cosine()
    >>> nearest(ddim_ode.plan("ab2", schedule, [9.0, 3.0, 1.0, 0.3, 0.0]), schedule).name
    'ab2'
    """
    plan.check(schedule)
    if plan.is_stochastic:
        return None
    levels = np.array([node.sigma for node in plan.nodes])
    ours = _table(plan, schedule)
    grid = (plan.nodes[0].sigma, *plan.grid[1:])
    candidates = []
    for method in METHODS.values():
        for start in ("ramp", "rk") if method.rk_steps else (None,):
            if method.order is None:
                continue
            try:
                other = compile_plan(method, schedule, grid, start=start)
            except ValueError:  # no finite weights on this grid, or a chart of other schedules
                continue
            if other.nfe != plan.nfe:
                continue
            theirs = np.array([node.sigma for node in other.nodes])
            if not np.allclose(theirs, levels, rtol=1e-9, atol=0.0):
                continue
            table = _table(other, schedule)
            distance = float(np.linalg.norm(ours - table) / np.linalg.norm(table))
            candidates.append(Nearest(method.name, distance))
    # With one or two steps several methods are the same numbers: then the plan's own name.
    return min(
        candidates, key=lambda f: (round(f.distance, 12), f.name != plan.method), default=None
    )


def _table(plan: Plan, schedule: Schedule) -> Array:
    """Rows (c, W_0, W_1, ...) of the states shown to calls 1, 2, ... and of the end, each over its size."""
    unit, levels = np.eye(1 + plan.nfe), [node.sigma for node in plan.nodes]

    def answer(k: int, y: Array) -> Array:
        node = plan.nodes[k]
        a, b = convert("x0", node.vector, *schedule.scales(np.array([node.sigma])))
        return np.asarray(a[0] * y + b[0] * unit[k + 1])

    sizes = np.array([_size(sigma, schedule) for sigma in (*levels, plan.grid[-1])])
    table = (np.array(states(plan.ops, unit[0], answer)) / sizes[:, None])[1:]
    table[:, 0] *= sizes[0] / plan.ops[0].scale
    return table


def _size(sigma: float, schedule: Schedule) -> float:
    return float(np.hypot(*schedule.scales(sigma)))
