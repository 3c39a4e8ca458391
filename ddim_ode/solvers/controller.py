"""Step-size control, one initial value problem per sample. Numbers only: no tensor is seen here.

A trial step of length h has the error ratio r = ‖e/(atol + rtol·max|z|)‖/share and is accepted if r ≤ 1.
The next step aims at r = target (Gustafsson's PI controller; k the order of e in h, r₋ the ratio of
the accepted step before, all ratios in units of the target):

    h ← h · clip(r^(−α/k) · r₋^(β/k))      after an accepted step,
    h ← h · clip(r^(−1/k)) < h             after a rejected one.

A trial with a NaN or an infinity in it is a rejection that shrinks more.

Tolerances are meant for the end of the path, where the errors of all steps arrive, some of them
amplified; so a step may spend a *share* of them. On two narrow modes (``benchmarks/honesty.py``, rk45, 48
problems of 1,000 seeds) with share = 1 up to 13 % of the end errors were above 10 × tolerance, and 87 of
those went unreported; with 0.4 up to 0.1 % were above, with 0.2 none, all reported, for 13 % and 23 %
more calls. And no step is longer than *longest*, about a factor e in σ: features of scale s of the data
show where σ ≈ s, and a longer step can pass one by with a small error estimate (on eight narrow modes in
the plane, tests/solve/test_adaptive.py, errors went unreported with 1.2).

The *first* step is short because a trained network is rough at the largest σ, where the error estimate
of rk45 hardly weighs the first stage; it may grow tenfold at once.

A sample is accepted, rejected, finished and given up by itself. Calls are counted per sample; a
*limit* on them either stops a sample where it is, or (``stretch``) its steps are made long enough
to arrive with the calls it has left: h ≥ remaining / steps that still fit.

References: Gustafsson 1991, ACM TOMS 17(4); Hairer, Nørsett, Wanner I, II.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..schedules.schedule import Array

SUCCESS, MAX_NFE, NON_FINITE, UNDERFLOW = "success", "max_nfe", "non_finite", "step_underflow"
STATUSES = (SUCCESS, MAX_NFE, NON_FINITE, UNDERFLOW)
Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Gains:
    """The controller's constants.

    share: of the tolerance that a step may spend. target: the ratio aimed at, well below 1 so that
    few steps are rejected. integral, proportional: α, β. grow, shrink: what h may change by in one go.
    non_finite_shrink: after a non-finite trial; so many of those in a row (non_finite_run) or in all
    (non_finite_total) end a sample. first, longest: steps, in units of the clock.
    """

    share: float = 0.2
    target: float = 0.1
    integral: float = 0.6
    proportional: float = 0.3
    grow: float = 10.0
    shrink: float = 0.2
    non_finite_shrink: float = 0.1
    non_finite_run: int = 4
    non_finite_total: int = 10
    first: float = 0.6
    longest: float = 1.0


DEFAULT = Gains()


class Controller:
    """Positions, steps, counts and outcomes of ``batch`` samples on an interval of length ``span``.

    error_order: k, or one for each sample. cost: calls of a step. limit: of calls per sample, ``stretch``
    what it means (above).
    joint: one ratio, the RMS over the samples, and so one step for all of them.
    resolution: the shortest step that moves the clock.

    All arrays are (batch,). ``active`` lists the samples still under way; what the methods take and
    give has one entry for each of them.
    """

    def __init__(
        self,
        batch: int,
        span: float,
        *,
        error_order: int | Index,
        cost: int,
        limit: int,
        stretch: bool = False,
        joint: bool = False,
        resolution: float = 0.0,
        gains: Gains | None = None,
    ) -> None:
        self.error_order: int | Index = error_order
        self.cost, self.limit = cost, limit
        self.stretch, self.joint, self.resolution = stretch, joint, resolution
        self.gains = gains or DEFAULT
        self.active = np.arange(batch)
        self.remaining = np.full(batch, float(span))
        self.step = np.full(batch, self.gains.first)
        self.calls, self.accepted, self.rejected = np.zeros((3, batch), dtype=np.int64)
        self.status = np.full(batch, "", dtype="<U16")
        self.missed = np.zeros(batch, dtype=bool)  # took a step above tolerance
        self._before = np.full(batch, self.gains.target)  # error ratio of the last accepted step
        self._just_rejected = np.zeros(batch, dtype=bool)
        self._bad_run, self._bad = np.zeros((2, batch), dtype=np.int64)  # non-finite trials

    def charge(self, calls: int) -> None:
        """Count calls that every active sample took part in."""
        self.calls[self.active] += calls

    def fail(self, failed: Mask) -> None:
        """Give up active samples as non-finite."""
        self.status[self.active[failed]] = NON_FINITE

    def propose(self) -> Mask:
        """Set the next steps, or the outcome; which active samples leave. ``drop`` must follow."""
        i = self.active
        remaining, left = self.remaining[i], self._steps_left()
        step = np.minimum(np.minimum(self.step[i], self.gains.longest), remaining)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Two equal steps instead of a long one and a rest.
            step = np.where(step >= remaining, remaining, np.minimum(step, remaining / 2))
            if self.stretch:
                step = np.maximum(step, remaining / np.maximum(left, 1))
        self.step[i] = step
        outcome = np.select(
            [self.status[i] != "", remaining == 0, left <= 0, step <= self.resolution],
            [self.status[i], np.where(self.missed[i], MAX_NFE, SUCCESS), MAX_NFE, UNDERFLOW],
            "",
        )
        self.status[i] = outcome
        return outcome != ""

    def drop(self, leaving: Mask) -> None:
        """Take samples off the active list."""
        self.active = self.active[~leaving]

    def judge(self, ratio: Array, finite: Mask) -> Mask:
        """Which trials are accepted, from their error ratios; moves those, and sets all next steps."""
        i, gains = self.active, self.gains
        self.calls[i] += self.cost
        step, remaining = self.step[i], self.remaining[i]
        ratio = np.where(finite, ratio / gains.share, 1.0)
        whole = finite
        if self.joint:
            ratio = np.full_like(ratio, np.sqrt(np.mean(ratio**2)))
            whole = np.full_like(finite, finite.all())  # what one sample does, all do
        good = whole & (ratio <= 1)
        forced = np.zeros_like(good)
        if self.stretch:  # rejected, it would have to be repeated no shorter
            forced = whole & ~good & (remaining >= step * self._steps_left() * (1 - 1e-9))
        accepted = good | forced

        self._bad[i] += ~finite
        self._bad_run[i] = np.where(finite, 0, self._bad_run[i] + 1)
        hopeless = self._bad_run[i] >= gains.non_finite_run
        hopeless |= self._bad[i] >= gains.non_finite_total
        self.fail(hopeless | (~finite & self.stretch & (self._steps_left() <= 0)))

        self.remaining[i] = np.where(accepted, remaining - step, remaining)
        self.step[i] = step * self._factor(ratio, whole, accepted)
        # a step beyond the longest that the error estimate is trusted for, to arrive within the budget
        self.missed[i] |= forced | (accepted & (step > self.gains.longest * (1 + 1e-9)))
        self.accepted[i] += accepted
        self.rejected[i] += ~accepted
        # An error of almost nothing says little of the next one: it counts as a thousandth of the target.
        least = 1e-3 * gains.target
        self._before[i] = np.where(accepted, np.maximum(ratio, least), self._before[i])
        self._just_rejected[i] = ~accepted
        return accepted

    def _steps_left(self) -> npt.NDArray[np.int64]:
        """Steps that still fit into the limit."""
        return (self.limit - self.calls[self.active]) // self.cost

    def _factor(self, ratio: Array, finite: Mask, accepted: Mask) -> Array:
        """What the next step is longer by (accepted), or the trial is repeated with."""
        i, gains = self.active, self.gains
        k = self.error_order if isinstance(self.error_order, int) else self.error_order[i]
        off, before = np.maximum(ratio, 1e-10) / gains.target, self._before[i] / gains.target
        onward = off ** (-gains.integral / k) * before ** (gains.proportional / k)
        most = np.where(self._just_rejected[i], 1.0, gains.grow)  # not right after a rejection
        onward = np.clip(onward, gains.shrink, most)
        again = np.maximum(off ** (-1 / k), gains.shrink)  # < 1, as a rejected ratio is > target
        again = np.where(finite, again, gains.non_finite_shrink)
        return np.where(accepted, onward, again)


def amplified(error: Array, step: Array, rates: tuple[Array, Array], local: Array) -> Array:
    """E' = E·exp ∫λ du + local error: λ by the trapezoid of its values at the step's ends.

    A step's growth counts up to e⁵: a flow that grows faster is not one the step has followed, and the
    difference quotient behind λ can be of two states that happen to be close.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a network that returns 1e30
        growth = np.exp(np.clip(0.5 * step * (rates[0] + rates[1]), -100.0, 5.0))
        return error * growth + local
