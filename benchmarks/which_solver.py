"""Which solver, at how many network calls, on which grid: the README's table, on the shipped model.

    python benchmarks/which_solver.py --quick       # 2 noises
    python benchmarks/which_solver.py --full        # 20 noises

RMS error per pixel of the end point against a converged solution of the same noises. Guidance is off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from common import (
    Row,
    Run,
    arguments,
    curve,
    label,
    legend_below,
    load_problem,
    log_scales,
    panels,
)
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
    problem = load_problem("fashion-mnist", n)
    heads = [f"{grid} {nfe}" for grid in GRIDS for nfe in NFE]
    rows = []
    print("| method | " + " | ".join(heads) + " |\n|---|" + "---:|" * len(heads))
    for method in METHODS:
        row: dict[str, object] = dict(method=method)
        for grid in GRIDS:
            for nfe in NFE:
                row[f"{grid} {nfe}"] = f"{problem.error(method, nfe=nfe, grid=grid):.4f}"
        rows.append(row)
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    run.save(rows, draw(rows), n=n)


def draw(rows: Sequence[Row]) -> Figure:
    """A panel per grid: error against network calls, a line per method; what is lost leaves at the top."""
    figure, axes = panels(len(GRIDS), height=5.0, sharey=True)
    errors = {
        (str(row["method"]), grid): [float(row[f"{grid} {nfe}"]) for nfe in NFE]
        for row in rows
        for grid in GRIDS
    }
    values = np.array(list(errors.values()))
    for axis, grid in zip(axes, GRIDS):
        log_scales(axis, NFE)
        for method in METHODS:
            curve(axis, method, NFE, errors[method, grid])
        axis.set_ylim(values.min() / 1.3, 5 * float(np.median(values)))
        label(axis, f"grid {grid}", "network calls", "RMS error per pixel" * (axis is axes[0]))
    legend_below(figure, axes, 6)
    return figure


if __name__ == "__main__":
    main()
