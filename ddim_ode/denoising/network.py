"""One network call, checked on both sides.

A network that changes its inputs in place spoils the state, or the conditions of the next call; one that
returns the same tensor at each call spoils what methods keep of the last; one in training mode answers one
question in many ways. All of these look like bad samples, and are refused or warned about here instead.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._base.checks import named, shown
from .._base.warn import warn

Net = Callable[..., Tensor]

_IN_PLACE = "the network changes its {} in place; use x * c, not x.mul_(c)"
_WHOLE_TIMES = (
    "t is a float here: for a network of whole times give Denoiser(..., snap=True), and "
    "net = lambda x, t, **cond: own(x, t.round().long(), **cond)"
)
# In the messages of torch, and of numpy.
_OF_TABLE = re.compile("index out of range in self|is out of bounds")
_OF_PRECISION = re.compile("dtype|scalar type|[Ii]nput type")
_AGAIN = (
    "the network returned the tensor of its last call again, and methods keep that one; return a new "
    "tensor (buffer.clone())"
)


def guarded(net: Net, dtype: torch.dtype | None, like: Tensor, extra: Mapping[str, Any]) -> Net:
    """The network with checks: a ValueError where it changes an input in place, returns the tensor of its
    last call again, or fails for want of the right precision.

    A half-precision network that makes its time embedding in the precision of t, which is float32, runs
    under ``torch.autocast``: t keeps its digits, and layers take what they can. Changes are counted by
    torch, which counts none under ``torch.inference_mode``, through ``.data`` or from numpy.

    Args:
        net: The network.
        dtype: What its x is cast to, if anything.
        like: A state.
        extra: All else that it is given.
    """
    inner: Any = net
    while isinstance(inner, functools.partial):
        inner = inner.func
    module = _module_of(inner)
    _warn_of_training([module] if module is not None else _named_modules(inner))
    tensors = [v for v in (like, *extra.values()) if type(v) is Tensor]
    versioned = not (torch.is_inference_mode_enabled() or any(v.is_inference() for v in tensors))
    last: Callable[[], Any] = lambda: None  # noqa: E731
    mixing: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    def asked(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        nonlocal last, mixing
        kept = last()
        before = _versions(x, t, cond) if versioned else None  # short: it runs at every call
        written = _times_written(kept)
        try:
            with mixing:
                out: Tensor = net(x, t, **cond)
        except RuntimeError as error:
            if "single memory location" in str(error):  # t is one number for the whole batch
                raise ValueError(f"{_IN_PLACE.format('t')} (nor on what is expanded)") from error
            if not _could_mix(error, x, dtype, cond):
                _explain(error, module, x, dtype, cond)
                raise
            mixing = torch.autocast(x.device.type, x.dtype, cache_enabled=False)
            try:
                with mixing:
                    out = net(x, t, **cond)
            except RuntimeError:
                _explain(error, module, x, dtype, cond)
                raise error from None
        except IndexError as error:
            if _OF_TABLE.search(str(error)):
                raise ValueError(f"{error}: {_BEYOND}") from error
            raise
        except TypeError as error:
            _explain_names(error, net if module is None else module.forward, cond)
            raise
        if before is not None and before != (after := _versions(x, t, cond)):
            changed = next(name for name in after if after[name] != before[name])
            raise ValueError(_IN_PLACE.format(changed))
        if isinstance(out, Tensor):
            if (out is kept and out is not x) or _times_written(kept) != written:  # by a view of it
                raise ValueError(_AGAIN)
            last = weakref.ref(out)
        return out

    return asked


def _times_written(kept: Tensor | None) -> int:
    """How often a tensor was changed; 0 where that is not counted, or for none."""
    return 0 if kept is None or kept.is_inference() else kept._version


def _versions(x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> dict[str, int]:
    """How often each of the tensors was changed."""
    versions = {"x": x._version, "t": t._version}
    for name, value in cond.items():
        if type(value) is Tensor:
            versions[name] = value._version
    return versions


def _module_of(net: Any) -> nn.Module | None:
    """The module that a network is: itself, or that of a bound method."""
    net = getattr(net, "__self__", net)
    return net if isinstance(net, nn.Module) else None


def _named_modules(net: Any) -> list[nn.Module]:
    """The modules that a function names: such as it was made around, and global ones."""
    code = getattr(net, "__code__", None)
    if code is None:
        return []
    named = [net.__globals__.get(name) for name in code.co_names]
    for cell in net.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            named.append(cell.cell_contents)
    return [each for each in named if isinstance(each, nn.Module)]


def _warn_of_training(nets: Sequence[nn.Module]) -> None:
    layers = (m for net in nets for m in net.modules() if m.training and _is_of_chance(m))
    if (layer := next(layers, None)) is not None:
        name = type(layer).__name__
        warn(f"the network is in training mode, and has {name} inside; call net.eval() first")


def _is_of_chance(layer: nn.Module) -> bool:
    """Whether, in training mode, it answers one question in many ways, or by what else is in the batch."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if isinstance(layer, (nn.MultiheadAttention, nn.RNNBase)):
        return layer.dropout > 0
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def _is_of_precision(error: RuntimeError) -> bool:
    return "index" not in str(error) and _OF_PRECISION.search(str(error)) is not None


