"""diffusers' models as denoisers, and our plans in their pipelines.

:func:`load` reads a pipeline directory, or a model and a scheduler, and returns a
:class:`DiffusersModel`: a :class:`ddim_ode.Denoiser` on their network. :class:`DDIMODEScheduler` goes
the other way. Their networks count times 0..T−1, ours are 1..T, hence ``time_offset=-1``.

Weights are read from safetensors alone: a ``.bin`` file is a pickle, which can run code.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .._base.checks import count, device_of, flag, named, one_of, refuse, shown
from .._base.digests import digest
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import Guidance
from ..denoising.network import check_channels, check_labels
from ..grids import check_grid
from ..schedules.schedule import Array
from ..solvers.profile import Profile, checked_profile
from .config import (
    CONFIGURED,
    InteropWarning,
    Note,
    Threshold,
    is_flow,
    learns_variance,
    limit_of,
    notes_of,
    prediction_of,
    schedule_of,
    warn_of,
)
from .network import (
    ADDED,
    axes_of,
    channels_of,
    needs_of,
    null_label_of,
    num_classes_of,
    shape_of,
    takes_of,
)
from .placement import Placement, placement
from .reading import (
    NETWORKS,
    check_installed,
    local,
    network_folder,
    read_network,
    read_scheduler,
    scheduler_file,
)
from .reading import is_model_folder as is_model_folder

if TYPE_CHECKING:
    from .flow_scheduler import DDIMODEFlowScheduler as DDIMODEFlowScheduler
    from .scheduler import DDIMODEScheduler as DDIMODEScheduler

__all__ = [
    "DDIMODEFlowScheduler",
    "DDIMODEScheduler",
    "DiffusersModel",
    "InteropWarning",
    "Note",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "DDIMODEScheduler":  # its base class is diffusers', which takes seconds to import
        check_installed()
        from .scheduler import DDIMODEScheduler

        return DDIMODEScheduler
    if name == "DDIMODEFlowScheduler":
        check_installed()
        from .flow_scheduler import DDIMODEFlowScheduler

        return DDIMODEFlowScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Network(nn.Module):
    """A diffusers model called as ``net(x, t, **cond)``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        left_out = sorted((takes_of(self.model) or frozenset()) - cond.keys())
        added = {name: cond.pop(name) for name in ADDED if name in cond}
        if added:
            cond["added_cond_kwargs"] = added
        try:
            out: Tensor = self.model(x, timestep=t, return_dict=False, **cond)[0]
        except (AttributeError, TypeError) as error:  # of a None where it counts on a tensor
            if not left_out:
                raise
            raise ValueError(
                f"{type(self.model).__name__} fails without a condition ({error}); of those that it takes, "
                f"{', '.join(left_out)} are left out: give what it needs as cond={{name: tensor (B, ...)}}"
            ) from error
        return out


