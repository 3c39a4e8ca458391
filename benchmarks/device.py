"""Faster network calls: what each option of ``accelerate`` gains on this machine, and how exact it is.

    python benchmarks/device.py --quick       # batch 16, without torch.compile
    python benchmarks/device.py --full        # batches 16, 64 and 256, with it; on an idle machine

The shipped model, dpmpp2m with 10 network calls. The options take turns, in a new random order each round,
after an untimed run each, so that a machine that slows down slows all of them. Speed is the median over
the rounds of the ratio to float32 as it is, of the same round. Error is the RMS per pixel of the samples to
those of float32 as it is, beside how far the solver itself is from the converged solution of the same
noises. Compiling is timed apart. Options for CUDA devices are left out, with a word, where there is none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import INK, SEED, Row, Run, arguments, label, labels, panels, plain, rms
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor

import ddim_ode
from ddim_ode.plots import comparisons as plots
from ddim_ode.solve.cuda_graph import GraphedPlan

METHOD, NFE = "dpmpp2m", 10
PLAIN = "float32"
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "channels_last": dict(channels_last=True),
    "bfloat16": dict(dtype=torch.bfloat16),
    "bfloat16, channels_last": dict(dtype=torch.bfloat16, channels_last=True),
    "compile": dict(compile=True),
    "compile, channels_last": dict(compile=True, channels_last=True),
    "compile, bfloat16": dict(compile=True, dtype=torch.bfloat16),
}
ON_CUDA: dict[str, dict[str, Any]] = {
    "float16": dict(dtype=torch.float16),
    "cuda_graph": {},
    "cuda_graph, bfloat16": dict(dtype=torch.bfloat16),
}
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's
Solve = Callable[[], Tensor]


def processor_has_bf16() -> str:
    """The processor's instructions for bfloat16, as Linux names them; "none", or "unknown"."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return "unknown"
    words = set(info.read_text().split())
    return ", ".join(flag for flag in BF16_FLAGS if flag in words) or "none"


def solver(name: str, options: dict[str, Any], batch: int, device: str) -> Solve:
    """``solve()``: the samples of that option, warmed up."""
    model = ddim_ode.load("fashion-mnist", device=device)
    x = ddim_ode.noise(model.shape, model.schedule, seeds=range(batch), device=device)
    cond = {key: value.to(device) for key, value in labels(model, range(batch)).items()}
    fast = ddim_ode.accelerate(model, **options)
    plan = ddim_ode.sample(fast, x[:0], METHOD, nfe=NFE, cond={"y": cond["y"][:0]}).plan
    assert plan is not None
    if name.startswith("cuda_graph"):
        graph = GraphedPlan(fast, plan, x, cond)
        return lambda: graph(x, cond)[0]
    return lambda: ddim_ode.sample(fast, x, plan=plan, cond=cond).x


def timed(solve: Solve, device: str) -> tuple[float, Tensor]:
    """Seconds until the samples are on the host, and the samples."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    end = solve().cpu()
    return time.perf_counter() - start, end


def measure(
    options: dict[str, dict[str, Any]], batch: int, rounds: int, device: str
) -> Iterator[Row]:
    """A row per option at one batch."""
    solvers = {name: solver(name, given, batch, device) for name, given in options.items()}
    first = {name: timed(solve, device) for name, solve in solvers.items()}
    exact, rng = first[PLAIN][1], random.Random(SEED)
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    for _ in range(rounds):
        for name in rng.sample(list(solvers), len(solvers)):
            seconds[name].append(timed(solvers[name], device)[0])
    for name, (beginning, end) in first.items():
        ratios = [a / b for a, b in zip(seconds[PLAIN], seconds[name])]
        yield dict(
            option=name,
            batch=batch,
            device=device,
            samples_per_second=batch / median(seconds[name]),
            speed=median(ratios),
            slowest_ratio=min(ratios),
            fastest_ratio=max(ratios),
            first_run_seconds=beginning,
            rms_to_float32=rms(end - exact),
        )


def solver_error(n: int) -> float:
    """RMS per pixel of the solver to the converged solution: the scale for the options' errors."""
    model = ddim_ode.load("fashion-mnist")
    x = ddim_ode.noise(model.shape, model.schedule, seeds=range(n))
    cond = labels(model, range(n))
    few = ddim_ode.sample(model, x, METHOD, nfe=NFE, cond=cond).x
    return rms(few - ddim_ode.sample(model, x, "unipc3", nfe=60, cond=cond).x)


