"""Where to start and to stop when nobody says: what the defaults of ``ddim_ode.grids`` rest on.

    python benchmarks/start.py --quick       # networks of 10 seconds, 200 noises
    python benchmarks/start.py --full        # networks of a minute, 1,000 noises

cosine (left): ε-networks trained on the cosine schedule, T = 1000 and 100, for two modes in the plane. The
share of samples that end near a mode, of every registered method at 12 and 20 calls, by the level that it
starts from, and in the loop of a diffusers pipeline with our scheduler; the figure has the worst method.
ve (right): two-valued pixels, whose closed form is known. By how much the spread of the samples is off, of
every multistep method and Heun's, by σ_max, grid and last level; the figure has the median method.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from common import Row, Run, arguments, pick
from drawing import GREY, curve, label, legend_below, panels
from matplotlib.figure import Figure
from torch import Tensor, nn

import ddim_ode
from ddim_ode.solvers.methods import METHODS

STARTS = (math.inf, 160.0, 80.0, 40.0, 20.0)  # the first is σ(T)
CALLS = (12, 20)
TOPS = (80.0, 380.0, 1348.0)
ENDS = (0.002, 0.01, 0.03, 0.1)
MULTISTEP = [name for name, method in METHODS.items() if method.multistep]


class Net(nn.Module):
    """ε̂ of points in the plane, at times 0..T−1."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.inner, self.time = nn.Linear(2, width), nn.Linear(64, width)
        layers = nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        self.outer = nn.Sequential(*layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t.reshape(-1, 1) * torch.exp(-math.log(1e4) * torch.arange(32) / 32)
        embedded = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        return self.outer(self.inner(x) + embedded)


def data(n: int) -> Tensor:
    """Points (n, 2) at (±0.7, 0), with a standard deviation of 0.1."""
    sign = torch.randint(0, 2, (n,)) * 2.0 - 1.0
    return torch.stack([0.7 * sign, torch.zeros(n)], dim=1) + 0.1 * torch.randn(n, 2)


def trained(T: int, seconds: float) -> ddim_ode.Denoiser:
    torch.manual_seed(0)
    net, schedule, began = Net(), ddim_ode.schedules.cosine(T), time.perf_counter()
    optimizer = torch.optim.Adam(net.parameters())
    while (spent := time.perf_counter() - began) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - spent / seconds) + 1e-5
        loss = ddim_ode.eps_loss(net, schedule, data(512), time_offset=-1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval().requires_grad_(False)
    return ddim_ode.Denoiser(net, schedule, "eps", time_offset=-1.0, shape=(2,))


def near(x: Tensor) -> float:
    """The share of samples within 0.4 of a mode, in either coordinate."""
    return float((((x[:, 0].abs() - 0.7).abs() < 0.4) & (x[:, 1].abs() < 0.4)).float().mean())


def cosine(T: int, seconds: float, n: int) -> Iterator[Row]:
    model = trained(T, seconds)
    x = ddim_ode.noise((2,), model.schedule, range(n))
    for calls in CALLS:
        for method in METHODS:
            row = dict(part="cosine", T=T, calls=calls, method=method)
            seeds = range(n) if METHODS[method].eta else None
            for start in (*STARTS, "default"):
                top = None if start == "default" else min(start, model.schedule.sigma_max)
                sol = ddim_ode.sample(model, x, method, nfe=calls, sigma_max=top, seeds=seeds)
                yield dict(row, start=start, good=near(sol.x))
            yield dict(row, start="pipeline", good=near(in_pipeline(model, x, method, calls)))


def in_pipeline(model: ddim_ode.Denoiser, x: Tensor, method: str, calls: int) -> Tensor:
    """As ``DDPMPipeline`` would, with a scheduler made from the configuration of theirs."""
    import diffusers

    from ddim_ode.interop.diffusers import DDIMODEScheduler

    betas = dict(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    theirs = diffusers.DDPMScheduler(int(model.schedule.T), **betas)
    scheduler = DDIMODEScheduler.from_config(theirs.config, method=method)
    scheduler.set_timesteps(max(2, calls // scheduler.order))
    source = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        eps = model.net(x, t.expand(len(x)))
        x = scheduler.step(eps, t, x, generator=source).prev_sample
    return x


def exploding(n: int) -> Iterator[Row]:
    for top in TOPS:
        schedule = ddim_ode.schedules.ve(top)
        modes = [0.5, 0.5], [[0.2], [0.8]], [[1e-4], [1e-4]]
        model = ddim_ode.exact.gaussian_mixture(*modes, schedule)
        x = ddim_ode.noise((1,), schedule, range(n))
        spread = float(model.flow(x, top, 0.002).std())

        def off(method: str, calls: int, **options: object) -> float:
            end = ddim_ode.sample(model, x, method, nfe=calls, **options).x  # noqa: B023
            return abs(float(end.std()) / spread - 1)  # noqa: B023

        for calls, method in itertools.product((12, 20, 40), [*MULTISTEP, "heun"]):
            row = dict(part="ve", top=top, calls=calls, method=method)
            for grid, end in itertools.product(("karras", "log_snr"), ENDS):
                yield dict(
                    row, grid=grid, end=end, off=off(method, calls, grid=grid, sigma_min=end)
                )
            yield dict(row, grid="default", end="", off=off(method, calls))


def main() -> None:
    args = arguments(__doc__, "networks of 10 seconds", "networks of a minute").parse_args()
    run = Run("start", args)
    seconds, n = (60.0, 1000) if args.full else (10.0, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the starts that are too high
        rows = [row for T in (1000, 100) for row in cosine(T, seconds, n)]
    rows += exploding(n)
    for T, calls in itertools.product((1000, 100), CALLS):
        here = dict(part="cosine", T=T, calls=calls)
        own, inside = (
            min(pick(rows, **here, start=start), key=lambda row: row["good"])
            for start in ("default", "pipeline")
        )
        print(
            f"cosine({T}), {calls} calls: at least {own['good']:.1%} good ({own['method']}), in a "
            f"pipeline {inside['good']:.1%} ({inside['method']})"
        )
    for top, calls in itertools.product(TOPS, (12, 20, 40)):
        here = dict(part="ve", top=top, calls=calls, grid="default")
        worst = max(pick(rows, **here), key=lambda row: row["off"])
        off = f"spread off by at most {worst['off']:.2%} ({worst['method']})"
        print(f"ve({top:g}), {calls} calls: {off}")
    run.save(rows, draw(rows), n=n, seconds=seconds)


def draw(rows: Sequence[Row]) -> Figure:
    figure, (left, right) = panels(2, height=4.2)
    for T, style in ((1000, "-"), (100, "--")):
        for calls, colour in zip(CALLS, ("C0", "C1")):
            here = dict(part="cosine", T=T, calls=calls)
            worst = [min(row["good"] for row in pick(rows, **here, start=s)) for s in STARTS]
            name = f"cosine, T = {T}, {calls} calls"
            curve(left, name, range(len(STARTS)), worst, color=colour, marker="o", ls=style)
    left.set_xticks(range(len(STARTS)), ["σ(T)", *(f"{start:g}" for start in STARTS[1:])])
    left.axhline(0.9, color=GREY, lw=0.8)
    label(left, "ε-networks: the worst method", "starts from σ", "share of good samples")
    for top, colour in zip(TOPS, ("C2", "C3", "C4")):
        for grid, style in (("karras", "--"), ("log_snr", "-")):
            here = dict(part="ve", top=top, calls=20, grid=grid)
            median = [
                np.median([row["off"] for row in pick(rows, **here, end=end)]) for end in ENDS
            ]
            look = dict(color=colour, marker="s", ls=style)
            curve(right, f"ve({top:g}), {grid}", ENDS, median, **look)
    right.set(xscale="log", yscale="log")
    label(right, "ve, 20 calls: the median method", "last level σ", "error of the spread")
    legend_below(figure, [left, right], 3)
    return figure


if __name__ == "__main__":
    main()
