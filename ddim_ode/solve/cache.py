"""A folder of results, each found by what it was computed from and believed only if it says so itself.

A record is a safetensors file (tensors, JSON in the header). Its name is a hash of what is exact of its
origin, and what was computed of it (near.py) lies inside, beside a checksum of all: a file that was moved,
altered or cut short is no record. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._base.checks import path_of
from .._base.digests import digest
from .._base.warn import warn
from ..nets import weights
from .near import Near

Record = tuple[dict[str, Tensor], dict[str, Any]]
_NEAR = "near"  # the tensor of those numbers
_DAMAGE = (ValueError, TypeError, KeyError, RecursionError)


class Store:
    """The folder; without one it keeps nothing, nor does it once the folder takes nothing.

    A record's origin is kind, exact and near: a word, plain data to hash, and numbers up to rounding.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else path_of("cache", folder)
        self.takes = self.folder is not None
        if self.folder is not None:
            with self._forgiven():
                self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, kind: str, exact: Sequence[Any], near: Near) -> Record | None:
        """The record of that origin, or None where there is none; a damaged file is warned about.

        OSError for a file that cannot be read at this moment, which may be a good one.
        """
        for path in self._files(kind, exact, near):
            try:
                tensors, config = weights.read(path)
                if config != _header(path.stem, tensors, config["content"]):
                    raise ValueError("it is not what its checksum says")
            except FileNotFoundError:  # since it was listed
                continue
            except _DAMAGE as error:
                warn(f"{path}: not a readable result ({error}); it is computed and written again")
                continue
            if near.agrees(tensors.pop(_NEAR)):
                return tensors, config["content"]
        return None

    def put(
        self,
        kind: str,
        exact: Sequence[Any],
        near: Near,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> None:
        """Keep a record; a folder that does not take it is warned about, once."""
        if self.folder is None or not self.takes:
            return
        path = self.folder / f"{_stem(kind, exact)}{_end(near)}"
        tensors = {**tensors, _NEAR: torch.from_numpy(near.values)}
        with self._forgiven():
            weights.write(path, tensors, _header(path.stem, tensors, config))

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        """A full or read-only disk costs what is not kept, and nothing that is computed."""
        try:
            yield
        except OSError as error:
            self.takes = False
            warn(f"{self.folder}: no more results are kept there ({error})")

    def _files(self, kind: str, exact: Sequence[Any], near: Near) -> list[Path]:
        """Those it may be in, the one of the very same numbers first."""
        if self.folder is None:
            return []
        paths, own = self.folder.glob(f"{_stem(kind, exact)}-*.safetensors"), _end(near)
        return sorted(paths, key=lambda path: (not path.name.endswith(own), path))


NOWHERE = Store(None)


def _stem(kind: str, exact: Sequence[Any]) -> str:
    return f"{kind}-{digest(*exact)}"


def _end(near: Near) -> str:
    return f"-{digest(near.values)[:8]}.safetensors"


def _header(stem: str, tensors: dict[str, Tensor], content: Any) -> dict[str, Any]:
    return dict(content=content, sha256=digest(stem, tensors, content))
