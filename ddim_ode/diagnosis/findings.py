"""What a finding is, and the noised samples that the checks share."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._checks import count
from ..denoiser import Denoiser
from ..inputs import device_of, sample_shape
from ..sampling import sample
from ..schedule import Array
from ..seeding import noise

_LEVELS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)  # of T


@dataclass(frozen=True)
class Finding:
    """One thing that will go wrong: ``check`` its name, ``message`` what and how much, ``fix`` what to do.

    severity: ``"error"`` (samples are wrong) or ``"warning"`` (they are worse than they could be).
    evidence: the number that was measured on the model, in the unit that the message gives.
    """

    check: str
    severity: str
    evidence: float
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.check}: {self.message}\n    fix: {self.fix}"


class Probe:
    """A model with clean samples x0 (n, *), noise and conditions to ask it with."""

    def __init__(
        self,
        model: Denoiser,
        data: Tensor | None,
        cond: Mapping[str, Tensor] | None,
        shared: Mapping[str, Any] | None,
        shape: Sequence[int] | None,
        steps: int,
        n: int,
        seed: int,
        device: str | torch.device | None,
    ) -> None:
        if not isinstance(model, Denoiser):
            raise ValueError(
                f"model must be a Denoiser, got {type(model).__name__}: ddim_ode.load, "
                "ddim_ode.interop.diffusers.load or ddim_ode.Denoiser(net, schedule) make one"
            )
        self.steps, n = count("steps", steps), count("n", n, least=2)
        self.device = device_of(model, device)
        if data is not None:
            if not isinstance(data, Tensor) or not data.is_floating_point() or len(data) < 2:
                raise ValueError(
                    "data must be a floating tensor (N, *) of at least 2 clean samples"
                )
            n, shape = min(n, len(data)), data.shape[1:]
        self.shape = sample_shape(model, shape)
        self.model, self.n, self.seed, self.shared = model, n, seed, shared
        self.data = None if data is None else data[:n].to(self.device, torch.float32)
        classes = getattr(model, "num_classes", 0)
        if cond is None and classes:
            cond = {"y": torch.arange(n) % classes}
        self.cond = None if cond is None else {k: v[:n].to(self.device) for k, v in cond.items()}
        like = model.schedule
        self.noise = noise(self.shape, like, range(seed, seed + n), device=self.device)
        top = float(like.scales(like.sigma_max)[1]) if like.family != "vp" else 1.0
        self.eps = noise(self.shape, like, range(seed + n, seed + 2 * n), device=self.device) / top

    @functools.cached_property
    def x0(self) -> Tensor:
        """Clean samples: the data, or what the model makes."""
        return self.made if self.data is None else self.data

    @functools.cached_property
    def made(self) -> Tensor:
        """What the model makes of ``noise``."""
        return self.generate(self.model)

    @functools.cached_property
    def sigmas(self) -> Array:
        """A few levels from almost clean to almost noise."""
        return self.model.schedule.sigma(np.array(_LEVELS) * self.model.schedule.T)

    def generate(self, model: Denoiser) -> Tensor:
        """n samples of a variant of the model, by a few DDIM steps from a finite level."""
        top = float(model.schedule.sigma(0.99 * model.schedule.T))
        x = self.noise
        if model.schedule.family == "ve":
            x = x * (top / model.schedule.sigma_max)
        options: dict[str, Any] = dict(cond=self.cond, shared=self.shared)
        return sample(
            model, x, steps=15, grid="quadratic", sigma_max=top, sigma_min=None, **options
        ).x

    def noised(self, x0: Tensor, sigma: float) -> Tensor:
        alpha, beta = (float(v) for v in self.model.schedule.scales(sigma))
        return alpha * x0 + beta * self.eps

    def ask(self, model: Denoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """(x̂₀, ε̂) of a variant of the model."""
        with torch.no_grad():
            return model(x, sigma, self.cond, self.shared)

    def loss(self, model: Denoiser, x0: Tensor, sigmas: Array | None = None) -> float:
        """How far a variant is from having noised x0 itself, the mean over levels.

        √(‖x̂₀ − x0‖² + ‖ε̂ − ε‖²), the v-error of a variance-preserving model, over the same of the guess
        x̂₀ = 0, ε̂ = 0. 0 is truth; a network that has learned anything is below 1; one that is read
        wrongly is above where its answer and the reading part. inf for what is not finite.
        """
        total, levels = 0.0, self.sigmas if sigmas is None else sigmas
        scale = float((x0.square().mean() + self.eps.square().mean()).sqrt())
        for sigma in levels.tolist():
            clean, eps = self.ask(model, self.noised(x0, sigma), sigma)
            error = (clean - x0).square().mean() + (eps - self.eps).square().mean()
            total += float(error.sqrt()) / scale
        return total / len(levels) if np.isfinite(total) else float("inf")

    def variant(self, **changes: Any) -> Denoiser:
        """The model with some attributes replaced."""
        other = copy.copy(self.model)
        for name, value in changes.items():
            setattr(other, name, value)
        return other


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
