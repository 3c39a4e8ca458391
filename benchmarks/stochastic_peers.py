"""The samplers with step noise of diffusers and k-diffusion, each as a function of its budget of calls.

A sampler gives its end within so many calls and how many it made, or None where it has no such run.
``draw`` makes its noise, if given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from diffusers_schedulers import KARRAS, make
from k_diffusion_sampling import load_k_diffusion_sampling
from torch import Tensor

Sampler = Callable[[int], "tuple[Tensor, int] | None"]


class Brownian:
    """k-diffusion's noise_sampler, of a path in σ for levels that come down, without torchsde's tree."""

    def __init__(self, like: Tensor, draw: Callable[..., Tensor] = torch.randn_like) -> None:
        self._at: dict[float, Tensor] = {}
        self._like, self._draw = like, draw

    def __call__(self, sigma: Tensor, lower: Tensor) -> Tensor:
        high, low = float(sigma), float(lower)
        self._at.setdefault(high, torch.zeros_like(self._like))
        if low not in self._at:
            nearest = min(level for level in self._at if level > low)
            z = self._draw(self._like)
            self._at[low] = self._at[nearest] + (nearest - low) ** 0.5 * z
        return (self._at[low] - self._at[high]) / (high - low) ** 0.5


def k_diffusion(
    model: Any, x: Tensor, draw: Callable[..., Tensor] = torch.randn_like
) -> Iterator[tuple[str, Sampler]]:
    sampling = load_k_diffusion_sampling()
    schedule = model.schedule
    first, last = schedule.sigma_max, schedule.sigma_min

    def levels(kind: str, n: int) -> Tensor:
        if kind == "karras":
            return sampling.get_sigmas_karras(n, last, first)
        return torch.tensor([*schedule.sigma(torch.linspace(schedule.T, 1, n).numpy()), 0.0])

    def sampler(name: str, kind: str, options: dict[str, Any]) -> Sampler:
        def run(nfe: int) -> tuple[Tensor, int] | None:
            calls = [0]

            def denoise(y: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
                calls[0] += 1
                level = min(float(sigma.flatten()[0]), first)
                return model(y * float(schedule.scales(level)[0]), level)[0]

            for steps in range(nfe, 1, -1):
                sigmas = levels(kind, steps).to(x.dtype)
                sigmas[0] = min(float(sigmas[0]), first)
                calls[0] = 0
                if name == "dpmpp_sde" and 2 * steps - 1 > nfe:
                    continue
                how = dict(disable=True, noise_sampler=Brownian(x, draw), **options)
                start = x * float(sigmas[0])
                end = getattr(sampling, f"sample_{name}")(denoise, start, sigmas, **how)
                if calls[0] <= nfe:
                    return end, calls[0]
            return None

        return run

    for kind in ("karras", "linear"):
        for name in ("euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"):
            yield f"{name}, {kind}", sampler(name, kind, {})
        less = dict(eta=0.25)  # η², that is
        yield f"dpmpp_2m_sde eta=0.25, {kind}", sampler("dpmpp_2m_sde", kind, less)


def diffusers(
    model: Any, x: Tensor, draw: Callable[..., Tensor] | None = None
) -> Iterator[tuple[str, Sampler]]:
    betas = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    sde = dict(algorithm_type="sde-dpmsolver++")
    choices: list[tuple[str, dict[str, Any]]] = [
        ("EulerAncestralDiscrete", {}),
        *(("DPMSolverMultistep", {**sde, **more}) for more in ({}, KARRAS)),
        ("DPMSolverMultistep", {**sde, "solver_order": 3}),
        *(("SASolver", more) for more in ({}, KARRAS)),
        ("SASolver", {"tau_func": half}),
        ("SASolver", {"predictor_order": 3, "corrector_order": 4}),
    ]

    def sampler(name: str, config: dict[str, Any]) -> Sampler:
        def run(nfe: int) -> tuple[Tensor, int] | None:
            scheduler = make(name, **betas, **config)
            scheduler.set_timesteps(nfe)
            y = x * scheduler.init_noise_sigma
            module = sys.modules[type(scheduler).__module__]
            taken = mock.patch.object(module, "randn_tensor", draw) if draw else nullcontext()
            with taken:
                for t in scheduler.timesteps:
                    state = scheduler.scale_model_input(y, t)
                    out = model(state, float(model.schedule.sigma(float(t) + 1)))[1]
                    y = scheduler.step(out.to(y.dtype), t, y).prev_sample
            return y, len(scheduler.timesteps)

        return run

    for name, config in choices:
        shown = {k: "0.5" if callable(v) else v for k, v in config.items() if k != "algorithm_type"}
        words = [f"{k.removeprefix('use_')}={v}" for k, v in shown.items()]
        yield " ".join([name, *words]), sampler(name, config)


def half(t: float) -> float:
    return 0.5
