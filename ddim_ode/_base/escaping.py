"""Names, labels and titles that others have chosen, shown as text and nothing else.

A plan, a class or a folder may be called anything. In a terminal an escape moves the cursor, in a table a
line break makes a row, in a picture "$" starts a formula, and in a spreadsheet "=" does.
"""

from __future__ import annotations

import html
from typing import Any


def plain(text: str) -> str:
    """One line of printable characters; the others as Python writes them.

    >>> print(plain("dd\\x1b[2Jim\\nσ"))
    dd\\x1b[2Jim\\nσ
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def lines(text: str) -> str:
    """The same, line by line."""
    return "\n".join(map(plain, text.split("\n")))


def label(text: str) -> str:
    """For matplotlib: a dollar is a dollar."""
    return plain(text).replace("$", r"\$")


def markup(text: str) -> str:
    """For HTML."""
    return html.escape(plain(text))


def cell(value: Any) -> Any:
    """For a CSV file that a spreadsheet opens: text that would be a formula gets a quote before it.

    >>> cell("=1+1"), cell("ddim"), cell(-1.5)
    ("'=1+1", 'ddim', -1.5)
    """
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