def _could_mix(
    error: RuntimeError, x: Tensor, dtype: torch.dtype | None, cond: Mapping[str, Any]
) -> bool:
    """Whether t may be all that is not in the half precision that a network was to run in."""
    others = (v.dtype for v in cond.values() if isinstance(v, Tensor) and v.is_floating_point())
    half = dtype in (torch.float16, torch.bfloat16) and all(other == x.dtype for other in others)
    return half and _is_of_precision(error)


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
    if not _is_of_precision(error):
        return
    others = [name for name, v in floats.items() if v.dtype != x.dtype]
    whose, remedy = "", "drop dtype="
    if held and dtype is not None:
        remedy = (
            "t is float32 or wider here: net = lambda x, t, **cond: own(x, t.to(x.dtype), **cond)"
        )
    if own != x.dtype:
        whose, remedy = f", whose weights are {own},", f"give Denoiser(..., dtype={own})"
    elif others:
        remedy = f"give {others[0]} as {x.dtype} too, and not {floats[others[0]].dtype}"
    elif dtype is None:
        return
    raise ValueError(f"the network{whose} fails on x of {x.dtype} ({error}); {remedy}") from error


_BEYOND = (
    "the network looked something up beyond its table. Times are 1..T here: one that counts them 0..T−1 "
    "needs Denoiser(..., time_offset=-1.0); labels must be below the network's number of classes"
)


def _explain_names(error: TypeError, net: Net, cond: Mapping[str, Any]) -> None:
    """ValueError with the remedy, where it is the names of the conditions that do not fit."""
    try:
        inspect.signature(net).bind(None, None, **cond)
    except TypeError:
        call = ", ".join(("x", "t", *(f"{name}={name}" for name in cond)))
        remedy = (
            "drop the conditions that it does not take, and give those that it needs as cond={name: tensor "
            "(B, ...)} or shared={name: value}"
        )
        if not cond and "positional" in str(error) and "given" in str(error):
            remedy = "where it takes no time, wrap it: net = lambda x, t: own(x)"
        raise ValueError(
            f"the network cannot be called as net({call}) ({error}); {remedy}"
        ) from error
    except ValueError:  # it has no signature
        pass


def check_names(argument: str, value: Any) -> None:
    """ValueError unless it is a mapping of conditions by names that a network can be called with."""
    names = named(argument, value)
    for name in ("x", "t"):
        if name in names:
            raise ValueError(
                f"{argument} has {name!r}, which the network is given anyway; give the condition another "
                "name, and rename it: net = lambda x, t, c: own(x, t, ...)"
            )


