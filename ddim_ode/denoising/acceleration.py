"""Faster network calls: the same denoiser, its network compiled, laid out or rounded otherwise.

None of these touches the solve: the state, the plan's numbers and the network's time stay float32 or wider.
``compile``, ``channels_last`` and ``batch`` change the order of float32 sums; ``dtype`` changes the
network's rounding to 2⁻⁹ relative in bfloat16, 2⁻¹² in float16. Which of them helps depends on network and
machine: ``python benchmarks/device.py`` measures it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from .._base.checks import count, flag, floating, named, shown
from .denoiser import Denoiser
from .inputs import check_model
from .micro_batches import MicroBatches

Model = TypeVar("Model", bound=Denoiser)


def accelerate(
    model: Model,
    *,
    compile: bool | Mapping[str, Any] = False,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
    batch: int | str | None = None,
) -> Model:
    """A copy of the denoiser with a faster network; the given one stays as it is.

    Args:
        model: The denoiser.
        compile: True, or the options of ``torch.compile`` as a mapping. The first call of each batch shape
            compiles, for seconds to minutes.
        channels_last: Lay out the weights of convolutions as (C_out, H, W, C_in).
        dtype: Of a copy of the weights and of what goes in, such as ``torch.bfloat16``. A processor without
            instructions for it is slower, not faster.
        batch: Rows of a network call, whatever the batch of the solve; ``"auto"`` takes all, and halves
            when memory runs out.

    Raises:
        ValueError: channels_last for a network that is no ``torch.nn.Module``, or options of torch.compile
            that record CUDA graphs: those overwrite their last output, which multistep methods keep.

    >>> import ddim_ode
    >>> model = ddim_ode.load("fashion-mnist")
    >>> fast = ddim_ode.accelerate(model, channels_last=True, batch=2)
    >>> x, y = ddim_ode.noise(model.shape, model.schedule, seeds=[0, 1, 2]), torch.tensor([0, 1, 2])
    >>> a, b = (ddim_ode.sample(m, x, nfe=2, cond={"y": y}).x for m in (model, fast))
    >>> bool((a - b).abs().max() < 1e-3)
    True
    """
    check_model(model)
    net, changes = model.net, dict[str, Any]()
    if flag("channels_last", channels_last) and not isinstance(net, torch.nn.Module):
        raise ValueError(
            f"channels_last=True lays out the weights of a torch.nn.Module, and the network is a "
            f"{type(net).__name__}; drop it"
        )
    if dtype is not None:
        changes["dtype"] = floating(dtype)
    if isinstance(net, torch.nn.Module) and (channels_last or dtype is not None):
        net = copy.deepcopy(net).to(dtype=dtype)
        if channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compile is not False:
        net = torch.compile(net, **_compile_options(compile))
    if batch is not None:
        changes["micro_batches"] = MicroBatches(rows_of(batch))
    return model.replace(net=net, **changes)


def rows_of(batch: int | str) -> int | None:
    """The number of rows, None for ``"auto"``; ValueError for anything else."""
    if isinstance(batch, str):
        if batch != "auto":
            raise ValueError(f"batch={shown(batch)} must be a whole number >= 1, or 'auto'")
        return None
    return count("batch", batch)


def _compile_options(compile: bool | Mapping[str, Any]) -> dict[str, Any]:
    if compile is True:
        return {}
    if not isinstance(compile, Mapping):
        raise ValueError(
            f"compile={shown(compile)} must be True, False, or options of torch.compile"
        )
    try:
        inspect.signature(torch.compile).bind(None, **named("compile", compile))
    except TypeError as error:
        raise ValueError(
            f"compile={shown(dict(compile))} is not of torch.compile: {error}"
        ) from None
    mode = compile.get("mode")
    graphs = named("compile's options", compile.get("options") or {}).get("triton.cudagraphs")
    if graphs or mode in ("reduce-overhead", "max-autotune"):
        raise ValueError(
            f"compile={shown(dict(compile))} records CUDA graphs, which overwrite the outputs that "
            "multistep methods keep; use mode='max-autotune-no-cudagraphs', or cuda_graph=True of "
            "ddim_ode.generate"
        )
    return dict(compile)
