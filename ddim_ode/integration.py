"""The loop: runs any plan on tensors.

It reads Python floats from the plan and never a number from a tensor, so it neither waits for the
device nor copies to it, whatever the method.
"""

from __future__ import annotations

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
    history: list[Tensor] = []
    alive = finite_samples(x) if hold else None
    calls = steps = 0
    for scale, weights, node, commit, noise in plan.ops:
        y = x
        if weights:
            y = x * scale
            for weight, vector in zip(weights, history):
                y.add_(vector, alpha=weight)
        if noise:
            assert draw is not None, "a plan with step noise needs draw()"
            y = y.add_(draw(), alpha=noise)
        if commit:
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
                after_call(calls, y, vector, commit or calls == 0)
            history.insert(0, vector)
            del history[plan.memory :]
            calls += 1
    return x, finite_samples(x) if alive is None else alive, calls
