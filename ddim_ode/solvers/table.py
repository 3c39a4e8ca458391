"""A plan on numbers instead of tensors: the states that it shows the network.

A deterministic plan is a table. Every state that it shows the network, and the one that it ends in, is

    y_k = c_k x_T + Σ_{j<k} W_kj V_j.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._base.checks import finite, numbers, one_of, text_of
from .._base.json_file import plain_level
from ..schedules.schedule import Array, Schedule, check_schedule
from .chart import PREDICTIONS, convert
from .ops import Node, Op

FORMATS = ("json", "csv", "c")


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


def answering(table: Table, schedule: Any, prediction: Any) -> Table:
    """The same table, of a network's answers P as they come instead of the vectors V made of them.

    V_k = a_k y_k + b_k P_k, and the state y_k that call k is shown is a row of the table itself.
    """
    one_of("prediction", prediction, PREDICTIONS)
    alpha, beta = schedule.scales(np.array(table.sigma))
    unit = np.eye(len(table.sigma) + 1)
    stored: list[Array] = []
    rows: list[Array] = []
    for k, row in enumerate(table.weights):
        y = row[0] * unit[0] + sum((w * v for w, v in zip(row[1:], stored)), 0.0 * unit[0])
        rows.append(y)
        if k < len(table.sigma):
            pair = alpha[k : k + 1], beta[k : k + 1]
            a, b = (float(c[0]) for c in convert(prediction, table.vector[k], *pair))
            with np.errstate(invalid="ignore"):
                stored.append((a * y if a else 0.0 * y) + b * unit[k + 1])
    if not np.isfinite(rows).all():
        raise ValueError(
            f"at σ={table.sigma[0]:g} the plan's {table.vector[0]} cannot be had from a network's "
            f"{prediction}; take another prediction"
        )
    return table._replace(vector=(prediction,) * len(table.sigma), weights=np.array(rows))


def text_of_table(table: Table, name: str, form: str) -> str:
    """The table as JSON, CSV or a C header."""
    one_of("form", form, FORMATS)
    rows = table.weights.tolist()
    if form == "json":
        levels = [plain_level(sigma) for sigma in table.sigma]
        values = dict(name=name, sigma=levels, t=table.t, vector=table.vector, weights=rows)
        return json.dumps(values) + "\n"
    n = len(table.sigma)
    if form == "csv":
        head = ["sigma", "t", "vector", "x", *(f"v{k}" for k in range(n))]
        calls = [*zip(map(repr, table.sigma), map(repr, table.t), table.vector), ("", "", "")]
        lines = [[*call, *map(repr, row)] for call, row in zip(calls, rows)]
        return "".join(",".join(line) + "\n" for line in [head, *lines])
    own = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    own = own if own[0].isalpha() else f"plan_{own}"
    told = ", ".join("INFINITY" if sigma == np.inf else repr(sigma) for sigma in table.sigma)
    body = ",\n".join("  {" + ", ".join(map(repr, row)) + "}" for row in rows)
    return (
        f"/* {own}: {n} network calls. Call k is shown y = w[k][0] x + sum_{{j<k}} w[k][1+j] v[j]\n"
        f"   at the level sigma[k], time t[k]; v[k] is the {', '.join(dict.fromkeys(table.vector))} it "
        f"answers; row {n} is the end. */\n"
        f"#include <math.h>\nenum {{ {own}_calls = {n} }};\n"
        f"static const double {own}_sigma[{n}] = {{{told}}};\n"
        f"static const double {own}_t[{n}] = {{{', '.join(map(repr, table.t))}}};\n"
        f"static const double {own}_w[{n + 1}][{n + 1}] = {{\n{body}\n}};\n"
    )


def fields_of_table(
    levels: Any,
    weights: Any,
    schedule: Schedule,
    *,
    prediction: str = "eps",
    sigma_max: float | None = None,
    sigma_end: float = 0.0,
    name: str = "table",
) -> dict[str, Any]:
    """The fields of the plan of such a table; the arguments of :meth:`ddim_ode.Plan.from_table`."""
    check_schedule(schedule)
    one_of("prediction", prediction, PREDICTIONS)
    text_of("name", name)
    sigmas, rows = numbers("levels", levels), numbers("weights", weights)
    n = sigmas.size
    if sigmas.ndim != 1 or n == 0:
        raise ValueError(f"levels must be a list of σ, one for each call, got shape {sigmas.shape}")
    sigmas = np.array([schedule.check_sigma(s, f"levels[{k}]") for k, s in enumerate(sigmas)])
    if not (sigmas > 0).all():
        raise ValueError(f"levels[{int(np.argmin(sigmas))}]=0: no network is called at σ=0")
    if rows.shape != (n + 1, n + 1):
        raise ValueError(
            f"weights has shape {rows.shape}; {n} levels need ({n + 1}, {n + 1}), a row for each call and "
            "the end, of weights of the start and of each answer"
        )
    early = np.argwhere(np.triu(np.where(np.isnan(rows), 1.0, rows), 1) != 0)
    if early.size or not np.isfinite(rows).all():
        i, j = map(int, early[0] if early.size else np.argwhere(~np.isfinite(rows))[0])
        why = "0: that call is not made yet" if early.size else "finite"
        raise ValueError(f"weights[{i}][{j}]={rows[i, j]:g} must be {why}")
    top = None if sigma_max is None else schedule.level(sigma_max, "sigma_max")
    end = schedule.level(finite("sigma_end", sigma_end), "sigma_end")
    times = np.atleast_1d(schedule.time(sigmas))
    return fields_of_rows(rows, sigmas, times, prediction, schedule, name, end, top)


def fields_of_rows(
    rows: Array,
    sigmas: Array,
    times: Array,
    vector: str,
    schedule: Schedule,
    name: str,
    sigma_end: float,
    sigma_max: float | None = None,
    rounding: float = 1e-13,
) -> dict[str, Any]:
    """The fields of the plan of a table's rows.

    Its grid is the levels of the calls, the first at ``sigma_max`` where that is told, and ``sigma_end``; a
    call that no later one goes below, or that is at the level of a later one, is a stage. rounding: a
    weight this small beside its own column of the table is none.
    """
    levels = _levels(sigmas, sigma_end)
    if not levels:
        raise ValueError(
            f"sigma_end={sigma_end:g} must be below σ={sigmas.max():g}, the highest level of a call"
        )
    nodes = [Node(s, t, vector) for s, t in zip(sigmas.tolist(), times.tolist())]
    first = float(sigmas[levels[0]]) if sigma_max is None else sigma_max
    return dict(
        method=name,
        ops=_ops(rows, nodes, levels, rounding),
        vector=vector,
        chart="none",
        grid=(first, *sigmas[levels[1:]].tolist(), sigma_end),
        schedule=schedule.fingerprint,
    )


def _levels(sigmas: Array, lowest: float) -> list[int]:
    """The calls whose σ form the grid: each above all later ones and the end."""
    levels: list[int] = []
    for k in range(len(sigmas) - 1, -1, -1):
        if sigmas[k] > lowest * (1 + 1e-6):
            levels.append(k)
            lowest = sigmas[k]
    return levels[::-1]


def _ops(
    rows: Array, nodes: Sequence[Node], levels: Sequence[int], rounding: float
) -> tuple[Op, ...]:
    """Each row (c, W_0, W_1, ...) as scale · (the last committed row) + weights of the newest V."""
    ops = []
    base = np.eye(1, rows.shape[1])[0]
    for k, (row, node) in enumerate(zip(rows, [*nodes, None])):
        if not base[0] and row[0]:
            raise ValueError(
                f"the sampler comes back to its start x after call {k - 1}, whose state had lost it: "
                "a plan keeps one state and cannot say that"
            )
        scale = row[0] / base[0] if base[0] else 0.0
        rest = (row - scale * base)[k:0:-1]  # newest first; V_k and later do not exist yet
        large = rounding * np.maximum(abs(row), abs(scale * base))[k:0:-1]
        used = np.flatnonzero(abs(rest) > large)
        weights = tuple(rest[: used[-1] + 1].tolist()) if used.size else ()
        commit = node is None or (k in levels and k > levels[0])
        ops.append(Op(float(scale), weights, node, commit, 0.0))
        if commit:
            base = row
    return tuple(ops)
