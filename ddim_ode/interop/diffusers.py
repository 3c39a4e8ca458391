"""diffusers' models as denoisers, and our plans in their pipelines.

:func:`load` reads a pipeline directory, or a model and a scheduler, and returns a
:class:`DiffusersModel`: a :class:`ddim_ode.Denoiser` on their network. :class:`DDIMODEScheduler` goes
the other way. Their networks count times 0..T−1, ours are 1..T, hence ``time_offset=-1``.

Weights are read from safetensors alone: a ``.bin`` file is a pickle, which can run code.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .._checks import count, device_of, flag, named, one_of
from ..asking import check_channels, check_cond, check_labels
from ..denoiser import Denoiser
from ..digests import digest
from ..grids import check_grid
from ..guidance import Guidance
from ..schedule import Array
from .config import (
    InteropWarning,
    Note,
    is_flow,
    learns_variance,
    notes_of,
    prediction_of,
    schedule_of,
    warn_of,
)
from .placement import placement
from .reading import NETWORKS, local, network_folder, read_network, read_scheduler, scheduler_file
from .reading import is_model_folder as is_model_folder

if TYPE_CHECKING:
    from .scheduler import DDIMODEScheduler as DDIMODEScheduler

__all__ = ["DDIMODEScheduler", "DiffusersModel", "InteropWarning", "Note", "load"]

# What a forward wants inside added_cond_kwargs, by the setting of its config that makes it look there.
_OF_SETTING = {
    ("addition_embed_type", "text_time"): ("text_embeds", "time_ids"),
    ("addition_embed_type", "text_image"): ("text_embeds", "image_embeds"),
    ("addition_embed_type", "image"): ("image_embeds",),
    ("addition_embed_type", "image_hint"): ("image_embeds", "hint"),
    ("encoder_hid_dim_type", "text_image_proj"): ("image_embeds",),
    ("encoder_hid_dim_type", "image_proj"): ("image_embeds",),
    ("encoder_hid_dim_type", "ip_image_proj"): ("image_embeds",),
    ("use_additional_conditions", True): ("resolution", "aspect_ratio"),
}
_ADDED = frozenset(name for names in _OF_SETTING.values() for name in names)


def __getattr__(name: str) -> Any:
    if name == "DDIMODEScheduler":  # its base class is diffusers', which takes seconds to import
        from .scheduler import DDIMODEScheduler

        return DDIMODEScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Network(nn.Module):
    """A diffusers model called as ``net(x, t, **cond)``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        added = {name: cond.pop(name) for name in _ADDED if name in cond}
        if added:
            cond["added_cond_kwargs"] = added
        out: Tensor = self.model(x, timestep=t, return_dict=False, **cond)[0]
        return out


