"""Numbers that are the same up to rounding: what two processors compute is compared, and never hashed.

The last bits of computed numbers differ between processors, and a hash with them; a hash of rounded numbers
too, for those at a boundary. So a name holds what is exact (parameters, weights, seeds), and computed
numbers are kept beside it and compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.digests import digest
from ..schedules.schedule import Array
from ..solvers.plan import Plan

PLAN = 1e-6  # relative, of a plan's numbers; and 1e-12 of the largest of them, where they cancel
_DIRECTIONS = 4
_NAN, _INF = 1.234e5, 5.678e5  # what stands for them in a projection: nothing else is as large
# Of conditions in half precision, which are given and not computed on the way: two units in the last place.
_HALF = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# By how much two machines may differ, relative to the size of what a network of that precision returns.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class Near(NamedTuple):
    """values (n,), and by how much each of them may differ (n,)."""

    values: Array
    within: Array

    @classmethod
    def of(cls, values: npt.ArrayLike, tolerance: float, floor: float = 1.0) -> Near:
        """tolerance: relative to each value, or where that is more, to ``floor`` × the largest."""
        values = np.asarray(values, dtype=np.float64).reshape(-1)
        size = np.where(np.isfinite(values), np.abs(values), 0.0)
        return cls(values, tolerance * np.maximum(size, floor * size.max(initial=0.0)))

    @classmethod
    def joined(cls, *parts: Near) -> Near:
        return cls(*(np.concatenate(column) for column in zip(*parts)))

    def agrees(self, values: npt.ArrayLike) -> bool:
        """Whether those are the same numbers."""
        other = np.asarray(values, dtype=np.float64).reshape(-1)
        if other.shape != self.values.shape:
            return False
        with np.errstate(invalid="ignore"):  # inf − inf
            close = np.abs(other - self.values) <= self.within
        same = (other == self.values) | (np.isnan(other) & np.isnan(self.values))
        return bool(np.all(close | same))


NOTHING = Near.of([], 0.0)


def rounding(dtype: torch.dtype, device: str = "cpu") -> float:
    """How far apart two machines are, relative to what they compute in that precision.

    float32 off the CPU counts as half precision: convolutions multiply in TF32 there by default.
    """
    if dtype == torch.float32 and device != "cpu":
        dtype = torch.float16
    return _ROUNDING.get(dtype, 0.0)


def pattern(*shape: int) -> Array:
    """Numbers of mean 0 and variance 1 that every machine draws alike, to the last bit."""
    draws = np.random.PCG64(0).random_raw(math.prod(shape)) >> np.uint64(11)  # uniform, of 53 bits
    return ((draws * 2.0**-52 - 1.0) * math.sqrt(3.0)).reshape(shape)


def projections(rows: Tensor) -> Array:
    """(b, 4): each row of (b, *) along fixed directions. Where rows differ, they do, by as much."""
    flat = rows.detach().cpu().double().reshape(len(rows), -1).numpy()
    size = flat.shape[1]
    flat = np.nan_to_num(flat, nan=_NAN, posinf=_INF, neginf=-_INF)
    return np.asarray(flat @ pattern(_DIRECTIONS, size).T / math.sqrt(max(size, 1)))


def of_rows(cond: Mapping[str, Tensor] | None) -> Near:
    """Conditions (b, ...): whole numbers exactly, floating ones up to rounding."""
    parts = [NOTHING]
    for name, value in sorted((cond or {}).items()):
        computed = value.is_floating_point()
        exact = digest(name, str(value.dtype), list(value.shape), None if computed else value)
        parts.append(Near.of(int(exact[:13], 16), 0.0))  # which float64 holds
        if computed:
            tolerance = _HALF.get(value.dtype, rounding(value.dtype))
            parts += [Near.of(row, tolerance) for row in projections(value)]
    return Near.joined(*parts)


def of_shared(shared: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is exact of what all samples share, and what is computed of it, as rows of one."""
    exact, computed = dict(shared or {}), dict[str, Tensor]()
    for name, value in exact.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            exact[name], computed[name] = None, value[None]
    return exact, computed


def of_plan(plan: Plan) -> tuple[list[Any], list[float]]:
    """A plan as what is exact of it, and its numbers."""
    exact: list[Any] = [plan.vector, plan.schedule]
    numbers: list[float] = list(plan.grid)
    for op in plan.ops:
        noise = op.noise if isinstance(op.noise, tuple) else (op.noise,)
        exact.append([len(op.weights), op.node and op.node.vector, op.commit])
        exact[-1] += [len(noise)] if isinstance(op.noise, tuple) else []
        numbers += [op.scale, *op.weights, *noise, *(op.node[:2] if op.node else ())]
    return exact, numbers
