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

from .solution import finite_samples
from .solvers.plan import Plan

Evaluate = Callable[[Tensor, int], Tensor]


class Progress(NamedTuple):
    """Given to a callback after each step: its number (from 1), the level reached, the state."""

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
    after_call: Callable[[int, Tensor, Tensor, bool], None] | None = None,
    after_step: Callable[[Progress], None] | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Run ``plan`` from x (B, *): the end state, which samples are finite (B,), calls made.

    evaluate(y, k): what node k of the plan stores, at y. draw(): standard normal step noise like x.
    hold: keep the last finite state of a sample that turns non-finite (a check at every step).
    after_call(k, y, V, at_level), after_step(progress): observers, no part of the solve; at_level
    says that y is the state at a level of the grid and not a stage.
    """
    history: deque[Tensor] = deque(maxlen=plan.memory)
    alive = finite_samples(x) if hold else None
    calls = steps = 0
    # 0-d tensors: torch wraps a Python float anew at every product, for as long as the product takes.
    scales = torch.tensor([op.scale for op in plan.ops], dtype=x.dtype).to(x.device).unbind(0)
    for op, scale in zip(plan.ops, scales):
        y = x
        if op.weights or op.scale != 1.0:
            y = x * scale
            for weight, vector in zip(op.weights, history):
                y.add_(vector, alpha=weight)
        if op.noise:
            assert draw is not None, "a plan with step noise needs draw()"
            y = torch.add(y, draw(), alpha=op.noise)
        if op.commit:
            if alive is not None:
                alive = alive & finite_samples(y)
                y = torch.where(alive.reshape(-1, *[1] * (x.ndim - 1)), y, x)
            x = y
            steps += 1
            if after_step is not None:
                after_step(Progress(steps, plan.grid[steps], x))
        if op.node is not None:
            vector = evaluate(y, calls)
            if after_call is not None:
                after_call(calls, y, vector, op.commit or calls == 0)
            history.appendleft(vector)
            calls += 1
    return x, finite_samples(x) if alive is None else alive, calls
