"""The rows of a comparison: what one solve came to, and what it is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from .._base.escaping import plain
from ..solve.reference import Reference
from ..solvers.controller import SUCCESS
from .statistics import Decision, Interval, geometric_mean, mean_interval


@dataclass
class Cell:
    """One job on some samples. errors (m,): NaN where a sample has none; with an ``interval`` they are
    values whose mean is the distance of all samples. samples: the kept end states."""

    errors: np.ndarray[Any, np.dtype[np.float64]]
    status: list[str]
    nfe: float
    net_evals: int
    seconds: float
    steps: int | None
    sigma_min: float
    samples: Tensor | None
    interval: Interval | None = None

    @property
    def error(self) -> float:
        finite = self.errors[np.isfinite(self.errors)]
        return float(finite.mean()) if finite.size else float("nan")

    @property
    def typical(self) -> float:
        return geometric_mean(self.errors) if self.interval is None else self.error


@dataclass(frozen=True)
class Distribution:
    """What rows are held against that have no errors of samples: a distance by name, to n samples of the
    model itself, whose own halves are ``halves`` apart, with the interval low, high."""

    name: str
    n: int
    halves: float
    low: float
    high: float

    @property
    def floor(self) -> float:
        """How far the halves may come out from 0, which is the truth of them."""
        return (self.high - self.low) / 2


@dataclass(eq=False)
class Row(Mapping[str, Any]):
    """What one method came to at one budget. It can be read as a mapping, too: ``row["error"]``.

    The fields are described at :class:`ddim_ode.Comparison`. What a solve did not reach is None.
    metrics: columns of their own in the mapping, see :func:`.distances.measure_rows`.
    """

    row: int
    method: str
    budget: int
    nfe: float | None = None
    grid: str = ""
    sigma_min: float | None = None
    steps: int | None = None
    error: float | None = None
    error_low: float | None = None
    error_high: float | None = None
    error_median: float | None = None
    error_typical: float | None = None
    at_floor: bool = False
    reference_error: float = float("nan")
    seconds: float = 0.0
    net_evals: int = 0
    search_net_evals: int = 0
    grids_tried: int | None = None
    n: int = 0
    failed: int = 0
    status: dict[str, int] = field(default_factory=dict)
    group: str = "default"
    seed: int | None = None
    note: str = ""
    model: str = ""
    schedule: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Row:
        """The row of such a mapping; what is no field is a metric."""
        names = {f.name for f in fields(cls)} - {"metrics"}
        own = {name: value for name, value in plain.items() if name in names}
        return cls(**own, metrics={k: v for k, v in plain.items() if k not in names})

    def fill(self, cell: Cell, confidence: float, floor: float) -> None:
        """Take in what the solves of the n samples gave."""
        finite = cell.errors[~np.isnan(cell.errors)]
        self.nfe = int(cell.nfe) if cell.nfe == int(cell.nfe) else cell.nfe
        self.sigma_min, self.steps = cell.sigma_min, cell.steps
        self.seconds, self.net_evals = round(cell.seconds, 4), cell.net_evals
        self.status = dict(sorted(Counter(cell.status).items()))
        self.failed = self.n - self.status.get(SUCCESS, 0)
        if finite.size:
            self.error, self.error_typical = cell.error, cell.typical
            self.error_median = float(np.median(finite)) if cell.interval is None else None
            self.error_low, self.error_high = cell.interval or mean_interval(finite, confidence)
            self.at_floor = self.error_typical < floor
        if self.failed:
            why = ", ".join(f"{k} {s}" for s, k in self.status.items() if s != SUCCESS)
            self.note = f"{self.failed} of {self.n} failed: {why}"

    def __getitem__(self, name: str) -> Any:
        if name in self.metrics:
            return self.metrics[name]
        if name not in set(self):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        yield from (f.name for f in fields(self) if f.name != "metrics")
        yield from self.metrics

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(eq=False)
class Ranked(Row):
    """A row in the ranking of its budget: its place, and its ratio to the best, see ``ranking``."""

    rank: int | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    tie: bool | None = None

    @classmethod
    def at(cls, row: Row, rank: int, decision: Decision | None) -> Ranked:
        """The row at its place, as the decision against the first has it."""
        if decision is None:
            return cls(**vars(row), rank=rank)
        ratio, low, high, tie = decision
        return cls(**vars(row), rank=rank, ratio=ratio, ratio_low=low, ratio_high=high, tie=tie)


class Ranking(Protocol):
    """What tables need of a comparison."""

    rows: list[Row]
    reference: Reference | None
    confidence: float
    seeds: list[int]
    searched: int
    distribution: Distribution | None

    @property
    def floor(self) -> float: ...

    def ranking(self, nfe: int) -> list[Ranked]: ...


def budgets_of(rows: Sequence[Row]) -> list[int]:
    """The budgets that some rows have, each once, the smallest first."""
    return sorted({row.budget for row in rows})


def by_mean(ranked: Sequence[Row]) -> str:
    """Which row has the smallest mean error, where that is not the first: a word to append."""
    least = min(ranked, key=lambda row: row.error or 0.0)
    if least is ranked[0]:
        return ""
    who = f"{plain(least.method)}: {least.error:.3g}"
    return f"; the smallest mean, which the worst noises decide, has {who}"


def describe(row: Row) -> str:
    """A row that has an error, in one line, with what failed of it."""
    interval = ""
    if row.error_low is not None:
        interval = f" ({row.error_low:.3g} to {row.error_high:.3g})"
    return (
        f"{plain(row.method)} on {row.grid} to σ={row.sigma_min:.3g}, nfe {row.nfe:g}: "
        f"error {row.error:.3g}{interval}{f'; {row.note}' if row.failed else ''}"
    )
