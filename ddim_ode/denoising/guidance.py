"""Guidance, and limits on x̂₀: what makes a denoiser's ODE differ from its network's own.

With P_c what the network predicts, and P_∅ without the condition, the guided prediction is

    P_s = P_∅ + s (P_c − P_∅)                                       Ho & Salimans 2022, eq. 6 (s = 1 + w)
    P   = P_s (φ std P_c / std P_s + 1 − φ)                         Lin et al. 2024, eqs. 15 and 16

where the standard deviation runs over the entries of one sample. The first formula is the same whatever the
network predicts; the second acts on the network's own prediction, as in the paper (whose network predicts
v). For σ outside an interval P = P_c, and the null branch is not evaluated (Kynkäänniemi et al. 2024). A
limit acts last, on the x̂₀ that follows from P, and ε̂ is then the one that keeps x = ᾱ x̂₀ + β̄ ε̂.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import is_dense, named, number, shown
from .._base.notebook import brief
from .._base.tensors import beside
from ..schedules.schedule import Array

Mask = npt.NDArray[np.bool_]
Pair = tuple[Any, Any]  # numbers, or tensors (B, 1, ...)
Call = Callable[..., Tensor]  # (x, t, at: Level | None = None) -> the prediction, or a limited x̂₀


@dataclass(frozen=True, repr=False)
class Guidance:
    """Classifier-free guidance: null + scale·(conditional − null), in one batched call.

    Args:
        scale: A number, or a 0-d tensor, whose gradient ``sample(..., differentiable=True)`` keeps. Scale 1
            is the conditional network alone and costs no second branch.
        null: For each condition to be dropped, its value in the null branch: a number, a tensor of one
            sample's shape, or a row for each sample, as the condition has. Other conditions are the same in
            both branches.
        interval: (low, high): guide only where low < σ ≤ high. Elsewhere the conditional network is called
            alone, at the cost of one row a sample. The field jumps at the ends, which adaptive solvers find
            by rejected steps.
        rescale: Rescale the guided prediction to the conditional one's standard deviation: 0 (off) to 1. It
            needs samples of two entries or more; a constant prediction stays as it is.

    References: Ho & Salimans 2022, https://arxiv.org/abs/2207.12598; interval: Kynkäänniemi et al. 2024,
    https://arxiv.org/abs/2404.07724; rescale: Lin et al. 2024, https://arxiv.org/abs/2305.08891.

    >>> import ddim_ode
    >>> ddim_ode.Guidance(3.0, null={"y": 10}, interval=(0.3, 5.0), rescale=0.7).to_dict()
    {'guidance': 3.0, 'guidance_interval': [0.3, 5.0], 'guidance_rescale': 0.7}
    """

    scale: float | Tensor
    null: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __repr__(self) -> str:
        interval = "" if self.interval is None else f", interval={self.interval!r}"
        rescale = f", rescale={self.rescale!r}" if self.rescale else ""
        return f"Guidance({brief(self.scale)}, null={brief(self.null)}{interval}{rescale})"

    def __post_init__(self) -> None:
        scale: Any = self.scale
        if not isinstance(scale, Tensor):
            scale = number("guidance scale", scale)
            object.__setattr__(self, "scale", scale)
        elif scale.ndim or not (is_dense(scale) and scale.is_floating_point()):
            scale = math.nan
        if not math.isfinite(scale):
            raise ValueError(
                f"guidance scale {shown(self.scale)} must be a finite number (1 is no guidance), or a 0-d "
                "floating tensor"
            )
        named("null", self.null)
        if not self.is_off and not self.null:
            raise ValueError("guidance needs null={name: value}: the conditions of the null branch")
        _number("rescale", self.rescale, 0.0, 1.0, "0 is none")
        object.__setattr__(self, "rescale", float(self.rescale))
        if self.interval is not None:
            ends = self.interval if isinstance(self.interval, (tuple, list)) else ()
            real = len(ends) == 2 and all(isinstance(end, Real) for end in ends)
            if not (real and 0 <= ends[0] < ends[1]):
                raise ValueError(
                    f"guidance interval {shown(self.interval)} must be (low, high) with 0 <= low < high, "
                    "noise levels σ; None guides everywhere"
                )

    @property
    def is_off(self) -> bool:
        """Whether it is the conditional network alone, with no gradient to keep."""
        return not isinstance(self.scale, Tensor) and self.scale == 1

    def rows(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The null values that have a row for each sample, as ``cond`` has, on its device."""
        own = {k: _tensor(k, v).to(cond[k].device) for k, v in self.null.items() if k in cond}
        return {k: null for k, null in own.items() if null.ndim == cond[k].ndim}

    def part(self, index: slice | Tensor, n: int, cond: Mapping[str, Tensor]) -> Guidance:
        """The guidance of some of n samples, whose conditions are like ``cond``.

        Raises:
            ValueError: Null values of another number of rows than n, or one for all.
        """
        rows = {k: null for k, null in self.rows(cond).items() if len(null) != 1 or n == 1}
        for name, null in rows.items():
            if len(null) != n:
                raise ValueError(
                    f"null[{name!r}] has {len(null)} rows for {n} samples; give one value for all, or a "
                    "row for each"
                )
        if not rows:
            return self
        return replace(self, null={**self.null, **{k: taken(v, index) for k, v in rows.items()}})

    def covers(self, sigma: Array) -> Mask:
        """Which of the levels are guided."""
        if self.interval is None:
            return np.ones(sigma.shape, dtype=bool)
        low, high = self.interval
        return (low < sigma) & (sigma <= high)

    def guided(self, levels: Array, device: torch.device) -> bool | Tensor:
        """Which samples, at their levels (B,), are guided: all, none, or those rows."""
        mask = self.covers(levels)
        if mask.all() or not mask.any():
            return bool(mask.all())
        return torch.as_tensor(np.flatnonzero(mask), device=device)

    def to_dict(self) -> dict[str, Any]:
        """The scale (a tensor stays one), and interval and rescale where they are used."""
        scale = self.scale
        if isinstance(scale, Tensor):  # as it is now, and without waiting for the device
            scale = scale.detach().clone()
        entries: dict[str, Any] = dict(guidance=scale)
        if self.interval is not None:
            entries["guidance_interval"] = [e if math.isfinite(e) else "inf" for e in self.interval]
        if self.rescale:
            entries["guidance_rescale"] = self.rescale
        return entries


