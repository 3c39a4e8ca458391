"""The rows of a comparison: what one solve came to, as a dict of plain values, and how it is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from .._base.escaping import plain
from ..solve.reference import Reference
from .jobs import Job
from .statistics import geometric_mean, mean_interval

Row = dict[str, Any]


class Ranked(Protocol):
    """What tables need of a comparison."""

    rows: list[Row]
    reference: Reference | None
    confidence: float
    seeds: list[int]
    searched: int

    @property
    def floor(self) -> float: ...

    def ranking(self, nfe: int) -> list[Row]: ...


@dataclass
class Cell:
    """One job on some samples. errors (m,): NaN where a sample has none; samples: the kept end states."""

    errors: np.ndarray[Any, np.dtype[np.float64]]
    status: list[str]
    nfe: float
    net_evals: int
    seconds: float
    steps: int | None
    sigma_min: float
    samples: Tensor | None

    @property
    def error(self) -> float:
        finite = self.errors[np.isfinite(self.errors)]
        return float(finite.mean()) if finite.size else float("nan")

    @property
    def typical(self) -> float:
        return geometric_mean(self.errors)


def row_of(job: Job, cell: Cell | None, n: int, confidence: float, floor: float, facts: Row) -> Row:
    """The row of a job on n samples; cell None: it could not run. facts: what the comparison says of it."""
    row: Row = dict(
        method=job.entry.label,
        budget=job.budget,
        nfe=None,
        grid=job.grid,
        sigma_min=None,
        steps=None,
        error=None,
        error_low=None,
        error_high=None,
        error_median=None,
        error_typical=None,
        at_floor=False,
        reference_error=None,
        seconds=0.0,
        net_evals=0,
        search_net_evals=None,
        grids_tried=None,
        n=n,
        failed=n,
        status={},
        group=job.group,
        seed=None,
        note=job.refusal or "",
        model=None,
        schedule=None,
    )
    row |= facts
    if cell is not None:
        finite = cell.errors[~np.isnan(cell.errors)]
        row |= dict(nfe=_tidy(cell.nfe), sigma_min=cell.sigma_min, steps=cell.steps)
        row |= dict(seconds=round(cell.seconds, 4), net_evals=cell.net_evals)
        row |= dict(failed=n - finite.size, status=dict(sorted(Counter(cell.status).items())))
        if finite.size:
            low, high = mean_interval(finite, confidence)
            typical = geometric_mean(finite)
            row |= dict(error=float(finite.mean()), error_low=low, error_high=high)
            row |= dict(error_median=float(np.median(finite)), error_typical=typical)
            row |= dict(at_floor=typical < floor)
        if row["failed"]:
            why = ", ".join(f"{k} {s}" for s, k in row["status"].items() if s != "success")
            row["note"] = f"{row['failed']} of {n} failed: {why}"
    return row


def by_mean(ranked: Sequence[Row]) -> str:
    """Which row has the smallest mean error, where that is not the first: a word to append."""
    least = min(ranked, key=lambda row: row["error"])
    if least is ranked[0]:
        return ""
    who = f"{name_of(least)}: {least['error']:.3g}"
    return f"; the smallest mean, which the worst noises decide, has {who}"


def describe(row: Row) -> str:
    cut = f" to σ={row['sigma_min']:.3g}"
    interval = ""
    if row["error_low"] is not None:
        interval = f" ({row['error_low']:.3g} to {row['error_high']:.3g})"
    return f"{name_of(row)} on {row['grid']}{cut}, nfe {row['nfe']:g}: error {row['error']:.3g}{interval}"


def name_of(row: Row) -> str:
    return plain(row["method"])


def _tidy(value: float) -> float | int:
    return int(value) if value == int(value) else value
