"""The steps of a plan: from a chart, a grid and a method's data to ops.

Steps are appended from left to right. Each writes its stages' ops and its commit in terms of the network
calls made so far; where a call is found in the history (newest first) follows from how many came after it.

The error of a multistep step is estimated by the difference between it and the same step through one
velocity more, the one at its end, which the next step needs anyway (corrector minus predictor). To first
order the state x/√(ᾱ² + β̄²) carries such errors along unchanged, so their sum at the last positive level
is one fixed combination of the stored vectors: ``error_weights``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..schedules.schedule import Array, Schedule
from .chart import SCALES, Chart, Scale, convert, ddim_step
from .methods import Method
from .plan import Node, Op
from .quadrature import step_weights
from .stochastic import MOST, StepClock, decay, stretches
from .tableau import Tableau

# The least distance of two levels that one polynomial reads, in the method's ruler, as a share of the step:
# of two that nearly coincide the newer one is read, and then those before. A distance of 1/r multiplies the
# errors of velocities by r: rounding, and in UniPC, whose velocities are of predicted states, all that the
# corrector moves (on a Gaussian an error of .11 becomes .20 at r = 13, and 18 at r = 1,400). The named
# grids have r < 9, but those in time on ve, which have no steps where the data are, and linear_quadratic.
APART = 0.05
_EULER = Tableau(1, (0,), ((),), (1,))
Clock = Scale | StepClock
_Levels = npt.NDArray[np.int64]
_Known = npt.NDArray[np.bool_]


class Steps:
    """The ops of a plan in the making, and what its steps share.

    ``ddim``, ``one_step`` and ``multistep`` append the steps [first, last).

    Args:
        schedule, chart: Of the plan.
        vector: What the plan stores.
        sigmas: (n+1,), the grid.
        noise: (n,) The standard deviation that each step adds, None for the ODE.
        estimates: Whether ``error_weights`` are wanted; to a multistep method they cost as much as a step.
    """

    def __init__(
        self,
        schedule: Schedule,
        chart: Chart,
        vector: str,
        sigmas: Array,
        noise: Sequence[float] | None = None,
        estimates: bool = True,
    ) -> None:
        self.schedule, self.chart, self.vector, self.sigmas = schedule, chart, vector, sigmas
        self.alpha, self.beta = schedule.scales(sigmas)
        self.clock = SCALES[chart.clock]
        self._along = "log_fraction" if np.isinf(sigmas).any() else "log_sigma"
        self.noise = None if noise is None else np.array(noise)
        self._estimated = estimates and noise is None
        # At ᾱ = 0 the pair (x, ε̂) says nothing of x̂₀: what is stored there is x̂₀ itself.
        self._blind = bool(np.isinf(sigmas).any()) and vector in ("eps", "score", "exp")
        self.first_vector = "x0" if self._blind and np.isinf(sigmas[0]) else vector
        levels, times = sigmas.tolist(), schedule.time(sigmas).tolist()
        falls = levels[0] > levels[-1]
        self._nodes: list[Node | None] = [Node(s, t, vector) for s, t in zip(levels, times)]
        self._nodes[0] = Node(levels[0], times[0], self.first_vector)
        self._nodes[-1] = None  # nothing is evaluated where the plan ends
        self._rises = np.flatnonzero(np.diff(sigmas) > 0).tolist() if falls else []
        for level in self._rises:  # nor where noise is added at once
            self._nodes[level] = None
        self.ops: list[Op] = []
        self._calls, self._call_at = 0, {0: 0}  # by level
        if self._nodes[0] is not None:
            self.ops, self._calls = [Op(1.0, (), self._nodes[0], False, 0.0)], 1
        self._errors = np.zeros(sigmas.size)  # by level

    def interior(self, method: Method) -> tuple[int, int]:
        """The steps [first, last) that the method can take in its chart; the others are DDIM steps."""
        n = self.sigmas.size - 1
        rising = self.sigmas[-1] > self.sigmas[0]
        top = slice(n, None) if rising else slice(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            within = (
                not self._blind
                and np.isfinite(self.clock.of(self.sigmas[top]))[0]
                and self.chart.gauge(self.alpha[top], self.beta[top])[0] > 0
                and np.isfinite(self._ruler(method)[0].of(self.sigmas[top]))[0]
            )
        if rising:
            return 0, n - int(not within)
        lands = self.sigmas[-1] == 0 and method.final != "full_order"
        last = n - int(lands)
        return min(int(not within), last), last

    def error_weights(self) -> tuple[float, ...]:
        """One weight per network call, for the error of x at the last positive level; () if none."""
        if not self._errors.any():
            return ()
        weights = [0.0] * self._calls
        for level, weight in enumerate(self._errors.tolist()):
            if weight:
                weights[self._call_at[level]] = weight
        return tuple(weights)

    # -- appending ----------------------------------------------------------------------------
    def _op(
        self,
        scale: float,
        weights: Sequence[float],
        calls: Sequence[int],
        node: Node | None,
        commit: bool,
        noise: float | tuple[float, ...] = 0.0,
    ) -> None:
        """Append an op that reads these calls, newest first."""
        newest, oldest = self._calls - 1, min(calls)
        row = list(weights)
        if newest - oldest >= len(row):  # other calls were made in between
            row = [0.0] * (newest - oldest + 1)
            for call, weight in zip(calls, weights):
                row[newest - call] = weight
        self.ops.append(Op(scale, tuple(row), node, commit, noise))
        self._calls += node is not None

    def _commit(
        self,
        step: int,
        scale: float,
        weights: Sequence[float],
        calls: Sequence[int],
        noise: float | tuple[float, ...] = 0.0,
    ) -> None:
        self._op(scale, weights, calls, self._nodes[step + 1], True, noise)
        self._call_at[step + 1] = self._calls - 1

    # -- one-step methods -----------------------------------------------------------------------
    def ddim(self, first: int, last: int) -> None:
        """DDIM steps."""
        if first == 0 < last and self.first_vector != self.vector:
            self._ddim(self.first_vector, 0, 1)
            first = 1
        if first < last:
            self._ddim(self.vector, first, last)

    def _ddim(self, vector: str, first: int, last: int) -> None:
        std = np.zeros(last - first) if self.noise is None else self.noise[first:last]
        before = self.alpha[first:last], self.beta[first:last]
        after = self.alpha[first + 1 : last + 1], self.beta[first + 1 : last + 1]
        scale, weight = ddim_step(vector, before, after, std)
        rows = zip(range(first, last), scale.tolist(), weight.tolist(), std.tolist())
        for step, s, w, z in rows:
            self._commit(step, s, (w,), (self._call_at[step],), z)

    def one_step(self, method: Method, first: int, last: int, chart: Chart | None = None) -> None:
        """Runge–Kutta: every stage's x as a row over (x, V_0, V_1, ...), vectorised over steps."""
        if first >= last:
            return
        chart = chart or self.chart
        clock: Clock = SCALES[chart.clock]
        start, end = self.sigmas[first:last], self.sigmas[first + 1 : last + 1]
        if self.noise is not None:
            clock = self._step_clock(first, last)
        levels, weights = self._stages(method, clock, start, end)
        m = len(levels)

        def gauge(sigma: Array, alpha: Array, beta: Array) -> Array:
            return chart.gauge(alpha, beta) if self.noise is None else alpha / clock.of(sigma)

        gauge_start = gauge(start, *self.schedule.scales(start))
        felt, draws = self._felt(method, clock, [*levels, end])

        rows: list[Array] = []
        velocities: list[Array] = []
        for i, (level, row_weights) in enumerate(zip([*levels, end], weights)):
            alpha, beta = self.schedule.scales(level)
            row = np.zeros((len(start), 1 + m + felt.shape[2]))
            row[:, 0] = 1 / gauge_start
            for weight, velocity in zip(row_weights, velocities):
                row += weight[:, None] * velocity
            row *= gauge(level, alpha, beta)[:, None]
            row[:, 1 + m :] += beta[:, None] * felt[:, i]
            rows.append(row)
            if i < m:  # dy/du = p·x + q·V there
                a, b = convert(self.vector, chart.vector, alpha, beta)
                factor = chart.factor(alpha, beta)
                velocity = (factor * a)[:, None] * row
                velocity[:, 1 + i] += factor * b
                velocities.append(velocity)

        times = [self.schedule.time(level).tolist() for level in levels]
        tables = [row.tolist() for row in rows]
        for k, step in enumerate(range(first, last)):
            calls = [self._call_at[step]]
            for i in range(1, m):
                scale, *row_k = tables[i][k]
                node = Node(float(levels[i][k]), times[i][k], self.vector)
                noise = _shared(row_k[m:], draws[k], i)
                self._op(scale, row_k[i - 1 :: -1], calls, node, False, noise)
                calls = [self._calls - 1, *calls]
            scale, *row_k = tables[m][k]
            self._commit(step, scale, row_k[m - 1 :: -1], calls, _shared(row_k[m:], draws[k], m))

    def descents(self, method: Method, first: int, last: int) -> None:
        """A one-step method down every stretch of falling levels, and noise up in between."""
        assert method.rises is not None
        for rise in [*(rise for rise in self._rises if rise < last), last]:
            self.one_step(method, first, rise)
            if rise == last:
                break
            (alpha, higher), low = self.alpha[rise : rise + 2], self.sigmas[rise]
            std = higher * np.sqrt(self.sigmas[rise + 1] ** 2 - low**2) * method.rises.noise_scale
            self.ops.append(Op(float(higher / alpha), (), self._nodes[rise + 1], True, float(std)))
            self._calls += 1
            self._call_at[rise + 1] = self._calls - 1
            first = rise + 1

    def _step_clock(self, first: int, last: int) -> StepClock:
        """The clock of steps with noise."""
        assert self.noise is not None
        start, end = self.sigmas[first:last], self.sigmas[first + 1 : last + 1]
        lost = decay(self.noise[first:last], self.beta[first + 1 : last + 1])
        return StepClock(np.minimum(lost, MOST) / np.log(start / end), end)

    def _felt(
        self, method: Method, clock: Clock, levels: list[Array]
    ) -> tuple[Array, npt.NDArray[np.bool_]]:
        """What stages at these levels (m+1 of (N,)) feel of the step's draws, in x/β̄; and which exist."""
        if not isinstance(clock, StepClock):
            return np.zeros((len(levels[0]), len(levels), 0)), np.zeros((len(levels[0]), 0), bool)
        table = np.stack(levels, axis=1)
        if (np.diff(table, axis=1) > 0).any():
            raise ValueError(
                f"method {method.name!r} looks at levels that rise within a step, which has no noise yet "
                "to show there; drop eta and noise_std"
            )
        return stretches(clock.tau2, table)

    def _stages(
        self, method: Method, clock: Clock, start: Array, end: Array
    ) -> tuple[list[Array], list[list[Array]]]:
        """σ of each stage, and per stage and for the step the weights of the earlier velocities."""
        stages = method.stages or _EULER
        if isinstance(stages, Tableau):
            m, u = stages.stages, clock.of(start)
            h = clock.of(end) - u
            levels = [
                start if c == 0 else end if c == 1 else clock.inverse(u + c * h)
                for c in stages.c[:m]
            ]
            return levels, [[h * w for w in row] for row in (*stages.a[:m], stages.b[:m])]
        ruler, knots = self._ruler(method)
        r, dr = ruler.of(start), ruler.of(end) - ruler.of(start)
        levels = [start if c == 0 else ruler.inverse(r + c * dr) for c in stages.at]
        weights = []
        for reads, to in zip(stages.reads, [*levels, end]):
            row = [np.zeros_like(start)] * len(levels)
            if reads:
                nodes = np.stack([levels[j] for j in reads], axis=1)
                known = np.ones_like(nodes, dtype=bool)
                table = step_weights(clock, ruler, nodes, known, start, to, knots, method.rules)
                for j, column in zip(reads, table.T):
                    row[j] = column
            weights.append(row)
        return levels, weights

    # -- multistep methods ----------------------------------------------------------------------
    def multistep(self, method: Method, oldest: int, first: int, last: int) -> None:
        """Adams: the newest ``past`` velocities, back to level ``oldest``; fewer while fewer are known."""
        if first >= last:
            return
        ruler, knots = self._ruler(method)
        n = self.sigmas.size - 1
        gauge = self.chart.gauge(self.alpha, self.beta)
        clock: Clock = self.clock
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = self.chart.factor(self.alpha, self.beta)
        steps = np.arange(first, last)
        level = self._apart(ruler, steps, method.past, oldest)
        known = level >= oldest
        if method.final == "lower_order":
            known &= np.arange(method.past) < (n - steps)[:, None]
        counts = known.sum(axis=1).tolist()
        level = np.maximum(level, oldest)
        read = level.tolist()
        start, end = self.sigmas[steps], self.sigmas[steps + 1]
        front, scales = gauge[steps + 1], gauge[steps + 1] / gauge[steps]
        noises = [0.0] * len(steps)
        if self.noise is not None:  # in chart data, of which x̂₀ is the velocity whatever the clock
            clock, noises = self._step_clock(first, last), self.noise[first:last].tolist()
            front = self.alpha[steps + 1]
            scales = scales * np.exp(-decay(self.noise[first:last], self.beta[steps + 1]))

        def table(level: _Levels, known: _Known, estimate: bool = False) -> Array:
            at = self.sigmas[level]
            if estimate:  # in a ruler that is not long where σ is large
                fraction, along = SCALES["fraction"], SCALES[self._along]
                w = step_weights(clock, fraction, at, known, start, end, along=along)
            else:
                w = step_weights(clock, ruler, at, known, start, end, knots, method.rules)
            return front[:, None] * np.where(known, factor[level] * w, 0.0)

        predicted = table(level, known)
        # Once more through the velocity at the step's end, where there will be one.
        level = np.column_stack([steps + 1, level])
        known = np.column_stack([steps + 1 < n, known])
        corrected = predicted
        if method.corrector or self._estimated:
            with np.errstate(divide="ignore", invalid="ignore"):  # ln 0 in a last step to 0
                corrected = table(level, known, estimate=not method.corrector)
        if self._estimated:
            self._estimate(steps, level, corrected, predicted)

        again = method.corrector == "evaluated"
        rows = zip(
            steps.tolist(), scales.tolist(), read, counts, predicted.tolist(), corrected.tolist()
        )
        for (step, s, levels, count, before, after), noise in zip(rows, noises):
            calls = [self._call_at[i] for i in levels[:count]]
            if method.corrector and step + 1 < n:
                node = self._nodes[step + 1]
                self._op(s, before[:count], calls, node, False, noise)
                calls = [self._calls - 1, *calls]
                same = (0.0, noise) if noise else 0.0
                self._op(s, after[: count + 1], calls, node if again else None, True, same)
                self._call_at[step + 1] = self._calls - 1
            else:
                self._commit(step, s, before[:count], calls, noise)

    def _apart(self, ruler: Scale, steps: _Levels, past: int, oldest: int) -> _Levels:
        """The levels (N, past) that the steps read, newest first; what is below ``oldest`` is not there."""
        with np.errstate(divide="ignore", invalid="ignore"):  # the last level may be 0 or inf
            at = ruler.of(self.sigmas)
            least = APART * np.abs(at[steps + 1] - at[steps])
            columns = [steps]
            for _ in range(past - 1):
                newer, level = columns[-1], columns[-1] - 1
                while (
                    near := (level >= oldest)
                    & (np.abs(at[np.maximum(level, 0)] - at[newer]) < least)
                ).any():
                    level = level - near
                columns.append(level)
        return np.stack(columns, axis=1)

    def _estimate(self, steps: _Levels, level: _Levels, corrected: Array, predicted: Array) -> None:
        """Add the errors of these steps, each carried to the last positive level."""
        norm = np.hypot(self.alpha, self.beta)
        n = self.sigmas.size - 1
        difference = corrected.copy()
        difference[:, 1:] -= predicted
        difference *= norm[self.sigmas > 0][-1] / norm[steps + 1, None]
        difference[steps + 1 == n] = 0.0  # nothing is evaluated at the end of the last step
        np.add.at(self._errors, level, difference)

    def _ruler(self, method: Method) -> tuple[Scale, Array | None]:
        name = method.ruler or self.chart.clock
        if name == "t":
            schedule = self.schedule
            return Scale(schedule.time, schedule.sigma, schedule.time_rate), schedule.knots
        return SCALES[name], None


def _shared(
    weights: Sequence[float], drawn: Sequence[bool], stage: int
) -> float | tuple[float, ...]:
    """The noise of a stage's op, from the weights of the step's draws, oldest first: draw j is made at the
    end of stretch j, by the stage j + 1 if that has a length."""
    made = [j for j, length in enumerate(drawn[:stage]) if length]
    if not any(weights):  # a step without noise
        return 0.0
    own = weights[made[-1]] if made and made[-1] == stage - 1 else 0.0
    earlier = [weights[j] for j in reversed(made) if j < stage - 1]
    return (own, *earlier) if earlier else own
