"""What a scheduler's plan costs in our loop beside its own loop: microseconds per network call.

    python benchmarks/tracing.py --quick        # 5 rounds
    python benchmarks/tracing.py --full         # 60 rounds, on an idle machine

Every diffusers scheduler runs 20 steps on a (4, 3, 8, 8) float32 tensor on one core, with a network that
returns a ready tensor (whose time is subtracted): ``scheduler.step`` in a plain loop, as a pipeline drives
it, and ``sample`` with the plan that ``Plan.trace`` made of it before the timing. Both pay for what they do
in every run: ``set_timesteps`` there, argument checks and binding here. ``memory`` is how many vectors a
step of the plan reads. The figure has a pair of bars per scheduler, the slowest at the top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from common import Row, Run, arguments, installed, quiet, race, stub
from diffusers_schedulers import KARRAS, SCHEDULERS, make
from drawing import bars, label, legend_below, log_axis, look, panels
from matplotlib.figure import Figure
from overhead import SHAPE
from torch import Tensor

import ddim_ode
from ddim_ode import Plan

STEPS, TARGET = 20, 0.25
# Those whose state is x/ᾱ.
SCALED = ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete")
TRACED = [one for one in SCHEDULERS if one[1] != KARRAS and one != ("PNDM", {})]


def their_loop(scheduler: Any, scaled: bool) -> Callable[..., Tensor]:
    @torch.no_grad()
    def loop(net: Callable[..., Tensor], x: Tensor) -> Tensor:
        scheduler.set_timesteps(STEPS)
        y = x * float((scheduler.sigmas[0] ** 2 + 1) ** 0.5) if scaled else x
        for t in scheduler.timesteps:
            out = net(scheduler.scale_model_input(y, t), t)
            y = scheduler.step(out, t, y, return_dict=False)[0]
        return y

    return loop


def measure(name: str, options: dict[str, Any], rounds: int) -> dict[str, object]:
    scheduler = make(name, **options)
    schedule = ddim_ode.schedules.from_alphas_cumprod(scheduler.alphas_cumprod.double())
    loop = their_loop(scheduler, name in SCALED)
    plan = Plan.trace(loop, schedule, time_offset=-1.0)

    x, eps = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0)).unbind(0)
    net = stub(eps)
    model = ddim_ode.Denoiser(net, schedule, time_offset=-1.0)
    runs = (
        lambda: [net(x, None) for _ in range(plan.nfe)],
        lambda: loop(net, x),
        lambda: ddim_ode.sample(model, x, plan=plan),
    )
    bare, *times = race(runs, rounds)
    theirs, ours = (seconds - np.median(bare) for seconds in times)
    ratios = np.median(ours) / np.median(theirs), np.median(ours / theirs)
    return {
        "scheduler": " ".join([name, *(f"{k}={v}" for k, v in options.items())]),
        "calls": plan.nfe,
        "memory": plan.memory,
        "theirs us/call": f"{np.median(theirs) / plan.nfe * 1e6:.1f}",
        "ours us/call": f"{np.median(ours) / plan.nfe * 1e6:.1f}",
        "ratio of medians": f"{ratios[0]:.3f}",
        "median of ratios": f"{ratios[1]:.3f}",
        f"<= {TARGET}": "ok" if max(ratios) <= TARGET else "MISSED",
    }


def draw(rows: Sequence[Row]) -> Figure:
    shown = sorted(rows, key=lambda row: float(row["theirs us/call"]))
    names = [row["scheduler"] for row in shown]
    figure, (axis,) = panels(1, width=8.5, height=0.42 * len(shown) + 1.4)
    for name, who, shift in (("diffusers", "theirs", 0.2), ("ddim_ode", "ours", -0.2)):
        values = [float(row[f"{who} us/call"]) for row in shown]
        texts, colour = [f"{value:.1f}" for value in values], look(name)["color"]
        bars(axis, names, values, texts, colour, shift, height=0.4, label=name)
    log_axis(axis, "x")
    axis.set_xlim(right=2 * float(shown[-1]["theirs us/call"]))
    what = "µs per network call beside the network (log scale), lower is better"
    label(axis, "The same plan in two loops", what)
    legend_below(figure, [axis], 2)
    return figure


def main() -> None:
    args = arguments(__doc__, "5 rounds", "60 rounds").parse_args()
    torch.set_num_threads(1)
    run = Run("tracing", args, ["diffusers"])
    if not installed("diffusers"):
        return
    rounds = 60 if args.full else 5
    print(f"{SHAPE} float32, {STEPS} steps, {rounds} interleaved rounds\n")
    with quiet():
        rows = [measure(name, options, rounds) for name, options in TRACED]
    print(ddim_ode.solvers.methods.Table(rows))
    run.save(rows, draw(rows), rounds=rounds)


if __name__ == "__main__":
    main()
