"""What a scheduler's plan costs in our loop beside its own loop: microseconds per network call.

    python benchmarks/tracing.py --quick        # 5 rounds
    python benchmarks/tracing.py --full         # 60 rounds, on an idle machine

Every diffusers scheduler runs 20 steps on a (4, 3, 8, 8) float32 tensor on one core, with a network that
returns a ready tensor: ``scheduler.step`` in a plain loop, as a pipeline drives it, and ``sample`` with the
plan that ``Plan.trace`` made of it (once, before the timing). Both pay for what they do in every run:
``set_timesteps`` there, argument checks and binding here. The two take turns, in a random order each
round; the time of the bare network is subtracted from both. The ratio is that of the medians and, in
brackets, the median of the rounds' own. ``memory`` is how many vectors a step of the plan reads.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from common import (
    INK,
    Row,
    Run,
    arguments,
    installed,
    label,
    legend_below,
    look,
    panels,
    plain,
    stub,
)
from matplotlib.figure import Figure
from overhead import SHAPE
from torch import Tensor

import ddim_ode
from ddim_ode import Plan

STEPS, TARGET = 20, 0.25
# Those whose state is x/ᾱ.
SCALED = ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete")
SCHEDULERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDIM", dict(clip_sample=False)),
    ("EulerDiscrete", {}),
    ("HeunDiscrete", {}),
    ("KDPM2Discrete", {}),
    ("LMSDiscrete", {}),
    ("PNDM", dict(skip_prk_steps=True)),
    ("DEISMultistep", {}),
    ("DPMSolverMultistep", {}),
    ("DPMSolverMultistep", dict(solver_order=3)),
    ("DPMSolverSinglestep", {}),
    ("UniPCMultistep", {}),
    ("UniPCMultistep", dict(solver_order=3)),
)


def their_loop(scheduler: Any, scaled: bool) -> Callable[..., Tensor]:
    @torch.no_grad()
    def loop(net: Callable[..., Tensor], x: Tensor) -> Tensor:
        scheduler.set_timesteps(STEPS)
        y = x
        if scaled:
            y = x * float((scheduler.sigmas[0] ** 2 + 1) ** 0.5)
        for t in scheduler.timesteps:
            out = net(scheduler.scale_model_input(y, t), t)
            y = scheduler.step(out, t, y, return_dict=False)[0]
        return y

    return loop


def seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def race(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, an untimed run before each timed one."""
    order, times = list(runs), {name: [] for name in runs}
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            runs[name]()
            times[name].append(seconds(runs[name]))
    return times


def measure(name: str, options: dict[str, Any], rounds: int) -> dict[str, object]:
    import diffusers

    scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
    schedule = ddim_ode.schedules.from_alphas_cumprod(scheduler.alphas_cumprod.double())
    loop = their_loop(scheduler, name in SCALED)
    plan = Plan.trace(loop, schedule, time_offset=-1.0)

    x, eps = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0)).unbind(0)
    net = stub(eps)
    model = ddim_ode.Denoiser(net, schedule, time_offset=-1.0)
    times = race(
        {
            "bare": lambda: [net(x, None) for _ in range(plan.nfe)],
            "theirs": lambda: loop(net, x),
            "ours": lambda: ddim_ode.sample(model, x, plan=plan),
        },
        rounds,
    )
    bare = median(times["bare"])
    theirs, ours = ([s - bare for s in times[who]] for who in ("theirs", "ours"))
    ratios = median(ours) / median(theirs), median(a / b for a, b in zip(ours, theirs))
    return {
        "scheduler": " ".join([name, *(f"{k}={v}" for k, v in options.items())]),
        "calls": plan.nfe,
        "memory": plan.memory,
        "theirs us/call": f"{median(theirs) / plan.nfe * 1e6:.1f}",
        "ours us/call": f"{median(ours) / plan.nfe * 1e6:.1f}",
        "ratio of medians": f"{ratios[0]:.3f}",
        "median of ratios": f"{ratios[1]:.3f}",
        f"<= {TARGET}": "ok" if max(ratios) <= TARGET else "MISSED",
    }


def draw(rows: Sequence[Row]) -> Figure:
    """Their loop and ours, a pair of bars per scheduler, the slowest at the top."""
    shown = sorted(rows, key=lambda row: float(row["theirs us/call"]))
    figure, (axis,) = panels(1, width=8.5, height=0.42 * len(shown) + 1.4)
    for name, who, shift in (("diffusers", "theirs", 0.2), ("ddim_ode", "ours", -0.2)):
        y = [i + shift for i in range(len(shown))]
        values = [float(row[f"{who} us/call"]) for row in shown]
        axis.barh(y, values, height=0.4, color=look(name)["color"], label=name)
        for where, value in zip(y, values):
            axis.text(value, where, f" {value:.1f}", va="center", fontsize=9, color=INK)
    axis.set_yticks(range(len(shown)), [str(row["scheduler"]) for row in shown], fontsize=9)
    axis.grid(False, axis="y")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(plain)
    axis.set_xlim(right=2 * max(float(row["theirs us/call"]) for row in rows))
    what = "µs per network call beside the network (log scale), lower is better"
    label(axis, "The same plan in two loops", what, "")
    legend_below(figure, [axis], 2)
    return figure


def main() -> None:
    args = arguments(__doc__, "5 rounds", "60 rounds").parse_args()
    torch.set_num_threads(1)
    run = Run("tracing", args, ["diffusers"])
    if not installed("diffusers"):
        return
    rounds = 60 if args.full else 5
    logging.disable(logging.WARNING)
    print(f"{SHAPE} float32, {STEPS} steps, {rounds} interleaved rounds\n")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        rows = [measure(name, options, rounds) for name, options in SCHEDULERS]
    print(ddim_ode.solvers.methods.Table(rows))
    run.save(rows, draw(rows), rounds=rounds)


if __name__ == "__main__":
    main()
