"""The primitive of the multistep methods: interpolate, then integrate.

A velocity g known at nodes σ_1..σ_k is interpolated by the Lagrange polynomial in a ruler r(σ) and
integrated over the step in the clock u(σ):

    ∫ g du ≈ Σ_j w_j g(σ_j),     w_j = ∫_{r_s}^{r_t} ℓ_j(r) (du/dr) dr.

The integral is Gauss–Legendre in r, in float64. Where clock and ruler agree the integrand is the
polynomial ℓ_j itself and ⌈k/2⌉ points are exact; elsewhere du/dr is smooth over a step (e^r for σ
against ln σ) and 32 points reach rounding error. A ruler that flattens
where the clock is steep (−ln ᾱ under 1/σ near σ = 0) needs short steps for that. Where the ruler is
schedule time, whose σ(t) may have kinks, the interval is split at them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..schedule import Array
from .chart import Scale

_GAUSS = {n: np.polynomial.legendre.leggauss(n) for n in (1, 2, 3, 4, 32)}


def lagrange(nodes: Array, at: Array) -> Array:
    """ℓ_j(at): nodes (N, k), at (N, G) → (N, k, G). A NaN node is absent: its ℓ_j is 0."""
    k = nodes.shape[1]
    gaps = nodes[:, :, None] - nodes[:, None, :] + np.eye(k)
    absent = np.isnan(nodes)
    gaps[np.isnan(gaps)] = 1.0
    lead = np.where(absent, 0.0, 1 / gaps.prod(axis=2))
    basis = np.repeat(lead[:, :, None], at.shape[1], axis=2)
    for i in range(k):
        offset = np.where(absent[:, i, None], 1.0, at - nodes[:, i, None])[:, None]
        basis[:, :i] *= offset
        basis[:, i + 1 :] *= offset
    return basis


def step_weights(
    clock: Scale,
    ruler: Scale,
    nodes: Array,
    known: npt.NDArray[np.bool_],
    start: Array,
    end: Array,
    knots: Array | None = None,
) -> Array:
    """w_j (N, k) of ∫ g du over each step start → end (N,), from g at nodes (N, k), all in σ.

    known (N, k): False for a node that is not there yet; its weight is 0 and the others do without.
    knots: ruler values at which the ruler is not smooth; the quadrature is split there.
    """
    r_nodes = np.where(known, ruler.of(nodes), np.nan)
    r_start, r_end = ruler.of(start), ruler.of(end)
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
    exact = (r_nodes.shape[1] + 1) // 2
    points, weights = _GAUSS[exact if clock is ruler and exact in _GAUSS else 32]
    half = 0.5 * (r_end - r_start)
    r = r_start[:, None] + half[:, None] * (1 + points)
    measure = half[:, None] * weights
    if clock is not ruler:
        sigma = ruler.inverse(r)
        measure = measure * clock.rate(sigma) / ruler.rate(sigma)
    return (lagrange(r_nodes, r) @ measure[:, :, None])[:, :, 0]
