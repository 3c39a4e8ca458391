"""What a long run will cost, printed before it starts, from a network call that is timed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .problem import Problem

# A calibration's, for each noise's solution: one in four is solved with half as many steps, too.
SOLUTION_CALLS = {"fast": 40.5, "thorough": 300}
_ENOUGH, _TRIES = 0.2, 3  # seconds of calls, and calls at most: the first may compile or allocate
# From how many seconds on a unit is taken, and how many it has.
_UNITS = (
    *((172_800, 86_400, "days"), (7_200, 3_600, "h"), (120, 60, "min")),
    *((1, 1, "s"), (0, 1e-3, "ms")),
)


def seconds_a_call(problem: Problem, x: Tensor) -> float:
    """Wall time that a network call takes for each sample of a batch x (b, *), half-way up."""
    schedule = problem.model.schedule
    sigma = float(schedule.sigma(schedule.T / 2))
    times: list[float] = []
    while sum(times) < _ENOUGH and len(times) < _TRIES:
        started = time.perf_counter()
        with torch.no_grad():
            problem(x, sigma)[0].cpu()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times) / len(x)


def tell_comparison(
    seconds: float, n: int, solves: Sequence[int], calls: int, rows: int, folder: Path | None
) -> None:
    """Print what n noises will cost: ``calls`` for all rows, and those of the reference's solves for each.

    seconds: Of a call. solves: The calls of each; the first two are made, the others where they are needed.
    folder: Of what is kept from before.
    """
    least, most = sum(solves[:2]), sum(solves)
    what = f"{n:,} noises × {least:,} to {most:,} calls for the reference, " if solves else ""
    what += f"{calls:,} for {rows} rows"
    remedy = "fewer noises or a coarser reference cost less"
    if folder is not None:
        remedy += f"; what {folder} holds costs nothing"
    low, high = (duration(seconds * (calls + n * each)) for each in (least, most))
    _tell(f"compare: {what}", seconds, low if low == high else f"{low} to {high}", remedy)


def tell_calibration(
    seconds: float, n: int, budget: str, nfe: Sequence[int], others: int = 0
) -> None:
    """Print what fits of those budgets of calls, on n noises, will cost; others: calls beside those."""
    each = sum(most_calls(budget, k) for k in nfe)
    least = "at most" if budget == "fast" else "some"
    parts = [f"{n:,} noises × {least} {each:,} network calls"] if n else []
    parts += [f"some {others:,} calls to come near the data"] if others else []
    whole = duration(seconds * (n * each + others))
    _tell(f"calibrate: {', and '.join(parts)}", seconds, whole, "fewer noises cost less")


def most_calls(budget: str, nfe: int) -> int:
    """Network calls for each noise that a fit of nfe calls may take; of a thorough one, about."""
    return math.ceil(SOLUTION_CALLS[budget] + fit_calls(budget, nfe))


def fit_calls(budget: str, nfe: int) -> int:
    """Those of them that are not for the solution."""
    return 28 + 12 * nfe if budget == "fast" else 300 * nfe


def _tell(what: str, seconds: float, whole: str, remedy: str) -> None:
    each = f"{what}, at {duration(seconds)} each"
    print(f"{each}: {whole} in the network ({remedy})", file=sys.stderr)


def duration(seconds: float) -> str:
    """A time in the unit that a person would choose.

    >>> duration(0.00423), duration(95), duration(400), duration(1e5)
    ('4.2 ms', '95 s', '6.7 min', '28 h')
    """
    size, unit = next((size, unit) for least, size, unit in _UNITS if seconds >= least)
    number = seconds / size
    return f"{number:.0f} {unit}" if number >= 9.95 else f"{number:.2g} {unit}"
