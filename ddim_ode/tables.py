"""A comparison as a table: plain text for terminals, HTML for notebooks."""

from __future__ import annotations

import html as escaping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .results import Comparison, Row

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
    "median",
    "seconds",
    "",
)
_LEFT = (1, 2, 7, 11)


def text(result: Comparison) -> str:
    """Rows by budget, best first; what the columns are, and what they were measured against."""
    if not result.rows:
        return "no rows are finished"
    blocks = [(budget, [_cells(row) for row in rows]) for budget, rows in _by_budget(result)]
    every = [HEAD, *(cells for _, rows in blocks for cells in rows)]
    widths = [max(len(cells[i]) for cells in every) for i in range(len(HEAD))]

    def line(cells: tuple[str, ...]) -> str:
        set_ = (
            c.ljust(w) if i in _LEFT else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))
        )
        return "  ".join(set_).rstrip()

    out = [line(HEAD)]
    for budget, rows in blocks:
        out += ["", f"{budget} network calls", *(line(cells) for cells in rows)]
    return "\n".join([*out, "", *notes(result)])


def html(result: Comparison) -> str:
    """The same table for a notebook."""
    rows = []
    for budget, found in _by_budget(result):
        rows.append(
            f'<tr><th colspan="{len(HEAD)}" style="text-align:left;padding-top:.8em">{budget} network '
            "calls</th></tr>"
        )
        for row in found:
            weight = "font-weight:600" if row["rank"] == 1 else ""
            cells = "".join(
                f'<td style="text-align:{"left" if i in _LEFT else "right"}">{escaping.escape(c)}</td>'
                for i, c in enumerate(_cells(row))
            )
            rows.append(f'<tr style="{weight}">{cells}</tr>')
    head = "".join(
        f'<th style="text-align:{"left" if i in _LEFT else "right"}">{escaping.escape(name)}</th>'
        for i, name in enumerate(HEAD)
    )
    below = "<br>".join(escaping.escape(note) for note in notes(result))
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table><p>{below}</p>"
    )


def notes(result: Comparison) -> list[str]:
    """What the numbers mean, in a few lines."""
    n, made = len(result.seeds), result.reference
    lines = [
        f"error: RMS per entry to the converged solution, the mean over {n} noises, with its "
        f"{result.confidence:.0%} bootstrap interval.",
        "=: not to be told apart from the best of its block (paired bootstrap over the same noises).",
    ]
    if made is not None:
        lines.append(
            f"reference: {made.solver}, float64; refining moved it by {made.error:.1e}; "
            f"{made.nfe:.0f} calls a sample. Errors below {result.floor:.1e} are at the floor, not ranked."
        )
    if result.searched:
        lines.append(
            f"best grids were chosen on {result.searched} other noises than the {n} reported here."
        )
    return lines


def _by_budget(result: Comparison) -> list[tuple[int, list[Row]]]:
    budgets = sorted({row["budget"] for row in result.rows})
    return [(budget, result.ranking(budget)) for budget in budgets]


def _cells(row: Row) -> tuple[str, ...]:
    rank = (
        ""
        if row["rank"] is None
        else f"{row['rank']}{'=' if row['tie'] and row['rank'] > 1 else ''}"
    )
    interval = "–"
    if row["error_low"] is not None:
        interval = f"{row['error_low']:.3g} – {row['error_high']:.3g}"
    return (
        rank,
        row["method"],
        row["grid"] + ("*" if row["grids_tried"] else ""),
        _number(row["sigma_min"]),
        _number(row["steps"]),
        _number(row["nfe"]),
        _number(row["error"]),
        interval,
        _number(row["ratio"]),
        _number(row["error_median"]),
        f"{row['seconds']:.2f}",
        "at floor" if row["at_floor"] else row["note"],
    )


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}"
