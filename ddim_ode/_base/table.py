"""One table, as aligned text for a terminal and as HTML for a notebook or a report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .escaping import markup, plain


class Cell(NamedTuple):
    """A cell that is more than its text.

    sign: after the text, in a terminal. small: below the text, kind: the cell's class, drawing: HTML before
    the text, in HTML. bold: in HTML, a name of a row too is so only if it says so.
    """

    text: str
    sign: str = ""
    small: str = ""
    kind: str = ""
    drawing: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells, each a :class:`Cell` or any value, shown by ``str``.

    head: the columns' names; empty for none. left: the columns set to the left, the others to the right.
    names: the column whose cell names its row, if one does. titles: a line above the row of that number.

    >>> print(Table(("name", "n"), [("a", 1), ("b", 10)], titles={1: "more"}).text())
    name   n
    a      1
    <BLANKLINE>
    more
    b     10
    """

    head: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    left: Collection[int] = (0,)
    names: int | None = 0
    titles: Mapping[int, str] = field(default_factory=dict)
    caption: str = ""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Table:
        """Of rows with the same keys: numbers to the right, text to the left."""
        head = list(rows[0]) if rows else []
        text = [any(not isinstance(row[name], (int, float)) for row in rows) for name in head]
        left = [i for i, is_text in enumerate(text) if is_text]
        return cls(head, [list(row.values()) for row in rows], left)

    def text(self) -> str:
        """Columns two spaces apart, a row a line."""
        head = [self.head] if self.head else []
        lines = [[plain(c.text) + c.sign for c in map(_cell, row)] for row in (*head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        out = []
        for i, cells in enumerate(lines, start=-len(head)):
            out += ["", plain(self.titles[i])] if i in self.titles else []
            sides = (
                c.ljust(w) if k in self.left else c.rjust(w)
                for k, (c, w) in enumerate(zip(cells, widths))
            )
            out.append("  ".join(sides).rstrip())
        return "\n".join(out)

    def html(self, style: str = "") -> str:
        """A ``<table>``. style: CSS of every cell, before its alignment."""
        caption = f"<caption>{markup(self.caption)}</caption>" if self.caption else ""
        head = "".join(
            self._tag('th scope="col"', i, cell, style) for i, cell in enumerate(self.head)
        )
        top = f"<thead><tr>{head}</tr></thead>" if head else ""
        return f"<table>{caption}{top}<tbody>{''.join(self._body(style))}</tbody></table>"

    def _body(self, style: str) -> Iterator[str]:
        for number, row in enumerate(self.rows):
            if number in self.titles:
                css = f"{style}text-align:left;padding-top:.8em"
                yield "</tbody><tbody>" if number else ""
                yield f'<tr><th colspan="{len(self.head)}" scope="rowgroup" style="{css}">'
                yield f"{markup(self.titles[number])}</th></tr>"
            cells = (
                self._tag('th scope="row"' if i == self.names else "td", i, cell, style)
                for i, cell in enumerate(row)
            )
            yield f"<tr>{''.join(cells)}</tr>"

    def _tag(self, tag: str, i: int, value: Any, style: str) -> str:
        cell = _cell(value)
        css = f"{style}text-align:{'left' if i in self.left else 'right'}"
        if cell.bold or "row" in tag:
            css += f";font-weight:{600 if cell.bold else 400}"
        kind = f' class="{cell.kind}"' if cell.kind else ""
        small = f"<small>{markup(cell.small)}</small>" if cell.small else ""
        inside = f"{cell.drawing}{markup(cell.text)}{small}"
        return f'<{tag}{kind} style="{css}">{inside}</{tag.split()[0]}>'


def _cell(value: Any) -> Cell:
    return value if isinstance(value, Cell) else Cell(str(value))
