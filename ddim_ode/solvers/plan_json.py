"""Plans on disk: JSON that a person can read and compare, one op a line.

Floats are written by repr and so come back to the last bit; σ = inf is the word "inf". A plan travels
between people: a file holds numbers and names only, nothing of it is looked up, imported or run, and a
checksum shows whether it still holds what was saved. The reader only converts; the plan, which this module
does not know, checks itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from .._base import files, json_file
from .._base.checks import path_of, shown
from .._base.json_file import plain_level
from .ops import Node, Op


class Compiled(Protocol):
    """What the reader asks of the plan that it makes."""

    @property
    def nfe(self) -> int: ...

    @property
    def memory(self) -> int: ...


P = TypeVar("P", bound=Compiled)

FORMAT, VERSION = "ddim_ode plan", 2  # 1 had no sha256
SIZE_LIMIT = 16 * 2**20  # bytes; a plan of 1000 steps that reads all its history is below that
_FIELDS = (
    *("format", "version", "method", "vector", "chart", "schedule", "start", "nfe", "memory"),
    *("grid", "ops", "error_weights", "fit", "sha256"),
)


def write(plan: Any, path: str | Path) -> None:
    """Write the plan atomically; ValueError for one that could not be read again."""
    text, path = dumps(plan), path_of("path", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, text)


def content(path: str | Path) -> bytes:
    """The bytes of a file, no more than tell that it is too large; FileNotFoundError without it."""
    return json_file.content(path, "plan", SIZE_LIMIT)


def dumps(plan: Any) -> str:
    """The text of a plan's file."""
    source = f"plan {plan.method!r} cannot be saved"
    try:
        values = _values(plan)
        values["sha256"] = json_file.seal(values)
        lines = [f" {json.dumps(name)}: {_text(name, value)}" for name, value in values.items()]
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source}: fit must be plain JSON data ({error})") from None
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if loads(text, source, type(plan)) != plan:
        raise ValueError(f"{source}: its fields are not those of a compiled plan")
    return text


def _values(plan: Any) -> dict[str, Any]:
    """All fields but the checksum."""
    ops = [
        dict(
            scale=float(op.scale),
            weights=[float(w) for w in op.weights],
            node=op.node
            and dict(sigma=plain_level(op.node[0]), t=float(op.node[1]), vector=op.node[2]),
            commit=bool(op.commit),
            noise=[float(w) for w in op.noise] if isinstance(op.noise, tuple) else float(op.noise),
        )
        for op in plan.ops
    ]
    return dict(
        format=FORMAT,
        version=VERSION,
        method=plan.method,
        vector=plan.vector,
        chart=plan.chart,
        schedule=plan.schedule,
        start=plan.start,
        nfe=plan.nfe,
        memory=plan.memory,
        grid=list(map(plain_level, plan.grid)),
        ops=ops,
        error_weights=[float(w) for w in plan.error_weights],
        fit=plan.fit,
    )


def loads(data: str | bytes, source: str, make: Callable[..., P]) -> P:
    """The plan in the content of a file.

    Args:
        data: The content.
        source: What it is called in messages.
        make: Makes the plan of its fields; a ValueError for what are none.

    Raises:
        ValueError: It names ``source`` and the field.
    """
    data = data.encode() if isinstance(data, str) else data
    return _Reader(source).plan(json_file.parsed(data, source, "plan", SIZE_LIMIT), make)


