"""Step noise that belongs to the seed and not to the steps: increments of one Brownian path per sample.

The noise of a step with η = 1 from σ_s to σ_t is, divided by β̄_t, the increment √(1 − e^{−2h}) z of
Z_λ = B(e^{2λ}) e^{−λ}, B a Brownian motion and λ = −ln σ; and Z is stationary:

    Z_t = e^{−h} Z_s + √(1 − e^{−2h}) z.

(For another η the normalised increment is that of the step's own noise up to O(h), which costs no order.)

Z is a virtual tree over λ in [−32, 32]: the middle m of every cell [a, b] is drawn, given its ends, by

    Z_m = e^{a−m} (1 − e^{2(m−b)})/(1 − e^{2(a−b)}) Z_a + ... Z_b + √(...) ξ,

with ξ from a stream of the seed that the cell's place numbers. So Z at a dyadic λ is the same number for
every grid, batch and device, and a solve draws the cells above its own levels alone. The dyadic place next
to a level, the simplest one within a quarter of the shorter step beside it, is moved to the level itself,
with its ξ: the z of the steps of one grid are independent and standard normal exactly, and two grids differ
by what the path does on a fraction of their steps. That costs some two draws in single precision a level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..denoising.seeding import PATH, NodeGenerator, normals

_SPAN = 32.0
_FINEST = 48  # halvings of the span, beyond which float64 does not tell a step's ends apart
_SLACK = 1 / 4  # of the shorter step beside a level
_END = 1 / 512  # of the first and the last: what is lost in between is made up in the next step
_Rows = npt.NDArray[np.float32]


class PathNoise:
    """Draws z (B, *) on the CPU of one step after another, each row an increment of its own sample's path.

    Args:
        seeds: One per sample.
        spans: The levels (from, to) of each draw, falling, as :meth:`ddim_ode.Plan.draws` has them.
        like: The state (B, *).

    Raises:
        ValueError: Levels that rise, as in churn, or are too near each other.
    """

    def __init__(
        self, seeds: Sequence[int], spans: Sequence[tuple[float, float]], like: Tensor
    ) -> None:
        self._spans = [(_log_snr(high), _log_snr(low)) for high, low in spans]
        self._sources = [NodeGenerator(seed, PATH) for seed in seeds]
        self._like = like.shape, like.dtype
        wanted = places([at for span in self._spans for at in span])
        self._increments = self._run(wanted)

    def __call__(self) -> Tensor:
        shape, dtype = self._like
        return torch.as_tensor(next(self._increments)).reshape(shape).to(dtype)

    def _run(self, wanted: list[tuple[float, float]]) -> Iterator[_Rows]:
        low, high = ((end, self._at(0, i)) for i, end in enumerate((-_SPAN, _SPAN)))
        inside = [place for place in wanted if abs(place[1]) < _SPAN]
        path = chain([low], self._below(-_SPAN, _SPAN, low, high, inside, 1), [high])
        at, value = next(path)
        for start, end in self._spans:
            while at < start:
                at, value = next(path)
            before = value
            while at < end:
                at, value = next(path)
            size = 1 / math.sqrt(-math.expm1(2 * (start - end)))
            z = before * np.float32(-size * math.exp(start - end))
            z += value * np.float32(size)
            yield z

    def _below(
        self,
        low: float,
        high: float,
        at_low: tuple[float, _Rows],
        at_high: tuple[float, _Rows],
        wanted: list[tuple[float, float]],
        cell: int,
    ) -> Iterator[tuple[float, _Rows]]:
        """(λ, Z) of the wanted places in the cell, in order, given those of its ends."""
        if not wanted:
            return
        middle = 0.5 * (low + high)
        left = [place for place in wanted if place[0] < middle]
        right = [place for place in wanted if place[0] > middle]
        own = wanted[len(left)] if len(left) + len(right) < len(wanted) else None
        at = middle if own is None else own[1]
        here = at, self._bridge(at_low, at_high, at, cell)
        yield from self._below(low, middle, at_low, here, left, 2 * cell)
        if own is not None:
            yield here
        yield from self._below(middle, high, here, at_high, right, 2 * cell + 1)

    def _bridge(
        self, low: tuple[float, _Rows], high: tuple[float, _Rows], at: float, cell: int
    ) -> _Rows:
        """Z between two places, given it there."""
        before, after = low[0] - at, at - high[0]  # both negative
        whole = math.expm1(2 * (before + after))
        value = self._at(cell, 0)
        value *= np.float32(math.sqrt(-math.expm1(2 * before) * math.expm1(2 * after) / whole))
        value += low[1] * np.float32(math.exp(before) * math.expm1(2 * after) / whole)
        value += high[1] * np.float32(math.exp(after) * math.expm1(2 * before) / whole)
        return value

    def _at(self, cell: int, end: int) -> _Rows:
        """ξ (B, n) of a cell."""
        size = math.prod(self._like[0][1:])
        bits = np.empty((len(self._sources), (size + 1) // 2), dtype=np.uint64)
        for row, source in zip(bits, self._sources):
            source.fill(cell, end, row)
        return normals(bits)[:, :size]


def _log_snr(sigma: float) -> float:
    """λ, within the span."""
    return _SPAN if sigma == 0 else min(max(-math.log(sigma), -_SPAN), _SPAN)


def places(levels: Sequence[float]) -> list[tuple[float, float]]:
    """For each λ of these, rising: a dyadic number near it, and the λ itself."""
    if any(later < level for level, later in pairwise(levels)):
        raise ValueError(
            "noise='path' needs levels that fall, and this plan goes back up, to noise that the path has "
            "left behind; use noise='step'"
        )
    distinct = sorted({*levels})
    gaps = [math.inf, *(later - level for level, later in pairwise(distinct)), math.inf]
    moved = [
        (_simplest(at, (_END if math.inf in beside else _SLACK) * min(beside)), at)
        for at, beside in zip(distinct, pairwise(gaps))
    ]
    if len({place for place, _ in moved}) < len(moved):
        raise ValueError(
            f"noise='path' does not tell levels apart that are nearer than {_SPAN * 2.0**-_FINEST:.1g} in "
            "ln σ; use noise='step', or drop one of them"
        )
    return moved


def _simplest(at: float, slack: float) -> float:
    """The number of the fewest binary digits within that slack of ``at``."""
    if abs(at) >= _SPAN:
        return at
    for digits in range(_FINEST):
        width = _SPAN * 2.0**-digits
        place = round(at / width) * width
        if abs(place - at) <= slack and abs(place) < _SPAN:
            return place
    return place
