"""A plan in the hands of a pipeline, which asks its network itself."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .._base.checks import count, device_of, exclusive, number, one_of, several
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import Limit
from ..denoising.network import check_output
from ..schedules.schedule import Array
from ..solve.fixed import x0_of
from ..solve.loop import Run
from ..solve.plan_checks import check_plan, warn_of_another_ode
from ..solvers.infinity import from_infinity
from ..solvers.methods import RK_START_FROM, Method
from ..solvers.plan import Plan
from ..solvers.profile import Profile
from ..solvers.tableau import Singlestep
from .adoption import check_config, of_method, plan_of, trees_of

if TYPE_CHECKING:
    from typing_extensions import Self

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

    spread: With EDM's kind, the standard deviation of the data. A pipeline's states are x₀ + σε, and ours
    are what their network sees, x/√(σ²+σ_data²).
    """

    def __init__(
        self, plan: Plan, denoiser: Denoiser, sample: Tensor, spread: float | None = None
    ) -> None:
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        self.sizes = None if spread is None else sizes_of(plan, spread)
        self.spread = 1.0 if spread is None else spread
        if self.sizes is not None:
            x = x / self.sizes[0]
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

    def step(
        self, sample: Tensor, answer: Tensor, generator: Generators, dtype: torch.dtype
    ) -> Tensor:
        """File the network's answer at ``sample``; on to the next call, or to the end. dtype: of what is
        handed back."""
        before, self.generator = (self.run.copied(), self.shown), generator
        self.before = None if self.sizes is None else before
        try:
            y = self._kept(sample)
            if self.run.committed:
                self.run.x = y
            vector = self._vector(y, answer)
            x0 = x0_of(self.denoiser, self.nodes[self.call], y, vector)
            self.shown = self._next(vector)
            self.x0 = x0 if self.sizes is None else x0 * self.spread
            return self._handed.to(dtype)
        except BaseException:
            self.run, self.shown = before
            raise

    def back(self) -> None:
        """Take the last step back, once, with EDM's kind."""
        if self.before is None:
            raise ValueError("there is no step to take back")
        (self.run, self.shown), self.before = self.before, None

    @property
    def _handed(self) -> Tensor:
        """What is shown, as the pipeline has it."""
        return self.shown if self.sizes is None else self.shown * self.sizes[self.call]

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
        if self.sizes is None and sample.dtype == self.shown.dtype:
            return sample
        ours = self._handed.to(sample.dtype) == sample
        theirs = sample.to(self.shown.dtype)
        if self.sizes is not None:
            theirs = theirs / self.sizes[self.call]
        return torch.where(ours, self.shown, theirs)


def sizes_of(plan: Plan, spread: float) -> list[float]:
    """√(σ²+σ_data²) at each of its calls (nfe+1,) and at its end."""
    levels = [*(node.sigma for node in plan.nodes), plan.grid[-1]]
    return [spread * math.hypot(1.0, level) for level in levels]


def nobody(x: Tensor, t: Tensor) -> Tensor:
    """The network of a scheduler's denoiser."""
    raise RuntimeError("the network of a pipeline is the pipeline's to ask")


