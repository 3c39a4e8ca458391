"""Samples by their index: what one process of a large run calls, batch after batch.

Sample i has seed ``seed + i`` and the conditions of index i. Nothing else decides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._base.checks import refuse
from .._base.digests import digest
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import Cond, conditions
from ..denoising.problem import Problem
from ..denoising.seeding import GENERATOR, noise
from ..solve.cuda_graph import GraphedPlan, check_graphable
from ..solve.near import Near, of_plan, of_rows, of_shared
from ..solve.planning import plan_of
from ..solve.request import Request, is_external, is_fixed_step
from ..solve.sampling import sample
from ..solve.solution import Solution
from ..solvers.controller import NON_FINITE, SUCCESS
from ..solvers.plan import Plan


class Conditions:
    """Rows of conditions, by index."""

    def __init__(self, cond: Cond | None, n: int, device: torch.device) -> None:
        self._cond = cond if callable(cond) else conditions(cond, n, torch.device("cpu"))
        self.n, self._device = n, device

    def __call__(self, index: Sequence[int]) -> dict[str, Tensor] | None:
        where, cond = torch.tensor(index, dtype=torch.long), self._cond
        if cond is None:
            return None
        rows = cond(where) if callable(cond) else {k: v[where] for k, v in cond.items()}
        return conditions(rows, len(index), self._device)

    def described(self) -> list[Any] | None:
        """What is known of all rows: names, types, shapes, and the values that are given and not computed.

        Each row is known by :func:`ddim_ode.solve.near.of_rows`, where it is used.
        """
        rows = self([0])
        if rows is None:
            return None
        values = {} if callable(self._cond) or self._cond is None else self._cond
        exact = {name: digest(v) for name, v in values.items() if not v.is_floating_point()}
        return [
            [name, str(value.dtype), list(value.shape[1:]), exact.get(name)]
            for name, value in sorted(rows.items())
        ]


@dataclass
class IndexedSolver:
    """``solver(index)``: x (b, *shape) on the CPU and the statuses, of the samples of those indices.

    rows: the most indices at once. options: of :func:`ddim_ode.sample`, with ``method``; all that it
    refuses is refused here, before the first network call. plan: what runs, None for an adaptive solve.
    start: the level that it starts from.
    """

    model: Denoiser
    shape: tuple[int, ...]
    seed: int
    cond: Conditions
    shared: Mapping[str, Any] | None
    device: torch.device
    rows: int
    cuda_graph: bool
    options: dict[str, Any]

    def __post_init__(self) -> None:
        options, start = self.options, self.options.get("sigma_max")
        schedule = self.model.schedule
        self.start = self.model.sigma_max if start is None else schedule.level(start, "sigma_max")
        self.plan = self._checked()
        if self.plan is not None:
            on_nan = options.get("on_nan")
            self.options = dict(plan=self.plan) | ({} if on_nan is None else dict(on_nan=on_nan))
            self.start = self.plan.grid[0]
        elif not is_external(options["method"]):
            self.options = dict(options, dense=False)
        if self.rows > 1 and self._couples():
            raise ValueError(
                f"{options['method']} takes the same steps for a whole batch, so a sample would depend on "
                "its company: give batch=1, or take a solver with steps for each sample, such as rk45"
            )
        self._graph: GraphedPlan | None = None
        if self.cuda_graph:
            refuse("a graph records no checks between steps", on_nan=options.get("on_nan"))
            check_graphable(self.plan, self.device)

    def _checked(self) -> Plan | None:
        """The plan that runs, None for an adaptive solve, without a call of the network.

        ValueError for options that ``sample`` refuses, and conditions that the network does.
        """
        options = dict(self.options, seeds=[])
        request = Request.of(self.model, self._noise([]), options.pop("method"), options)
        if request.kind not in ("plan", "fixed"):
            return self._sample([]).plan
        plan = plan_of(request)
        self.part([0]).bind(plan.nodes, self._noise([0]))
        return plan

    def _couples(self) -> bool:
        method = self.options.get("method")
        if self.plan is not None or not is_external(method):
            return self.options.get("error_norm") == "batch"
        return not is_fixed_step(str(method))

    def conditions(self, rows: Mapping[str, Tensor] | None) -> Near:
        """What tells these conditions, and what is shared, from others."""
        return of_rows({**(rows or {}), **of_shared(self.shared)[1]})

    def described(self) -> dict[str, Any]:
        """The solver, as plain data that two runs share exactly when they solve alike."""
        facts = {k: v for k, v in self.options.items() if v is not None and k != "dense"}
        facts["generator"] = GENERATOR
        if (plan := facts.pop("plan", None)) is not None:
            exact, numbers = of_plan(plan)
            plain = [x if np.isfinite(x) else str(x) for x in numbers]  # as JSON has them
            facts |= dict(method=plan.method, nfe=plan.nfe) | plan.to_dict()
            facts |= dict(weights=digest(exact), numbers=plain)
        else:
            facts["sigma_max"] = self.start if np.isfinite(self.start) else "inf"
        return {name: _plain(value) for name, value in facts.items()}

    def __call__(self, index: Sequence[int]) -> tuple[Tensor, list[str]]:
        if self.cuda_graph:
            assert self.plan is not None
            x, part = self._noise(index), self.part(index)
            if self._graph is None:
                self._graph = GraphedPlan(part.model, self.plan, x, **part.conditions)
            if self._graph.fits(x):
                end, finite = self._graph(x, part.cond, part.model)
                return end.cpu(), [SUCCESS if good else NON_FINITE for good in finite.tolist()]
        sol = self._sample(index)
        return sol.x.cpu(), sol.status.tolist()

    def _sample(self, index: Sequence[int]) -> Solution:
        part = self.part(index)
        x, seeds = self._noise(index), self._seeds(index)
        return sample(part.model, x, seeds=seeds, **part.conditions, **self.options)

    def part(self, index: Sequence[int]) -> Problem:
        """The model and the conditions of these samples."""
        cond, where = self.cond(index), torch.tensor(index, dtype=torch.long)
        return Problem(self.model.of_samples(where, self.cond.n, cond), cond, self.shared)

    def _noise(self, index: Sequence[int]) -> Tensor:
        seeds = self._seeds(index)
        return noise(self.shape, self.model.schedule, seeds, self.start, self.device)

    def _seeds(self, index: Sequence[int]) -> list[int]:
        return [self.seed + i for i in index]


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    plain = value is None or isinstance(value, (int, float, str, list))
    return value if plain else repr(value)
