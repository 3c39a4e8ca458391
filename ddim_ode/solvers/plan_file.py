"""Plans on disk: JSON that a person can read and compare, one op a line.

Floats are written by repr and so come back to the last bit; σ = inf is the word "inf". What is read is
checked field by field, since a plan travels between people: it holds numbers and names only, and nothing of
it is looked up, imported or run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from .. import files, json_file
from .._checks import one_of, path_of
from .chart import VECTORS
from .plan import Node, Op, Plan

FORMAT, VERSION = "ddim_ode plan", 1
SIZE_LIMIT = 16 * 2**20  # bytes; a plan of 1000 steps that reads all its history is below that
_DEPTH_LIMIT = 16  # of the data in ``fit``
_STARTS = (None, "rk", "ramp")
_FIELDS = (
    *("format", "version", "method", "vector", "chart", "schedule", "start", "nfe", "memory"),
    *("grid", "ops", "error_weights", "fit"),
)


def write(plan: Plan, path: str | Path) -> None:
    """Write the plan atomically; ValueError for one that could not be read again."""
    text, path = dumps(plan), path_of("path", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, text)


def read(path: str | Path) -> Plan:
    """The plan of a file; FileNotFoundError, or ValueError naming the file and what is wrong with it."""
    return loads(content(path), str(path))


def content(path: str | Path) -> bytes:
    """The bytes of a file, no more than tell that it is too large; FileNotFoundError without it."""
    return json_file.content(path, "plan", SIZE_LIMIT)


def dumps(plan: Plan) -> str:
    """The text of a plan's file."""
    ops = [
        dict(
            scale=float(op.scale),
            weights=[float(w) for w in op.weights],
            node=op.node and dict(sigma=_sigma(op.node[0]), t=float(op.node[1]), vector=op.node[2]),
            commit=bool(op.commit),
            noise=float(op.noise),
        )
        for op in plan.ops
    ]
    values = dict(
        format=FORMAT,
        version=VERSION,
        method=plan.method,
        vector=plan.vector,
        chart=plan.chart,
        schedule=plan.schedule,
        start=plan.start,
        nfe=plan.nfe,
        memory=plan.memory,
        grid=[_sigma(s) for s in plan.grid],
        ops=ops,
        error_weights=[float(w) for w in plan.error_weights],
        fit=plan.fit,
    )
    source = f"plan {plan.method!r} cannot be saved"
    try:
        lines = [f" {json.dumps(name)}: {_text(name, value)}" for name, value in values.items()]
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source}: fit must be plain JSON data ({error})") from None
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if loads(text.encode(), source) != plan:
        raise ValueError(f"{source}: its fields are not those of a compiled plan")
    return text


def loads(data: bytes, source: str) -> Plan:
    """The plan in the bytes of a file; ValueError that names ``source`` and the field."""
    return _Reader(source).plan(json_file.parsed(data, source, "plan", SIZE_LIMIT))


