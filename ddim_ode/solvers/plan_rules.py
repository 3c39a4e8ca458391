"""The rules that a plan keeps, whoever makes it: ValueErrors that name the field."""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from .ops import check_numbers, check_ops, check_sigmas, check_tuple, check_vector, refuse

_STARTS = (None, "rk", "ramp")
_DEEPEST = 16  # nesting of the data in ``fit``


def check_plan(plan: Any) -> None:
    """ValueError for the first field that is not a plan's."""
    for name in ("method", "chart", "schedule"):
        _check_name(name, getattr(plan, name))
    check_vector("vector", plan.vector)
    if not isinstance(plan.start, (str, type(None))) or plan.start not in _STARTS:
        refuse("start", plan.start, "None, 'rk' or 'ramp'")
    if not isinstance(plan.fit, (Mapping, type(None))):
        refuse("fit", plan.fit, "None or a mapping")
    _check_plain("fit", plan.fit)
    check_ops(plan.ops)
    _check_grid(plan)
    check_tuple("error_weights", plan.error_weights, 0)
    if len(plan.error_weights) not in (0, len(plan.nodes)):
        refuse("error_weights", plan.error_weights, f"empty, or {len(plan.nodes)} numbers")
    check_numbers(plan.error_weights, lambda k: f"error_weights[{k}]")


def _check_grid(plan: Any) -> None:
    grid = plan.grid
    check_tuple("grid", grid, 2)
    check_sigmas(grid, lambda i: f"grid[{i}]")
    commits = [op for op in plan.ops if op.commit]
    if len(commits) != len(grid) - 1:
        refuse("grid", grid, f"{len(commits) + 1} levels, one more than ops that commit")
    ahead, side = (operator.gt, "below") if grid[0] > grid[-1] else (operator.lt, "above")
    if not all(map(ahead, grid, grid[1:])):
        for i, (pair, op) in enumerate(zip(pairwise(grid), commits), 1):
            renoised = pair[0] < pair[1] and op.draws and not any(op.weights)
            if not (ahead(*pair) or (renoised and side == "below")):
                refuse(f"grid[{i}]", grid[i], f"{side} grid[{i - 1}]={grid[i - 1]:g}")


def _check_name(field: str, value: Any) -> None:
    """A name goes into terminals, pages and pictures: no control characters."""
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 200:
        refuse(field, value, "a string of 1 to 200 printable characters")


def _check_plain(field: str, value: Any, depth: int = 0) -> None:
    """Whatever a fit says: of limited depth, numbers that a float can hold, and strings that are text."""
    if depth > _DEEPEST:
        refuse(field[:80], value, f"nested at most {_DEEPEST} deep")
    if isinstance(value, str) and not value.replace("\n", "").isprintable():
        refuse(field, value, "printable text")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        refuse(field, value, f"a number up to {sys.float_info.max:.2g}")
    if isinstance(value, Mapping):
        for key in value:
            _check_name(f"a key of {field}", key)
            _check_plain(f"{field}.{key}", value[key], depth + 1)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_plain(f"{field}[{i}]", item, depth + 1)
