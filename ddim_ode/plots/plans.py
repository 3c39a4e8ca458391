"""A picture of a plan: the levels its network is told, and what it makes of the answers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from .._base.escaping import label
from ..grids import make_grid, searched
from ..solvers.plan import Plan
from .style import EMPTY, GRIDS, INK, blank_figure, plain_numbers, rule

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..schedules.schedule import Schedule

_MOST_NUMBERS = 12  # calls, beyond which a cell has no room for its number
# inches: a cell, the least and most of a side of the heat map, the width of the levels
_CELL, _LEAST, _MOST, _LEVELS = 0.44, 2.6, 8.0, 3.6


def plan_plot(plan: Plan, schedule: Schedule | None = None) -> Figure:
    """Left: the level σ that each call is told; right: the weights, a row for each op that reads any.

    A row is divided by its own sum (the weight of an answer that stays the same), so that DDIM is 1 in the
    newest call and the negative cells are what is extrapolated with; if some row's sum nearly vanishes, all
    rows are divided by their Σ|w| instead, and the title says so. At the right: what is added of x, not
    divided. schedule: the plan's own draws the named grids of as many calls beside the levels.
    """
    rows = sum(bool(op.weights) for op in plan.ops)
    wide, tall = (max(min(_CELL * n, _MOST), _LEAST) for n in (plan.nfe, rows))
    left, between, right, bottom, top = 0.75, 1.5, 1.3, 0.55, 0.4
    width, height = left + _LEVELS + between + wide + right, bottom + max(tall, _LEAST) + top
    figure = blank_figure(width, height, dpi=130)

    def panel(x: float, w: float, h: float) -> Any:
        """Axes that hang from the top, in inches."""
        axes = figure.add_axes((x / width, 1 - (top + h) / height, w / width, h / height))
        axes.grid(False)  # whatever the reader's style says: no lines on a heat map
        return axes

    levels = panel(left, _LEVELS, min(max(tall, _LEAST), 4.2))
    weights = panel(left + _LEVELS + between, wide, tall)
    bar = panel(width - right + 0.72, 0.12, tall)
    _levels(levels, plan, schedule)
    _weights(figure, weights, bar, plan)
    return figure


def _levels(axis: Any, plan: Plan, schedule: Schedule | None) -> None:
    levels = np.array([node.sigma for node in plan.nodes])
    finite = levels[np.isfinite(levels)]
    ceiling = 3 * max(finite, default=1.0)  # where an infinite level is drawn

    def drawn(sigmas: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(np.isfinite(sigmas), sigmas, ceiling)

    calls = np.arange(1, plan.nfe + 1)
    named = {}
    if schedule is not None:
        plan.check(schedule)
        named = named_grids(schedule, plan.nfe, plan.grid[0])
    for name, sigmas in named.items():
        axis.plot(calls, drawn(sigmas), lw=1.1, **GRIDS[name], label=name, zorder=1)
    mine = label(plan.method)
    axis.plot(calls, drawn(levels), "o-", color=INK, lw=1.8, ms=4.5, label=mine, zorder=3)
    if plan.nfe <= _MOST_NUMBERS:
        for call, sigma, y in zip(calls, levels, drawn(levels)):
            axis.annotate(
                f"{sigma:.3g}" if math.isfinite(sigma) else "∞",
                (call, y),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=7.5,
                color=INK,
                bbox=dict(boxstyle="square,pad=0.1", fc="white", ec="none", alpha=0.75),
                zorder=4,
            )
    axis.set_yscale("log")
    plain_numbers(axis.yaxis)
    axis.margins(y=0.08)
    axis.set_xticks(calls[:: -(-plan.nfe // _MOST_NUMBERS)])
    axis.set_xlim(calls[0] - 0.04 * plan.nfe, calls[-1] + 0.1 * plan.nfe)
    axis.set_xlabel("network call", fontsize=8.5)
    axis.set_ylabel("σ the network is told", fontsize=8.5)
    axis.tick_params(labelsize=7.5)
    axis.set_title("Levels", fontsize=9.5, loc="left")
    rule(axis)
    axis.legend(frameon=False, fontsize=7.5, loc="lower left")


def named_grids(
    schedule: Schedule, calls: int, sigma_max: float
) -> dict[str, npt.NDArray[np.float64]]:
    """The levels of so many calls, one a step, on the grids that can start there."""
    grids = {}
    for name, _ in searched(schedule):
        try:
            grids[name] = make_grid(name, schedule, calls, sigma_max=sigma_max)[:-1]
        except ValueError:  # spaced in σ, and to start at σ = inf
            continue
    return grids


def _weights(figure: Figure, axis: Any, bar: Any, plan: Plan) -> None:
    table, names, scales = _table(plan)
    sums, sizes = np.nansum(table, axis=1), np.nansum(np.abs(table), axis=1)
    sizes[sizes == 0] = 1.0
    even = bool((np.abs(sums) > 0.05 * sizes).all())
    table = table / (sums if even else sizes)[:, None]
    most = max(float(np.nanmax(np.abs(table))), 1.0)
    axis.set_facecolor(EMPTY)  # answers that this op could not, or does not, read
    image = axis.imshow(table, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    if plan.nfe <= _MOST_NUMBERS and len(table) <= 3 * _MOST_NUMBERS:
        for i, j in np.argwhere(np.isfinite(table)):
            dark = abs(table[i, j]) > 0.6 * most
            colour = "white" if dark else INK
            axis.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", size=7, color=colour)
    if len(table) <= 2 * _MOST_NUMBERS:
        axis.set_yticks(range(len(names)), names, fontsize=7.5)
        beside = axis.twinx()
        beside.set_ylim(axis.get_ylim())
        beside.set_yticks(range(len(scales)), scales, fontsize=7)
        beside.grid(False)
        beside.tick_params(length=0)
        beside.spines[:].set_visible(False)
    else:
        axis.set_ylabel("step or stage", fontsize=8.5)
    step = -(-plan.nfe // 24)
    axis.set_xticks(range(0, plan.nfe, step), range(1, plan.nfe + 1, step), fontsize=7.5)
    axis.tick_params(length=0, labelsize=7.5)
    axis.spines[:].set_visible(False)
    axis.set_xlabel(f"answer ({plan.vector}) of call", fontsize=8.5)
    rule = "each row divided by its sum" if even else "each row divided by its Σ|w|"
    axis.set_title(f"Weights, {rule}", fontsize=9.5, loc="left")
    figure.colorbar(image, cax=bar)
    bar.tick_params(labelsize=7)
    bar.spines[:].set_visible(False)


def _table(plan: Plan) -> tuple[npt.NDArray[np.float64], list[str], list[str]]:
    """Weights by op and call, NaN where none is read; where each op goes, and what it keeps of x."""
    rows, names, scales = [], [], []
    calls = commits = 0
    for op in plan.ops:
        commits += op.commit
        if op.weights:
            row = np.full(plan.nfe, np.nan)
            for j, weight in enumerate(op.weights):
                row[calls - 1 - j] = weight if weight else np.nan
            rows.append(row)
            level = op.node.sigma if op.node else plan.grid[commits]
            names.append(f"to σ {level:.3g}" + ("" if op.commit else ", stage"))
            scales.append(f"{'−' if op.scale < 0 else '+'} {abs(op.scale):.3g} x")
        calls += op.node is not None
    return np.array(rows).reshape(len(rows), plan.nfe), names, scales
