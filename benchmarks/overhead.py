"""What a sampler costs beside its network: microseconds per network call, side by side in one run.

    python benchmarks/overhead.py --quick       # 30 and 3 rounds
    python benchmarks/overhead.py --full        # 100 and 9, on an idle machine

Part 1, which the figure shows: every sampler on a (4, 3, 8, 8) float32 tensor, 100 steps, one core, with a
network that returns a ready tensor; less the time of that network, divided by the calls. All that a user
pays for each run is timed: argument checks, grid and plan here, ``set_timesteps`` in diffusers. Part 2:
``sample`` on a real U-Net against bare calls of it, and within ``sample`` the time outside the network.
A ratio is that of the medians and, in brackets, the median of the rounds' own; the larger one decides.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from common import Row, Run, arguments, labels, quiet, race, stub
from drawing import INK, bars, label, log_axis, look, panels
from matplotlib.figure import Figure
from torch import Tensor

import ddim_ode
from ddim_ode.solvers.compilation import clear_cache
from ddim_ode.solvers.methods import METHODS
from ddim_ode.solvers.rows import Table

SHAPE, STEPS = (4, 3, 8, 8), 100
BATCH, NET_STEPS = 64, 10
EULER, EULER_END = "torchdiffeq Euler", "torchdiffeq Euler, end only"
DDIM, UNIPC, DPM = "diffusers DDIM", "diffusers UniPC", "diffusers DPM++ 2M"
REFERENCES = (EULER, EULER_END, DDIM, UNIPC)
DDIM_TARGETS = {EULER: 0.5, DDIM: 0.2}
MEMORY_4_TARGETS = {EULER: 0.75, UNIPC: 0.1}
NET_TARGET = 1.05
COLUMNS = ("sampler", "plan cache", "calls", "us/call", "quartiles")


@dataclass
class Contender:
    """run(): one whole solve, ``calls`` network calls. cache: "off", "on", or "" for a peer's.

    targets: {reference: the largest ratio to it}.
    """

    name: str
    calls: int
    run: Callable[[], Any]
    cache: str = ""
    targets: dict[str, float] = field(default_factory=dict)


def ours(net: Callable[..., Tensor], x: Tensor) -> Iterator[Contender]:
    """Every single-call method of the ODE with memory 4, and ddim, heun and rk4; plan cache off and on."""
    model = ddim_ode.Denoiser(net, ddim_ode.schedules.ddpm())
    names = [name for name, method in METHODS.items() if not method.adds_noise]
    plans = {name: ddim_ode.plan_for(model, name, steps=STEPS) for name in names}
    memory_4 = [n for n, p in plans.items() if p.memory == 4 and p.nfe == STEPS]
    for name in ["ddim", "heun", "rk4", *memory_4]:
        targets = DDIM_TARGETS if name == "ddim" else MEMORY_4_TARGETS if name in memory_4 else {}

        def run(name: str = name) -> Tensor:
            return ddim_ode.sample(model, x, name, steps=STEPS).x

        yield Contender(name, plans[name].nfe, run, "off", targets)
        yield Contender(name, plans[name].nfe, run, "on", targets)


def torchdiffeq_euler(net: Callable[..., Tensor], x: Tensor) -> Iterator[Contender]:
    """``odeint`` with the network itself as f over the same STEPS intervals: in a variable that rises; as σ
    falls, where odeint wraps f once more; and without the states in between, by ``grid_constructor``."""
    torchdiffeq = importlib.import_module("torchdiffeq")
    sigmas = ddim_ode.grids.make_grid("time", ddim_ode.schedules.ddpm(), STEPS)
    falling = torch.tensor(sigmas, dtype=x.dtype)
    rising = falling[0] - falling

    def euler(name: str, grid: Tensor, **options: Any) -> Contender:
        @torch.no_grad()
        def run() -> Tensor:
            field = lambda t, y: net(y, t)  # noqa: E731
            return torchdiffeq.odeint(field, x, grid, method="euler", options=options)[-1]

        return Contender(name, STEPS, run)

    yield euler(EULER, rising)
    yield euler(f"{EULER}, falling", falling)
    yield euler(EULER_END, rising[[0, -1]], grid_constructor=lambda f, y, t: rising)


def diffusers_schedulers(net: Callable[..., Tensor], x: Tensor) -> Iterator[Contender]:
    """``scheduler.step`` in a plain loop, without clipping, guidance or a progress bar; DPM-Solver++ and
    UniPC at their default order 2."""
    with quiet():
        diffusers = importlib.import_module("diffusers")
        schedulers = {
            DDIM: diffusers.DDIMScheduler(clip_sample=False),
            UNIPC: diffusers.UniPCMultistepScheduler(),
            DPM: diffusers.DPMSolverMultistepScheduler(),
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


def ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(ratio of the medians, median of the ratios)."""
    return float(np.median(a) / np.median(b)), float(np.median(a / b))


