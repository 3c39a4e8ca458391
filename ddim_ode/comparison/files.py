"""Comparisons on disk: JSON with everything but the end states, sealed by a checksum of its content.

Floats are written by repr and so come back to the last bit; NaN and infinities are null. A comparison is a
measurement, so a file that was changed after it was written is refused, not repaired. Its layout, and the
ends of its lines, may change.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._base import files
from .._base.json_file import content, parsed
from ..solve.reference import Reference
from .result import Comparison

FORMAT, VERSION = "ddim_ode comparison", 1
SIZE_LIMIT = 128 * 2**20  # bytes; 1,000 rows of 5,000 noises
_WHAT = "comparison"


def as_tree(result: Comparison) -> dict[str, Any]:
    """All but the end states, as JSON has it."""
    made = result.reference
    return _plain(
        dict(
            about=result.about,
            model=result.model,
            schedule=result.schedule,
            fingerprints=result.fingerprints,
            budgets=result.budgets,
            confidence=result.confidence,
            seeds=result.seeds,
            searched=result.searched,
            reference=made
            and dict(
                solver=made.solver,
                error=made.error,
                gap=made.gap.tolist(),
                nfe=made.nfe,
                net_evals=made.net_evals,
                seconds=made.seconds,
            ),
            rows=result.rows,
            errors=[errors.tolist() for errors in result.errors],
            search=result.search,
        )
    )


def write(result: Comparison, path: str | Path) -> None:
    """Write the comparison as JSON, whole or not at all."""
    tree = dict(format=FORMAT, version=VERSION, **as_tree(result))
    files.write_json(path, tree | dict(sha256=_seal(tree)))


def read(path: str | Path) -> Comparison:
    """The comparison of a file; FileNotFoundError, or ValueError naming it and what is wrong with it."""
    tree = parsed(content(path, _WHAT, SIZE_LIMIT), str(path), _WHAT, SIZE_LIMIT)
    if not isinstance(tree, dict) or (tree.get("format"), tree.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"{path}: not a comparison of this version (format {FORMAT!r}, {VERSION}); compare again, and "
            "write it with to_json"
        )
    if tree.pop("sha256", None) != _seal(tree):
        raise ValueError(
            f"{path}: damaged, or changed after it was written: its content has another checksum; compare "
            "again (with cache= nothing is computed twice)"
        )
    made = tree["reference"]
    if made is not None:
        gap = _numbers(made["gap"])
        none = torch.empty(len(gap), 0, dtype=torch.float64)
        made = Reference(none, gap, *(made[k] for k in ("solver", "nfe", "net_evals", "seconds")))
    for row in tree["rows"]:
        if row["reference_error"] is None:
            row["reference_error"] = math.nan
    return Comparison(
        **{name: tree[name] for name in _FIELDS},
        reference=made,
        errors=[_numbers(errors) for errors in tree["errors"]],
        samples=[None] * len(tree["rows"]),
    )


_FIELDS = (
    *("about", "model", "schedule", "fingerprints", "budgets", "confidence", "seeds", "searched"),
    *("rows", "search"),
)


def _numbers(values: list[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _seal(tree: dict[str, Any]) -> str:
    """A hash of the content, whatever the layout of the file."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """As JSON has it: NaN and infinities are null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
