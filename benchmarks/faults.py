"""Large runs where things go wrong: several writers on one folder, failures, kills, and disks.

    python benchmarks/faults.py --quick       # 20 pairs, 5 kills
    python benchmarks/faults.py --full        # 500 pairs, 100 kills

A network that costs a few milliseconds. Whatever happens, a call either returns with all of its samples on
disk, distinct and verified, or stops with an error that says why; then the same call, undisturbed, makes
the rest. No shard that was whole is ever removed or changed. What goes wrong is said by the functions.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import SEED, Row, Run, arguments, tell

import ddim_ode
from ddim_ode.evaluate.streaming import summarise
from ddim_ode.generation.shards import Shards

STEPS, SHARD = 2, 4
SECONDS = 0.002  # a network call
TOGETHER = 0.012  # seconds within which a pair starts
PATIENCE = 0.3  # seconds until a kill, at most
DISK = 256 * 1024
ERRORS = (errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE)
FORK = multiprocessing.get_context("fork")


# -- a run and what it must be --------------------------------------------------------------------
def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    time.sleep(SECONDS)
    return torch.tanh(x + 1e-3 * t[:, None])


def failing(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("out of memory, say")


def make(folder: Path, n: int, net: Callable[..., torch.Tensor] = network) -> Any:
    model = ddim_ode.Denoiser(net, ddim_ode.schedules.cosine(), shape=(16,))
    options: dict[str, Any] = dict(steps=STEPS, key="tanh", batch=SHARD, shard=SHARD)
    return ddim_ode.generate(model, n, folder, "ddim", **options)


def check(folder: Path, n: int) -> None:
    """Exactly n distinct samples, every checksum right, nothing half-written."""
    found = summarise(Shards.open(folder))
    assert (found.distinct, dict(found.status)) == (n, {"success": n})
    assert not list(folder.glob(".*.partial"))


def whole(folder: Path) -> dict[str, tuple[int, int]]:
    """The shards there: which, and a mark by which another in its place is told."""
    marks = {}
    for path in folder.glob("shard-*"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            marks[path.name] = (stat.st_ino, stat.st_mtime_ns)
    return marks


# -- what goes wrong ------------------------------------------------------------------------------
def threads(folder: Path, n: int, draw: random.Random) -> str:
    """Two on one folder."""
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: make(folder, n).made, range(2)))
    assert sum(made) == n
    return "complete"


def namespaces(folder: Path, n: int, draw: random.Random) -> str:
    """Two processes that both have the number 1, as in two containers (without the right to make
    namespaces: both are told so)."""
    both = [FORK.Process(target=_number_one, args=(folder, n)) for _ in range(2)]
    assert _ended(both) == [0, 0]
    return "complete"


def _number_one(folder: Path, n: int) -> None:
    new_pid_namespace = 0x20000000
    if ctypes.CDLL(None).unshare(new_pid_namespace) == 0:
        inside = FORK.Process(target=_as_one, args=(folder, n))
        inside.start()
        inside.join()
        sys.exit(inside.exitcode)
    os.getpid = lambda: 1
    _as_one(folder, n)


def _as_one(folder: Path, n: int) -> None:
    assert os.getpid() == 1
    make(folder, n)


def pairs(folder: Path, n: int, draw: random.Random) -> str:
    """Two processes started within 12 ms, one of which fails at its first network call."""
    delay = draw.uniform(-TOGETHER, TOGETHER)
    bad = FORK.Process(target=_later, args=(max(0, delay), folder, n, failing))
    good = FORK.Process(target=_later, args=(max(0, -delay), folder, n, network))
    failed, fine = _ended([bad, good])
    assert fine == 0
    assert failed in (0, 1)  # 0: it came when all was made
    return "complete"


def _later(delay: float, folder: Path, n: int, net: Callable[..., torch.Tensor]) -> None:
    time.sleep(delay)
    with contextlib.suppress(RuntimeError):
        make(folder, n, net)
        return
    sys.exit(1)


def _ended(processes: list[Any]) -> list[int]:
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def unreadable(folder: Path, n: int, draw: random.Random) -> str:
    """A shard that cannot be read at this moment."""
    make(folder, n)
    before, number = whole(folder), draw.choice(ERRORS)
    bad, plain_open = draw.choice(sorted(before)), builtins.open

    def refusing(path: Any, *args: Any, **options: Any) -> Any:
        if os.path.basename(str(path)) == bad:
            raise OSError(number, os.strerror(number), str(path))
        return plain_open(path, *args, **options)

    with mock.patch("builtins.open", refusing):
        assert bad in (_said(folder, n) or "")
    assert whole(folder) == before
    assert make(folder, n).made == 0
    return "stopped"


def removed(folder: Path, n: int, draw: random.Random) -> str:
    """The folder, its manifest, or shards, removed midway."""
    what = draw.choice(["folder", "folder at once", "manifest.json", "shards"])
    midway = draw.uniform(0.2, 0.8)

    def remove() -> None:
        while len(whole(folder)) < midway * n / SHARD:
            time.sleep(SECONDS)
        if what == "folder":
            shutil.rmtree(folder, ignore_errors=True)
        elif what == "folder at once":
            shutil.rmtree(folder.rename(folder.with_name("gone")))
        elif what == "manifest.json":
            (folder / what).unlink()
        else:
            for name in draw.sample(sorted(whole(folder)), 3):
                (folder / name).unlink()

    remover = threading.Thread(target=remove)
    remover.start()
    said = _said(folder, n)
    remover.join()
    if said is None:
        return "complete"
    assert what.startswith("folder")
    assert "the folder was removed" in said
    make(folder, n)
    return "stopped"


def full_disk(folder: Path, n: int, draw: random.Random) -> str:
    """A file system of 256 kB (without the right to mount one: a disk that says it is full)."""
    folder.mkdir()
    with _small(folder) as free:
        assert "the disk is full" in (_said(folder, n) or "")
        before = whole(folder)
        assert 0 < len(before) < n / SHARD
        free()
        assert make(folder, n).made == n - SHARD * len(before)
        assert before.items() <= whole(folder).items()
        check(folder, n)
    return "stopped"


@contextlib.contextmanager
def _small(folder: Path) -> Iterator[Callable[[], object]]:
    """A disk of few bytes, and what makes it larger."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode == 0:
        try:
            yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        finally:
            subprocess.run(["umount", folder], check=True)
        return
    plain_fsync = os.fsync

    def full(descriptor: int) -> None:
        if sum(path.stat().st_size for path in folder.iterdir()) > DISK:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain_fsync(descriptor)

    with mock.patch("os.fsync", full):
        yield lambda: setattr(os, "fsync", plain_fsync)


