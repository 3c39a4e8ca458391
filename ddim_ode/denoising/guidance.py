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
from dataclasses import dataclass, field, is_dataclass, replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import flag, function, is_dense, named, number, one_of, refuse, shown
from .._base.digests import digest
from .._base.notebook import brief
from .._base.structure import content
from .._base.tensors import beside
from ..schedules.schedule import Array

Mask = npt.NDArray[np.bool_]
Pair = tuple[Any, Any]  # numbers, or tensors (B, 1, ...)
Call = Callable[..., Tensor]  # (x, t, at: Level | None = None) -> the prediction, or a limited x̂₀


@dataclass(frozen=True, repr=False)
class Guidance:
    """Classifier-free guidance: null + scale·(conditional − null), in one batched call.

    Args:
        scale: A number, or a 0-d tensor, whose gradient ``sample(..., differentiable=True)`` keeps; or a
            tensor (B,), one for each sample. Scale 1 is the conditional network alone and costs no second
            branch.
        null: For each condition to be dropped, its value in the null branch: a number, a tensor of one
            sample's shape, or a row for each sample, as the condition has. Other conditions are the same in
            both branches.
        interval: (low, high): guide only where low < σ ≤ high. Elsewhere the conditional network is called
            alone, at the cost of one row a sample. The field jumps at the ends, which adaptive solvers find
            by rejected steps.
        rescale: Rescale the guided prediction to the conditional one's standard deviation: 0 (off) to 1. It
            needs samples of two entries or more; a constant prediction stays as it is.
        combine: What to do with the two predictions instead of ``scale``: a function
            ``f(cond, uncond, x, sigma) -> prediction`` of tensors (b, *), with σ a number, or a tensor
            (b, 1, ...) where samples differ. Those of :mod:`ddim_ode.denoising.guidance_rules` are
            ``apg``, ``cfg_zero_star`` and ``cfg_plus_plus``. It must treat each sample by itself.
        vector: ``"x0"`` if ``combine`` is of x̂₀, whatever the network predicts; default: of the network's
            own prediction.
        sequential: Call the network twice, and not once with both branches in one batch: half the memory.

    References: Ho & Salimans 2022, https://arxiv.org/abs/2207.12598; interval: Kynkäänniemi et al. 2024,
    https://arxiv.org/abs/2404.07724; rescale: Lin et al. 2024, https://arxiv.org/abs/2305.08891.

    >>> import ddim_ode
    >>> ddim_ode.Guidance(3.0, null={"y": 10}, interval=(0.3, 5.0), rescale=0.7).to_dict()
    {'guidance': 3.0, 'guidance_interval': [0.3, 5.0], 'guidance_rescale': 0.7}
    """

    scale: float | Tensor = None  # type: ignore[assignment]  # None: it is the function's
    null: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    combine: Callable[[Tensor, Tensor, Tensor, Any], Tensor] | None = None
    vector: str | None = None
    sequential: bool = False

    def __repr__(self) -> str:
        interval = "" if self.interval is None else f", interval={self.interval!r}"
        rescale = f", rescale={self.rescale!r}" if self.rescale else ""
        how = brief(self.scale) if self.combine is None else f"combine={name_of(self.combine)}"
        if self.vector is not None:
            rescale += f", vector={self.vector!r}"
        if self.sequential:
            rescale += ", sequential=True"
        return f"Guidance({how}, null={brief(self.null)}{interval}{rescale})"

    def __post_init__(self) -> None:
        flag("sequential", self.sequential)
        if self.combine is None:
            self._check_scale()
            refuse("only a function combine= is given another vector", vector=self.vector)
        else:
            function("combine", self.combine)
            refuse("the function combine= has its own scale", scale=self.scale)
            object.__setattr__(self, "scale", 1.0)
            if self.vector is not None:
                one_of("vector", self.vector, ["x0"])
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
    def reads_levels(self) -> bool:
        """Whether a call needs to know the levels of its samples."""
        return self.interval is not None or self.combine is not None

    @property
    def label(self) -> str:
        """What it is called in messages: its scale, or the function."""
        if self.combine is not None:
            return name_of(self.combine)
        several = isinstance(self.scale, Tensor) and self.scale.ndim
        return "of each sample" if several else f"{float(self.scale):g}"

    def _check_scale(self) -> None:
        scale: Any = self.scale
        if scale is None:
            raise ValueError("guidance needs scale=, or combine= a function of the two predictions")
        if not isinstance(scale, Tensor):
            scale = number("guidance scale", scale)
            object.__setattr__(self, "scale", scale)
            good = math.isfinite(scale)
        else:
            good = scale.ndim < 2 and is_dense(scale) and scale.is_floating_point()
            good = good and scale.numel() > 0 and bool(scale.isfinite().all())
        if not good:
            raise ValueError(
                f"guidance scale {shown(self.scale)} must be a finite number (1 is no guidance), or a "
                "floating tensor: 0-d, or (B,), one for each sample"
            )

    @property
    def is_off(self) -> bool:
        """Whether it is the conditional network alone, with no gradient to keep."""
        return self.combine is None and not isinstance(self.scale, Tensor) and self.scale == 1

    def rows(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The null values that have a row for each sample, as ``cond`` has, on its device."""
        own = {
            k: tensor_of_null(k, v).to(cond[k].device) for k, v in self.null.items() if k in cond
        }
        return {k: null for k, null in own.items() if null.ndim == cond[k].ndim}

    def part(self, index: slice | Tensor, n: int, cond: Mapping[str, Tensor]) -> Guidance:
        """The guidance of some of n samples, whose conditions are like ``cond``.

        Raises:
            ValueError: Null values or scales of another number of rows than n, or one for all.
        """
        scale = self.scale
        if isinstance(scale, Tensor) and scale.ndim:
            scale = taken(check_scales(scale, n), index)
        rows = {k: null for k, null in self.rows(cond).items() if len(null) != 1 or n == 1}
        for name, null in rows.items():
            if len(null) != n:
                raise ValueError(
                    f"null[{name!r}] has {len(null)} rows for {n} samples; give one value for all, or a "
                    "row for each"
                )
        if not rows and scale is self.scale:
            return self
        changes: dict[str, Any] = dict(scale=None if self.combine is not None else scale)
        changes["null"] = {**self.null, **{k: taken(v, index) for k, v in rows.items()}}
        return replace(self, **changes)

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
        """The scale (a tensor stays one) or the function's name, and interval and rescale where they are
        used."""
        scale = self.scale
        if isinstance(scale, Tensor):  # as it is now, and without waiting for the device
            scale = scale.detach().clone()
        entries: dict[str, Any] = dict(guidance=scale)
        if self.combine is not None:
            entries = dict(guidance_combine=name_of(self.combine))
            if self.vector is not None:
                entries["guidance_vector"] = self.vector
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
        sigma: The level: a number, or a tensor (B, 1, ...).
    """

    guided: bool | Tensor = True
    to_x0: Pair = (0.0, 1.0)
    sigma: Any = math.nan

    def rows(self, index: Any) -> Level:
        """The numbers of some samples, all guided."""
        a, b, sigma = (c[index] if isinstance(c, Tensor) else c for c in (*self.to_x0, self.sigma))
        return Level(True, (a, b), sigma)

    def part(self, rows: slice, batch: int) -> Level:
        """For some rows of the batch."""
        guided = self.guided
        if isinstance(guided, Tensor):
            first, last, _ = rows.indices(batch)
            guided = guided[(first <= guided) & (guided < last)] - first
        return self.rows(rows)._replace(guided=guided)


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


def check_scales(scales: Tensor, n: int) -> Tensor:
    """Guidance scales (B,); ValueError unless there is one for each of n samples, or one for all."""
    if len(scales) not in (1, n):
        raise ValueError(
            f"guidance scale has {len(scales)} entries for {n} samples; give one for each, or a number"
        )
    return scales.expand(n)


def plain(value: Any) -> Any:
    """An entry of :meth:`Guidance.to_dict` as JSON has it: a tensor as a number, or a list of them."""
    return value.tolist() if isinstance(value, Tensor) else value


def name_of(combine: Callable[..., Tensor]) -> str:
    """What a function is called in manifests: its name, and a hash of its code where that can be had."""
    if is_dataclass(combine) and not isinstance(combine, type):
        return repr(combine)
    named_by = combine if hasattr(combine, "__qualname__") else type(combine)
    name = str(getattr(named_by, "__qualname__", named_by))
    try:
        return f"{name} #{digest(content(combine))[:8]}"
    except (TypeError, RecursionError):
        return name


def taken(values: Tensor, index: slice | Tensor) -> Tensor:
    """Some rows; the index may be on another device."""
    return values[index if isinstance(index, slice) else index.to(values.device)]


def tensor_of_null(name: str, null: Any) -> Tensor:
    try:
        return null if isinstance(null, Tensor) else torch.as_tensor(np.asarray(null))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"null[{name!r}]={shown(null)} is no value of cond[{name!r}]: give a number or a tensor"
        ) from None
