"""The problem that several benchmarks solve: the shipped model from fixed noises, and its converged end."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import ddim_ode
from ddim_ode.nets.pretrained import PretrainedModel


class Problem(NamedTuple):
    """x: start noises (n, *). cond: one class after another. reference: where the ODE takes x."""

    model: PretrainedModel
    x: Tensor
    cond: dict[str, Tensor]
    reference: Tensor

    def error(self, method: str, **options: object) -> float:
        """RMS error per pixel of ``sample(model, x, method, ...)``."""
        sol = ddim_ode.sample(self.model, self.x, method, cond=self.cond, **options)
        return rms(sol.x - self.reference)


def load_problem(name: str, n: int) -> Problem:
    """n noises for the model of that name; guidance off. Prints how far the reference is converged."""
    model = ddim_ode.load(name)
    x = ddim_ode.noise(model.shape, model.schedule, seeds=range(n))
    cond = {"y": torch.arange(n) % model.num_classes}
    fine, coarse = (
        ddim_ode.sample(model, x, "rk4", steps=steps, grid="karras", cond=cond, progress=True).x
        for steps in (120, 60)
    )
    print(f"reference: rk4, 120 karras steps; with 60 it moves by {rms(fine - coarse):.1e}\n")
    return Problem(model, x, cond, fine)


def rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Rows with the same keys, the keys as header."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
