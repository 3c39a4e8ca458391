"""When does step noise pay, how exact are the samplers that add it, and what does one path for a seed cost?

    python benchmarks/noise.py --quick
    python benchmarks/noise.py --full                            # the digits mixture, 500 noises
    python benchmarks/noise.py --full --only shipped --data DIR  # the shipped model; the others are kept
    python benchmarks/noise.py --full --redraw

On the digits every row is ``compare(metric="distribution")`` to 4,000 draws of the mixture: the unbiased
squared energy distance with its interval, whose root is called weak error here; "floor" is half the
interval of two halves of such draws. ``eta``: dpmpp2m with η by calls. ``sampler``: our methods with step
noise on two grids, diffusers' (SA-Solver apart) and k-diffusion's on their own, by defaults and with less
noise where they have an option for it; the best of each is taken from the same rows, which flatters all
alike. ``moments``: the same samplers and more on the digits' own Gaussian, where means and variances follow
exactly, without sampling: the Fréchet distance of the end to the data, per pixel; ours on two named grids
from σ = 80 to 0.02, and on the default one. ``path``: RMS, and the median over samples, to 800 steps of the
same seeds, on one path and with fresh draws: a share of the samples that falls with the step ends in
another mode, and makes the RMS. ``cost``: seconds of the draws of 50 steps. ``shipped``: the shipped
model's KID and Fréchet distance to real images and to its own converged ones, in its classifier's features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import (
    Row,
    Run,
    arguments,
    digits,
    end_states,
    installed,
    pick,
    quiet,
    race,
    rms,
    told,
)
from drawing import GREY, curve, label, log_axis, note, panels
from matplotlib.figure import Figure
from stochastic_peers import diffusers, k_diffusion
from torch import Tensor

import ddim_ode
from ddim_ode.comparison.distribution import Distances
from ddim_ode.denoising.seeding import StepNoise
from ddim_ode.evaluate import metrics
from ddim_ode.nets.data import load_images, to_unit
from ddim_ode.solve.brownian import PathNoise
from ddim_ode.solve.loop import integrate
from ddim_ode.solve.reference import given
from ddim_ode.solvers.methods import METHODS

PARTS = ("cost", "path", "moments", "eta", "sampler", "shipped")
OURS = ("dpmpp2m_sde", "sa2", "sa3", "er_sde2", "er_sde3", "seeds2")
ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
GRIDS = (None, "log_snr")
DRAWS = 4000
CONFIDENCE = 0.95
SHIPPED = ("ipndm", 60)  # the converged solver of steps_vs_quality.py


class Size(NamedTuple):
    """n: noises. eta_nfe, nfe: budgets. steps: of paths. fine: steps that these are held against."""

    n: int
    eta_nfe: tuple[int, ...]
    nfe: tuple[int, ...]
    steps: tuple[int, ...]
    fine: int
    seeds: int
    rounds: int


FULL = Size(500, (5, 10, 20, 50), (10, 20, 50), (25, 50, 100), 800, 256, 7)
QUICK = Size(40, (5,), (10,), (5, 10), 20, 16, 2)


# -- the digits -----------------------------------------------------------------------------------
def with_eta(eta: float) -> ddim_ode.Method:
    return replace(METHODS["dpmpp2m"], eta=eta or None, name=f"dpmpp2m η={eta:g}")


def compared(model: Any, methods: Any, nfe: Any, draws: Tensor, n: int, **options: Any) -> Any:
    return ddim_ode.compare(
        model, methods, nfe, shape=(64,), n=n, metric="distribution", reference=draws, batch=500,
        confidence=CONFIDENCE, **options,
    )  # fmt: skip


def of_eta(model: Any, draws: Tensor, size: Size) -> Iterator[Row]:
    result = compared(model, [with_eta(eta) for eta in ETAS], size.eta_nfe, draws, size.n)
    for row in result.rows:
        eta = float(row.method.partition("=")[2])
        yield dict(what="eta", model="digits", eta=eta, **numbers(row, result.distribution))


def numbers(row: Any, held: Any) -> dict[str, Any]:
    keys = ("nfe", "budget", "error", "error_low", "error_high", "grid")
    return {**{key: row[key] for key in keys}, "floor": held.floor}


def of_samplers(model: Any, draws: Tensor, size: Size) -> Iterator[Row]:
    """A row per sampler and budget."""
    methods = {name: METHODS[name] for name in OURS}
    methods |= {f"{name} η=0.5": replace(METHODS[name], eta=0.5) for name in ("sa2", "sa3")}
    methods |= {"dpmpp2m η=0.5": with_eta(0.5)}
    result = compared(model, methods, size.nfe, draws, size.n, grid=list(GRIDS))
    for row in result.rows:
        if row.error is not None:
            name = dict(package="ddim_ode", sampler=f"{row.method}, {row.grid}")
            yield dict(what="sampler", model="digits", **name, **numbers(row, result.distribution))
    held = Distances(given(draws, len(draws), (64,)), None, CONFIDENCE)
    x = ddim_ode.noise((64,), model.schedule, range(size.n))
    for package, samplers in (("k-diffusion", k_diffusion), ("diffusers", diffusers)):
        if not installed(package):
            continue
        for (name, run), budget in itertools.product(samplers(model, x), size.nfe):
            torch.manual_seed(0)
            with quiet(), torch.no_grad():
                made = run(budget)
            if made is None or not torch.isfinite(made[0]).all():
                continue
            values = held(made[0], [True] * size.n)
            low, high = held.interval(values)
            who = "SA-Solver" if name.startswith("SASolver") else package
            cells = dict(budget=budget, nfe=made[1], grid="own", floor=held.about.floor)
            cells |= dict(error=float(values.mean()), error_low=low, error_high=high)
            yield dict(what="sampler", model="digits", package=who, sampler=name, **cells)


# -- exact moments --------------------------------------------------------------------------------
class Gaussian:
    """The Gaussian of the digits in the axes of its covariance, on states (64, sources): every state is a
    combination of the start, of draws and of the number 1, which come last."""

    def __init__(self, model: Any) -> None:
        pixels = model.draw(20_000).double()
        variance, axes = torch.linalg.eigh(torch.cov(pixels.T))
        self.mean, self.variance = axes.T @ pixels.mean(0), variance.clamp(min=1e-6)
        self.schedule, self.made = model.schedule, 0

    def start(self, sources: int) -> Tensor:
        self.made = 0
        return torch.eye(sources, dtype=torch.float64)[:1].repeat(64, 1)

    def draw(self, *like: Any, **options: Any) -> Tensor:
        self.made += 1
        return torch.eye(SOURCES, dtype=torch.float64)[self.made : self.made + 1].repeat(64, 1)

    def __call__(self, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        alpha, beta = map(float, self.schedule.scales(sigma))
        one = torch.zeros_like(y)
        one[:, -1] = self.mean
        gain = (self.variance * alpha / (alpha**2 * self.variance + beta**2))[:, None]
        x0 = one + gain * (y - alpha * one)
        return x0, (y - alpha * x0) / beta

    def error(self, end: Tensor) -> float:
        """The Fréchet distance to the data, per pixel."""
        size = end[:, :-1].square().sum(1).sqrt() - self.variance.sqrt()
        return float(((end[:, -1] - self.mean).square() + size.square()).mean().sqrt())

    def solved(self, plan: ddim_ode.Plan) -> float:
        def evaluate(y: Tensor, k: int) -> Tensor:
            node = plan.nodes[k]
            return self(y, node.sigma)[0 if node.vector == "x0" else 1]

        return self.error(integrate(plan, evaluate, self.start(SOURCES), draw=self.draw).x)


SOURCES = 160  # the start, at most 2 × 50 draws, some of no use, and 1


def of_moments(model: Any, size: Size) -> Iterator[Row]:
    exact, x = Gaussian(model), None
    methods = [m for m in METHODS.values() if m.eta or m.rises is not None]
    free = [METHODS[name] for name in ("dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "dpmpp2s")]
    for eta, spec in itertools.product((0.25, 0.5, 1.0), free):
        methods.append(replace(spec, eta=eta, name=f"{spec.name} η={eta:g}"))
    for spec, grid, nfe in itertools.product(methods, (None, "log_snr", "karras"), size.nfe):
        low = None if grid is None else 0.02
        plan = ddim_ode.plan_for(model, spec, nfe=nfe, grid=grid, sigma_max=80.0, sigma_min=low)
        if {node.vector for node in plan.nodes} <= {"x0", "eps"}:
            name = dict(sampler=f"{spec.name}, {grid or 'default'}", grid=grid or "default")
            yield dict(what="moments", package="ddim_ode", **name, budget=nfe, nfe=plan.nfe,
                       error=exact.solved(plan))  # fmt: skip
    for package, samplers in (("k-diffusion", k_diffusion), ("diffusers", diffusers)):
        if not installed(package):
            continue
        x = exact.start(SOURCES)
        for (name, run), nfe in itertools.product(samplers(exact, x, exact.draw), size.nfe):
            exact.made = 0
            with quiet():
                made = run(nfe)
            if made is not None and torch.isfinite(made[0]).all():
                who = "SA-Solver" if name.startswith("SASolver") else package
                yield dict(what="moments", package=who, sampler=name, budget=nfe, nfe=made[1],
                           error=exact.error(made[0]))  # fmt: skip


# -- one path for a seed --------------------------------------------------------------------------
def of_paths(model: Any, size: Size) -> Iterator[Row]:
    seeds = range(size.seeds)
    x = ddim_ode.noise((64,), model.schedule, seeds, sigma=80.0)

    def end(steps: int, noise: str) -> Tensor:
        grid = np.append(np.geomspace(80.0, 0.02, steps), 0.0)
        options = dict(grid=grid, eta=1.0, seeds=seeds, noise=noise)
        return ddim_ode.sample(model, x, "dpmpp2m", **options).x

    for noise in ("path", "step"):
        fine = end(size.fine, noise)
        for steps in size.steps:
            gap = end(steps, noise) - fine
            median = float(gap.square().mean(1).sqrt().median())
            yield dict(what="path", model="digits", noise=noise, steps=steps, n=size.seeds,
                       error=rms(gap), median=median)  # fmt: skip


def of_cost(size: Size) -> Iterator[Row]:
    """Of the noise of 50 steps of a few images, in seconds: the draws alone."""
    levels = ddim_ode.grids.make_grid("karras", ddim_ode.schedules.ddpm(), 50)
    spans = list(itertools.pairwise(levels))[:-1]
    for batch, *shape in ((16, 1, 28, 28), (8, 4, 64, 64), (2, 3, 256, 256)):
        seeds, like = range(batch), torch.zeros(batch, *shape)
        names = ("path", "step")

        def drawn(kind: str, seeds: range = seeds, like: Tensor = like) -> None:
            source = PathNoise(seeds, spans, like) if kind == "path" else StepNoise(seeds, like)
            for _ in spans:
                source()

        runs = [lambda kind=kind: drawn(kind) for kind in names]
        seconds = np.median(race(runs, size.rounds, warm=False), axis=1)
        for name, second in zip(names, seconds):
            yield dict(what="cost", noise=name, shape="×".join(map(str, shape)), seconds=second,
                       ratio=second / seconds[1])  # fmt: skip


# -- the shipped model ----------------------------------------------------------------------------
def of_shipped(made: int, nfe: Any, data: Path | None, cache: Path) -> Iterator[Row]:
    """Distances of so many images to the test images, and to as many of the model's own, by η and calls."""
    model, features = ddim_ode.load("fashion-mnist"), metrics.classifier_features()
    seeds = range(10_000, 10_000 + made)
    others = range(seeds.stop, seeds.stop + made)
    method, calls = SHIPPED
    whole = ddim_ode.plan_for(model, method, nfe=calls)
    own = end_states(model, whole, others, cache)
    targets = {"model": own}
    if data is not None:
        targets["data"] = to_unit(load_images(data, "test").pixels)
    held = {}
    for against, images in targets.items():
        known = given(images.float(), len(images), images.shape[1:])
        held[against] = Distances(known, features, CONFIDENCE)
    frechet = {k: metrics.FeatureStatistics.of(v, features, keep=0) for k, v in targets.items()}

    def row(images: Tensor, **about: Any) -> Iterator[Row]:
        for against, distances in held.items():
            values = distances(images, [True] * len(images))
            low, high = distances.interval(values)
            distance = metrics.measure(
                images, frechet[against], features, metrics=["frechet_distance"]
            )["frechet_distance"]
            yield dict(what="shipped", model="fashion-mnist", against=against, n=len(images), **about,
                       error=float(values.mean()), error_low=low, error_high=high,
                       floor=distances.about.floor, frechet=distance)  # fmt: skip

    yield from row(end_states(model, whole, seeds, cache), sampler="converged", nfe=whole.nfe)
    for eta, budget in itertools.product(ETAS[::2], nfe):
        plan = ddim_ode.plan_for(model, replace(with_eta(eta), eta=None), nfe=budget, eta=eta)
        yield from row(end_states(model, plan, seeds, cache), eta=eta, nfe=plan.nfe, budget=budget)