class DiffusersModel(Denoiser):
    """A diffusers network as a :class:`ddim_ode.Denoiser`.

    Conditions go by the network's own names, ``cond={"class_labels": (B,)}`` or ``{"encoder_hidden_states":
    (B, L, D)}``; ``"y"`` is taken for class labels, as in the rest of this package.

    Attributes:
        shape: Of ONE sample, or None where the network's configuration does not say it.
        axes: Their names, such as ``"CHW"`` or ``"CFHW"`` (F frames, L length), or None.
        notes: What became of each key of the scheduler's configuration; ``report`` is the same as text.
        scheduler: The diffusers scheduler it came with.
        config: That scheduler's settings, defaults filled in.
        num_classes: Labels the network knows, 0 for none.
        null_label: What guidance shows in their place, None where the network does not say.
        needs: The conditions without which it cannot be called.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: Any,
        guidance: float | Guidance | None,
        snap: bool | None,
        dtype: torch.dtype | None,
        clip: float | str | None,
        threshold: Threshold | str | None,
    ) -> None:
        # The scheduler's own numbers come from here on; its state is never used.
        self.scheduler, self.config = scheduler, dict(scheduler.config)
        self.config["_class_name"] = type(scheduler).__name__
        if not {"in_channels"} <= set(getattr(model, "config", ())):
            raise ValueError(
                f"{type(model).__name__} has no config with in_channels, as diffusers' networks have; "
                "ddim_ode.Denoiser(net, schedule) takes any other"
            )
        channels, out = channels_of(model, learns_variance(self.config))
        T = int(self.config["num_train_timesteps"])
        flow = is_flow(self.config)
        super().__init__(
            _Network(model),
            schedule_of(self.config),
            prediction_of(self.config),
            time_offset=0.0 if flow else float(self.config.get("time_offset", -1.0)),
            time=functools.partial(_flow_time, T) if flow else None,
            snap=bool(self.config.get("snap")) if snap is None else flag("snap", snap),
            learned_variance="split" if out == 2 * channels else None,
            dtype=dtype,
            sigma_max=self.config.get("sigma_max") if "plans" in self.config else None,
        )
        self.limit = limit_of(self.config, clip, threshold)
        self.notes = notes_of(self.config, self.limit)
        if learns_variance(self.config) and out == channels:
            text = f"the network returns {out} channels, a prediction and no variance"
            self.notes.insert(
                0, Note("variance_type", self.config["variance_type"], "left out", text)
            )
        self.channels = int(channels)
        self.axes = axes_of(model)
        self.shape = shape_of(model)
        self.num_classes = num_classes_of(model)
        self.classes = [str(i) for i in range(self.num_classes)]
        self.null_label = null_label_of(model)
        self.needs, self._takes = needs_of(model), takes_of(model)
        self.guide(guidance)

    @property
    def report(self) -> str:
        """A line for each key of the scheduler's configuration: honoured, replaced, or left out."""
        return "\n".join(map(str, self.notes))

    @functools.cached_property
    def sha256(self) -> str:
        """Of the network's weights."""
        return digest(dict(self.net.state_dict()))  # type: ignore[attr-defined]

    def guide(
        self,
        guidance: float | Tensor | Guidance | None,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        """Set classifier-free guidance.

        Args:
            guidance: A scale, for networks whose null label is known (DiT), or a whole
                :class:`ddim_ode.Guidance`; None or 1 for none.
            interval, rescale: Of a scale, as of ``Guidance``.

        Raises:
            ValueError: A scale alone where no null label is known.
        """
        if isinstance(guidance, Guidance):
            if interval is not None or rescale:
                raise ValueError("a Guidance has its own interval and rescale; drop the others")
            null = _plain(guidance.null)
            if "class_labels" in null and self.num_classes:
                labels = torch.as_tensor(null["class_labels"]).reshape(-1)
                check_labels(labels, self.num_classes + (self.null_label is not None))
            guidance = replace(guidance, null=null)
        else:
            scale = 1.0 if guidance is None else guidance
            guidance = Guidance(scale, {"class_labels": self.null_label}, interval, rescale)
            if not guidance.is_off and self.null_label is None:
                raise ValueError(
                    f"guidance={shown(scale)}: what the null branch of this network sees is not in its "
                    "configuration; guidance=1 is the network alone, ddim_ode.Guidance(scale, "
                    "null={name: value}) says what its null branch sees"
                )
        self.guidance = None if guidance.is_off else guidance

    def placement(self, steps: int, mu: float | None = None) -> Placement:
        """Where the model's own scheduler steps; see :func:`ddim_ode.interop.placement.placement`."""
        return placement(self.scheduler, self.schedule, steps, mu)

    @property
    def placing(self) -> dict[str, float] | None:
        """How a flow model's levels are shifted, for plans to remember; None where the size says how."""
        own = self.config
        fixed = self.schedule.family == "flow" and not own.get("use_dynamic_shifting")
        return {"shift": float(own.get("shift") or own.get("flow_shift") or 1.0)} if fixed else None

    def grid(self, steps: int, mu: float | None = None) -> Array:
        """σ of the levels that the model's own scheduler visits in so many steps, to hand to ``grid=``.

        Its spacing, offset, shift and final ᾱ, whatever it does between them.

        Args:
            steps: Its ``num_inference_steps``, also where it calls the network twice a step.
            mu: The shift by the picture's size, as the pipeline computes it, where ``use_dynamic_shifting``
                asks for one.

        Returns:
            (steps + 1,), as ``sample(..., grid=)`` takes it.

        Raises:
            ValueError: The scheduler's levels rise or stay, or are none of the model's schedule.
        """
        placed = self.placement(count("steps", steps), mu)
        try:
            return check_grid(np.append(placed.asked, placed.reached[-1]), self.schedule)
        except ValueError as error:
            name = type(self.scheduler).__name__
            raise ValueError(
                f"{name} does not go down at each of {steps} steps ({error}); give grid= a name or σ's"
            ) from error

    def network(
        self,
        like: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> Any:
        """As of a :class:`ddim_ode.Denoiser`; ``"y"`` becomes the network's ``class_labels``."""
        if cond is not None:
            cond = _plain(named("cond", cond))
        if shared is not None:
            shared = _plain(named("shared", shared))
        check_channels(like, self.channels, self.axes)
        labels = {**(shared or {}), **(cond or {})}.get("class_labels")
        if labels is not None and self.num_classes:
            known = self.num_classes + (self.null_label is not None)
            check_labels(labels, known, "class_labels" in (shared or {}))
        names = {*(cond or ()), *(shared or ())}
        if self._takes is not None:
            for name in sorted(names):
                one_of("condition", name, sorted(self._takes))
        missing = self.needs - names
        if missing:
            raise ValueError(
                f"the network needs {', '.join(sorted(missing))}: give cond={{name: tensor (B, ...)}}, one "
                "row a sample (on the command line --classes says the class labels)"
            )
        return super().network(like, cond, shared)


def load(
    source: Any,
    scheduler: Any = None,
    *,
    guidance: float | Guidance | None = None,
    snap: bool | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    variant: str | None = None,
    clip: float | str | None = CONFIGURED,
    threshold: Threshold | str | None = CONFIGURED,
) -> DiffusersModel:
    """A diffusers model as a denoiser, ready to sample. A VAE stays outside: x is the latent.

    What the configuration asks for and is not known, or not to its class, is left out with an
    :class:`InteropWarning` that names the key; ``model.report`` lists every key.

    Args:
        source: The directory of a pipeline (``model_index.json``), one with ``unet`` or ``transformer`` and
            ``scheduler`` inside, a model's own (its scheduler's configuration in it or beside it), the id
            of any of these on a hub, or a pipeline or model in memory. A model in memory is shared and
            put into evaluation mode, or copied where device or dtype are others than its own.
        scheduler: The one to read instead, an object, a directory or a ``scheduler_config.json``; a model
            in memory needs it.
        guidance: A :class:`ddim_ode.Guidance`, or a scale where the null label is known (DiT).
        snap: Only whole times 0..T−1 reach the network (default: where a :class:`DDIMODEScheduler` says
            so).
        dtype: Half precision for weights and network input; the state stays float32.
        device: Default: a model in memory stays where it is, others go to the CPU.
        revision: Of the hub's repository.
        variant: Which of several sets of weights, such as ``"fp16"``; by default the plain ones, or with a
            warning the only ones.
        clip, threshold: As of :class:`ddim_ode.Denoiser`; ``"configured"`` is what the scheduler's class
            makes of its ``clip_sample`` and ``thresholding``, with ε̂ recomputed from the limited x̂₀. A
            value for one replaces whatever is configured, None switches that one off.
            ``model.alterations`` names what is in force.

    A ``profile.json`` in the directory, as :meth:`ddim_ode.Profile.save` writes it, makes the grids of the
    model (``model.profile``).

    Raises:
        ValueError: A class that is not diffusers' own, an unknown scheduler, or pickled weights.
        OSError: Something is missing or cannot be read.
    """
    check_installed()
    device = None if device is None else device_of(device)
    on_disk = isinstance(source, (str, Path))
    if not on_disk:
        refuse("the model is in memory", revision=revision, variant=variant)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f"dtype={shown(dtype)} must be a floating torch dtype such as torch.bfloat16"
        )
    model: Any
    if isinstance(source, nn.Module):
        model = source
        if scheduler is None:
            raise ValueError("a model in memory needs scheduler=: its object, directory or file")
    elif on_disk:
        folder = local(source, revision)
        network = network_folder(folder)
        scheduler = scheduler_file(folder, network) if scheduler is None else scheduler
        model = read_network(network, dtype, variant)
        model.requires_grad_(False)
    else:
        model = next((m for n in NETWORKS if (m := getattr(source, n, None))), None)
        if model is None:
            raise ValueError(
                f"source={type(source).__name__}: give a directory, a hub id, a pipeline with a unet or "
                "transformer, or a model"
            )
        scheduler = source.scheduler if scheduler is None else scheduler
    own = next(model.parameters(), None)
    if own is not None:
        same = dtype in (None, own.dtype) and device in (None, own.device)
        model = model if same or on_disk else copy.deepcopy(model)
    model.eval()
    if device is not None:
        model.to(device)
    if dtype is not None and own is not None and own.dtype != dtype:
        model.to(dtype)
    if dtype is None and own is not None and own.dtype in (torch.float16, torch.bfloat16):
        dtype = own.dtype
    scheduler = read_scheduler(scheduler, _our_scheduler)
    denoiser = DiffusersModel(model, scheduler, guidance, snap, dtype, clip, threshold)
    warn_of(denoiser.notes)
    if on_disk and (kept := folder / "profile.json").is_file():
        denoiser.profile = checked_profile(Profile.load(kept), denoiser.schedule)
    return denoiser


def _our_scheduler(config: Mapping[str, Any]) -> Any:
    return __getattr__(config["_class_name"]).from_config(config)


def _plain(cond: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions by the network's own names; ValueError for two of one thing."""
    if {"y", "class_labels"} <= set(cond):
        raise ValueError("'y' and 'class_labels' are given, which are one thing; drop 'y'")
    return {"class_labels" if name == "y" else name: value for name, value in cond.items()}


def _flow_time(T: int, t: Array, sigma: Array) -> Array:
    return t * T
