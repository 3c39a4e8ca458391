"""Networks with EDM's preconditioning as denoisers of x̂₀, told σ.

Karras et al. 2022 wrap a raw network F into

    x̂₀ = c_skip·x + c_out·F(c_in·x, c_noise)

    c_skip = σ_data²/(σ²+σ_data²)    c_out = σσ_data/√(σ²+σ_data²)
    c_in = 1/√(σ²+σ_data²)           c_noise = ¼ ln σ

A network that is wrapped already (k-diffusion's, EDM's own) is ``Denoiser(wrapped, ve(80.0), "x0")``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._base.checks import floating, function, number, one_of
from .._base.tensors import beside, wide

CLOCKS: dict[str, Callable[[Tensor], Tensor]] = {
    "log": lambda sigma: sigma.log() / 4,
    "atan": lambda sigma: sigma.atan() * (2 / math.pi),
}


class Preconditioned(nn.Module):
    """x̂₀ of a raw network F, called as ``net(x, sigma, **cond)`` with x = x₀ + σε.

    Args:
        net: ``F(c_in·x (b, *), c_noise (b,), **cond) -> (b, *)``.
        sigma_data: The standard deviation of the data that it was trained with.
        noise: What it is told: ``"log"`` for ¼ ln σ, ``"atan"`` for (2/π) arctan σ (Stable Audio), or a
            function of σ (b,).
        negated: Whether c_out has the other sign: ``"v_prediction"`` in diffusers' EDM schedulers.
        dtype: What F's input is cast to. The rest is computed in x's own, float32 or wider.

    Raises:
        ValueError: An argument out of range.

    >>> import torch, ddim_ode
    >>> from ddim_ode.interop.edm import Preconditioned
    >>> raw = lambda x, t: torch.zeros_like(x)
    >>> model = ddim_ode.Denoiser(Preconditioned(raw), ddim_ode.schedules.ve(80.0), "x0")
    >>> model(torch.ones(1, 2), 0.5)[0]
    tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sigma_data: float = 0.5,
        noise: str | Callable[[Tensor], Tensor] = "log",
        negated: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.net = function("net", net)
        self.sigma_data = number("sigma_data", sigma_data)
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data={sigma_data!r} must be above 0 and finite")
        if isinstance(noise, str):
            noise = CLOCKS[one_of("noise", noise, CLOCKS)]
        self.noise = function("noise", noise)
        self.sign = -1.0 if negated else 1.0
        self.dtype = None if dtype is None else floating(dtype)

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        state = x.to(wide(x.dtype))
        s = beside(sigma.to(state.dtype), x)
        norm = torch.sqrt(s.square() + self.sigma_data**2)
        shown = (state / norm).to(self.dtype or x.dtype)
        out = self.net(shown, self.noise(sigma), **cond)
        return state * (self.sigma_data / norm) ** 2 + out.to(state.dtype) * (
            self.sign * self.sigma_data * s / norm
        )
