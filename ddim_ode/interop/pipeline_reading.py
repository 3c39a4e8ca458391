"""What a pipeline's scheduler says of the network: schedule, prediction, network time, limits.

Classes that :mod:`.config` knows are read by it, and those derived from them; others are taken for
variance-preserving diffusion where they keep ``alphas_cumprod``. :mod:`.pipeline` checks the reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import schedules
from .._base.checks import number, one_of
from ..denoising.guidance import Limit
from ..schedules.schedule import Array, Schedule
from .config import (
    KNOWN,
    OURS,
    PREDICTIONS,
    edm_of,
    limit_of,
    prediction_of,
    schedule_of,
    source_of,
)
from .edm import CLOCKS
from .placement import Placement, placed
from .reading import own_keys, read_scheduler

_OTHERS = dict(
    SCMScheduler="its states are those of TrigFlow, noised anew at each step",
    FlowMapEulerDiscreteScheduler="its network maps from one time to another, and is no ODE's velocity",
    CMStochasticIterativeScheduler="a consistency model jumps to data, and is no ODE's velocity",
    VQDiffusionScheduler="its states are discrete",
    AmusedScheduler="its states are discrete",
    HeliosScheduler="its stages change the resolution of the state on the way",
)
ROUNDING = 1.0  # of 1000: schedulers round their network times
_TIMES = (("num_train_timesteps", 1000), ("time_offset", -1.0))


class Reading(NamedTuple):
    """What a scheduler says of the network.

    Networks of EDM's kind see x/√(σ² + σ_data²), which is the state of variance-preserving diffusion of
    data x₀/σ_data at the level σ/σ_data; what they return is its v, or −v.

    Attributes:
        name: The known class that the scheduler is of, or is like.
        T: Network times are t·T with flow matching, and t + ``offset`` else.
        rising: With flow matching, whether they rise to the data, and its σ with them (Mochi).
        shift: With flow matching, of the levels over the times that the network is told (CogView4).
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
    rising: bool = False
    shift: float = 1.0

    def time(self, t: Array, sigma: Array) -> Array:
        """The network time, as ``Denoiser(time=)`` has it."""
        if self.clock:
            told: Array = CLOCKS[self.clock](torch.tensor(sigma * self.spread)).numpy()
            return told
        if self.schedule.family != "flow":
            return t + self.offset
        told = t / (self.shift - (self.shift - 1) * t)
        return (1 - told if self.rising else told) * self.T

    def level(self, told: float) -> float:
        """The entry of the scheduler's own ``sigmas`` at a network time."""
        if self.clock:
            return math.exp(4 * told) if self.clock == "log" else math.tan(told * math.pi / 2)
        if self.schedule.family == "flow":
            t = told / self.T
            return self.shift * t / (1 + (self.shift - 1) * t)
        return float(self.schedule.sigma(np.array(told - self.offset)))

    def hears(self, told: Array, asked: Array) -> bool:
        """Whether a network is told these times at these levels, but for rounding."""
        own = self.time(self.schedule.time(asked), asked)
        return bool((np.abs(own - told) <= ROUNDING * self.T / 1000).all())

    def placed(self, scheduler: Any) -> Placement:
        """Where a scheduler of this reading steps, its ``set_timesteps`` called."""
        if self.clock:
            levels = scheduler.sigmas.double().cpu().numpy() / self.spread
            told = scheduler.timesteps.double().cpu().numpy()
            if self.name == OURS:
                levels, told = np.array(scheduler.plan.grid), told[scheduler.plan.level_calls()]
            # with final_sigmas_type="sigma_min" the last step stays where it is
            n = len(told) - int(levels[-1] > (1 - 1e-6) * levels[-2])
            return Placement(levels[:n], levels[1 : n + 1], told[:n])
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
    if known:
        return reading_of({**config, "_class_name": known[0]})
    T = int(config.get("num_train_timesteps", 1000))
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


def reading_of(config: Mapping[str, Any]) -> Reading:
    """What the configuration of a class known to :mod:`.config` says; it names the class."""
    name, schedule = config["_class_name"], schedule_of(config)
    if (edm := edm_of(config)) is None:
        T, offset = (number(key, config.get(key, n)) for key, n in _TIMES)
        read = Reading(name, schedule, prediction_of(config), limit_of(config), int(T), offset)
        rises = schedule.family == "flow" and bool(config.get("invert_sigmas"))
        return read._replace(sign=-1.0, rising=True) if rises else read
    sign = -1.0 if edm.negated else 1.0
    levels = schedules.exponential(rate=8.0)  # any that has them, up to 2980 here
    return Reading(name, levels, "v", Limit(), clock=edm.clock, spread=edm.sigma_data, sign=sign)


def levels_of_source(config: Mapping[str, Any], read: Reading, steps: int) -> Array | None:
    """σ (steps+1,) where the EDM-type scheduler that ours replaces would step, or one less where its last
    step stays where it is; None where nobody knows."""
    name = source_of({**config, "_class_name": OURS})
    if name in (None, OURS):
        return None
    kept = {key: config[key] for key in own_keys(str(name)) & config.keys()}
    theirs = read_scheduler({**kept, "_class_name": name})
    theirs.set_timesteps(steps)
    placed = read._replace(name=str(name)).placed(theirs)
    return np.append(placed.asked, placed.reached[-1])