def verdict(pair: tuple[float, float], target: float | None) -> str:
    return "" if target is None else "ok" if max(pair) <= target else "MISSED"


def line(name: str, cache: str, calls: int, us: np.ndarray, digits: int) -> dict[str, Any]:
    low, middle, high = (f"{q:.{digits}f}" for q in np.percentile(us, [25, 50, 75]))
    return dict(zip(COLUMNS, (name, cache, str(calls), middle, f"{low}-{high}")))


def stub_rows(rounds: int) -> list[dict[str, Any]]:
    """Part 1, one row a contender."""
    x, eps = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0)).unbind(0)
    net, t = stub(eps), x.new_zeros(())
    bare = Contender("(the network itself)", STEPS, lambda: [net(x, t) for _ in range(STEPS)])
    contenders, missing = [bare, *ours(net, x)], []
    for peer, names in (
        (torchdiffeq_euler, [EULER, EULER_END]),
        (diffusers_schedulers, [DDIM, UNIPC, DPM]),
    ):
        try:
            contenders += peer(net, x)
        except ImportError:
            missing += names
    for c in contenders[1:]:
        if not torch.isfinite(c.run()).all():  # a first run also settles what is built once
            raise RuntimeError(f"{c.name} ended in a state that is not finite")

    def before(i: int) -> None:
        if contenders[i].cache == "off":
            clear_cache()

    seconds = race([c.run for c in contenders], rounds, before)
    per_call = seconds / np.array([c.calls for c in contenders])[:, None] * 1e6
    per_call[1:] -= np.median(per_call[0])
    by_name = {c.name: us for c, us in zip(contenders, per_call)}
    rows = []
    for c, us in zip(contenders, per_call):
        rows.append(line(c.name, c.cache, c.calls, us, 2))
        for reference in REFERENCES:
            if reference in by_name and (c.cache or c.name in REFERENCES):
                rows[-1][reference] = (ratio(us, by_name[reference]), c.targets.get(reference))
    return rows + [{"sampler": name, "us/call": "not installed"} for name in missing]


def net_rows(rounds: int) -> list[dict[str, Any]]:
    """Part 2: ``sample`` against bare calls, and what ``sample`` does outside the network."""
    model = ddim_ode.load("fashion-mnist")
    generator = torch.Generator().manual_seed(0)
    x, cond = torch.randn((BATCH, *model.shape), generator=generator), labels(model, range(BATCH))
    times = torch.linspace(1000.0, 1.0, NET_STEPS)[:, None].repeat(1, BATCH).unbind(0)
    inside = [0.0]  # seconds in the network during one sample
    network, split = model.net, []

    def watched(*args: Any, **cond: Any) -> Tensor:
        start = time.perf_counter()
        out = network(*args, **cond)
        inside[0] += time.perf_counter() - start
        return out

    @torch.no_grad()
    def bare() -> None:
        for t in times:
            network(x, t, **cond)

    def solve() -> None:
        start = time.perf_counter()
        ddim_ode.sample(model, x, "ddim", steps=NET_STEPS, cond=cond)
        split.append((time.perf_counter() - start, inside[0]))

    def reset(i: int) -> None:
        clear_cache()
        inside[0] = 0.0

    bare()
    model.net = watched
    sampled, bared = race([solve, bare], rounds, reset, warm=False)
    rows = []
    for name, wall, base in (
        ("ddim / nfe x bare network", sampled, bared),
        ("ddim / its own time in the network", *np.array(split).T),
    ):
        row = line(name, "off", NET_STEPS, wall * 1e6 / NET_STEPS, 0)
        row["bare us/call"] = f"{np.median(base) * 1e6 / NET_STEPS:.0f}"
        rows.append(row | {"wall ratio": (ratio(wall, base), NET_TARGET)})
    return rows


