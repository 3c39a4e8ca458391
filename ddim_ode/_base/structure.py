"""What an object holds, as plain data: the same in every process, and different where its content is.

Functions count by name, bytecode, defaults, closure and the data that they name; objects by class and
state. A ``torch.nn.Module`` counts by class, structure, state, hooks, public attributes and configuration,
and by the private and class attributes that its code reads. Its code itself is not seen.
"""

from __future__ import annotations

import dis
import enum
import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .digests import digest

_OF_TORCH = frozenset(vars(torch.nn.Module()))  # bookkeeping of every module


def content(value: Any) -> Any:
    """A value as what :func:`ddim_ode._base.digests.digest` can hash."""
    return _Reader().read(value)


class _Reader:
    def __init__(self) -> None:
        self._path: dict[int, str] = {}  # what is being read, so that a cycle ends; modules by name
        self._functions: dict[int, types.FunctionType] = {}  # those read, which may name each other

    def read(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return None  # where it computes is not what
        if isinstance(value, (Tensor, np.ndarray, np.generic)) or _is_plain(value):
            return value
        if id(value) in self._path:
            return ["again", self._path[id(value)]]
        self._path[id(value)] = ""
        try:
            return self._content(value)
        finally:
            del self._path[id(value)]

    def _content(self, value: Any) -> Any:
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if isinstance(value, Mapping):
            return {str(key): self.read(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, range)):
            return [self.read(item) for item in value]
        if isinstance(value, (set, frozenset)):
            return sorted(digest(self.read(item)) for item in value)
        if isinstance(value, (complex, enum.Enum)):
            return repr(value)
        if isinstance(value, functools.partial):
            return self.read([value.func, value.args, value.keywords])
        if isinstance(value, types.CodeType):
            return [value.co_code, value.co_names, self.read(value.co_consts)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            owner = value.__self__
            return self.read([value.__func__, owner, _class_data(type(owner), value.__name__)])
        if isinstance(value, types.ModuleType):
            return value.__name__
        if callable(value) and hasattr(value, "__qualname__"):  # a class, or not of Python
            inside = [getattr(value, name, None) for name in ("__self__", "__wrapped__")]
            return [_name(value), self.read(inside)]
        return [
            _name(type(value)),
            self.read([_class_data(type(value), "__call__"), _state(value)]),
        ]

    def _module(self, module: torch.nn.Module) -> Any:
        parts = dict(module.named_modules())
        new = {id(part): path for path, part in parts.items() if id(part) not in self._path}
        self._path |= new
        settings = {path: self._settings(part) for path, part in parts.items()}
        for part in new:
            del self._path[part]
        state = self.read(module.state_dict())
        return [_name(type(module)), repr(module), settings, state]

    def _settings(self, module: torch.nn.Module) -> dict[str, Any]:
        """What a module keeps beside its state: two of one structure and state may still compute different
        things (diffusers' ``center_input_sample`` is nowhere but in ``config``).

        Of names with an underscore only those that its code reads: others are caches and bookkeeping, such
        as the folder it was read from.
        """
        kind: Any = type(module)
        attributes = vars(module)
        held: dict[str, Any] = dict(training=module.training)
        if not (kind.__module__.startswith("torch.nn.") and module.extra_repr()):
            held |= _public(module)  # where the structure does not say it already
        config = getattr(module, "config", None)
        for name in (_reads(kind, "forward") & attributes.keys()) - _OF_TORCH:
            if attributes[name] is not config:
                held[name] = attributes[name]
        if isinstance(config, Mapping):
            entries = {**config, **_public(config)}  # diffusers' adapters set attributes of it
            held["config"] = {k: v for k, v in entries.items() if not str(k).startswith("_")}
        held |= {k: module._buffers[k] for k in module._non_persistent_buffers_set}
        if hooks := [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
            held["hooks"] = hooks
        held.pop("gradient_checkpointing", None)  # which changes no answer
        held["class"] = _class_data(kind, "forward")
        return {name: self.read(value) for name, value in held.items()}

    def _function(self, value: types.FunctionType) -> Any:
        if id(value) in self._functions:
            return _name(value)
        self._functions[id(value)] = value
        named = {name: value.__globals__.get(name) for name in _names(value.__code__)}
        named = {
            name: item
            for name, item in named.items()
            if _is_data(item)
            or (isinstance(item, types.FunctionType) and item.__module__ == value.__module__)
        }
        cells = [_inside(cell) for cell in value.__closure__ or ()]
        held = [value.__defaults__, value.__kwdefaults__, cells, named, vars(value)]
        return [_name(value), self.read(value.__code__), self.read(held)]


@functools.lru_cache(maxsize=4096)
def _reads(kind: Any, entry: str) -> frozenset[str]:
    """The attributes that a class's method and what it calls of its class read, and do not set."""
    reads, sets, todo = set[str](), set[str](), [entry]
    while todo:
        name = todo.pop()
        for base in kind.__mro__:
            if name not in vars(base) or base.__module__.partition(".")[0] in ("torch", "builtins"):
                continue
            for code in _codes_of(vars(base)[name]):
                todo += {*code.co_names} - reads
                reads.update(code.co_names)
                sets |= {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR"}
    return frozenset(reads - sets)


def _class_data(kind: type, entry: str) -> dict[str, Any]:
    """The class attributes, of those that a method reads, that are data."""
    held = {name: inspect.getattr_static(kind, name, None) for name in _reads(kind, entry)}
    return {name: value for name, value in held.items() if value is not None and _is_data(value)}


def _codes_of(member: Any) -> Iterator[types.CodeType]:
    """The code of a method, a property or what wraps one."""
    for name in ("fget", "func", "__func__"):
        member = getattr(member, name, member)
    code = getattr(inspect.unwrap(member), "__code__", None)
    return iter(()) if code is None else _nested(code)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _names(code: types.CodeType) -> set[str]:
    return {name for part in _nested(code) for name in part.co_names if name[:2] != "__"}


def _state(value: Any) -> Any:
    """What pickle would keep of an object; None for what it cannot."""
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:  # whatever a class raises there
        return None
    if isinstance(reduced, str):  # by name
        return reduced
    items = [part if part is None else list(part) for part in reduced[3:5]]
    return [*reduced[:3], *items]


def _inside(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty as yet
        return None


def _is_plain(value: Any) -> bool:
    kinds = (bool, int, float, str, bytes, torch.dtype)
    return value is None or (isinstance(value, kinds) and not isinstance(value, enum.Enum))


def _is_data(value: Any) -> bool:
    kinds = (Tensor, np.ndarray, np.generic, complex, enum.Enum, list, tuple, dict, set, frozenset)
    return _is_plain(value) or isinstance(value, kinds)


def _public(value: Any) -> dict[str, Any]:
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', None)}.{value.__qualname__}"
