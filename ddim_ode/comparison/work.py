"""What all solves of a comparison share, and what identifies each batch in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .._base.checks import number, path_of, shown
from .._base.digests import digest
from .._base.version import __version__
from .._base.warn import warn
from ..denoising.denoiser import Denoiser
from ..denoising.problem import Problem
from ..denoising.seeding import GENERATOR
from ..solve.answers import Answers
from ..solve.cache import NOWHERE, Store
from ..solve.model_key import model_key
from ..solve.near import NOTHING, PLAN, Near, of_rows, of_shared
from ..solve.reference import Reference


@dataclass
class Work:
    """What all solves of a comparison share.

    noises (n, *shape), of ``seeds``; the conditions of the problem have a row for each. batch: noises
    solved together; keep: end states kept of each row; goal: of the reference. known: the reference, where
    the caller gave it. whole: whether rows are measured on all their end states together.
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
    whole: bool = False

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


def goal_of(reference: float | Tensor | None) -> float | None:
    """What a reference is converged to; None: its default, or it is given."""
    if reference is None or isinstance(reference, Tensor):
        return None
    if not 0 < (goal := number("reference", reference)) < np.inf:
        raise ValueError(
            f"reference={shown(reference)} must be a positive RMS difference to converge to, or the "
            "solutions (n, *shape)"
        )
    return goal


def storage(
    model: Denoiser, cache: str | Path | None, key: str | None, shared: Any
) -> tuple[Store, str | None]:
    """Where results are kept, and the model's key; nowhere, with a warning, if it has none."""
    known_as = model_key(model, key)
    if cache is None:
        return NOWHERE, known_as
    cache = path_of("cache", cache)
    reason = None
    if not known_as:
        reason = "the network is neither an exact mixture nor a torch.nn.Module"
    else:
        try:
            digest(shared)
        except TypeError as error:
            reason = f"shared= cannot be hashed ({error})"
    if reason is None:
        return Store(cache), known_as
    warn(f"nothing is kept in {cache}: {reason}; give key=, a name to change whenever it changes")
    return NOWHERE, known_as
