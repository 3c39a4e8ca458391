"""Plans: a method compiled on a grid, everything known before the first network call.

A plan is a flat list of ops (ops.py) over one state x and a history of stored vectors V, the network's
output up to a conversion. Runge–Kutta stages are ops without commit; a corrector is a commit without node.
The weights absorb the chart: where its velocity is not V itself but a·x + b·V, the x of a stage is expanded
within its step, which is exact and costs nothing at run time.

How a method becomes ops: compilation.py. On disk: plan_json.py. How near to a textbook: nearest.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .._base import notebook
from .._base.json_file import plain_level
from ..schedules.schedule import Schedule, check_schedule
from . import plan_json, tracing
from .fit import fit_lines
from .ops import Node as Node
from .ops import Op as Op
from .plan_rules import check_plan
from .table import Table, answering, fields_of_table, table_of, text_of_table

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor


_SHOWN = 40  # ops, in a notebook


@dataclass(frozen=True, repr=False)
class Plan:
    """A compiled method: ``ops``, and what they were compiled from.

    Attributes:
        method: Its name.
        ops: The lines that run, in order.
        vector: What the history stores (a start at σ = inf stores x̂₀ where this is ε̂).
        chart: The name of the chart that it was compiled in.
        grid: σ, steps+1 entries.
        schedule: The fingerprint of the schedule whose ᾱ, β̄ the weights contain.
        start: ``"rk"`` or ``"ramp"`` where a multistep method had the choice.
        error_weights: One per network call, or none: Σ_k error_weights[k]·V_k estimates the error of x at
            the last positive level (builder.py).
        fit: How a calibrated plan was fitted and what it gained, plain data of :func:`ddim_ode.calibrate`.
            It is no part of what the plan computes, nor of ``==``.
        nfe: Network calls.
        memory: Vectors that the longest op reads.

    Raises:
        ValueError: What is no plan; the message names the field.

    >>> import ddim_ode
    >>> plan = ddim_ode.plan("dpmpp2m", ddim_ode.schedules.cosine(), [50.0, 5.0, 0.5, 0.0])
    >>> plan.nfe, plan.memory, plan.grid
    (3, 2, (50.0, 5.0, 0.5, 0.0))
    """

    method: str
    ops: tuple[Op, ...]
    vector: str
    chart: str
    grid: tuple[float, ...]
    schedule: str
    start: str | None = None
    error_weights: tuple[float, ...] = field(default=(), repr=False)
    fit: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    nfe: int = field(init=False)
    memory: int = field(init=False)

    def __post_init__(self) -> None:
        check_plan(self)
        object.__setattr__(self, "nfe", len(self.nodes))
        object.__setattr__(self, "memory", max((len(op.weights) for op in self.ops), default=0))

    def __repr__(self) -> str:
        return f"Plan({self.method}, {self.steps} steps, nfe {self.nfe}, chart {self.chart})"

    def _repr_html_(self) -> str:
        facts = [line.strip().partition("  ")[::2] for line in fit_lines(self.fit or {})]
        rows = [(i, *cells) for i, cells in enumerate(self._rows())]
        shown = rows if len(rows) <= _SHOWN else [*rows[: _SHOWN // 2], *rows[-_SHOWN // 2 :]]
        head = ("op", "call at σ", "t", "scale", "weights, newest first")
        more = notebook.note(f"{len(shown)} of {len(rows)} ops" if len(shown) < len(rows) else "")
        return notebook.card(self._summary(), facts, notebook.table(head, shown, left=(4,)) + more)

    def _summary(self) -> str:
        start = f", start {self.start}" if self.start else ""
        return (
            f"{self.method}: {self.steps} steps, nfe {self.nfe}, chart {self.chart}{start}, "
            f"stores {self.vector}, memory {self.memory}"
        )

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        """For each op its level, time, scale and weights, as text."""
        for i, op in enumerate(self.ops):
            at = (f"{op.node.sigma:.5g}", f"{op.node.t:.3f}") if op.node else ("–", "–")
            least = 1e-13 * max(map(abs, op.weights), default=0.0)  # rounding, which is no weight
            weights = " ".join(f"{w if abs(w) > least else 0.0:+.6g}" for w in op.weights)
            noise = _noise_text(op.noise)
            stage = "" if op.commit or not i else "  (stage)"
            yield *at, f"{op.scale + 0.0:.6g}", f"{weights}{noise}{stage}"

    @functools.cached_property
    def steps(self) -> int:
        """Steps of the method: those that lead up again by noise are none, those taken twice are one."""
        falls = self.grid[0] > self.grid[-1]
        return len({pair for pair in pairwise(self.grid) if not falls or pair[0] > pair[1]})

    @property
    def nodes(self) -> list[Node]:
        """The network calls in order."""
        return [op.node for op in self.ops if op.node is not None]

    @property
    def is_stochastic(self) -> bool:
        """Whether any step adds noise."""
        return any(op.draws for op in self.ops)

    def draws(self) -> list[tuple[float, float]]:
        """The levels (from, to) that each draw of step noise belongs to, in order."""
        at, steps, spans = self.grid[0], 0, []
        for op in self.ops:
            steps += op.commit
            if op.draws:
                to = self.grid[steps] if op.node is None else op.node.sigma
                spans.append((at, to))
                at = to
            elif op.commit:
                at = self.grid[steps]
        return spans

    def describe(self) -> str:
        """The plan as text: a table of the ops, below what a calibrated plan was fitted to and gained.

        The nearest textbook method is found by :func:`ddim_ode.solvers.nearest.nearest`, and a picture
        drawn by :func:`ddim_ode.plots.plans.plan_plot`.
        """
        lines = [self._summary()]
        if self.fit is not None:
            lines += fit_lines(self.fit)
        lines.append(f"{'op':>4} {'call at σ':>12} {'t':>10}  {'scale':>12}  weights, newest first")
        for i, (sigma, t, scale, weights) in enumerate(self._rows()):
            lines.append(f"{i:>4} {sigma:>12} {t:>10}  {scale:>12}  {weights}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for a manifest."""
        return dict(
            method=self.method,
            vector=self.vector,
            chart=self.chart,
            grid=list(map(plain_level, self.grid)),
            start=self.start,
            nfe=self.nfe,
            schedule=self.schedule,
        )

    def level_calls(self) -> list[int | None]:
        """For each level but the last, the network call that looked at the state there.

        Of several calls at a level it is the last: a Runge–Kutta stage at the end of a step comes before
        the call at that level. The first call is at the start, whatever level it is told.
        """
        last = {self.grid[0]: 0} | {node.sigma: k for k, node in enumerate(self.nodes)}
        return [last.get(sigma) for sigma in self.grid[:-1]]

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            ValueError: ``load`` would refuse it.
            OSError: The file cannot be written.
        """
        plan_json.write(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan of a file that :meth:`save` wrote, equal to the saved one to the last bit.

        Nothing in a file is run.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds anything else than a whole plan; the message names the file and the field.
        """
        return cls.from_json(plan_json.content(path), str(path))

    def to_json(self) -> str:
        """The text of a file of :meth:`save`; ValueError for a plan that ``load`` would refuse."""
        return plan_json.dumps(self)

    @classmethod
    def from_json(cls, data: str | bytes, source: str = "plan") -> Plan:
        """The plan of such a text; ValueError that names ``source`` and the field for anything else."""
        return plan_json.loads(data, source, cls)

    def check(self, schedule: Any) -> None:
        """ValueError for another schedule than that of its model."""
        check_schedule(schedule)
        if self.schedule != schedule.fingerprint:
            raise ValueError(
                f"the plan was made for schedule {self.schedule}, not {schedule.fingerprint} "
                f"({schedule!r}); give model.schedule of the model it belongs to"
            )

    def table(self, schedule: Schedule | None = None, prediction: str | None = None) -> Table:
        """The plan as plain numbers, without its step noise: the state shown to each call, and the end, as
        a combination of the start and of what was stored before.

        Args:
            schedule, prediction: Both, for a table of what a network of that prediction answers on that
                schedule, instead of the vectors that the plan makes of it.

        >>> import ddim_ode
        >>> ddim_ode.plan("ddim", ddim_ode.schedules.ve(9.0), [9.0, 1.0, 0.0]).table().weights
        array([[ 1.,  0.,  0.],
               [ 1., -8.,  0.],
               [ 1., -8., -1.]])
        """
        table = table_of(self.ops)
        if schedule is None and prediction is None:
            return table
        self.check(schedule)
        return answering(table, schedule, prediction)

    @classmethod
    def from_table(
        cls, levels: npt.ArrayLike, weights: npt.ArrayLike, schedule: Schedule, **options: Any
    ) -> Plan:
        """The plan of such numbers: any sampler that is linear in its start and in what it is answered.

        Readers of published tables: :mod:`ddim_ode.solvers.published`.

        Args:
            levels: σ (N,) that each network call is told.
            weights: (N+1, N+1). Row k is the state shown to call k, in network space, as weights of the
                start x and of the answers so far; the last row is the end.
            schedule: That of the models it will run on, of ``ddim_ode.schedules``.
            **options: ``prediction="eps"``, which answer the weights are of: ``"eps" | "x0" | "v" |
                "flow" | "score"``; ``sigma_max``, where the noise starts (default: the first level);
                ``sigma_end=0.0``, the level of the end; ``name="table"``, the plan's method.

        Raises:
            ValueError: Weights of calls that are not made yet, or a level outside the schedule.

        >>> import ddim_ode
        >>> euler = [[1, 0, 0], [1, -8, 0], [1, -8, -1]]
        >>> plan = ddim_ode.Plan.from_table([9.0, 1.0], euler, ddim_ode.schedules.ve(9.0), name="mine")
        >>> plan.nfe, plan.grid
        (2, (9.0, 1.0, 0.0))
        """
        return cls(**fields_of_table(levels, weights, schedule, **options))

    def export(
        self, form: str = "json", schedule: Schedule | None = None, prediction: str | None = None
    ) -> str:
        """The plan's :meth:`table` as text for a runtime outside torch: ``"json"``, ``"csv"`` or ``"c"``.

        This is all that such a runtime does, ``net`` the network and ``w`` the weights:

            v = []
            for k in range(N + 1):
                y = w[k][0] * x
                for j in range(k):
                    y = y + w[k][1 + j] * v[j]
                if k < N:
                    v.append(net(y, t[k]))

        and the last y is the sample. t is the schedule's time; a network of indices 0…T−1 is told t − 1.

        Args:
            form: Of the text.
            schedule, prediction: As of :meth:`table`; without them v is the plan's own vector, which the
                table names.

        Raises:
            ValueError: A plan with step noise, which a table has no place for.

        >>> import ddim_ode
        >>> schedule = ddim_ode.schedules.ve(9.0)
        >>> print(ddim_ode.plan("ddim", schedule, [9.0, 1.0, 0.0]).export("csv"), end="")
        sigma,t,vector,x,v0,v1
        9.0,9.0,eps,1.0,0.0,0.0
        1.0,1.0,eps,1.0,-8.0,0.0
        ,,,1.0,-8.0,-1.0
        """
        if self.is_stochastic:
            raise ValueError(
                f"{self.method} adds step noise, which a table has no place for; export a deterministic "
                "plan"
            )
        return text_of_table(self.table(schedule, prediction), self.method, form)

    @classmethod
    def trace(
        cls,
        loop: Callable[[Callable[[Tensor, Any], Tensor], Tensor], Tensor],
        schedule: Schedule,
        **options: Any,
    ) -> Plan:
        """The plan of any sampler that is linear in x and ε, to run anywhere a plan goes.

        It must be deterministic, and linear in its start and in what the network answers, as all solvers of
        the ODE with fixed steps are. It is run three times on small tensors, and never changed.

        Args:
            loop: ``loop(net, x) -> x_end``. x is the start in network space, here (1, 1, 1, n), and
                ``net(x, t)`` the network to call, which answers like its x. A sampler that takes its model
                and noise levels in another order goes into a function of that form, with its levels inside.
            schedule: that of the models it will run on, of ``ddim_ode.schedules``.
            **options: of :func:`ddim_ode.solvers.tracing.trace`: ``prediction="eps"``, what net answers;
                ``time="t"`` (the network's, from the schedule's by ``time_offset=0.0``) or ``"sigma"``,
                what loop passes to net; ``sigma_end=0.0``, the level it ends at;
                ``dtype=torch.float64``; ``name="traced"``.

        Returns:
            A plan, for ``sample(model, x_T, plan=plan)`` and ``compare(model, ["ddim", plan])``.

        Raises:
            ValueError: the sampler never calls net, clips, draws noise, or chooses its own steps.

        Heun's method in x/ᾱ over σ, as code that knows nothing of this package would have it:

        >>> import ddim_ode
        >>> schedule = ddim_ode.schedules.cosine()
        >>> levels = [20.0, 5.0, 1.0, 0.2]
        >>> def loop(net, x):
        ...     alpha = schedule.scales(levels[0])[0]
        ...     y = x / alpha
        ...     for sigma, lower in zip(levels, levels[1:]):
        ...         slope = net(y * schedule.scales(sigma)[0], sigma)
        ...         ahead = y + (lower - sigma) * slope
        ...         other = net(ahead * schedule.scales(lower)[0], lower)
        ...         y = y + (lower - sigma) * (slope + other) / 2
        ...     return y * schedule.scales(levels[-1])[0]
        >>> mine = ddim_ode.Plan.trace(loop, schedule, time="sigma", sigma_end=0.2, name="mine")
        >>> mine.nfe, mine.grid
        (6, (20.0, 5.0, 1.0, 0.2))

        On a model of that schedule it is our ``heun`` on those levels:

        >>> model = ddim_ode.exact.gaussian([0.5], [[0.25]], schedule)
        >>> x = ddim_ode.noise((1,), schedule, seeds=range(4), sigma=20.0)
        >>> ours = ddim_ode.sample(model, x, "heun", grid=levels)
        >>> bool((ddim_ode.sample(model, x, plan=mine).x - ours.x).abs().max() < 1e-5)
        True
        """
        return cls(**tracing.trace(loop, schedule, **options))


def _noise_text(noise: float | tuple[float, ...]) -> str:
    """The step noise of a line; z' is the draw before z."""
    parts = noise if isinstance(noise, tuple) else (noise,)
    return "".join(f"  {w:+.4g} z" + "'" * j for j, w in enumerate(parts) if w).replace("+", "+ ")
