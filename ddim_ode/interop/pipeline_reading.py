"""What a pipeline's scheduler says of the network: schedule, prediction, network time, limits.

Classes that :mod:`.config` knows are read by it, and those derived from them; others are taken for
variance-preserving diffusion where they keep ``alphas_cumprod``. :mod:`.pipeline` checks the reading.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .. import schedules
from .._base.checks import one_of
from ..denoising.guidance import Limit
from ..schedules.schedule import Array, Schedule
from .config import DISCRETE, FLOW, PREDICTIONS, limit_of, prediction_of, schedule_of
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

    name: The known class that it is of, or is like. T: Its network times are t·T with flow matching, and
    t − 1 else.
    """

    name: str
    schedule: Schedule
    prediction: str
    limit: Limit
    T: int

    def time(self, t: Array, sigma: Array) -> Array:
        """The network time, as ``Denoiser(time=)`` has it."""
        return t * self.T if self.schedule.family == "flow" else t - 1.0

    def placed(self, scheduler: Any) -> Placement:
        """Where a scheduler of this reading steps, its ``set_timesteps`` called."""
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
    known = [name for name in names if name in (*DISCRETE, *FLOW)]
    T = int(config.get("num_train_timesteps", 1000))
    if known:
        config["_class_name"] = known[0]
        limit = limit_of(config)
        return Reading(known[0], schedule_of(config), prediction_of(config), limit, T)
    if "sigma_data" in config:
        raise ValueError(
            f"{cls.__name__} is of EDM's kind (sigma_data={config['sigma_data']:g}), whose networks this "
            "version does not read from a pipeline; wrap the network as ddim_ode.Denoiser(net, "
            "schedules.ve(...), time=...)"
        )
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
