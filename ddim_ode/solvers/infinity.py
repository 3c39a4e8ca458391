"""Grids from σ = inf: which chart and ruler a method keeps its order in there."""

from __future__ import annotations

from dataclasses import replace

from .chart import CHARTS
from .methods import Method
from .tableau import Tableau

# Scales that are infinite at σ = inf, and the finite ones that take their place on a grid from there. For σ
# far below 1 they are the same.
_FINITE = {"sigma": "fraction", "log_sigma": "log_fraction", "log_alpha": "fraction"}


def from_infinity(method: Method, chart: str | None, many: bool) -> Method:
    """The method on a grid from σ = inf, where it keeps its order.

    In a scale that is infinite there, the first levels differ by their ratios and not by their distance,
    and after a DDIM step over the first of them any method is of second order, less a logarithm. So a chart
    with such a clock gives way to chart "flow", and such a ruler to a finite one. This stays as it is:

    - a chart that the caller asked for, Euler (which is DDIM), a formula for σ = 0, of chart "eps", and one
      (bh1) that takes a derivative in ln σ;
    - the ruler of a finite chart on few steps: x̂₀ read in ln σ then errs less. On a mixture fitted to
      digits, RMS .035 and .048 for unipc2 and unipc3 with 8 calls, and .044 and .078 in ln(σ/(1+σ)).

    Args:
        method: As on any other grid.
        chart: What the caller asked for.
        many: Whether there are enough steps for the order to count.
    """
    if (method.stages is None and not method.multistep) or method.final == "full_order":
        return method
    clock, ruler = CHARTS[method.chart].clock, method.ruler
    if clock in _FINITE:
        if chart is not None:
            return method
        ruler = None if isinstance(method.stages, Tableau) else ruler or clock
        return replace(method, chart="flow", ruler=_FINITE.get(ruler or "", ruler))
    if not many or "bh1" in method.rules:
        return method
    return replace(method, ruler=_FINITE.get(ruler or "", ruler))
