"""JSON files of other people: read up to a limit, and strictly; nothing in them is looked up or run."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from . import files
from .checks import path_of


def plain_level(sigma: float) -> float | str:
    """A level as JSON has it: infinity is the word "inf"."""
    return float(sigma) if sigma < math.inf else "inf"


def content(path: str | Path, what: str, limit: int) -> bytes:
    """The bytes of a file, no more than tell that it is too large; FileNotFoundError without it,
    IsADirectoryError for a folder."""
    try:
        return files.read(path_of("path", path), limit + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such {what} file") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{path}: is a folder; give the {what}'s file in it") from None


def parsed(data: bytes, source: str, what: str, limit: int) -> Any:
    """What the bytes say, each key once and each number finite; ValueError that begins with ``source``."""
    if len(data) > limit:
        raise ValueError(f"{source}: larger than {limit // 2**20} MiB, which no {what} is")
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError(f"{source}: not a {what}: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{source}: truncated, or not a {what}'s JSON ({error})") from None


def seal(values: dict[str, Any]) -> str:
    """A hash of a file's content, in whatever order and layout it is kept: other libraries sort it."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in data if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return data
