"""Weights on disk: one safetensors file, its configuration as JSON in the header.

Nothing is unpickled. A file is written beside its target and moved into place, so that a
killed process leaves either the old file or the new one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write(path: str | Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write tensors and a JSON-able configuration, atomically.

    A process that is killed leaves the old file or the new one, a full disk the old one and an OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    try:
        # Not save_file: it reports a full disk as a format error, without its errno.
        with open(beside, "wb") as file:
            file.write(save(contiguous, metadata={"config": json.dumps(config)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (float16 widened to float32) and the configuration.

    FileNotFoundError without the file; ValueError naming it when it is truncated, not
    safetensors, or carries no configuration of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(metadata["config"])
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: truncated or not a safetensors file ({error}); fetch or train it again"
        ) from error
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: a safetensors file, but not one of ddim_ode's; weights of diffusers are read by "
            "their directory, with ddim_ode.interop.diffusers.load"
        ) from error
    widened = {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}
    return widened, config
