"""What a sampler costs beside its network: microseconds per network call, side by side in one run.

    python benchmarks/overhead.py --quick       # 30 and 3 rounds
    python benchmarks/overhead.py --full        # 100 and 9, on an idle machine

Part 1 runs every sampler on a (4, 3, 8, 8) float32 tensor for 100 steps with a network that returns a
ready tensor, on one core. From each wall time the cost of that network is subtracted (the same for
all), and the rest is divided by the number of calls. Everything a user pays for each run is inside
the timing: argument checks, grid and plan here, ``set_timesteps`` in diffusers.

Part 2 compares ``sample`` on a real U-Net with the same number of bare calls of that U-Net, and
within ``sample`` the time spent outside the network with the time inside it.

The contenders take turns, in a new random order each round, so that a machine that slows down slows
all of them, and each turn starts with an untimed run, so that nobody pays for the state of the caches
after another. A ratio is given as the ratio of the two medians and, in brackets, as the median of
the rounds' own ratios; the verdict is on the larger.

The peers run lean. torchdiffeq is ``odeint(f, x, grid, method="euler")`` with the network itself as
f, in a variable that rises (as σ falls, odeint wraps f once more: "falling"), and beside it what is
left when the states in between are not asked for, through ``grid_constructor`` ("end only").
diffusers is ``scheduler.step(..., return_dict=False)`` in a plain loop: no clipping, no guidance, no
progress bar.
"""

from __future__ import annotations

import gc
import importlib
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import INK, Row, Run, arguments, look, panels, plain, stub
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

import ddim_ode
from ddim_ode.nets.unet import UNet
from ddim_ode.solvers.compilation import clear_cache

SHAPE, STEPS = (4, 3, 8, 8), 100
BATCH, NET_STEPS = 64, 10
EULER, EULER_END = "torchdiffeq Euler", "torchdiffeq Euler, end only"
DDIM, UNIPC = "diffusers DDIM", "diffusers UniPC"
REFERENCES = (EULER, EULER_END, DDIM, UNIPC)
DDIM_TARGETS = {EULER: 0.5, DDIM: 0.2}
MEMORY_4_TARGETS = {EULER: 0.75, UNIPC: 0.1}
NET_TARGET = 1.05
COLUMNS = ("sampler", "plan cache", "calls", "us/call", "quartiles")


@dataclass
class Contender:
    """run(): one whole solve, ``calls`` network calls. before(): what is not to be timed.

    targets: {reference: the largest ratio to it}.
    """

    name: str
    calls: int
    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None
    cache: str = ""
    targets: dict[str, float] | None = None


def ours(net: Callable[..., Tensor], x: Tensor) -> Iterator[Contender]:
    """Every single-call method with memory 4, and ddim, heun and rk4; plan cache off and on."""
    model = ddim_ode.Denoiser(net, ddim_ode.schedules.ddpm())
    grid = ddim_ode.grids.make_grid("time", model.schedule, STEPS)
    plans = {
        str(row["name"]): ddim_ode.plan(str(row["name"]), model.schedule, grid)
        for row in ddim_ode.methods()
    }
    memory_4 = [n for n, p in plans.items() if p.memory == 4 and p.nfe == STEPS]
    for name in ["ddim", "heun", "rk4", *memory_4]:
        targets = DDIM_TARGETS if name == "ddim" else MEMORY_4_TARGETS if name in memory_4 else {}

        def run(name: str = name) -> Tensor:
            return ddim_ode.sample(model, x, name, steps=STEPS).x

        for cache in ("off", "on"):
            before = clear_cache if cache == "off" else lambda: None
            yield Contender(name, plans[name].nfe, run, before, cache, targets)


def torchdiffeq_euler(net: Callable[..., Tensor], x: Tensor) -> Iterator[Contender]:
    """Euler over the same STEPS intervals, three ways."""
    torchdiffeq = importlib.import_module("torchdiffeq")
    sigmas = ddim_ode.grids.make_grid("time", ddim_ode.schedules.ddpm(), STEPS)
    falling = torch.tensor(sigmas, dtype=x.dtype)
    rising = falling[0] - falling

    def field(t: Tensor, y: Tensor) -> Tensor:
        return net(y, t)

    def euler(grid: Tensor, **options: Any) -> Callable[[], Tensor]:
        @torch.no_grad()
        def run() -> Tensor:
            return torchdiffeq.odeint(field, x, grid, method="euler", options=options)[-1]

        return run

    yield Contender(EULER, STEPS, euler(rising))
    yield Contender(f"{EULER}, falling", STEPS, euler(falling))
    end_only = euler(rising[[0, -1]], grid_constructor=lambda f, y, t: rising)
    yield Contender(EULER_END, STEPS, end_only)


