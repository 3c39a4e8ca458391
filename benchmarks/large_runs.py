"""Large runs: two processes against one with both cores, and twenty SIGKILLs on the way.

    python benchmarks/large_runs.py --quick       # 128 samples, 3 kills
    python benchmarks/large_runs.py --full        # 2,000 samples, 20 kills
    python benchmarks/large_runs.py --full --only kills        # or --only speed

The shipped model, ddim with 4 network calls, guidance off. speed: one process with all cores, and one for
every core under torchrun with one thread each, in turn: samples per second from the first network call to
the last one's end, which leaves out what starts once; both make the same samples to 1e-4. kills: one
process, killed by SIGKILL at a random moment after its first new shard, again and again; the last one
finishes, every checksum is verified, and every sample compared with those of a run that nobody stopped.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import SEED, Row, Run, arguments, pick, tell

import ddim_ode
from ddim_ode._base import files
from ddim_ode.evaluate.streaming import summarise
from ddim_ode.generation.shards import Shards

NFE = 4
BATCHES = dict(speed=64, kills=16)
TOLERANCE = 1e-4
PATIENCE = 0.5  # seconds between a killed process's first new shard and its end, at most
TIMES = "seconds.json"


# -- a process of a run ---------------------------------------------------------------------------
def work(folder: Path, n: int, batch: int) -> None:
    """One process's part; it leaves when it began and ended, and how much it made, beside the folder."""
    model = ddim_ode.load("fashion-mnist")
    warm = ddim_ode.noise(model.shape, model.schedule, seeds=range(batch))
    ddim_ode.sample(model, warm, nfe=1, cond=labels(torch.arange(batch)))
    rank, record = os.environ.get("RANK", "0"), dict(began=time.time())
    run = ddim_ode.generate(model, n, folder, "ddim", nfe=NFE, cond=labels, batch=batch)
    record |= dict(ended=time.time(), made=run.made, threads=torch.get_num_threads())
    files.write_json(folder.with_name(f"{folder.name}-{rank}-{TIMES}"), record)


def labels(index: torch.Tensor) -> dict[str, torch.Tensor]:
    """One class after another."""
    return {"y": index % 10}


def command(
    folder: Path, n: int, batch: int, processes: int, threads: int
) -> tuple[list[str], dict[str, str]]:
    """The command line of that many processes, and its environment."""
    script = [__file__, "--work", str(folder), str(n), str(batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if processes == 1:
        return [sys.executable, *script], environment
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, *script], environment


def measure_speed(folder: Path, processes: int, n: int) -> dict[str, Any]:
    """Make n samples there; samples per second, and what each process made."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    words, environment = command(folder, n, BATCHES["speed"], processes, threads)
    subprocess.run(words, env=environment, check=True, stderr=subprocess.DEVNULL)
    left = sorted(folder.parent.glob(f"{folder.name}-*-{TIMES}"))
    records: list[Mapping[str, Any]] = [json.loads(file.read_text()) for file in left]
    assert len(records) == processes
    seconds = max(r["ended"] for r in records) - min(r["began"] for r in records)
    row = dict(processes=processes, threads_each=records[0]["threads"], n=n)
    row |= dict(seconds=round(seconds, 2), samples_per_second=n / seconds)
    return row | dict(made=" + ".join(str(r["made"]) for r in records))


def speed(scratch: Path, n: int, repeats: int) -> list[Row]:
    """One and many processes in turn; the ratio of the medians, and the largest difference of samples."""
    many = os.cpu_count() or 1
    rows: list[Row] = []
    for repeat in range(repeats):
        for processes in (1, many) if repeat % 2 == 0 else (many, 1):
            folder = scratch / f"{processes}-{repeat}"
            rows.append(dict(what="speed", **measure_speed(folder, processes, n)))
            tell(rows[-1])
    one, all_of_them = (
        median(row["samples_per_second"] for row in pick(rows, processes=k)) for k in (1, many)
    )
    difference = largest_difference(scratch / "1-0", scratch / f"{many}-0")
    print(f"\n{many} processes give {all_of_them / one:.3f} × the samples/s of one with all cores")
    print(f"largest difference between their samples {difference:.1e} (allowed {TOLERANCE:g})\n")
    assert difference <= TOLERANCE
    ratio = dict(samples_per_second=all_of_them / one, difference=difference)
    return [*rows, dict(what="ratio", **ratio)]


# -- kills ----------------------------------------------------------------------------------------
def kills(scratch: Path, n: int, times: int) -> list[Row]:
    """Kill that many processes on their way; what the run is in the end."""
    folder, rng = scratch / "killed", random.Random(SEED)
    words, environment = command(folder, n, BATCHES["kills"], 1, 1)
    made = []
    for kill in range(times):
        before = count(folder)
        process = subprocess.Popen(words, env=environment)
        while count(folder) == before:
            if process.poll() is not None:
                raise SystemExit(f"the run was over after {kill} of {times} kills: raise --n")
            time.sleep(0.002)
        time.sleep(rng.uniform(0, PATIENCE))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        made.append(count(folder) - before)
        left = len(list(folder.glob(".*.partial")))
        print(f"kill {kill + 1:2}: {made[-1]} shards more, {left} half-written", flush=True)
    subprocess.run(words, env=environment, check=True)
    whole = scratch / "undisturbed"
    words, environment = command(whole, n, BATCHES["kills"], 1, 1)
    subprocess.run(words, env=environment, check=True)
    shards = Shards.open(folder)
    found = summarise(shards)  # reads and verifies every one
    index = [i for shard in shards for i in shard.samples]
    assert index == list(range(n))
    assert not list(folder.glob(".*.partial"))
    difference = largest_difference(folder, whole)
    assert found.distinct == n
    assert difference <= TOLERANCE
    row = dict(what="kills", kills=times, n=n, distinct=found.distinct, difference=difference)
    tell(row)  # every checksum is right
    return [row]


def count(folder: Path) -> int:
    return len(list(folder.glob("shard-*.safetensors")))


def largest_difference(a: Path, b: Path) -> float:
    """Between any two pixels of the same sample; the folders' shards may be of different sizes."""
    first, second = (torch.cat([shard.x for shard in Shards.open(folder)]) for folder in (a, b))
    return float((first - second).abs().max())


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        folder, n, batch = sys.argv[2:]
        work(Path(folder), int(n), int(batch))
        return
    parser = arguments(__doc__, "128 samples, 3 kills", "2,000 samples, 20 kills")
    parser.add_argument("--only", choices=["speed", "kills"], help="one of the two")
    args = parser.parse_args()
    run = Run("large_runs" if args.only is None else f"large_runs_{args.only}", args)
    n, times, repeats = (2000, 20, 3) if args.full else (128, 3, 1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="large_runs-") as scratch:
        if args.only != "kills":
            rows += speed(Path(scratch), n, repeats)
        if args.only != "speed":
            rows += kills(Path(scratch), n, times)
    run.save(rows, method="ddim", nfe=NFE, batch=BATCHES)


if __name__ == "__main__":
    main()
