"""Results kept on disk under the name of what they were computed from.

A key is a hash of content: parameters, noises, plans, versions. So a result is found again exactly when
it would come out again, and nothing has to be invalidated. Files are safetensors with JSON in the header,
whole or not there; nothing is unpickled.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import types
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

    Known are exact mixtures, by their parameters, and ``torch.nn.Module``, by class, structure, state,
    hooks, and what its public attributes and configuration hold. The code of a module is not seen: after a
    change there, give another key. key: stands for the network, and for nothing else of the denoiser.
    """
    try:
        return _model_key(model, key)
    except (TypeError, RecursionError):  # it holds something that has no content to hash
        return None


def _model_key(model: Denoiser, key: str | None) -> str | None:
    net, schedule = getattr(model.net, "_orig_mod", model.net), model.schedule  # not compiled
    if key is not None:
        parts: list[Any] = ["given", str(key)]
    elif isinstance(model, ExactModel) and is_exact(model):
        parts = [model.weights, model.means, model.eigenvalues, model.eigenvectors]
    elif isinstance(net, torch.nn.Module):
        parts = _module(net, frozenset())
    else:
        return None
    levels = schedule.sigma(np.linspace(0.0, schedule.T, _PROBES + 1)[1:])
    guidance = model.guidance
    # Of the alterations, the scale is in there by itself.
    further = {k: v for k, v in model.alterations.items() if k != "guidance"}
    return digest(
        *parts,
        schedule.fingerprint,
        model.network_time(model.snapped(levels)),
        [model.prediction, model.snap, model.learned_variance, model.dtype],
        None if guidance is None else [float(guidance.scale), dict(guidance.null)],
        *([further] if further else []),
    )


def is_exact(model: Denoiser) -> bool:
    """Whether it is an exact mixture whose network nobody has replaced."""
    return isinstance(model, ExactModel) and isinstance(
        getattr(model.net, "__self__", None), ExactModel
    )


def _module(module: torch.nn.Module, seen: frozenset[int]) -> list[Any]:
    """All that is known of a module, as plain data and tensors."""
    parts = {path: _settings(part, seen) for path, part in module.named_modules()}
    return [_name(type(module)), repr(module), parts, dict(module.state_dict())]


def _settings(module: torch.nn.Module, seen: frozenset[int]) -> dict[str, Any]:
    """What a module keeps beside its state: two of one structure and state may still compute different
    things (diffusers' ``center_input_sample`` is nowhere but in ``config``).

    Names that begin with an underscore are caches and bookkeeping, such as the folder it was read from.
    """
    held: dict[str, Any] = dict(training=module.training)
    if not (type(module).__module__.startswith("torch.nn.") and module.extra_repr()):
        held = _public(module)  # where the structure does not say it already
    if isinstance(config := getattr(module, "config", None), Mapping):
        entries = {**config, **_public(config)}  # diffusers' adapters set attributes of it
        held["config"] = {k: v for k, v in entries.items() if not str(k).startswith("_")}
    held |= {k: v for k, v in module._buffers.items() if k in module._non_persistent_buffers_set}
    if hooks := [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
        held["hooks"] = hooks
    held.pop("gradient_checkpointing", None)  # which changes no answer
    return {name: _plain(value, seen | {id(module)}) for name, value in held.items()}


def _plain(value: Any, seen: frozenset[int]) -> Any:
    """A value as what can be hashed: the same in every process, and other where its content is.

    Functions count by name and bytecode, objects by class and public attributes.
    """
    if isinstance(value, torch.device):
        return None  # where it computes is not what
    if isinstance(value, (Tensor, np.ndarray, np.generic)) or _is_plain(value):
        return value
    if id(value) in seen:
        return "again"
    seen = seen | {id(value)}
    if isinstance(value, torch.nn.Module):
        return _module(value, seen)
    if isinstance(value, Mapping):
        return {str(key): _plain(v, seen) for key, v in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [_plain(item, seen) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(digest(_plain(item, seen)) for item in value)
    if isinstance(value, (complex, enum.Enum)):
        return repr(value)
    if isinstance(value, functools.partial):
        return [_plain(part, seen) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, types.FunctionType):
        code = value.__code__
        constants = [constant for constant in code.co_consts if _is_plain(constant)]
        held = [
            value.__defaults__,
            value.__kwdefaults__,
            list(map(_content, value.__closure__ or ())),
        ]
        return [_name(value), code.co_code, code.co_names, constants, _plain(held, seen)]
    if isinstance(value, types.MethodType):
        return [_plain(value.__func__, seen), _plain(value.__self__, seen)]
    if callable(value) and hasattr(value, "__qualname__"):
        return _name(value)
    return [_name(type(value)), _plain(_public(value), seen)]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty as yet
        return None


def _is_plain(value: Any) -> bool:
    kinds = (bool, int, float, str, bytes, torch.dtype)
    return value is None or (isinstance(value, kinds) and not isinstance(value, enum.Enum))


def _public(value: Any) -> dict[str, Any]:
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


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
        """The record, or None if there is none; a damaged file is warned about, by name.

        needs: tensors and keys of the configuration without which it is no record.
        """
        if not self.has(name):
            return None
        try:
            tensors, config = weights.read(self.path(name))
            missing = [key for key in needs if key not in tensors and key not in config]
            if missing:
                raise ValueError(f"it has no {missing[0]!r}")
        except (ValueError, TypeError) as error:
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
