"""A comparison as tables, for terminals (text) and for notebooks and reports (HTML).

``whole`` has all rows, budget by budget; ``text`` and ``html`` show it. ``overview`` has one line per
method and one column per budget; ``overview_text`` and ``overview_html`` show that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .._base.escaping import markup
from .._base.table import Cell, Table
from .rows import Ranked, Ranking, budgets_of
from .words import words

_HEAD = (
    *(Cell("", drawing="rank"), "method", "grid", "to σ", "steps", "nfe", "error", "interval"),
    *("× best", "typical", "seconds", Cell("", drawing="note")),
)
_SIGNS = {"best": "*", "tie": "=", "floor": "~", "failed": "!", "none": ""}
_BY = {True: " by the typical error, noise by noise", False: ""}  # whether noises have errors
_WORDS = {"best": "best", "tie": "tied", "floor": "at floor", "failed": "some failed", "none": ""}


class Entry(NamedTuple):
    """One method at one budget. mark: best, tie, floor, failed, none (it did not run) or empty."""

    value: str
    interval: str
    mark: str


class Line(NamedTuple):
    """One method on one grid; cells: one per budget, None where it has no row."""

    method: str
    group: str
    cells: list[Entry | None]

    @property
    def name(self) -> str:
        """The method, and the grid where one was asked for."""
        if self.group in ("default", "plan"):
            return self.method
        return f"{self.method}, {'best grid' if self.group == 'best' else self.group}"


def whole(result: Ranking) -> Table:
    """Rows by budget, best first."""
    rows: list[list[Cell]] = []
    titles = {}
    for budget, ranked in _by_budget(result):
        titles[len(rows)] = f"{budget} network calls"
        # the rank that the others are compared with
        first = 1 + sum(row.at_floor for row in ranked)
        rows += [
            _cells(row, _mark(row, ranked) == "best", bool(row.tie) and row.rank != first)
            for row in ranked
        ]
    return Table(_HEAD, rows, left=(1, 2, 7, 11), names=1, titles=titles)


def text(result: Ranking) -> str:
    """All rows; what the columns are, and what they were measured against."""
    if not result.rows:
        return "no rows are finished"
    return "\n".join([whole(result).text(), "", *words(result).notes])


def html(result: Ranking) -> str:
    """The same for a notebook or a report."""
    return f"{whole(result).html()}<p>{'<br>'.join(map(markup, words(result).notes))}</p>"


def overview(result: Ranking, key: str = "error") -> list[Line]:
    """One line per method and grid, in the order asked for, with ``key`` at each budget.

    Best and tied are marked for the error alone: of the others there is no paired test. Nothing is best
    at a budget where rows are at the floor.
    """
    lines: dict[tuple[str, str], Line] = {}
    budgets = _by_budget(result)
    for row in result.rows:
        name = (row.method, row.group)
        lines.setdefault(name, Line(*name, [None] * len(budgets)))
    for i, (_, ranked) in enumerate(budgets):
        for one in ranked:
            cells = lines[one.method, one.group].cells
            cells[i] = cells[i] or _entry(one, ranked, key)  # of several plans, the better
    return list(lines.values())


def overview_text(result: Ranking, key: str = "error", last: Sequence[str] = ()) -> str:
    """The overview, with its signs explained. last: a line to add below the others."""
    lines = overview(result, key)
    used = {cell.mark for line in lines for cell in line.cells if cell}
    meanings = dict(
        best=f"* best of its column{_BY[result.distribution is None]}",
        tie="= not to be told apart from it (paired bootstrap)",
        floor=f"~ at the floor (below {result.floor:.1e}): best, and not to be told apart",
        failed="! some samples failed and are left out",
    )
    legend = "   ".join(meaning for mark, meaning in meanings.items() if mark in used)
    return _table(result, lines, "", last).text() + (f"\n\n{legend}" if legend else "")


def overview_html(
    result: Ranking, key: str = "error", caption: str = "", last: Sequence[str] = ()
) -> str:
    """The overview as a table; marks are words, so that nothing is said by colour alone."""
    return _table(result, overview(result, key), caption, last).html()


def _table(result: Ranking, lines: list[Line], caption: str, last: Sequence[str]) -> Table:
    head = [Cell(f"{budget}", " calls  ", "calls") for budget in budgets_of(result.rows)]
    rows = [
        [
            Cell(line.name, drawing=f"{swatch(line.method)} ", bold=True),
            *(Cell("", "  ") if cell is None else _shown(cell) for cell in line.cells),
        ]
        for line in lines
    ]
    if last:
        rows.append([Cell(last[0], bold=True), *(Cell(value, "  ") for value in last[1:])])
    return Table([Cell("", drawing="method"), *head], rows, caption=caption)


def _shown(entry: Entry) -> Cell:
    value, interval, mark = entry
    small = " · ".join(part for part in (interval, _WORDS.get(mark)) if part)
    return Cell(value, f" {_SIGNS.get(mark) or ' '}", small, mark)


def swatch(method: str) -> str:
    """A method's line and marker as in the plots, as inline SVG; said by the name beside it."""
    from ..plots.style import look

    style = look(method)
    colour, line = style["color"], style["linestyle"]
    dash = "" if line == "-" else f' stroke-dasharray="{" ".join(str(1.5 * d) for d in line[1])}"'
    marker = {
        "o": '<circle cx="14" cy="6" r="3.6"/>',
        "s": '<path d="M10.5 2.5h7v7h-7z"/>',
        "^": '<path d="M14 2l4.2 7.6h-8.4z"/>',
        "D": '<path d="M14 1.6l4.4 4.4l-4.4 4.4l-4.4-4.4z"/>',
    }[style["marker"]]
    return (
        '<svg width="28" height="12" viewBox="0 0 28 12" aria-hidden="true">'
        f'<path d="M0 6h28" stroke="{colour}" stroke-width="1.8"{dash}/>'
        f'<g fill="{colour}">{marker}</g></svg>'
    )


