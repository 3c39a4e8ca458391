"""Where a profile's noises go, and by how much that errs: what its screens are held against.

A solver's own estimate misses what is rough between its levels, such as a network that reads its time
through fast sines. So a few of the noises are solved again in twice the calls; and where plans come nearer
to the ends than these may err, all noises are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..denoising.problem import Problem
from ..solve.look import FINE, Look, finest
from ..solve.loop import integrate
from ..solve.reference import in_float64
from ..solve.solution import norm_per_sample
from ..solvers.plan import Plan
from ..solvers.surrogate import Surrogate

CHECKED = 4  # one noise of so many is solved again
MOST = 4 * FINE  # calls


def calls_of_check(n: int, calls: int) -> int:
    """Calls, of all noises together, that it takes to check n of them, solved in so many each."""
    return max(1, n // CHECKED) * 2 * calls


@dataclass(frozen=True, eq=False)
class Ends:
    """x (n, *) ends at ``values``, float64 on the CPU, NaN where that is not finite; ``error``: the RMS by
    which these err, on the mean; in ``calls`` of ``solver``; ``net_evals``: rows the network processed."""

    problem: Problem
    x: Tensor
    surrogate: Surrogate
    batch: int
    observe: Callable[[int], object]
    values: Tensor
    error: float
    calls: int
    solver: str
    net_evals: int

    @classmethod
    def of(
        cls,
        look: Look,
        problem: Problem,
        x: Tensor,
        batch: int,
        observe: Callable[[int], object],
    ) -> Ends:
        """Those of a look, checked."""
        about = (look.ends, look.error, FINE, look.solver, look.net_evals)
        return cls(problem, x, look.surrogate, batch, observe, *about)._checked()

    @property
    def lost(self) -> list[int]:
        """The noises without a finite end."""
        return torch.nonzero(~self._finite)[:, 0].tolist()

    @property
    def _finite(self) -> Tensor:
        return torch.isfinite(self.values.flatten(1)).all(dim=1)

    @property
    def can_be_finer(self) -> bool:
        """Whether twice the calls are no more than are worth it, and more than the trained levels."""
        schedule, snap = self.problem.model.schedule, self.problem.model.snap
        return self.calls < MOST and not (snap and len(schedule.levels) <= self.calls)

    def finer(self) -> Ends:
        """All noises in twice the calls, checked."""
        calls = 2 * self.calls
        plan = finest(self.problem.model, self.surrogate, calls)
        values, rows = self._solved(plan, torch.arange(len(self.x)))
        said = f"{plan.method}, {plan.nfe} calls"
        return replace(
            self, values=values, error=0.0, calls=calls, solver=said, net_evals=rows
        )._checked()

    def _checked(self) -> Ends:
        few = torch.nonzero(self._finite)[: max(1, len(self.x) // CHECKED), 0]
        plan = finest(self.problem.model, self.surrogate, 2 * self.calls)
        again, rows = self._solved(plan, few)
        moved = norm_per_sample(again - self.values[few])
        moved = moved[moved.isfinite()]
        error = max(self.error, float(moved.mean()) if len(moved) else 0.0)
        return replace(self, error=error, net_evals=self.net_evals + rows)

    def _solved(self, plan: Plan, rows: Tensor) -> tuple[Tensor, int]:
        """The ends of some noises, and the network rows they took."""
        exact = replace(self.problem, model=in_float64(self.problem.model))
        each, made = exact.model.rows([node.sigma for node in plan.nodes]), []
        for part in rows.to(self.x.device).split(self.batch):
            y = self.x[part].double()
            with torch.no_grad(), np.errstate(invalid="ignore"):
                made.append(integrate(plan, exact.rows(part).bind(plan.nodes, y), y).x.cpu())
            self.observe(len(part) * each)
        return torch.cat(made), len(rows) * each
