"""The divergence ∇·f of a network, exact, Σ_i e_iᵀ J e_i, or estimated by vᵀ J v with probes v, E v vᵀ = I.

(Hutchinson 1989; Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367.) Products of the Jacobian J with
many vectors at one x are taken ``chunk`` at a time by ``torch.func.vmap`` of a vjp: one forward pass with
its graph, and chunk backward passes. What torch.func cannot transform (autograd or numpy inside, autograd
functions of the old kind) is differentiated by plain autograd, one product at a time. Of a network that
cuts its own graph (``detach``, ``no_grad``, ``autograd.grad`` without ``create_graph``) torch gives,
without a word, the derivative of another function: where a cut is seen, or the derivative is 0, it is
compared with the network's differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..denoising.seeding import PROBES, generator

Function = Callable[[Tensor], Tensor]
_SURE = 0.02  # by which two differences that tell something may differ
_OFF = 0.1  # by which the derivative may differ from them


def draw_probes(seeds: Sequence[int], probes: int, like: Tensor) -> Tensor:
    """(probes, B, *) random signs: a stream of its own for every sample's seed, drawn on the CPU."""
    shape = (probes, *like.shape[1:])
    out = torch.empty((len(seeds), *shape), dtype=like.dtype)
    for row, seed in zip(out, seeds):
        row.copy_(torch.as_tensor(2.0 * generator(seed, PROBES).integers(0, 2, shape) - 1))
    return out.transpose(0, 1).to(like.device)


def unit_vectors(like: Tensor) -> Tensor:
    """(D, B, *): the same D unit vectors for every sample."""
    d = like[:1].numel()
    basis = torch.eye(d, dtype=like.dtype, device=like.device)
    return basis.reshape(d, 1, *like.shape[1:]).expand(d, *like.shape)


class Products:
    """f(x) and vᵀ J v (k, B) for the vectors v (k, B, *).

    The derivative is compared with differences of f where a cut is seen, at the calls 1, 2, 4, 8 ..., since
    a network may cut at some levels only. ``extra`` counts the calls of f beyond one a product.

    Args:
        chunk: Vectors taken at a time.
        dtype: The network's, whose rounding limits what its differences can tell.

    Raises:
        ValueError: In a call: the derivative is not that of f, or there is none.
    """

    def __init__(self, chunk: int, dtype: torch.dtype) -> None:
        self.chunk, self.dtype = chunk, dtype
        self.extra = self._calls = 0
        self._product = self._reverse

    def __call__(self, f: Function, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        self._calls += 1
        if self._calls & (self._calls - 1):  # no power of two
            return self._product(f, x, vectors)
        cuts = _Cuts()

        def watched(y: Tensor) -> Tensor:
            with cuts:
                return f(y)

        value, products = self._product(watched, x, vectors)
        if cuts.seen or not products.any():
            self._verify(f, x)
        return value, products

    def _verify(self, f: Function, x: Tensor) -> None:
        """ValueError where vᵀJv is not that of differences of f, for a v of random signs."""
        signs = draw_probes(range(len(x)), 1, x)
        h = torch.finfo(self.dtype).eps ** 0.5 * (1 + float(x.square().mean().sqrt()))

        def slope(h: float) -> float:
            rise = f(x + h * signs[0]) - f(x - h * signs[0])
            return float(_dot(signs[0], rise).sum()) / (2 * h)

        rough, fine = slope(2 * h), slope(h)
        derivative = float(self._product(f, x, signs)[1].sum())
        self.extra += 5
        if abs(rough - fine) <= _SURE * abs(fine) and abs(derivative - fine) > _OFF * abs(fine):
            raise ValueError(
                f"the network's derivative is cut: autograd finds vᵀJv = {derivative:.3g} where the "
                f"network's answers differ by {fine:.3g}, so a likelihood would be wrong; keep the graph "
                "from x to the answer (no x.detach(), .data, numpy or torch.no_grad() in between, and "
                "torch.autograd.grad(..., create_graph=True))"
            )

    def _reverse(self, f: Function, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self._reverse_products(f, x, vectors)
        except RuntimeError:  # of torch.func, or the network's own, which comes again
            self._product = self._plain
            self.extra += 1
        return self._plain(f, x, vectors)

    def _reverse_products(self, f: Function, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = torch.func.vjp(f, x)[:2]
        vmapped = torch.func.vmap(lambda v: _dot(v, pull(v)[0]))
        return value, torch.cat([vmapped(part) for part in vectors.split(self.chunk)])

    def _plain(self, f: Function, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "the network needs plain autograd for its derivative, and torch.inference_mode() has none; "
                "call log_likelihood outside it, or under torch.no_grad()"
            )
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            value = f(leaf * 1)  # torch has errors of its own for a leaf that is changed in place
        if not value.requires_grad:
            return value, value.new_zeros(vectors.shape[:2])
        products = []
        for v in vectors:
            try:
                (pulled,) = torch.autograd.grad(value, leaf, v, True, allow_unused=True)
            except RuntimeError as error:
                raise ValueError(
                    f"the network has no derivative ({error}); use operations that autograd can "
                    "differentiate"
                ) from error
            products.append(_dot(v, torch.zeros_like(v) if pulled is None else pulled))
        return value.detach(), torch.stack(products)


class _Cuts(TorchFunctionMode):
    """Notices what may cut the graph from a network's input to its answer."""

    seen = False

    def __enter__(self) -> _Cuts:
        self._enabled = torch.is_grad_enabled()
        super().__enter__()
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen |= func in _CUTTING or torch.is_grad_enabled() != self._enabled
        return func(*args, **(kwargs or {}))


_CUTTING = (Tensor.detach, Tensor.detach_, Tensor.data.__get__, torch.autograd.grad)  # type: ignore[attr-defined]


def _dot(v: Tensor, w: Tensor) -> Tensor:
    """(B,) inner products of samples."""
    return (v * w).flatten(1).sum(dim=1) if v.ndim > 1 else v * w
