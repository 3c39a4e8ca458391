"""Our plans inside diffusers' pipelines.

A pipeline asks its network itself and hands the answer to ``scheduler.step``. So the loop of
:mod:`ddim_ode.solve.loop` is turned inside out: ``timesteps`` has an entry for each network call of the
plan, stages of Runge–Kutta steps included, and call k of ``step`` files the answer to call k, runs
the plan's operations up to the next call and returns the state to show the network there. The numbers are
the plan's, so any plan runs: a method on a grid, or a calibrated one from the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Tensor

from .._base.checks import (
    count,
    exclusive,
    flag,
    host_numbers,
    number,
    one_of,
    refuse,
)
from .._base.tensors import check_floating
from ..denoising.denoiser import Denoiser
from ..denoising.network import doubled_axis, halved
from ..grids import FINALS, check_name, is_open
from ..schedules.schedule import Array
from ..solve.planning import plan_for
from ..solvers.methods import Method, get_method
from ..solvers.plan import Plan
from ..solvers.profile import checked_profile
from .adoption import FLOW, adopted, of_method, plain, profile_of
from .config import EDM, OURS, SHIFTED, edm_of, learns_variance
from .edm_states import EdmStates
from .noising import ByTime
from .pipeline_reading import levels_of_source, reading_of
from .placement import starting_level
from .plan_run import Generators, check_generators, nobody

_PLACING = ("plans", "grid", "final", "sigma_max")
# Pipelines cut a list of times at a share of T. With two calls a step that is inside of one, or, where they
# see that it is, they go back by one call and show an old level the state of the next.
_HANDED_OVER = (
    "begin_index={}: {!r} calls twice a step, and add_noise did not make the state that it begins at. A "
    "run that another one began (denoising_start, denoising_end) is cut between the calls of a step, where "
    "the state is of no level. Share it by a method of one call a step, such as unipc2; a state that you "
    "know to be at a level begins set_timesteps(timesteps=[...])"
)


class DDIMODEScheduler(EdmStates, SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # theirs overlap
    """A diffusers scheduler that runs one of our plans.

    ``DDIMODEScheduler.from_config(pipe.scheduler.config, method="unipc3")`` takes the model's part of
    another scheduler's configuration (betas, prediction type, limits on x̂₀) and leaves the rest. Of EDM's
    kind (Stable Audio, SVD, Cosmos 1) the levels are that scheduler's, unless ``grid`` or a profile says.
    ``DDIMPipeline`` turns whatever it is constructed with into its own scheduler: assign to
    ``pipe.scheduler`` afterwards. ``order`` is the network calls of a step, as pipelines read it.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type,
            rescale_betas_zero_snr, variance_type: As of the DDIM scheduler.
        snr_shift_scale: As of CogVideoX's: the signal-to-noise ratio of the betas is divided by it.
        clip_sample, clip_sample_range, thresholding, dynamic_thresholding_ratio, sample_max_value: As of
            the DDIM scheduler, thresholding before clipping; ε̂ is always recomputed from the limited
            x̂₀, which is its ``use_clipped_model_output=True``. :attr:`limit` is the one in force.
        method, grid, final, eta: As in :func:`ddim_ode.sample`; ``set_timesteps(n)`` compiles n steps.
        start: As there, but ``"ramp"`` by default, so that each step has its ``order`` calls.
        plans: Compiled plans instead, as ``Plan.save`` writes them (see :meth:`from_plans`);
            ``set_timesteps(n)`` takes the one of n network calls.
        snap: Only whole times 0..T−1 reach the network. Without it times are floats, as diffusers' own
            networks take them.
        time_offset: Added to the schedule's t = 1..T; −1 for networks that count from 0.
        schedule: {"name": ..., "params": {...}} of :mod:`ddim_ode.schedules` in place of betas.
        sigma_max: The level to start from. Default: that of the scheduler which ``from_config`` replaces
            (named in ``replaces``, by its spacing and offset), or where that is unknown, or higher, and for
            a named grid, :attr:`ddim_ode.Denoiser.sigma_max`. Of EDM's kind the highest of the model.
        timestep_type, sigma_data, sigma_min: Of EDM's kind, as of the scheduler in ``replaces``.
        profile: A :class:`ddim_ode.Profile` of the pipeline's network (``from_config`` takes it; the
            configuration keeps its JSON): ``set_timesteps(n)`` steps on its grid for the method.

    Raises:
        ValueError: A schedule of flow matching, an unknown method or grid, a plan of another schedule.

    >>> scheduler = DDIMODEScheduler(method="heun")
    >>> scheduler.set_timesteps(2)
    >>> scheduler.timesteps
    tensor([999., 499., 499.])
    """

    _compatibles = [*(member.name for member in KarrasDiffusionSchedulers), *EDM, *SHIFTED]  # noqa: RUF012
    order = 1  # of compiled plans
    _handed_over = False

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 1.0,
        use_flow_sigmas: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        variance_type: str | None = None,
        method: str | None = None,
        grid: str | None = None,
        final: str | None = None,
        eta: float | None = None,
        start: str | None = None,
        plans: Sequence[Mapping[str, Any]] | None = None,
        snap: bool = False,
        time_offset: float = -1.0,
        schedule: Mapping[str, Any] | None = None,
        sigma_max: float | None = None,
        timestep_type: str = "discrete",
        sigma_data: float | None = None,
        sigma_min: float | None = None,
        replaces: str | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        self.register_to_config(**plain(self.config))
        flag("snap", snap)
        if final is not None:
            one_of("final", final, FINALS)
        config = {**self.config, "_class_name": OURS}
        # Of what the network is told and what its answers mean; the pipeline is who asks it.
        self._read = read = reading_of(config)
        noise = read.schedule
        if noise.family != "vp":
            raise ValueError(FLOW)
        if grid is not None:
            check_name(grid)
        self._learns_variance = learns_variance(config)
        told: dict[str, Any] = dict(time_offset=time_offset, snap=snap, sigma_max=sigma_max)
        self._edm = edm = edm_of(config)
        if edm is not None:
            refuse(
                "EDM-type networks are trained at all σ up to sigma_max",
                schedule=schedule,
                snap=snap or None,
            )
            first = edm.sigma_max if sigma_max is None else sigma_max
            told = dict(time=read.time, sigma_max=first / read.spread)
            self._spread = read.spread
        self._denoiser = Denoiser(nobody, noise, read.prediction, **told)
        self._denoiser.limit = read.limit
        if profile is not None:
            exclusive(profile=profile, plans=plans, grid=grid)
            self._denoiser.profile = checked_profile(profile_of(profile), noise)
        self._plans = self._compiled(plans)
        if plans is None:
            self._method = get_method("ddim" if method is None else method)
            self.order = self._method.nfe_per_step
            self._ramp = "ramp" if self._method.rk_steps else None
        if edm is None:
            self.alphas_cumprod = ByTime.of(self._denoiser)
            self.final_alpha_cumprod = torch.tensor(1.0)
            self.alphas = self.alphas_cumprod / torch.cat([torch.ones(1), self.alphas_cumprod[:-1]])
            self.betas = 1 - self.alphas
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1, dtype=torch.float32)

    _adopted = staticmethod(adopted)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Compile, or choose, the plan of the next run, and forget the last one's state.

        Args:
            num_inference_steps: Steps of the method, or with ``plans`` network calls.
            device: Of ``timesteps`` (nfe,), the network time of each call.
            timesteps: The network times to step through instead, falling.
            sigmas: The levels to step through instead, falling, the last included (0 to land on x̂₀).
        """
        exclusive(num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if timesteps is not None or sigmas is not None:
            says = ("plans", *of_method({**self.config, "_class_name": OURS}))
            refuse(
                f"{'sigmas' if timesteps is None else 'timesteps'}= says where to step",
                **{key: self.config[key] for key in says if key in _PLACING},
            )
        if self._plans:
            plan = self._of_calls(num_inference_steps)
        elif sigmas is not None:
            plan = self._compile(grid=host_numbers("sigmas", sigmas) / self._read.spread)
        elif timesteps is not None:
            times = np.atleast_1d(host_numbers("timesteps", timesteps))
            if not (np.diff(times) < 0).all():
                raise ValueError(f"timesteps={times.tolist()} must fall from each to the next")
            plan = self._at(times)
        elif (levels := self._source_levels(num_inference_steps)) is not None:
            plan = self._compile(grid=levels)
        else:
            steps = count("num_inference_steps", num_inference_steps)
            own = self._denoiser.profile
            first = (
                starting_level(self.config, self._denoiser, steps) if own is None else own.sigma_max
            )
            plan = self._compile(steps, self.config["grid"], sigma_max=first)
        self._start(plan, device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """As of :class:`~ddim_ode.interop.plan_run.Turns`; of two calls a step, for :meth:`add_noise`."""
        super().set_begin_index(begin_index)
        self._handed_over = begin_index > 0 and self.order == 2

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float | None = None,
        generator: Generators = None,
        use_clipped_model_output: bool | None = None,
        return_dict: bool = True,
        pred_original_sample: Tensor | None = None,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Take the network's answer at ``sample`` and go on to the next call, or to the end.

        Args:
            model_output: (B, *), or twice the channels where a variance is learned.
            timestep: The next of ``timesteps``.
            sample: (B, *), what the network was shown.
            eta: Only what the scheduler was made with; 0 and None ask for nothing.
            generator: Of the step noise, if any.
            use_clipped_model_output: True or None where x̂₀ is limited.
            return_dict: False returns a tuple.
            pred_original_sample: (B, *), with EDM's kind x̂₀ in place of what ``model_output`` says.

        Returns:
            ``prev_sample``, what to show the network next, and ``pred_original_sample``, x̂₀ of this call.

        Raises:
            ValueError: A step out of order (checked where t is a number or on the CPU, so as not to wait
                for a device), or an option of the scheduler's constructor.
        """
        plan = self._running()
        if self._handed_over:
            raise ValueError(_HANDED_OVER.format(self._call, plan.method))
        clipped = use_clipped_model_output
        if clipped is not None and not flag("use_clipped_model_output", clipped) and self.limit:
            raise ValueError(
                f"use_clipped_model_output=False: x̂₀ is limited ({self.limit}), and ε̂ is always the one "
                "that goes with it; drop it (or use None)"
            )
        asked = 0.0 if eta is None else number("eta", eta)
        if asked not in (0.0, self.config["eta"]):
            raise ValueError(
                f"eta={asked:g}: step noise is compiled in set_timesteps; make the scheduler with "
                f"DDIMODEScheduler(..., eta={asked:g})"
            )
        check_generators(generator)
        flag("return_dict", return_dict)
        check_floating(sample, "sample")
        check_floating(model_output, "model_output")
        answer = model_output
        if self._learns_variance and doubled_axis(model_output, sample) is not None:
            answer = halved(model_output, sample, self._denoiser.prediction)
        shown, x0 = self._stepped(answer, timestep, sample, generator, pred_original_sample)
        if not return_dict:
            return shown, x0
        return DDIMSchedulerOutput(prev_sample=shown, pred_original_sample=x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As of :class:`~ddim_ode.interop.noising.Noising`; makes the state that a later begin asks for."""
        noised = super().add_noise(original_samples, noise, timesteps)
        self._handed_over = False
        return noised

    def _source_levels(self, steps: int | None) -> Array | None:
        """σ (N+1,) where an EDM-type scheduler steps that this one replaces; None where others say."""
        others = self._denoiser.profile is not None or self.config["grid"] is not None
        if self._spread is None or others:
            return None
        refuse("the replaced scheduler says where to step; give grid=", final=self.config["final"])
        return levels_of_source(self.config, self._read, count("num_inference_steps", steps))

    def _at(self, times: Array) -> Plan:
        """The plan through those network times."""
        if self._spread is None:
            return self._compile(timesteps=times - self._denoiser.time_offset)
        levels = np.array([self._read.level(t) for t in times.tolist()]) / self._spread
        return self._compile(grid=np.append(levels, 0.0))

    def _rest(self, grid: Array) -> Plan:
        return self._compile(grid=grid, method=self._later)

    def _begin(self, plan: Plan, call: int) -> None:
        super()._begin(plan, call)
        self._handed_over = False

    def _compile(
        self,
        steps: int | None = None,
        grid: str | Array | None = None,
        timesteps: Array | None = None,
        sigma_max: float | None = None,
        method: Method | None = None,
    ) -> Plan:
        named, least = grid is None or isinstance(grid, str), None
        if self._edm is not None and isinstance(grid, str) and not is_open(grid):
            least = self._edm.sigma_min / self._read.spread
        return plan_for(
            self._denoiser,
            method or self._method,
            steps=steps,
            grid=grid,
            timesteps=timesteps,
            sigma_max=sigma_max,
            sigma_min=least,
            final=self.config["final"] if named else None,
            start=self._ramp if self.config["start"] is None else self.config["start"],
            eta=self.config["eta"],
        )
