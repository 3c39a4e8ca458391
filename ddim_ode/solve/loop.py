"""The loop: runs any plan on tensors.

The plan's scales go to the device once, before the first step; its other numbers are Python floats, and
no number is ever read from a tensor. So the loop neither waits for the device nor copies to it, apart
from step noise, which is drawn on the CPU.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._base.tensors import beside
from ..solvers.plan import Plan
from .solution import finite_samples

Evaluate = Callable[[Tensor, int], Tensor]


class Outcome(NamedTuple):
    """What comes of a run.

    Attributes:
        x: The end state.
        finite: (B,) which samples are finite.
        calls: Made.
        error: A vector like x, the plan's estimate of its error, where it has one.
    """

    x: Tensor
    finite: Tensor
    calls: int
    error: Tensor | None


class Progress(NamedTuple):
    """Given to a callback after each step: its number (from 1), the level reached, the state.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.ve(8.0)
    >>> model = ddim_ode.exact.gaussian([0.0], [[1.0]], schedule)
    >>> x_T = ddim_ode.noise((1,), schedule, seeds=[0])
    >>> tell = lambda progress: print(progress.step, progress.sigma, tuple(progress.x.shape))
    >>> sol = ddim_ode.sample(model, x_T, grid=[8.0, 1.0, 0.0], callback=tell)
    1 1.0 (1, 1)
    2 0.0 (1, 1)
    """

    step: int
    sigma: float
    x: Tensor


class Run:
    """A plan on its way through tensors, from one network call to the next.

    Attributes:
        x: The state.
        committed: Whether what is shown to the network is the state, and not a stage within a step.
        calls, steps: Made so far.
        error: A vector like x, see :class:`Outcome`.
    """

    def __init__(
        self,
        plan: Plan,
        x: Tensor,
        *,
        draw: Callable[[], Tensor] | None = None,
        hold: bool = False,
        project: Callable[[Tensor, int], Tensor] | None = None,
        after_step: Callable[[Progress], None] | None = None,
        estimate: bool = True,
    ) -> None:
        """x (B, *), where the plan begins. The hooks are those of :func:`integrate`. estimate: whether the
        error is, which takes another state's memory."""
        self.plan, self.draw, self.project, self.after_step = plan, draw, project, after_step
        self.x = x if project is None else project(x, 0)
        self.history: deque[Tensor] = deque(maxlen=plan.memory)
        self.committed, self.calls, self.steps = True, 0, 0
        self.error: Tensor | None = None
        self._alive = finite_samples(x) if hold else None
        self._error_weights = plan.error_weights if estimate else ()
        shared = max((len(op.noise) for op in plan.ops if isinstance(op.noise, tuple)), default=0)
        self._draws: deque[Tensor] = deque(maxlen=shared)
        # 0-d tensors: torch wraps a Python float anew at every product, for as long as the product takes.
        scales = torch.tensor([op.scale for op in plan.ops], dtype=x.dtype).to(x.device).unbind(0)
        self._ops = list(zip(plan.ops, scales))[::-1]

    @property
    def finite(self) -> Tensor:
        """(B,) Which samples are finite, or with ``hold`` were so all the way."""
        return finite_samples(self.x) if self._alive is None else self._alive

    def copied(self) -> Run:
        """The run as it is now, whatever becomes of this one."""
        other = copy.copy(self)
        other.history, other._ops = self.history.copy(), self._ops.copy()
        other._draws = self._draws.copy()
        return other

    def advance(self, vector: Tensor | None = None) -> Tensor | None:
        """File what the call under way stores, and go on: the state to show to the next call, None at the
        end."""
        if vector is not None:
            self._file(vector)
        while self._ops:
            (factor, weights, node, commit, noise), scale = self._ops.pop()
            y = self.x
            if weights or factor != 1.0:
                y = self.x * scale
                for weight, past in zip(weights, self.history):
                    if weight:
                        y.add_(past, alpha=weight)
            if noise:
                y = self._noised(y, noise)
            if commit:
                y = self._commit(y)
            if node is not None:
                self.committed = commit or not self.calls
                return y
        return None

    def _noised(self, y: Tensor, noise: float | tuple[float, ...]) -> Tensor:
        own, *others = noise if isinstance(noise, tuple) else (noise,)
        for weight, past in zip(others, self._draws):
            y = torch.add(y, past, alpha=weight)
        if own:
            assert self.draw is not None, "a plan with step noise needs draw()"
            z = self.draw()
            y = torch.add(y, z, alpha=own)
            self._draws.appendleft(z)
        return y

    def _commit(self, y: Tensor) -> Tensor:
        self.steps += 1
        if self.project is not None:
            y = self.project(y, self.steps)
        if self._alive is not None:
            self._alive = self._alive & finite_samples(y)
            y = torch.where(beside(self._alive, y), y, self.x)
        self.x = y
        if self.after_step is not None:
            self.after_step(Progress(self.steps, self.plan.grid[self.steps], y))
        return y

    def _file(self, vector: Tensor) -> None:
        if self._error_weights and (weight := self._error_weights[self.calls]):
            part = vector.detach() if vector.requires_grad else vector
            whole = self.error
            self.error = part * weight if whole is None else whole.add_(part, alpha=weight)
        self.history.appendleft(vector)
        self.calls += 1


def integrate(
    plan: Plan,
    evaluate: Evaluate,
    x: Tensor,
    *,
    draw: Callable[[], Tensor] | None = None,
    hold: bool = False,
    project: Callable[[Tensor, int], Tensor] | None = None,
    after_call: Callable[[int, Tensor, Tensor], None] | None = None,
    after_step: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Run ``plan`` from x (B, *).

    Args:
        plan: The plan.
        evaluate: evaluate(y, k): what node k of the plan stores, at y.
        x: Where it starts.
        draw: draw(): standard normal step noise like x.
        hold: Keep the last finite state of a sample that turns non-finite (a check at every step).
        project: project(x, k): what the state becomes at level k, reached after k steps (0: before the
            first).
        after_call, after_step: after_call(k, y, V) and after_step(progress), observers that change nothing.
    """
    run = Run(plan, x, draw=draw, hold=hold, project=project, after_step=after_step)
    y = run.advance()
    while y is not None:
        vector = evaluate(y, run.calls)
        if after_call is not None:
            after_call(run.calls, y, vector)
        y = run.advance(vector)
    return Outcome(run.x, run.finite, run.calls, run.error)