class _Reader:
    """Checks of a file's data; every message begins with the file's name."""

    def __init__(self, source: str) -> None:
        self.source = source

    def plan(self, data: Any) -> Plan:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else data
            raise ValueError(
                f"{self.source}: not a plan: format={_shown(found)} must be {FORMAT!r}, as Plan.save "
                "writes it"
            )
        if (version := data.get("version")) != VERSION or isinstance(version, bool):
            self.refuse("version", version, f"{VERSION}; for another, update ddim_ode")
        self.names("the plan", data, _FIELDS)
        grid = self.grid(data["grid"])
        ops = self.ops(data["ops"])
        calls = sum(op.node is not None for op in ops)
        commits = sum(op.commit for op in ops)
        if not calls:
            self.refuse("ops", data["ops"], "a list in which at least one op calls the network")
        if not ops[-1].commit or ops[-1].node is not None:
            last = f"ops[{len(ops) - 1}]"
            self.refuse(last, data["ops"][-1], "the end: with commit true and node null")
        if commits != len(grid) - 1:
            self.refuse(
                "grid", data["grid"], f"{commits + 1} levels, one more than ops that commit"
            )
        self.equal("nfe", data["nfe"], calls, "the number of ops with a node")
        memory = max(len(op.weights) for op in ops)
        self.equal("memory", data["memory"], memory, "the length of the longest weights")
        errors = self.numbers("error_weights", data["error_weights"])
        if len(errors) not in (0, calls):
            self.refuse("error_weights", data["error_weights"], f"empty, or {calls} numbers")
        if data["start"] not in _STARTS:
            self.refuse("start", data["start"], "null, 'rk' or 'ramp'")
        fit = data["fit"]
        if fit is not None and not isinstance(fit, dict):
            self.refuse("fit", fit, "null or an object")
        self.plain("fit", fit)
        return Plan(
            method=self.name("method", data["method"]),
            ops=ops,
            vector=self.vector("vector", data["vector"]),
            chart=self.name("chart", data["chart"]),
            grid=grid,
            schedule=self.name("schedule", data["schedule"]),
            start=data["start"],
            error_weights=errors,
            fit=fit,
        )

    def ops(self, rows: Any) -> tuple[Op, ...]:
        ops, calls = [], 0
        for i, row in enumerate(self.sequence("ops", rows)):
            at = f"ops[{i}]"
            self.names(at, row, Op._fields)
            weights = self.numbers(f"{at}.weights", row["weights"])
            if len(weights) > calls:
                most = f"at most {calls} long, the network calls made before it"
                self.refuse(f"{at}.weights", row["weights"], most)
            if not isinstance(row["commit"], bool):
                self.refuse(f"{at}.commit", row["commit"], "true or false")
            ops.append(
                Op(
                    self.number(f"{at}.scale", row["scale"]),
                    weights,
                    self.node(f"{at}.node", row["node"]),
                    row["commit"],
                    self.number(f"{at}.noise", row["noise"], "a number >= 0", lambda v: v >= 0),
                )
            )
            calls += ops[-1].node is not None
        if not ops:
            self.refuse("ops", rows, "a list of at least one op")
        return tuple(ops)

    def node(self, field: str, row: Any) -> Node | None:
        if row is None:
            return None
        self.names(field, row, Node._fields)
        sigma = self.sigma(f"{field}.sigma", row["sigma"], "a number > 0, or 'inf'")
        if not sigma > 0:
            self.refuse(f"{field}.sigma", row["sigma"], "a number > 0, or 'inf'")
        t = self.number(f"{field}.t", row["t"], "a number >= 0", lambda v: v >= 0)
        return Node(sigma, t, self.vector(f"{field}.vector", row["vector"]))

    def grid(self, values: Any) -> tuple[float, ...]:
        grid = tuple(
            self.sigma(f"grid[{i}]", value, "a number >= 0, or 'inf'")
            for i, value in enumerate(self.sequence("grid", values))
        )
        if len(grid) < 2:
            self.refuse("grid", values, "a list of at least two σ")
        for i in range(1, len(grid)):
            if not grid[i] < grid[i - 1]:
                self.refuse(f"grid[{i}]", values[i], f"below grid[{i - 1}]={grid[i - 1]:g}")
        return grid

    # -- single values ------------------------------------------------------------------------
    def sigma(self, field: str, value: Any, allowed: str) -> float:
        if isinstance(value, str) and value == "inf":
            return math.inf
        return self.number(field, value, allowed, lambda v: v >= 0)

    def numbers(self, field: str, values: Any) -> tuple[float, ...]:
        rows = enumerate(self.sequence(field, values))
        return tuple(self.number(f"{field}[{i}]", value) for i, value in rows)

    def number(
        self,
        field: str,
        value: Any,
        allowed: str = "a finite number",
        good: Callable[[float], bool] = math.isfinite,
    ) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.refuse(field, value, allowed)
        try:
            number = float(value)
        except OverflowError:  # JSON's whole numbers have no largest
            self.refuse(field, value, allowed)
        if not (math.isfinite(number) and good(number)):
            self.refuse(field, value, allowed)
        return number

    def equal(self, field: str, value: Any, count: int, what: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value != count:
            self.refuse(field, value, f"{count}, {what}")

    def name(self, field: str, value: Any) -> str:
        """A name goes into terminals, pages and pictures: no control characters."""
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 200:
            self.refuse(field, value, "a string of 1 to 200 printable characters")
        return value

    def vector(self, field: str, value: Any) -> str:
        try:
            return one_of("vector", value, VECTORS)
        except ValueError:
            self.refuse(field, value, f"one of {', '.join(VECTORS)}")

    def sequence(self, field: str, values: Any) -> list[Any]:
        if not isinstance(values, list):
            self.refuse(field, values, "a list")
        return values

    def names(self, field: str, data: Any, names: Iterable[str]) -> None:
        names = tuple(names)
        if not isinstance(data, dict):
            self.refuse(field, data, f"an object with {', '.join(names)}")
        if missing := [name for name in names if name not in data]:
            raise ValueError(f"{self.source}: {field} has no {missing[0]!r}; it may be truncated")
        if unknown := [name for name in data if name not in names]:
            raise ValueError(
                f"{self.source}: {field} has the unknown field {_shown(unknown[0])}; known are "
                f"{', '.join(names)}"
            )

    def plain(self, field: str, value: Any, depth: int = 0) -> None:
        """Whatever a fit says: of limited depth, and strings that are text."""
        if depth > _DEPTH_LIMIT:
            self.refuse(field[:80], value, f"nested at most {_DEPTH_LIMIT} deep")
        if isinstance(value, str) and not value.replace("\n", "").isprintable():
            self.refuse(field, value, "printable text")
        if isinstance(value, dict):
            for key in value:
                self.name(f"a key of {field}", key)
                self.plain(f"{field}.{key}", value[key], depth + 1)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                self.plain(f"{field}[{i}]", item, depth + 1)

    def refuse(self, field: str, value: Any, allowed: str) -> NoReturn:
        raise ValueError(f"{self.source}: {field}={_shown(value)} must be {allowed}")


def _shown(value: Any) -> str:
    """Enough of a value to find it by; a whole number may have more digits than Python will print."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sigma(value: float) -> float | str:
    return "inf" if value == math.inf else float(value)


def _text(name: str, value: Any) -> str:
    if name == "ops":
        return "[\n" + ",\n".join(f"  {json.dumps(op, allow_nan=False)}" for op in value) + "\n ]"
    if isinstance(value, Mapping):
        value = dict(value)
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
