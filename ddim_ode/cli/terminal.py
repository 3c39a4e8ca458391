"""The two streams of a command: whatever they can show, and however they end.

A terminal of another encoding than UTF-8 gets σ as "sigma" rather than an error after hours of work; a
reader that goes away (``ddim-ode methods | head``) ends the command in silence.
"""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata

BROKEN_PIPE = 141  # what a shell reports of a program that SIGPIPE ends
_HANDLER = "ddim_ode.legible"
# Greek letters go by their names, and all else that Unicode has a plain form for by that.
_SPELT = {
    **{"\u0302": "_hat", "\u0304": "_bar", "²": "^2", "λ": "lambda", "Λ": "Lambda"},
    **{"–": "-", "—": "-", "−": "-", "·": ".", "×": "x", "±": "+-", "∞": "inf"},
    **{"≤": "<=", "≥": ">=", "→": "->", "↦": "->"},
}


def prepare() -> None:
    """Let both streams take any text."""
    codecs.register_error(_HANDLER, _legible)
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)


def finish(status: int) -> int:
    """Write out what is buffered; the status, or another where that cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # or the interpreter tries again as it ends, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(error, BrokenPipeError):
                return BROKEN_PIPE
            print(f"ddim-ode: its output cannot be written: {error}", file=sys.stderr)
            status = status or 2
    return status


def _legible(error: UnicodeError) -> tuple[str, int]:
    """What stands for the characters that a stream's encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(spelt, error.object[error.start : error.end])), error.end


def spelt(char: str) -> str:
    """A character in ASCII."""
    if char in _SPELT or char.isascii():
        return _SPELT.get(char, char)
    if (parts := unicodedata.normalize("NFKD", char)) != char:
        return "".join(map(spelt, parts))
    if unicodedata.combining(char):
        return ""
    kind, _, name = unicodedata.name(char, "").partition(" LETTER ")
    if kind.startswith("GREEK") and name:
        return name.lower() if "SMALL" in kind else name.capitalize()
    return char.encode("ascii", "backslashreplace").decode()
