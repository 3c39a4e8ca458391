"""A plan in the hands of a pipeline, which asks its network itself."""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..denoising.denoiser import Denoiser
from ..denoising.network import check_output
from ..solve.fixed import x0_of
from ..solve.loop import Run
from ..solvers.plan import Plan

Generators = torch.Generator | list[torch.Generator] | None


class PlanRun:
    """A plan on its way in a pipeline: a :class:`ddim_ode.solve.loop.Run`, and what a pipeline does to it.

    shown: what the network is to be shown next, the state or a stage, of which half-precision
    pipelines get a narrower copy. x0: x̂₀ of the last call. A step that fails changes nothing here, and may
    be tried again (a generator that was drawn from has moved on).
    """

    def __init__(self, plan: Plan, denoiser: Denoiser, sample: Tensor) -> None:
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        self.run = Run(plan, x, draw=self._draw, estimate=False)
        self.shown = self._next(None)
        self.denoiser, self.nodes = denoiser, plan.nodes
        self.prediction, self.conversions = denoiser.prediction, denoiser.conversions(plan.nodes)
        self.limit, self.at = denoiser.limit, denoiser.at_each(plan.nodes, x)
        self.generator: Generators = None

    @property
    def x(self) -> Tensor:
        """The state."""
        return self.run.x

    @property
    def call(self) -> int:
        """The call under way."""
        return self.run.calls

    def step(self, sample: Tensor, answer: Tensor, generator: Generators) -> Tensor:
        """File the network's answer at ``sample``; on to the next call, or to the end."""
        before, self.generator = (self.run.copied(), self.shown), generator
        try:
            y = self._kept(sample)
            if self.run.committed:
                self.run.x = y
            vector = self._vector(y, answer)
            x0 = x0_of(self.denoiser, self.nodes[self.call], y, vector)
            self.shown = self._next(vector)
            self.x0 = x0
            return self.shown.to(sample.dtype)
        except BaseException:
            self.run, self.shown = before
            raise

    def _next(self, vector: Tensor | None) -> Tensor:
        """What the next call is shown, or the end."""
        y = self.run.advance(vector)
        return self.run.x if y is None else y

    def _draw(self) -> Tensor:
        x = self.run.x
        return randn_tensor(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)

    def _vector(self, y: Tensor, answer: Tensor) -> Tensor:
        """What the call under way stores, for as long as the method looks back; a pipeline may return its
        answers in one buffer."""
        check_output(answer, y, y.shape, self.prediction)
        answer = answer.to(y.dtype, copy=True)
        at = self.at[self.call]
        if at is not None:
            answer = self.limit(answer, y, at)
        if self.conversions is None:
            return answer
        of_x, of_answer = self.conversions[self.call]
        return torch.add(answer * of_answer, y, alpha=of_x)

    def _kept(self, sample: Tensor) -> Tensor:
        """``sample``, wide: its values where a pipeline changed what it was shown, elsewhere ours, of more
        digits."""
        if sample.dtype == self.shown.dtype:
            return sample
        ours = self.shown.to(sample.dtype) == sample
        return torch.where(ours, self.shown, sample.to(self.shown.dtype))