def draw(rows: Sequence[Row], scale: float) -> Figure:
    """Speed by option, a dot per batch, and the error of each beside the solver's own."""
    names = list(dict.fromkeys(row["option"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    figure, (left, right) = panels(2, width=10.5, height=1.6 + 0.42 * len(names), sharey=True)
    colours = [plots.look(m)["color"] for m in ("ddim", "dpmpp2m", "heun")]
    for batch, colour, marker in zip(batches, colours, "os^"):
        mine = {row["option"]: row for row in rows if row["batch"] == batch}
        where = [names.index(name) for name in mine]
        style = dict(color=colour, marker=marker, linestyle="", ms=6.5)
        left.plot([r["speed"] for r in mine.values()], where, **style, label=f"batch {batch}")
        errors = [
            (r["rms_to_float32"], y) for r, y in zip(mine.values(), where) if r["rms_to_float32"]
        ]
        right.plot([e for e, _ in errors], [y for _, y in errors], **style)
    left.axvline(1, color=INK, lw=1)
    right.axvline(scale, color=INK, lw=1)
    right.annotate(
        f"{METHOD} with {NFE} calls\nto the converged solution",
        (scale, 0),  # where float32 itself has no dot
        xytext=(-6, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9.5,
        color=INK,
    )
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set_xlim(left=0)
    right.set_xscale("log")
    right.xaxis.set_minor_formatter(NullFormatter())
    left.xaxis.set_major_formatter(FuncFormatter(plain))
    label(left, "Speed", "× the samples per second of float32", "")
    label(right, "Error", "RMS per pixel to float32", "")
    figure.legend(loc="outside lower center", ncols=len(batches), frameon=False, fontsize=10.5)
    return figure


def main() -> None:
    parser = arguments(__doc__, "batch 16, without torch.compile", "three batches, with it")
    args = parser.parse_args()
    run = Run("device", args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = dict(OPTIONS) | (ON_CUDA if device == "cuda" else {})
    if device == "cpu":
        print(f"There is no CUDA device here: no figure for {', '.join(ON_CUDA)}, nor of any GPU.")
        print(f"Instructions for bfloat16 on this processor: {processor_has_bf16()}\n")
    if not args.full:
        options = {name: given for name, given in options.items() if "compile" not in given}
    batches, rounds = ((16, 64, 256), 7) if args.full else ((16,), 3)
    rows = []
    print(
        "option                   batch  samples/s  × float32  (slowest, fastest)  RMS to float32"
    )
    for batch in batches:
        torch.compiler.reset()
        for row in measure(options, batch, rounds, device):
            rows.append(row)
            print(
                f"{row['option']:23}  {batch:5}  {row['samples_per_second']:9.1f}  "
                f"{row['speed']:9.2f}  ({row['slowest_ratio']:7.2f}, {row['fastest_ratio']:7.2f})  "
                f"{row['rms_to_float32']:14.1e}",
                flush=True,
            )
    scale = solver_error(20 if args.full else 4)
    print(f"\n{METHOD} with {NFE} calls is {scale:.1e} from the converged solutions")
    run.save(
        rows,
        draw(rows, scale),
        method=METHOD,
        nfe=NFE,
        rounds=rounds,
        bf16_instructions=processor_has_bf16(),
        solver_rms=scale,
    )


if __name__ == "__main__":
    main()
