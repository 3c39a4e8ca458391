"""A large run on disk: what it is, and its samples, a shard of consecutive ones to a file.

    DIR/manifest.json               what decides the samples, written before the first of them
    DIR/shard-00000.safetensors     samples 0 .. shard−1, shard-00001 the next, ...
    DIR/.claims, .claims.0, ...     locks of running processes (see locks.py); mean nothing afterwards

A shard holds x (k, *shape) float32 in network space, status (k,) uint8 (which of ``statuses`` in its
header) and, of each condition that is one number a sample, its values ``cond.NAME`` (k,); ``conditions``
tells all of them from others. The SHA-256 of all that is in the same header: a shard and its checksum
appear by one rename, so there is no moment at which one is there and the other is not. Nothing is pickled.
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

from .._base import files
from .._base.checks import count, named, seed_of
from .._base.digests import digest
from .._base.notebook import brief
from ..denoising.seeding import sizes
from ..nets import weights
from ..schedules.schedule import Array
from ..solve.answers import Answers
from ..solve.near import NOTHING, PLAN, Near
from ..solvers.controller import STATUSES

MANIFEST = "manifest.json"
_TENSORS, _COND = ("x", "status", "conditions"), "cond."
_SHARD = re.compile(r"shard-(\d{5}|[1-9]\d{5,})\.safetensors")


class Lost(ValueError):
    """A shard that is missing or damaged, and so is to be made again."""


class Shard(NamedTuple):
    """samples: which of the run. x (k, *shape). status (k) of their solves. cond: name to (k,).

    conditions: what tells all of them from others, see :func:`ddim_ode.solve.near.of_rows`.
    """

    samples: range
    x: Tensor
    status: list[str]
    cond: dict[str, Tensor]
    conditions: Tensor

    def __repr__(self) -> str:
        return f"Shard(samples={self.samples!r}, x={brief(self.x)})"


@dataclass(frozen=True)
class Run:
    """What decides the samples. decides: model, solver, conditions ..., plain data; about: what else to
    remember, no part of the run's identity. answers: of the model (answers.py), where it was asked."""

    n: int
    seed: int
    shard: int
    shape: tuple[int, ...]
    decides: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, Any] | None = None

    @property
    def sha256(self) -> str:
        """Of all that decides the samples."""
        return digest(json.dumps(self._identity(), sort_keys=True))

    def difference(self, other: Run) -> str | None:
        """The first thing that two runs do not share, in words; None if they are the same run."""
        mine, theirs = self._identity(), other._identity()
        for name in dict.fromkeys([*mine, *theirs]):
            if not _same(mine.get(name), theirs.get(name)):
                kept, given = (_short(identity.get(name)) for identity in (mine, theirs))
                note = " (other classes, or another cond=)" if name == "conditions" else ""
                return f"{name} is {kept} there, and {given} here{note}"
        before, now = (Answers.of_dict(run.answers) for run in (self, other))
        if before is not None and now is not None and before.differ(now):
            return "model answers otherwise there than here, to the first conditions and what is shared"
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

    def __repr__(self) -> str:
        run = self.run
        return f"Shards({str(self.folder)!r}: {run.n:,} samples of {run.shape}, {len(self)} shards)"

    @classmethod
    def open(cls, folder: str | Path) -> Shards:
        """The run in a folder.

        Raises:
            FileNotFoundError: there is none.
            OSError: its manifest cannot be read at this moment.
            ValueError: what the manifest says is no run.
        """
        path = Path(folder) / MANIFEST
        try:
            text = files.read(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder}: holds no {MANIFEST}, so no run of ddim-ode generate"
            ) from None
        try:
            data = json.loads(text.decode())
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
        """Write manifest.json; only inside :meth:`Claims.alone`."""
        self.clean(MANIFEST)
        files.write_json(self.folder / MANIFEST, dict(kind="samples", **asdict(self.run)))

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
        matches = (_SHARD.fullmatch(name) for name in os.listdir(self.folder))
        return {k for match in matches if match and (k := int(match[1])) < len(self)}

    def whole(self) -> bool:
        """Whether there are shards, and each is verified and of this run."""
        present = self.present()
        try:
            for k in present:
                self.read(k)
        except ValueError:
            return False
        return bool(present)

    def statuses(self) -> Counter[str]:
        """How many samples have which status, of the shards that are there; not verified."""
        counts: Counter[str] = Counter()
        for k in self.present():
            # One that is damaged is being made again by the process that verifies it.
            with contextlib.suppress(FileNotFoundError, SafetensorError, IndexError):
                files.read(self.path(k), most=1)  # for its errors: safe_open knows but one
                with safe_open(self.path(k), framework="pt") as file:
                    counts.update(STATUSES[code] for code in file.get_tensor("status").tolist())
        return counts

    def write(
        self,
        k: int,
        x: Tensor,
        status: Sequence[str],
        cond: Mapping[str, Tensor],
        conditions: Array = NOTHING.values,
    ) -> None:
        """Shard k, whole and on disk before it has its name; OSError if that fails."""
        tensors = {"x": x, "status": torch.tensor([STATUSES.index(s) for s in status]).byte()}
        tensors["conditions"] = torch.from_numpy(conditions)
        for name, values in cond.items():  # half precision would be read back as float32
            wide = values.float() if values.dtype == torch.float16 else values
            tensors[f"{_COND}{name}"] = wide
        files.write(self.path(k), weights.dumps(tensors, self._config(k, tensors)))

    def read(self, k: int) -> Shard:
        """Shard k, verified.

        Raises:
            Lost: it is missing, or not what its checksum says. A ValueError, as is what follows.
            ValueError: it is whole, and of another run.
            OSError: it cannot be read at this moment, whatever is in it.
        """
        path = self.path(k)
        again = "ddim-ode generate, with the same options, makes"
        try:
            tensors, config = weights.read(path)
        except FileNotFoundError:
            lost = len(self) - len(self.present())
            raise Lost(f"{path}: missing, one of {lost} shards that are; {again} them") from None
        except ValueError as error:
            raise Lost(
                f"{path}: truncated or damaged ({error.__cause__}); {again} it again"
            ) from error
        if not {*_TENSORS} <= tensors.keys() or config != self._config(k, tensors):
            if _run_of(config, tensors) not in (None, self.run.sha256):
                raise ValueError(
                    f"{path}: is whole, and {MANIFEST} damaged, or of another run than it; move one of the "
                    "two away"
                )
            raise Lost(f"{path}: damaged, it is not what its checksum says; {again} it again")
        cond = {
            name.removeprefix(_COND): values
            for name, values in tensors.items()
            if name.startswith(_COND)
        }
        status = [STATUSES[code] for code in tensors["status"].tolist()]
        return Shard(self.index(k), tensors["x"], status, cond, tensors["conditions"])

    def clean(self, name: str) -> None:
        """Remove what killed writers of a file left behind; only with a claim on it."""
        for partial in self.folder.glob(f".{name}.*{files.PARTIAL}"):
            partial.unlink(missing_ok=True)

    def _config(self, k: int, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        index = self.index(k)
        place = dict(kind="samples", run=self.run.sha256, first=index.start, n=len(index))
        return _sealed(place, tensors)


def _same(a: Any, b: Any) -> bool:
    """Whether two entries of a manifest are equal, computed numbers up to rounding."""
    mine, theirs = (value if isinstance(value, list) else [value] for value in (a, b))
    if a == b or not any(isinstance(value, float) for value in mine):
        return bool(a == b)
    try:
        return Near.of([*map(float, mine)], PLAN, PLAN).agrees([*map(float, theirs)])
    except (TypeError, ValueError):  # not all of them are numbers
        return False


def _sealed(place: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {**place, "statuses": list(STATUSES), "sha256": digest(place, dict(tensors))}


def _run_of(config: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The run of a shard that is what its own checksum says; None of one that is not."""
    names = ("kind", "run", "first", "n")
    if not isinstance(config, dict) or not config.keys() >= set(names):
        return None
    place = {name: config[name] for name in names}
    return place["run"] if config == _sealed(place, tensors) else None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
