"""Charts, rulers and grids: the same solver in every coordinate that it can be written in.

    python benchmarks/charts.py --quick       # the digits mixture, 8 noises
    python benchmarks/charts.py --full        # the shipped model, 20 noises

A chart is the gauge and clock in which the ODE is solved, a ruler the scale in which a multistep method
interpolates past velocities (Runge–Kutta methods read none), a grid where it steps. RMS error per pixel of
the end point to a converged solution, at 10 and 20 network calls (11 and 21 for Runge–Kutta, whose last
step is one call), guidance off: a table per family, dark is good. Multistep with 2 velocities is "ab2" in
chart eps with ruler sigma, "deis2" with log_sigma, and "dpmpp2m:exact" in chart data with log_sigma.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from common import Problem, Row, Run, arguments, compared, load_problem, pick
from drawing import INK, panels
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ddim_ode import Method
from ddim_ode.solvers.chart import CHARTS
from ddim_ode.solvers.methods import METHODS

GRIDS = ("trailing", "quadratic", "log_snr", "karras")
RULERS = ("clock", "sigma", "log_sigma", "t")  # clock: the chart's own
PAST = {"multistep, 2 velocities": 2, "multistep, 3 velocities": 3}
RUNGE_KUTTA = ("heun", "midpoint", "rk4")
NFE = (10, 20)
BEST, LOST = 0.01, 1.0  # the ends of the colours


def measure(problem: Problem, past: dict[str, int], rulers: Sequence[str]) -> Iterator[Row]:
    """A row per family, chart, ruler, grid and budget."""
    many, one = {}, {}
    for chart in CHARTS:
        for family, k in past.items():
            for ruler in rulers:
                scale = None if ruler == "clock" else ruler
                many[family, chart, ruler] = Method(
                    ruler, order=k, chart=chart, ruler=scale, past=k
                )
        one |= {(name, chart, ""): replace(METHODS[name], chart=chart) for name in RUNGE_KUTTA}
    for methods, budgets in ((many, NFE), (one, [nfe + 1 for nfe in NFE])):
        named = {"/".join(key): key for key in methods}
        solvers = {name: methods[key] for name, key in named.items()}
        for row in compared(problem, solvers, budgets, GRIDS):
            where = dict(zip(("family", "chart", "ruler"), named[row["method"]]))
            yield dict(where, grid=row["group"], nfe=row["budget"], error=row["rms"])


def report(rows: Sequence[Row]) -> None:
    """For each family and column the best chart and ruler."""
    print(f"{'best chart/ruler':24}" + "".join(f"{g:>26}" for g in GRIDS))
    for family, nfe in sorted({(row["family"], row["nfe"]) for row in rows}):
        cells = []
        for grid in GRIDS:
            best = min(pick(rows, family=family, grid=grid, nfe=nfe), key=lambda r: r["error"])
            name = "/".join(filter(None, (best["chart"], best["ruler"])))
            cells.append(f"{name} {best['error']:.3f}")
        head = f"{family.removeprefix('multistep, ')[:14]:14} {nfe:3} calls "
        print(head + "".join(f"{cell:>26}" for cell in cells))


def draw(rows: Sequence[Row], problem: str) -> Figure:
    families = list(dict.fromkeys(row["family"] for row in rows))
    blocks = [[f] for f in families if f not in RUNGE_KUTTA] + [list(RUNGE_KUTTA)]
    figure, axes = panels(len(blocks), width=4.6 * len(blocks), height=7.6)
    figure.suptitle(f"RMS error on {problem}, by chart, ruler and grid", fontsize=12, color=INK)
    shading = LogNorm(BEST, LOST)
    for axis, block in zip(axes, blocks):
        mine = [row for row in rows if row["family"] in block]
        errors = {
            ((r["family"], r["chart"], r["ruler"]), (r["grid"], r["nfe"])): r["error"] for r in mine
        }
        lines = list(dict.fromkeys(line for line, _ in errors))
        lines.sort(key=lambda line: (block.index(line[0]), list(CHARTS).index(line[1])))
        columns = [(grid, nfe) for grid in GRIDS for nfe in sorted({r["nfe"] for r in mine})]
        table = np.array([[errors[line, column] for column in columns] for line in lines])
        shown = np.nan_to_num(table, nan=np.inf).clip(BEST, LOST)
        axis.imshow(shown, cmap="viridis", norm=shading, aspect="auto")
        axis.grid(False)
        for (i, j), error in np.ndenumerate(table):
            small = f"{error:.3f}"[1:] if error < 1 else f"{error:.1f}"
            ink = "black" if shading(shown[i, j]) > 0.55 else "white"
            text = small if error < 10 else "lost"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=ink)
        names = [" ".join(filter(None, line[len(block) == 1 :])) for line in lines]
        axis.set_yticks(range(len(lines)), names, fontsize=8.5)
        ticks = [f"{grid} {nfe}" for grid, nfe in columns]
        axis.set_xticks(range(len(columns)), ticks, rotation=60, ha="right", fontsize=8.5)
        axis.set_title(block[0] if len(block) == 1 else "Runge–Kutta", fontsize=10.5)
    return figure


def main() -> None:
    args = arguments(__doc__, "digits, 8 noises, 2 rulers", "shipped model, 20 noises").parse_args()
    run = Run("charts", args)
    name, n = ("fashion-mnist", 20) if args.full else ("digits", 8)
    past = PAST if args.full else dict(list(PAST.items())[:1])
    rows = list(measure(load_problem(name, n), past, RULERS if args.full else RULERS[:2]))
    report(rows)
    run.save(rows, draw(rows, f"{name}, {n} noises"), problem=name, n=n)


if __name__ == "__main__":
    main()
