"""Faster network calls: what each option of ``accelerate`` gains on this machine, and how exact it is.

    python benchmarks/device.py --quick       # batch 16, without torch.compile
    python benchmarks/device.py --full        # batches 16, 64 and 256, with it; on an idle machine

The shipped model, dpmpp2m with 10 network calls; the options take turns. Speed is the median over the
rounds of the ratio to float32 as it is, of the same round. Error is the RMS per pixel of the samples to
those of float32 as it is, beside how far the solver itself is from the converged solution of the same
noises. The figure has both, a dot per batch. Compiling is timed apart. Options for CUDA devices are left
out, with a word, where there is none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, Run, arguments, noises, pick, race, rms, told
from drawing import INK, label, legend_below, log_axis, look, note, panels, plain
from matplotlib.figure import Figure
from torch import Tensor

import ddim_ode
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
    """``solve()``: the samples of that option, on the host."""
    model = ddim_ode.load("fashion-mnist", device=device)
    x, cond = noises(model, range(batch), device)
    fast = ddim_ode.accelerate(model, **options)
    plan = ddim_ode.plan_for(fast, METHOD, nfe=NFE)
    if name.startswith("cuda_graph"):
        graph = GraphedPlan(fast, plan, x, cond)
        return lambda: graph(x, cond)[0].cpu()
    return lambda: ddim_ode.sample(fast, x, plan=plan, cond=cond).x.cpu()


def measure(
    options: dict[str, dict[str, Any]], batch: int, rounds: int, device: str
) -> Iterator[Row]:
    """A row per option at one batch."""
    solvers = [solver(name, given, batch, device) for name, given in options.items()]
    first = []
    for solve in solvers:
        start = time.perf_counter()
        end = solve()
        first.append((time.perf_counter() - start, end))
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    seconds = race(solvers, rounds, lambda i: wait(), warm=False)
    exact = list(options).index(PLAIN)
    for name, (beginning, end), mine in zip(options, first, seconds):
        ratios = seconds[exact] / mine
        yield dict(
            option=name,
            batch=batch,
            device=device,
            samples_per_second=float(batch / np.median(mine)),
            speed=float(np.median(ratios)),
            slowest_ratio=float(ratios.min()),
            fastest_ratio=float(ratios.max()),
            first_run_seconds=beginning,
            rms_to_float32=rms(end - first[exact][1]),
        )


def solver_error(n: int) -> float:
    """RMS per pixel of the solver to the converged solution: the scale for the options' errors."""
    model = ddim_ode.load("fashion-mnist")
    x, cond = noises(model, range(n))
    few, many = (
        ddim_ode.sample(model, x, method, nfe=nfe, cond=cond).x
        for method, nfe in ((METHOD, NFE), ("unipc3", 60))
    )
    return rms(few - many)


def draw(rows: Sequence[Row], scale: float) -> Figure:
    names = list(dict.fromkeys(row["option"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    figure, (left, right) = panels(2, width=10.5, height=1.6 + 0.42 * len(names), sharey=True)
    for batch, method, marker in zip(batches, ("ddim", "dpmpp2m", "heun"), "os^"):
        style = dict(color=look(method)["color"], marker=marker, linestyle="", ms=6.5)
        mine = pick(rows, batch=batch)
        places = [names.index(row["option"]) for row in mine]
        left.plot([row["speed"] for row in mine], places, label=f"batch {batch}", **style)
        errors = [row["rms_to_float32"] or np.nan for row in mine]
        right.plot(errors, places, **style)
    left.axvline(1, color=INK, lw=1)
    right.axvline(scale, color=INK, lw=1)
    text = f"{METHOD} with {NFE} calls\nto the converged solution"
    note(right, text, (scale, 0), (-6, 0), color=INK, ha="right", va="center")  # no dot of float32
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set_xlim(left=0)
    left.xaxis.set_major_formatter(plain)
    log_axis(right, "x", fine=False)
    label(left, "Speed", "× the samples per second of float32")
    label(right, "Error", "RMS per pixel to float32")
    legend_below(figure, [left], len(batches))
    return figure


def main() -> None:
    args = arguments(
        __doc__, "batch 16, without torch.compile", "three batches, with it"
    ).parse_args()
    run = Run("device", args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = OPTIONS | (ON_CUDA if device == "cuda" else {})
    if device == "cpu":
        print(f"There is no CUDA device here: no figure for {', '.join(ON_CUDA)}, nor of any GPU.")
        print(f"Instructions for bfloat16 on this processor: {processor_has_bf16()}\n")
    if not args.full:
        options = {name: given for name, given in options.items() if "compile" not in given}
    batches, rounds = ((16, 64, 256), 7) if args.full else ((16,), 3)
    rows = []
    for batch in batches:
        torch.compiler.reset()
        rows += told(measure(options, batch, rounds, device))
    scale = solver_error(20 if args.full else 4)
    print(f"\n{METHOD} with {NFE} calls is {scale:.1e} from the converged solutions")
    settings = dict(method=METHOD, nfe=NFE, rounds=rounds, solver_rms=scale)
    run.save(rows, draw(rows, scale), **settings, bf16_instructions=processor_has_bf16())


if __name__ == "__main__":
    main()