def number(value: float | None) -> str:
    """Three digits, trailing zeros kept, so that columns can be compared by eye."""
    if value is None:
        return "–"
    shown = f"{value:.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:#.3g}"
    return shown.removesuffix(".")


def _by_budget(result: Ranking) -> list[tuple[int, list[Ranked]]]:
    budgets = budgets_of(result.rows)
    return [(budget, result.ranking(budget)) for budget in budgets]


def _mark(row: Ranked, block: list[Ranked]) -> str:
    if row.error is None:
        return "none"
    if row.at_floor:
        return "floor"
    if row.rank is None:
        return "failed"
    if any(other.at_floor for other in block):
        return ""
    return "best" if row.rank == 1 else "tie" if row.tie else ""


def _entry(row: Ranked, block: list[Ranked], key: str) -> Entry:
    if key == "error":
        return Entry(number(row.error), interval(row, ""), _mark(row, block))
    return Entry(number(row.get(key)), "", "none" if row.get(key) is None else "")


def interval(row: Ranked, missing: str = "–") -> str:
    """Of the error."""
    if row.error_low is None:
        return missing
    return f"{number(row.error_low)} – {number(row.error_high)}"


def _cells(row: Ranked, best: bool, tied: bool) -> list[Cell]:
    rank = "" if row.rank is None else f"{row.rank}{'=' if tied else ''}"
    values = (
        rank,
        row.method,
        row.grid + ("*" if row.grids_tried else ""),
        _short(row.sigma_min),
        _short(row.steps),
        _short(row.nfe),
        number(row.error),
        interval(row),
        number(row.ratio),
        number(row.error_typical),
        f"{row.seconds:.2f}",
        "at floor" if row.at_floor else row.note,
    )
    return [Cell(value, bold=best) for value in values]


def _short(value: float | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3g}"