class DiffusersModel(Denoiser):
    """A diffusers network as a :class:`ddim_ode.Denoiser`.

    shape: of ONE sample, or None where the network takes any. notes: what became of each key of the
    scheduler's configuration, ``report`` the same as text. scheduler: the diffusers scheduler it came
    with, config its settings, defaults filled in. num_classes: labels the network knows, 0 for none.
    null_label: what guidance shows in their place, None where the network does not say. needs: the
    conditions without which it cannot be called.

    Conditions go by the network's own names, ``cond={"class_labels": (B,)}`` or ``{"encoder_hidden_states":
    (B, L, D)}``; ``"y"`` is taken for class labels, as in the rest of this package.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: Any,
        guidance: float | Guidance | None,
        snap: bool | None,
        dtype: torch.dtype | None,
    ) -> None:
        # The scheduler's own numbers come from here on; its state is never used.
        self.scheduler, self.config = scheduler, dict(scheduler.config)
        self.config["_class_name"] = type(scheduler).__name__
        if not {"in_channels"} <= set(getattr(model, "config", ())):
            raise ValueError(
                f"{type(model).__name__} has no config with in_channels, as diffusers' networks have; "
                "ddim_ode.Denoiser(net, schedule) takes any other"
            )
        net_config: Mapping[str, Any] = model.config  # type: ignore[assignment]
        channels, out = net_config["in_channels"], net_config.get("out_channels")
        out = channels if out is None else out
        if out not in (channels, 2 * channels):
            raise ValueError(
                f"{type(model).__name__} turns {channels} channels into {out}: only networks whose extra "
                "inputs are conditions (in_channels = out_channels, or twice as many for a learned "
                "variance) are denoisers"
            )
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
        )
        self.notes = notes_of(self.config)
        if learns_variance(self.config) and out == channels:
            text = f"the network returns {out} channels, a prediction and no variance"
            self.notes.insert(
                0, Note("variance_type", self.config["variance_type"], "left out", text)
            )
        size = net_config.get("sample_size")
        self.shape = None if size is None else (int(channels), *_sizes(size, model))
        self.channels = int(channels)
        self.num_classes = _num_classes(model)
        self.classes = [str(i) for i in range(self.num_classes)]
        self.null_label = _null_label(model)
        self.needs, self._takes = _needs(model), _takes(model)
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
        """Set classifier-free guidance: a scale, and perhaps an interval and rescale, for networks whose
        null label is known (DiT), or a whole :class:`ddim_ode.Guidance`; None or 1 for none.

        ValueError for a scale alone where no null label is known.
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
                    f"guidance={scale!r}: what the null branch of this network sees is not in its "
                    "configuration; guidance=1 is the network alone, ddim_ode.Guidance(scale, "
                    "null={name: value}) says what its null branch sees"
                )
        self.guidance = None if guidance.is_off else guidance

    def grid(self, steps: int) -> Array:
        """σ of the levels that the model's own scheduler visits in so many steps, to hand to ``grid=``.

        Its spacing, offset and final ᾱ, whatever it does between them. ValueError for a scheduler
        that has no such list (more calls a step), or whose levels do not fall from step to step.
        """
        placed = placement(self.scheduler, self.schedule, count("steps", steps))
        if placed is None:
            raise ValueError(
                f"{type(self.scheduler).__name__} does not call once a level; give grid= a name or σ's"
            )
        return check_grid(np.append(placed.asked, placed.reached[-1]), self.schedule)

    def network(
        self,
        like: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> Any:
        """As of a :class:`ddim_ode.Denoiser`; ``"y"`` becomes the network's ``class_labels``."""
        if cond is not None:
            cond = _plain(check_cond(cond, len(like)))
        if shared is not None:
            shared = _plain(named("shared", shared))
        check_channels(like, self.channels)
        labels = {**(shared or {}), **(cond or {})}.get("class_labels")
        if labels is not None and self.num_classes:
            known = self.num_classes + (self.null_label is not None)
            check_labels(labels, known, "class_labels" in (shared or {}))
        given = {*(cond or ()), *(shared or ())}
        if self._takes is not None:
            for name in sorted(given):
                one_of("condition", name, sorted(self._takes))
        missing = self.needs - given
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
) -> DiffusersModel:
    """A diffusers model as a denoiser, ready to sample.

    source: the directory of a pipeline (``model_index.json``), one with ``unet`` or ``transformer`` and
    ``scheduler`` inside, a model's own (its scheduler's configuration in it or beside it), the id
    of any of these on a hub, or a pipeline or model in memory. scheduler: the one to read instead, an
    object, a directory or a ``scheduler_config.json``; a model in memory needs it.
    guidance: a :class:`ddim_ode.Guidance`, or a scale where the null label is known (DiT). snap: only
    whole times 0..T−1 reach the network (by default where a :class:`DDIMODEScheduler` says so). dtype: half
    precision for weights and network input, the state stays float32. A model in memory is shared and put
    into evaluation mode, or copied where device or dtype are others than its own; one that is read goes to
    the CPU by default.

    What the configuration asks for and is not part of the ODE (``clip_sample=True``,
    ``thresholding=True``), or is not known, is left out with an :class:`InteropWarning` that names the
    key; ``model.report`` lists every key. A VAE stays outside: x is the latent.

    ValueError for a class that is not diffusers' own, an unknown scheduler, or pickled weights; OSError
    where something is missing or cannot be read.
    """
    device = None if device is None else device_of(device)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={dtype!r} must be a floating torch dtype such as torch.bfloat16")
    if isinstance(source, nn.Module):
        model = source
        if scheduler is None:
            raise ValueError("a model in memory needs scheduler=: its object, directory or file")
        given = scheduler
    elif isinstance(source, (str, Path)):
        folder = local(source, revision)
        found = network_folder(folder)
        given = scheduler_file(folder, found) if scheduler is None else scheduler
        model = read_network(found, dtype)
    else:
        found_model = next((m for n in NETWORKS if (m := getattr(source, n, None))), None)
        if found_model is None:
            raise ValueError(
                f"source={type(source).__name__}: give a directory, a hub id, a pipeline with a unet or "
                "transformer, or a model"
            )
        model, given = found_model, source.scheduler if scheduler is None else scheduler
    own = next(model.parameters(), None)
    if isinstance(source, (str, Path)):
        model.requires_grad_(False)
    elif own is not None and (
        dtype not in (None, own.dtype) or (device is not None and own.device != device)
    ):
        model = copy.deepcopy(model)
    model.eval()
    if device is not None:
        model.to(device)
    if dtype is not None and own is not None and own.dtype != dtype:
        model.to(dtype)
    if dtype is None and own is not None and own.dtype in (torch.float16, torch.bfloat16):
        dtype = own.dtype
    denoiser = DiffusersModel(model, read_scheduler(given), guidance, snap, dtype)
    warn_of(denoiser.notes)
    return denoiser


