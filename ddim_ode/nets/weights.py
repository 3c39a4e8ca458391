"""Weights on disk: one safetensors file, its configuration as JSON in the header, with a checksum of both.

Nothing is unpickled, and a file is whole or not there (files.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .._base import files
from .._base.digests import digest


def write(path: str | Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write tensors and a JSON-able configuration; the folder is made if there is none.

    A process that is killed leaves the old file or the new one, a full disk the old one and an OSError.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write(path, dumps(tensors, config))


def dumps(tensors: dict[str, Tensor], config: dict[str, Any]) -> bytes:
    """The content of such a file."""
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    return save(contiguous, metadata=_metadata(contiguous, json.dumps(config)))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (float16 widened to float32) and the configuration.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read at this moment, whatever is in it.
        ValueError: it is truncated, not safetensors, or carries no configuration of this package.
    """
    try:
        data = files.read(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such weights file") from None
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header["__metadata__"]
        config = json.loads(metadata["config"])
        if "sha256" in metadata and metadata != _metadata(tensors, metadata["config"]):
            raise ValueError("its contents are not those of its checksum")
        if not metadata.keys() <= {"config", "sha256"}:
            raise ValueError(f"its header has the unknown field {max(metadata)!r}")
    except SafetensorError as error:
        raise ValueError(
            f"{path}: truncated or not a safetensors file ({error}); fetch or train it again"
        ) from error
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: a safetensors file, but not one of ddim_ode's, or a damaged one ({error}); weights "
            "of diffusers are read by their directory, with ddim_ode.interop.diffusers.load"
        ) from error
    widened = {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}
    return widened, config


def _metadata(tensors: dict[str, Tensor], config: str) -> dict[str, str]:
    return dict(config=config, sha256=digest(config, tensors))
