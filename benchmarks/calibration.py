"""What calibration gains: fitted plans against the best textbook sampler, on noises that no fit has seen.

    python benchmarks/calibration.py --quick
    python benchmarks/calibration.py --full --data DIR      # DIR: Fashion-MNIST's IDX files
    python benchmarks/calibration.py --full --data DIR --redraw

The error of a plan is the mean over the noises of the RMS error of its end state, against converged
solutions. The baseline is the best, on the very noises of the evaluation, of all deterministic methods of
the registry, variants that published code has included, on the grids quadratic, log_snr, karras, time with
σ_min at 1, 2, 3, 5, 10, 20 and 40 times σ(1): a choice that a user could not have made without solving for
the answer first. Calibration sees other noises, and searches its incumbent there.

(a) digits: a mixture of 20 Gaussians in 64 dimensions, 3 to 20 calls, both budgets. (b) many: four
schedules, two mixtures each, five sets of noises each. (c) the plans that ship with the trained model, with
the Fréchet distance of 400 images in the shipped classifier's features to the real test images (without
--data: left out). (d) trained: small networks of every kind of prediction, trained on the spot in scalings
and schedules of their own (small_networks.py), both budgets. (e) transfer: whether the fit of 6 calls
serves other budgets: its levels, stretched to as many calls, under the best textbook method for them,
beside a fit of that budget. Intervals are 95 %: of a ratio of means by a paired bootstrap, of a mean log
ratio by Student's t.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import (
    GREY,
    INK,
    SEED,
    Problem,
    Row,
    Run,
    arguments,
    digits,
    label,
    labels,
    log_scales,
    panels,
    read_csv,
)
from matplotlib.figure import Figure
from scipy.stats import t as student
from small_networks import networks
from torch import Tensor
from tqdm import tqdm

import ddim_ode
from ddim_ode import plots
from ddim_ode.evaluate import metrics
from ddim_ode.nets.data import load_images, to_unit
from ddim_ode.reference import METHOD, in_float64
from ddim_ode.solvers.compilation import plan as compile_plan
from ddim_ode.solvers.methods import METHODS, VARIANTS

GRIDS = ("quadratic", "log_snr", "karras", "time")
CUTS = (1, 2, 3, 5, 10, 20, 40)
UNSEEN = 100_000  # the first seed of an evaluation
BUDGETS = ("fast", "thorough")


class Size(NamedTuple):
    """nfe, n, unseen: of (a). many: mixtures and seeds of (b). shipped: budgets and noises of (c).
    images: for the Fréchet distance. networks: of (d). transfer: budgets of (e). screen: noises that all
    baselines run on, and how many of them go on."""

    nfe: tuple[int, ...]
    n: int
    unseen: int
    many: tuple[int, int]
    shipped: tuple[tuple[int, ...], int]
    images: int
    networks: int
    transfer: tuple[int, ...]
    screen: tuple[int, int]


FULL = Size(
    (3, 4, 5, 6, 7, 8, 10, 12, 16, 20),
    128,
    512,
    (2, 5),
    ((5, 6, 8), 96),
    400,
    6,
    (4, 5, 8, 10, 12),
    (48, 32),
)
QUICK = Size((5,), 64, 64, (1, 1), ((6,), 4), 0, 1, (5,), (4, 4))


# -- errors -------------------------------------------------------------------------------------
def ends(problem: Problem, plan: ddim_ode.Plan, n: int | None = None) -> Tensor:
    x = problem.x[:n]
    cond = None if problem.cond is None else {k: v[:n] for k, v in problem.cond.items()}
    parts = []
    for rows in torch.arange(len(x)).split(64):
        some = None if cond is None else {k: v[rows] for k, v in cond.items()}
        parts.append(ddim_ode.sample(problem.model, x[rows], plan=plan, cond=some).x)
    return torch.cat(parts)


def errors(problem: Problem, plan: ddim_ode.Plan, n: int | None = None) -> np.ndarray:
    difference = (ends(problem, plan, n) - problem.reference[:n]).double().flatten(1)
    return np.asarray(difference.square().mean(1).sqrt())


def solved(
    name: str, model: ddim_ode.Denoiser, shape: tuple[int, ...], n: int, cond: Any = None
) -> Problem:
    """n unseen noises and where the ODE takes them, by twice the steps that suffice."""
    x = ddim_ode.noise(shape, model.schedule, seeds=range(UNSEEN, UNSEEN + n))
    steady = np.isfinite(model.schedule.sigma_max)
    grid, method = ("log_snr", "unipc2") if steady else ("time", METHOD)
    ends = [
        torch.cat(
            [
                ddim_ode.sample(
                    in_float64(model),
                    x[rows].double(),
                    method,
                    steps=steps,
                    grid=grid,
                    cond=None if cond is None else {k: v[rows] for k, v in cond.items()},
                ).x
                for rows in torch.arange(n).split(64)
            ]
        )
        for steps in (100, 200)
    ]
    gap = float((ends[1] - ends[0]).flatten(1).square().mean(1).sqrt().mean())
    print(f"{name}: {n} unseen noises, reference off by {gap:.1e} at most")
    return Problem(name, model, x, cond, ends[1])


def baseline(problem: Problem, nfe: int, screen: tuple[int, int]) -> tuple[str, np.ndarray]:
    """The best textbook sampler of at most nfe calls on these noises, and its errors."""
    few, keep = screen
    x, cond = problem.x[:0], problem.cond and {k: v[:0] for k, v in problem.cond.items()}
    found = []
    names = [name for name in METHODS if name != "ddpm"]
    names += [f"{name}:{variant}" for variant, v in VARIANTS.items() for name in v.of]
    for name, grid, cut in itertools.product(names, GRIDS, CUTS):
        options = dict(nfe=nfe, grid=grid, sigma_min=cut * problem.model.schedule.sigma_min)
        try:
            plan = ddim_ode.sample(problem.model, x, name, cond=cond, **options).plan
        except ValueError:  # the method needs more calls, or cannot start at this level
            continue
        assert plan is not None
        found.append(
            (float(errors(problem, plan, few).mean()), f"{name}, {grid}, {cut} σ(1)", plan)
        )
    found = sorted((one for one in found if np.isfinite(one[0])), key=lambda one: one[0])[:keep]
    whole = [(name, errors(problem, plan)) for _, name, plan in found]
    return min(whole, key=lambda one: float(one[1].mean()))


def incumbent(plan: ddim_ode.Plan, model: ddim_ode.Denoiser) -> ddim_ode.Plan:
    """The textbook plan that a fit started from."""
    assert plan.fit is not None
    kept: Mapping[str, Any] = plan.fit["incumbent_plan"]
    grid = [float(sigma) for sigma in kept["grid"]]  # "inf" in plain data
    return compile_plan(kept["method"], model.schedule, grid, start=kept["start"])


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Ratio of the means, with a paired bootstrap interval."""
    draw = np.random.default_rng(SEED).integers(len(ours), size=(2000, len(ours)))
    low, high = np.quantile(ours[draw].mean(1) / theirs[draw].mean(1), [0.025, 0.975])
    return dict(ratio=float(ours.mean() / theirs.mean()), ratio_low=low, ratio_high=high)


