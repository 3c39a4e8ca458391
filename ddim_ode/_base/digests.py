"""A hash of plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def digest(*parts: Any) -> str:
    """A short hash of plain data, arrays and tensors; TypeError for what has no content to hash."""
    state = hashlib.sha256()
    for part in parts:
        _feed(state, part)
    return state.hexdigest()[:24]


def _feed(state: Any, part: Any) -> None:
    """Hash one part, with its type and size, so that no two different parts run together."""
    if isinstance(part, Tensor):
        part = part.detach().cpu()
        state.update(f"tensor {part.dtype} {tuple(part.shape)};".encode())
        flat = part.contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    elif isinstance(part, np.ndarray) and part.dtype.hasobject:  # whose bytes are addresses
        _feed(state, [list(part.shape), *part.reshape(-1).tolist()])
    elif isinstance(part, np.ndarray):
        state.update(f"array {part.dtype} {part.shape};".encode() + part.tobytes())
    elif isinstance(part, Mapping):
        state.update(f"mapping {len(part)};".encode())
        for key in sorted(part):
            _feed(state, key)
            _feed(state, part[key])
    elif is_dataclass(part) and not isinstance(part, type):
        _feed(state, {f.name: getattr(part, f.name) for f in fields(part)})
    elif isinstance(part, (list, tuple, range)):
        state.update(f"sequence {len(part)};".encode())
        for item in part:
            _feed(state, item)
    elif part is None or isinstance(
        part, (bool, int, float, str, bytes, torch.dtype, torch.device)
    ):
        text = repr(part)
        state.update(f"{type(part).__name__} {len(text)};{text}".encode())
    elif isinstance(part, np.generic):
        _feed(state, part.item())
    else:
        raise TypeError(f"a {type(part).__name__} has no content to hash")