def diffusers_schedulers(net: Callable[..., Tensor], x: Tensor) -> Iterator[Contender]:
    """The schedulers as a pipeline drives them, DPM-Solver++ and UniPC at their default order 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = importlib.import_module("diffusers")
        schedulers = {
            DDIM: diffusers.DDIMScheduler(clip_sample=False),
            UNIPC: diffusers.UniPCMultistepScheduler(),
            "diffusers DPM++ 2M": diffusers.DPMSolverMultistepScheduler(),
        }
    for name, scheduler in schedulers.items():

        @torch.no_grad()
        def run(scheduler: Any = scheduler) -> Tensor:
            y = x
            scheduler.set_timesteps(STEPS)
            for t in scheduler.timesteps:
                y = scheduler.step(net(y, t), t, y, return_dict=False)[0]
            return y

        run()  # a scheduler may add calls to the steps asked for
        yield Contender(name, len(scheduler.timesteps), run)


def race(contenders: list[Contender], rounds: int, warm: bool) -> np.ndarray:
    """Seconds (contenders, rounds). warm: an untimed run before each timed one."""
    seconds = np.empty((len(contenders), rounds))
    shuffle = random.Random(0).shuffle
    order = list(range(len(contenders)))
    gc_was_on = gc.isenabled()
    gc.disable()  # as timeit does; garbage is collected between the rounds
    try:
        for r in range(rounds):
            gc.collect()
            shuffle(order)
            for i in order:
                for _ in range(2 if warm else 1):
                    contenders[i].before()
                    start = time.perf_counter()
                    contenders[i].run()
                    seconds[i, r] = time.perf_counter() - start
    finally:
        if gc_was_on:
            gc.enable()
    return seconds


def ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(ratio of the medians, median of the ratios)."""
    return float(np.median(a) / np.median(b)), float(np.median(a / b))


def verdict(pair: tuple[float, float], target: float | None) -> str:
    if target is None:
        return ""
    return "ok" if max(pair) <= target else "MISSED"


def stub_rows(rounds: int) -> list[dict[str, Any]]:
    """Part 1, one row a contender."""
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn((2, *SHAPE), generator=generator).unbind(0)
    net = stub(eps)

    def bare() -> None:
        t = x.new_zeros(())
        for _ in range(STEPS):
            net(x, t)

    contenders = [Contender("(the network itself)", STEPS, bare), *ours(net, x)]
    missing: list[str] = []
    for peer, names in (
        (torchdiffeq_euler, [EULER, EULER_END]),
        (diffusers_schedulers, [DDIM, UNIPC, "diffusers DPM++ 2M"]),
    ):
        try:
            contenders += peer(net, x)
        except ImportError:
            missing += names
    for c in contenders[1:]:
        if not torch.isfinite(c.run()).all():  # a first run also settles what is built once
            raise RuntimeError(f"{c.name} ended in a state that is not finite")

    calls = np.array([c.calls for c in contenders])
    per_call = race(contenders, rounds, warm=True) / calls[:, None] * 1e6
    per_call[1:] -= np.median(per_call[0])
    by_name = {c.name: row for c, row in zip(contenders, per_call)}
    rows = []
    for c, us in zip(contenders, per_call):
        low, high = np.percentile(us, [25, 75])
        row: dict[str, Any] = {
            "sampler": c.name,
            "plan cache": c.cache,
            "calls": str(c.calls),
            "us/call": f"{np.median(us):.2f}",
            "quartiles": f"{low:.2f}-{high:.2f}",
        }
        for reference in REFERENCES:
            target = (c.targets or {}).get(reference)
            if reference in by_name and (c.cache or c.name in REFERENCES):
                row[reference] = (ratio(us, by_name[reference]), target)
        rows.append(row)
    rows += [{"sampler": name, "us/call": "not installed"} for name in missing]
    return rows


def net_rows(rounds: int) -> tuple[list[dict[str, Any]], str]:
    """Part 2: ``sample`` against bare calls, and what ``sample`` does outside the network."""
    generator = torch.Generator().manual_seed(0)
    try:
        model: ddim_ode.Denoiser = ddim_ode.load("fashion-mnist")
        shape, what = model.shape, "the shipped Fashion-MNIST model"
    except FileNotFoundError:
        net = UNet(1, (32, 64, 128), 1, 10).eval().requires_grad_(False)
        model, shape = ddim_ode.Denoiser(net, ddim_ode.schedules.ddpm()), (1, 28, 28)
        what = "RANDOM WEIGHTS (the shipped ones are missing)"
    x = torch.randn((BATCH, *shape), generator=generator)
    y = torch.arange(BATCH) % 10
    t = torch.linspace(1000.0, 1.0, NET_STEPS)[:, None].repeat(1, BATCH).unbind(0)
    inside = [0.0]  # seconds in the network during one sample
    network, outside = model.net, []

    def watched(*args: Any, **cond: Any) -> Tensor:
        start = time.perf_counter()
        out = network(*args, **cond)
        inside[0] += time.perf_counter() - start
        return out

    @torch.no_grad()
    def bare() -> None:
        for k in range(NET_STEPS):
            network(x, t[k], y=y)

    def solve() -> None:
        start = time.perf_counter()
        ddim_ode.sample(model, x, "ddim", steps=NET_STEPS, cond={"y": y})
        wall = time.perf_counter() - start
        outside.append((wall - inside[0], inside[0]))

    def reset() -> None:
        clear_cache()
        inside[0] = 0.0

    bare()
    model.net = watched
    sampled, bared = race(
        [Contender("", NET_STEPS, solve, reset), Contender("", NET_STEPS, bare)],
        rounds,
        warm=False,
    )
    rest, within = np.array(outside).T

    def row(name: str, wall: np.ndarray, bare: np.ndarray) -> dict[str, Any]:
        low, mid, high = np.percentile(wall, [25, 50, 75]) * 1e6 / NET_STEPS
        return {
            "sampler": name,
            "plan cache": "off",
            "calls": str(NET_STEPS),
            "us/call": f"{mid:.0f}",
            "quartiles": f"{low:.0f}-{high:.0f}",
            "bare us/call": f"{np.median(bare) * 1e6 / NET_STEPS:.0f}",
            "wall ratio": (ratio(wall, bare), NET_TARGET),
        }

    rows = [
        row("ddim / nfe x bare network", sampled, bared),
        row("ddim / its own time in the network", rest + within, within),
    ]
    return rows, what


