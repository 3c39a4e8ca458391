"""A network's call as the loop makes it: what it answers at (x, t), guided, checked and limited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .branches import Branches
from .guidance import Call, Guidance, Level, Limit
from .network import Net, check_names, check_output, guarded, halved

_EVERYWHERE = Level()


class Settings(Protocol):
    """What a denoiser says of its network."""

    net: Net
    prediction: str
    dtype: torch.dtype | None
    learned_variance: str | None
    guidance: Guidance | None
    limit: Limit


def network_call(
    model: Settings, like: Tensor, cond: dict[str, Tensor], shared: Mapping[str, Any] | None
) -> Call:
    """``call(x, t, at)`` for states like ``like`` (b, *), whose rows those of ``cond`` are."""
    if shared is not None:
        check_names("shared", shared)
    common = shared or {}
    both = {*cond} & {*common}
    if both:
        raise ValueError(f"{min(both)!r} is in cond and in shared; drop one of them")
    extra = {**cond, **common}
    dtype, split, prediction, limit = (
        model.dtype,
        model.learned_variance,
        model.prediction,
        model.limit,
    )
    asked = guarded(model.net, dtype, like, extra)

    def plain(x: Tensor, t: Tensor, at: Level | None = None) -> Tensor:
        out = asked(x, t, **extra)
        if type(out) is not Tensor or out.shape != x.shape or out.dtype != x.dtype:
            check_output(out, x, x.shape, prediction)
        return out if out.dtype == x.dtype else out.to(x.dtype)

    if dtype is None and model.guidance is None and split is None and not limit:
        return plain

    def ask(x: Tensor, t: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        inside = x if dtype is None else x.to(dtype)
        out = asked(inside, t, **rows, **common)
        if split is not None:
            out = halved(out, inside, prediction)
        check_output(out, inside, inside.shape, prediction)
        return out if out.dtype == x.dtype else out.to(x.dtype)

    branches = None if model.guidance is None else Branches(model.guidance, cond, like)

    def call(x: Tensor, t: Tensor, at: Level | None = None) -> Tensor:
        if branches is None:
            out = ask(x, t, cond)
        else:
            out = branches(ask, x, t, _EVERYWHERE if at is None else at)
        if limit:
            assert at is not None, "a limited x̂₀ needs the call's levels"
            out = limit(out, x, at)
        return out

    return call
