"""The inputs of a solve, a comparison or a calibration, checked: model, shape of a sample, device,
conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .._base.checks import device_of as _device
from .denoiser import Denoiser
from .network import check_cond
from .seeding import sizes

Cond = Mapping[str, Tensor] | Callable[[Tensor], Mapping[str, Tensor]]


def check_model(model: object, limited: bool = True) -> None:
    """ValueError unless it is a :class:`Denoiser`; limited=False: one without limits on x̂₀."""
    if not isinstance(model, Denoiser):
        raise ValueError(
            f"model must be a Denoiser, got {type(model).__name__}: wrap the network once as "
            "ddim_ode.Denoiser(net, schedule)"
        )
    if model.limit and not limited:
        raise ValueError(
            f"the model limits x̂₀ ({model.limit}), which cannot be undone: entries at the limit are the "
            "same for many latents; encode and log_likelihood need clip=None and threshold=None (on the "
            "command line --clip none --threshold none)"
        )


def check_rank(model: Denoiser, x: Tensor) -> None:
    """ValueError unless x has the axes of the model's samples, and one for the batch before them."""
    shape = getattr(model, "shape", None)
    if shape is not None and x.ndim != len(shape) + 1:
        one = "x[None], a batch of one"
        if x.shape != tuple(shape):
            one = f"({', '.join(map(str, ('B', *shape)))})"
        raise ValueError(
            f"x is {tuple(x.shape)}, and one sample of the model is {tuple(shape)}; give {one}"
        )


def sample_shape(model: Denoiser, shape: Sequence[int] | None) -> tuple[int, ...]:
    if shape is None:
        shape = getattr(model, "shape", None)
    if shape is None and hasattr(model, "means"):
        shape = (model.means.shape[1],)
    if shape is None:
        axes = ", ".join(getattr(model, "axes", None) or "")
        raise ValueError(
            "give shape=, of ONE sample, such as (3, 32, 32)"
            + (axes and f"; its axes are ({axes})")
        )
    return sizes(shape)


def device_of(model: Denoiser, device: str | torch.device | None) -> torch.device:
    if device is not None:
        return _device(device)
    if isinstance(model.net, torch.nn.Module):
        return next((p.device for p in model.net.parameters()), torch.device("cpu"))
    # of a network with parts elsewhere
    own: torch.device = getattr(model, "device", torch.device("cpu"))
    return own


def conditions(cond: Cond | None, n: int, device: torch.device) -> dict[str, Tensor] | None:
    if callable(cond):
        cond = cond(torch.arange(n))
    if cond is None:
        return None
    return {name: value.to(device) for name, value in check_cond(cond, n, "noise").items()}
