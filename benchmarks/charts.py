"""Charts: the same Runge–Kutta method, solved in each chart, on the shipped model.

    python benchmarks/charts.py [--n 20] [--csv PATH]

RMS error per pixel of the end point against a converged solution of the same noises, for each chart,
grid and number of network calls. Guidance is off.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

import ddim_ode
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

    model = ddim_ode.load(args.model)
    x = ddim_ode.noise(model.shape, model.schedule, seeds=range(args.n))
    cond = {"y": torch.arange(args.n) % model.num_classes}
    reference, coarser = (
        ddim_ode.sample(model, x, "rk4", steps=n, grid="karras", cond=cond, progress=True).x
        for n in (160, 80)
    )
    floor = rms(reference - coarser)
    print(f"reference: rk4, 160 karras steps; against 80 steps it moves by {floor:.1e}\n")

    rows = []
    print("method     chart   nfe  " + "".join(f"{grid:>11}" for grid in GRIDS))
    for method in args.methods:
        for chart in CHARTS:
            for nfe in args.nfe:
                errors = {}
                for grid in GRIDS:
                    sol = ddim_ode.sample(
                        model, x, method, nfe=nfe, grid=grid, chart=chart, cond=cond
                    )
                    errors[grid] = rms(sol.x - reference)
                cells = "".join(f"{error:11.4f}" for error in errors.values())
                print(f"{method:10} {chart:6} {nfe:4}  {cells}", flush=True)
                rows.append(dict(method=method, chart=chart, nfe=nfe, **errors))
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def rms(difference: torch.Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


if __name__ == "__main__":
    main()
