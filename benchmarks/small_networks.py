"""Small networks trained on the spot: every kind of prediction, in scalings and schedules of their own.

Multilayer perceptrons on scikit-learn's 8 × 8 digits, a few seconds each. They are to a calibration what
a user's network is: not exact, rough in time, and nothing it has seen before. The input is brought to unit
variance, the output is in units of its target, and the time enters as sines of ln(1 + σ/std).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import ddim_ode
from ddim_ode.schedules.schedule import Schedule


class Case(NamedTuple):
    """A schedule, what the network predicts, and its data: digits in [−1, 1] × scale + shift."""

    name: str
    schedule: Schedule
    prediction: str
    scale: float
    shift: float


CASES = (
    Case("ddpm, ε", ddim_ode.schedules.ddpm(), "eps", 1.0, 0.0),
    Case("cosine, v, data 10…50", ddim_ode.schedules.cosine(), "v", 20.0, 30.0),
    Case("vp, x₀, data −5…5", ddim_ode.schedules.vp(), "x0", 5.0, 0.0),
    Case("ve, ε, data 0…255", ddim_ode.schedules.ve(80.0 * 128), "eps", 127.5, 127.5),
    Case("flow, data −3…3", ddim_ode.schedules.flow(), "flow", 3.0, 0.0),
    Case("exponential, ε", ddim_ode.schedules.exponential(), "eps", 1.0, 0.0),
)


class Perceptron(nn.Module):
    """net(x (b, 64), t (b,)) -> (b, 64), in the scale of its data (mean, std)."""

    def __init__(self, case: Case, mean: float, std: float, width: int = 256) -> None:
        super().__init__()
        self.case, self.mean, self.std = case, mean, std
        sizes = pairwise((64 + 32, width, width, width))
        layers = [m for a, b in sizes for m in (nn.Linear(a, b), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(width, 64))
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, 5, 16)) / 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, beta = coefficients(self.case.schedule, t, x)
        level = torch.log1p(beta / alpha.clamp(min=1e-8) / self.std) * self.frequencies
        unit = (x - alpha * self.mean) / (alpha**2 * self.std**2 + beta**2).sqrt()
        out = self.body(torch.cat([unit, torch.sin(level), torch.cos(level)], 1))
        if self.case.prediction == "eps":
            return out
        if self.case.prediction == "x0":
            return out * self.std + self.mean
        if self.case.prediction == "v":
            return out * (alpha**2 + beta**2 * self.std**2).sqrt() - beta * self.mean
        return out * (1 + self.std**2) ** 0.5 - self.mean  # flow


def coefficients(schedule: Schedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """ᾱ and β̄ (b, 1) at times t (b,)."""
    times = t.detach().double().numpy()
    found = (schedule.alpha_bar(times), schedule.beta_bar(times))
    return tuple(torch.as_tensor(c).to(like)[:, None] for c in found)


def digits(case: Case) -> Tensor:
    """The case's data (n, 64)."""
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().data / 8 - 1).float() * case.scale + case.shift


def trained(case: Case, steps: int = 1500, batch: int = 128) -> ddim_ode.Denoiser:
    """The case's network, trained with Adam on the mean square error of its own prediction."""
    x0 = digits(case)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    mean, std = float(x0.mean()), float(x0.std())
    net = Perceptron(case, mean, std)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    weight = dict(eps=1.0, x0=1 / std, v=(1 + std**2) ** -0.5, flow=(1 + std**2) ** -0.5)
    with torch.enable_grad():
        for _ in range(steps):
            clean = x0[torch.randint(len(x0), (batch,), generator=generator)]
            eps = torch.randn(clean.shape, generator=generator)
            t = _times(case, torch.rand(batch, generator=generator))
            alpha, beta = coefficients(case.schedule, t, clean)
            targets = dict(eps=eps, x0=clean, v=alpha * eps - beta * clean, flow=eps - clean)
            error = net(alpha * clean + beta * eps, t) - targets[case.prediction]
            optimizer.zero_grad()
            (error * weight[case.prediction]).square().mean().backward()
            optimizer.step()
            decay.step()
    net.eval().requires_grad_(False)
    return ddim_ode.Denoiser(net, case.schedule, case.prediction)


def _times(case: Case, uniform: Tensor) -> Tensor:
    """Training times; where they are σ itself, uniform in its logarithm."""
    top = case.schedule.T
    if case.schedule.family == "ve":
        low = np.log(0.01 * case.scale)
        return torch.exp(low + uniform * (np.log(top) - low))
    return (uniform * (1 - 2e-3) + 1e-3) * top


def networks() -> Iterator[tuple[str, ddim_ode.Denoiser]]:
    for case in CASES:
        yield case.name, trained(case)
