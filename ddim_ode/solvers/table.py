"""A plan on numbers instead of tensors: the states that it shows the network.

A deterministic plan is a table. Every state that it shows the network, and the one that it ends in, is

    y_k = c_k x_T + Σ_{j<k} W_kj V_j.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..schedules.schedule import Array
from .ops import Op


class Table(NamedTuple):
    """A plan of N calls as plain numbers, for other runtimes.

    Attributes:
        sigma, t, vector: Of each call, the level, the schedule time, and what is stored of its answer.
        weights: (N+1, N+1), row k is (c_k, W_k0, W_k1, ...) of the state shown to call k, the last that of
            the end.
    """

    sigma: tuple[float, ...]
    t: tuple[float, ...]
    vector: tuple[str, ...]
    weights: Array


def table_of(ops: Sequence[Op]) -> Table:
    """The table of a plan's ops, without their step noise."""
    nodes = [op.node for op in ops if op.node is not None]
    unit = np.eye(len(nodes) + 1)
    weights = states(ops, unit[0], lambda k, y: unit[k + 1])
    sigma, t, vector = zip(*nodes) if nodes else ((), (), ())
    return Table(sigma, t, vector, np.array(weights))


def states(ops: Sequence[Op], x: Array, answer: Callable[[int, Array], Array]) -> list[Array]:
    """Run a plan's ops from x, without their step noise.

    Args:
        ops: Of the plan.
        x: The start, of any shape.
        answer: What call k stores, at the state y that it is shown: ``answer(k, y)``.

    Returns:
        The state shown to each call, and then the end.
    """
    shown: list[Array] = []
    history: list[Array] = []
    for op in ops:
        y = op.scale * x
        for weight, vector in zip(op.weights, reversed(history)):
            y = y + weight * vector
        if op.commit:
            x = y
        if op.node is not None:
            shown.append(y)
            history.append(answer(len(history), y))
    return [*shown, x]
