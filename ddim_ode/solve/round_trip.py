"""What a round trip, encode and then decode, comes back to: measured, not estimated.

The order is seen by the same trip on every other level. That trip also tells how far the latent itself is
from converged; a round trip alone does not, since errors up and down may cancel (those of a reversible
method do so completely).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._base.notebook import card
from ..denoising.denoiser import Denoiser
from ..schedules.schedule import Array
from .solution import Solution, norm_per_sample

Solve = Callable[[Denoiser, Tensor, Tensor | None, bool, Array | None], Solution]


@dataclass(repr=False)
class RoundTrip:
    """error (B,): RMS over a sample's entries of decode(encode(x)) − x, same method and grid. order: how
    that error falls with the number of steps, log(E'/E)/log(N/N') between N steps and every other level
    (E over all finite samples; None for an adaptive solve, for a single step, for a reversible method, and
    where the error is rounding). On a smooth field it is the method's own, or one more where that is even:
    then the leading errors of the two directions cancel.
    latent_gap (B,): RMS distance of the latent to the one of half the steps, about its own error for a
    method of first order and an upper estimate above; None where order is, but for a reversible
    method. unguided (B,): the error without guidance, where the model has it. nfe, net_evals: what all
    this cost beside the encode itself: N + N/2 + N/2 steps more, and 2N with guidance.
    """

    error: Tensor
    order: float | None
    latent_gap: Tensor | None
    unguided: Tensor | None
    nfe: int
    net_evals: int

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {value}" for name, value in self._facts() if value)
        return f"RoundTrip({said})"

    def _repr_html_(self) -> str:
        return card("Round trip", self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        def rms(values: Tensor | None) -> str:
            return "" if values is None else f"{mean_square(values) ** 0.5:.1e}"

        return [
            ("error", rms(self.error)),
            ("order", "–" if self.order is None else f"{self.order:.2f}"),
            # coming back says nothing of where one has been
            ("latent off by some", rms(self.latent_gap)),
            ("unguided error", rms(self.unguided)),
            ("nfe", str(self.nfe)),
        ]


def mean_square(error: Tensor) -> float:
    """The mean square over the finite samples of RMS errors (B,); NaN if there are none."""
    return float(error[error.isfinite()].double().square().mean())


def certified(
    model: Denoiser, x: Tensor, up: Solution, solve: Solve, reversible: bool
) -> RoundTrip:
    """The round trip of ``up``, which encoded x.

    solve(model, x, partner, rising, grid): the solver that made it; on its own levels where grid (falling)
    is None.
    """
    spent = []

    def run(
        model: Denoiser, x: Tensor, partner: Tensor | None, rising: bool, grid: Array | None
    ) -> Solution:
        spent.append(solve(model, x, partner, rising, grid))
        return spent[-1]

    def trip(model: Denoiser, up: Solution, grid: Array | None = None) -> Tensor:
        return norm_per_sample(run(model, up.x, up.partner, False, grid).x - x)

    error = trip(model, up)
    order = gap = unguided = None
    steps = 0 if isinstance(up.sigmas, list) else len(up.sigmas) - 1
    if (up.plan is not None or reversible) and steps > 1:
        falling = np.asarray(up.sigmas)[::-1]
        half = falling[np.rint(np.linspace(0, steps, steps // 2 + 1)).astype(int)]
        coarse = run(model, x, None, True, half)
        gap = norm_per_sample(coarse.x - up.x)
        if not reversible:
            fine, rough = mean_square(error), mean_square(trip(model, coarse, half))
            if min(fine, rough) ** 0.5 > _rounding(model, up):
                order = float(0.5 * np.log(rough / fine) / np.log(steps / (steps // 2)))
    if model.guidance is not None:
        plain = copy.copy(model)
        plain.guidance = None
        unguided = trip(plain, run(plain, x, None, True, None))
    nfe, rows = sum(sol.nfe for sol in spent), sum(sol.net_evals for sol in spent)
    return RoundTrip(error, order, gap, unguided, nfe, rows)


def _rounding(model: Denoiser, up: Solution) -> float:
    """About what rounding the latent does to the data: two units in its last place, on the way down."""
    top = max(sigma for sigma in np.asarray(up.sigmas) if np.isfinite(sigma))
    alpha = float(model.schedule.scales(top)[0])
    return 2 * torch.finfo(up.x.dtype).eps * mean_square(norm_per_sample(up.x)) ** 0.5 / alpha
