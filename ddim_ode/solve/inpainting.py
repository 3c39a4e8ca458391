"""Inpainting by replacement: at each level of a plan x ← ᾱ x₀ + β̄ z where x₀ is known, with one z."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .._base.notebook import brief
from .._base.tensors import check_state
from ..denoising.seeding import check_seeds, unit_noise
from ..schedules.schedule import Schedule


class Known:
    """The part of pictures that is known, for ``sample(..., known=)``: inpainting by replacement.

    After each step of a fixed plan the known part is ᾱ x0 + β̄ z of the level reached, and x0 itself at the
    end. The rest follows its own ODE beside it, which sees the known part only through the network. That
    leans towards the conditional distribution and does not reach it: between two entries of correlation 0.8
    the mean goes half of the way (Lugmayr et al. 2022 see the same in images,
    https://arxiv.org/abs/2201.09865, section 4).

    Args:
        x0: The pictures (B, *); what they hold outside the mask is not used.
        mask: bool, of a shape that broadcasts to (B, *), True where x0 is known.
        seeds: One per sample, of the noise z that the known part has at every level. With those of the
            start noise, x at the first level is one noise throughout.

    Raises:
        ValueError: Shapes that do not fit.

    >>> import ddim_ode, torch
    >>> model = ddim_ode.exact.gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]], ddim_ode.schedules.cosine())
    >>> known = ddim_ode.Known(torch.tensor([[2.0, 0.0]]), torch.tensor([True, False]), seeds=[0])
    >>> x_T = ddim_ode.noise((2,), model.schedule, seeds=[0])
    >>> ddim_ode.sample(model, x_T, steps=50, known=known).x[0, 0].item()
    2.0
    """

    def __init__(self, x0: Tensor, mask: Tensor, seeds: Sequence[int]) -> None:
        self.x0 = check_state(x0)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask must be a bool tensor, True where x0 is known, got {got}")
        try:
            self.mask = mask.expand(x0.shape)
        except RuntimeError:
            raise ValueError(
                f"mask of shape {tuple(mask.shape)} must broadcast to x0's {tuple(x0.shape)}"
            ) from None
        self.seeds = check_seeds(seeds, len(x0))

    def __repr__(self) -> str:
        share = float(self.mask.float().mean())
        return f"Known(x0={brief(self.x0)}, {share:.0%} of it known)"

    def bind(
        self, sigmas: Sequence[float], schedule: Schedule, like: Tensor
    ) -> Callable[[Tensor, int], Tensor]:
        """``project(x, k)``: x (B, *) at level k of a plan, with the known part in its place.

        Everything goes to the device of ``like`` here; projecting neither synchronises nor copies.
        """
        if self.x0.shape != like.shape:
            raise ValueError(
                f"known.x0 has shape {tuple(self.x0.shape)}, and x has {tuple(like.shape)}"
            )
        x0, mask = self.x0.to(like), self.mask.to(like.device)
        z = unit_noise(self.seeds, like)
        alphas, betas = (c.tolist() for c in schedule.scales(np.array(sigmas)))

        def project(x: Tensor, k: int) -> Tensor:
            return torch.where(mask, torch.add(x0 * alphas[k], z, alpha=betas[k]), x)

        return project
