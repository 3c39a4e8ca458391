"""What takes a scheduler's place in a pipeline that from_pipeline asks.

Its ``step`` hands the model output over and returns the next state to ask about. The time of that state it
writes into the tensor of time steps that the pipeline iterates over, whose entries are views of it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

CALLS = 10_000  # of a run, after which the pipeline is called anew, and encodes its prompts again
_CHANGED = (
    "{} changed the state between two steps, as pipelines do that inpaint with a network of plain "
    "channels or hold a first frame, and callback_on_step_end may: its network was not asked about the "
    "state in question. Leave the mask or the callback out (ddim_ode.sample(..., known=) inpaints any "
    "model)"
)


class Stopped(BaseException):
    """Ends a pipeline's call from inside of its scheduler; no Exception, so that none catches it."""


class Opening(NamedTuple):
    """The first step of a pipeline's run, as the pipeline made it.

    Attributes:
        arguments: What ``scheduler.step`` was given and cannot do without, by name.
        time: Its time, as the pipeline gave it.
        state: Its sample as the network saw it.
        scaled: Whether that is the sample times ᾱ.
        scheduler: The pipeline's own, a copy, after the ``set_timesteps`` of the call.
        mu: What that was told of the picture's size, None where nothing.
    """

    arguments: dict[str, Any]
    time: float
    state: Tensor
    scaled: bool
    scheduler: Any
    mu: float | None