def log_ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Mean of ln(ours/theirs), with Student's interval; 0 for the same plan."""
    values = np.log(ours / theirs)
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    middle = float(values.mean())
    return dict(log_ratio=middle, log_low=middle - half, log_high=middle + half)


def judged(problem: Problem, plan: ddim_ode.Plan, best: tuple[str, np.ndarray] | None) -> Row:
    """Errors of a plan, against its incumbent and the baseline."""
    assert plan.fit is not None
    ours = errors(problem, plan)
    before = errors(problem, incumbent(plan, problem.model))
    row = dict(
        model=problem.name,
        nfe=plan.nfe,
        budget=plan.fit["budget"],
        n=plan.fit["n"],
        seed=plan.fit["seed"],
        unseen=len(ours),
        calibrated=plan.fit["calibrated"],
        incumbent=plan.fit["incumbent"],
        error=float(ours.mean()),
        error_incumbent=float(before.mean()),
        **log_ratio(ours, before),
        net_evals_per_noise=plan.fit["net_evals"] / plan.fit["n"],
    )
    if best is not None:
        row |= dict(baseline=best[0], error_baseline=float(best[1].mean()), **ratio(ours, best[1]))
    return row


def calibrated(model: ddim_ode.Denoiser, nfe: int, **options: Any) -> ddim_ode.Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a warning says is in the row
        return ddim_ode.calibrate(model, nfe, progress=False, **options)


