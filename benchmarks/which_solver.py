"""Which solver, at how many network calls, on which grid, on the shipped model.

    python benchmarks/which_solver.py --quick       # 2 noises
    python benchmarks/which_solver.py --full        # 20 noises

RMS error per pixel of the end point against a converged solution of the same noises. Guidance is off.
The figure has a panel per grid and a line per method; what is lost leaves at the top.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from common import Row, Run, arguments, compared, load_problem
from drawing import curve, label, legend_below, log_scales, panels
from matplotlib.figure import Figure

METHODS = (
    *("ddim", "heun", "midpoint", "dpm3", "ab4", "ipndm", "deis3"),
    *("dpmpp2m", "dpmpp3m", "unipc2", "unipc3"),
)
GRIDS = ("trailing", "quadratic", "karras")
NFE = (5, 10, 20)


def main() -> None:
    args = arguments(__doc__, "2 noises", "20 noises").parse_args()
    run = Run("which_solver", args)
    n = 20 if args.full else 2
    errors = {
        (row["method"], row["group"], row["budget"]): row["rms"]
        for row in compared(load_problem("fashion-mnist", n), METHODS, NFE, GRIDS)
    }
    heads = {f"{grid} {nfe}": (grid, nfe) for grid in GRIDS for nfe in NFE}
    rows = [
        {"method": m} | {head: f"{errors[(m, *key)]:.4f}" for head, key in heads.items()}
        for m in METHODS
    ]
    for line in (("method", *heads), ("---", *["---:"] * len(heads)), *(r.values() for r in rows)):
        print(f"| {' | '.join(line)} |")
    run.save(rows, draw(rows), n=n)


def draw(rows: Sequence[Row]) -> Figure:
    figure, axes = panels(len(GRIDS), height=5.0, sharey=True)
    values = [float(row[f"{grid} {nfe}"]) for row in rows for grid in GRIDS for nfe in NFE]
    for axis, grid in zip(axes, GRIDS):
        log_scales(axis, NFE)
        for row in rows:
            curve(axis, row["method"], NFE, [float(row[f"{grid} {nfe}"]) for nfe in NFE])
        axis.set_ylim(min(values) / 1.3, 5 * float(np.median(values)))
        label(axis, f"grid {grid}", "network calls", "RMS error per pixel" * (axis is axes[0]))
    legend_below(figure, axes, 6)
    return figure


if __name__ == "__main__":
    main()
