"""Claims on pieces of work, between threads, processes and hosts that share nothing but a folder.

A claim is a lock of the operating system (flock, by the package filelock) on a file of its own. It belongs
to an open file and not to a process number, so it excludes threads, processes and containers alike; NFS
hands it on to its server. The system drops it when its owner ends, in whatever way: a claim cannot outlive
its owner, as a marker file would (filelock's soft lock).

A claim saves work and protects no file: files are replaced whole. Where the file system has no locks every
claim is granted, and the worst that happens is that a piece is made twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from .._base.files import naming

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_POLL = 0.005  # seconds between attempts on a lock that others hold for a moment


class Claims:
    """A context that holds claims, and drops all of them at its end; one for each call that makes samples.

    path: of the lock of :meth:`alone`; claim k is ``path.k`` beside it. work: whether there are locks.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._held = path, dict[Path, FileLock | None]()
        self.work = True

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for path in list(self._held):
            self._drop(path)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else is in such a block of the same path; for moments, as all others wait."""
        lock = self._lock(self._path, timeout=-1)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def take(self, k: int) -> bool:
        """Whether piece k is ours now."""
        return self._take(self._path.with_name(f"{self._path.name}.{k}"))

    def drop(self, k: int) -> None:
        """Let go of piece k."""
        self._drop(self._path.with_name(f"{self._path.name}.{k}"))

    def idle(self) -> bool:
        """Whether nobody else has a claim; unknown, so False, without locks."""
        free = True
        for path in self._path.parent.glob(f"{self._path.name}.*"):
            if path not in self._held:
                free = self._take(path) and free
                self._drop(path)
        return free and self.work

    def _take(self, path: Path) -> bool:
        try:
            self._held[path] = self._lock(path, timeout=0)
        except Timeout:
            return False
        return True

    def _drop(self, path: Path) -> None:
        if path not in self._held:
            return
        with contextlib.suppress(OSError):
            os.unlink(
                path
            )  # while it is ours: others that have it open find it gone, and try again
        lock = self._held.pop(path)
        if lock is not None:
            lock.release()

    def _lock(self, path: Path, timeout: float) -> FileLock | None:
        """The lock, held; None where there are none; Timeout if another has it for so long."""
        with naming(path, "cannot be locked"):
            # FileLock would make a folder that is gone again, and wait for ever where no file can be made.
            open(path, "ab").close()
            options: dict[str, Any] = dict(thread_local=False, poll_interval=_POLL)
            lock = FileLock(path, timeout, fallback_to_soft=False, **options)
            try:
                lock.acquire()
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                self.work = False
                return None
        return lock
