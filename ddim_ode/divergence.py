"""The divergence ∇·f of a network, exact or estimated.

    exact        Σ_i e_iᵀ J e_i                    over the D unit vectors
    hutchinson   vᵀ J v for each probe v,          E v vᵀ = I

(Hutchinson 1989; Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367). Both need products of the
Jacobian J with many vectors at one x. They are taken ``chunk`` at a time by ``torch.func.vmap``:

    forward   J v by jvp: memory of chunk × (one forward pass without a graph)
    reverse   vᵀ J by vjp: one forward pass with its graph, and chunk × (one backward pass)

Reverse works for whatever can be trained, and costs less where the network is small; forward needs less
memory, and a forward derivative of every operation, which some fused ones do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .seeding import PROBES, generator

Function = Callable[[Tensor], Tensor]
MODES = ("reverse", "forward")
KINDS = ("rademacher", "gaussian")


def draw_probes(seeds: Sequence[int], probes: int, like: Tensor, kind: str) -> Tensor:
    """(probes, B, *): a stream of its own for every sample's seed, drawn on the CPU."""
    shape = (probes, *like.shape[1:])
    out = torch.empty((len(seeds), *shape), dtype=like.dtype)
    for row, seed in zip(out, seeds):
        source = generator(seed, PROBES)
        if kind == "rademacher":
            drawn = 2.0 * source.integers(0, 2, shape) - 1
        else:
            drawn = source.standard_normal(shape)
        row.copy_(torch.as_tensor(drawn))
    return out.transpose(0, 1).to(like.device)


def unit_vectors(like: Tensor) -> Tensor:
    """(D, B, *): the same D unit vectors for every sample."""
    d = like[:1].numel()
    basis = torch.eye(d, dtype=like.dtype, device=like.device)
    return basis.reshape(d, 1, *like.shape[1:]).expand(d, *like.shape)


class Products:
    """f(x) and vᵀ J v (k, B) for the vectors v (k, B, *), in a mode of MODES."""

    def __init__(self, chunk: int, mode: str) -> None:
        self.chunk, self.mode = chunk, mode

    def __call__(self, f: Function, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        if self.mode == "reverse":
            return self._reverse(f, x, vectors)
        try:
            return self._forward(f, x, vectors)
        except (NotImplementedError, RuntimeError) as error:
            raise ValueError(
                f"mode='forward': the network has no forward derivative ({error}); use mode='reverse'"
            ) from error

    def _forward(self, f: Function, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        def product(v: Tensor) -> tuple[Tensor, Tensor]:
            value, derivative = torch.func.jvp(f, (x,), (v,))[:2]
            return value, _dot(v, derivative)

        vmapped: Any = torch.func.vmap(product, out_dims=(None, 0))  # type: ignore[arg-type]
        values, products = zip(*(vmapped(part) for part in vectors.split(self.chunk)))
        return values[0], torch.cat(products)

    def _reverse(self, f: Function, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = torch.func.vjp(f, x)[:2]
        vmapped = torch.func.vmap(lambda v: _dot(v, pull(v)[0]))
        return value, torch.cat([vmapped(part) for part in vectors.split(self.chunk)])


def _dot(v: Tensor, w: Tensor) -> Tensor:
    """(B,) inner products of samples."""
    return (v * w).flatten(1).sum(dim=1) if v.ndim > 1 else v * w
