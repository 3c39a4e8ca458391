"""What a pipeline's scheduler says of the network: schedule, prediction, network time, limits.

Classes that :mod:`.config` knows are read by it, and those derived from them; others are taken for
variance-preserving diffusion where they keep ``alphas_cumprod``. :mod:`.pipeline` checks the reading.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import schedules
from .._base.checks import one_of
from ..denoising.guidance import Limit
from ..schedules.schedule import Array, Schedule
from .config import KNOWN, PREDICTIONS, edm_of, limit_of, prediction_of, schedule_of
from .edm import CLOCKS
from .placement import Placement, placed

_OTHERS = dict(
    SCMScheduler="its states are those of TrigFlow, noised anew at each step",
    FlowMapEulerDiscreteScheduler="its network maps from one time to another, and is no ODE's velocity",
    CMStochasticIterativeScheduler="a consistency model jumps to data, and is no ODE's velocity",
    VQDiffusionScheduler="its states are discrete",
    AmusedScheduler="its states are discrete",
    HeliosScheduler="its stages change the resolution of the state on the way",
)


class Reading(NamedTuple):
    """What a scheduler says of the network.

    Networks of EDM's kind see x/√(σ² + σ_data²), which is the state of variance-preserving diffusion of
    data x₀/σ_data at the level σ/σ_data; what they return is its v, or −v.

    Attributes:
        name: The known class that the scheduler is of, or is like.
        T: Network times are t·T with flow matching, and t + ``offset`` else.
        clock: With EDM's kind a function of σ instead, by its name in :mod:`.edm`.
        spread: σ_data. sign: Of the network's answers.
    """

    name: str
    schedule: Schedule
    prediction: str
    limit: Limit
    T: int = 1000
    offset: float = -1.0
    clock: str = ""
    spread: float = 1.0
    sign: float = 1.0

    def time(self, t: Array, sigma: Array) -> Array:
        """The network time, as ``Denoiser(time=)`` has it."""
        if self.clock:
            told: Array = CLOCKS[self.clock](torch.tensor(sigma * self.spread)).numpy()
            return told
        return t * self.T if self.schedule.family == "flow" else t + self.offset

    def level(self, told: float) -> float:
        """The entry of the scheduler's own ``sigmas`` at a network time."""
        if self.clock:
            return math.exp(4 * told) if self.clock == "log" else math.tan(told * math.pi / 2)
        if self.schedule.family == "flow":
            return told / self.T
        return float(self.schedule.sigma(np.array(told - self.offset)))

    def placed(self, scheduler: Any) -> Placement:
        """Where a scheduler of this reading steps, its ``set_timesteps`` called."""
        if self.clock:
            levels = scheduler.sigmas.double().cpu().numpy() / self.spread
            told = scheduler.timesteps.double().cpu().numpy()
            return Placement(levels[: len(told)], levels[1 : len(told) + 1], told)
        return placed(scheduler, self.schedule, self.name, type(scheduler).__name__)


def reading(scheduler: Any) -> Reading:
    """What is known of a pipeline's scheduler.

    Raises:
        ValueError: Its states are not those of a schedule known here.
    """
    cls = type(scheduler)
    names = [c.__name__ for c in cls.__mro__]
    for name, reason in _OTHERS.items():
        if name in names:
            raise ValueError(f"{cls.__name__}: {reason}; no solver of ours can run such a pipeline")
    config = dict(scheduler.config)
    known = [name for name in names if name in KNOWN]
    if not known and "sigma_data" in config:
        known = ["EDMEulerScheduler"]  # others of EDM's kind are taken for it
    T = int(config.get("num_train_timesteps", 1000))
    if known:
        config["_class_name"] = known[0]
        if (edm := edm_of(config)) is not None:
            levels = schedules.exponential(rate=8.0)  # any that has them, up to 2980 here
            sign = -1.0 if edm.negated else 1.0
            return Reading(
                known[0], levels, "v", Limit(), clock=edm.clock, spread=edm.sigma_data, sign=sign
            )
        schedule, limit = schedule_of(config), limit_of(config)
        offset = float(config.get("time_offset", -1.0))
        return Reading(known[0], schedule, prediction_of(config), limit, T, offset)
    squares = getattr(scheduler, "alphas_cumprod", None)
    written = config.get("prediction_type", "epsilon")
    if not isinstance(squares, Tensor) or squares.shape != (T,):
        raise ValueError(
            f"{cls.__name__} has no alphas_cumprod of {T} levels, and is none of the schedulers whose "
            "states are known here; give the pipeline one that is, such as a DDIMScheduler or "
            "FlowMatchEulerDiscreteScheduler of the configuration that its network was trained with"
        )
    prediction = PREDICTIONS[one_of("prediction_type", written, PREDICTIONS)]
    like = "DDIMScheduler" if "set_alpha_to_one" in config else "DDPMScheduler"
    if hasattr(scheduler, "sigmas"):
        like = "DPMSolverMultistepScheduler"
    schedule = schedules.from_alphas_cumprod(squares.double().cpu().numpy())
    return Reading(like, schedule, prediction, Limit(), T)
