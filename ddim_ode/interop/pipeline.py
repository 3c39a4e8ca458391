"""Any diffusers pipeline as a denoiser: its own prompts, guidance, packing and inputs, and our solvers.

Which network a pipeline asks, with what, and how it guides is its own matter and stays so: see
:mod:`.pipeline_loop`. Its scheduler's configuration says what the states are
(:mod:`.pipeline_reading`), and that is checked against the first step of that scheduler.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._base.checks import one_of, shown
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import Call, taken
from ..denoising.network import doubled_axis
from ..schedules.schedule import Array, Schedule
from .config import placing_of
from .pipeline_loop import Loop, PipelineNetwork
from .pipeline_reading import ROUNDING, Reading, reading
from .placement import Placement
from .stand_in import Opening, StandIn

if TYPE_CHECKING:
    from typing_extensions import Self

_ROW = "row"  # the condition that says which of the pipeline's rows a sample belongs to
# Arguments that act on a share of the steps, counted: the loop has no such count.
_BY_COUNT: dict[str, Any] = dict(
    control_guidance_start=0.0,
    control_guidance_end=1.0,
    adapter_conditioning_factor=1.0,
    skip_guidance_layers=None,
    use_dynamic_cfg=False,
    cfg_trunc_ratio=1.0,
    cfg_truncation=1.0,
)
_NO_EULER = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "PNDMScheduler")
_TOLERANCE = 1e-3  # of a step, by which two ways to compute it may differ in single precision


class PipelineModel(Denoiser):
    """A pipeline as a :class:`ddim_ode.Denoiser`, as :func:`from_pipeline` makes it.

    It is closed by ``with``, :meth:`close`, or when nobody holds it any more.

    Attributes:
        shape: Of ONE sample, in the pipeline's own form (packed, where it packs).
        device: The pipeline's.
        latents: The state (B, *shape), at ``sigma_max``, that the pipeline's own run starts from: noise, or
            the noised picture of img2img pipelines.
        batch: Rows of the pipeline, prompts times images per prompt. Sample i of a larger batch is a
            further sample of row i mod ``batch``.
        deviation: By how much a step of Euler's and the first step of the pipeline's scheduler differ, or
            what they take for x̂₀, over the largest entry; None where the latter says nothing, for the
            reason in ``unchecked``.
        guidance: None; the pipeline guides.
        placing: How the levels of a flow pipeline are shifted, ``{"shift": ...}`` or ``{"mu": ...}``, for
            plans to remember.
    """

    def __init__(self, loop: Loop, read: Reading) -> None:
        opening, name = loop.opening, type(loop.scheduler).__name__
        like, answer = (opening.arguments[key] for key in ("sample", "model_output"))
        steps = read.placed(opening.scheduler)
        read = _shifted(read, opening, steps)
        loop.level_of = read.level
        first = int(np.abs(steps.told - opening.time).argmin())
        self._net = PipelineNetwork(loop)
        self._net.sign = read.sign
        super().__init__(
            self._net,
            read.schedule,
            read.prediction,
            time=read.time,
            learned_variance=None if doubled_axis(answer, like) is None else "split",
            dtype=like.dtype,
            shape=like.shape[1:],
        )
        self.limit = read.limit
        self.device: torch.device = like.device
        self.lines: Tensor | None = None  # which rows of the pipeline the samples belong to
        self.levels = np.append(steps.asked[first:], steps.reached[-1])
        level = _trained(float(self.levels[0]), read.schedule)
        if (
            first
            or read.schedule.family == "flow"
            or read.schedule.sigma_min < level < self.sigma_max
        ):
            self.sigma_max = level
        told = float(self.network_time(self.levels[:1])[0])
        if abs(opening.time - told) > (1e-3 if read.clock else ROUNDING * read.T / 1000):
            raise ValueError(
                f"{name} gives its network the time {opening.time:g} at σ={level:.6g}, where its "
                f"configuration says {told:g}; give the pipeline the scheduler that its network was "
                "trained with"
            )
        halves = [v.chunk(2) for v in (opening.state, answer) if len(v) % 2 == 0]
        self._net.twice = len(halves) == 2 and all(torch.equal(*pair) for pair in halves)
        self.latents = halves[0][0] if self._net.twice else opening.state
        self.batch = len(self.latents)
        self.placing = None
        if read.schedule.family == "flow":
            own = opening.scheduler  # whose set_shift leaves its configuration as it was
            config = {**own.config, "shift": getattr(own, "shift", own.config.get("shift"))}
            self.placing = placing_of(config, opening.mu)
        self.deviation, self.unchecked = _checked(self, loop, read)

    def grid(self) -> Array:
        """σ of the levels that the pipeline's own run visits, to hand to ``grid=``: (steps + 1,)."""
        return self.levels.copy()

    def network(
        self,
        like: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> Call:
        """As of a :class:`ddim_ode.Denoiser`; conditions are the pipeline's."""
        rows = dict(cond or {})
        row = rows.pop(_ROW, None)
        if rows or shared:
            given = min(map(str, {**rows, **(shared or {})}))
            raise ValueError(
                f"{given!r} is given as a condition, and the conditions of this "
                "model are arguments of its pipeline: from_pipeline(pipe, prompt=[...], ...)"
            )
        if tuple(like.shape[1:]) != tuple(self.shape):
            raise ValueError(
                f"x is {tuple(like.shape)}, and the pipeline's states are (B, "
                f"{', '.join(map(str, self.shape))}); another size is another call of from_pipeline"
            )
        if row is None:
            row = torch.arange(len(like)) if self.lines is None else self.lines[: len(like)]
        return super().network(like, {_ROW: row})

    def part(
        self, index: slice | Tensor, cond: Mapping[str, Tensor] | None
    ) -> tuple[Self, dict[str, Tensor]]:
        """As of a :class:`ddim_ode.Denoiser`: the samples go on belonging to their rows of the pipeline."""
        if cond:
            return super().part(index, cond)
        if self.lines is not None:
            return self.replace(lines=taken(self.lines, index)), {}
        if isinstance(index, slice):
            return self.replace(lines=torch.arange(index.stop)[index]), {}
        rows = torch.as_tensor(index).cpu()
        return self.replace(lines=rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows), {}

    @property
    def calls(self) -> int:
        """How often the pipeline asked its network until now."""
        return self._net.loop.calls

    @property
    def closed(self) -> bool:
        """Whether the pipeline is its owner's again, and this model cannot be asked any more."""
        return self._net.loop.closed

    def close(self) -> None:
        """End the pipeline's call and its thread, and give the pipeline its scheduler back."""
        self._net.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        step = self.unchecked or f"a step differs from its scheduler's by {self.deviation:.1e}"
        return f"PipelineModel({self._net.loop.name}, {self.prediction}-network, {self.schedule!r}; {step})"


def _shifted(read: Reading, opening: Opening, steps: Placement) -> Reading:
    """As it is, or of a network that is told the time before the levels' shift by mu (CogView4)."""
    if read.schedule.family != "flow" or read.hears(steps.told, steps.asked):
        return read
    if (mu := opening.mu) is not None:
        linear = opening.scheduler.config.get("time_shift_type") == "linear"
        shifted = read._replace(shift=mu if linear else float(np.exp(mu)))
        if shifted.hears(steps.told, steps.asked):
            return shifted
    raise ValueError(
        f"the network is told {steps.told[:4].round(1).tolist()} ... at the shares of noise "
        f"{read.schedule.time(steps.asked)[:4].round(4).tolist()} ...: of its own times beside the levels "
        "(timesteps=) nobody knows what they are at others; leave timesteps= out"
    )


def _trained(sigma: float, schedule: Schedule) -> float:
    """The trained level that a scheduler's float32 copy stands for, or the level itself."""
    if schedule.family == "flow" or not sigma > 0:
        return sigma
    t = schedule.time(np.array(sigma))
    return float(schedule.sigma(np.rint(t))) if abs(t - np.rint(t)) < 1e-3 else sigma


def _checked(model: PipelineModel, loop: Loop, read: Reading) -> tuple[float | None, str | None]:
    """One step of the pipeline's scheduler against ours, from the same state and answer.

    Returns:
        How far they are apart over the largest entry, and why that is not known.

    Raises:
        ValueError: They differ by more than rounding.
    """
    opening, name = loop.opening, type(loop.scheduler).__name__
    answer, sample = opening.arguments["model_output"], opening.arguments["sample"]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=_indices(sample)):
            torch.manual_seed(0)
            theirs, again = (
                copy.deepcopy(opening.scheduler).step(**opening.arguments) for _ in range(2)
            )
    except Exception as error:  # of many kinds; solvers of ours have no need of it
        return None, f"unchecked: {name} fails at its own step ({error})"
    if not isinstance(theirs, Mapping) or "prev_sample" not in theirs:
        return None, f"unchecked: a step of {name} returns no prev_sample"
    loop.like = theirs
    recorded = model.replace(net=lambda x, t, row: answer.double() * read.sign, dtype=None)
    x0, eps = recorded(opening.state.double(), float(model.levels[0]))
    (alpha,), (beta,) = model.schedule.scales(model.levels[1:2])
    end = theirs["prev_sample"].double() * (float(alpha) / read.spread if opening.scaled else 1.0)
    pairs = [(float(alpha) * x0 + float(beta) * eps, end)]
    if "pred_original_sample" in theirs:
        pairs.append((x0, theirs["pred_original_sample"].double() / read.spread))
    chance = not torch.equal(theirs["prev_sample"], again["prev_sample"])
    if name in _NO_EULER or chance:
        del pairs[0]
    if not pairs:
        return None, f"unchecked: a step of {name} is none of Euler's, and says no x̂₀"
    deviations = []
    for ours, own in pairs:
        off, largest = float((ours - own).abs().max()), float(own.abs().max())
        allowed = _TOLERANCE * float((own - opening.state).abs().max())
        allowed += 8 * max(torch.finfo(v.dtype).eps for v in (sample, answer)) * largest
        deviations.append(off / largest if largest else off)
        if off <= allowed:
            return deviations[-1], None
    if not opening.state.isfinite().all() or not answer.isfinite().all():
        return None, "unchecked: the pipeline's first answer is not finite"
    raise ValueError(
        f"a step of {name} from σ={model.levels[0]:.5g} to {model.levels[1]:.5g} is {deviations[0]:.1e} of "
        f"its largest entry away from what its configuration says ({model.prediction}-network, "
        f"{model.schedule!r}): its states are of another kind than those known here"
    )