class _Reader:
    """Checks of a file's data; every message begins with the file's name."""

    def __init__(self, source: str) -> None:
        self.source = source

    def plan(self, data: Any, make: Callable[..., P]) -> P:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            own = data.get("format") if isinstance(data, dict) else data
            raise ValueError(
                f"{self.source}: not a plan: format={shown(own, 60)} must be {FORMAT!r}, as Plan.save "
                "writes it"
            )
        version = data.get("version")
        if version not in (1, VERSION) or isinstance(version, bool):
            self.refuse("version", version, f"1 or {VERSION}; for another, update ddim_ode")
        fields = _FIELDS if version > 1 else _FIELDS[:-1]
        self.names("the plan", data, fields)
        plan = self.checked(
            make,
            method=data["method"],
            ops=tuple(self.op(f"ops[{i}]", row) for i, row in self.rows("ops", data["ops"])),
            vector=data["vector"],
            chart=data["chart"],
            grid=tuple(self.sigma(f"grid[{i}]", v) for i, v in self.rows("grid", data["grid"])),
            schedule=data["schedule"],
            start=data["start"],
            error_weights=self.numbers("error_weights", data["error_weights"]),
            fit=data["fit"],
        )
        self.equal("nfe", data["nfe"], plan.nfe, "the number of ops with a node")
        self.equal("memory", data["memory"], plan.memory, "the length of the longest weights")
        if version > 1 and data["sha256"] != json_file.seal(_values(plan)):
            raise ValueError(
                f"{self.source}: was altered or damaged: its sha256 is not that of what it holds; take the "
                "file again from where it came (dataclasses.replace(plan, ...).save makes another)"
            )
        return plan

    def checked(self, make: Callable[..., P], **fields: Any) -> P:
        try:
            return make(**fields)
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from None

    def op(self, field: str, row: Any) -> Op:
        self.names(field, row, Op._fields)
        node = row["node"]
        if node is not None:
            at = f"{field}.node"
            self.names(at, node, Node._fields)
            sigma = self.sigma(f"{at}.sigma", node["sigma"])
            node = Node(sigma, self.number(f"{at}.t", node["t"]), node["vector"])
        return Op(
            self.number(f"{field}.scale", row["scale"]),
            self.numbers(f"{field}.weights", row["weights"]),
            node,
            row["commit"],
            self.numbers(f"{field}.noise", row["noise"])
            if isinstance(row["noise"], list)
            else self.number(f"{field}.noise", row["noise"]),
        )

    # -- single values ------------------------------------------------------------------------
    def sigma(self, field: str, value: Any) -> float:
        if isinstance(value, str) and value == "inf":
            return math.inf
        return self.number(field, value, "a number, or 'inf'")

    def numbers(self, field: str, values: Any) -> tuple[float, ...]:
        return tuple(self.number(f"{field}[{i}]", value) for i, value in self.rows(field, values))

    def number(self, field: str, value: Any, allowed: str = "a finite number") -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.refuse(field, value, allowed)
        try:
            return float(value)
        except OverflowError:  # JSON's whole numbers have no largest
            self.refuse(field, value, allowed)

    def equal(self, field: str, value: Any, count: int, what: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value != count:
            self.refuse(field, value, f"{count}, {what}")

    def rows(self, field: str, values: Any) -> Iterable[tuple[int, Any]]:
        if not isinstance(values, list):
            self.refuse(field, values, "a list")
        return enumerate(values)

    def names(self, field: str, data: Any, names: Iterable[str]) -> None:
        names = tuple(names)
        if not isinstance(data, dict):
            self.refuse(field, data, f"an object with {', '.join(names)}")
        if missing := [name for name in names if name not in data]:
            raise ValueError(f"{self.source}: {field} has no {missing[0]!r}; it may be truncated")
        if unknown := [name for name in data if name not in names]:
            raise ValueError(
                f"{self.source}: {field} has the unknown field {shown(unknown[0], 60)}; known are "
                f"{', '.join(names)}"
            )

    def refuse(self, field: str, value: Any, allowed: str) -> NoReturn:
        raise ValueError(f"{self.source}: {field}={shown(value, 60)} must be {allowed}")


def _text(name: str, value: Any) -> str:
    if name == "ops":
        return "[\n" + ",\n".join(f"  {json.dumps(op, allow_nan=False)}" for op in value) + "\n ]"
    if isinstance(value, Mapping):
        value = dict(value)
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
