"""diffusers' models as denoisers, and our plans in their pipelines.

:func:`load` reads a pipeline directory, or a model and a scheduler, and returns a
:class:`DiffusersModel`: a :class:`ddim_ode.Denoiser` on their network. :class:`DDIMODEScheduler` goes
the other way. Their networks count times 0..T−1, ours are 1..T, hence ``time_offset=-1``.

Weights are read from safetensors alone: a ``.bin`` file is a pickle, which can run code.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._base.checks import device_of, refuse, shown
from ..denoising.guidance import Guidance
from ..solvers.profile import Profile, checked_profile
from .config import CONFIGURED, InteropWarning, Note, Threshold, warn_of
from .families import FROM_PIPELINE
from .model import DiffusersModel
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
    from .pipeline import from_pipeline as from_pipeline
    from .scheduler import DDIMODEScheduler as DDIMODEScheduler

__all__ = [
    "DDIMODEFlowScheduler",
    "DDIMODEScheduler",
    "DiffusersModel",
    "InteropWarning",
    "Note",
    "from_pipeline",
    "load",
]


# Of diffusers' own classes, which take seconds to import.
_LAZY = {
    "DDIMODEFlowScheduler": "flow_scheduler",
    "DDIMODEScheduler": "scheduler",
    "from_pipeline": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        check_installed()
        return getattr(importlib.import_module(f".{_LAZY[name]}", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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

    x has the network's own layout: pictures (B, C, H, W), packed tokens (B, L, C), videos (B, C, F, H, W)
    or (B, F, C, H, W), sound (B, C, L). What a network is shown beside the state goes in as
    ``cond={"concat": ...}``, behind its channels.

    A flow-matching transformer is told the time, and read with the sign, that the pipelines of its class
    have (:mod:`.families`); one that is not known there is refused, and runs through ``from_pipeline``. An
    EDM-type configuration (EDM's schedulers, continuous times) gives a model in σ, x = x₀ + σε, whose x̂₀ is
    put together by EDM's preconditioning (:mod:`.edm`).

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
    model (``model.profile``), which starts where that does.

    Raises:
        ValueError: A class that is not diffusers' own, a transformer that is not known with such noise, a
            pipeline of several networks, an unknown scheduler, or pickled weights.
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
        _check_alone({path.name for path in folder.iterdir() if path.is_dir()}, network.name)
        scheduler = scheduler_file(folder, network) if scheduler is None else scheduler
        model = read_network(network, dtype, variant)
        model.requires_grad_(False)
    else:
        name, model = next(
            ((n, m) for n in NETWORKS if (m := getattr(source, n, None)) is not None), ("", None)
        )
        if model is None:
            raise ValueError(
                f"source={type(source).__name__}: give a directory, a hub id, a pipeline with a unet or "
                "transformer, or a model"
            )
        parts = {
            part for part, made in getattr(source, "components", {}).items() if made is not None
        }
        _check_alone(parts, name)
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
        denoiser.profile = own = checked_profile(Profile.load(kept), denoiser.schedule)
        if own is not None:
            denoiser.sigma_max = min(denoiser.sigma_max, own.sigma_max)
    return denoiser


def _check_alone(parts: set[str], network: str) -> None:
    """ValueError where a pipeline has another network beside the one to be read, for some of its levels or
    for guidance."""
    others = sorted(
        part for part in parts if part in (f"{network}_2", f"unconditional_{network}", "controlnet")
    )
    if others:
        raise ValueError(
            f"the pipeline has {others[0]} beside its {network}, and a denoiser of one of them is not the "
            f"pipeline's; {FROM_PIPELINE}, or load(pipe.{network}, pipe.scheduler) to read that one alone"
        )


def _our_scheduler(config: Mapping[str, Any]) -> Any:
    return __getattr__(config["_class_name"]).from_config(config)
