"""A comparison as tables: plain text for terminals, HTML for notebooks and reports.

``text`` and ``html`` are all rows, budget by budget. ``overview`` has one line per method and one column
per budget; ``overview_text`` and ``overview_html`` print it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .._base.escaping import markup, plain

if TYPE_CHECKING:
    from .rows import Ranked, Row

HEAD = (
    "",
    "method",
    "grid",
    "to σ",
    "steps",
    "nfe",
    "error",
    "interval",
    "× best",
    "typical",
    "seconds",
    "",
)
_LEFT = (1, 2, 7, 11)
_SIGNS = {"best": "*", "tie": "=", "floor": "~", "failed": "!", "none": ""}


class Cell(NamedTuple):
    """One method at one budget. mark: best, tie, floor, failed, none (it did not run) or empty."""

    value: str
    interval: str
    mark: str


class Line(NamedTuple):
    """One method on one grid; cells: one per budget, None where it has no row."""

    method: str
    group: str
    cells: list[Cell | None]

    @property
    def name(self) -> str:
        """The method, and the grid where one was asked for."""
        if self.group in ("default", "plan"):
            return self.method
        return f"{self.method}, {'best grid' if self.group == 'best' else self.group}"


def text(result: Ranked) -> str:
    """Rows by budget, best first; what the columns are, and what they were measured against."""
    if not result.rows:
        return "no rows are finished"
    blocks = [(budget, [_cells(row) for row in rows]) for budget, rows in _by_budget(result)]
    out = _aligned([HEAD, *(cells for _, rows in blocks for cells in rows)], _LEFT)
    lines = iter(out[1:])
    body = [
        line
        for budget, rows in blocks
        for line in ("", f"{budget} network calls", *(next(lines) for _ in rows))
    ]
    return "\n".join([out[0], *body, "", *notes(result)])


def html(result: Ranked) -> str:
    """The same as one table, for a notebook or a report."""
    groups = []
    for budget, found in _by_budget(result):
        lines = [
            f'<tr><th colspan="{len(HEAD)}" scope="rowgroup" style="text-align:left;padding-top:.8em">'
            f"{budget} network calls</th></tr>"
        ]
        for row in found:
            weight = ' style="font-weight:600"' if _mark(row, found) == "best" else ""
            lines.append(
                f"<tr{weight}>{''.join(map(_html_cell, range(len(HEAD)), _cells(row)))}</tr>"
            )
        groups.append(f"<tbody>{''.join(lines)}</tbody>")
    head = "".join(
        f'<th scope="col" style="text-align:{"left" if i in _LEFT else "right"}">'
        f"{markup(name) or ('rank' if i == 0 else 'note')}</th>"
        for i, name in enumerate(HEAD)
    )
    below = "<br>".join(markup(note) for note in notes(result))
    return f"<table><thead><tr>{head}</tr></thead>{''.join(groups)}</table><p>{below}</p>"


def overview(result: Ranked, key: str = "error") -> list[Line]:
    """One line per method and grid, in the order asked for, with ``key`` at each budget.

    Best and tied are marked for the error alone: of the others there is no paired test. Nothing is best
    at a budget where rows are at the floor.
    """
    lines: dict[tuple[str, str], Line] = {}
    budgets = _by_budget(result)
    for row in result.rows:
        name = (row["method"], row["group"])
        lines.setdefault(name, Line(*name, [None] * len(budgets)))
    for i, (_, found) in enumerate(budgets):
        for row in found:
            cells = lines[row["method"], row["group"]].cells
            cells[i] = cells[i] or _cell(row, found, key)  # of several plans, the better
    return list(lines.values())


def overview_text(result: Ranked, key: str = "error", last: list[str] | None = None) -> str:
    """The overview, aligned, with its signs explained. last: a line to add below the others."""
    lines = overview(result, key)
    used: set[str] = set()
    rows: list[tuple[str, ...]] = [("", *(f"{b} calls" for b, _ in _by_budget(result)))]
    for line in lines:
        cells = []
        for cell in line.cells:
            used.add(cell.mark if cell else "")
            cells.append(f"{cell.value} {_SIGNS.get(cell.mark, '') or ' '}" if cell else "  ")
        rows.append((line.name, *cells))
    rows[0] = ("", *(f"{head}  " for head in rows[0][1:]))
    if last:
        rows.append((last[0], *(f"{value}  " for value in last[1:])))
    meanings = dict(
        best="* best of its column by the typical error, noise by noise",
        tie="= not to be told apart from it (paired bootstrap)",
        floor=f"~ at the floor (its typical error is below {result.floor:.1e}): not ranked",
        failed="! some samples failed and are left out",
    )
    legend = [meaning for mark, meaning in meanings.items() if mark in used]
    return "\n".join([*_aligned(rows, (0,)), *(["", "   ".join(legend)] if legend else [])])


def overview_html(
    result: Ranked, key: str = "error", caption: str = "", last: list[str] | None = None
) -> str:
    """The overview as a table; marks are words, so that nothing is said by colour alone."""
    words = dict(best="best", tie="tied", floor="at floor", failed="some failed", none="")
    heads = "".join(
        f'<th scope="col">{budget}<small>calls</small></th>' for budget, _ in _by_budget(result)
    )
    rows = []
    for line in overview(result, key):
        cells = []
        for cell in line.cells:
            value, interval, mark = cell or Cell("", "", "")
            small = " · ".join(part for part in (interval, words.get(mark, "")) if part)
            kind = f' class="{mark}"' if mark else ""
            cells.append(f"<td{kind}>{value}{f'<small>{small}</small>' if small else ''}</td>")
        name = f"{swatch(line.method)} {markup(line.name)}"
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    if last:
        cells = [f"<td>{markup(value)}</td>" for value in last[1:]]
        rows.append(f'<tr><th scope="row">{markup(last[0])}</th>{"".join(cells)}</tr>')
    return (
        f"<table><caption>{markup(caption)}</caption><thead><tr>"
        f'<th scope="col">method</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def swatch(method: str) -> str:
    """A method's line and marker as in the plots, as inline SVG; said by the name beside it."""
    from ..plots.comparisons import look

    style = look(method)
    colour, line = style["color"], style["linestyle"]
    dash = "" if line == "-" else f' stroke-dasharray="{" ".join(str(1.5 * d) for d in line[1])}"'
    marker = {
        "o": '<circle cx="14" cy="6" r="3.6"/>',
        "s": '<path d="M10.5 2.5h7v7h-7z"/>',
        "^": '<path d="M14 2l4.2 7.6h-8.4z"/>',
    }[style["marker"]]
    return (
        '<svg width="28" height="12" viewBox="0 0 28 12" aria-hidden="true">'
        f'<path d="M0 6h28" stroke="{colour}" stroke-width="1.8"{dash}/>'
        f'<g fill="{colour}">{marker}</g></svg>'
    )


