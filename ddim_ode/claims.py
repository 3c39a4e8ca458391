"""Claims on pieces of work, between processes that share nothing but a folder.

Piece k is claimed by locking byte k of one file. The operating system drops the locks of a process when
it ends, however it ends, so a claim cannot outlive its owner and nothing has to be cleaned up after
``kill -9``. Byte-range locks work between the computers of a network file system, too.

A claim saves work and protects no file: files are replaced whole. Where the file system has no locks
every claim is granted, and the worst that happens is that a piece is made twice.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Claims:
    """A context that holds claims, and drops all of them at its end. ``work``: whether there are locks.

    One process has one of them per path: POSIX drops a process's locks on a file when it closes any
    descriptor of it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.work = fcntl is not None

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def take(self, k: int, wait: bool = False) -> bool:
        """Whether piece k is ours now; with ``wait``, once its owner lets go of it."""
        if not self.work:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, k)
        except (BlockingIOError, PermissionError):  # both are "somebody else's", by POSIX
            return False
        except OSError:
            self.work = False
        return True

    def drop(self, k: int) -> None:
        """Let go of piece k."""
        if self.work:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, k)
