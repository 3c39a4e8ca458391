"""What a model answers to a fixed question: how a network is recognised whose code or hidden state no hash
sees.

The question is the same everywhere: one sample of the caller's shape and conditions, at a few levels. Of
the answers a few projections are kept, which differ where the answers do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._base.checks import number, numbers
from .._base.digests import digest
from .._base.structure import content
from ..denoising.denoiser import Denoiser
from ..denoising.problem import Problem
from ..schedules.schedule import Array
from ..solvers.plan import Node
from .model_key import is_exact, network_dtype
from .near import Near, pattern, projections, rounding

LEVELS = (0.1, 0.5, 2.0, 10.0, 80.0)  # as far as the schedule has them, and where it starts
_ROWS = 4  # conditions, at most, that it is asked under


@dataclass(frozen=True)
class Answers:
    """A network's answers to the question.

    Attributes:
        question: A hash of the shape and conditions asked with.
        values: Projections of the answers.
        tolerance: Relative, what rounding may explain on another machine.
    """

    question: str
    values: tuple[float, ...]
    tolerance: float

    @property
    def near(self) -> Near:
        return Near.of(self.values, self.tolerance)

    def differ(self, other: Answers) -> bool:
        """Whether another model must have given the others, by the coarser of the two tolerances."""
        coarser = max(self.tolerance, other.tolerance)
        return not Near.of(self.values, coarser).agrees(other.values)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; :meth:`of_dict` reads it."""
        return dict(asdict(self), values=list(self.values))

    @classmethod
    def of_dict(cls, data: Any) -> Answers | None:
        """None for anything else than what ``to_dict`` gives, such as what another version wrote."""
        if not isinstance(data, Mapping) or data.keys() != {f.name for f in fields(cls)}:
            return None
        try:
            values = tuple(numbers("values", data["values"]).tolist())
            return cls(str(data["question"]), values, number("tolerance", data["tolerance"]))
        except (TypeError, ValueError):
            return None


def levels_of(model: Denoiser) -> Array:
    """Where a model is asked."""
    top = model.sigma_max
    levels = np.minimum(LEVELS, top)
    return model.snapped(np.append(levels, top) if np.isfinite(top) else levels)


def cost_of_asking(problem: Problem, shape: tuple[int, ...]) -> int:
    """Rows that the network processes for it."""
    return _several(shape, problem.cond) * problem.model.rows(levels_of(problem.model))


def _several(shape: tuple[int, ...], cond: Mapping[str, Tensor] | None) -> int:
    """Rows to ask with: of small samples more, so that there are some large entries among them."""
    if cond:
        return min([_ROWS, *(len(value) for value in cond.values())])
    return max(1, min(16, 64 // max(math.prod(shape), 1)))


def ask(problem: Problem, shape: tuple[int, ...], device: torch.device) -> Answers | None:
    """A network's answers; None for exact mixtures, whose parameters say all.

    Of the problem's conditions the first few rows are taken. It costs a network call a level. What the
    network is shown has unit variance, or at every other level twice the size, where limits show.
    """
    if is_exact(problem.model):
        return None
    several = _several(shape, problem.cond)
    problem = problem.rows(slice(several))
    model, schedule = problem.model, problem.model.schedule
    x = torch.from_numpy(pattern(several, *shape)).to(device, torch.float32)
    levels = levels_of(model).tolist()
    nodes = [Node(sigma, float(schedule.time(sigma)), model.prediction) for sigma in levels]
    with torch.no_grad():
        evaluate = problem.bind(nodes, x)
        scales = [float(np.hypot(*schedule.scales(s))) * (1 + k % 2) for k, s in enumerate(levels)]
        answers = torch.cat([evaluate(x * scale, k) for k, scale in enumerate(scales)])
    # version 1 was of four levels and one row
    question = digest(content([2, shape, problem.cond, problem.shared]))
    tolerance = rounding(network_dtype(model) or torch.float32, device.type)
    return Answers(question, tuple(projections(answers).reshape(-1).tolist()), tolerance)
