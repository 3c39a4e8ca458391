"""What pipelines and training loops ask of a scheduler beside its steps: ᾱ, β̄, and data with noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._base.checks import numbers
from .._base.tensors import check_floating, column
from ..denoising.denoiser import Denoiser
from ..schedules.schedule import Array


class ByTime(Tensor):
    """ᾱ² at the network times 0..T−1 (T,), as diffusers keeps ``alphas_cumprod``, which a network time that
    is not whole indexes as well; whatever is computed of it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    denoiser: Denoiser

    @classmethod
    def of(cls, denoiser: Denoiser) -> ByTime:
        schedule = denoiser.schedule
        whole = schedule.alpha_bar(np.arange(1.0, schedule.T + 1)) ** 2
        made = torch.tensor(whole, dtype=torch.float32).as_subclass(cls)
        made.denoiser = denoiser
        return made

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, Tensor):
            fractional, times = index.is_floating_point(), index.detach().cpu()
        else:
            fractional, times = isinstance(index, (float, np.floating)), index
        if not fractional:
            return super().__getitem__(index)
        alpha, _ = scales(self.denoiser, numbers("timestep", times))
        return torch.as_tensor(alpha**2).to(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> ByTime:
        return ByTime.of(self.denoiser)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return ByTime.of, (self.denoiser,)


def scales(denoiser: Denoiser, times: Array) -> tuple[Array, Array]:
    """ᾱ and β̄ at network times; ValueError for one that no data were noised at in training."""
    schedule, offset = denoiser.schedule, denoiser.time_offset
    t = times - offset
    off = ~((t > 0) & (t <= schedule.T + 1e-3))  # as float32 has it
    if off.any():
        raise ValueError(
            f"timesteps: {times[off].flat[0]:g} must be above {offset:g} and at most "
            f"{schedule.T + offset:g}"
        )
    return schedule.scales(schedule.sigma(np.minimum(t, schedule.T)))


def noised_at(
    samples: Tensor,
    noise: Tensor,
    timesteps: Any,
    names: tuple[str, str] = ("samples", "timesteps"),
) -> Array:
    """The network times (1,) or (B,) at which clean samples (B, *) get noise; ValueError for other shapes.

    names: Of the samples and the times, for messages.
    """
    whose, when = names
    check_floating(samples, whose)
    check_floating(noise, "noise")
    if noise.shape != samples.shape:
        raise ValueError(
            f"noise must have the shape of {whose}, {tuple(samples.shape)}, got {tuple(noise.shape)}"
        )
    host = timesteps.detach().cpu() if isinstance(timesteps, Tensor) else timesteps
    times = np.atleast_1d(numbers(when, host))
    if times.shape not in ((1,), (samples.shape[0],)):
        raise ValueError(
            f"{when} has shape {times.shape} for {samples.shape[0]} samples; give one or B"
        )
    return times


class Noising:
    """Data with noise, for a scheduler with a ``_denoiser``."""

    _denoiser: Denoiser

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = ᾱx₀ + β̄ε (B, *) at network times (B,), or one for all.

        ValueError for other shapes, or a time that no data were noised at in training.
        """
        alpha, beta = self._scales(original_samples, noise, timesteps)
        return alpha * original_samples + beta * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """ᾱε − β̄x₀ (B, *), what a v-network is trained to return; as :meth:`add_noise`."""
        alpha, beta = self._scales(sample, noise, timesteps)
        return alpha * noise - beta * sample

    def _scales(self, samples: Tensor, noise: Tensor, timesteps: Any) -> tuple[Tensor, Tensor]:
        """ᾱ and β̄ (B, 1, ...) of clean samples noised at network times."""
        times = noised_at(samples, noise, timesteps)
        alpha, beta = (column(scale, samples) for scale in scales(self._denoiser, times))
        return alpha, beta
