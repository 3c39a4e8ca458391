"""The primitive of the multistep methods: interpolate, then integrate.

A velocity g known at nodes σ_1..σ_k is interpolated by the Lagrange polynomial in a ruler r(σ) and
integrated over the step in the clock u(σ):

    ∫ g du ≈ Σ_j w_j g(σ_j),     w_j = ∫_{r_s}^{r_t} ℓ_j(r) (du/dr) dr.

The integral is Gauss–Legendre in r, in float64. Every pair of clock and ruler here has du/dr entire
or nearly so (e^r, sech² …), so 32 points reach rounding error for a step of any practical length;
where the ruler is schedule time, whose σ(t) may have kinks, the interval is split at them.
"""

from __future__ import annotations

import numpy as np

from ..schedules import Array
from .chart import Scale

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def lagrange(nodes: Array, at: Array) -> Array:
    """ℓ_j(at): nodes (N, k), at (N, G) → (N, k, G)."""
    k = nodes.shape[1]
    basis = np.ones((nodes.shape[0], k, at.shape[1]))
    for j in range(k):
        for i in range(k):
            if i != j:
                gap = (nodes[:, j] - nodes[:, i])[:, None]
                basis[:, j] *= (at - nodes[:, i, None]) / gap
    return basis


def step_weights(
    clock: Scale, ruler: Scale, nodes: Array, start: Array, end: Array, knots: Array | None = None
) -> Array:
    """w_j (N, k) of ∫ g du over each step start → end (N,), from g at nodes (N, k), all in σ.

    knots: ruler values at which the ruler is not smooth; the quadrature is split there.
    """
    r_nodes, r_start, r_end = ruler.of(nodes), ruler.of(start), ruler.of(end)
    if knots is None or knots.size == 0:
        return _integrate(clock, ruler, r_nodes, r_start, r_end)
    total = np.empty_like(nodes)
    for i in range(len(start)):
        low, high = sorted((r_start[i], r_end[i]))
        inside = knots[(knots > low) & (knots < high)]
        cuts = np.concatenate(
            [[r_start[i]], inside[:: 1 if r_start[i] < r_end[i] else -1], [r_end[i]]]
        )
        pieces = np.broadcast_to(r_nodes[i], (len(cuts) - 1, nodes.shape[1]))
        total[i] = _integrate(clock, ruler, pieces, cuts[:-1], cuts[1:]).sum(axis=0)
    return total


def _integrate(clock: Scale, ruler: Scale, r_nodes: Array, r_start: Array, r_end: Array) -> Array:
    half = 0.5 * (r_end - r_start)
    r = r_start[:, None] + half[:, None] * (1 + _POINTS)
    sigma = ruler.inverse(r)
    rate = clock.rate(sigma) / ruler.rate(sigma)
    return np.einsum("nkg,ng,g,n->nk", lagrange(r_nodes, r), rate, _WEIGHTS, half)
