"""The problems that several benchmarks solve: a model, fixed noises, and where the ODE takes them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import ddim_ode


class Problem(NamedTuple):
    """x: start noises (n, *). cond: one class after another. reference: where the ODE takes x."""

    model: ddim_ode.Denoiser
    x: Tensor
    cond: dict[str, Tensor] | None
    reference: Tensor

    def error(self, method: str, **options: object) -> float:
        """RMS error per pixel of ``sample(model, x, method, ...)``."""
        sol = ddim_ode.sample(self.model, self.x, method, cond=self.cond, **options)
        return rms(sol.x - self.reference)


def load_problem(name: str, n: int) -> Problem:
    """n noises for ``"digits"`` or a model of that name, guidance off."""
    if name == "digits":
        model: ddim_ode.Denoiser = digits()
        x = ddim_ode.noise((64,), model.schedule, seeds=range(n), dtype=torch.float64)
        cond, fine, coarse = None, 600, 300
    else:
        trained = model = ddim_ode.load(name)
        x = ddim_ode.noise(trained.shape, model.schedule, seeds=range(n))
        cond, fine, coarse = {"y": torch.arange(n) % trained.num_classes}, 120, 60
    ends = [
        ddim_ode.sample(model, x, "rk4", steps=steps, grid="karras", cond=cond, progress=True).x
        for steps in (fine, coarse)
    ]
    gap = rms(ends[0] - ends[1])
    print(f"{name}: reference is rk4, {fine} karras steps; with {coarse} it moves by {gap:.1e}\n")
    return Problem(model, x, cond, ends[0])


def digits() -> ddim_ode.exact.ExactModel:
    """A mixture of 20 Gaussians fitted to 8 × 8 digits, with the usual discrete schedule."""
    from sklearn.datasets import load_digits
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture(20, covariance_type="full", reg_covar=2e-3, random_state=0)
    fit.fit(load_digits().data / 8 - 1)
    return ddim_ode.exact.gaussian_mixture(
        fit.weights_ / fit.weights_.sum(), fit.means_, fit.covariances_, ddim_ode.schedules.ddpm()
    )


def rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows with the same keys, the keys as header."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