class Turns:
    """A scheduler's plans, and where it is in one: which call is due, and what pipelines ask of that."""

    config: Mapping[str, Any]
    timesteps: Tensor
    num_inference_steps: int | None = None
    _denoiser: Denoiser
    _method: Method  # unless there are compiled plans, here by their calls
    _later: Method  # of runs that begin later
    _plans: Mapping[int, Plan]
    _whole: Plan | None = None  # of set_timesteps; the one that runs may begin later on
    _plan: Plan | None = None
    _run: PlanRun | None = None
    _call = 0
    _spread: float | None = None  # of the data, with EDM's kind

    @classmethod
    def from_config(cls, config: Any = None, *args: Any, **options: Any) -> Any:
        """Of another scheduler's configuration, or our own; options go before what it says.

        What it says by its class's defaults counts as well (diffusers would put ours in their place).
        ValueError for a scheduler of another kind of diffusion than ours, or an unknown option.
        """
        if isinstance(options.get("grid"), Profile):
            exclusive(grid=options["grid"], profile=options.get("profile"))
            options["profile"] = options.pop("grid")
        if isinstance(options.get("profile"), Profile):
            options["profile"] = json.loads(options["profile"].to_json())
        config = cls._adopted(config, options)
        if not options.get("return_unused_kwargs"):
            known = [n for n in inspect.signature(cls.__init__).parameters if n != "self"]
            for name in options.keys() - {"return_unused_kwargs"}:
                one_of("option", name, known)
        return super().from_config(config, *args, **options)  # type: ignore[misc]  # of ConfigMixin

    @classmethod
    def from_plans(
        cls, plans: Plan | Sequence[Plan], config: Mapping[str, Any], **options: Any
    ) -> Self:
        """Around compiled plans, one for each number of network calls.

        config: of the pipeline's own scheduler, for the schedule and prediction type. options: more
        arguments of the constructor. ValueError for two plans of as many calls.
        """
        check_config(config)
        trees = trees_of(plans)
        replaced = of_method(config)
        kept = {k: v for k, v in config.items() if k not in replaced}
        made: Self = cls.from_config(kept, plans=trees, **options)
        return made

    @property
    def limit(self) -> Limit:
        """What keeps x̂₀ in range, by the configuration; falsy for nothing."""
        return self._denoiser.limit

    @property
    def plan(self) -> Plan | None:
        """The plan that runs, from ``set_timesteps`` on (and from its begin index on)."""
        return self._plan

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

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at that entry of ``timesteps`` (pipelines that start from an image); 0 is the whole run.

        Raises:
            ValueError: A compiled plan, or calls from there that are not those of the same method begun at
                that level.
        """
        self._running()
        whole = self._whole
        assert whole is not None
        begin = count("begin_index", begin_index, least=0)
        if begin == 0:
            return self._begin(whole, 0)
        if begin >= whole.nfe:
            raise ValueError(
                f"begin_index={begin}: there are {whole.nfe} calls, from 0 to {whole.nfe - 1}; in an "
                "image-to-image pipeline raise strength or num_inference_steps"
            )
        if self._plans:
            raise ValueError(
                f"begin_index={begin}: a compiled plan runs whole, from σ={whole.grid[0]:.4g}, since its "
                "later calls count on the answers before them. Make one that begins lower, "
                "ddim_ode.calibrate(..., sigma_max=), and run it at strength=1; or give method= instead"
            )
        rest = self._rest_at(begin, whole)
        if not torch.equal(self._times(rest), self.timesteps[begin:].cpu()):
            raise ValueError(
                f"{rest.method!r} begun there would ask the network at other times than listed; begin at "
                "0, or use a one-step method"
            )
        self._begin(rest, begin)

    @staticmethod
    def _adopted(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration as ours takes it."""
        raise NotImplementedError

    def _rest_at(self, begin: int, whole: Plan) -> Plan:
        """The same method from the level of that call on."""
        calls = whole.level_calls()
        if self._method.rises is not None:
            raise ValueError(
                f"begin_index={begin}: {whole.method!r} goes up again by noise, and begins at its first "
                "level alone; use another method"
            )
        if begin not in calls or whole.start == "rk":
            raise ValueError(
                f"begin_index={begin}: the state there is of no level, inside a step of {whole.method!r} "
                f"({self._method.nfe_per_step} calls each; none begins within start='rk'); begin at a "
                "step, or use a method of one call a step"
            )
        return self._rest(np.array(whole.grid[calls.index(begin) :]))

    def _rest(self, grid: Array) -> Plan:
        """The same method on those levels."""
        raise NotImplementedError

    def _times(self, plan: Plan) -> Tensor:
        return times_of(plan, self._denoiser)

    def _compiled(self, trees: Any) -> dict[int, Plan]:
        """The plans of a configuration by their calls, checked; none for None."""
        if trees is None:
            return {}
        for name in of_method({"_class_name": type(self).__name__, **self.config}):
            exclusive(plans=trees, **{name: self.config.get(name)})
        if not several(trees):
            raise ValueError("plans is empty; give a plan for each number of calls, or method=")
        plans = {plan.nfe: plan for plan in map(plan_of, several(trees))}
        for plan in plans.values():
            check_plan(plan, self._denoiser)
            warn_of_another_ode(plan, self._denoiser, piped=True)
        return plans

    def _of_calls(self, asked: int | None) -> Plan:
        """The compiled plan of so many calls, or the only one for None."""
        only = next(iter(self._plans)) if len(self._plans) == 1 else None
        calls = only if asked is None else count("num_inference_steps", asked)
        if calls is None or calls not in self._plans:
            has = ", ".join(map(str, sorted(self._plans)))
            raise ValueError(
                f"num_inference_steps={calls!r}: this scheduler runs compiled plans of {has} network "
                "calls; ask for one of these, or give method= instead of plans"
            )
        return self._plans[calls]

    def _start(self, plan: Plan, device: str | torch.device | None) -> None:
        """Begin the plan of a new run."""
        times, where = self._times(plan), None if device is None else device_of(device)
        if not self._plans:
            self._later = self._method
            if math.isinf(plan.grid[0]) and isinstance(self._method.stages, Singlestep):
                # at a finite level it would look elsewhere within a step
                self._later = from_infinity(self._method, None, plan.steps >= RK_START_FROM)
        self._whole, self.timesteps = plan, times.to(where)
        self.num_inference_steps = len(times)
        self._begin(plan, 0)

    def _begin(self, plan: Plan, call: int) -> None:
        self._plan, self._run, self._call = plan, None, call

    def _running(self) -> Plan:
        if self._plan is None:
            raise ValueError("call set_timesteps before step")
        return self._plan

    def _taken(
        self,
        answer: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """What the next call is shown and x̂₀ of this one, in that dtype. answer: (B, *), as the sample."""
        self._check_turn(timestep)
        plan = self._running()
        run = self._run
        if run is None:
            run = PlanRun(plan, self._denoiser, sample, self._spread)
        if sample.shape != run.x.shape:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}, but this run began with "
                f"{tuple(run.x.shape)}: set_timesteps begins anew"
            )
        shown = run.step(sample, answer, generator, dtype)
        self._run, self._call = run, self._call + 1
        return shown, run.x0.to(dtype)

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
