"""Filling a folder: each process makes the missing shards that it has claimed."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence

import torch

from .._base.bars import progress_bar
from .indexed import IndexedSolver
from .locks import Claims
from .shards import Lost, Run, Shards

_POLL = 0.2  # seconds between looks at what other processes are making


class Filler:
    """Makes missing shards. share: (rank, world size) of this process."""

    def __init__(
        self, shards: Shards, claims: Claims, share: tuple[int, int], work: IndexedSolver
    ) -> None:
        self.shards, self.claims, self.work = shards, claims, work
        self._rank, self._world = share
        self.made = self.remade = 0

    def fill(self, progress: bool) -> None:
        """Return when nothing is missing that we could make or wait for."""
        self._drop_damaged()
        left = self._missing()
        n = self.shards.run.n
        made = n - self._samples(left)
        with progress_bar(progress, total=n, initial=made, unit="sample") as bar:
            while left:
                with self._taken(left) as taken:
                    self._make(taken)
                    if not taken:  # others are at it, and we stay to take over if they die
                        time.sleep(_POLL)
                left = self._missing()
                bar.update(n - self._samples(left) - bar.n)
        with self.claims.alone():
            _keep_manifest(self.shards)

    def _mine(self, k: int) -> bool:
        return k % self._world == self._rank

    def _missing(self) -> list[int]:
        """What is not there, our own shards first; without claims those alone."""
        present = self.shards.present()
        missing = [k for k in range(len(self.shards)) if k not in present]
        if not self.claims.work:
            return list(filter(self._mine, missing))
        return sorted(missing, key=lambda k: (not self._mine(k), k))

    def _samples(self, shards: Sequence[int]) -> int:
        return sum(len(self.shards.index(k)) for k in shards)

    @contextlib.contextmanager
    def _taken(self, missing: Sequence[int]) -> Iterator[list[int]]:
        """Claims on the next of those shards: a batch of our own, or a single one of another's."""
        batch = max(1, self.work.rows // self.shards.run.shard)
        held: list[int] = []
        try:
            with self.claims.alone():
                _keep_manifest(self.shards)
                for k in missing:
                    if len(held) >= (batch if self._mine(k) else 1):
                        break
                    if self.claims.take(k):
                        held.append(k)
            # Somebody may have made it since we looked, and dropped the claim that we then took.
            yield [k for k in held if not self.shards.path(k).exists()]
        finally:
            for k in held:
                self.claims.drop(k)

    def _make(self, taken: Sequence[int]) -> None:
        if not taken:
            return
        index, rows = [i for k in taken for i in self.shards.index(k)], self.work.rows
        parts = [self.work(index[i : i + rows]) for i in range(0, len(index), rows)]
        x = torch.cat([part for part, _ in parts])
        status = [s for _, part in parts for s in part]
        first = 0
        for k in taken:
            mine = self.shards.index(k)
            piece = slice(first, first := first + len(mine))
            if self.claims.work:
                self.shards.clean(self.shards.path(k).name)
            cond = self.work.cond(mine) or {}
            numbers = {name: values for name, values in cond.items() if values.ndim == 1}
            identity = self.work.conditions(cond).values
            self.shards.write(k, x[piece], status[piece], numbers, identity)
            self.made += len(mine)

    def _drop_damaged(self) -> None:
        """Verify our own shards that are there, and remove the damaged: then they are missing."""
        for k in filter(self._mine, sorted(self.shards.present())):
            if self._damaged(k) and self.claims.take(k):
                if self._damaged(k):  # still: nobody has made it again before our claim
                    self.shards.path(k).unlink(missing_ok=True)
                    self.remade += 1
                self.claims.drop(k)

    def _damaged(self, k: int) -> bool:
        try:
            shard = self.shards.read(k)
        except Lost:
            return os.path.lexists(self.shards.path(k))  # a link to nowhere is no shard either
        if not self.work.conditions(self.work.cond(shard.samples)).agrees(shard.conditions):
            raise ValueError(
                f"{self.shards.path(k)}: was made with other conditions than cond= and shared= give "
                f"for samples {shard.samples[0]} to {shard.samples[-1]}; give another folder, or those"
            )
        return False


def check_same(shards: Shards, run: Run) -> None:
    """ValueError where the folder holds another run than this."""
    difference = shards.run.difference(run)
    if difference:
        remedy = "give another folder"
        if difference.startswith("model "):
            remedy += ", or key= where a network differs by what it only keeps (caches, counters)"
        raise ValueError(f"{shards.folder}: holds another run: {difference}; {remedy}")


def _keep_manifest(shards: Shards) -> None:
    """Write it again if somebody has removed it, as nothing could be read without it."""
    try:
        kept = Shards.open(shards.folder)
    except FileNotFoundError:
        shards.save_manifest()
    else:
        check_same(kept, shards.run)


@contextlib.contextmanager
def explained(shards: Shards) -> Iterator[None]:
    """A full disk and a folder that is gone, said as such, with what is kept."""
    try:
        yield
    except OSError as error:
        if not os.path.isdir(shards.folder):  # which no error of the disk keeps from answering
            raise FileNotFoundError(
                errno.ENOENT,
                "the folder was removed, or its disk taken away, during the run; the same command makes "
                "what is missing",
                str(shards.folder),
            ) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        kept = sum(len(shards.index(k)) for k in shards.present())
        raise OSError(
            error.errno,
            f"the disk is full: {kept:,} of {shards.run.n:,} samples are kept; free some space, and the "
            "same command makes the rest",
            str(shards.folder),
        ) from error
