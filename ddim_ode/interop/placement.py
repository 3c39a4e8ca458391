"""Where a diffusers scheduler steps: the levels of its state, and the times its network is told.

A scheduler keeps these apart: σ of the state before each step (``asked``) and after it
(``reached``), and the integer or fractional t it passes on (``told``). That they belong together is
what :mod:`ddim_ode.diagnosis` checks. The DDIM scheduler computes the level it steps to as
t − T//N and never looks at its own next timestep.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._base.checks import numbers
from ..denoising.denoiser import Denoiser
from ..schedules.schedule import Array, ArrayLike, Schedule
from .config import SHIFTED
from .reading import own_keys, read_scheduler

_RISING = ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler")
_STRIDING = ("DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler", *SHIFTED)
_LISTED = ("DDPMScheduler", "DDPMParallelScheduler", "LCMScheduler", "TCDScheduler")
# The others keep σ. These call twice a step: an entry of the second call follows that of each level.
_TWICE = (
    *("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
    *("DPMSolverSDEScheduler", "FlowMatchHeunDiscreteScheduler"),
)


_TAKES_SIGMAS = "FlowMatchEulerDiscreteScheduler"


class Placement(NamedTuple):
    """Of each step (N,): σ of the state it begins at, σ that it reaches, and the network's time there."""

    asked: Array
    reached: Array
    told: Array


def placement(
    scheduler: Any,
    schedule: Schedule,
    steps: int,
    mu: float | None = None,
    sigmas: ArrayLike | None = None,
    ramp: bool = False,
) -> Placement:
    """The levels of ``scheduler`` at ``set_timesteps(steps)``, which is called on a copy of it.

    Args:
        scheduler: Of a class that :mod:`.config` knows.
        schedule: As :func:`ddim_ode.interop.config.schedule_of` reads it.
        steps: Its ``num_inference_steps``.
        mu: The shift by the picture's size, for schedulers with ``use_dynamic_shifting``.
        sigmas: Of ``set_timesteps``, (steps,), for a flow scheduler that takes them.
        ramp: Whether they are 1, (N−1)/N, ... 1/N where they are not given, and a scheduler takes them.

    Raises:
        ValueError: The scheduler goes up, cannot take so many steps, or steps to levels that its
            schedule does not have.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name in _RISING:
        raise ValueError(
            f"{name} goes up, from data to noise, and a grid of levels falls; give grid= a name or σ's"
        )
    if mu is not None and not config.get("use_dynamic_shifting"):
        raise ValueError(
            f"mu={mu!r}: {name} has use_dynamic_shifting off, and no use for it; drop mu"
        )
    scheduler = copy.deepcopy(scheduler)
    options: dict[str, Any] = {} if mu is None else dict(mu=mu)
    if sigmas is not None:
        if name != _TAKES_SIGMAS:
            raise ValueError(f"sigmas: {name} takes none here; drop sigmas")
        options["sigmas"] = handed = numbers("sigmas", sigmas)
        if handed.shape != (steps,):
            raise ValueError(f"sigmas has shape {handed.shape} for {steps} steps; give ({steps},)")
    elif ramp and name == _TAKES_SIGMAS:
        options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    try:
        scheduler.set_timesteps(steps, **options)
    except (ValueError, IndexError, TypeError, AssertionError, ArithmeticError) as error:
        raise ValueError(f"{name} cannot take {steps} steps: {error}") from error
    return placed(scheduler, schedule, name, f"{name} with {steps} steps")


def placed(scheduler: Any, schedule: Schedule, name: str, whose: str) -> Placement:
    """The levels of a scheduler whose ``set_timesteps`` has been called.

    name: Of its class, or of the known one that it is derived from. whose: Its steps, for messages.
    """
    try:
        if name == "DDIMODEScheduler":
            if schedule.family == "ve":  # whose σ is that of EDM's pipelines
                grid = np.array(scheduler.plan.grid) * scheduler._read.spread
                return Placement(grid[:-1], grid[1:], grid[:-1])
            grid = np.array(scheduler.plan.grid)
            told = schedule.time(grid[:-1]) + scheduler.config.time_offset
            return Placement(grid[:-1], grid[1:], told)
        if name == "DDIMODEFlowScheduler":
            grid, calls = np.array(scheduler.plan.grid), scheduler.plan.level_calls()
            return Placement(grid[:-1], grid[1:], _numbers(scheduler.timesteps)[calls])
        if name in _STRIDING:
            return _striding(scheduler, schedule)
        if name in _LISTED:
            times = _numbers(scheduler.timesteps)
            asked = schedule.sigma(times + 1)
            last = schedule.sigma(1.0) if name == "TCDScheduler" else 0.0
            return Placement(asked, np.append(asked[1:], last), times)
        calls = 2 if name in _TWICE else 1
        times = _numbers(scheduler.timesteps)[::calls]
        kept = _numbers(scheduler.sigmas)
        kept = np.append(kept[:1], kept[1::calls])[: len(times) + 1]
        if scheduler.config.get("invert_sigmas"):
            kept = 1 - kept
        # With flow matching theirs are the times of ours.
        levels = schedule.sigma(kept) if schedule.family == "flow" else schedule.check_sigma(kept)
        # EDM-type networks are told a function of σ, and ours are told σ itself.
        return Placement(levels[:-1], levels[1:], levels[:-1] if schedule.family == "ve" else times)
    except ValueError as error:
        raise ValueError(
            f"{whose} goes to levels that its schedule does not have ({error}); give "
            "grid= a name or σ's"
        ) from error


def starting_level(config: Mapping[str, Any], denoiser: Denoiser, steps: int) -> float | None:
    """σ that a :class:`~ddim_ode.interop.scheduler.DDIMODEScheduler` starts from in so many steps.

    Args:
        config: Its own, with the settings of the scheduler that it ``replaces``.
        denoiser: Of its schedule and prediction.
        steps: Of ``set_timesteps``.

    Returns:
        The level where the replaced scheduler would start, or the highest at which the network can tell
        (:attr:`ddim_ode.Denoiser.sigma_max`) if that is lower. None where the configuration says by itself
        where to start (``grid``, ``sigma_max``, a schedule in place of betas), or where nobody knows: the
        denoiser's default.
    """
    name, schedule = config["replaces"], denoiser.schedule
    if name is None or any(config[key] is not None for key in ("grid", "sigma_max", "schedule")):
        return None
    kept = {key: config[key] for key in own_keys(name) - {"sigma_max"} if key in config}
    try:
        theirs = read_scheduler({**kept, "_class_name": name})
        first = placement(theirs, schedule, steps).asked[0]
    except ValueError:  # it goes up, or cannot take so many steps
        return None
    t = schedule.time(first)
    if abs(t - np.rint(t)) < 1e-3:  # a float32 copy of a trained level
        first = schedule.sigma(np.rint(t))
    # One step of timestep_spacing="leading" starts at its end.
    return min(float(first), denoiser.sigma_max) if first > schedule.sigma_min else None


def _striding(scheduler: Any, schedule: Schedule) -> Placement:
    times = _numbers(scheduler.timesteps)
    if type(scheduler).__name__ == "PNDMScheduler":  # it lists the calls inside of its steps, too
        times = np.asarray(scheduler._timesteps, dtype=np.float64)[::-1]
    after = times - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    last = 0.0 if scheduler.config.set_alpha_to_one else float(schedule.sigma(1.0))
    reached = np.where(after >= 0, schedule.sigma(np.maximum(after, 0) + 1), last)
    return Placement(schedule.sigma(times + 1), reached, times)


def _numbers(values: Any) -> Array:
    return np.asarray(values.double().cpu().numpy())