def cell(value: Any) -> str:
    """Text, or 'ratio (ratio) <= target ok'."""
    if value is None or isinstance(value, str):
        return value or ""
    pair, target = value
    digits = 4 if min(pair) > 0.9 and target == NET_TARGET else 2 if min(pair) > 0.1 else 3
    text = f"{pair[0]:.{digits}f} ({pair[1]:.{digits}f})"
    return text if target is None else f"{text} <= {target:g} {verdict(pair, target)}"


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Table:
    heads = {column: f"/ {column}" if column in REFERENCES else column for column in columns}
    return Table({head: cell(row.get(key)) for key, head in heads.items()} for row in rows)


def flat(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """One row a ratio, or a row without one."""
    for row in rows:
        start = {column: row.get(column, "") for column in COLUMNS}
        ratios = {key: value for key, value in row.items() if isinstance(value, tuple)}
        for key, (pair, target) in ratios.items():
            medians = dict(zip(("ratio_of_medians", "median_of_ratios"), pair))
            yield dict(
                start, reference=key, **medians, target=target, verdict=verdict(pair, target)
            )
        if not ratios:
            yield start


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Slowest at the top; a line from the lower to the upper quartile."""
    shown = [row for row in rows[1:] if row.get("quartiles")]
    shown.sort(key=lambda row: float(row["us/call"]))
    figure, (axis,) = panels(1, width=8.5, height=0.3 * len(shown) + 1.2)
    cached = {"on": ", plan cached", "off": ", plan compiled in every run"}
    names, colours, ends = [], [], []
    for i, row in enumerate(shown):
        own = row.get("plan cache") in cached
        name = f"ddim_ode {row['sampler']}" if own else row["sampler"]
        names.append(name + cached.get(row.get("plan cache"), ""))
        colours.append((look(name.split()[0])["color"], 1 if own else 0.55))
        quartiles = [float(q) for q in row["quartiles"].split("-", 1)]
        axis.plot(quartiles, [i, i], color=INK, lw=1.2)
        ends.append(quartiles[1])
    values = [float(row["us/call"]) for row in shown]
    texts = [f"{value:.1f}" for value in values]
    bars(axis, names, values, texts, colours, ends=ends, height=0.7)
    log_axis(axis, "x")
    label(axis, "", "µs per network call beside the network (log scale), lower is better")
    return figure


def main() -> None:
    args = arguments(__doc__, "30 and 3 rounds", "100 and 9 rounds").parse_args()
    torch.set_num_threads(1)
    run = Run("overhead", args, ["torchdiffeq", "diffusers"])
    rounds, net_rounds = (100, 9) if args.full else (30, 3)
    stubs, real = stub_rows(rounds), net_rows(net_rounds)
    text = f"""{SHAPE} float32, {STEPS} steps, {rounds} interleaved rounds; us/call without the network;
under a peer's name the ratio to it: of the medians (median of the rounds' ratios)

{table(stubs, (*COLUMNS, *REFERENCES))}

the shipped Fashion-MNIST model, batch {BATCH}, {NET_STEPS} steps, {net_rounds} interleaved rounds

{table(real, (*COLUMNS, "bare us/call", "wall ratio"))}"""
    print(text)
    rows, text = list(flat(stubs + real)), f"{run.about}\n\n{text}"
    run.save(rows, draw(stubs), text, rounds=rounds, net_rounds=net_rounds)


if __name__ == "__main__":
    main()
