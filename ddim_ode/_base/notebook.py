"""How results show themselves: a line in a terminal, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .escaping import markup
from .table import Cell, Table

_LONGEST = 1000  # characters of a cell
ROWS = 10  # of a table with one for each sample
_STYLE = "padding:.1em .6em;"


def brief(value: Any) -> str:
    """A value on one line; tensors and arrays by their shapes.

    >>> import numpy as np
    >>> brief({"y": 10, "emb": np.zeros((77, 768))})
    "{'y': 10, 'emb': ndarray (77, 768)}"
    """
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):
        return f"{type(value).__name__.lower()} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {brief(item)}" for key, item in value.items()) + "}"
    return cut(repr(value), 80)


def cut(text: str, longest: int = _LONGEST) -> str:
    """On one line of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def listed(values: Sequence[Any], shown: int = 4) -> str:
    """The first of many.

    >>> listed(["1", "2", "3", "4", "5", "6"])
    '1, 2, 3, 4, … (6)'
    """
    more = f", … ({len(values)})" if len(values) > shown else ""
    return ", ".join(map(str, values[:shown])) + more


def span(values: Iterable[float]) -> str:
    """The one value that all have, or the least and the most."""
    ordered = sorted(set(values))
    return "–".join(f"{value:g}" for value in dict.fromkeys(ordered[:1] + ordered[-1:])) or "–"


def card(title: str, facts: Iterable[tuple[str, Any]], below: str = "") -> str:
    """A table of a name and what it says, without those that say nothing. below: HTML."""
    rows = [(Cell(name, bold=True), cut(str(fact))) for name, fact in facts if fact]
    table = Table((), rows, left=(0, 1)).html(_STYLE)
    return f"<p><b>{markup(title)}</b></p>{table}{below}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: Sequence[int] = ()) -> str:
    """A table with a head; numbers to the right, the columns ``left`` to the left."""
    cells = [[cut(str(value)) for value in row] for row in rows]
    return Table(head, cells, left, names=None).html(_STYLE)


def note(text: str) -> str:
    """A paragraph."""
    return f"<p>{markup(text)}</p>" if text else ""
