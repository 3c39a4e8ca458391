"""A large run on disk: what it is, and its samples, a shard of consecutive ones to a file.

    DIR/manifest.json               what decides the samples, written before the first of them
    DIR/shard-00000.safetensors     samples 0 .. shard−1, shard-00001 the next, ...
    DIR/.claims                     locks of running processes (see claims.py); means nothing afterwards

A shard holds x (k, *shape) float32 in network space, status (k,) uint8 (which of ``statuses`` in its
header) and, of each condition that is one number a sample, its values ``cond.NAME`` (k,). The SHA-256 of
all that is in the same header: a shard and its checksum appear by one rename, so there is no moment at
which one is there and the other is not. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ._checks import count, named, seed_of
from .content import digest
from .nets import weights
from .seeding import sizes
from .solvers.controller import STATUSES

MANIFEST = "manifest.json"
_COND = "cond."
_SHARD = re.compile(r"shard-(\d{5}|[1-9]\d{5,})\.safetensors")


class Shard(NamedTuple):
    """samples: which of the run. x (k, *shape). status (k) of their solves. cond: name to (k,)."""

    samples: range
    x: Tensor
    status: list[str]
    cond: dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """What decides the samples. decides: model, solver, conditions ..., plain data; about: what else to
    remember, no part of the run's identity."""

    n: int
    seed: int
    shard: int
    shape: tuple[int, ...]
    decides: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of all that decides the samples."""
        return digest(json.dumps(self._identity(), sort_keys=True))

    def difference(self, other: Run) -> str | None:
        """The first thing that two runs do not share, in words; None if they are the same run."""
        mine, theirs = self._identity(), other._identity()
        for name in dict.fromkeys([*mine, *theirs]):
            if mine.get(name) != theirs.get(name):
                return (
                    f"{name} is {_short(mine.get(name))} there, and {_short(theirs.get(name))} here"
                )
        return None

    def _identity(self) -> dict[str, Any]:
        whole = dict(n=self.n, seed=self.seed, shard=self.shard, shape=self.shape, **self.decides)
        flat: dict[str, Any] = {}
        for name, value in json.loads(json.dumps(whole)).items():
            flat |= value if isinstance(value, dict) else {name: value}
        return flat


class Shards:
    """The samples of a run, as files of a folder. Iterating reads and verifies one shard after another.

    >>> import tempfile
    >>> run = Run(n=5, seed=0, shard=2, shape=(3,), decides={})
    >>> folder = tempfile.TemporaryDirectory()
    >>> shards = Shards(folder.name, run)
    >>> len(shards), list(shards.index(2))
    (3, [4])
    >>> shards.write(2, torch.zeros(1, 3), ["success"], {})
    >>> shards.present(), shards.read(2).x.shape
    ({2}, torch.Size([1, 3]))
    """

    def __init__(self, folder: str | Path, run: Run) -> None:
        self.folder, self.run = Path(folder), run

    @classmethod
    def open(cls, folder: str | Path) -> Shards:
        """The run in a folder; FileNotFoundError if there is none, ValueError if it cannot be read."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder}: holds no {MANIFEST}, so no run of ddim-ode generate"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("kind") != "samples":
                raise ValueError("it is another kind of manifest")
            run = Run(**{**data, "shape": sizes(data["shape"])})
            count("n", run.n)
            count("shard", run.shard)
            seed_of(run.seed, run.n)
            named("decides", run.decides)
            if taken := run.decides.keys() & {"n", "seed", "shard", "shape"}:
                raise ValueError(f"it says {min(taken)!r} twice")
            named("about", run.about)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}: damaged, or not of ddim-ode generate ({error!r}); "
                "give another folder, or move this one away"
            ) from None
        return cls(folder, run)

    def save_manifest(self) -> None:
        """Write manifest.json, atomically."""
        text = json.dumps(dict(kind="samples", **asdict(self.run)), indent=1, ensure_ascii=False)
        self.clean(MANIFEST)
        beside = self.folder / f".{MANIFEST}.{os.getpid()}.partial"
        try:
            beside.write_text(text + "\n", encoding="utf-8")
            os.replace(beside, self.folder / MANIFEST)
        finally:
            beside.unlink(missing_ok=True)

    def __len__(self) -> int:
        return -(-self.run.n // self.run.shard)

    def __iter__(self) -> Iterator[Shard]:
        return (self.read(k) for k in range(len(self)))

    def index(self, k: int) -> range:
        """The samples of shard k."""
        return range(k * self.run.shard, min(self.run.n, (k + 1) * self.run.shard))

    def path(self, k: int) -> Path:
        return self.folder / f"shard-{k:05}.safetensors"

    def present(self) -> set[int]:
        """The shards that have a file, by one look into the folder."""
        found = (_SHARD.fullmatch(name) for name in os.listdir(self.folder))
        return {k for name in found if name and (k := int(name[1])) < len(self)}

    def statuses(self) -> Counter[str]:
        """How many samples have which status, of the shards that are there; not verified."""
        found: Counter[str] = Counter()
        for k in self.present():
            # One that is damaged is being made again by the process that verifies it.
            with (
                contextlib.suppress(SafetensorError, OSError, IndexError),
                safe_open(self.path(k), framework="pt") as file,
            ):
                found.update(STATUSES[code] for code in file.get_tensor("status").tolist())
        return found

    def write(self, k: int, x: Tensor, status: Sequence[str], cond: Mapping[str, Tensor]) -> None:
        """Shard k, atomically and on disk before it has its name; OSError if that fails."""
        tensors = {"x": x, "status": torch.tensor([STATUSES.index(s) for s in status]).byte()}
        for name, values in cond.items():  # half precision would be read back as float32
            wide = values.float() if values.dtype == torch.float16 else values
            tensors[f"{_COND}{name}"] = wide
        weights.write(self.path(k), tensors, self._config(k, tensors))

    def read(self, k: int) -> Shard:
        """Shard k, verified: ValueError naming the file if it is missing, damaged or another's."""
        path = self.path(k)
        if not path.is_file():
            raise ValueError(
                f"{path}: missing, one of {len(self) - len(self.present())} shards that are; "
                "ddim-ode generate, with the same options, makes them"
            )
        tensors, config = weights.read(path)
        if "x" not in tensors or "status" not in tensors or config != self._config(k, tensors):
            raise ValueError(
                f"{path}: damaged, or of another run: it is not what its checksum says; "
                "ddim-ode generate, with the same options, makes it again"
            )
        cond = {
            name.removeprefix(_COND): values
            for name, values in tensors.items()
            if name.startswith(_COND)
        }
        status = [STATUSES[code] for code in tensors["status"].tolist()]
        return Shard(self.index(k), tensors["x"], status, cond)

    def clean(self, name: str) -> None:
        """Remove what killed writers of a file left behind; only for who has claimed it."""
        for partial in self.folder.glob(f".{name}.*.partial"):
            partial.unlink(missing_ok=True)

    def _config(self, k: int, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        index = self.index(k)
        config = dict(kind="samples", run=self.run.sha256, first=index.start, n=len(index))
        return {**config, "statuses": list(STATUSES), "sha256": digest(config, dict(tensors))}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
