"""The loop of :mod:`ddim_ode.solve.loop` turned inside out, for callers who ask the network themselves."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..denoising.denoiser import Denoiser
from ..denoising.network import check_output
from ..solve.fixed import x0_of
from ..solvers.plan import Plan

Generators = torch.Generator | list[torch.Generator] | None


class PlanRun:
    """A plan on its way: :func:`ddim_ode.solve.loop.integrate`, a network call at a time.

    x: the state. shown: what the network is to be shown next, the state or a stage, of which half-precision
    pipelines get a narrower copy. x0: x̂₀ of the last call. A step that fails changes nothing here, and may
    be tried again (a generator that was drawn from has moved on).
    """

    def __init__(self, plan: Plan, denoiser: Denoiser, sample: Tensor) -> None:
        dtype = torch.promote_types(sample.dtype, torch.float32)
        self.plan = plan
        self.x = sample.to(dtype)
        self.shown = self.x
        self.committed = True
        self.history: deque[Tensor] = deque(maxlen=plan.memory)
        self.denoiser, self.nodes = denoiser, plan.nodes
        self.prediction, self.conversions = denoiser.prediction, denoiser.conversions(plan.nodes)
        levels = denoiser.snapped(np.array([node.sigma for node in plan.nodes]))
        self.limit, self.at = denoiser.limit, denoiser.at_each(levels, self.x)
        # 0-d tensors as in the loop, so that a pipeline's samples are the same to the last bit.
        scales = torch.tensor([op.scale for op in plan.ops], dtype=dtype)
        self.scales = scales.to(sample.device).unbind(0)
        self.op = self.call = 0

    def step(self, sample: Tensor, answer: Tensor, generator: Generators) -> Tensor:
        """File the network's answer at ``sample``; on to the next call, or to the end."""
        before = {**vars(self), "history": self.history.copy()}
        try:
            y = self._kept(sample)
            if self.committed:
                self.x = y
            self.history.appendleft(self._vector(y, answer))
            self.x0 = x0_of(self.denoiser, self.nodes[self.call], y, self.history[0])
            self.call += 1
            self.shown = self._advance(generator)
            return self.shown.to(sample.dtype)
        except BaseException:
            vars(self).update(before)
            raise

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

    def _advance(self, generator: Generators) -> Tensor:
        while self.op + 1 < len(self.plan.ops):
            self.op += 1
            factor, weights, node, commit, noise = self.plan.ops[self.op]
            y = self.x
            if weights or factor != 1.0:
                y = y * self.scales[self.op]
                for weight, vector in zip(weights, self.history):
                    if weight:
                        y.add_(vector, alpha=weight)
            if noise:
                z = randn_tensor(y.shape, generator=generator, device=y.device, dtype=y.dtype)
                y = torch.add(y, z, alpha=noise)
            if commit:
                self.x = y
            if node is not None:
                self.committed = commit
                return y
        return self.x
