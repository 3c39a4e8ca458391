"""Which solver, at how many network calls, on which grid: the README's table, on the shipped model.

    python benchmarks/which_solver.py [--n 20] [--csv PATH]

RMS error per pixel of the end point against a converged solution of the same noises. Guidance is off.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import load_problem, write_csv

METHODS = (
    *("ddim", "heun", "midpoint", "dpm3", "ab4", "ipndm", "deis3"),
    *("dpmpp2m", "dpmpp3m", "unipc2", "unipc3"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--grids", nargs="+", default=["trailing", "quadratic", "karras"])
    parser.add_argument("--n", type=int, default=20, help="samples")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()

    problem = load_problem(args.model, args.n)
    heads = [f"{grid} {nfe}" for grid in args.grids for nfe in args.nfe]
    rows = []
    print("| method | " + " | ".join(heads) + " |\n|---|" + "---:|" * len(heads))
    for method in METHODS:
        row: dict[str, object] = dict(method=method)
        for grid in args.grids:
            for nfe in args.nfe:
                row[f"{grid} {nfe}"] = f"{problem.error(method, nfe=nfe, grid=grid):.4f}"
        rows.append(row)
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
