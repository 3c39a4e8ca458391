"""How results show themselves: a line in a terminal, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .escaping import markup

_LONGEST = 1000  # characters of a cell
ROWS = 10  # of a table with one for each sample
_CELL = "padding:.1em .6em;text-align"


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
    ends = sorted(set(values))
    if not ends:
        return "–"
    return "–".join(f"{value:g}" for value in dict.fromkeys((ends[0], ends[-1])))


def card(title: str, facts: Iterable[tuple[str, Any]], below: str = "") -> str:
    """A table of a name and what it says, without those that say nothing. below: HTML."""
    rows = "".join(
        f'<tr><th scope="row" style="{_CELL}:left">{markup(name)}</th>'
        f'<td style="{_CELL}:left">{markup(cut(str(said)))}</td></tr>'
        for name, said in facts
        if said
    )
    return f"<p><b>{markup(title)}</b></p><table><tbody>{rows}</tbody></table>{below}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: Sequence[int] = ()) -> str:
    """A table with a head; numbers to the right, the columns ``left`` to the left."""

    def line(kind: str, cells: Sequence[Any]) -> str:
        sides = ("left" if i in left else "right" for i in range(len(cells)))
        return "".join(
            f'<{kind} style="{_CELL}:{side}">{markup(cut(str(cell)))}</{kind.split()[0]}>'
            for side, cell in zip(sides, cells)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    top = line('th scope="col"', head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def note(text: str) -> str:
    """A paragraph."""
    return f"<p>{markup(text)}</p>" if text else ""
