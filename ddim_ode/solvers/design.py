"""Grids made for a model: the levels at which a surrogate says that a method errs least.

A grid of n levels is a curve r(q), q = 0 … 1, through n evenly spaced points: monotone, through a few knots
that are free, from the start to a last level that is free, too. The search begins with the best named grid
and goes on by Nelder and Mead's simplex, whose function costs no network call. A few knots instead of free
levels keep neighbouring steps alike, which multistep methods need, and leave little to fit by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from ..grids import make_grid, searched
from ..schedules.schedule import Array
from .compilation import draft
from .methods import Method
from .surrogate import Surrogate

# last levels of named grids, in units of the schedule's least_cut; those first that usually do well
CUTS = (5, 20, 1, 40, 2, 10, 3, 80)
_KNOTS = 5
# Of the first simplex: of a knot's log share, and of the last level in r.
_MOVE, _MOVE_END = 0.5, 0.7
_STEEPEST = 6.0  # between two shares, as a logarithm
_SHORTEST = 0.5  # of the whole, in r


class Design(NamedTuple):
    """levels: the grid. error: that the surrogate expects. source: the grid's name, or where it is from,
    "named" or "fitted"."""

    levels: Array
    error: float
    source: str


def expected(
    surrogate: Surrogate,
    method: Method,
    levels: Array,
    astray: float = 1.0,
    begin: str | None = None,
) -> float:
    """The error that the surrogate expects of the method on a grid; inf where there is no such plan.

    begin: how a multistep method begins, ``start`` of :func:`ddim_ode.plan`.
    """
    if not np.all(np.diff(levels) < 0):
        return math.inf
    try:
        ops = draft(method, surrogate.schedule, levels, begin)
    except ValueError:
        return math.inf
    error = surrogate.error_of(ops, levels.tolist(), astray)
    return error if math.isfinite(error) else math.inf


def named(
    surrogate: Surrogate,
    steps: int,
    top: float | None = None,
    last: float | None = None,
    lands: bool = True,
) -> Iterator[tuple[str, Array]]:
    """The named grids of so many steps, with their names.

    top: where they start (default: where the surrogate does). last: the last level above 0 (default:
    several). lands: whether σ = 0 comes after it.
    """
    schedule = surrogate.schedule
    ends = [last] if last is not None else [cut * schedule.least_cut for cut in CUTS]
    options = dict(
        final="zero" if lands else "sigma_min",
        sigma_max=float(surrogate.levels[0]) if top is None else top,
    )
    for name, cuts in searched(schedule):
        to_zero = not cuts and lands
        if to_zero and last is not None:
            continue
        for cut in [None] if to_zero else ends:
            try:
                levels = make_grid(name, schedule, steps, sigma_min=cut, **options)  # type: ignore[arg-type]
            except ValueError:  # it has no such range
                continue
            yield name if cut is None else f"{name}, σ_min {cut:.3g}", levels


def designed(
    surrogate: Surrogate,
    method: Method,
    start: Array,
    *,
    free: bool = True,
    astray: float = 1.0,
    begin: str | None = None,
    tries: int = 100,
) -> Design:
    """The grid on which the surrogate expects the method to err least, found from ``start``.

    It has the same number of steps and the same first level. free: whether the last level above 0 may move.
    """
    ruler, lands = surrogate.ruler, start[-1] == 0
    positive = start[start > 0]
    n, top, bottom = len(positive), start[0], float(surrogate.levels[-1])
    unchanged = Design(start, expected(surrogate, method, start, astray, begin), "named")
    if n < 3 - free:
        return unchanged
    r = ruler.of(positive)
    shares = np.diff(np.interp(np.linspace(0, 1, _KNOTS + 1), np.linspace(0, 1, n), r)) / (
        r[-1] - r[0]
    )
    first = np.log(np.maximum(shares, 1e-3))
    if free:
        first = np.append(first, r[-1])

    at = np.linspace(0, 1, n)

    def grid(point: Array) -> Array:
        share, end = (point[:-1], point[-1]) if free else (point, r[-1])
        passed = np.append(0.0, np.cumsum(np.exp(share - share.max())))
        levels = ruler.inverse(r[0] + (end - r[0]) * monotone(passed / passed[-1], at))
        levels[0] = top
        if not free:
            levels[-1] = positive[-1]
        return np.append(levels, 0.0) if lands else levels

    def loss(point: Array) -> float:
        share = point[:-1] if free else point
        low = ruler.of(bottom) - 1e-9
        if np.ptp(share) > _STEEPEST or (free and not low <= point[-1] <= r[0] - _SHORTEST):
            return math.inf
        return math.log(expected(surrogate, method, grid(point), astray, begin) + 1e-300)

    moves = np.diag([_MOVE] * _KNOTS + [_MOVE_END] * free)
    simplex = np.vstack([first, first + moves])
    options = dict(maxfev=tries, initial_simplex=simplex, xatol=1e-3, fatol=1e-3)
    with np.errstate(invalid="ignore"):  # inf − inf between two points that are none
        best = minimize(loss, first, method="Nelder-Mead", options=options)
    if not best.fun < math.log(unchanged.error + 1e-300):
        return unchanged
    return Design(grid(best.x), math.exp(best.fun), "fitted")


def monotone(values: Array, at: Array) -> Array:
    """The monotone cubic (Fritsch and Butland 1984) through rising values (m+1,), evenly spaced on [0, 1].

    It is scipy's PchipInterpolator, which checks for longer than all the rest of a trial takes.
    """
    rise = np.diff(values)
    slope = np.empty_like(values)
    slope[1:-1] = 2 * rise[1:] * rise[:-1] / (rise[1:] + rise[:-1])
    slope[0], slope[-1] = (max(1.5 * a - 0.5 * b, 0.0) for a, b in (rise[:2], rise[:-3:-1]))
    place = at * len(rise)
    k = np.minimum(place.astype(int), len(rise) - 1)
    u = place - k
    bent = (slope[k] - rise[k]) * (1 - u) - (slope[k + 1] - rise[k]) * u
    return np.asarray(values[k] + u * (rise[k] + (1 - u) * bent))
