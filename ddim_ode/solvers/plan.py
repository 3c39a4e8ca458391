"""Plans: a method compiled on a grid, everything known before the first network call.

A plan is a flat list of ops over one state x and a history of stored vectors V, newest first:

    y = scale·x + Σ_j weights[j]·V_j  (+ noise·z)
    if commit:  x = y
    if node:    push V(y, σ)

V is the plan's ``vector`` (ε̂, x̂₀ or v̂ ...), the network's output up to the conversion done once in the
denoiser. Runge–Kutta stages are ops without commit; a corrector is a commit without node. The
weights absorb the chart: where the chart's velocity is not V itself but a·x + b·V, the x of a stage is
expanded within its step, which is exact and costs nothing at run time.

Two kinds of step are DDIM steps in any method: the landing on σ = 0, and a start from σ = inf
where the chart's clock or gauge is infinite. Both are exact for a constant prediction.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._checks import exclusive, one_of
from ..grids import check_grid
from ..schedule import Array, Schedule
from .chart import SCALES, VECTORS, Chart, Scale, convert, ddim_step, get_chart
from .methods import Method, get_method
from .quadrature import step_weights
from .tableau import Tableau


class Node(NamedTuple):
    """A network call: σ, the schedule time of that same level, and the vector to store of it."""

    sigma: float
    t: float
    vector: str


class Op(NamedTuple):
    """One line of a plan; see the module's docstring."""

    scale: float
    weights: tuple[float, ...]
    node: Node | None
    commit: bool
    noise: float


