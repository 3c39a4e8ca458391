"""The training objective: E ‖ε_θ(ᾱ_t x₀ + β̄_t ε, t) − ε‖² (Ho et al. 2020, eq. 14).

It does not depend on how the network is sampled later: any solver, any sub-sequence of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._base.checks import finite, function
from .._base.tensors import beside, check_floating
from ..schedules.schedule import Schedule, check_schedule
from .network import check_output


def eps_loss(
    net: Callable[..., Tensor],
    schedule: Schedule,
    x0: Tensor,
    *,
    generator: torch.Generator | None = None,
    time_offset: float = 0.0,
    **cond: Any,
) -> Tensor:
    """Mean squared error of the predicted noise, a scalar to call ``backward`` on.

    Times are drawn uniformly, one per sample: from {1..T} for a discrete schedule, from (0, T] otherwise;
    for ``ve``, where t is σ, log-uniformly from σ_min to σ_max.

    Args:
        net: Called as ``net(x_t, t + time_offset, **cond)``; a network on indices 0..T−1 takes ``-1.0``.
        schedule: The one to train on.
        x0: Clean data (B, *).
        generator: The source of t and ε; its device must be that of x0, or the CPU.
        time_offset: Added to t.
        **cond: Passed to the network.

    Reference: Ho, Jain, Abbeel 2020, https://arxiv.org/abs/2006.11239.

    >>> import torch, ddim_ode
    >>> net = lambda x, t: torch.zeros_like(x)  # says that there is no noise
    >>> source = torch.Generator().manual_seed(0)
    >>> x0 = torch.zeros(4096, 8)
    >>> loss = ddim_ode.eps_loss(net, ddim_ode.schedules.ddpm(), x0, generator=source)
    >>> abs(float(loss) - 1) < 0.05  # the variance of ε
    True
    """
    function("net", net)
    check_schedule(schedule)
    check_floating(x0, "x0")
    time_offset = finite("time_offset", time_offset)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    source = generator.device if generator is not None else x0.device
    b = x0.shape[0]
    u = torch.rand(b, generator=generator, device=source, dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=generator, device=source, dtype=x0.dtype).to(x0.device)

    t = schedule.training_time(u.cpu().numpy())
    wide = torch.promote_types(x0.dtype, torch.float32)  # half precision has no room for t = 999
    alpha, beta = (
        beside(torch.as_tensor(scale(t)).to(x0.device, wide), x0)
        for scale in (schedule.alpha_bar, schedule.beta_bar)
    )
    noisy = (alpha * x0 + beta * eps).to(x0.dtype)
    times = torch.as_tensor(t + time_offset).to(x0.device, wide)
    prediction = net(noisy, times, **cond)
    check_output(prediction, x0, x0.shape, "eps")
    return torch.mean((prediction - eps) ** 2)
