"""The primitive of the multistep methods: interpolate, then integrate.

A velocity g known at nodes σ_1..σ_k is interpolated by the Lagrange polynomial in a ruler r(σ) and
integrated over the step in the clock u(σ): ∫ g du ≈ Σ_j w_j g(σ_j) with w_j = ∫ ℓ_j(r) (du/dr) dr, by
Gauss–Legendre in r, in float64. Where clock and ruler agree the integrand is the polynomial ℓ_j itself and
⌈k/2⌉ points are exact; elsewhere du/dr is smooth over a step (e^r for σ against ln σ) and 32 points reach
rounding error. A ruler that flattens where the clock is steep (−ln ᾱ under 1/σ near σ = 0) needs short
steps for that. Where the ruler is schedule time, whose σ(t) may have kinks, the interval is split at them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..schedules.schedule import Array
from .chart import SCALES, Scale
from .stochastic import StepClock

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


# Published solvers integrate the interpolant p otherwise, Δu and Δr being the step in clock and ruler:
#   adams      constants: p as if the nodes were evenly spaced in the clock
#   midpoint   two nodes:    Δu p(r_mid)                       DPM-Solver++(2M), UniPC's bh2
#   bh1        two nodes:    Δu p(r_s) + Δr u'(r_t) (p(r_mid) − p(r_s))        UniPC's bh1
#   half       three nodes:  ∫ [p − ¼ p'' (r − r_s)²] du       the curvature halved
RULES = ("adams", "midpoint", "bh1", "half")


def step_weights(
    clock: Scale | StepClock,
    ruler: Scale,
    nodes: Array,
    known: npt.NDArray[np.bool_],
    start: Array,
    end: Array,
    knots: Array | None = None,
    rules: tuple[str, ...] = (),
    along: Scale | None = None,
) -> Array:
    """w_j (N, k) of ∫ g du over each step start → end (N,), from g at nodes (N, k), all in σ.

    Args:
        clock, ruler: What is integrated over, and what is interpolated in.
        nodes: σ (N, k).
        known: (N, k), False for a node that is not there yet; its weight is 0 and the others do without.
        start, end: σ (N,).
        knots: Ruler values at which the ruler is not smooth; the quadrature is split there.
        rules: Of RULES, each for the steps that read as many nodes as it is meant for; the rest is exact.
        along: The variable of integration (default: the ruler); another helps where the ruler is flat and
            the clock steep.
    """
    if "adams" in rules:
        return _adams(known, clock.of(end) - clock.of(start))
    r_nodes = np.where(known, ruler.of(nodes), np.nan)
    twice = r_nodes[:, :-1] == r_nodes[:, 1:]  # levels that differ by less than the ruler resolves
    r_nodes[:, :-1][twice] = np.nan
    if along is not None:
        return _integrate_along(along, clock, ruler, r_nodes, start, end)
    r_start, r_end = ruler.of(start), ruler.of(end)

    def integrate(bend: float = 1.0) -> Array:
        if knots is None or knots.size == 0:
            return _integrate(clock, ruler, r_nodes, r_start, r_end, r_start, bend)
        return _integrate_piecewise(clock, ruler, r_nodes, r_start, r_end, knots, bend)

    weights = integrate()
    if not rules:
        return weights

    count = known.sum(axis=1)[:, None]
    middle = lagrange(r_nodes, 0.5 * (r_start + r_end)[:, None])[:, :, 0]
    du = (clock.of(end) - clock.of(start))[:, None]
    if "midpoint" in rules:
        weights = np.where(count == 2, du * middle, weights)
    if "bh1" in rules:
        at_start = lagrange(r_nodes, r_start[:, None])[:, :, 0]
        slope = ((r_end - r_start) * clock.rate(end) / ruler.rate(end))[:, None]
        weights = np.where(count == 2, du * at_start + slope * (middle - at_start), weights)
    if "half" in rules:
        weights = np.where(count == 3, integrate(bend=0.5), weights)
    return weights


def _adams(known: npt.NDArray[np.bool_], du: Array) -> Array:
    """Adams–Bashforth's constants times du (N,), in as many of the nodes as are known."""
    past = np.where(known, -np.arange(known.shape[1], dtype=np.float64), np.nan)
    zero = np.zeros(len(du))
    unit = SCALES["sigma"]
    return du[:, None] * _integrate(unit, unit, past, zero, zero + 1, zero)


def _integrate_along(
    along: Scale, clock: Scale | StepClock, ruler: Scale, r_nodes: Array, start: Array, end: Array
) -> Array:
    points, weights = _GAUSS[32]
    v = along.of(start)[:, None]
    half = 0.5 * (along.of(end)[:, None] - v)
    sigma = along.inverse(v + half * (1 + points))
    measure = half * weights * clock.rate(sigma) / along.rate(sigma)
    return (lagrange(r_nodes, ruler.of(sigma)) @ measure[:, :, None])[:, :, 0]


def _integrate_piecewise(
    clock: Scale | StepClock,
    ruler: Scale,
    r_nodes: Array,
    r_start: Array,
    r_end: Array,
    knots: Array,
    bend: float,
) -> Array:
    total = np.empty_like(r_nodes)
    for i in range(len(r_start)):
        low, high = sorted((r_start[i], r_end[i]))
        inside = knots[(knots > low) & (knots < high)]
        cuts = np.concatenate(
            [[r_start[i]], inside[:: 1 if r_start[i] < r_end[i] else -1], [r_end[i]]]
        )
        pieces = np.broadcast_to(r_nodes[i], (len(cuts) - 1, r_nodes.shape[1]))
        origin = np.full(len(cuts) - 1, r_start[i])
        own = clock.rows(i, len(cuts) - 1) if isinstance(clock, StepClock) else clock
        total[i] = _integrate(own, ruler, pieces, cuts[:-1], cuts[1:], origin, bend).sum(axis=0)
    return total


def _integrate(
    clock: Scale | StepClock,
    ruler: Scale,
    r_nodes: Array,
    r_start: Array,
    r_end: Array,
    origin: Array,
    bend: float = 1.0,
) -> Array:
    """∫ p du from r_start to r_end (N,), p's curvature about ``origin`` taken ``bend`` times."""
    exact = (r_nodes.shape[1] + 1) // 2
    points, weights = _GAUSS[exact if clock is ruler and exact in _GAUSS else 32]
    half = 0.5 * (r_end - r_start)
    r = r_start[:, None] + half[:, None] * (1 + points)
    measure = half[:, None] * weights
    if clock is not ruler:
        sigma = ruler.inverse(r)
        measure = measure * clock.rate(sigma) / ruler.rate(sigma)
    basis = lagrange(r_nodes, r)
    if bend != 1.0:  # ½p''(r − r_s)² is the mean of p at r and its mirror image, less p(r_s)
        mirrored = lagrange(r_nodes, 2 * origin[:, None] - r)
        curved = 0.5 * (basis + mirrored) - lagrange(r_nodes, origin[:, None])
        basis = basis - (1 - bend) * curved
    return (basis @ measure[:, :, None])[:, :, 0]