class Level(NamedTuple):
    """What one call needs to know of its noise levels.

    Attributes:
        guided: Whether all samples are, or none; or the rows that are.
        to_x0: (a, b) with x̂₀ = a·x + b·P.
    """

    guided: bool | Tensor = True
    to_x0: Pair = (0.0, 1.0)

    def part(self, rows: slice, batch: int) -> Level:
        """For some rows of the batch."""
        guided = self.guided
        if isinstance(guided, Tensor):
            first, last, _ = rows.indices(batch)
            guided = guided[(first <= guided) & (guided < last)] - first
        a, b = (c[rows] if isinstance(c, Tensor) else c for c in self.to_x0)
        return Level(guided, (a, b))


class Branches:
    """The conditions of a batch and their null values: asks for both in one call, and combines the answers.

    Args:
        guidance: How.
        rows: The batch's conditions, one row a sample.
        like: A tensor of the state's dtype and device.
    """

    def __init__(self, guidance: Guidance, rows: dict[str, Tensor], like: Tensor) -> None:
        missing = [name for name in guidance.null if name not in rows]
        if missing:
            raise ValueError(
                f"guidance drops {missing[0]!r}, so sampling needs cond[{missing[0]!r}]"
            )
        dropped, self.rows, self.rescale = guidance.null, rows, guidance.rescale
        self.null = {k: _null(k, dropped[k], v) if k in dropped else v for k, v in rows.items()}
        self.both = {k: torch.cat([v, self.null[k]]) for k, v in rows.items()}
        scale = guidance.scale
        self.scale = scale.to(like) if isinstance(scale, Tensor) else scale

    def __call__(
        self,
        ask: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor],
        x: Tensor,
        t: Tensor,
        guided: bool | Tensor,
    ) -> Tensor:
        if guided is False:
            return ask(x, t, self.rows)
        if guided is True:
            conditional, null = ask(torch.cat([x, x]), torch.cat([t, t]), self.both).chunk(2)
            return self._combined(conditional, null)
        extra = {k: torch.cat([v, self.null[k][guided.to(v.device)]]) for k, v in self.rows.items()}
        out = ask(torch.cat([x, x[guided]]), torch.cat([t, t[guided]]), extra)
        conditional, null = out.split([len(x), len(guided)])
        return conditional.index_copy(0, guided, self._combined(conditional[guided], null))

    def _combined(self, conditional: Tensor, null: Tensor) -> Tensor:
        guided = torch.lerp(null, conditional, self.scale)
        if not self.rescale:
            return guided
        if 0 < guided.numel() <= guided.shape[0]:
            raise ValueError("guidance rescale needs samples of two entries or more; drop rescale")
        spread = guided.flatten(1).std(dim=1)
        ratio = conditional.flatten(1).std(dim=1) / spread
        ratio = torch.where(spread == 0, torch.ones_like(ratio), ratio)
        return guided * beside(1 + self.rescale * (ratio - 1), guided)


_MOST = torch.finfo(torch.float32).max  # of a bound: what x̂₀ can be