class StandIn:
    """In the place of a pipeline's scheduler; of a subclass of its class, see :func:`stand_in`.

    What it does not do itself is done by a copy of that scheduler. Its list of time steps has room for
    :data:`CALLS`: until the first step they are the scheduler's, from there on the one in question.
    """

    order = 1  # img2img pipelines multiply by it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_own" not in self.__dict__:
            raise AttributeError(name)
        own = getattr(self._own, name)
        run = self._loop.run
        if name != "sigmas" or not isinstance(own, Tensor) or run is None or run.asked is None:
            return own
        # Pipelines that read sigmas[i] in step i (Wan, Cosmos) are asked at another level than that.
        level = self._loop.level_of(float(run.times[0]))
        return own.new_full((1,), level).expand(len(run.times) + 1)

    def __deepcopy__(self, memo: Any) -> Any:
        raise ValueError(
            f"the pipeline copies its scheduler ({type(self).__name__}), to step several states side by "
            "side (video and sound, or frame by frame), and a model has one state; "
            "ddim_ode.interop.diffusers.load takes its network"
        )

    def _run(self) -> Any:
        """The run under way. Only its own thread may go on with it."""
        run = self._loop.run
        if run is None or threading.current_thread() is not run.thread:
            self._loop.spoiled = True  # a call keeps its guidance and the like in the pipeline
            raise RuntimeError(
                "this pipeline is in use by from_pipeline; close that model before calling the pipeline"
            )
        if run.stopping:
            raise Stopped
        return run

    def _set_timesteps(self, *args: Any, **options: Any) -> None:
        run, own = self._run(), self._own
        own.set_timesteps(*args, **options)
        told = inspect.signature(type(own).set_timesteps).bind(own, *args, **options).arguments
        self._mu = told.get("mu")
        self._levels = levels = self._loop.times_of(own)
        self._copies = 1
        several = -(-CALLS // len(levels))
        if any(told.get(name) is not None for name in ("sigmas", "timesteps")):
            # Such pipelines take len(timesteps) for the number of steps, of which a strength is a share.
            self._copies = several
            times = levels.repeat_interleave(several)
        else:
            times = torch.cat([levels, levels[-1:].expand(len(levels) * (several - 1))])
        run.times = self.timesteps = times.to(told.get("device") or own.timesteps.device)
        run.left = len(times)

    def _set_begin_index(self, begin_index: int = 0) -> None:
        self._run().left -= begin_index
        times = self._own.timesteps  # of which a level may have two
        begin = self._levels[begin_index // self._copies]
        self._own.set_begin_index(int((times.double().cpu() - begin.double()).abs().argmin()))

    def _go_back(self, index: int) -> None:
        raise ValueError(
            f"{self._loop.name} sets scheduler._step_index, to take steps twice or leave some out (Cosmos "
            "guides x̂₀ between the two), and a model asks in an order of its own; DDIMODEScheduler runs in "
            "Cosmos' pipelines, and ddim_ode.interop.diffusers.load takes the network"
        )

    def _scale_model_input(self, sample: Tensor, *args: Any, **options: Any) -> Tensor:
        if self._run().asked is not None:
            return sample  # it is as the network takes it
        scaled: Tensor = self._own.scale_model_input(sample, *args, **options)
        return scaled

    def _noised(self, name: str, *args: Any, **options: Any) -> Tensor:
        own, method = self._own, getattr(type(self._own), name)
        bound = inspect.signature(method).bind(own, *args, **options).arguments
        for which in bound.keys() & {"timestep", "timesteps"}:
            bound[which] = bound[which].to(own.timesteps.dtype)  # whole numbers look up a table
        noised: Tensor = method(**bound)
        return noised

    def _step(self, *args: Any, **options: Any) -> Any:
        run = self._run()
        bound = self._signature.bind(self, *args, **options).arguments
        if run.asked is None:
            state = run.turn(self._opening(bound))
        else:
            self._check(run, bound["sample"], bound["timestep"])
            state = run.turn(bound["model_output"])
        return self._loop.stepped(state, bound.get("return_dict", True))

    def _opening(self, bound: dict[str, Any]) -> Opening:
        parameters, own = self._signature.parameters, copy.deepcopy(self._own)
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        needed = [name for name, p in parameters.items() if (p.kind, p.default) == plain]
        arguments = {name: bound[name] for name in needed if name != "self"}
        time = float(torch.as_tensor(bound["timestep"]).flatten()[0])
        nearest = int((own.timesteps.double().cpu() - time).abs().argmin())
        arguments["timestep"] = own.timesteps[nearest]  # a whole number where the scheduler counts
        state = sample = arguments["sample"]
        if hasattr(own, "scale_model_input"):
            state = own.scale_model_input(sample, arguments["timestep"])
        return Opening(arguments, time, state, not torch.equal(state, sample), own, self._mu)

    def _check(self, run: Any, sample: Tensor, t: Any) -> None:
        """ValueError unless the pipeline asked its network about the state and time in question."""
        asked, times = run.asked, run.times
        changed = not asked.is_inference() and asked._version != run.version
        same = sample.data_ptr() == asked.data_ptr() and sample.shape == asked.shape
        if changed or not (same or _alike(sample, asked)):
            raise ValueError(_CHANGED.format(self._loop.name))
        t = torch.as_tensor(t)
        inside = times.data_ptr() <= t.data_ptr() < times.data_ptr() + times.nbytes
        if not inside and not _alike(t.flatten()[:1], times[:1]):
            raise ValueError(
                f"{self._loop.name} does not read its times from scheduler.timesteps as it goes: it was to "
                f"ask at {float(times[0]):g} and asked at {float(t.flatten()[0]):g}, and a model is asked "
                "at any; ddim_ode.interop.diffusers.load takes its network"
            )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether they hold the same numbers, NaN included, up to the rounding of the coarser of them."""
    if one.shape != other.shape:
        return False
    coarse = max(torch.finfo(v.dtype).eps for v in (one, other) if v.is_floating_point())
    pair = one.to(other.device, torch.float64), other.double()
    return torch.allclose(*pair, rtol=2 * coarse, atol=0.0, equal_nan=True)


def _of_own(name: str, one: StandIn) -> Any:
    return one.__getattr__(name)


def stand_in(scheduler: Any, loop: Any) -> Any:
    """A :class:`StandIn` that is of the scheduler's class, with the signatures that pipelines inspect."""
    cls = type(scheduler)

    def like(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(getattr(cls, name))
        def method(self: Any, *args: Any, **options: Any) -> Any:
            return own(self, *args, **options)

        return method

    def noised(name: str) -> Callable[..., Any]:
        return lambda self, *args, **options: self._noised(name, *args, **options)

    methods: dict[str, Callable[..., Any]] = dict(
        set_timesteps=StandIn._set_timesteps,
        set_begin_index=StandIn._set_begin_index,
        scale_model_input=StandIn._scale_model_input,
        step=StandIn._step,
        add_noise=noised("add_noise"),
        scale_noise=noised("scale_noise"),
    )
    parts: dict[str, Any] = {
        name: like(name, own) for name, own in methods.items() if hasattr(cls, name)
    }
    for name, _ in inspect.getmembers(cls, lambda member: isinstance(member, property)):
        if not name.startswith("_"):
            parts[name] = property(functools.partial(_of_own, name))
    parts["_step_index"] = property(functools.partial(_of_own, "_step_index"), StandIn._go_back)
    made: Any = object.__new__(type(cls.__name__, (StandIn, cls), parts))
    own = copy.deepcopy(scheduler)
    made.__dict__.update(_own=own, _loop=loop, _signature=inspect.signature(cls.step))
    made.timesteps = own.timesteps
    return made
