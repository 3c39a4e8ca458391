"""Rows that print as a table."""

from __future__ import annotations

from .._base import notebook, table


class Table(list[dict[str, object]]):
    """Rows with the same keys, which print as a table."""

    def _repr_html_(self) -> str:
        head = list(self[0]) if self else []
        return notebook.table(
            head, [[_cell(row[key]) for key in head] for row in self], range(len(head))
        )

    def __str__(self) -> str:
        head = list(self[0]) if self else []
        cells = [[_cell(row[key]) for key in head] for row in self]
        return table.Table(head, cells, range(len(head))).text()

    __repr__ = __str__


def _cell(value: object) -> str:
    return "–" if value is None else str(value)