class Limit:
    """Keeps x̂₀ in range, which changes the ODE.

    Args:
        clip: Keep x̂₀ in [−clip, clip].
        threshold: Dynamic thresholding of data in [−1, 1] instead (Saharia et al. 2022, section 2.3,
            https://arxiv.org/abs/2205.11487): p in (0, 1], or (p, most). With s the p-quantile of a
            sample's |x̂₀|, at least 1 and at most ``most`` (default: no bound), x̂₀ becomes clamp(x̂₀, −s,
            s)/s. A bound of 1, diffusers' default ``sample_max_value``, makes it a clip to [−1, 1].

    Raises:
        ValueError: Both are given, or a value is out of range.

    >>> str(Limit(clip=1.0)), Limit(threshold=(0.995, 1.5)).to_dict()
    ('clip 1', {'threshold': [0.995, 1.5]})
    """

    def __init__(
        self,
        clip: float | None = None,
        threshold: float | tuple[float, float] | None = None,
    ) -> None:
        if clip is not None:
            if threshold is not None:
                raise ValueError("both clip and threshold are given; drop threshold")
            _number("clip", clip, 0.0, _MOST, "a bound on |x̂₀|", strictly=True)
        self.clip = None if clip is None else float(clip)
        self.threshold: float | None = None
        self.most = math.inf
        if threshold is not None:
            pair = isinstance(threshold, (tuple, list)) and len(threshold) == 2
            p, most = threshold if pair else (threshold, None)  # type: ignore[misc]
            _number("threshold", p, 0.0, 1.0, "a quantile of |x̂₀|", strictly=True)
            self.threshold = float(p)  # type: ignore[arg-type]
            if most not in (None, math.inf):
                _number("the bound of threshold", most, 0.0, _MOST, "on s", strictly=True)
                self.most = float(most)

    def __bool__(self) -> bool:
        return self.clip is not None or self.threshold is not None

    def __str__(self) -> str:
        for name, value in self.to_dict().items():
            numbers = value if isinstance(value, list) else [value]
            return f"{name} {', at most '.join(f'{number:g}' for number in numbers)}"
        return "no limit on x̂₀"

    def to_dict(self) -> dict[str, Any]:
        """The one in use, as plain data; {} for none."""
        if self.clip is not None:
            return dict(clip=self.clip)
        if self.threshold is None:
            return {}
        bounded = math.isfinite(self.most)
        return dict(threshold=[self.threshold, self.most] if bounded else self.threshold)

    def __call__(self, prediction: Tensor, x: Tensor, level: Level) -> Tensor:
        """The limited x̂₀ at x (B, *), in x's dtype."""
        a, b = level.to_x0
        x0 = a * x + b * prediction
        # Infinite answers must not end as a bound, which would pass for one.
        return self._limited(x0) + 0 * x0

    def _limited(self, x0: Tensor) -> Tensor:
        if self.clip is not None:
            return x0.clamp(-self.clip, self.clip)
        if not x0.numel():
            return x0
        assert self.threshold is not None
        entries = x0.abs().reshape(len(x0), math.prod(x0.shape[1:]))
        s = beside(_quantile(entries, self.threshold).clamp(1.0, self.most), x0)
        return torch.maximum(torch.minimum(x0, s), -s) / s


def _quantile(values: Tensor, p: float) -> Tensor:
    """``torch.quantile(values, p, dim=1)`` of (B, n), for any n: that one takes 2²⁴ entries."""
    n = values.shape[1]
    rank = p * (n - 1)
    below = int(rank)
    upper = values.topk(n - below, dim=1).values  # from the largest down to that of rank ``below``
    return torch.lerp(upper.select(1, -1), upper.select(1, max(n - below - 2, 0)), rank - below)


def _number(
    name: str, value: Any, low: float, high: float, meaning: str, strictly: bool = False
) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if (
        not number
        or not low <= value <= high
        or value > sys.float_info.max
        or (strictly and value == low)
    ):
        ends = f"{'(' if strictly else '['}{low:g}, {high:g}{')' if math.isinf(high) else ']'}"
        raise ValueError(f"{name}={shown(value)} must be a number in {ends}: {meaning}")


def taken(values: Tensor, index: slice | Tensor) -> Tensor:
    """Some rows; the index may be on another device."""
    return values[index if isinstance(index, slice) else index.to(values.device)]


def _tensor(name: str, null: Any) -> Tensor:
    try:
        return null if isinstance(null, Tensor) else torch.as_tensor(np.asarray(null))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"null[{name!r}]={shown(null)} is no value of cond[{name!r}]: give a number or a tensor"
        ) from None


def _null(name: str, null: Any, value: Tensor) -> Tensor:
    """The null value of one condition, a row for each of ``value``'s."""
    tensor = _tensor(name, null)
    try:
        rows = tensor.to(value).expand_as(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"null[{name!r}]={shown(null)} is no value of cond[{name!r}], whose samples have shape "
            f"{tuple(value.shape[1:])}; give one of that shape, or a row for each of {len(value)}"
        ) from error
    if tensor.is_floating_point() and not value.is_floating_point():
        raise ValueError(
            f"null[{name!r}]={shown(null)} is a fraction, but cond[{name!r}] is {value.dtype}"
        )
    return rows
