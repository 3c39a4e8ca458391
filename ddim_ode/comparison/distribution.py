"""Rows held against the model's own distribution: for methods with step noise, whose ends have no truth.

The reference is where the ODE takes other noises than the rows start from: samples of the model itself.
A row's ``error`` is an unbiased squared distance of its samples to these, its ``errors`` are the
pseudo-values of evaluate/jackknife.py. The floor is how far the distance of two halves of the reference,
as large as a row each, may lie from 0, half its interval: below, a row is not told from the model itself.

Near 0, D² is no mean of independent parts, and where it is small by chance so is its scatter. To the
variance of a row that of the halves is therefore added: on shifted normal samples, 64 to 256 a row,
intervals of 95 % then hold in 93 to 100 %, and without it in 83 % at worst.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._base.checks import shown
from ..denoising.seeding import noise
from ..evaluate.energy import euclidean
from ..evaluate.features import IDENTITY, Features, check_features
from ..evaluate.jackknife import BLOCKS, Blocks
from ..evaluate.kernel import cubic
from ..evaluate.pairs import Floats, as_rows
from ..schedules.schedule import Array
from ..solve.reference import Reference, given
from .rows import Distribution
from .statistics import Interval, student_interval
from .work import Work

HALVES = 2  # reference samples for each one of a row
LEAST = 2 * BLOCKS


class Distances:
    """Measures samples against a reference; ``about`` says what that is.

    Args:
        exact: The model's own samples; those without a solution are left out.
        features: What is looked at: kernel distances (KID) in these; None: energy distances of the samples
            as they are.
        confidence: Of the interval of the halves.
    """

    def __init__(self, exact: Reference, features: Features | None, confidence: float) -> None:
        self._kernel = _minus_euclidean if features is None else cubic
        self._features = features or IDENTITY
        finite = torch.from_numpy(np.isfinite(exact.gap))
        if int(finite.sum()) < 2 * LEAST:
            raise ValueError(
                f"the reference has {int(finite.sum())} samples of the model; give at least {2 * LEAST}"
            )
        rows = self._rows(exact.x[finite].float())
        # distances do not depend on where 0 is, and are computed best from the middle
        self._centre = rows.mean(axis=0) if features is None else np.zeros(rows.shape[1])
        self._all = self._blocks(rows)
        half = len(rows) // 2
        values = self._blocks(rows[:half]).distances(self._blocks(rows[half:]))
        self._least, self._confidence = 0.0, confidence
        low, high = self.interval(values)
        self._least = float(values.var(ddof=1)) / BLOCKS
        name = (
            "energy distance" if features is None else f"kernel distance (KID) in {features.name}"
        )
        assert low is not None
        assert high is not None
        self.about = Distribution(f"squared {name}", len(rows), float(values.mean()), low, high)

    def __call__(self, samples: Tensor, finished: list[bool]) -> Array:
        """Pseudo-values (BLOCKS,) of samples (n, *shape), the unfinished ones left out; NaN if too few."""
        done = np.array(finished)
        if done.sum() < LEAST:
            return np.full(BLOCKS, np.nan)
        return self._blocks(self._rows(samples[torch.from_numpy(done)])).distances(self._all)

    def interval(self, values: Array) -> Interval:
        """Of the mean of a row's values."""
        if np.isnan(values).any():
            return Interval(None, None)
        return student_interval(values, self._confidence, self._least)

    def _rows(self, samples: Tensor) -> Floats:
        flat = samples[..., None] if samples.ndim == 1 else samples
        return as_rows("the samples' features", self._features(flat))

    def _blocks(self, rows: Floats) -> Blocks:
        return Blocks(self._kernel, np.array_split(rows - self._centre, BLOCKS))


def others(work: Work, reference: Any) -> Work:
    """The work of solving the model's own samples: the noises after those of the rows, with their
    conditions again; or what the caller gave."""
    n, shape = len(work.noises), work.noises.shape[1:]
    if isinstance(reference, Tensor):
        known = given(reference, len(reference), shape) if reference.ndim else None
        if known is None:
            raise ValueError(f"reference={shown(reference)} must be samples (m, *shape)")
        return replace(work, known=known)
    seeds = range(work.seeds.stop, work.seeds.stop + HALVES * n)
    again = torch.arange(HALVES * n) % n
    model = work.problem.model
    noises = noise(shape, model.schedule, seeds, model.sigma_max, work.noises.device)
    return replace(work, problem=work.problem.rows(again), seeds=seeds, noises=noises)


def check(features: Features | None, n: int, searching: bool) -> None:
    """ValueError unless such a comparison can be made."""
    if features is not None:
        check_features(features)
    if n < LEAST:
        raise ValueError(
            f"n={n} is too few for metric='distribution', which tells distributions apart; give n >= "
            f"{LEAST}, and some hundred for answers"
        )
    if searching:
        raise ValueError(
            "grid='best' decides noise by noise, and metric='distribution' has no error of a noise; name "
            "the grids"
        )


def _minus_euclidean(x: Floats, y: Floats) -> Floats:
    return -euclidean(x, y)
