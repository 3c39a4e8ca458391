"""On a GPU: throughput, the whole plan as one CUDA graph, half precision, memory, and no synchronisation.

    python benchmarks/gpu.py --quick       # batches of 1 and 64
    python benchmarks/gpu.py --full        # 1, 16, 64, 256 and 1024

First every deterministic method is run with ``torch.cuda.set_sync_debug_mode("error")`` from its first
network call to its return: an operation that waits for the device ends the benchmark. Then the shipped
model, dpmpp2m with 20 calls, in float32, in TF32 and in bfloat16 with a float32 state, each as ``sample``
runs it (eager) and as one CUDA graph captured from ``sample`` itself: samples per second (the figure, by
batch), milliseconds per call, peak memory, and the RMS distance per pixel of the end points to those of
float32, eager. Without a GPU it says so, and writes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from common import Row, Run, arguments, noises, pick, race, rms, told
from drawing import curve, label, panels
from matplotlib.figure import Figure
from torch import Tensor

import ddim_ode
from ddim_ode.nets.pretrained import PretrainedModel
from ddim_ode.solve.cuda_graph import capture

METHOD, NFE = "dpmpp2m", 20
REPEATS = 10
MIB = 2**20
# Network dtype, and whether float32 products may be rounded to TF32, torch's default for convolutions.
PRECISIONS = {
    "float32": (None, False),
    "TF32": (None, True),
    "bfloat16 network": (torch.bfloat16, False),
}
COLOURS = {"float32": "#332288", "TF32": "#88CCEE", "bfloat16 network": "#CC6677"}
Solve = Callable[[], Tensor]


@contextlib.contextmanager
def no_synchronisation(model: ddim_ode.Denoiser) -> Iterator[None]:
    """From the model's first network call on, an operation that waits for the device raises."""
    net = model.net

    def guarded(*args: Any, **cond: Any) -> Tensor:
        torch.cuda.set_sync_debug_mode("error")
        return net(*args, **cond)

    model.net = guarded
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.net = net


def check_no_synchronisation(model: PretrainedModel, device: str) -> int:
    """RuntimeError from torch if a deterministic method waits for the device; how many were run."""
    x, cond = noises(model, range(4), device)
    names = [str(row["name"]) for row in ddim_ode.methods() if row["order"] is not None]
    for name in names:
        with no_synchronisation(model):
            ddim_ode.sample(model, x, name, steps=16, cond=cond)
    return len(names)


def seconds(run: Solve) -> float:
    """The median of whole runs, the device idle before and after each."""
    run()

    def whole() -> None:
        run()
        torch.cuda.synchronize()

    return float(np.median(race([whole], REPEATS, lambda i: torch.cuda.synchronize(), warm=False)))


def measure(batches: Sequence[int], device: str = "cuda") -> Iterator[Row]:
    """A row per batch, precision and way of running."""
    for batch in batches:
        exact: Tensor | None = None
        for precision, (dtype, tf32) in PRECISIONS.items():
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            model = ddim_ode.load("fashion-mnist", device=device, dtype=dtype)
            x, cond = noises(model, range(batch), device)
            plan = ddim_ode.plan_for(model, METHOD, nfe=NFE)
            given = dict(plan=plan, cond=cond)

            def solve(model: Any = model, x: Tensor = x, given: Any = given) -> Tensor:
                return ddim_ode.sample(model, x, **given).x

            for way in ("eager", "graph"):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                run = capture(solve).replay if way == "graph" else solve
                wall = seconds(run)
                end = run().double().cpu()
                exact = end if exact is None else exact
                yield dict(
                    precision=precision,
                    way=way,
                    batch=batch,
                    samples_per_second=batch / wall,
                    ms_per_call=wall / NFE * 1e3,
                    peak_mib=torch.cuda.max_memory_allocated() / MIB,
                    rms_to_float32=rms(end - exact),
                )


def draw(rows: Sequence[Row]) -> Figure:
    """Colour the precision, full lines for graphs."""
    figure, (axis,) = panels(1, width=8.0)
    axis.set(xscale="log", yscale="log")
    for precision, colour in COLOURS.items():
        for way, line in (("graph", "-"), ("eager", "--")):
            mine = pick(rows, precision=precision, way=way)
            x, y = [r["batch"] for r in mine], [r["samples_per_second"] for r in mine]
            style = dict(color=colour, marker="o", linestyle=line)
            curve(axis, f"{precision}, {way}", x, y, **style)
    label(axis, f"{METHOD}, {NFE} network calls", "batch", "samples per second")
    axis.legend(frameon=False)
    return figure


def main() -> None:
    args = arguments(__doc__, "batches 1 and 64", "batches 1 to 1024").parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was measured, and nothing is written.")
        return
    run = Run("gpu", args)
    checked = check_no_synchronisation(ddim_ode.load("fashion-mnist", device="cuda"), "cuda")
    print(f"{checked} methods ran without waiting for the device between first call and return\n")
    rows = told(measure((1, 16, 64, 256, 1024) if args.full else (1, 64)))
    run.save(rows, draw(rows), method=METHOD, nfe=NFE, checked=checked, cuda=torch.version.cuda)


if __name__ == "__main__":
    main()