def _said(folder: Path, n: int) -> str | None:
    """Why the call stopped, which names the folder; None if it made all."""
    said = None
    try:
        make(folder, n)
    except OSError as error:
        said = str(error)
    assert said is None or str(folder) in said
    return said


def kills(folder: Path, n: int, draw: random.Random, times: int) -> str:
    """A process is killed, again and again, and another beside it goes on; the last ones finish."""

    def start() -> Any:
        process = FORK.Process(target=make, args=(folder, n))
        process.start()
        return process

    running = [start(), start()]
    for _ in range(times):
        before = whole(folder)
        time.sleep(draw.uniform(0, PATIENCE))
        victim = running.pop(draw.randrange(2))
        assert victim.is_alive(), "the run was over before the last kill"
        victim.kill()
        victim.join()
        assert before.items() <= whole(folder).items()
        running.append(start())
    for process in running:
        process.join()
        assert process.exitcode == 0
    return "complete"


# -- all of it ------------------------------------------------------------------------------------
def main() -> None:
    args = arguments(__doc__, "20 pairs, 5 kills", "500 pairs, 100 kills").parse_args()
    run = Run("faults", args)
    torch.set_num_threads(1)
    few, many, times = (10, 500, 100) if args.full else (2, 20, 5)
    faults: list[tuple[Callable[..., str], int, int, dict[str, Any]]] = [
        (threads, few, 80, {}),
        (namespaces, few, 80, {}),
        (pairs, many, 40, {}),
        (unreadable, few, 80, {}),
        (removed, 3 * few, 80, {}),
        (kills, 1, 80 * times, dict(times=times)),
        (full_disk, few, 4000, {}),
    ]
    rows: list[Row] = []
    draw = random.Random(SEED)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        for fault, trials, n, options in faults:
            ends = []
            for trial in range(trials):
                folder = Path(scratch) / f"{fault.__name__}-{trial}"
                ends.append(fault(folder, n, draw, **options))
                if fault is not full_disk:  # whose disk is gone by now
                    check(folder, n)
                shutil.rmtree(folder)
            row = dict(what=fault.__name__.replace("_", " "), trials=trials, samples=n, **options)
            rows.append(row | {end: ends.count(end) for end in ("complete", "stopped")})
            tell(rows[-1])
    run.save(rows, method="ddim", steps=STEPS, shard=SHARD, seconds_a_call=SECONDS)


if __name__ == "__main__":
    main()
