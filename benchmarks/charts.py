"""Charts: the same Runge–Kutta method, solved in each chart, on the shipped model.

    python benchmarks/charts.py [--n 20] [--csv PATH]

RMS error per pixel of the end point against a converged solution of the same noises, for each chart,
grid and number of network calls. Guidance is off.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import load_problem, write_csv

from ddim_ode.solvers.chart import CHARTS

GRIDS = ("time", "quadratic", "log_snr", "karras")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--methods", nargs="+", default=["heun", "midpoint", "rk4"])
    parser.add_argument("--nfe", type=int, nargs="+", default=[11, 21, 41])
    parser.add_argument("--n", type=int, default=20, help="samples")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()

    problem = load_problem(args.model, args.n)
    rows = []
    print("method     chart   nfe  " + "".join(f"{grid:>11}" for grid in GRIDS))
    for method in args.methods:
        for chart in CHARTS:
            for nfe in args.nfe:
                errors = {
                    grid: problem.error(method, nfe=nfe, grid=grid, chart=chart) for grid in GRIDS
                }
                cells = "".join(f"{error:11.4f}" for error in errors.values())
                print(f"{method:10} {chart:6} {nfe:4}  {cells}", flush=True)
                rows.append(dict(method=method, chart=chart, nfe=nfe, **errors))
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