def _plain(cond: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions by the network's own names; ValueError for two of one thing."""
    if {"y", "class_labels"} <= set(cond):
        raise ValueError("'y' and 'class_labels' are given, which are one thing; drop 'y'")
    return {"class_labels" if name == "y" else name: value for name, value in cond.items()}


def _num_classes(model: nn.Module) -> int:
    """Of a network that takes integer labels."""
    config = _config(model)
    return int(
        (config["num_embeds_ada_norm"] if _is_dit(model) else config.get("num_class_embeds")) or 0
    )


def _is_dit(model: nn.Module) -> bool:
    """Also compiled, or of a class derived from it."""
    bare = getattr(model, "_orig_mod", model)
    return any(cls.__name__ == "DiTTransformer2DModel" for cls in type(bare).__mro__)


def _config(model: nn.Module) -> dict[str, Any]:
    """A network's configuration as its forward reads it: adapters set attributes of it, not items."""
    config: Mapping[str, Any] = model.config  # type: ignore[assignment]
    return {**config, **getattr(config, "__dict__", {})}


def _flow_time(T: int, t: Array, sigma: Array) -> Array:
    return t * T


def _sizes(value: Any, model: nn.Module) -> list[int]:
    """Of a sample, from the ``sample_size`` of a network's config.json: one number is that of each axis."""
    axes = 1 if "1D" in type(model).__name__ else 2
    given = list(value) if isinstance(value, (list, tuple)) else [value] * axes
    if len(given) != axes:
        raise ValueError(
            f"sample_size={value!r} of the network's config.json: give {axes} sizes, or one"
        )
    return [count("sample_size (of the network's config.json)", size) for size in given]


def _needs(model: nn.Module) -> frozenset[str]:
    """Conditions without a default in the network's call, or with one that its configuration refuses."""
    config = _config(model)
    of_call = list(inspect.signature(model.forward).parameters.values())[1:]
    needs = {p.name for p in of_call if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD}
    if _num_classes(model) or config.get("class_embed_type"):
        needs.add("class_labels")
    if config.get("addition_embed_type") == "text_time":
        needs |= {"text_embeds", "time_ids"}
    return frozenset(needs - {"timestep"})


def _takes(model: nn.Module) -> frozenset[str] | None:
    """The names that a network's call takes beside x and t, and does not ignore; None for any."""
    of_call = list(inspect.signature(model.forward).parameters.values())[1:]
    if any(p.kind == p.VAR_KEYWORD for p in of_call):
        return None
    config = _config(model)
    takes = {p.name for p in of_call} - {"timestep", "return_dict"}
    if getattr(model, "class_embedding", True) is None:
        takes -= {"class_labels"}
    if config.get("time_cond_proj_dim") is None:
        takes -= {"timestep_cond"}
    if "added_cond_kwargs" not in takes:
        return frozenset(takes)
    settings = {**config, **vars(model)}  # PixArt decides its own by its size
    added = [names for (key, value), names in _OF_SETTING.items() if settings.get(key) == value]
    return frozenset(takes.union(*added) - {"added_cond_kwargs"})


def _null_label(model: nn.Module) -> int | None:
    """The label of DiT's null branch, one beyond its classes."""
    return _num_classes(model) if _is_dit(model) else None
