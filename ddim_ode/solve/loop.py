"""The loop: runs any plan on tensors.

The plan's scales go to the device once, before the first step; its other numbers are Python floats, and
no number is ever read from a tensor. So the loop neither waits for the device nor copies to it, apart
from step noise, which is drawn on the CPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..solvers.plan import Plan
from .solution import finite_samples

Evaluate = Callable[[Tensor, int], Tensor]


class Outcome(NamedTuple):
    """x: the end state. finite (B,): which samples are. calls: made. error: a vector like x, the plan's
    estimate of its error, where it has one."""

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

    evaluate(y, k): what node k of the plan stores, at y. draw(): standard normal step noise like x.
    hold: keep the last finite state of a sample that turns non-finite (a check at every step).
    project(x, k): what the state becomes at level k, reached after k steps (0: before the first).
    after_call(k, y, V), after_step(progress): observers, no part of the solve.
    """
    history: deque[Tensor] = deque(maxlen=plan.memory)
    alive = finite_samples(x) if hold else None
    error_weights = plan.error_weights or [0.0] * plan.nfe
    error: Tensor | None = None
    calls = steps = 0
    if project is not None:
        x = project(x, 0)
    # 0-d tensors: torch wraps a Python float anew at every product, for as long as the product takes.
    scales = torch.tensor([op.scale for op in plan.ops], dtype=x.dtype).to(x.device).unbind(0)
    for (factor, weights, node, commit, noise), scale in zip(plan.ops, scales):
        y = x
        if weights or factor != 1.0:
            y = x * scale
            for weight, vector in zip(weights, history):
                if weight:
                    y.add_(vector, alpha=weight)
        if noise:
            assert draw is not None, "a plan with step noise needs draw()"
            y = torch.add(y, draw(), alpha=noise)
        if commit:
            if project is not None:
                y = project(y, steps + 1)
            if alive is not None:
                alive = alive & finite_samples(y)
                y = torch.where(alive.reshape(-1, *[1] * (x.ndim - 1)), y, x)
            x = y
            steps += 1
            if after_step is not None:
                after_step(Progress(steps, plan.grid[steps], x))
        if node is not None:
            vector = evaluate(y, calls)
            if after_call is not None:
                after_call(calls, y, vector)
            if weight := error_weights[calls]:
                part = vector.detach() if vector.requires_grad else vector
                error = part * weight if error is None else error.add_(part, alpha=weight)
            history.appendleft(vector)
            calls += 1
    return Outcome(x, finite_samples(x) if alive is None else alive, calls, error)
