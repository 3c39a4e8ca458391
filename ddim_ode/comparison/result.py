"""What a comparison found: rows, and the answers that can be read off them with their uncertainty."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._base import files
from .._base.checks import shown
from .._base.escaping import plain
from .._base.interrupted import Interrupted as Interrupted
from ..schedules.schedule import Array
from ..solve.reference import Reference
from .files import FIELDS, as_json, as_numbers, read, write
from .rows import Cell, Distribution, Ranked, Row, budgets_of, by_mean, describe
from .statistics import Decision, difference_decision, paired_decision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .jobs import Job

METRICS = ("error", "distribution")
FLOOR = 100  # times the reference's own error: below that, a row's error is not known


class Answer(dict[str, Any]):
    """A row of a comparison, or nothing (falsy); printed, it says which and why."""

    def __init__(self, text: str, row: Mapping[str, Any] | None = None) -> None:
        super().__init__(row or {})
        self.text = text

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


@dataclass(repr=False, eq=False)
class Comparison:
    """Solvers on the same noises: ``rows``, and what follows from them.

    A row has attributes, and can be read as a mapping, ``row["error"]``:

    - method, budget (asked for), nfe (measured, the mean over samples), grid, group (the grid as it was
      asked for), sigma_min (where its positive levels end), steps
    - error: the mean over samples of the RMS to the reference; error_low, error_high: its interval, None
      for a single sample; error_median; error_typical: the geometric mean, by which rows are ranked
    - at_floor: whether error_typical is below ``floor``, so that the reference does not resolve it
    - n: samples reported; failed: those without an error, left out of it; status: how many have which
    - seconds of all batches; net_evals: rows the network processed; search_net_evals: those of the search
    - note: why a row has no error

    Attributes:
        errors: (n,) for each row, NaN for failed samples.
        samples: The kept end states of each row, or None.
        seeds: Of the reported noises.
        search: What ``grid="best"`` tried, on the ``searched`` noises before those.
        about: The versions, device and arguments that it was made with.
        distribution: With ``metric="distribution"``, what rows are held against: its name, the number of
            the model's own samples, and the distance between their halves with its interval, half of which
            is the floor. A row's error is then that distance, without error_median; its errors are 16
            values whose mean it is.

    Two are equal if their files would be (``to_json``): in all but the end states.

    >>> import ddim_ode
    >>> model = ddim_ode.exact.gaussian([0.0], [[0.25]], ddim_ode.schedules.cosine())
    >>> r = ddim_ode.compare(model, ["ddim", "dpmpp2m"], nfe=[6, 12], n=16, progress=False)
    >>> len(r.rows), r.best(12)["method"]
    (4, 'dpmpp2m')
    """

    budgets: list[int]
    confidence: float
    seeds: list[int]
    searched: int
    model: str
    schedule: str
    fingerprints: dict[str, str]
    reference: Reference | None = None
    rows: list[Row] = field(default_factory=list)
    errors: list[Array] = field(default_factory=list)
    samples: list[Tensor | None] = field(default_factory=list)
    search: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    distribution: Distribution | None = None

    # -- filling ------------------------------------------------------------------------------
    def add(self, job: Job, cell: Cell | None, tried: int | None, search_evals: int) -> None:
        """Append the row of a job; cell None: it could not run."""
        n = len(self.seeds)
        row = Row(
            row=len(self.rows),
            method=job.entry.label,
            budget=job.budget,
            grid=job.grid,
            group=job.group,
            note=job.refusal or "",
            n=n,
            failed=n,
            reference_error=self.reference_error,
            search_net_evals=search_evals,
            grids_tried=tried,
            seed=self.seeds[0] if self.seeds else None,
            model=self.fingerprints["model"],
            schedule=self.fingerprints["schedule"],
        )
        if cell is not None:
            row.fill(cell, self.confidence, self.floor)
        self.rows.append(row)
        errors = np.full(n, np.nan) if cell is None else cell.errors
        self.errors.append(errors)
        self.samples.append(None if cell is None else cell.samples)

    # -- costs and limits ---------------------------------------------------------------------
    @property
    def reference_error(self) -> float:
        """The reference's own error, from refinement."""
        return float("nan") if self.reference is None else self.reference.error

    @property
    def floor(self) -> float:
        """Errors below this are not resolved: 100 × the reference's own, or as ``distribution`` has it."""
        if self.distribution is not None:
            return self.distribution.floor
        error = self.reference_error
        return FLOOR * error if math.isfinite(error) else 0.0

    @property
    def net_evals(self) -> int:
        """Network rows processed for the methods, the search for grids included."""
        return sum(row.net_evals + row.search_net_evals for row in self.rows)

    @property
    def reference_net_evals(self) -> int:
        """Network rows processed for the reference."""
        return 0 if self.reference is None else self.reference.net_evals

    # -- answers ------------------------------------------------------------------------------
    def ranking(self, nfe: int | None = None) -> list[Ranked]:
        """The rows at one budget (None: the only one), best first, ranked by error_typical.

        Returns:
            Rows with rank, ratio (the geometric mean of the errors over those of the best row, on the
            samples that both have), its paired bootstrap interval ratio_low, ratio_high, and tie: whether
            that contains 1. The confidence holds for all rows at once, by Holm's step-down (1979): k rows
            are compared at 1 − (1 − c)/k, and if some differ from the best, the m others again at
            1 − (1 − c)/m. Rows at the floor share rank 1 and have no ratio; the best is then the first
            row above it. Rows with more failed samples than others come last and have no rank.
        """
        at_budget = self._at(nfe)
        ranked = self._ranked(at_budget)
        decisions = self._decisions(ranked)
        floored = [row for row in at_budget if row.at_floor]
        placed, first = {row.row for row in (*floored, *ranked)}, len(floored) + 1
        return [
            *(Ranked(**vars(row), rank=1, tie=len(floored) > 1) for row in floored),
            *(Ranked.at(row, i, decisions.get(row.row)) for i, row in enumerate(ranked, first)),
            *(Ranked(**vars(row)) for row in at_budget if row.row not in placed),
        ]

    def decide(
        self,
        a: int | Mapping[str, Any],
        b: int | Mapping[str, Any],
        confidence: float | None = None,
    ) -> Decision:
        """The geometric mean of the ratios of two rows' errors, sample by sample, and whether they tie.

        Args:
            a, b: Numbers of rows, or rows.
            confidence: Of the interval (default: the comparison's).

        Raises:
            ValueError: Fewer than two samples are finished in both.
        """
        i, j = (row if isinstance(row, int) else row["row"] for row in (a, b))
        level = self.confidence if confidence is None else confidence
        decide = paired_decision if self.distribution is None else difference_decision
        return decide(self.errors[i], self.errors[j], level)

    def best(self, nfe: int | None = None) -> Answer:
        """The first of the ranking at a budget (None: the only one), and what it ties with.

        The answer is empty, and prints why, where no row has an error, or rows are at the floor: those are
        better than all others, and the reference cannot tell them apart.
        """
        rows = self.ranking(nfe)
        budget = rows[0].budget
        if floored := [row for row in rows if row.at_floor]:
            who = ", ".join(f"{plain(row.method)} ({row.grid})" for row in floored)
            why = f"100 × the reference's own; reference={self.reference_error / 10:.0e} converges further"
            what = "errors"
            if self.distribution is not None:
                what = "distances"
                why = "what two halves of the model's own samples show; more noises (n=) tell more apart"
            return Answer(
                f"nfe={budget}: at the floor, and not to be told apart: {who}. Their typical {what} are "
                f"below {self.floor:.1e}, {why}"
            )
        ranked = [row for row in rows if row.rank]
        if not ranked:
            return Answer(f"nfe={budget}: no method has an error; the notes of the rows say why")
        tied = dict.fromkeys(plain(row.method) for row in ranked[1:] if row.tie)
        also = f"; not to be told apart from it: {', '.join(tied)}" if tied else ""
        return Answer(f"{describe(ranked[0])}{also}{by_mean(ranked)}", self.rows[ranked[0].row])

    def recommend(self, target_error: float) -> Answer:
        """The cheapest row whose error, up to its upper bound, meets the target.

        The bound is error_high, and for a row at the floor no less than the floor; a row with samples that
        failed meets none. The answer is empty if no row meets it, and prints what came closest.
        """
        if not isinstance(target_error, (int, float)) or not 0 < target_error < math.inf:
            raise ValueError(f"target_error={shown(target_error)} must be a positive error")
        bounds = [
            (max(row.error_high, self.floor) if row.at_floor else row.error_high, row)
            for row in self.rows
            if row.error_high is not None and not row.failed
        ]
        if meets := [row for high, row in bounds if high <= target_error]:
            row = min(meets, key=lambda row: (row.nfe, row.error))
            return Answer(f"{describe(row)}: meets {target_error:g}", row)
        text = f"none of these meets an error of {target_error:g} with {self.confidence:.0%} confidence"
        if all(row.failed for row in self.rows):
            best = min(self.rows, key=lambda row: row.failed)
            return Answer(f"{text}: all have failures, {best.note}; ask ddim_ode.diagnose(model)")
        if not bounds:
            return Answer(f"{text}: no row has an interval (n={len(self.seeds)}; take n >= 2)")
        high, row = min(bounds, key=lambda pair: pair[0])
        return Answer(f"{text}; the closest is {describe(row)}, up to {high:.3g}: raise nfe")

    def _at(self, nfe: int | None) -> list[Row]:
        """The rows of one budget; ValueError if it is none of this comparison's."""
        budgets = budgets_of(self.rows)
        if nfe is None and len(budgets) == 1:
            nfe = budgets[0]
        if nfe not in budgets:
            raise ValueError(
                f"nfe={shown(nfe)} is no budget of this comparison; give one of {budgets}"
            )
        return [row for row in self.rows if row.budget == nfe]

    @staticmethod
    def _ranked(rows: list[Row]) -> list[Row]:
        with_error = [row for row in rows if row.error is not None]
        least = min((row.failed for row in with_error), default=0)
        fair = [row for row in with_error if row.failed == least and not row.at_floor]
        return sorted(fair, key=lambda row: row.error_typical or 0.0)

    def _decisions(self, ranked: list[Row]) -> dict[int, Decision]:
        """Of each row against the first, by row number; none where both have fewer than two samples."""
        decisions: dict[int, Decision] = {}
        numbers = [row.row for row in ranked if self._common(row, ranked[0]) >= 2]
        others = numbers[1:]
        if numbers:
            decisions[numbers[0]] = self.decide(numbers[0], numbers[0])
        while others:
            level = 1 - (1 - self.confidence) / len(others)
            decisions |= {i: self.decide(i, numbers[0], level) for i in others}
            ties = [i for i in others if decisions[i].tie]
            if len(ties) == len(others):
                break
            others = ties
        return decisions

    def _common(self, a: Row, b: Row) -> int:
        """How many samples are finished in both."""
        return int(np.isfinite(self.errors[a.row] + self.errors[b.row]).sum())

    # -- for other tools ----------------------------------------------------------------------
    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as plain dicts."""
        return [dict(row, status=dict(row.status)) for row in self.rows]

    def to_csv(self, path: str | Path) -> None:
        """One line a row, the keys as header; text that would be a formula has a quote before it."""
        rows = [dict(row, status=json.dumps(row.status)) for row in self.rows]
        files.write_csv(path, rows)

    def to_json(self, path: str | Path) -> None:
        """Write all but the end states, for :meth:`load`: rows, errors of each sample, seeds, search, the
        reference's own error and cost, versions, device and arguments."""
        write(path, self._tree())

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """The comparison of a file that :meth:`to_json` wrote, equal to the one saved.

        It answers, prints and draws as that one did. End states are not in the file: ``samples`` are None,
        and ``reference.x`` is empty. Nothing in a file is run.

        Args:
            path: of the file, at most 128 MiB.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a comparison's, or was changed since it was written.

        >>> import ddim_ode, os, tempfile
        >>> model = ddim_ode.exact.gaussian([0.0], [[0.25]], ddim_ode.schedules.cosine())
        >>> r = ddim_ode.compare(model, ["ddim", "heun"], nfe=6, n=16, progress=False)
        >>> path = os.path.join(tempfile.mkdtemp(), "compare.json")
        >>> r.to_json(path)
        >>> ddim_ode.Comparison.load(path) == r
        True
        """
        tree = read(path)
        made, rows = tree.pop("reference"), list(map(Row.of, tree.pop("rows")))
        if made is not None:
            gap = as_numbers(made.pop("gap"))
            made.pop("error")
            made = Reference(torch.empty(len(gap), 0, dtype=torch.float64), gap, **made)
        for row in rows:
            row.reference_error = as_numbers([row.reference_error]).item()
        errors = [as_numbers(errors) for errors in tree.pop("errors")]
        held = tree.pop("distribution")
        tree["distribution"] = None if held is None else Distribution(**held)
        samples: list[Tensor | None] = [None] * len(rows)
        return cls(**tree, rows=rows, reference=made, errors=errors, samples=samples)

    def _tree(self) -> dict[str, Any]:
        """All but the end states, as JSON has it."""
        tree = {name: getattr(self, name) for name in FIELDS}
        if (made := self.reference) is not None:
            facts = ("solver", "error", "nfe", "net_evals", "seconds")
            tree["reference"] = {name: getattr(made, name) for name in facts}
            tree["reference"]["gap"] = made.gap.tolist()
        tree["distribution"] = None if self.distribution is None else asdict(self.distribution)
        tree["rows"] = self.to_dicts()
        tree["errors"] = [errors.tolist() for errors in self.errors]
        return as_json(tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Comparison) and self._tree() == other._tree()

    __hash__ = None  # type: ignore[assignment]

    def to_pandas(self) -> Any:
        """The rows as a DataFrame; ValueError without pandas."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise ValueError(
                "to_pandas needs pandas: pip install pandas; to_dicts() and to_csv() do without"
            ) from None
        return pandas.DataFrame(self.to_dicts())

    def table(self) -> str:
        """All rows as text, budget by budget, best first."""
        from .tables import text

        return text(self)

    def plot(
        self,
        methods: str | Sequence[str] | None = None,
        figsize: tuple[float, float] | None = None,
        ax: Any = None,
    ) -> Figure:
        """Error against measured network calls on log axes, with interval bands and the floor.

        Args:
            methods: the names of those to draw, as in the rows (default: all).
            figsize: (width, height) of the figure, in inches (default: 6.2 × 4.4 a panel).
            ax: matplotlib's axes to draw into, instead of a new figure; as many as there are panels, one
                for each ``grid`` that was asked for.

        Returns:
            The figure.

        Raises:
            ValueError: an unknown method, no row with an error, axes that are not as many as the panels.
        """
        from ..plots.comparisons import errors_plot
        from .words import words

        said = words(self)
        return errors_plot(self.rows, self.floor, methods, figsize, ax, said.axis, said.floor)

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from .tables import html

        return html(self)