@dataclass(frozen=True, repr=False)
class Plan:
    """A compiled method: ``ops``, and what they were compiled from.

    vector: what the history stores (a start at σ = inf stores x̂₀ where this is ε̂). grid: σ,
    steps+1 entries. schedule: the fingerprint of the one whose ᾱ, β̄ the weights contain. nfe:
    network calls. memory: vectors the longest op reads.
    """

    method: str
    ops: tuple[Op, ...]
    vector: str
    chart: str
    grid: tuple[float, ...]
    schedule: str
    nfe: int = field(init=False)
    memory: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nfe", len(self.nodes))
        object.__setattr__(self, "memory", max((len(op.weights) for op in self.ops), default=0))

    def __repr__(self) -> str:
        return f"Plan({self.method}, {self.steps} steps, nfe {self.nfe}, chart {self.chart})"

    @property
    def steps(self) -> int:
        """Intervals of the grid."""
        return len(self.grid) - 1

    @property
    def nodes(self) -> list[Node]:
        """The network calls in order."""
        return [op.node for op in self.ops if op.node is not None]

    @property
    def is_stochastic(self) -> bool:
        """Whether any step adds noise."""
        return any(op.noise > 0 for op in self.ops)

    def describe(self) -> str:
        """A table of the ops, one a line."""
        head = (
            f"{self.method}: {self.steps} steps, nfe {self.nfe}, chart {self.chart}, "
            f"stores {self.vector}, memory {self.memory}"
        )
        lines = [
            head,
            f"{'op':>4} {'call at σ':>12} {'t':>10}  {'scale':>12}  weights, newest first",
        ]
        for i, op in enumerate(self.ops):
            at = f"{op.node.sigma:12.5g} {op.node.t:10.3f}" if op.node else f"{'–':>12} {'–':>10}"
            weights = " ".join(f"{w:+.6g}" for w in op.weights)
            noise = f"  + {op.noise:.4g} z" if op.noise else ""
            stage = "" if op.commit or not op.weights else "  (stage)"
            lines.append(f"{i:>4} {at}  {op.scale:12.6g}  {weights}{noise}{stage}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for a manifest."""
        return dict(
            method=self.method,
            vector=self.vector,
            chart=self.chart,
            grid=[s if math.isfinite(s) else "inf" for s in self.grid],
            nfe=self.nfe,
            schedule=self.schedule,
        )


def plan(
    method: str | Method,
    schedule: Schedule,
    grid: npt.ArrayLike,
    *,
    chart: str | None = None,
    vector: str | None = None,
    eta: float | None = None,
    noise_std: npt.ArrayLike | None = None,
) -> Plan:
    """Compile a method on a grid (σ, strictly decreasing).

    chart: solve in another chart than the method's own. vector: what the plan stores; by default
    the chart's own vector. A one-step method can store any (``"eps" | "x0" | "v" | "flow" | "score" |
    "exp"``, the last being chart exp's), best
    the one its network predicts; a multistep method only its chart's. eta, noise_std: the step
    noise of ``ddim``, as in :func:`ddim_ode.sample`.

    ValueError for an unknown name, a grid outside the schedule, or noise where there is none.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.exponential()
    >>> ddim_ode.plan("heun", schedule, [80.0, 1.0, 0.0]).nfe
    3
    """
    sigmas = check_grid(grid, schedule)
    spec = get_method(method)
    noise = _step_noise(spec, schedule, sigmas, eta, noise_std)
    key = None if noise is None else tuple(noise.tolist())
    return _compile(spec, schedule, tuple(sigmas.tolist()), chart or spec.chart, vector, key)


def clear_cache() -> None:
    """Forget compiled plans (they are kept, 256 at most, by method, schedule, grid and options)."""
    _compile.cache_clear()


def noise_bound(schedule: Schedule, sigmas: Array) -> Array:
    """The largest step noise of each step: β̄ of the level it arrives at."""
    return schedule.scales(sigmas[1:])[1]


def eta_noise(schedule: Schedule, sigmas: Array, eta: float) -> Array:
    """ς of each step for η: η β̄' √(1 − (σ'/σ)²), for VP schedules the usual
    η (β̄_{t−1}/β̄_t) √(1 − ᾱ_t²/ᾱ_{t−1}²). η = 1 is DDPM with the posterior variance."""
    ratio = sigmas[1:] / sigmas[:-1]  # 0 from σ = inf
    return eta * noise_bound(schedule, sigmas) * np.sqrt((1 - ratio) * (1 + ratio))


def _step_noise(
    method: Method,
    schedule: Schedule,
    sigmas: Array,
    eta: float | None,
    noise_std: npt.ArrayLike | None,
) -> Array | None:
    exclusive(eta=eta, noise_std=noise_std)
    if eta is None and noise_std is None:
        return eta_noise(schedule, sigmas, method.eta) if method.eta else None
    if method.eta != 0.0:
        given = "eta" if eta is not None else "noise_std"
        raise ValueError(
            f"method {method.name!r} takes no {given}: free step noise belongs to method='ddim'"
        )
    if eta is not None:
        if not (np.isfinite(eta) and eta >= 0):
            raise ValueError(f"eta={eta!r} must be finite and >= 0 (0 is DDIM, 1 is DDPM)")
        if eta == 0:
            return None
        noise = eta_noise(schedule, sigmas, float(eta))
    else:
        noise = np.array(noise_std, dtype=np.float64)
        if noise.shape != (sigmas.size - 1,):
            raise ValueError(
                f"noise_std has shape {noise.shape}; give one standard deviation per step, "
                f"({sigmas.size - 1},)"
            )
    bound = noise_bound(schedule, sigmas)
    bad = np.flatnonzero(~((noise >= 0) & (noise <= bound * (1 + 1e-12))))
    if bad.size:
        i = int(bad[0])
        name = f"eta={eta!r} makes noise_std" if eta is not None else "noise_std"
        raise ValueError(
            f"{name}[{i}]={noise[i]:g} at σ'={sigmas[i + 1]:g}; allowed is [0, {bound[i]:g}], "
            "β̄ of the level the step arrives at"
        )
    return np.minimum(noise, bound)


@functools.lru_cache(maxsize=256)
def _compile(
    method: Method,
    schedule: Schedule,
    grid: tuple[float, ...],
    chart_name: str,
    vector: str | None,
    noise: tuple[float, ...] | None,
) -> Plan:
    chart = get_chart(chart_name, schedule)
    vector = one_of("vector", vector or chart.vector, VECTORS)
    if method.past > 1 and vector != chart.vector:
        raise ValueError(
            f"multistep method {method.name!r} in chart {chart.name!r} stores {chart.vector!r}, "
            f"not vector={vector!r}; drop vector="
        )
    sigmas = np.array(grid)
    context = _Context(schedule, chart, vector, sigmas)
    n = sigmas.size - 1
    first, last = context.interior(n)
    straight_euler = method.tableau is None and method.past == 1 and chart.straight
    if noise is not None and not straight_euler:
        raise ValueError(
            f"step noise needs Euler in chart 'eps', 'data' or 'flow', not {method.name!r} in chart "
            f"{chart.name!r}"
        )

    # Ops of a step before its commit, and the commit's own (scale, weights), per step.
    stages: list[list[Op]] = [[] for _ in range(n)]
    if straight_euler:
        commits = context.ddim(np.zeros(n) if noise is None else np.array(noise))
    else:
        commits = context.ddim(np.zeros(n))
        if method.past > 1:
            context.multistep(method, first, last, commits)
        elif last > first:
            context.one_step(method.tableau or _EULER, first, last, stages, commits)

    times = schedule.time(sigmas).tolist()
    nodes: list[Node | None] = [Node(s, t, vector) for s, t in zip(grid, times)]
    nodes[0] = Node(grid[0], times[0], context.first_vector)
    nodes[n] = None  # nothing is evaluated where the plan ends
    ops = [Op(1.0, (), nodes[0], False, 0.0)]
    for node, (scale, weights), z, before in zip(nodes[1:], commits, noise or [0.0] * n, stages):
        ops += before
        ops.append(Op(scale, weights, node, True, z))
    if not math.isfinite(sum(op.scale + sum(op.weights) for op in ops)):
        raise ValueError(
            f"{method.name!r} in chart {chart.name!r}, storing {vector!r}, has no finite weights on the "
            f"grid {grid[0]:g} … {grid[-1]:g}; use another chart or a finite sigma_max"
        )
    return Plan(
        method.name,
        tuple(ops),
        vector,
        chart.name,
        grid,
        schedule.fingerprint,
    )


_EULER = Tableau(1, (0,), ((),), (1,))
_Commits = list[tuple[float, tuple[float, ...]]]


class _Context:
    """The quantities a compilation shares: the levels of the grid seen through the chart."""

    def __init__(self, schedule: Schedule, chart: Chart, vector: str, sigmas: Array) -> None:
        self.schedule, self.chart, self.vector, self.sigmas = schedule, chart, vector, sigmas
        self.alpha, self.beta = schedule.scales(sigmas)
        self.clock = SCALES[chart.clock]
        # At ᾱ = 0 the pair (x, ε̂) says nothing of x̂₀: what is stored there is x̂₀ itself.
        blind = np.isinf(sigmas[0]) and vector in ("eps", "score", "exp")
        self.first_vector = "x0" if blind else vector

    def interior(self, n: int) -> tuple[int, int]:
        """The steps [first, last) that the chart can take; the others are DDIM steps."""
        with np.errstate(divide="ignore", invalid="ignore"):
            finite_start = np.isfinite(self.clock.of(self.sigmas[:1])) & (self.gauge(0) > 0)
        startable = finite_start[0] and self.first_vector == self.vector
        return (0 if startable else 1), (n if self.sigmas[-1] > 0 else n - 1)

    def gauge(self, i: int) -> Array:
        return np.atleast_1d(self.chart.gauge(self.alpha[i], self.beta[i]))

    def ddim(self, noise: Array) -> _Commits:
        def steps(vector: str, i: slice, j: slice) -> _Commits:
            here, there = (self.alpha[i], self.beta[i]), (self.alpha[j], self.beta[j])
            scale, weight = ddim_step(vector, here, there, noise[i])
            return [(s, (w,)) for s, w in zip(scale.tolist(), weight.tolist())]

        n = noise.size
        if self.first_vector == self.vector:
            return steps(self.vector, slice(n), slice(1, n + 1))
        return [
            *steps(self.first_vector, slice(1), slice(1, 2)),
            *steps(self.vector, slice(1, n), slice(2, n + 1)),
        ]

    def velocity(self, sigma: Array) -> tuple[Array, Array]:
        """(p, q) with dy/du = p·x + q·V at σ."""
        alpha, beta = self.schedule.scales(sigma)
        a, b = convert(self.vector, self.chart.vector, alpha, beta)
        factor = self.chart.factor(alpha, beta)
        return factor * a, factor * b

    def one_step(
        self,
        tableau: Tableau,
        first: int,
        last: int,
        stages: list[list[Op]],
        commits: _Commits,
    ) -> None:
        """Runge–Kutta: every stage's x as a row over (x, V_0, V_1, ...), vectorised over steps."""
        start, end = self.sigmas[first:last], self.sigmas[first + 1 : last + 1]
        u, h = self.clock.of(start), self.clock.of(end) - self.clock.of(start)
        m = tableau.stages
        gauge_start = self.chart.gauge(*self.schedule.scales(start))

        def combine(weights: tuple[float, ...], velocities: list[Array], to: Array) -> Array:
            row = np.zeros((len(start), 1 + m))
            row[:, 0] = 1 / gauge_start
            for weight, velocity in zip(weights, velocities):
                row += (h * weight)[:, None] * velocity
            return row * self.chart.gauge(*self.schedule.scales(to))[:, None]

        rows: list[Array] = []
        velocities: list[Array] = []
        levels: list[Array] = []
        for i in range(m):
            c = tableau.c[i]
            sigma = start if c == 0 else end if c == 1 else self.clock.inverse(u + c * h)
            row = combine(tableau.a[i], velocities, sigma)
            p, q = self.velocity(sigma)
            velocity = p[:, None] * row
            velocity[:, 1 + i] += q
            rows.append(row)
            velocities.append(velocity)
            levels.append(sigma)
        rows.append(combine(tableau.b[:m], velocities, end))

        times = [self.schedule.time(sigma).tolist() for sigma in levels]
        tables = [row.tolist() for row in rows]
        for k in range(last - first):
            for i in range(1, m):
                row_k = tables[i][k]
                node = Node(float(levels[i][k]), times[i][k], self.vector)
                stages[first + k].append(Op(row_k[0], tuple(row_k[i:0:-1]), node, False, 0.0))
            final = tables[m][k]
            commits[first + k] = (final[0], tuple(final[m:0:-1]))

    def multistep(self, method: Method, first: int, last: int, commits: _Commits) -> None:
        """Adams: the newest ``past`` velocities, fewer while fewer are known (rising order)."""
        ruler, knots = self.ruler(method.ruler or self.chart.clock)
        with np.errstate(divide="ignore", invalid="ignore"):
            gauge = self.chart.gauge(self.alpha, self.beta)
            factor = self.chart.factor(self.alpha, self.beta)
            usable = np.isfinite(ruler.of(self.sigmas)) & np.isfinite(self.clock.of(self.sigmas))
        oldest = int(np.argmax(usable))  # only σ = inf at the very start is not
        steps = np.arange(max(first, oldest), last)
        past = steps[:, None] - np.arange(method.past)  # newest first
        known = past >= oldest
        past = np.maximum(past, oldest)
        start, end = self.sigmas[steps], self.sigmas[steps + 1]
        weights = step_weights(self.clock, ruler, self.sigmas[past], known, start, end, knots)
        scale = gauge[steps + 1] / gauge[steps]
        table = (gauge[steps + 1, None] * factor[past] * weights).tolist()
        for step, s, row, n in zip(steps.tolist(), scale.tolist(), table, known.sum(1).tolist()):
            commits[step] = (s, tuple(row[:n]))

    def ruler(self, name: str) -> tuple[Scale, Array | None]:
        if name == "t":
            schedule = self.schedule
            return Scale(schedule.time, schedule.sigma, schedule.time_rate), schedule.knots
        return SCALES[one_of("ruler", name, [*SCALES, "t"])], None
