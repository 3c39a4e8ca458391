"""Comparisons on disk: JSON with everything but the end states, sealed by a checksum of its content.

Floats are written by repr and so come back to the last bit; NaN and infinities are null. A comparison is a
measurement: a file whose content was changed after it was written is refused, not repaired. Its layout and
line ends may change.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .._base import files
from .._base.json_file import content, parsed, seal

FORMAT, VERSION = "ddim_ode comparison", 1
SIZE_LIMIT = 128 * 2**20  # bytes; 1,000 rows of 5,000 noises
_WHAT = "comparison"
FIELDS = (
    *("about", "model", "schedule", "fingerprints", "budgets", "confidence", "seeds", "searched"),
    *("reference", "rows", "errors", "search", "distribution"),
)


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Write a comparison's content as JSON, whole or not at all."""
    tree = dict(format=FORMAT, version=VERSION, **content)
    files.write_json(path, tree | dict(sha256=seal(tree)))


def read(path: str | Path) -> dict[str, Any]:
    """The content of a comparison's file; FileNotFoundError, or ValueError naming it and what is wrong."""
    tree = parsed(content(path, _WHAT, SIZE_LIMIT), str(path), _WHAT, SIZE_LIMIT)
    if not isinstance(tree, dict) or (tree.get("format"), tree.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"{path}: not a comparison of this version (format {FORMAT!r}, {VERSION}); compare again, and "
            "write it with to_json"
        )
    if tree.pop("sha256", None) != seal(tree):
        raise ValueError(
            f"{path}: damaged, or changed after it was written: its content has another checksum; compare "
            "again (with cache= nothing is computed twice)"
        )
    return {name: tree.get(name) for name in FIELDS}


def as_numbers(values: list[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Null is NaN."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def as_json(value: Any) -> Any:
    """As JSON has it: NaN and infinities are null."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