# -- the five parts -----------------------------------------------------------------------------
def on_digits(size: Size) -> Iterable[Row]:
    model = digits()
    problem = solved("digits", model, (64,), size.unseen)
    for nfe in size.nfe:
        best = baseline(problem, nfe, size.screen)
        for budget in BUDGETS:
            plan = calibrated(model, nfe, n=size.n, budget=budget)
            yield dict(what="digits", **judged(problem, plan, best))


def on_many(size: Size) -> Iterable[Row]:
    mixtures, seeds = size.many
    for k, schedule in itertools.product(
        range(mixtures),
        (
            ddim_ode.schedules.cosine(),
            ddim_ode.schedules.vp(),
            ddim_ode.schedules.exponential(),
            ddim_ode.schedules.ve(80.0),
        ),
    ):
        rng = np.random.default_rng(k)
        d, parts = (8, 5) if k % 2 == 0 else (32, 12)
        means, covs = rng.normal(size=(parts, d)), rng.uniform(0.01, 0.3, size=(parts, d))
        weights = rng.dirichlet(np.full(parts, 3.0))
        model = ddim_ode.exact.gaussian_mixture(weights, means, covs, schedule)
        problem = solved(f"{d}-D, {schedule.family}, {k}", model, (d,), size.unseen)
        for seed in range(seeds):
            plan = calibrated(model, 6, n=size.n, seed=1000 * seed)
            yield dict(what="many", schedule=repr(schedule), **judged(problem, plan, None))


def on_shipped(size: Size, data: Path | None) -> Iterable[Row]:
    budgets, n = size.shipped
    model = ddim_ode.load("fashion-mnist")
    seeds = range(UNSEEN, UNSEEN + max(n, size.images))
    problem = solved(
        "fashion-mnist", model, model.shape, n, {k: v[:n] for k, v in labels(model, seeds).items()}
    )
    features = metrics.classifier_features()
    target = None
    if data is not None and size.images:
        real = to_unit(load_images(data, "test").pixels)
        target = metrics.FeatureStatistics.of(real, features, keep=2000, seed=SEED)
    for nfe in budgets:
        best = baseline(problem, nfe, (min(size.screen[0], 4), min(size.screen[1], 12)))
        plan = model.calibrated(nfe)
        row = dict(what="shipped", **judged(problem, plan, best))
        if target is not None:
            x = ddim_ode.noise(model.shape, model.schedule, seeds=seeds)
            many = Problem("", model, x, labels(model, seeds), x)
            name, grid, cut = best[0].removesuffix(" σ(1)").split(", ")
            low = int(cut) * model.schedule.sigma_min
            none = {k: v[:0] for k, v in many.cond.items()}  # type: ignore[union-attr]
            theirs = ddim_ode.sample(
                model, x[:0], name, nfe=nfe, grid=grid, sigma_min=low, cond=none
            ).plan
            assert theirs is not None
            for key, one in (("frechet", plan), ("frechet_baseline", theirs)):
                moments = metrics.moments(features(ends(many, one)).astype(np.float64))
                row[key] = metrics.frechet_from_moments(*moments, target.mean, target.cov)
            row["images"] = len(x)
        yield row


def on_trained(size: Size) -> Iterable[Row]:
    for name, model in itertools.islice(networks(), size.networks):
        problem = solved(name, model, (64,), size.unseen)
        for nfe in (5, 8):
            best = baseline(problem, nfe, size.screen)
            for budget in BUDGETS:
                plan = calibrated(model, nfe, n=size.n, budget=budget, shape=(64,))
                yield dict(what="trained", **judged(problem, plan, best))


def on_transfer(size: Size) -> Iterable[Row]:
    model = digits()
    problem = solved("digits", model, (64,), size.unseen)
    source = calibrated(model, 6, n=size.n, budget="thorough")
    told = np.log([node.sigma for node in source.nodes])
    for nfe in size.transfer:
        levels = np.interp(np.linspace(0, 1, nfe), np.linspace(0, 1, len(told)), told)
        found = []
        for name in METHODS:
            if name == "ddpm":
                continue
            plan = compile_plan(METHODS[name], model.schedule, [*np.exp(levels).tolist(), 0.0])
            if plan.nfe == nfe:
                found.append((errors(problem, plan), name))
        best = min(found, key=lambda one: float(one[0].mean()))
        own = judged(problem, calibrated(model, nfe, n=size.n, budget="thorough"), None)
        yield dict(
            what="transfer",
            **own,
            method_on_stretched=best[1],
            error_stretched=float(best[0].mean()),
        )


