"""A plan in the hands of a pipeline, which asks its network itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .._base.checks import number, several
from ..denoising.denoiser import Denoiser
from ..denoising.network import check_output
from ..solve.fixed import x0_of
from ..solve.loop import Run
from ..solvers.plan import Plan

Generators = torch.Generator | list[torch.Generator] | None


def times_of(plan: Plan, denoiser: Denoiser) -> Tensor:
    """The network times (nfe,) of its calls; ValueError for a plan that no pipeline can run."""
    first = plan.ops[0]
    if first.weights or first.scale != 1.0 or first.noise or first.node is None:
        raise ValueError(
            f"plan {plan.method!r} does not begin by asking the network at the state it is given; "
            "a pipeline cannot run it"
        )
    levels = denoiser.snapped(np.array([node.sigma for node in plan.nodes]))
    times = denoiser.network_time(levels, np.array([node.t for node in plan.nodes]))
    return torch.tensor(times, dtype=torch.float32)


def check_generators(generator: Any) -> None:
    """ValueError unless it is a generator, several, or None."""
    for source in [] if generator is None else several(generator):
        if not isinstance(source, torch.Generator):
            raise ValueError(f"generator must be a torch.Generator, got {type(source).__name__}")


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


class Turns:
    """Where a scheduler is in its plan: which call is due, and what a pipeline asks about that."""

    config: Mapping[str, Any]
    timesteps: Tensor
    num_inference_steps: int | None = None
    _whole: Plan | None = None  # of set_timesteps; the one that runs may begin later on
    _plan: Plan | None = None
    _run: PlanRun | None = None
    _call = 0
    _handed_over = False

    @property
    def plan(self) -> Plan | None:
        """The plan that runs, from ``set_timesteps`` on (and from its begin index on)."""
        return self._plan

    @property
    def sigmas(self) -> Tensor:
        """σ (nfe+1,) of the level that each call looks at, and of the last that is reached, on the CPU."""
        plan = self._whole or self._running()
        levels = [*(node.sigma for node in plan.nodes), plan.grid[-1]]
        return torch.tensor(levels, dtype=torch.float32)

    @property
    def begin_index(self) -> int | None:
        """Where the run began in ``timesteps``; None before ``set_timesteps``."""
        if self._whole is None or self._plan is None:
            return None
        return self._whole.nfe - self._plan.nfe

    @property
    def step_index(self) -> int | None:
        """The next call's place in ``timesteps``; None before the first."""
        return None if self._run is None else self._call

    def previous_timestep(self, timestep: Any) -> Any:
        """The network time below that one that is asked for next; −1 below the last."""
        if self.num_inference_steps is None:
            return timestep - 1
        below = self.timesteps[self.timesteps < float(timestep) - 1e-3]
        return below[0] if len(below) else torch.tensor(-1.0)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample: the network sees the state as it is."""
        return sample

    def _begin(self, plan: Plan, call: int) -> None:
        self._plan, self._run, self._call = plan, None, call
        self._handed_over = False

    def _running(self) -> Plan:
        if self._plan is None:
            raise ValueError("call set_timesteps before step")
        return self._plan

    def _check_turn(self, timestep: Any) -> None:
        if self._call >= len(self.timesteps):
            raise ValueError(
                f"all {len(self.timesteps)} network calls of this run are made; set_timesteps begins anew"
            )
        if isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            return
        one = isinstance(timestep, Tensor) and timestep.numel() == 1
        t = number("timestep", timestep.item() if one else timestep)
        due = float(self.timesteps[self._call]) if self.timesteps.device.type == "cpu" else None
        if due is not None and not abs(t - due) <= 1e-3:  # not a NaN either
            raise ValueError(
                f"step {self._call + 1} is due at t={due:g}, and was called with t={t:g}: "
                "steps go through timesteps in order (set_timesteps begins anew, set_begin_index later on)"
            )
