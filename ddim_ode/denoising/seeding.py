"""Noise, one generator per sample.

Sample i depends on its own seed and on nothing else: not on the batch it is in, its place there, or the
device, since every draw is made on the CPU and moved. A seed has separate streams for its start, for the
noise of its steps, and for the probes and the dequantisation of a likelihood. Seed and stream are the two
words of a Philox key (Salmon et al. 2011). Draws are made in float64 and rounded to the dtype asked for, so
that the noise of a seed is the same numbers in any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import count, device_of, floating, seed_of, shown, single
from ..schedules.schedule import Schedule, check_schedule

GENERATOR = "philox"  # recorded beside seeds: what they are seeds of
_START, _STEP, PROBES, DEQUANTIZE, PATH = range(5)
_AHEAD = 2**28  # bytes of step noise that are drawn and moved at once


def generator(seed: int, stream: int) -> np.random.Generator:
    """The generator of one stream of a seed."""
    key = np.array([seed_of(seed), stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


class NodeGenerator:
    """The random bits of many numbered nodes in one stream of a seed, in any order: each node has its own
    part of the stream, 2^128 draws long."""

    def __init__(self, seed: int, stream: int) -> None:
        self._source = generator(seed, stream).bit_generator
        self._state: Any = self._source.state  # as it is before the first draw

    def fill(self, node: int, part: int, out: npt.NDArray[np.uint64]) -> None:
        """Those of a node into ``out`` (n,)."""
        self._state["state"]["counter"][:] = 0, 0, node, part
        self._source.state = self._state
        out[:] = self._source.random_raw(out.size)


def normals(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Standard normals (B, 2n) of random bits (B, n), by Box & Muller (1958), in single precision.

    For many numbers at once it takes a third of the time of a generator's own, and neither the order of
    rows nor their number changes a bit.
    """
    words = bits.astype("<u8", copy=False).view("<u4")
    n = bits.shape[1]
    radius, angle = (half.astype(np.float32) for half in (words[:, :n], words[:, n:]))
    radius += np.float32(0.5)  # of 2³² equal parts, in the middle
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2.0 * math.pi * 2.0**-32)
    out = np.empty((len(bits), 2 * n), dtype=np.float32)
    for half, function in ((out[:, :n], np.cos), (out[:, n:], np.sin)):
        function(angle, out=half)
        half *= radius
    return out


def torch_seed(seed: int, stream: int, k: int = 0) -> int:
    """A seed of 32 bits for torch's own generators; the uses k of a stream have different ones."""
    first = np.random.SeedSequence((seed_of(seed), stream)).generate_state(1)[0]
    return (int(first) + k) % 2**32


def noise(
    shape: Sequence[int],
    schedule: Schedule,
    seeds: Sequence[int],
    sigma: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Start noise (len(seeds), *shape), the same on every device.

    Its standard deviation is 1 for variance-preserving schedules (their prior), and β̄(σ) otherwise: σ for
    ``ve``, σ/(1+σ) for ``flow``.

    Args:
        shape: Of ONE sample.
        schedule: Of the model.
        seeds: One per sample.
        sigma: The level (default σ(T)). On ``ve`` and ``flow``, give ``model.sigma_max`` for a model that
            starts lower than σ(T).
        device: Where the noise goes.
        dtype: Of the noise.

    >>> import ddim_ode
    >>> ddim_ode.noise((1, 28, 28), ddim_ode.schedules.ddpm(), seeds=[0, 1]).shape
    torch.Size([2, 1, 28, 28])
    """
    check_schedule(schedule)
    level = schedule.sigma_max if sigma is None else schedule.level(sigma)
    scale = prior_std(schedule, level)
    chosen, place = _checked(seeds), device_of(device)
    sources = (generator(seed, _START) for seed in chosen)
    return _draw(sources, (len(chosen), *sizes(shape)), floating(dtype), scale).to(place)


def sizes(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one sample; ValueError unless it is whole numbers >= 1."""
    if not isinstance(shape, Sequence) or isinstance(shape, (str, bytes, bytearray)):
        raise ValueError(f"shape={shown(shape)} must be that of ONE sample, such as (3, 32, 32)")
    return tuple(count("shape", size) for size in shape)


def unit_noise(seeds: Iterable[int], like: Tensor) -> Tensor:
    """The start noise of these seeds at unit scale, standard normal; samples like those of ``like``."""
    sources = (generator(seed, _START) for seed in seeds)
    return _draw(sources, like.shape, like.dtype).to(like.device)


def prior_std(schedule: Schedule, sigma: float) -> float:
    """The standard deviation of start noise: 1 for variance-preserving schedules, else β̄(σ)."""
    return 1.0 if schedule.family == "vp" else float(schedule.scales(sigma)[1])


def check_seeds(seeds: Sequence[int], batch: int) -> list[int]:
    """The seeds as a list of ints, one per sample; ValueError otherwise."""
    if len(several := _checked(seeds)) != batch:
        raise ValueError(f"seeds={shown(seeds)} for a batch of {batch}; give one seed per sample")
    return [seed_of(seed) for seed in several]


def _checked(seeds: Sequence[int]) -> Sequence[int]:
    """The seeds, if they are several with a length; else a ValueError."""
    try:
        if not single(seeds) and len(seeds) >= 0:
            return seeds
    except OverflowError:
        raise ValueError(
            f"seeds={shown(seeds)} are too many; take a part of them at a time"
        ) from None
    except TypeError:
        pass
    raise ValueError(f"seeds={shown(seeds)} must be a sequence, one seed per sample")


class StepNoise:
    """Draws z (B, *) on the CPU for one step after another, each row from its own sample's stream."""

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        self._generators = [generator(seed, _STEP) for seed in seeds]
        self._shape, self._dtype = like.shape, like.dtype

    def __call__(self) -> Tensor:
        return _draw(self._generators, self._shape, self._dtype)


def drawn_ahead(draw: Callable[[], Tensor], count: int, like: Tensor) -> Callable[[], Tensor]:
    """The same draws, made on the CPU and moved before they are asked for: all of them, or of a large state
    as many at once as memory is set aside for. On the CPU, where nothing is moved, each in its turn."""
    if like.device.type == "cpu":
        return draw
    block = max(1, _AHEAD // max(1, like.numel() * like.element_size()))

    def blocks() -> Iterator[Tensor]:
        for first in range(0, count, block):
            made = torch.stack([draw() for _ in range(min(block, count - first))])
            yield from made.to(like.device).unbind(0)

    ready = blocks()
    first = [next(ready)]
    return lambda: first.pop() if first else next(ready)


def _draw(
    generators: Iterable[np.random.Generator],
    shape: Sequence[int],
    dtype: torch.dtype,
    std: float = 1.0,
) -> Tensor:
    """(B, *): each row from its own generator, rounded once."""
    try:
        out = torch.empty(tuple(shape), dtype=dtype, device="cpu")
    except RuntimeError:
        raise ValueError(
            f"noise {tuple(shape)} of {dtype} does not fit into memory; draw it for fewer seeds at a time"
        ) from None
    for row, source in zip(out, generators):
        row.copy_(torch.as_tensor(std * source.standard_normal(row.shape)))
    return out


def seeds_text(seeds: Sequence[int]) -> str:
    """The first of them, for messages."""
    return f"seeds {', '.join(map(str, seeds[:5]))}{', …' if len(seeds) > 5 else ''}"
