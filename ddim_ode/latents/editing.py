"""Editing by way of the noise: three ways to change a part of what a picture is.

    partial start     x_σ = ᾱ x₀ + β̄ z, and the ODE from there
    inpainting        x ← ᾱ x₀ + β̄ z at each level of a plan, where x₀ is known, and with one z throughout
    attribute change  the ODE up under one condition, and down under another

Only the last is a solve there and back, and needs no noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from torch import Tensor

from .._base.checks import exclusive, shown
from .._base.notebook import brief
from .._base.tensors import check_state
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import Limit
from ..denoising.inputs import check_model
from ..denoising.seeding import check_seeds, unit_noise
from ..schedules.schedule import Schedule, check_schedule
from ..solve.solution import Solution


class Start(NamedTuple):
    """Where a solve begins: x (B, *) at noise level sigma."""

    x: Tensor
    sigma: float

    def __repr__(self) -> str:
        return f"Start(x={brief(self.x)}, sigma={self.sigma:g})"


def renoise(
    x0: Tensor,
    schedule: Schedule,
    seeds: Sequence[int],
    *,
    strength: float | None = None,
    sigma: float | None = None,
) -> Start:
    """Pictures x0 (B, *) with noise: ᾱ x0 + β̄ z at one level, from which to sample.

    All steps are spent below that level: n are n, whatever the strength. Reference: Meng et al. 2022
    (SDEdit), https://arxiv.org/abs/2108.01073.

    Args:
        x0: The pictures (B, *), in network space.
        schedule: Of the network.
        seeds: One per sample, of z: the start noise that :func:`ddim_ode.noise` draws for them.
        strength: The share of noise in the result, β̄/(ᾱ + β̄), in (0, 1]. It means the same on every
            schedule: at 0.5 the level is σ = 1, and pictures of unit variance keep a correlation of 0.71. A
            share above that of σ(T) is σ(T), so 1 is pure noise. (diffusers' ``strength`` is a share of the
            schedule's time: that is ``sigma=schedule.sigma(strength * schedule.T)``.)
        sigma: The level itself, instead.

    Returns:
        A :class:`Start`: x (B, *) and its level, for ``sample(model, x, sigma_max=sigma)``.

    Raises:
        ValueError: For values out of range, and unless exactly one of strength and sigma is given.

    >>> import ddim_ode, torch
    >>> model = ddim_ode.exact.gaussian([1.0], [[0.25]], ddim_ode.schedules.cosine())
    >>> start = ddim_ode.renoise(torch.ones(2, 1), model.schedule, seeds=[0, 1], strength=0.4)
    >>> ddim_ode.sample(model, start.x, "heun", steps=5, sigma_max=start.sigma).nfe
    9
    """
    x0 = check_state(x0)
    check_schedule(schedule)
    exclusive(strength=strength, sigma=sigma)
    if sigma is None:
        if not isinstance(strength, Real) or not 0 < strength <= 1:
            raise ValueError(
                f"strength={shown(strength)} must be a number in (0, 1]: 1 is pure noise, and what is near "
                "0 stays as it is (or give sigma=)"
            )
        share = float(strength)
        level = min(share / (1 - share), schedule.sigma_max) if share < 1 else schedule.sigma_max
    else:
        level = schedule.level(sigma)
        if level == 0:
            raise ValueError("sigma=0 adds no noise: there is nothing to sample from")
    alpha, beta = map(float, schedule.scales(level))
    z = unit_noise(check_seeds(seeds, len(x0)), x0)
    return Start(x0 * alpha + z * beta, level)


class Transfer(NamedTuple):
    """x (B, *): the pictures under the target. encoded, decoded: the two solves; encoded.x the latents."""

    x: Tensor
    encoded: Solution
    decoded: Solution

    def __repr__(self) -> str:
        return f"Transfer(x={brief(self.x)}, encoded={self.encoded!r}, decoded={self.decoded!r})"


def transfer(
    model: Denoiser,
    x0: Tensor,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    method: str | None = None,
    **options: Any,
) -> Transfer:
    """Pictures under another condition: encoded under ``source``, decoded under ``target``.

    Up goes the conditional network alone: guidance and limits would make the way up unfaithful. Down goes
    the model as it is. With target = source and a model that nothing alters this is a round trip.

    Args:
        model: The denoiser.
        x0: The pictures (B, *).
        source, target: Conditions {name: tensor (B, ...)}.
        method: Of both solves.
        **options: Of both solves, as in :func:`ddim_ode.encode`: ``steps=``, ``sigma_max=`` (how far up:
            the lower, the more of a picture is kept), ``shared=`` and so on.

    Returns:
        The pictures, and both solves.

    Reference: Su et al. 2023, https://arxiv.org/abs/2203.08382.

    >>> import torch, ddim_ode
    >>> # each class has one picture, y
    >>> model = ddim_ode.Denoiser(lambda x, t, y: y.expand_as(x), ddim_ode.schedules.ve(8.0), "x0")
    >>> x0 = torch.tensor([[-1.0], [1.0]])
    >>> swapped = ddim_ode.transfer(model, x0, {"y": x0}, {"y": -x0}, "heun", steps=5)
    >>> swapped.x.round(decimals=2).tolist()
    [[1.0], [-1.0]]
    """
    from .inversion import decode, encode

    check_model(model)
    plain = model.replace(guidance=None, limit=Limit())
    certify = options.pop("certify", False)
    encoded = encode(plain, x0, method, cond=source, certify=certify, **options)
    decoded = decode(model, encoded.x, method, cond=target, **options)
    return Transfer(decoded.x, encoded, decoded)
