"""Charts, rulers and grids: the same solver in every coordinate that it can be written in.

    python benchmarks/charts.py --quick       # the digits mixture, 8 noises
    python benchmarks/charts.py --full        # the shipped model, 20 noises

A chart is the gauge and clock in which the ODE is solved, a ruler the scale in which a multistep method
interpolates past velocities, a grid where it steps; all three are arguments of ``ddim_ode.Method`` and
``sample``. Runge–Kutta methods read no ruler. RMS error per pixel of the end point to a converged solution
of the same noises, at 10 and 20 network calls (11 and 21 for Runge–Kutta, whose last step is one call).
Known names are points of this table: multistep with 2 velocities is "ab2" in chart eps with ruler sigma,
"deis2" with log_sigma, and "dpmpp2m:exact" in chart data with log_sigma. Guidance is off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from common import INK, Problem, Row, Run, arguments, load_problem
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import ddim_ode
from ddim_ode.solvers.chart import CHARTS

GRIDS = ("trailing", "quadratic", "log_snr", "karras")
RULERS = ("clock", "sigma", "log_sigma", "t")  # clock: the chart's own
PAST = {"multistep, 2 velocities": 2, "multistep, 3 velocities": 3}
RUNGE_KUTTA = ("heun", "midpoint", "rk4")
NFE = (10, 20)
BEST, LOST = 0.01, 1.0  # the ends of the colours


def measure(problem: Problem, past: dict[str, int], rulers: Sequence[str]) -> Iterator[Row]:
    """A row per family, chart, ruler, grid and budget."""
    for chart in CHARTS:
        for family, velocities in past.items():
            for ruler in rulers:
                method = ddim_ode.Method(
                    f"{chart}/{ruler}",
                    order=velocities,
                    chart=chart,
                    ruler=None if ruler == "clock" else ruler,
                    past=velocities,
                )
                for grid, nfe in ((g, n) for g in GRIDS for n in NFE):
                    error = problem.error(method, nfe=nfe, grid=grid)
                    yield dict(
                        family=family, chart=chart, ruler=ruler, grid=grid, nfe=nfe, error=error
                    )
        for name in RUNGE_KUTTA:
            for grid, nfe in ((g, n + 1) for g in GRIDS for n in NFE):
                error = problem.error(name, nfe=nfe, grid=grid, chart=chart)
                yield dict(family=name, chart=chart, ruler="", grid=grid, nfe=nfe, error=error)


def report(rows: Sequence[Row]) -> None:
    """For each family and column the best chart, and how far off the worst is."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    print(f"{'best chart/ruler':24}" + "".join(f"{g:>26}" for g in GRIDS))
    for family in families:
        for nfe in sorted({row["nfe"] for row in rows if row["family"] == family}):
            cells = []
            for grid in GRIDS:
                mine = [
                    r for r in rows if (r["family"], r["grid"], r["nfe"]) == (family, grid, nfe)
                ]
                best = min(mine, key=lambda row: row["error"])
                name = "/".join(filter(None, (best["chart"], best["ruler"])))
                cells.append(f"{name} {best['error']:.3f}")
            print(f"{family.removeprefix('multistep, ')[:14]:14} {nfe:3} calls "
                  + "".join(f"{cell:>26}" for cell in cells))  # fmt: skip


def draw(rows: Sequence[Row], problem: str) -> Figure:
    """A table of errors per family, coloured: dark is good."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    blocks = [[f] for f in families if f not in RUNGE_KUTTA] + [list(RUNGE_KUTTA)]
    figure = Figure(figsize=(4.6 * len(blocks), 7.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"RMS error on {problem}, by chart, ruler and grid", fontsize=12, color=INK)
    shading = LogNorm(BEST, LOST)
    for axis, block in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks):
        mine = [row for row in rows if row["family"] in block]
        lines = list(dict.fromkeys((r["family"], r["chart"], r["ruler"]) for r in mine))
        lines.sort(key=lambda line: (block.index(line[0]), list(CHARTS).index(line[1])))
        columns = [(grid, nfe) for grid in GRIDS for nfe in sorted({r["nfe"] for r in mine})]
        errors = {
            ((r["family"], r["chart"], r["ruler"]), (r["grid"], r["nfe"])): r["error"] for r in mine
        }
        table = np.array([[errors[line, column] for column in columns] for line in lines])
        shown = np.nan_to_num(table, nan=np.inf).clip(BEST, LOST)
        axis.imshow(shown, cmap="viridis", norm=shading, aspect="auto")
        for (i, j), error in np.ndenumerate(table):
            text = (
                "lost" if not error < 10 else f"{error:.1f}" if error >= 1 else f"{error:.3f}"[1:]
            )
            ink = "black" if shading(shown[i, j]) > 0.55 else "white"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=ink)
        names = [
            " ".join(w for w in ([f] if len(block) > 1 else []) + [c, r] if w) for f, c, r in lines
        ]
        axis.set_yticks(range(len(lines)), names, fontsize=8.5)
        ticks = [f"{grid} {nfe}" for grid, nfe in columns]
        axis.set_xticks(range(len(columns)), ticks, rotation=60, ha="right", fontsize=8.5)
        axis.set_title(block[0] if len(block) == 1 else "Runge–Kutta", fontsize=10.5)
    return figure


def main() -> None:
    parser = arguments(__doc__, "digits, 8 noises, 2 rulers", "shipped model, 20 noises")
    args = parser.parse_args()
    run = Run("charts", args)
    name, n = ("fashion-mnist", 20) if args.full else ("digits", 8)
    problem = load_problem(name, n)
    past = PAST if args.full else dict(list(PAST.items())[:1])
    rows = list(measure(problem, past, RULERS if args.full else RULERS[:2]))
    report(rows)
    run.save(rows, draw(rows, f"{name}, {n} noises"), problem=name, n=n)


if __name__ == "__main__":
    main()
