"""What Ctrl-C in a long run leaves."""

from __future__ import annotations

from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a long run; the message says what is kept where, ``partial`` holds what was finished.

    That is a :class:`ddim_ode.Comparison` of the finished rows from ``compare``, the finished plans {nfe:
    Plan} from ``calibrate``, and the findings of the finished checks from ``diagnose``.

    >>> import ddim_ode
    >>> try:  # a call that took too long for somebody
    ...     raise ddim_ode.Interrupted("stopped; 1 of 2 plans is finished", {5: "the plan of 5 calls"})
    ... except ddim_ode.Interrupted as stop:
    ...     stop.partial
    {5: 'the plan of 5 calls'}
    """

    def __init__(self, message: str, partial: Any) -> None:
        super().__init__(message)
        self.partial = partial
