"""Warnings that name the caller's line, not one of ours."""

from __future__ import annotations

import sys
import warnings

# Between the caller and us: decorators, and the classes that our schedulers are made through.
_OURS = ("ddim_ode", "torch", "contextlib", "functools", "diffusers")


class Caution(UserWarning):
    """What this package warns of: the result is what was asked for, and perhaps not what was meant."""


def warn(message: str, category: type[Warning] = Caution) -> None:
    """As ``warnings.warn``, from the innermost frame outside this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).split(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