# -- the picture --------------------------------------------------------------------------------
def draw(rows: list[Row]) -> Figure:
    """Errors of the digits over the calls, and what is left of the baseline's."""
    figure, (left, right) = panels(2, height=4.8)
    mine = [row for row in rows if row["what"] == "digits"]
    nfe = sorted({int(row["nfe"]) for row in mine})
    colours = dict(fast=plots.look("unipc3")["color"], thorough=plots.look("ipndm")["color"])
    for axis in (left, right):
        log_scales(axis, [k for k in nfe if k not in (7, 16)])
    base = {int(row["nfe"]): row["error_baseline"] for row in mine}
    left.plot(
        nfe, [base[k] for k in nfe], color=INK, marker="s", ms=5, label="best textbook sampler"
    )
    for budget, marker in (("fast", "o"), ("thorough", "^")):
        some = sorted((r for r in mine if r["budget"] == budget), key=lambda r: r["nfe"])
        x = [row["nfe"] for row in some]
        look = dict(color=colours[budget], marker=marker, ms=5.5, lw=1.8)
        left.plot(x, [row["error"] for row in some], label=f"calibrated, {budget}", **look)
        right.plot(x, [row["ratio"] for row in some], label=f"digits, {budget}", **look)
        bands = [[row[key] for row in some] for key in ("ratio_low", "ratio_high")]
        right.fill_between(x, *bands, color=colours[budget], alpha=0.15, lw=0)
    shipped = [row for row in rows if row["what"] == "shipped"]
    right.plot(
        [row["nfe"] for row in shipped],
        [row["ratio"] for row in shipped],
        color=GREY,
        marker="D",
        ms=5.5,
        lw=1.8,
        ls=(0, (4, 2)),
        label="trained U-Net, the plans that ship",
    )
    right.axhline(1.0, color=INK, lw=1.0)
    right.set_ylim(0.1, 1.4)
    calls = "network calls per sample"
    unseen = int(mine[0]["unseen"])
    label(
        left,
        "Digits: the error",
        calls,
        f"mean RMS error to the converged end\nof {unseen} unseen noises",
    )
    label(right, "What is left of the error", calls, "error / error of the best textbook sampler")
    for axis, place in ((left, "upper right"), (right, "lower left")):
        axis.legend(fontsize=9.5, frameon=False, loc=place)
    return figure


def main() -> None:
    parser = arguments(__doc__, "digits at 5 calls, few noises", "all five parts, about an hour")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--redraw", action="store_true", help="only draw the picture again")
    parser.add_argument(
        "--only",
        choices=("digits", "many", "shipped", "trained", "transfer"),
        help="run one part, and keep the other rows",
    )
    args = parser.parse_args()
    size = FULL if args.full else QUICK
    run = Run("calibration", args, ("scipy", "scikit-learn"))
    if args.redraw:
        draw(read_csv(run.path(".csv"))).savefig(run.path(".png"))
        return
    torch.set_grad_enabled(False)
    rows: list[Row] = []
    parts = dict(
        digits=lambda: on_digits(size),
        many=lambda: on_many(size),
        shipped=lambda: on_shipped(size, args.data),
        trained=lambda: on_trained(size),
        transfer=lambda: on_transfer(size),
    )
    for name in [args.only] if args.only else parts:
        for row in tqdm(parts[name](), desc=name, unit="plan"):
            rows.append(row)
            tqdm.write(" ".join(f"{k} {_short(v)}" for k, v in row.items()))
    if args.only and run.path(".csv").exists():
        rows += [row for row in read_csv(run.path(".csv")) if row["what"] != args.only]
    rows.sort(key=lambda row: list(parts).index(row["what"]))
    whole = {row["what"] for row in rows} == set(parts)
    run.save(rows, draw(rows) if whole else None, size=size._asdict())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
