"""Honesty of the adaptive solves: end errors and reported errors where the exact flow is known.

    python benchmarks/honesty.py [--method rk45] [--seeds 2000]

Two modes at ±2 of standard deviation 0.02 to 0.5, from σ = 80 to 10⁻³, rtol = atol = 10⁻² to 10⁻⁵. Per
problem: how many end errors lie within 10 × tolerance, how many of the others are *silent* (status
success, and sol.error less than a tenth of the error), the median of sol.error over the error, and the
calls per sample. Between the modes runs a separatrix, where the flow itself amplifies by up to 10³.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import ddim_ode
from ddim_ode import exact, schedules

SCHEDULES = {
    "ve": schedules.ve(80.0),
    "cosine": schedules.cosine(),
    "exponential": schedules.exponential(),
}
TOP, BOTTOM = 80.0, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="rk45")
    parser.add_argument("--seeds", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("schedule     std   tolerance  within 10 tol  silent  reported/true   calls")
    silent_in_all, least = 0, 1.0
    for name, schedule in SCHEDULES.items():
        x = ddim_ode.noise((1,), schedule, seeds=range(args.seeds), sigma=TOP, dtype=torch.float64)
        for std in (0.02, 0.1, 0.3, 0.5):
            model = exact.gaussian_mixture([0.5, 0.5], [-2.0, 2.0], [std**2] * 2, schedule)
            truth = model.flow(x, TOP, BOTTOM)
            for tol in (1e-2, 1e-3, 1e-4, 1e-5):
                options = dict(sigma_max=TOP, sigma_min=BOTTOM, final="sigma_min", max_nfe=10_000)
                sol = ddim_ode.sample(model, x, args.method, rtol=tol, atol=tol, **options)
                error = (sol.x - truth).abs()[:, 0].numpy()
                told = sol.error.numpy()
                within = error <= 10 * tol
                silent = int((~within & (told < 0.1 * error) & (sol.status == "success")).sum())
                silent_in_all, least = silent_in_all + silent, min(least, within.mean())
                ratio = np.median(told / np.maximum(error, 1e-15))
                calls = sol.sample_nfe.mean()
                print(
                    f"{name:12} {std:4.2f}  {tol:8.0e}  {within.mean():12.2%}  {silent:6d}  "
                    f"{ratio:13.1f}  {calls:6.1f}",
                    flush=True,
                )
    print(f"\nsilent in all: {silent_in_all}; least within 10 × tolerance: {least:.2%}")


if __name__ == "__main__":
    main()
