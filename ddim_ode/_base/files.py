"""Files that are written whole or not at all: what every writer of results goes through.

The bytes go to a temporary file beside the target, under a random name (a process number would be shared by
threads, and by containers on one disk), are flushed to the disk, and get the target's name by one rename.
So neither a kill nor a full disk leaves half a file, and of two writers one wins.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .escaping import cell

PARTIAL = ".partial"  # how a temporary file's name ends; it begins with the target's


@contextlib.contextmanager
def naming(path: str | Path, what: str) -> Iterator[None]:
    """An OSError of the block says what could not be done, and to which file: those of a descriptor, such
    as a full disk or a failing one, name none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not of the system
            raise
        raise OSError(error.errno, f"{what}: {error.strerror}", str(path)) from error


def read(path: str | Path, most: int = -1) -> bytes:
    """The bytes of a file, at most so many.

    Read into memory and not mapped: what was verified stays what it is, and a disk that fails is an error
    rather than the end of the process.

    Raises:
        OSError: the file cannot be read, which says nothing about what is in it.
    """
    with naming(path, "cannot be read"), open(path, "rb") as file:
        return file.read(most)


def write(path: str | Path, data: bytes | str) -> None:
    """Write a file whole, or leave what was there as it was.

    A link is followed, a device or pipe written into. The permissions are those of the file that was there,
    else what the umask leaves, as with a plain ``open``. Text is UTF-8; the bytes of a file name that are
    none are written as escapes.

    Raises:
        OSError: it cannot be written: a full disk, no such folder, a file or folder that is read-only.
    """
    raw = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    with naming(path, "not written, and what was there before is kept"):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and not stat.S_ISREG(mode):
            with open(path, "wb") as file:
                file.write(raw)
        else:
            _replace(Path(os.path.realpath(path)), raw, mode)


def write_json(path: str | Path, value: Any) -> None:
    """Plain data as JSON."""
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows, under a header of all their keys; what a row lacks is empty, and no text is a formula."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(map(cell, header))
    lines.writerows([cell(row.get(key)) for key in header] for row in rows)
    write(path, text.getvalue())


def _replace(target: Path, data: bytes, mode: int | None) -> None:
    if mode is not None:
        os.close(os.open(target, os.O_WRONLY))  # a rename would replace a read-only file
    beside = target.with_name(f".{target.name[:50]}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with open(beside, "xb") as file:
            if mode is not None:
                os.chmod(beside, stat.S_IMODE(mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
