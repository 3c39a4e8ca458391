"""Where a diffusers scheduler steps: the levels of its state, and the times its network is told.

A scheduler keeps these apart: σ of the state before each call (``asked``) and after its step
(``reached``), and the integer or fractional t it passes on (``told``). That they belong together is
what :mod:`ddim_ode.diagnosis` checks. The DDIM scheduler computes the level it steps to as
t − T//N and never looks at its own next timestep.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np

from ..schedule import Array, Schedule

_STRIDING = ("DDIMScheduler", "DDIMParallelScheduler")
_LISTED = ("DDPMScheduler", "DDPMParallelScheduler")
_IN_SIGMA = (
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler"),
    *("UniPCMultistepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    *("LMSDiscreteScheduler", "SASolverScheduler"),
)


class Placement(NamedTuple):
    """Of each call (N,): σ of the state it looks at, σ that its step reaches, and the network's time."""

    asked: Array
    reached: Array
    told: Array


def placement(scheduler: Any, schedule: Schedule, steps: int) -> Placement | None:
    """The levels of ``scheduler`` at ``set_timesteps(steps)``, which is called on a copy of it.

    None for classes of more calls a step or of levels that we do not know. schedule: as
    :func:`ddim_ode.interop.config.schedule_of` reads it. ValueError where the scheduler cannot take so
    many steps.
    """
    name = type(scheduler).__name__
    if name not in (*_STRIDING, *_LISTED, *_IN_SIGMA) or schedule.family != "vp":
        return None
    scheduler = copy.deepcopy(scheduler)
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{name} cannot take {steps} steps: {error}") from error
    told = scheduler.timesteps.double().cpu().numpy()
    if name in _IN_SIGMA:
        sigmas = np.minimum(scheduler.sigmas.double().cpu().numpy(), schedule.sigma_max)
        return Placement(sigmas[: len(told)], sigmas[1 : len(told) + 1], told)
    asked = schedule.sigma(told + 1)
    if name in _LISTED:
        return Placement(asked, np.append(asked[1:], 0.0), told)
    after = told - scheduler.config.num_train_timesteps // steps
    last = 0.0 if scheduler.config.set_alpha_to_one else float(schedule.sigma(1.0))
    reached = np.where(after >= 0, schedule.sigma(np.maximum(after, 0) + 1), last)
    return Placement(asked, reached, told)
