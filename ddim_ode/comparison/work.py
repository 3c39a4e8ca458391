"""What all solves of a comparison share, and what identifies each batch in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._base.version import __version__
from ..denoising.problem import Problem
from ..denoising.seeding import GENERATOR
from ..solve.answers import Answers
from ..solve.cache import Store
from ..solve.near import NOTHING, PLAN, Near, of_rows, of_shared
from ..solve.reference import Reference


@dataclass
class Work:
    """What all solves of a comparison share.

    noises (n, *shape), of ``seeds``; the conditions of the problem have a row for each. batch: noises
    solved together; keep: end states kept of each row; goal: of the reference. known: the reference, where
    the caller gave it.
    """

    problem: Problem
    seeds: range
    noises: Tensor
    batch: int
    keep: int
    goal: float | None
    store: Store
    key: str | None
    answers: Answers | None = None
    known: Reference | None = None

    def parts(self, first: int, last: int) -> Iterator[slice]:
        """Batches of the samples first..last−1."""
        for start in range(first, last, self.batch):
            yield slice(start, min(start + self.batch, last))

    def origin(self, part: slice) -> tuple[list[Any], Near]:
        """The model, noises and conditions of a batch, as the store keys them: exact parts, and numbers."""
        if self.store.folder is None:
            return [], NOTHING
        shared, computed = of_shared(self.problem.shared)
        shape = list(self.noises.shape[1:])
        exact = [__version__, GENERATOR, self.key, shared, shape, self.seeds[part]]
        answers = NOTHING if self.answers is None else self.answers.near
        start = Near.of(self.problem.model.sigma_max, PLAN)
        rows = of_rows({**(self.problem.rows(part).cond or {}), **computed})
        return exact, Near.joined(answers, start, rows)