def notes(result: Ranked) -> list[str]:
    """What the numbers mean, in a few lines."""
    n, made = len(result.seeds), result.reference
    lines = [
        f"error: RMS per entry to the converged solution, the mean over {n} noises, with its "
        f"{result.confidence:.0%} bootstrap interval.",
        "typical: the geometric mean, by which rows are ranked; × best: its ratio, noise by noise.",
        "=: not to be told apart from the best of its block (paired bootstrap over the same noises).",
    ]
    if made is not None:
        lines.append(
            f"reference: {made.solver}, float64; refining moved it by {made.error:.1e}; "
            f"{made.nfe:.0f} calls a sample. Typical errors below {result.floor:.1e} are at the floor, "
            "not ranked."
        )
    if result.searched:
        lines.append(
            f"best grids were chosen on {result.searched} other noises than the {n} reported here."
        )
    return lines


def number(value: float | None) -> str:
    """Three digits, trailing zeros kept, so that columns can be compared by eye."""
    if value is None:
        return "–"
    shown = f"{value:.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:#.3g}"
    return shown.removesuffix(".")


def _by_budget(result: Ranked) -> list[tuple[int, list[Row]]]:
    budgets = sorted({row["budget"] for row in result.rows})
    return [(budget, result.ranking(budget)) for budget in budgets]


def _mark(row: Row, block: list[Row]) -> str:
    if row["error"] is None:
        return "none"
    if row["at_floor"]:
        return "floor"
    if row["rank"] is None:
        return "failed"
    if any(other["at_floor"] for other in block):
        return ""
    return "best" if row["rank"] == 1 else "tie" if row["tie"] else ""


def _cell(row: Row, block: list[Row], key: str) -> Cell:
    if key == "error":
        bounds = (row["error_low"], row["error_high"])
        interval = "" if None in bounds else f"{number(bounds[0])} – {number(bounds[1])}"
        return Cell(number(row["error"]), interval, _mark(row, block))
    return Cell(number(row.get(key)), "", "none" if row.get(key) is None else "")


def _aligned(given: list[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    rows = [tuple(map(plain, cells)) for cells in given]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]

    def line(cells: tuple[str, ...]) -> str:
        set_ = (
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))
        )
        return "  ".join(set_).rstrip()

    return [line(cells) for cells in rows]


def _html_cell(i: int, value: str) -> str:
    side, shown = "left" if i in _LEFT else "right", markup(value)
    if HEAD[i] == "method":
        return f'<th scope="row" style="text-align:left;font-weight:inherit">{shown}</th>'
    return f'<td style="text-align:{side}">{shown}</td>'


def _cells(row: Row) -> tuple[str, ...]:
    rank = (
        ""
        if row["rank"] is None
        else f"{row['rank']}{'=' if row['tie'] and row['rank'] > 1 else ''}"
    )
    interval = "–"
    if row["error_low"] is not None:
        interval = f"{number(row['error_low'])} – {number(row['error_high'])}"
    return (
        rank,
        row["method"],
        row["grid"] + ("*" if row["grids_tried"] else ""),
        _short(row["sigma_min"]),
        _short(row["steps"]),
        _short(row["nfe"]),
        number(row["error"]),
        interval,
        number(row["ratio"]),
        number(row["error_typical"]),
        f"{row['seconds']:.2f}",
        "at floor" if row["at_floor"] else row["note"],
    )


def _short(value: Any) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3g}"
