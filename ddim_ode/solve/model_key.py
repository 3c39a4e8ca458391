"""What a model is, as a short hash, by which results are found again and runs go on.

A key is of what a model is made of, never of what it computes, since that differs between processors in its
last bits: what a model answers is compared beside it (answers.py).
"""

from __future__ import annotations

from typing import Any

import torch

from .._base.digests import digest
from .._base.structure import content
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import plain
from ..exact import ExactModel


def model_key(model: Denoiser, key: str | None = None) -> str | None:
    """A hash of all that decides a denoiser's answers; None where the network is opaque code.

    Known are exact mixtures, by their parameters, and a ``torch.nn.Module``, by all that it holds but its
    code (_base/structure.py).

    Args:
        model: The denoiser.
        key: Stands for the network, and for nothing else of the denoiser.
    """
    net, schedule = getattr(model.net, "_orig_mod", model.net), model.schedule  # not compiled
    if key is not None:
        parts: list[Any] = ["given", str(key)]
    elif isinstance(model, ExactModel) and is_exact(model):
        parts = [model.weights, model.means, model.covs]
    elif isinstance(net, torch.nn.Module):
        parts = [net]
    else:
        return None
    guidance = model.guidance
    parts += [schedule.fingerprint, model.time_offset, model.time, model.snap]
    parts += [model.prediction, model.learned_variance, model.dtype]
    parts += [None if guidance is None else [plain(guidance.scale), guidance.null]]
    if guidance is not None and guidance.combine is not None:
        parts += [guidance.combine]
    # Of the alterations, the scale is in there by itself.
    parts += [{k: v for k, v in model.alterations.items() if k != "guidance"}]
    try:
        return digest(content(parts))
    except (TypeError, RecursionError):  # it holds something that has no content to hash
        return None


def is_exact(model: Denoiser) -> bool:
    """Whether it is an exact mixture whose network nobody has replaced."""
    owner = getattr(model.net, "__self__", None)
    return isinstance(model, ExactModel) and isinstance(owner, ExactModel)


def network_dtype(model: Denoiser) -> torch.dtype | None:
    """What the network computes in; None where that is the state's precision.

    That is ``model.dtype``, a module's floating parameters', the state's for exact mixtures, and
    float32 for any other callable.
    """
    if model.dtype is not None or is_exact(model):
        return model.dtype
    if isinstance(model.net, torch.nn.Module):
        floating = (p.dtype for p in model.net.parameters() if p.is_floating_point())
        return next(floating, torch.float32)
    return torch.float32
