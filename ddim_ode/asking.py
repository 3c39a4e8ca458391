"""One network call: what goes in and what comes out is what the rest of the package counts on.

A network that changes its inputs in place spoils the state, or the conditions of the next call; one that
returns the same tensor at each call spoils what methods keep of the last; one in training mode answers a
question in many ways. All of these look like bad samples, and are told here instead.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import named
from ._warn import warn

Net = Callable[..., Tensor]

_IN_PLACE = "the network changes its {} in place; use x * c, not x.mul_(c)"
_WHOLE_TIMES = (
    "t is a float here: for a network of whole times give Denoiser(..., snap=True), and "
    "net = lambda x, t, **cond: own(x, t.round().long(), **cond)"
)
_OF_PRECISION = re.compile("dtype|scalar type|[Ii]nput type")  # in torch's messages
_AGAIN = (
    "the network returned the tensor of its last call again, and methods keep that one; return a new "
    "tensor (buffer.clone())"
)


def guarded(net: Net, dtype: torch.dtype | None, like: Tensor, extra: Mapping[str, Any]) -> Net:
    """The network, whose calls end in a ValueError where an input is changed in place, an answer is not a
    new tensor, or the precision is wrong.

    dtype: what its x is cast to, if anything. like, extra: a state and all else that it is given. Changes
    are counted by torch, which counts none under ``torch.inference_mode``, through ``.data`` or from numpy.
    """
    module = getattr(net, "__self__", net)  # a bound method's
    module = module if isinstance(module, nn.Module) else None
    _warn_of_training(module)
    tensors = [v for v in (like, *extra.values()) if type(v) is Tensor]
    versioned = not (torch.is_inference_mode_enabled() or any(v.is_inference() for v in tensors))
    last: Callable[[], Any] = lambda: None  # noqa: E731

    def asked(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        nonlocal last
        before = _versions(x, t, cond) if versioned else None  # short: it runs at every call
        try:
            out: Tensor = net(x, t, **cond)
        except RuntimeError as error:
            if "single memory location" in str(error):  # t is one number for the whole batch
                raise ValueError(f"{_IN_PLACE.format('t')} (nor on what is expanded)") from error
            _explain(error, module, x, dtype, cond)
            raise
        if before is not None and before != (after := _versions(x, t, cond)):
            changed = next(name for name in after if after[name] != before[name])
            raise ValueError(_IN_PLACE.format(changed))
        if isinstance(out, Tensor):
            if out is last() and out is not x:
                raise ValueError(_AGAIN)
            last = weakref.ref(out)
        return out

    return asked


def _versions(x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> dict[str, int]:
    """How often each of the tensors was changed."""
    found = {"x": x._version, "t": t._version}
    for name, value in cond.items():
        if type(value) is Tensor:
            found[name] = value._version
    return found


def _warn_of_training(net: nn.Module | None) -> None:
    if net is not None:
        layers = (type(m).__name__ for m in net.modules() if m.training and _is_of_chance(m))
        if layer := next(layers, None):
            warn(f"the network is in training mode, and has {layer} inside; call net.eval() first")


def _is_of_chance(layer: nn.Module) -> bool:
    """Whether, in training mode, it answers one question in many ways, or by what else is in the batch."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if isinstance(layer, (nn.MultiheadAttention, nn.RNNBase)):
        return layer.dropout > 0
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def _explain(
    error: RuntimeError,
    net: nn.Module | None,
    x: Tensor,
    dtype: torch.dtype | None,
    cond: Mapping[str, Any],
) -> None:
    """ValueError with the remedy, where a network fails for want of the precision that it is given."""
    held = [] if net is None else [*net.parameters(), *net.buffers()]
    own = next((w.dtype for w in held if w.is_floating_point()), x.dtype)
    floats = {k: v for k, v in cond.items() if isinstance(v, Tensor) and v.is_floating_point()}
    if "'indices'" in str(error):  # of an embedding
        labels = next((name for name, v in floats.items() if v.ndim == 1), None)
        remedy = f"give {labels}.long(), if it looks that up; else " if labels else ""
        remedy += _WHOLE_TIMES
        raise ValueError(f"an embedding takes whole numbers ({error}); {remedy}") from error
    if "index" in str(error) or not _OF_PRECISION.search(str(error)):
        return
    others = [name for name, v in floats.items() if v.dtype != x.dtype]
    whose, remedy = "", "drop dtype="
    if own != x.dtype:
        whose, remedy = f", whose weights are {own},", f"give Denoiser(..., dtype={own})"
    elif others:
        remedy = f"give {others[0]} as {x.dtype} too, and not {floats[others[0]].dtype}"
    elif dtype is None:
        return
    raise ValueError(f"the network{whose} fails on x of {x.dtype} ({error}); {remedy}") from error