def by_name(
    cond: Mapping[str, Any] | None, shared: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All conditions; ValueError unless they are mappings of names that a network can be called with."""
    for argument, value in (("cond", cond), ("shared", shared)):
        if value is not None:
            check_names(argument, value)
    return {**(shared or {}), **(cond or {})}


def has_rows(value: Any) -> bool:
    """Whether it is a tensor (rows, ...)."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.ndim > 0


def check_cond(cond: Mapping[str, Tensor] | None, n: int, one: str = "sample") -> dict[str, Tensor]:
    """A copy of the conditions; ValueError unless each is a tensor with a row for each of n."""
    rows = by_name(cond)
    for name, value in rows.items():
        if has_rows(value) and len(value) == n:
            if value.is_meta:
                raise ValueError(
                    f"cond[{name!r}] is on meta, where it holds no numbers; give one that does"
                )
            continue
        if isinstance(value, Tensor):
            got, remedy = (
                str(len(value) if value.ndim else "one"),
                "what all share goes into shared=",
            )
            if value.layout != torch.strided:
                got, remedy = f"layout {value.layout}", f"give {name}.to_dense()"
            elif value.shape[:1] == (1,):
                remedy = f"give {name}.expand({n}, ...) for the same in each"
        else:
            got, remedy = type(value).__name__, "what all share goes into shared="
            if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes)):
                remedy = f"give torch.as_tensor({name})"
        raise ValueError(
            f"cond[{name!r}] must be a tensor with one row per {one} ({n}), got {got}; {remedy}"
        )
    return rows


def check_labels(labels: Any, n: int, shared: bool = False) -> None:
    """ValueError for labels that no embedding of n classes takes: they are (B,), or one number if shared.
    Values are looked at on the CPU only, so as not to wait for a device.
    """
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"class labels must be a tensor of whole numbers (B,), got {shown(labels)}"
        )
    if labels.numel() == 0:
        return  # torch.tensor([]) is floating
    if (
        labels.dtype not in (torch.int64, torch.int32)
        or labels.layout != torch.strided
        or labels.ndim not in ((0, 1) if shared else (1,))
    ):
        raise ValueError(
            f"class labels must be whole numbers (B,), int64 or int32; got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    if labels.device.type == "cpu":
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= n:
            raise ValueError(f"class labels {least} to {most}: the network knows 0 to {n - 1}")


def check_channels(x: Tensor, channels: int, axes: str | None = "C") -> None:
    """ValueError unless x has that many channels.

    axes: Those of one sample as far as they are known, such as ``"FCHW"``; None where it is not known
    which of them are the channels.
    """
    shape = tuple(x.shape)
    if axes is None:
        if channels not in shape[1:]:
            raise ValueError(
                f"x has shape {shape}, and no axis of it has the {channels} channels that the network takes"
            )
        return
    axis = 1 + axes.index("C")
    if x.ndim <= axis or shape[axis] != channels:
        got = f"{shape[axis]} channels" if x.ndim > axis else f"shape {shape}"
        before = "".join(f"{name}, " for name in axes[: axis - 1])
        raise ValueError(f"x has {got} (B, {before}C, *), and the network takes {channels}")
    if len(axes) > 1 and x.ndim != 1 + len(axes):
        raise ValueError(
            f"x has shape {shape}, and the network takes (B, {', '.join(axes)}) with {channels} channels"
        )


def doubled_axis(out: Tensor, x: Tensor) -> int | None:
    """The one axis on which an answer is twice as long as x, if it differs on no other; else None."""
    if out.ndim != x.ndim:
        return None
    differ = [axis for axis in range(x.ndim) if out.shape[axis] != x.shape[axis]]
    twice = [axis for axis in differ if axis > 0 and out.shape[axis] == 2 * x.shape[axis]]
    return twice[0] if len(differ) == len(twice) == 1 else None


def halved(out: Any, x: Tensor, prediction: str) -> Tensor:
    """The prediction of an answer (B, 2C, *) with a variance behind it, on any axis; else a ValueError."""
    if x.ndim < 2:
        raise ValueError(
            "learned_variance='split' halves the channels of an answer (B, 2C, *), and x is "
            f"{tuple(x.shape)}"
        )
    axis = doubled_axis(out, x) if isinstance(out, Tensor) else None
    if axis is None:
        check_output(out, x, (x.shape[0], 2 * x.shape[1], *x.shape[2:]), prediction)
    first: Tensor = out if axis is None else out.chunk(2, dim=axis)[0]
    return first


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
    if doubled_axis(out, x) is not None:
        message += (
            ". Twice the channels is a learned variance: pass learned_variance='split' to Denoiser"
        )
    raise ValueError(message)