# -- what it says ---------------------------------------------------------------------------------
def verdict(rows: list[Row]) -> list[str]:
    """The sentences that the figure supports."""
    said = []
    for budget in dict.fromkeys(row["budget"] for row in pick(rows, what="sampler")):
        best = best_of(pick(rows, what="sampler", budget=budget))
        if len(best) < 2:
            continue
        mine = best.pop("ddim_ode")
        other = min(best.values(), key=lambda row: row["error"])
        floor = mine["floor"]
        if max(mine["error"], other["error"]) < floor:
            said.append(
                f"{budget} calls, energy distance: our best and the others' are at the floor"
            )
            continue
        said.append(
            f"{budget} calls, energy distance: {weak(mine):.3g} ({mine['sampler']}) against "
            f"{weak(other):.3g} ({other['package']}: {other['sampler']})"
        )
    for budget in dict.fromkeys(row["budget"] for row in pick(rows, what="moments")):
        best = best_of(pick(rows, what="moments", budget=budget))
        if len(best) < 2:
            continue
        mine = best.pop("ddim_ode")
        other = min(best.values(), key=lambda row: row["error"])
        own = min(row["error"] for row in pick(rows, what="moments", budget=budget, grid="default"))
        said.append(
            f"{budget} calls, exact moments: {mine['error']:.2e} ({mine['sampler']}) is "
            f"{mine['error'] / other['error']:.2f} × {other['error']:.2e} ({other['package']}: "
            f"{other['sampler']}); ours on the default grid {own / other['error']:.2f} ×"
        )
    for noise in ("path", "step"):
        mine = pick(rows, what="path", noise=noise)
        steps = [row["steps"] for row in mine]
        for what, key in (("RMS", "error"), ("median", "median")):
            errors = [row[key] for row in mine]
            order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
            ends = f"{errors[0]:.3g} to {errors[-1]:.3g}"
            said.append(f"noise={noise}: {what} {ends} in {steps} steps, order {order:.2f}")
    for eta in sorted({row["eta"] for row in pick(rows, what="shipped") if "eta" in row}):
        own = pick(rows, what="shipped", against="data", eta=eta)
        values = ", ".join(f"{row['frechet']:.3g} at {row['budget']:.0f}" for row in own)
        said.append(f"shipped model, η={eta:g}: Fréchet distance to real images {values} calls")
    for row in pick(rows, what="cost", noise="path"):
        said.append(f"draws of {row['shape']}: path costs {row['ratio']:.2f} × fresh ones")
    return said


