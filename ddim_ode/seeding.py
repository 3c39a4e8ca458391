"""Noise, one generator per sample.

Sample i depends on its own seed and on nothing else: not on the batch it is in, its place there, or
the device, since every draw is made on the CPU and moved. A seed has separate streams for its
start and for the noise of its steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .schedules import Schedule

_START, _STEP = 0, 1


def generator(seed: int, stream: int) -> torch.Generator:
    """The CPU generator of one stream of a seed."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or int(seed) < 0:
        raise ValueError(f"seed {seed!r} must be a whole number >= 0")
    state = np.random.SeedSequence([int(seed), stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def noise(
    shape: Sequence[int],
    schedule: Schedule,
    seeds: Sequence[int],
    sigma: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Start noise (len(seeds), *shape) at level σ (default σ(T)), the same on every device.

    shape: of ONE sample. Its standard deviation is 1 for variance-preserving schedules (their
    prior), and β̄(σ) otherwise: σ itself for ``ve``, σ/(1+σ) for ``flow``.

    >>> import ddim_ode
    >>> ddim_ode.noise((1, 28, 28), ddim_ode.schedules.ddpm(), seeds=[0, 1]).shape
    torch.Size([2, 1, 28, 28])
    """
    level = schedule.sigma_max if sigma is None else float(sigma)
    if not 0 < level <= schedule.sigma_max * (1 + 1e-9):
        raise ValueError(f"sigma={level:g} is outside (0, {schedule.sigma_max:g}]")
    scale = 1.0 if schedule.family == "vp" else float(schedule.scales(level)[1])
    draws = [torch.randn(tuple(shape), generator=generator(s, _START), dtype=dtype) for s in seeds]
    stacked = torch.stack(draws) if draws else torch.empty((0, *shape), dtype=dtype)
    return (stacked * scale).to(device)


class StepNoise:
    """Draws z (B, *) for one step after another, each row from its own sample's stream."""

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        if len(seeds) != like.shape[0]:
            raise ValueError(
                f"{len(seeds)} seeds for a batch of {like.shape[0]}; give one per sample"
            )
        self._generators = [generator(seed, _STEP) for seed in seeds]
        self._shape, self._dtype, self._device = like.shape[1:], like.dtype, like.device

    def __call__(self) -> Tensor:
        rows = [torch.randn(self._shape, generator=g, dtype=self._dtype) for g in self._generators]
        stacked = torch.stack(rows) if rows else torch.empty((0, *self._shape), dtype=self._dtype)
        return stacked.to(self._device)
