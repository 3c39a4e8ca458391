"""Results kept on disk under the name of what they were computed from.

A key is a hash of content: parameters, noises, plans, versions. So a result is found again exactly when
it would come out again, and nothing has to be invalidated. Files are safetensors with JSON in the header,
written beside their target and moved into place; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._checks import path_of
from ._warn import warn
from .denoiser import Denoiser
from .exact import ExactModel
from .nets import weights

Record = tuple[dict[str, Tensor], dict[str, Any]]
_PROBES = 64


def digest(*parts: Any) -> str:
    """A short hash of plain data, arrays and tensors; TypeError for what has no content to hash."""
    state = hashlib.sha256()
    for part in parts:
        _feed(state, part)
    return state.hexdigest()[:24]


def model_key(model: Denoiser, key: str | None = None) -> str | None:
    """A hash of all that decides a denoiser's answers; None where the network is opaque code.

    Known are exact mixtures, by their parameters, and ``torch.nn.Module``, by class, structure, state and
    the plain data in its public attributes and configuration. The code of a module is not seen: after a
    change there, give another key. key: stands for the network, and for nothing else of the denoiser.
    """
    net, schedule = getattr(model.net, "_orig_mod", model.net), model.schedule  # not compiled
    if key is not None:
        parts: list[Any] = ["given", str(key)]
    elif isinstance(model, ExactModel) and is_exact(model):
        parts = [model.weights, model.means, model.eigenvalues, model.eigenvectors]
    elif isinstance(net, torch.nn.Module):
        name = f"{type(net).__module__}.{type(net).__qualname__}"
        settings = {path: _settings(module) for path, module in net.named_modules()}
        parts = [name, repr(net), settings, dict(net.state_dict())]
    else:
        return None
    levels = schedule.sigma(np.linspace(0.0, schedule.T, _PROBES + 1)[1:])
    guidance = model.guidance
    # Of the alterations, the scale is in there by itself.
    further = {k: v for k, v in model.alterations.items() if k != "guidance"}
    try:
        return digest(
            *parts,
            schedule.fingerprint,
            model.network_time(model.snapped(levels)),
            [model.prediction, model.snap, model.learned_variance, model.dtype],
            None if guidance is None else [float(guidance.scale), dict(guidance.null)],
            *([further] if further else []),
        )
    except TypeError:
        return None


def is_exact(model: Denoiser) -> bool:
    """Whether it is an exact mixture whose network nobody has replaced."""
    return isinstance(model, ExactModel) and isinstance(
        getattr(model.net, "__self__", None), ExactModel
    )


def _settings(module: torch.nn.Module) -> dict[str, str]:
    """Digests of the plain data that a module keeps beside its state: two of one structure and state may
    still compute different things (diffusers' ``center_input_sample`` is nowhere but in ``config``).

    Names that begin with an underscore are caches and bookkeeping, such as the folder it was read from.
    """
    config = getattr(module, "config", None)
    if isinstance(config, Mapping):
        config = {k: v for k, v in config.items() if not str(k).startswith("_")}
    held = {k: v for k, v in vars(module).items() if not k.startswith("_")} | dict(config=config)
    unsaved = {k: v for k, v in module._buffers.items() if k in module._non_persistent_buffers_set}
    found = {}
    for name, value in {**held, **unsaved}.items():
        with contextlib.suppress(TypeError):
            found[name] = digest(value)
    return found


class Store:
    """A folder of records (tensors, configuration); without a folder it keeps nothing."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else path_of("cache", folder)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        return self.folder is not None and self.path(name).is_file()

    def get(self, name: str, needs: Iterable[str] = ()) -> Record | None:
        """The record, or None if there is none; an unreadable file is warned about, by name.

        needs: tensors and keys of the configuration without which it is no record.
        """
        if not self.has(name):
            return None
        try:
            tensors, config = weights.read(self.path(name))
            missing = [key for key in needs if key not in tensors and key not in config]
            if missing:
                raise ValueError(f"it has no {missing[0]!r}")
        except (ValueError, TypeError, OSError) as error:
            warn(
                f"{self.path(name)}: not a readable result ({error}); it is computed and written again"
            )
            return None
        return tensors, config

    def put(self, name: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        if self.folder is not None:
            weights.write(self.path(name), tensors, config)


def _feed(state: Any, part: Any) -> None:
    """Hash one part, with its type and size, so that no two different parts run together."""
    if isinstance(part, Tensor):
        part = part.detach().cpu()
        state.update(f"tensor {part.dtype} {tuple(part.shape)};".encode())
        flat = part.contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
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