def weak(row: Row) -> float:
    return float(np.sqrt(max(row["error"], 0.0)))


def best_of(rows: list[Row]) -> dict[str, Row]:
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["error"]):
        best.setdefault(row["package"], row)
    return best


COLOURS = dict(zip(ETAS, ("#222222", "#332288", "#117733", "#DDAA33", "#CC6677")))
PACKAGES = {
    "ddim_ode, default grid": "#332288",
    "ddim_ode": "#332288",
    "SA-Solver": "#CC6677",
    "k-diffusion": "#777777",
    "diffusers": "#222222",
}


def draw(rows: list[Row]) -> Figure:
    shipped = pick(rows, what="shipped")
    count = 3 + bool(shipped)
    figure, axes = panels(count, width=4.6 * count, height=5.0)
    least = pick(rows, what="eta")[0]["floor"]

    def distances(axis: Any, mine: list[Row], floor: float) -> None:
        log_axis(axis, "x", sorted({row["budget"] for row in mine}))
        log_axis(axis, "y", fine=False)
        axis.axhspan(floor / 30, floor, color=GREY, alpha=0.12, lw=0)
        note(axis, "floor", (0.02, floor), (0, -10), xycoords=("axes fraction", "data"))
        axis.set_ylim(floor / 10, 1.5 * max(row["error_high"] for row in mine))

    def line(axis: Any, mine: list[Row], name: str, colour: str, floor: float) -> None:
        shown = {key: [max(row[key], floor / 10) for row in mine] for key in row_keys}
        ends = mine[0]["eta"] in (ETAS[0], ETAS[-1])  # the bands of all would hide one another
        band = (shown["error_low"], shown["error_high"]) if ends else None
        x = [row["budget"] for row in mine]
        curve(axis, name, x, shown["error"], band, color=colour, marker="o")

    row_keys = ("error", "error_low", "error_high")
    distances(axes[0], pick(rows, what="eta"), least)
    for eta in ETAS:
        line(axes[0], pick(rows, what="eta", eta=eta), f"η = {eta:g}", COLOURS[eta], least)
    label(
        axes[0],
        "Digits: dpmpp2m by η",
        "network calls",
        "squared energy distance\nto the model's own",
    )
    samplers = pick(rows, what="moments")
    budgets = sorted({row["budget"] for row in samplers})
    log_axis(axes[1], "x", budgets)
    log_axis(axes[1], "y", fine=False)
    for package, colour in PACKAGES.items():
        who, _, grid = package.partition(", ")
        own = pick(samplers, package=who, **(dict(grid="default") if grid else {}))
        error = [min(row["error"] for row in pick(own, budget=b)) for b in budgets]
        dashes = "--" if grid else "-"
        curve(axes[1], package, budgets, error, color=colour, marker="s", linestyle=dashes)
    label(axes[1], "Exact: the best with noise, of each", "network calls",
          "Fréchet distance per pixel,\nthe digits' Gaussian")  # fmt: skip
    for noise, colour in (("path", "#332288"), ("step", "#CC6677")):
        mine = pick(rows, what="path", noise=noise)
        steps = [row["steps"] for row in mine]
        for key, dashes in (("error", "-"), ("median", ":")):
            name = f"noise={noise!r}" + (", the median sample" if key == "median" else "")
            shown = [row[key] for row in mine]
            curve(axes[2], name, steps, shown, color=colour, marker="o", linestyle=dashes)
    log_axis(axes[2], "x", sorted({row["steps"] for row in pick(rows, what="path")}))
    log_axis(axes[2], "y")
    label(axes[2], "The same seeds", "steps, η = 1", "RMS to 800 steps")
    if shipped:
        mine = [row for row in shipped if "eta" in row]
        last = "data" if pick(mine, against="data") else "model"
        mine = pick(mine, against=last)
        log_axis(axes[3], "x", sorted({row["budget"] for row in mine}))
        for eta in sorted({row["eta"] for row in mine}):
            own = pick(mine, eta=eta)
            budgets, frechet = ([row[key] for row in own] for key in ("budget", "frechet"))
            curve(axes[3], f"η = {eta:g}", budgets, frechet, color=COLOURS[eta], marker="o")
        for row in pick(shipped, sampler="converged", against=last):
            axes[3].axhline(row["frechet"], color=GREY, lw=1, ls="--")
            note(axes[3], "converged, η = 0", (0.97, row["frechet"]), (0, 3),
                 xycoords=("axes fraction", "data"), ha="right")  # fmt: skip
        where = "real images" if last == "data" else "the model's own"
        title = f"Shipped model, {mine[0]['n']:.0f} images"
        label(axes[3], title, "network calls", f"Fréchet distance to {where}")
    for axis, columns in zip(axes, (3, 2, 1, 3)):  # each has its own colours
        where = dict(loc="upper center", bbox_to_anchor=(0.5, -0.16), columnspacing=1.2)
        axis.legend(ncols=columns, frameon=False, fontsize=9.5, **where)
    return figure


