"""The lines of a plan, and the rules that they keep.

Numbers fit into float32, the narrowest precision of a state, and an op reads only calls made before it.
ValueErrors name the field as a plan's file has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .._base.checks import numbers, shown
from .chart import VECTORS

_NUMBERS = (float, int, np.floating, np.integer)
_WHOLE = 2**53  # above it float64 does not hold every whole number
_MOST = float(np.finfo(np.float32).max)
_OF_VECTORS = f"one of {', '.join(VECTORS)}"
Field = Callable[[int], str]


class Node(NamedTuple):
    """A network call: σ, the schedule time of that same level, and the vector to store of it."""

    sigma: float
    t: float
    vector: str


class Op(NamedTuple):
    """One line of a plan, over the state x and the history of stored vectors V, newest first.

    y = scale·x + Σ_j weights[j]·V_j  (+ noise·z, or + Σ_j noise[j]·z_j)
    if commit:  x = y
    if node:    push V(y, σ)

    noise: The standard deviation of a draw z of its own; or, where draws are shared between the lines of a
        step, weights of draws, newest first: noise[0] of its own draw, which is not made where that is 0,
        and noise[1:] of those made before.
    """

    scale: float
    weights: tuple[float, ...]
    node: Node | None
    commit: bool
    noise: float | tuple[float, ...]

    @property
    def draws(self) -> bool:
        """Whether it draws noise of its own."""
        return bool(self.noise[0] if isinstance(self.noise, tuple) else self.noise)


def check_ops(ops: Any) -> None:
    """ValueError unless they are those of a plan."""
    check_tuple("ops", ops, 1)
    _check_types(ops, "ops[{}]".format, "an Op", Op)
    scales, weights, nodes, commits, noises = zip(*ops)
    _check_types(weights, "ops[{}].weights".format, "a tuple", tuple)
    _check_types(nodes, "ops[{}].node".format, "a Node, or None", Node, type(None))
    _check_types(commits, "ops[{}].commit".format, "true or false", bool)
    called = np.array([node is not None for node in nodes])
    if not called.any():
        refuse("ops", ops, "a list in which at least one op calls the network")
    if not commits[-1] or called[-1]:
        refuse(f"ops[{len(ops) - 1}]", ops[-1], "the end: with commit true and node null")
    if (commits[0] and not ops[0].draws) or not called[0]:
        refuse(
            "ops[0]", ops[0], "the first call: with a node, and commit false unless it adds noise"
        )
    check_numbers(scales, "ops[{}].scale".format)
    if scales[0] == 0:
        refuse("ops[0].scale", scales[0], "another number than 0: it is the start that it scales")
    _check_noises(ops, noises)
    _check_weights(weights, np.cumsum(called) - called)
    _check_nodes([node for node in nodes if node is not None], np.flatnonzero(called))


def _check_nodes(nodes: Sequence[Node], places: Any) -> None:
    sigmas, times, vectors = zip(*nodes)

    def field(name: str) -> Field:
        return lambda k: f"ops[{places[k]}].node.{name}"

    _check_types(vectors, field("vector"), _OF_VECTORS, str)
    if wrong := {*vectors} - {*VECTORS}:
        k = next(k for k, vector in enumerate(vectors) if vector in wrong)
        check_vector(field("vector")(k), vectors[k])
    check_numbers(times, field("t"), "a number >= 0", 0.0)
    check_sigmas(sigmas, field("sigma"))
    for k in np.flatnonzero(~(np.array(sigmas) > 0)).tolist():
        refuse(field("sigma")(k), sigmas[k], "a number > 0, or 'inf'")


def _check_noises(ops: Sequence[Op], noises: Sequence[Any]) -> None:
    shared = {i: noise for i, noise in enumerate(noises) if isinstance(noise, tuple)}
    own = [0.0 if i in shared else noise for i, noise in enumerate(noises)]
    check_numbers(own, "ops[{}].noise".format, "a number >= 0", 0.0)
    if not shared:
        return
    for i, noise in shared.items():
        check_tuple(f"ops[{i}].noise", noise, 1)
        check_numbers(noise, f"ops[{i}].noise[{{}}]".format)
    draws = np.array([op.draws for op in ops])
    before = np.cumsum(draws) - draws
    for i, noise in shared.items():
        if len(noise) - 1 > before[i]:
            most = f"at most {before[i] + 1} long, its own draw and those made before it"
            refuse(f"ops[{i}].noise", noise, most)


def _check_weights(weights: Sequence[tuple[float, ...]], calls: Any) -> None:
    lengths = np.array([len(row) for row in weights])
    first = np.cumsum(lengths) - lengths

    def field(k: int) -> str:
        i = int(np.searchsorted(first + lengths, k, side="right"))
        return f"ops[{i}].weights[{k - first[i]}]"

    check_numbers(list(chain.from_iterable(weights)), field)
    for i in np.flatnonzero(lengths > calls).tolist():
        most = f"at most {calls[i]} long, the network calls made before it"
        refuse(f"ops[{i}].weights", weights[i], most)


def check_vector(field: str, value: Any) -> None:
    """ValueError unless it is the name of a vector."""
    if not isinstance(value, str) or value not in VECTORS:
        refuse(field, value, _OF_VECTORS)


def check_tuple(field: str, value: Any, least: int) -> None:
    """ValueError unless it is a tuple of at least so many."""
    if not isinstance(value, tuple) or len(value) < least:
        refuse(field, value, f"a tuple of at least {least}" if least else "a tuple")


def _check_types(values: Sequence[Any], field: Field, allowed: str, *kinds: type) -> None:
    if not set(map(type, values)) <= {*kinds}:
        k = next(k for k, value in enumerate(values) if type(value) not in kinds)
        refuse(field(k), values[k], allowed)


def check_numbers(
    values: Sequence[Any], field: Field, allowed: str = "a finite number", least: float = -_MOST
) -> None:
    """ValueError unless they are numbers >= least that float32 can hold; all looked at together, and one by
    one where some are not."""
    if not _fit(values, least):
        k = next(k for k, value in enumerate(values) if not _fit([value], least))
        refuse(field(k), values[k], f"{allowed} up to {_MOST:.2g}, which float32 holds")


def check_sigmas(values: Sequence[Any], field: Field) -> None:
    """ValueError unless they are levels, which may be infinite."""
    finite = [0.0 if isinstance(v, float) and v == math.inf else v for v in values]
    check_numbers(finite, field, "'inf', or a number >= 0", 0.0)


def refuse(field: str, value: Any, allowed: str) -> NoReturn:
    raise ValueError(f"{field}={shown(value, 60)} must be {allowed}")


def _fit(values: Sequence[Any], least: float) -> bool:
    kinds = {*map(type, values)}
    if not all(issubclass(kind, _NUMBERS) and kind is not bool for kind in kinds):
        return False
    if int in kinds and any(abs(value) > _WHOLE for value in values if type(value) is int):
        return False
    array = numbers("values", values)
    return bool(((array >= least) & (array <= _MOST)).all())
