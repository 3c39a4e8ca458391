"""Noise, one generator per sample.

Sample i depends on its own seed and on nothing else: not on the batch it is in, its place there, or
the device, since every draw is made on the CPU and moved. A seed has separate streams for its
start, for the noise of its steps, and for the probes and the dequantisation of a likelihood.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ._checks import count, device_of, floating, seed_of
from .schedule import Schedule, check_schedule

_START, _STEP, PROBES, DEQUANTIZE = range(4)


def generator(seed: int, stream: int) -> torch.Generator:
    """The CPU generator of one stream of a seed."""
    seed_of(seed)
    sequence = np.random.SeedSequence(int(seed), spawn_key=(stream,))
    return torch.Generator().manual_seed(torch_seed(sequence))


def torch_seed(sequence: np.random.SeedSequence) -> int:
    """A seed that torch takes: 63 bits of the sequence."""
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def noise(
    shape: Sequence[int],
    schedule: Schedule,
    seeds: Sequence[int],
    sigma: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Start noise (len(seeds), *shape) at level σ (default σ(T)), the same on every device.

    On ``ve`` and ``flow`` its size is that of the level: give ``sigma=model.sigma_max`` for a model that
    starts lower than σ(T).

    shape: of ONE sample. Its standard deviation is 1 for variance-preserving schedules (their
    prior), and β̄(σ) otherwise: σ itself for ``ve``, σ/(1+σ) for ``flow``.

    >>> import ddim_ode
    >>> ddim_ode.noise((1, 28, 28), ddim_ode.schedules.ddpm(), seeds=[0, 1]).shape
    torch.Size([2, 1, 28, 28])
    """
    check_schedule(schedule)
    level = schedule.sigma_max if sigma is None else schedule.level(sigma)
    scale = prior_std(schedule, level)
    like = torch.empty((0, *sizes(shape)), dtype=floating(dtype))
    return (unit_noise(_listed(seeds), like) * scale).to(device_of(device))


def sizes(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one sample; ValueError unless it is whole numbers >= 1."""
    if not isinstance(shape, Sequence) or isinstance(shape, (str, bytes)):
        raise ValueError(f"shape={shape!r} must be that of ONE sample, such as (3, 32, 32)")
    return tuple(count("shape", size) for size in shape)


def unit_noise(seeds: Iterable[int], like: Tensor) -> Tensor:
    """The start noise of these seeds at unit scale, standard normal; samples like those of ``like``."""
    sources = [generator(seed, _START) for seed in seeds]
    return _draw(sources, like.shape[1:], like.dtype).to(like.device)


def prior_std(schedule: Schedule, sigma: float) -> float:
    """The standard deviation of start noise: 1 for variance-preserving schedules, else β̄(σ)."""
    return 1.0 if schedule.family == "vp" else float(schedule.scales(sigma)[1])


def check_seeds(seeds: Sequence[int], batch: int) -> list[int]:
    """The seeds as a list of ints, one per sample; ValueError otherwise."""
    if len(given := _listed(seeds)) != batch:
        raise ValueError(f"seeds={seeds!r} for a batch of {batch}; give one seed per sample")
    return given


def _listed(seeds: Sequence[int]) -> list[int]:
    try:
        given = list(seeds)
    except TypeError:
        raise ValueError(f"seeds={seeds!r} must be a sequence, one seed per sample") from None
    return [seed_of(seed) for seed in given]


class StepNoise:
    """Draws z (B, *) for one step after another, each row from its own sample's stream."""

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        self._generators = [generator(seed, _STEP) for seed in seeds]
        self._shape, self._dtype, self._device = like.shape[1:], like.dtype, like.device

    def __call__(self) -> Tensor:
        return _draw(self._generators, self._shape, self._dtype).to(self._device)


def _draw(
    generators: Sequence[torch.Generator], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    out = torch.empty((len(generators), *shape), dtype=dtype, device="cpu")
    for row, source in zip(out, generators):
        row.normal_(generator=source)
    return out