def main() -> None:
    parser = arguments(
        __doc__, "40 noises", "500 noises", redraw=True, data=True, cache="out/noise"
    )
    parts = "only these rows anew, and keep the others (all but shipped)"
    parser.add_argument("--only", nargs="+", choices=PARTS, help=parts)
    parser.add_argument("--images", type=int, default=1000, help="of the shipped model (1000)")
    args = parser.parse_args()
    run = Run("noise", args, ["scipy", "diffusers", "k-diffusion"])
    rows: list[Row] = run.rows() if args.redraw or args.only else []
    if args.redraw:
        print("\n".join(verdict(rows)))
        run.draw(draw(rows))
        return
    size, model = (FULL if args.full else QUICK), digits()
    draws = model.draw(DRAWS if args.full else 200)
    measured: dict[str, Callable[[], Iterator[Row]]] = dict(
        cost=lambda: of_cost(size),
        path=lambda: of_paths(model, size),
        moments=lambda: of_moments(model, size),
        eta=lambda: of_eta(model, draws, size),
        sampler=lambda: of_samplers(model, draws, size),
        shipped=lambda: of_shipped(args.images, size.nfe, args.data, args.cache),
    )
    with torch.no_grad():
        for part in args.only or PARTS[:-1]:
            rows = [row for row in rows if row["what"] != part]
            rows += told(measured[part]())
    print("\n".join(verdict(rows)))
    run.save(rows, draw(rows), verdict=verdict(rows), **size._asdict(), draws=DRAWS)


if __name__ == "__main__":
    main()
