"""What Ctrl-C in a long run leaves."""

from __future__ import annotations

from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a long run; the message says what is kept where, ``partial`` holds what was finished.

    That is a :class:`ddim_ode.Comparison` of the finished rows from ``compare``, the finished plans {nfe:
    Plan} from ``calibrate``, the findings of the finished checks from ``diagnose``.
    """

    def __init__(self, message: str, partial: Any) -> None:
        super().__init__(message)
        self.partial = partial
