"""The model's own clock: grids of a profile against the best that a search can find, and adaptive solves.

    python benchmarks/clock.py --quick
    python benchmarks/clock.py --full             # a mixture and six networks trained on the spot
    python benchmarks/clock.py --full --shipped   # of the shipped model; the rows of the others are kept
    python benchmarks/clock.py --full --redraw

All errors are the mean over noises that no profile saw of the RMS to their converged ends. "default" is the
best of six multistep methods on the default grid, "named" the best of them on the named grids as they come,
"searched" the best of them on 4 grids with 8 last levels each, chosen on the very noises it is measured
on. "profile" is the method that a profile recommends on the grid that it makes, with a 95 % bootstrap
interval of its ratio to "searched". Adaptive solves have a row for each tolerance. The figure shows the
ratios to "searched" (left) and the calls of adaptive solves for an error (right).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Row, Run, arguments, digits, labels, pick, read_csv, told
from drawing import curve, label, legend_below, log_axis, panels
from matplotlib.figure import Figure
from small_networks import networks

import ddim_ode
from ddim_ode.denoising.problem import Problem
from ddim_ode.solve.reference import solve as converged
from ddim_ode.solvers.design import CUTS
from ddim_ode.solvers.screens import TRIED

GRIDS = ("quadratic", "log_snr", "karras", "time")
ADAPTIVE = ("unipc2", "unipc3", "bosh3", "rk45", "torchdiffeq:dopri5")
UNSEEN = 1000  # the first seed
TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
BOOTSTRAPS = 1000


class Case(NamedTuple):
    name: str
    model: ddim_ode.Denoiser
    shape: tuple[int, ...]
    n: int
    nfe: tuple[int, ...]


def cases(full: bool) -> Iterator[Case]:
    nfe = (5, 8, 10, 15, 20) if full else (5, 8)
    n = 64 if full else 4
    yield Case("digits", digits(), (64,), n, nfe)
    for name, model in networks() if full else ():
        yield Case(name, model, (64,), n, nfe)


def shipped() -> Iterator[Case]:
    for scale in (1.0, 2.0):
        model = ddim_ode.load("fashion-mnist", guidance=scale).replace(profile=None)
        yield Case(f"fashion-mnist ×{scale:g}", model, (1, 28, 28), 12, (5, 10, 20))


def main() -> None:
    parser = arguments(__doc__, "the mixture, 4 noises", "7 models, 64 noises", redraw=True)
    parser.add_argument(
        "--shipped", action="store_true", help="the shipped model alone, beside the rows of before"
    )
    args = parser.parse_args()
    run = Run("clock", args, ["scipy", "torchdiffeq"])
    if args.redraw:
        run.draw(draw(read_csv(run.path(".csv"))))
        return
    rows: list[Row] = []
    if args.shipped:
        rows += [row for row in run.rows() if not row["model"].startswith("fashion-mnist")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in shipped() if args.shipped else cases(args.full):
            rows += told(measured(case))
    print(verdict(rows))
    run.save(rows, draw(rows), unseen=UNSEEN)


def measured(case: Case) -> Iterator[dict[str, Any]]:
    model = case.model
    seeds = range(UNSEEN, UNSEEN + case.n)
    cond = labels(model, seeds) if case.name.startswith("fashion") else None
    x = ddim_ode.noise(case.shape, model.schedule, seeds, sigma=model.sigma_max)
    with torch.no_grad():
        exact = converged(Problem(model, cond), x, goal=None)
    truth = exact.x

    def errors(**options: Any) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            end = ddim_ode.sample(model, x, cond=cond, **options).x.double()
        return (end - truth).square().flatten(1).mean(1).sqrt().numpy()

    about = dict(model=case.name, reference_error=exact.error)
    of_classes = (lambda index: labels(model, index.tolist())) if cond else None
    prof = ddim_ode.profile(model, shape=case.shape, cond=of_classes, progress=False)
    for nfe in case.nfe:
        before = prof.net_evals
        found = searched(model, nfe, errors)
        best = min(found.values(), key=np.mean)
        recommended = prof.recommend(nfe)
        mine = errors(method=recommended.method, nfe=nfe, grid=prof)
        low, high = ratio_interval(mine, best)
        yield dict(
            about,
            what="grid",
            nfe=nfe,
            searched=float(best.mean()),
            searched_is=" ".join(map(str, min(found, key=lambda key: found[key].mean()))),
            default=min(float(e.mean()) for key, e in found.items() if key[1] == "default"),
            named=min(float(e.mean()) for key, e in found.items() if key[2] in (None, 1)),
            profile=float(mine.mean()),
            ratio=float(mine.mean() / best.mean()),
            ratio_low=low,
            ratio_high=high,
            method=recommended.method,
            expected=recommended.error,
            net_evals=prof.net_evals - before + (before if nfe == case.nfe[0] else 0),
        )
    for method in ADAPTIVE:
        for tol in TOLERANCES:
            options = dict(dense=False) if ":" not in method else {}
            with torch.no_grad():
                sol = ddim_ode.sample(model, x, method, rtol=tol, atol=tol, cond=cond, **options)
            error = (sol.x.double() - truth).square().flatten(1).mean(1).sqrt()
            yield dict(
                about,
                what="adaptive",
                method=method,
                tolerance=tol,
                calls=float(sol.sample_nfe.mean()),
                error=float(error.mean()),
                rejected=float(sol.rejected.mean()),
            )


def searched(
    model: ddim_ode.Denoiser, nfe: int, errors: Any
) -> Mapping[tuple[str, str, int | None], Any]:
    """{(method, grid, cut): errors (n,)}."""
    found = {}
    for method in TRIED:
        for grid in (*GRIDS, "trailing", None):
            for cut in CUTS if grid in GRIDS else (None,):
                end = None if cut is None else cut * model.schedule.least_cut
                try:
                    own = errors(method=method, nfe=nfe, grid=grid, sigma_min=end)
                except ValueError:  # no such grid has so few steps
                    continue
                found[(method, grid or "default", cut)] = own
    return found


def ratio_interval(mine: Any, best: Any) -> tuple[float, float]:
    """Of the ratio of the means, the same noises drawn for both."""
    draw = np.random.default_rng(0).integers(len(mine), size=(BOOTSTRAPS, len(mine)))
    low, high = np.quantile(mine[draw].mean(1) / best[draw].mean(1), [0.025, 0.975])
    return float(low), float(high)


def verdict(rows: list[Row]) -> str:
    cells = pick(rows, what="grid")
    ratio = np.array([row["ratio"] for row in cells])
    beaten = np.mean([row["profile"] <= row["default"] * 1.0001 for row in cells])
    named = max(row["profile"] / row["named"] for row in cells)
    return (
        f"profile / searched in {len(cells)} cells: median {np.median(ratio):.2f}, at most 1.25 in "
        f"{np.mean(ratio <= 1.25):.0%}, largest {ratio.max():.2f}; default beaten or tied in {beaten:.0%}; "
        f"largest to the best named {named:.2f}"
    )


def draw(rows: list[Row]) -> Figure:
    figure, (left, right) = panels(2, height=5.2)
    cells = pick(rows, what="grid")
    models = list(dict.fromkeys(row["model"] for row in rows))
    log_axis(left, "y", fine=False)
    left.axhline(1, color="#555555", lw=1)
    for k, (what, colour, marker) in enumerate(
        (("default", "#BBBBBB", "s"), ("named", "#DDAA33", "D"), ("profile", "#004488", "o"))
    ):
        x = [models.index(row["model"]) + 0.2 * (k - 1) for row in cells]
        y = [row[what] / row["searched"] for row in cells]
        left.scatter(x, y, 22, color=colour, marker=marker, label=what, alpha=0.85)
    left.set_xticks(
        range(len(models)), [name.split(",")[0] for name in models], rotation=35, ha="right"
    )
    label(left, "At 5 to 20 calls, a point for each", "", "error / that of the best searched")
    left.legend(loc="lower left", fontsize=8)
    log_axis(right, "x", fine=False)
    log_axis(right, "y", fine=False)
    first = models[min(1, len(models) - 1)]
    for method in ADAPTIVE:
        mine = pick(rows, what="adaptive", model=first, method=method)
        curve(
            right,
            method.replace(":", " "),
            [row["calls"] for row in mine],
            [row["error"] for row in mine],
        )
    mine = pick(rows, what="grid", model=first)
    right.plot(
        [row["nfe"] for row in mine],
        [row["profile"] for row in mine],
        "-o",
        color="#004488",
        label="profile's grids",
    )
    label(right, f"Adaptive solves, {first}", "network calls a sample", "RMS error")
    legend_below(figure, (right,), 3)
    return figure


if __name__ == "__main__":
    main()
