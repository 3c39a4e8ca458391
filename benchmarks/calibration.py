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
the Fréchet distance of 400 images in the shipped classifier's features to the real test images: theirs, the
baseline's and that of the ODE's own solution (without --data: left out). (d) trained: small networks of
every kind of prediction, trained on the spot in scalings and schedules of their own (small_networks.py),
both budgets. (e) transfer: whether the fit of 6 calls serves other budgets: its levels, stretched to those
calls, under the best textbook method for them, beside a fit of that budget. Intervals are 95 %: of a ratio
of means by a paired bootstrap, of a mean log ratio by Student's t.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
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
from small_networks import networks
from torch import Tensor
from tqdm import tqdm
from unseen import UNSEEN, baseline, calibrated, ends, errors, judged, solved

import ddim_ode
from ddim_ode.evaluate import metrics
from ddim_ode.grids import make_grid
from ddim_ode.nets.data import load_images, to_unit
from ddim_ode.plots import comparisons as plots
from ddim_ode.solvers.compilation import plan as compile_plan
from ddim_ode.solvers.methods import METHODS

BUDGETS = ("fast", "thorough")


class Size(NamedTuple):
    """nfe, n, unseen: of (a). many: mixtures and seeds of (b). shipped: {guidance: budgets} and noises of
    (c). images: for the Fréchet distance. networks: of (d). transfer: budgets of (e). screen: noises that
    all baselines run on, and how many of them go on."""

    nfe: tuple[int, ...]
    n: int
    unseen: int
    many: tuple[int, int]
    shipped: tuple[dict[float, tuple[int, ...]], int]
    images: int
    networks: int
    transfer: tuple[int, ...]
    screen: tuple[int, int]


FULL = Size(
    (3, 4, 5, 6, 7, 8, 10, 12, 16, 20),
    128,
    512,
    (2, 5),
    ({2.0: (5, 6, 8), 1.0: (5, 6, 8)}, 96),
    400,
    6,
    (4, 5, 8, 10, 12),
    (48, 32),
)
QUICK = Size((5,), 64, 64, (1, 1), ({1.0: (6,)}, 4), 0, 1, (5,), (4, 4))


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


def on_shipped(
    size: Size, data: Path | None, only: float | None, some_nfe: list[int] | None
) -> Iterable[Row]:
    guidances, n = size.shipped
    screen = (min(size.screen[0], 4), min(size.screen[1], 12))  # the network is a large one
    features = metrics.classifier_features()
    target = None
    if data is not None and size.images:
        real = to_unit(load_images(data, "test").pixels)
        target = metrics.FeatureStatistics.of(real, features, keep=2000, seed=SEED)

    def frechet(x: Tensor) -> float:
        assert target is not None
        moments = metrics.moments(features(x).astype(np.float64))
        return metrics.frechet_from_moments(*moments, target.mean, target.cov)

    for guidance, budgets in guidances.items():
        if only not in (None, guidance):
            continue
        model = ddim_ode.load("fashion-mnist", guidance=guidance)
        seeds = range(UNSEEN, UNSEEN + max(n, size.images))
        x, cond = ddim_ode.noise(model.shape, model.schedule, seeds=seeds), labels(model, seeds)
        some = {k: v[:n] for k, v in cond.items()}
        problem = solved(f"fashion-mnist, guidance {guidance:g}", model, model.shape, n, some)
        many = Problem("", model, x, cond, x)
        if target is not None:
            steady = make_grid("log_snr", model.schedule, 40)
            solution = frechet(ends(many, compile_plan("unipc2", model.schedule, steady)))
        for nfe in some_nfe or budgets:
            best = baseline(problem, nfe, screen)
            plan = model.calibrated(nfe)
            row = dict(what="shipped", **judged(problem, plan, best), guidance=guidance)
            if target is not None:
                row |= dict(
                    frechet=frechet(ends(many, plan)),
                    frechet_baseline=frechet(ends(many, best.plan)),
                    frechet_solution=solution,
                    images=len(x),
                )
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
    for guidance, marker in ((1.0, "D"), (2.0, "s")):
        some = [r for r in rows if r["what"] == "shipped" and r.get("guidance") == guidance]
        some.sort(key=lambda r: r["nfe"])
        look = dict(color=GREY, marker=marker, ms=5.5, lw=1.8, ls=(0, (4, 2)))
        name = f"trained U-Net, guidance {guidance:g}, plans that ship"
        right.plot([r["nfe"] for r in some], [r["ratio"] for r in some], label=name, **look)
    right.axhline(1.0, color=INK, lw=1.0)
    right.set_ylim(0.06, 1.4)
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
    parser.add_argument(
        "--guidance", type=float, help="with --only shipped: at this scale, and keep the other rows"
    )
    parser.add_argument(
        "--nfe", type=int, nargs="+", help="with --only shipped: at these, and keep the other rows"
    )
    args = parser.parse_args()
    size = FULL if args.full else QUICK
    run = Run("calibration", args, ("scipy", "scikit-learn"))
    if args.redraw:
        run.draw(draw(read_csv(run.path(".csv"))))
        return
    torch.set_grad_enabled(False)
    rows: list[Row] = []
    parts = dict(
        digits=lambda: on_digits(size),
        many=lambda: on_many(size),
        shipped=lambda: on_shipped(size, args.data, args.guidance, args.nfe),
        trained=lambda: on_trained(size),
        transfer=lambda: on_transfer(size),
    )
    for name in [args.only] if args.only else parts:
        for row in tqdm(parts[name](), desc=name, unit="plan"):
            rows.append(row)
            tqdm.write(" ".join(f"{k} {_short(v)}" for k, v in row.items()))
    if args.only and run.path(".csv").exists():
        for row in read_csv(run.path(".csv")):
            redone = args.guidance in (None, row.get("guidance")) and (
                args.nfe is None or row["nfe"] in args.nfe
            )
            if row["what"] != args.only or not redone:
                rows.append(row)

    def place(row: Row) -> tuple[float, ...]:
        shipped = row["what"] == "shipped"
        return list(parts).index(row["what"]), *((-row["guidance"], row["nfe"]) if shipped else ())

    rows.sort(key=place)
    whole = {row["what"] for row in rows} == set(parts)
    run.save(rows, draw(rows) if whole else None, size=size._asdict())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