def _indices(sample: Tensor) -> list[int]:
    return [sample.device.index] if sample.is_cuda else []


def from_pipeline(pipe: Any, **call: Any) -> PipelineModel:
    """A diffusers pipeline, unmodified, as a denoiser that every call of ours takes.

    The pipeline's own ``__call__`` runs until its first step and waits there, its prompts encoded; from
    then on its network is asked about any state at any level, guided and packed as the pipeline does it.
    Nobody else can call the pipeline until the model is closed; then it is as it was.

    A pipeline is asked about a batch of its own (prompts × images per prompt) at one level. Larger and
    smaller batches are cut and padded. Samples at levels of their own, as in adaptive solves, are asked
    about level by level, each in a batch of the pipeline's: with more than one row ``error_norm="batch"``,
    by which all share their levels, is cheaper. ``net_evals`` counts neither the pipeline's guidance nor
    padding; ``model.calls`` is how often the pipeline asked its network.

    ``sample(model, model.latents, "ddim", grid=model.grid())`` is the pipeline's own run with Euler's
    method. Where a scheduler's states are not of the network's scale (EulerDiscreteScheduler, EDM's kind)
    ours are those that its network sees; the data are those of the pipeline, over σ_data with EDM's kind.

    Args:
        pipe: The pipeline, its ``scheduler`` of flow matching, variance-preserving diffusion or EDM.
        call: Arguments of the pipeline's call: prompts or their embeddings, guidance, height, width,
            images, strength. ``num_inference_steps`` counts for :meth:`PipelineModel.grid` and for the
            level that a strength starts from.

    Returns:
        A :class:`PipelineModel`, open.

    Raises:
        ValueError: An argument that the pipeline does not take, or that acts in a share of its steps; a
            scheduler whose states are not known, or are not what its configuration says; a pipeline in
            use; later, from the model, a pipeline that changes the state between steps, and gradients.
        RuntimeError: From a model that is closed, or whose pipeline was called meanwhile.

    What the pipeline raises is raised as it is, and the next call of the model begins anew.

    >>> from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
    >>> import ddim_ode
    >>> net = UNet2DModel(8, 1, 1, block_out_channels=(32,), layers_per_block=1,
    ...     down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    >>> pipe = DDPMPipeline(net, DDIMScheduler(clip_sample=False))
    >>> with from_pipeline(pipe, batch_size=4) as model:
    ...     sol = ddim_ode.sample(model, model.latents, "dpmpp2m", nfe=8)
    >>> sol.x.shape, model.calls
    (torch.Size([4, 1, 8, 8]), 9)
    """
    name = type(pipe).__name__
    scheduler = getattr(pipe, "scheduler", None)
    if isinstance(pipe, type) or not callable(pipe) or not hasattr(scheduler, "set_timesteps"):
        raise ValueError(
            f"pipe={shown(pipe)} must be a diffusers pipeline, an object with a call and a scheduler; "
            "load(model, scheduler) takes a network alone"
        )
    if isinstance(scheduler, StandIn):
        raise ValueError(
            f"this {name} is in use by from_pipeline already; close that model first, or take another "
            "pipeline"
        )
    parameters = inspect.signature(type(pipe).__call__).parameters
    names = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and n != "self"]
    several = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if several and type(pipe).__module__.startswith("diffusers."):
        names, several = [*names, "callback", "callback_steps"], False  # of old, and no others
    if not several:
        for given in call:
            one_of(f"argument of {name}", given, names)
    for given in call.keys() & _BY_COUNT.keys():
        if np.any(np.asarray(call[given] != _BY_COUNT[given])):
            raise ValueError(
                f"{given}={shown(call[given])} acts in a share of the pipeline's steps, and a model is "
                f"asked at levels, which no step counts; leave {given} at {_BY_COUNT[given]!r}"
            )
    for part in getattr(pipe, "components", {}).values():
        if getattr(part, "is_cache_enabled", False):
            raise ValueError(
                f"the {type(part).__name__} of this {name} caches what it computed at the step before, "
                "and a model answers by the state alone; call its disable_cache() first"
            )
    read = reading(scheduler)
    loop = Loop(
        pipe,
        call,
        lambda own: torch.tensor(read.placed(own).told.copy(), dtype=torch.float32),
        read.level,
    )
    try:
        return PipelineModel(loop, read)
    except BaseException:
        loop.close()
        raise
