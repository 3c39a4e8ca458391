"""What a round trip, encode and then decode, comes back to: measured, not estimated.

The order is seen by the same trip on every other level. That trip also shows how far the latent itself is
from converged; a round trip alone does not, since errors up and down may cancel (those of a reversible
method do so completely).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..denoising.denoiser import Denoiser
from ..schedules.schedule import Array
from ..solve.solution import RoundTrip, Solution, mean_square, norm_per_sample

Solve = Callable[[Denoiser, Tensor, Tensor | None, bool, Array | None], Solution]


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
        plain = model.replace(guidance=None)
        unguided = trip(plain, run(plain, x, None, True, None))
    nfe, rows = sum(sol.nfe for sol in spent), sum(sol.net_evals for sol in spent)
    return RoundTrip(error, order, gap, unguided, nfe, rows)


def _rounding(model: Denoiser, up: Solution) -> float:
    """About what rounding the latent does to the data: two units in its last place, on the way down."""
    top = max(sigma for sigma in np.asarray(up.sigmas) if np.isfinite(sigma))
    alpha = float(model.schedule.scales(top)[0])
    return 2 * torch.finfo(up.x.dtype).eps * mean_square(norm_per_sample(up.x)) ** 0.5 / alpha
