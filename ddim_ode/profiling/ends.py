"""How far the ends err that a profile's screens are held against, and better ones where that is too far.

A solver's own estimate misses what is rough between its levels, such as a network that reads its time
through fast sines. So a few of the noises are solved again in twice the calls; and where plans come nearer
to the ends than these may err, all noises are.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..solve.look import FINE, Look, finest
from ..solve.reference import in_float64
from ..solve.solution import norm_per_sample
from ..solvers.plan import Plan
from .screening import Examples

CHECKED = 4  # one noise of so many is solved again
MOST = 4 * FINE  # calls


def calls_of_check(n: int, calls: int) -> int:
    """Calls, of all noises together, that it takes to check n of them, solved in so many each."""
    return max(1, n // CHECKED) * 2 * calls


class Ends:
    """The ends of some examples, which a look has found.

    error: the RMS by which they err, on the mean. calls, solver: of what they are solved by. net_evals:
    rows the network processed for them, in all.
    """

    def __init__(self, examples: Examples, look: Look) -> None:
        exact = replace(examples.problem, model=in_float64(examples.problem.model))
        self._examples = examples
        self._exact = replace(examples, problem=exact, x=examples.x.double())
        self._surrogate = look.surrogate
        self.calls, self.solver, self.net_evals = FINE, look.solver, look.net_evals
        self.error = max(look.error, self._check())

    @property
    def lost(self) -> list[int]:
        """The noises without a finite end."""
        found: list[int] = torch.nonzero(~self._examples.finite)[:, 0].tolist()
        return found

    @property
    def can_be_finer(self) -> bool:
        """Whether they may be solved in twice the calls: no more than MOST, and where only trained levels
        are told, not yet on all of them."""
        model = self._exact.problem.model
        return self.calls < MOST and not (model.snap and len(model.schedule.levels) <= self.calls)

    def refine(self) -> None:
        """Solve all noises in twice the calls; those that checked the last ends have been."""
        plan, few, again = self._plan, self._few, self._again
        others = torch.ones(len(self._exact.x), dtype=torch.bool).index_fill(0, few, False)
        ends = torch.empty_like(self._examples.ends)
        ends[few] = again
        if others.any():
            ends[others] = self._solved(torch.nonzero(others)[:, 0])
        self._examples.ends = ends
        self.calls, self.solver = 2 * self.calls, f"{plan.method}, {plan.nfe} calls"
        self.error = self._check()

    def _check(self) -> float:
        """How far a few of the ends are from those of twice the calls."""
        examples = self._examples
        self._few = torch.nonzero(examples.finite)[: max(1, len(examples.x) // CHECKED), 0]
        self._plan: Plan = finest(examples.problem.model, self._surrogate, 2 * self.calls)
        self._again = self._solved(self._few)
        moved = norm_per_sample(self._again - examples.ends[self._few])
        moved = moved[moved.isfinite()]
        return float(moved.mean()) if len(moved) else 0.0

    def _solved(self, rows: Tensor) -> Tensor:
        self.net_evals += self._exact.rows(self._plan, len(rows))
        return self._exact.run(self._plan, rows)
