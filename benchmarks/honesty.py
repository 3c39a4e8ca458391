"""Honesty of the adaptive solves: end errors and reported errors where the exact flow is known.

    python benchmarks/honesty.py --quick        # 100 seeds
    python benchmarks/honesty.py --full         # 2,000 seeds

Two modes at ±2 of standard deviation 0.02 to 0.5, from σ = 80 to 10⁻³, rtol = atol = 10⁻² to 10⁻⁵; between
the modes runs a separatrix, where the flow itself amplifies by up to 10³. Per problem: how many end errors
lie within 10 × tolerance, how many of the others are *silent* (status success, and sol.error less than a
tenth of the error), the median of sol.error over the error, and the calls per sample. The figure has that
median by tolerance, a panel per method; the wider the modes, the larger the dots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from common import Row, Run, arguments, pick, told
from drawing import GREY, label, legend_below, log_axis, panels
from matplotlib.figure import Figure

import ddim_ode
from ddim_ode import exact, schedules

SCHEDULES = {
    "ve": schedules.ve(80.0),
    "cosine": schedules.cosine(),
    "exponential": schedules.exponential(),
}
TOP, BOTTOM = 80.0, 1e-3


def main() -> None:
    parser = arguments(__doc__, "100 seeds", "2,000 seeds")
    parser.add_argument("--methods", nargs="+", default=["rk45", "bosh3"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = Run("honesty", args)
    seeds = 2000 if args.full else 100
    rows = []
    for method in args.methods:
        rows += told(measure(method, seeds))
        print(verdict(method, rows).replace("\n", " "), "\n")
    run.save(rows, draw(rows), methods=args.methods, seeds=seeds)


def measure(method: str, seeds: int) -> Iterator[dict[str, Any]]:
    """One row per schedule, width of the modes and tolerance."""
    span = dict(sigma_max=TOP, sigma_min=BOTTOM, final="sigma_min")
    for name, schedule in SCHEDULES.items():
        x = ddim_ode.noise((1,), schedule, seeds=range(seeds), sigma=TOP, dtype=torch.float64)
        for std in (0.02, 0.1, 0.3, 0.5):
            model = exact.gaussian_mixture([0.5, 0.5], [-2.0, 2.0], [std**2] * 2, schedule)
            truth = model.flow(x, TOP, BOTTOM)
            for tol in (1e-2, 1e-3, 1e-4, 1e-5):
                sol = ddim_ode.sample(model, x, method, rtol=tol, atol=tol, max_nfe=10_000, **span)
                error = (sol.x - truth).abs()[:, 0].numpy()
                reported = sol.error.numpy()
                within = error <= 10 * tol
                silent = ~within & (reported < 0.1 * error) & (sol.status == "success")
                yield dict(
                    method=method,
                    schedule=name,
                    std=std,
                    tolerance=tol,
                    seeds=seeds,
                    within=float(within.mean()),
                    silent=int(silent.sum()),
                    reported_over_true=float(np.median(reported / np.maximum(error, 1e-15))),
                    calls=float(sol.sample_nfe.mean()),
                )


def verdict(method: str, rows: Sequence[Row]) -> str:
    mine = pick(rows, method=method)
    silent, least = sum(row["silent"] for row in mine), min(row["within"] for row in mine)
    return f"{method}: {silent} silent failures;\nat least {least:.1%} within 10 × tolerance"


def draw(rows: Sequence[Row]) -> Figure:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = panels(len(methods), sharey=True)
    widths = sorted({row["std"] for row in rows})
    for axis, method in zip(axes, methods):
        log_axis(axis, "x", fine=False)
        log_axis(axis, "y", fine=False)
        axis.axhline(1, color=GREY, lw=1)
        for i, (name, colour) in enumerate(zip(SCHEDULES, ("#332288", "#CC6677", "#DDAA33"))):
            shown = pick(rows, method=method, schedule=name)
            x = [row["tolerance"] * 1.25 ** (i - 1) for row in shown]
            sizes = [12 + 14 * widths.index(row["std"]) for row in shown]
            y = [row["reported_over_true"] for row in shown]
            axis.scatter(x, y, sizes, color=colour, alpha=0.8, label=name, marker="osD"[i])
        axis.invert_xaxis()
        ratio = "reported error / true error, median" if axis is axes[0] else ""
        label(axis, verdict(method, rows), "tolerance", ratio)
    legend_below(figure, axes, len(SCHEDULES))
    return figure


if __name__ == "__main__":
    main()
