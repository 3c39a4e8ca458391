"""What is solved: a model, and the conditions that its network is given.

Public functions take ``cond=`` and ``shared=``; behind them the two travel with their model, as one value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..schedules.schedule import Array
from ..solvers.plan import Node
from .denoiser import Denoiser
from .guidance import Call


@dataclass(frozen=True)
class Problem:
    """A denoiser under conditions.

    Attributes:
        model: The denoiser.
        cond: {name: tensor (B, ...)}, a row for each sample; None or {} for none.
        shared: {name: value}, passed to the network as it is.
    """

    model: Denoiser
    cond: Mapping[str, Tensor] | None = None
    shared: Mapping[str, Any] | None = None

    def __call__(self, x: Tensor, sigma: float | Array | Tensor) -> tuple[Tensor, Tensor]:
        """(x̂₀, ε̂) at x (B, *) and σ, as of :meth:`ddim_ode.Denoiser.__call__`."""
        return self.model(x, sigma, self.cond, self.shared)

    @property
    def conditions(self) -> dict[str, Any]:
        """``cond`` and ``shared`` as the keywords of a public function."""
        return dict(cond=self.cond, shared=self.shared)

    def rows(self, index: slice | Tensor) -> Problem:
        """The same problem for some of the samples."""
        model, cond = self.model.part(index, self.cond)
        return Problem(model, cond, self.shared)

    def network(self, like: Tensor) -> Call:
        """The network's call on states like x (B, *), see :meth:`ddim_ode.Denoiser.network`."""
        return self.model.network(like, self.cond, self.shared)

    def bind(self, nodes: Sequence[Node], like: Tensor) -> Callable[[Tensor, int], Tensor]:
        """``evaluate(y, k)``: the vector that node k stores, see :meth:`ddim_ode.Denoiser.bind`."""
        return self.model.bind(nodes, like, self.cond, self.shared)
