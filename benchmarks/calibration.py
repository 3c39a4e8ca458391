"""What calibration gains: fitted plans against the best textbook sampler, on noises that no fit has seen.

    python benchmarks/calibration.py --quick
    python benchmarks/calibration.py --full --data DIR      # DIR: Fashion-MNIST's IDX files
    python benchmarks/calibration.py --full --data DIR --redraw

The error of a plan is the mean over the noises of the RMS error of its end state; the baseline is the best
on these very noises of all deterministic methods and variants on four grids and seven last levels
(unseen.py), which no user could have chosen. The functions ``on_...`` say what the five parts are. The
figure has the errors on the digits, and what is left of the baseline's. Intervals are 95 %: of a ratio of
means by a paired bootstrap, of a mean log ratio by Student's t.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import SEED, Problem, Row, Run, arguments, digits, labels, noises, pick, told
from drawing import GREY, INK, curve, label, log_scales, look, panels
from matplotlib.figure import Figure
from small_networks import networks
from torch import Tensor
from tqdm import tqdm
from unseen import UNSEEN, baseline, calibrated, ends, errors, judged, solved

import ddim_ode
from ddim_ode.evaluate import metrics
from ddim_ode.grids import make_grid
from ddim_ode.nets.data import load_images, to_unit
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
    nfe=(3, 4, 5, 6, 7, 8, 10, 12, 16, 20),
    n=128,
    unseen=512,
    many=(2, 5),
    shipped=({2.0: (5, 6, 8), 1.0: (5, 6, 8)}, 96),
    images=400,
    networks=6,
    transfer=(4, 5, 8, 10, 12),
    screen=(48, 32),
)
QUICK = Size((5,), 64, 64, (1, 1), ({1.0: (6,)}, 4), 0, 1, (5,), (4, 4))


# -- the five parts -----------------------------------------------------------------------------
def on_budgets(
    what: str, models: Iterable[tuple[str, ddim_ode.Denoiser]], budgets: Iterable[int], size: Size
) -> Iterable[Row]:
    """Models of 64 dimensions, both budgets of the search: digits, a mixture of 20 Gaussians, and trained,
    small networks of every kind of prediction, trained on the spot in scalings and schedules of their own
    (small_networks.py)."""
    for name, model in models:
        problem = solved(name, model, (64,), size.unseen)
        for nfe in budgets:
            best = baseline(problem, nfe, size.screen)
            for budget in BUDGETS:
                plan = calibrated(model, nfe, n=size.n, budget=budget, shape=(64,))
                yield dict(what=what, **judged(problem, plan, best))


def on_many(size: Size) -> Iterable[Row]:
    """Four schedules, two mixtures each, five sets of noises each."""
    mixtures, seeds = size.many
    s = ddim_ode.schedules
    schedules = (s.cosine(), s.vp(), s.exponential(), s.ve(80.0))
    for k, schedule in itertools.product(range(mixtures), schedules):
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
    """The plans that ship with the trained model, with the Fréchet distance of 400 images in the shipped
    classifier's features to the real test images: theirs, the baseline's and that of the ODE's own
    solution (without --data: left out)."""
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
        x, cond = noises(model, seeds)
        name, some = f"fashion-mnist, guidance {guidance:g}", labels(model, seeds[:n])
        problem = solved(name, model, model.shape, n, some)
        many = Problem("", model, x, cond, x)
        if target is not None:
            steady = make_grid("log_snr", model.schedule, 40)
            solution = frechet(ends(many, compile_plan("unipc2", model.schedule, steady)))
        for nfe in some_nfe or budgets:
            best = baseline(problem, nfe, screen)
            plan = model.calibrated(nfe)
            row = dict(what="shipped", **judged(problem, plan, best), guidance=guidance)
            if target is not None:
                row |= dict(frechet=frechet(ends(many, plan)))
                row |= dict(frechet_baseline=frechet(ends(many, best.plan)))
                row |= dict(frechet_solution=solution, images=len(x))
            yield row


def on_transfer(size: Size) -> Iterable[Row]:
    """Whether the fit of 6 calls serves other budgets: its levels, stretched to those calls, under the best
    textbook method for them, beside a fit of that budget."""
    model = digits()
    problem = solved("digits", model, (64,), size.unseen)
    source = calibrated(model, 6, n=size.n, budget="thorough")
    logs = np.log([node.sigma for node in source.nodes])
    for nfe in size.transfer:
        levels = np.exp(np.interp(np.linspace(0, 1, nfe), np.linspace(0, 1, len(logs)), logs))
        found = {}
        for name, method in METHODS.items():
            if method.adds_noise:
                continue
            plan = compile_plan(method, model.schedule, [*levels.tolist(), 0.0])
            if plan.nfe == nfe:
                found[name] = float(errors(problem, plan).mean())
        best = min(found, key=lambda name: found[name])
        own = judged(problem, calibrated(model, nfe, n=size.n, budget="thorough"), None)
        yield dict(what="transfer", **own, method_on_stretched=best, error_stretched=found[best])


# -- the picture --------------------------------------------------------------------------------
def draw(rows: list[Row]) -> Figure:
    figure, (left, right) = panels(2, height=4.8)
    mine = sorted(pick(rows, what="digits"), key=lambda row: row["nfe"])
    base = {int(row["nfe"]): row["error_baseline"] for row in mine}
    for axis in (left, right):
        log_scales(axis, [nfe for nfe in base if nfe not in (7, 16)])
    best = "best textbook sampler"
    curve(left, best, list(base), list(base.values()), color=INK, marker="s")
    for budget, marker, method in (("fast", "o", "unipc3"), ("thorough", "^", "ipndm")):
        some = pick(mine, budget=budget)
        x = [row["nfe"] for row in some]
        style = dict(color=look(method)["color"], marker=marker, ms=5.5, lw=1.8)
        curve(left, f"calibrated, {budget}", x, [row["error"] for row in some], **style)
        band = tuple([row[key] for row in some] for key in ("ratio_low", "ratio_high"))
        curve(right, f"digits, {budget}", x, [row["ratio"] for row in some], band, **style)
    for guidance, marker in ((1.0, "D"), (2.0, "s")):
        some = sorted(pick(rows, what="shipped", guidance=guidance), key=lambda row: row["nfe"])
        name = f"trained U-Net, guidance {guidance:g}, plans that ship"
        style = dict(color=GREY, marker=marker, ms=5.5, lw=1.8, ls=(0, (4, 2)))
        curve(right, name, [r["nfe"] for r in some], [r["ratio"] for r in some], **style)
    right.axhline(1.0, color=INK, lw=1.0)
    right.set_ylim(0.06, 1.4)
    calls, n = "network calls per sample", int(mine[0]["unseen"])
    error = f"mean RMS error to the converged end\nof {n} unseen noises"
    label(left, "Digits: the error", calls, error)
    label(right, "What is left of the error", calls, "error / error of the best textbook sampler")
    for axis, place in ((left, "upper right"), (right, "lower left")):
        axis.legend(fontsize=9.5, frameon=False, loc=place)
    return figure


def main() -> None:
    quick, full = "digits at 5 calls, few noises", "all five parts, about an hour"
    parser = arguments(__doc__, quick, full, redraw=True, data=True)
    names = ("digits", "many", "shipped", "trained", "transfer")
    parser.add_argument("--only", choices=names, help="run one part, and keep the other rows")
    also = "with --only shipped: at {}, and keep the other rows"
    parser.add_argument("--guidance", type=float, help=also.format("this scale"))
    parser.add_argument("--nfe", type=int, nargs="+", help=also.format("these"))
    args = parser.parse_args()
    size = FULL if args.full else QUICK
    run = Run("calibration", args, ("scipy", "scikit-learn"))
    if args.redraw:
        run.draw(draw(run.rows()))
        return
    torch.set_grad_enabled(False)
    rows: list[Row] = []
    small = itertools.islice(networks(), size.networks)
    parts = dict(
        digits=lambda: on_budgets("digits", [("digits", digits())], size.nfe, size),
        many=lambda: on_many(size),
        shipped=lambda: on_shipped(size, args.data, args.guidance, args.nfe),
        trained=lambda: on_budgets("trained", small, (5, 8), size),
        transfer=lambda: on_transfer(size),
    )
    for name in [args.only] if args.only else names:
        rows += told(tqdm(parts[name](), desc=name, unit="plan"))
    if args.only and run.path(".csv").exists():
        for row in run.rows():
            redone = args.guidance in (None, row.get("guidance"))
            redone = redone and (args.nfe is None or row["nfe"] in args.nfe)
            if row["what"] != args.only or not redone:
                rows.append(row)

    def place(row: Row) -> tuple[float, ...]:
        shipped = row["what"] == "shipped"
        return names.index(row["what"]), *((-row["guidance"], row["nfe"]) if shipped else ())

    rows.sort(key=place)
    whole = {row["what"] for row in rows} == set(names)
    run.save(rows, draw(rows) if whole else None, size=size._asdict())


if __name__ == "__main__":
    main()