def check_names(argument: str, value: Any) -> None:
    """ValueError unless it is a mapping of conditions by names that a network can be called with."""
    names = named(argument, value)
    for name in ("x", "t"):
        if name in names:
            raise ValueError(
                f"{argument} has {name!r}, which the network is given anyway; give the condition another "
                "name, and rename it: net = lambda x, t, c: own(x, t, ...)"
            )


def check_cond(cond: Mapping[str, Tensor] | None, x: Tensor) -> dict[str, Tensor]:
    """A copy of the conditions; ValueError unless each is a tensor with a row for each sample of x."""
    if cond is not None:
        check_names("cond", cond)
    for name, value in (cond or {}).items():
        rows = value.shape[0] if isinstance(value, Tensor) and value.ndim else None
        if rows != x.shape[0]:
            remedy = "what all samples share goes into shared="
            if rows == 1:
                remedy = f"give {name}.expand({x.shape[0]}, ...) for the same in each"
            raise ValueError(
                f"cond[{name!r}] must be a tensor with one row per sample ({x.shape[0]}), got "
                f"{rows if rows is not None else type(value).__name__}; {remedy}"
            )
    return dict(cond or {})


def check_labels(labels: Any, n: int, shared: bool = False) -> None:
    """ValueError for what no embedding of n classes takes, (B,), or one number where it is shared; values
    are looked at where that waits for no device."""
    if not isinstance(labels, Tensor):
        raise ValueError(f"class labels must be a tensor of whole numbers (B,), got {labels!r}")
    if labels.numel() == 0:
        return  # torch.tensor([]) is floating
    if labels.dtype not in (torch.int64, torch.int32) or labels.ndim not in (
        (0, 1) if shared else (1,)
    ):
        raise ValueError(
            f"class labels must be whole numbers (B,), int64 or int32; got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    if labels.device.type == "cpu":
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= n:
            raise ValueError(f"class labels {least} to {most}: the network knows 0 to {n - 1}")


def check_channels(x: Tensor, channels: int) -> None:
    """ValueError unless x is (B, channels, *)."""
    if x.ndim < 2 or x.shape[1] != channels:
        got = f"{x.shape[1]} channels" if x.ndim > 1 else f"shape {tuple(x.shape)}"
        raise ValueError(f"x has {got} (B, C, *), and the network takes {channels}")


def check_output(out: Any, x: Tensor, expected: Sequence[int], prediction: str) -> None:
    """ValueError unless a network's answer to x is a tensor of the expected shape."""
    if not isinstance(out, Tensor):
        message = f"the network returned a {type(out).__name__}, not a tensor"
        if hasattr(out, "sample"):
            message += "; wrap it: net = lambda x, t, **cond: unet(x, t, **cond).sample"
        raise ValueError(message)
    if not out.is_floating_point():
        raise ValueError(
            f"the network returned {out.dtype}; it must return real numbers, {x.dtype}"
        )
    if out.shape == expected:
        return
    message = (
        f"the network returned shape {tuple(out.shape)} for x of {tuple(x.shape)}; it must return "
        f"{tuple(expected)}, one {prediction} per entry"
    )
    if out.ndim == x.ndim > 1 and out.shape[1] == 2 * x.shape[1]:
        message += (
            ". Twice the channels is a learned variance: pass learned_variance='split' to Denoiser"
        )
    raise ValueError(message)