def cell(value: Any) -> str:
    """Text, or 'ratio (ratio) <= target ok'."""
    if value is None or isinstance(value, str):
        return value or ""
    pair, target = value
    digits = 4 if min(pair) > 0.9 and target == NET_TARGET else 2 if min(pair) > 0.1 else 3
    text = f"{pair[0]:.{digits}f} ({pair[1]:.{digits}f})"
    return text if target is None else f"{text} <= {target:g} {verdict(pair, target)}"


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """Columns aligned, the first to the left, the others to the right."""
    heads = [f"/ {c}" if c in REFERENCES else c for c in columns]
    body = [heads, *([cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in body) for i in range(len(columns))]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(line[1:], widths[1:]))]
        ).rstrip()
        for line in body
    ]
    return "\n".join([lines[0], "-" * sum(widths, 2 * (len(widths) - 1)), *lines[1:]])


def flat(rows: list[dict[str, Any]]) -> list[Row]:
    """One row a ratio, or a row without one."""
    found: list[Row] = []
    for row in rows:
        start = {column: row.get(column, "") for column in COLUMNS}
        pairs = {key: value for key, value in row.items() if isinstance(value, tuple)}
        for key, (pair, target) in pairs.items():
            medians = dict(zip(("ratio_of_medians", "median_of_ratios"), pair))
            found.append(
                dict(start, reference=key, **medians, target=target, verdict=verdict(pair, target))
            )
        if not pairs:
            found.append(start)
    return found


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Part 1 as bars, slowest at the top; a line from the lower to the upper quartile."""
    shown = [row for row in rows[1:] if row.get("quartiles")]
    shown.sort(key=lambda row: float(row["us/call"]))
    figure, (axis,) = panels(1, width=8.5, height=0.3 * len(shown) + 1.2)
    for i, row in enumerate(shown):
        cached = {"on": ", plan cached", "off": ", plan compiled in every run"}
        own = row["plan cache"] in cached
        package = "ddim_ode" if own else row["sampler"].split()[0]
        middle = float(row["us/call"])
        low, high = map(float, row["quartiles"].split("-", 1))
        axis.barh(i, middle, color=look(package)["color"], alpha=1 if own else 0.55, height=0.7)
        axis.plot([low, high], [i, i], color=INK, lw=1.2)
        axis.text(high * 1.06, i, f"{middle:.1f}", va="center", fontsize=9, color=INK)
    names = [("ddim_ode " if r["plan cache"] else "") + r["sampler"] for r in shown]
    names = [n + cached.get(r["plan cache"], "") for n, r in zip(names, shown)]
    axis.set_yticks(range(len(shown)), names, fontsize=9)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(plain))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(
        "µs per network call beside the network (log scale), lower is better", fontsize=10
    )
    axis.grid(False, axis="y")
    return figure


def main() -> None:
    args = arguments(__doc__, "30 and 3 rounds", "100 and 9 rounds").parse_args()
    torch.set_num_threads(1)
    run = Run("overhead", args, ["torchdiffeq", "diffusers"])
    rounds, net_rounds = (100, 9) if args.full else (30, 3)
    stub = stub_rows(rounds)
    real, what = net_rows(net_rounds)
    text = "\n".join(
        [
            f"{run.about}\n",
            f"{SHAPE} float32, {STEPS} steps, {rounds} interleaved rounds; us/call without the network;",
            "under a peer's name the ratio to it: of the medians (median of the rounds' ratios)\n",
            table(stub, (*COLUMNS, *REFERENCES)),
            f"\n{what}, batch {BATCH}, {NET_STEPS} steps, {net_rounds} interleaved rounds\n",
            table(real, (*COLUMNS, "bare us/call", "wall ratio")),
        ]
    )
    print(text.removeprefix(run.about).strip())
    run.save(flat(stub + real), draw(stub), text, rounds=rounds, net_rounds=net_rounds)


if __name__ == "__main__":
    main()
