"""What the pipelines of EDM-type networks ask of a scheduler beside its steps.

Their states are x₀ + σε, which the scheduler scales to what the network sees, x/√(σ²+σ_data²). Cosmos takes
x̂₀ of a step, of both branches at once, guides that, takes the step back (``_step_index -= 1``) and steps by
the guided x̂₀.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..solvers.plan import Plan
from .noising import Noising, noised_at
from .pipeline_reading import Reading
from .plan_run import Generators, Turns, sizes_of


class EdmStates(Turns, Noising):
    """The part of a scheduler that is of EDM's kind where ``_read`` says so, and of any other else."""

    _read: Reading
    _looked = False  # at x̂₀ of a batch that is not the run's
    _earlier = False  # whether the last step may be taken back

    def _begin(self, plan: Plan, call: int) -> None:
        super()._begin(plan, call)
        self._looked = self._earlier = False

    @property
    def sigmas(self) -> Tensor:
        """σ (nfe+1,) of the level that each call looks at, and of the last that is reached, on the CPU."""
        plan = self._whole or self._running()
        levels = [*(node.sigma for node in plan.nodes), plan.grid[-1]]
        return torch.tensor(levels, dtype=torch.float32) * self._read.spread

    @property
    def init_noise_sigma(self) -> float:
        """What pipelines multiply their noise by: 1, or with EDM's kind what the scheduler in whose place
        this one is has there."""
        if self._spread is None:
            return 1.0
        first = self._denoiser.sigma_max if self._plan is None else self._plan.grid[0]
        sigma = first * self._spread
        spacing = self.config.get("timestep_spacing")
        return sigma if spacing in ("linspace", "trailing") else math.hypot(sigma, 1.0)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network sees: the sample, or with EDM's kind over √(σ²+σ_data²) of the next call."""
        return sample if self._spread is None else sample / self._size()

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As of :class:`~ddim_ode.interop.noising.Noising`; with EDM's kind x₀ + σε."""
        if self._spread is None:
            return super().add_noise(original_samples, noise, timesteps)
        times = noised_at(original_samples, noise, timesteps)
        level = torch.tensor([self._read.level(t) for t in times.tolist()]).to(original_samples)
        return original_samples + level.reshape(-1, *[1] * (noise.ndim - 1)) * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As of :class:`~ddim_ode.interop.noising.Noising`; ValueError with EDM's kind."""
        if self._spread is not None:
            raise ValueError(
                "get_velocity: EDM-type networks are trained on x̂₀, weighted by σ; "
                "ddim_ode.interop.edm.Preconditioned makes one of x̂₀ of a raw network"
            )
        return super().get_velocity(sample, noise, timesteps)

    def _get_conditioning_c_in(self, sigma: Any) -> Any:
        return (sigma**2 + self._read.spread**2) ** -0.5

    @property
    def _step_index(self) -> int:
        return self._call + self._looked

    @_step_index.setter
    def _step_index(self, index: int) -> None:
        if index == self._call - 1 and self._earlier and self._run is not None and not self._looked:
            self._run.back()
            self._call, self._earlier = index, False
            if index == 0:  # which may begin with another batch
                self._run = None
        elif index != self._call:
            raise ValueError(
                f"_step_index={index!r}: this scheduler is at {self._step_index}, and takes back the last "
                "step with EDM's kind alone; set_timesteps begins anew"
            )
        self._looked = False

    def _stepped(
        self,
        answer: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators,
        clean: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What to show the network next, and x̂₀; clean: in place of what the answer says."""
        if self._spread is None:
            if clean is not None:
                raise ValueError(
                    "pred_original_sample: only the steps of EDM-type pipelines take x̂₀; drop it"
                )
            return self._taken(answer, timestep, sample, generator, sample.dtype)
        self._check_turn(timestep)
        if clean is not None:
            answer = self._answer_of(clean, sample)
        elif self._read.sign < 0:
            answer = -answer
        if clean is None and self._run is not None and sample.shape != self._run.x.shape:
            self._looked = True
            return sample, self._clean(answer, sample)
        made = self._taken(answer, timestep, sample, generator, sample.dtype)
        self._earlier = True
        return made

    def _size(self) -> float:
        plan = self._running()
        assert self._spread is not None
        return sizes_of(plan, self._spread)[self._call]

    def _clean(self, answer: Tensor, sample: Tensor) -> Tensor:
        """x̂₀ of an answer of our sign at the next call's level."""
        alpha, beta, y = self._here(sample)
        return ((alpha * y - beta * answer) * self._read.spread).to(sample.dtype)

    def _answer_of(self, clean: Tensor, sample: Tensor) -> Tensor:
        """The answer of our sign whose x̂₀ that is."""
        alpha, beta, y = self._here(sample)
        return (alpha * y - clean / self._read.spread) / beta

    def _here(self, sample: Tensor) -> tuple[float, float, Tensor]:
        """ᾱ and β̄ of the next call's level, and the state as the network sees it."""
        node = self._running().nodes[self._call]
        (alpha,), (beta,) = self._denoiser.schedule.scales([node.sigma])
        wide = sample.to(torch.promote_types(sample.dtype, torch.float32))
        return float(alpha), float(beta), wide / self._size()
