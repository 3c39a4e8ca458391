"""The two branches of a guided call: asked together or one after another, and combined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._base.checks import described, shown
from .._base.tensors import beside
from .guidance import Guidance, Level, check_scales, name_of, taken, tensor_of_null

Ask = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]


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
        self.guidance, self.rows = guidance, rows
        dropped, scale = guidance.null, guidance.scale
        self.null = {k: _null(k, dropped[k], v) if k in dropped else v for k, v in rows.items()}
        if not guidance.sequential:
            self.both = {k: torch.cat([v, self.null[k]]) for k, v in rows.items()}
        if isinstance(scale, Tensor):
            scale = scale.to(like)
            if scale.ndim:
                scale = beside(check_scales(scale, len(like)), like)
        self.scale = scale

    def __call__(self, ask: Ask, x: Tensor, t: Tensor, at: Level) -> Tensor:
        guided = at.guided
        if guided is False:
            return ask(x, t, self.rows)
        if guided is True:
            conditional, null = self._asked(ask, x, t, x, t, self.null)
            return self._combined(conditional, null, x, at, self.scale)
        assert isinstance(guided, Tensor)
        null_rows = {k: taken(v, guided) for k, v in self.null.items()}
        conditional, null = self._asked(ask, x, t, x[guided], t[guided], null_rows)
        scale = self.scale
        if isinstance(scale, Tensor) and scale.ndim:
            scale = scale[guided]
        combined = self._combined(conditional[guided], null, x[guided], at.rows(guided), scale)
        return conditional.index_copy(0, guided, combined)

    def _asked(
        self,
        ask: Ask,
        x: Tensor,
        t: Tensor,
        x_null: Tensor,
        t_null: Tensor,
        null: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """What the network answers under the conditions, and without them."""
        if self.guidance.sequential:
            return ask(x, t, self.rows), ask(x_null, t_null, null)
        every = len(x_null) == len(x)
        both = self.both if every else {k: torch.cat([v, null[k]]) for k, v in self.rows.items()}
        out = ask(torch.cat([x, x_null]), torch.cat([t, t_null]), both)
        conditional, without = out.split([len(x), len(x_null)])
        return conditional, without

    def _combined(
        self, conditional: Tensor, null: Tensor, x: Tensor, at: Level, scale: float | Tensor
    ) -> Tensor:
        if self.guidance.combine is None:
            guided = torch.lerp(null, conditional, scale)
        else:
            guided = self._by_function(self.guidance.combine, conditional, null, x, at)
        if not self.guidance.rescale:
            return guided
        if 0 < guided.numel() <= guided.shape[0]:
            raise ValueError("guidance rescale needs samples of two entries or more; drop rescale")
        spread = guided.flatten(1).std(dim=1)
        ratio = conditional.flatten(1).std(dim=1) / spread
        ratio = torch.where(spread == 0, torch.ones_like(ratio), ratio)
        return guided * beside(1 + self.guidance.rescale * (ratio - 1), guided)

    def _by_function(
        self,
        combine: Callable[..., Tensor],
        conditional: Tensor,
        null: Tensor,
        x: Tensor,
        at: Level,
    ) -> Tensor:
        a, b = at.to_x0
        if self.guidance.vector is None:
            out = combine(conditional, null, x, at.sigma)
        else:
            out = combine(a * x + b * conditional, a * x + b * null, x, at.sigma)
        if type(out) is not Tensor or out.shape != x.shape or out.dtype != x.dtype:
            raise ValueError(
                f"guidance: combine={name_of(combine)} must return a tensor {tuple(x.shape)} of {x.dtype}, "
                f"like the predictions it is given, and returned {described(out)}"
            )
        return out if self.guidance.vector is None else (out - a * x) / b


def _null(name: str, null: Any, value: Tensor) -> Tensor:
    """The null value of one condition, a row for each of ``value``'s."""
    tensor = tensor_of_null(name, null)
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
