"""Our plans inside diffusers' flow-matching pipelines.

Their scheduler places the levels: a shift, fixed or by the picture's size (``mu``), a stretched end,
Karras' spacing, or what the pipeline gives. :class:`DDIMODEFlowScheduler` *is* their
``FlowMatchEulerDiscreteScheduler``, as pipelines check, and takes the levels from that class's
arithmetic. On them it compiles a method, and runs it as :mod:`ddim_ode.interop.plan_run` does. Their σ is
the time t of :func:`ddim_ode.schedules.flow`, from 1 (our σ = inf) to 0.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchEulerDiscreteSchedulerOutput,
)
from torch import Tensor

from .. import schedules
from .._base.checks import (
    count,
    device_of,
    exclusive,
    flag,
    host_numbers,
    named,
    number,
    one_of,
    shown,
)
from .._base.tensors import beside, check_floating
from ..denoising.denoiser import Denoiser
from ..grids import check_name
from ..schedules.schedule import Array
from ..solve.planning import plan_for
from ..solvers.methods import get_method
from ..solvers.plan import Plan
from ..solvers.profile import checked_profile
from ..solvers.stochastic import noise_bound
from .adoption import SOLVERS, adopted_flow, plain, profile_of
from .config import limit_of, prediction_of
from .flow_levels import Clock, Told, ended_by_euler, ends_far, levels_by, place_of, through_stages
from .flow_levels import warn_of_another_place as warn_of_place
from .noising import noised_at
from .plan_run import Generators, Turns, check_generators, nobody
from .reading import read_scheduler

_PER_TOKEN = (
    "per_token_timesteps: each token would have a level of its own, and a plan has one for all; leave the "
    "pipeline its own scheduler"
)
_CHURN = (
    "{}={} is no setting of a plan, nor of the flow scheduler's own steps; drop it. A second time for each "
    "call, as flow maps are told (AnyFlow's r_timestep), needs the pipeline's own scheduler"
)
_MOST = 100_000  # calls: beyond, a slip of the pen
_MU = (
    "use_dynamic_shifting is on: the shift is by mu, which the pipeline knows; give mu=, or make the "
    "scheduler with use_dynamic_shifting=False and shift="
)


@dataclass
class DDIMODEFlowSchedulerOutput(FlowMatchEulerDiscreteSchedulerOutput):
    """``prev_sample`` (B, *), shown to the network next, and ``pred_original_sample``, x̂₀ of this call."""

    pred_original_sample: Tensor | None = None


class DDIMODEFlowScheduler(Turns, FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # theirs overlap
    """A diffusers flow-matching scheduler that runs one of our plans.

    ``pipe.scheduler = DDIMODEFlowScheduler.from_config(pipe.scheduler.config, method="unipc2")`` in any
    pipeline of ``FlowMatchEulerDiscreteScheduler``, or of a solver with ``use_flow_sigmas`` (UniPC,
    DPM-Solver). The state is kept in float32 or wider inside, whatever the network's precision.

    ``num_inference_steps`` is the number of NETWORK CALLS, as ``nfe=`` elsewhere, for all methods. A
    method of one call a step takes all levels of the pipeline. One of c calls takes about every c-th, such
    that each of its steps begins at the level where that call would look in their own run, and it makes no
    more calls. So ``order`` is 1, progress bars count calls, and image-to-image pipelines begin where they
    would by their own scheduler (inside a step, by Euler's method to its end). Multistep methods begin with
    rising order (``start="ramp"``), and reach a last level near 0, such as the 1/1000 of SD3's own levels,
    by Euler's method, since in ln σ it is so far down that a higher order errs more; methods of several
    calls leave it out. Of two networks, one for high levels and one for low (Wan), a history spans both.

    Args:
        num_train_timesteps, shift, use_dynamic_shifting, base_shift, max_shift, base_image_seq_len,
            max_image_seq_len, invert_sigmas, shift_terminal, use_karras_sigmas, use_exponential_sigmas,
            use_beta_sigmas, time_shift_type: As of the flow scheduler, which places the levels.
        stochastic_sampling: x̂₀ with new noise at each level, as there; with ``method="ddim"`` alone.
        method, eta: As in :func:`ddim_ode.sample` (default ``"ddim"``: Euler's method, as theirs).
        grid: The name of a grid, as there, which places the levels instead, such as ``"shifted:3"``.
        plans: Compiled plans instead, as ``Plan.save`` writes them (see :meth:`from_plans`), on levels of
            their own: ``set_timesteps(n)`` takes the one of n network calls.
        profile: A :class:`ddim_ode.Profile` of the pipeline's network, which places the levels instead
            (``from_config`` takes it; the configuration keeps its JSON).
        levels_of: The configuration of the solver whose arithmetic places the levels (by ``from_config``).

    Raises:
        ValueError: An unknown method, a plan of another schedule, or settings that do not go together.

    >>> scheduler = DDIMODEFlowScheduler(method="unipc2", shift=3.0)
    >>> scheduler.set_timesteps(sigmas=[1.0, 0.5])
    >>> scheduler.timesteps
    tensor([1000.,  750.])
    """

    _compatibles = list(SOLVERS)  # noqa: RUF012
    init_noise_sigma = 1.0
    _told: Told = None

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        method: str | None = None,
        grid: str | None = None,
        eta: float | None = None,
        plans: Sequence[Mapping[str, Any]] | None = None,
        profile: Mapping[str, Any] | None = None,
        levels_of: Mapping[str, Any] | None = None,
    ) -> None:
        config = plain(self.config)
        self.register_to_config(**config)
        T = count("num_train_timesteps", num_train_timesteps)
        if not 0 < number("shift", shift) < math.inf:
            raise ValueError(f"shift={shift!r} must be above 0 and finite")
        super().__init__(**{key: config[key] for key in _THEIRS})
        self._clock = Clock(T, flag("invert_sigmas", invert_sigmas))
        # Of what the network is told and what its answers mean; the pipeline is who asks it.
        flag("use_dynamic_shifting", use_dynamic_shifting)
        kind: Mapping[str, Any] = {"_class_name": FlowMatchEulerDiscreteScheduler.__name__}
        if levels_of is not None:
            kind = named("levels_of", levels_of)
            one_of("levels_of", kind.get("_class_name", ""), SOLVERS)
        self._denoiser = Denoiser(
            nobody,
            schedules.flow(),
            prediction_of(kind),
            time=self._clock.told,
        )
        self._denoiser.limit = limit_of(kind)
        if profile is not None:
            exclusive(profile=profile, plans=plans, grid=grid)
            self._denoiser.profile = checked_profile(profile_of(profile), self._denoiser.schedule)
        if grid is not None:
            check_name(grid)
        self._method = get_method("ddim" if method is None else method)
        if self._method.rises is not None:
            raise ValueError(
                f"method={self._method.name!r} goes up again by noise, and the levels of a pipeline fall; "
                "use it with ddim_ode.sample, or another method with eta="
            )
        self._plans = self._compiled(plans)
        self._renoises = flag("stochastic_sampling", stochastic_sampling)
        if self._renoises and (plans or profile or grid or eta or self._method.name != "ddim"):
            raise ValueError(
                "stochastic_sampling=True draws x̂₀ with new noise at each level, which is method='ddim' "
                "and no plan, profile, grid or eta; drop these, or give stochastic_sampling=False"
            )

    _adopted = staticmethod(adopted_flow)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Compile, or choose, the plan of the next run, and forget the last one's state.

        Args:
            num_inference_steps: Network calls (default: as many as there are ``sigmas`` or ``timesteps``,
                or those of the only plan).
            device: Of ``timesteps`` (nfe,) and ``sigmas`` (nfe+1,).
            sigmas: The pipeline's levels, falling in (0, 1], before the shift; with plans, a profile or a
                grid, which have their own, only their number counts.
            mu: The shift by the picture's size, with ``use_dynamic_shifting``.
            timesteps: What the network is told at the levels, where that is not 1000σ; without ``sigmas``,
                the levels as well.

        Raises:
            ValueError: Levels that do not fall within [0, 1], no ``mu`` where the shift needs it, or no
                plan of so many calls.
        """
        self._later = self._method
        lists = [
            np.atleast_1d(host_numbers(name, values))
            for name, values in (("sigmas", sigmas), ("timesteps", timesteps))
            if values is not None
        ]
        calls = num_inference_steps
        if calls is not None or not (lists or self._plans):
            calls = count("num_inference_steps", calls, most=_MOST)
        for values in lists:
            if values.ndim != 1 or values.size != (values.size if calls is None else calls):
                raise ValueError(
                    f"sigmas and timesteps must be one number for each of {calls or values.size} calls, "
                    f"got shape {values.shape}"
                )
            calls = values.size
        mu = None if mu is None else number("mu", mu)
        dynamic = self.config["use_dynamic_shifting"]
        told = None
        placed = {"mu": mu} if dynamic else {"shift": self.shift}
        if self._plans:
            plan = self._of_calls(calls)
        elif self._denoiser.profile is not None or self.config["grid"] is not None:
            how = dict(grid=self.config["grid"], eta=self.config["eta"])
            plan = plan_for(self._denoiser, self._method, nfe=calls, **how)
        else:
            if dynamic and mu is None:
                raise ValueError(_MU)
            given = dict(num_inference_steps=calls, sigmas=sigmas, mu=mu, timesteps=timesteps)
            levels, told = self._placed(given)
            plan = self._on(levels)
        where = None if device is None else device_of(device)
        before, self._told = self._told, told
        try:
            self._start(plan, device)
        except ValueError:
            self._told = before
            raise
        reached = [*(node.sigma for node in plan.nodes), plan.grid[-1]]
        f = self._clock.turned(self._denoiser.schedule.time(reached))
        self.sigmas = torch.tensor(f, dtype=torch.float32).to(where)
        if mu is not None or not dynamic:
            warn_of_place(plan, "placing", placed)

    def scale_noise(  # type: ignore[override]  # theirs says FloatTensor
        self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """(1 − σ)x₀ + σε (B, *) at network times (B,), or one for all.

        ValueError for other shapes, or a time that is none of the levels.
        """
        check_floating(noise, "noise")
        assert noise is not None
        times = noised_at(sample, noise, timestep, ("sample", "timestep"))
        at = self._clock.level(times, self._told)
        level = beside(torch.as_tensor(at, dtype=torch.float32).to(sample.device), sample)
        return (level * noise + (1 - level) * sample).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMODEFlowSchedulerOutput | tuple[Tensor, Tensor]:
        """Take the network's answer at ``sample`` and go on to the next call, or to the end.

        Args:
            model_output: (B, *).
            timestep: The next of ``timesteps``; at the first call any of them, where the run then begins.
            sample: (B, *), what the network was shown; what a pipeline changed of it counts.
            s_churn, s_tmin, s_tmax, s_noise: Nothing: the flow scheduler has them, and does nothing either.
            generator: Of the step noise, if any.
            per_token_timesteps: Not possible.
            return_dict: False returns a tuple.

        Returns:
            ``prev_sample``, what to show the network next, and ``pred_original_sample``, x̂₀ of this call,
            both in ``model_output``'s dtype.

        Raises:
            ValueError: A step out of order (checked where t is a number or on the CPU, so as not to wait
                for a device), or one that no plan can take.
        """
        self._running()
        if per_token_timesteps is not None:
            raise ValueError(_PER_TOKEN)
        churns = dict(s_churn=(s_churn, 0.0), s_tmin=(s_tmin, 0.0), s_noise=(s_noise, 1.0))
        for name, (value, nothing) in {**churns, "s_tmax": (s_tmax, math.inf)}.items():
            if isinstance(value, Tensor) or value != nothing:
                raise ValueError(_CHURN.format(name, shown(value)))
        check_generators(generator)
        flag("return_dict", return_dict)
        check_floating(sample, "sample")
        check_floating(model_output, "model_output")
        if self._run is None and self._call == 0:
            whole = self._whole
            if whole is not None and not self.begin_index:
                self.set_begin_index(place_of(timestep, self.timesteps, whole))
        answer = model_output if not self._clock.inverted else -model_output
        if self._run is None:
            warn_of_place(self._running(), "shape", list(sample.shape[1:]))
        shown_next, x0 = self._taken(answer, timestep, sample, generator, model_output.dtype)
        if not return_dict:
            return shown_next, x0
        return DDIMODEFlowSchedulerOutput(shown_next, x0)  # type: ignore[arg-type]  # FloatTensor

    def _placed(self, given: dict[str, Any]) -> tuple[Array, Told]:
        """σ (N+1,) where their arithmetic steps, and what the network is told there instead of its time."""
        other = self.config["levels_of"]
        if other is None:
            source: Any = copy.copy(self)
            place = super(DDIMODEFlowScheduler, source).set_timesteps
            name = FlowMatchEulerDiscreteScheduler.__name__
        else:
            source = read_scheduler(dict(other))
            place, name = source.set_timesteps, other["_class_name"]
        if not self.config["use_dynamic_shifting"]:
            given = {**given, "mu": None}
        return levels_by(name, source, place, given, self._clock)

    def _on(self, levels: Array) -> Plan:
        """The plan on those levels, or on as many of them as its calls allow."""
        calls = len(levels) - 1
        each = self._method.nfe_per_step
        if each == 1:
            return self._rest(levels)
        if ends_far(levels):
            levels, calls = np.delete(levels, -2), calls - 1
        for steps in range(min(calls, calls // each + 2), 0, -1):
            plan = self._rest(np.append(levels[:steps], levels[-1]))
            if plan.nfe <= calls:
                begins = [k for k in plan.level_calls() if k is not None]
                return self._rest(np.append(levels[begins], levels[-1]))
        raise ValueError(
            f"num_inference_steps={calls}: a step of {self._method.name!r} calls the network {each} times; "
            "raise it, or use a method of one call a step"
        )

    def _rest_at(self, begin: int, whole: Plan) -> Plan:
        """Inside a step, by Euler's method through the levels of its calls to its end, and from there as
        ever; a call that is no lower than the one before counts for nothing."""
        calls = whole.level_calls()
        if begin in calls:
            return super()._rest_at(begin, whole)
        after = next(i for i, call in enumerate(calls) if call is not None and call > begin)
        tail = self._rest(np.array(whole.grid[after:]))
        return through_stages(whole.nodes[begin : calls[after]], tail, self._denoiser.schedule)

    def _rest(self, grid: Array) -> Plan:
        noise: dict[str, Any] = dict(eta=self.config["eta"])
        if self._renoises:
            noise = dict(noise_std=noise_bound(self._denoiser.schedule, grid))
        start = "ramp" if self._method.rk_steps else None
        method = self._method if math.isinf(grid[0]) else self._later
        build = partial(plan_for, self._denoiser, method, start=start, **noise)
        if self._method.multistep and ends_far(grid):
            return ended_by_euler(build, grid, self._denoiser.schedule)
        return build(grid=grid)

    def _times(self, plan: Plan) -> Tensor:
        if self._told is None:
            return super()._times(plan)
        off = [node.sigma for node in plan.nodes if node.sigma not in self._told]
        if off:
            raise ValueError(
                f"{plan.method!r} asks the network between the levels, at σ={off[0]:g}, and the pipeline "
                "tells times of its own at these alone (timesteps=); use a method of one call a step"
            )
        return torch.tensor([self._told[node.sigma] for node in plan.nodes], dtype=torch.float32)


_THEIRS = tuple(inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters)[1:]
