"""Charts: the coordinates in which the sampling ODE dx = x̂₀ dᾱ + ε̂ dβ̄ is solved; numbers only, float64.

A chart is a gauge m(σ) and a clock u(σ), in which the ODE reads d(x/m)/du = q(σ) · W.

A *vector* is a named combination V = c₀ x̂₀ + c₁ ε̂, of which a network predicts one and a plan stores one.
Two vectors are related through x = ᾱ x̂₀ + β̄ ε̂: with P = p₀ x̂₀ + p₁ ε̂ and D = ᾱ p₁ − β̄ p₀,

    x̂₀ = (p₁ x − β̄ P)/D,   ε̂ = (ᾱ P − p₀ x)/D,   V = [(c₀p₁ − c₁p₀) x + (c₁ᾱ − c₀β̄) P]/D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._base.checks import one_of
from ..schedules.schedule import Array, Schedule

Pair = tuple[Array, Array]


@dataclass(frozen=True)
class Scale:
    """A strictly monotone coordinate of σ with its inverse and derivative: a clock or a ruler."""

    of: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    rate: Callable[[Array], Array]  # d(scale)/dσ


def _fraction(sigma: Array) -> Array:
    with np.errstate(divide="ignore"):
        return 1 / (1 + 1 / sigma)  # 1 at σ = inf


SCALES: dict[str, Scale] = {
    "sigma": Scale(lambda s: s, lambda u: u, np.ones_like),
    "inv_sigma": Scale(lambda s: 1 / s, lambda u: 1 / u, lambda s: -1 / s**2),
    "fraction": Scale(_fraction, lambda u: u / (1 - u), lambda s: (1 + s) ** -2),
    "log_sigma": Scale(np.log, np.exp, lambda s: 1 / s),
    "log_fraction": Scale(
        lambda s: -np.log1p(1 / s), lambda u: 1 / np.expm1(-u), lambda s: 1 / (s * (1 + s))
    ),
    "atan_sigma": Scale(np.arctan, np.tan, lambda s: 1 / (1 + s * s)),
    "log_alpha": Scale(
        lambda s: 0.5 * np.log1p(s * s),
        lambda u: np.sqrt(np.expm1(2 * u)),
        lambda s: s / (1 + s * s),
    ),
}

# V = c₀ x̂₀ + c₁ ε̂ by name, from (ᾱ, β̄).
VECTORS: dict[str, Callable[[Array, Array], Pair]] = {
    "eps": lambda a, b: (np.zeros_like(a), np.ones_like(a)),
    "x0": lambda a, b: (np.ones_like(a), np.zeros_like(a)),
    "v": lambda a, b: (-b, a),
    "flow": lambda a, b: (-np.ones_like(a), np.ones_like(a)),
    "score": lambda a, b: (np.zeros_like(a), -1 / b),
    "exp": lambda a, b: (-a, a * a / b),
}

PREDICTIONS = ("eps", "x0", "v", "score", "flow")  # of these, what networks are trained to return


@dataclass(frozen=True)
class Chart:
    """A gauge, a clock (a key of SCALES), the vector W it moves along, and the factor q.

    straight: whether Euler is DDIM: a constant W then means constant x̂₀ and ε̂, which are followed
    exactly.
    """

    name: str
    gauge: Callable[[Array, Array], Array]
    clock: str
    vector: str
    factor: Callable[[Array, Array], Array]
    straight: bool = False


def _one(a: Array, b: Array) -> Array:
    return np.ones_like(a)


#   chart   m            u             W             q       Euler is
#   eps     ᾱ            σ             ε̂             1       DDIM
#   data    β̄            1/σ           x̂₀            1       DDIM
#   flow    ᾱ+β̄          σ/(1+σ)       ε̂ − x̂₀        1       DDIM
#   log     ᾱ            ln σ          ε̂             σ       not DDIM
#   trig    √(ᾱ²+β̄²)     atan σ        ᾱε̂ − β̄x̂₀      1/m     not DDIM
#   exp     1            −ln ᾱ         ε̂/β̄ − x       1       not DDIM  (VP schedules)
CHARTS: dict[str, Chart] = {
    c.name: c
    for c in (
        Chart("eps", lambda a, b: a, "sigma", "eps", _one, straight=True),
        Chart("data", lambda a, b: b, "inv_sigma", "x0", _one, straight=True),
        Chart("flow", lambda a, b: a + b, "fraction", "flow", _one, straight=True),
        Chart("log", lambda a, b: a, "log_sigma", "eps", lambda a, b: b / a),
        Chart("trig", np.hypot, "atan_sigma", "v", lambda a, b: 1 / np.hypot(a, b)),
        Chart("exp", _one, "log_alpha", "exp", _one),
    )
}


def get_chart(name: str, schedule: Schedule) -> Chart:
    """The chart of that name; ValueError if it is unknown or not one of this schedule's."""
    chart = CHARTS[one_of("chart", name, CHARTS)]
    if name == "exp" and schedule.family != "vp":
        raise ValueError(
            f"chart 'exp' runs on −ln ᾱ and needs a variance-preserving schedule, "
            f"not {schedule.name!r}; use chart='log', 'trig' or 'flow'"
        )
    return chart


def convert(source: str, target: str, alpha: Array, beta: Array) -> tuple[Array, Array]:
    """(a, b) with target = a·x + b·source at (ᾱ, β̄); (0, 1) where they are the same vector."""
    if source == target:
        return np.zeros_like(alpha), np.ones_like(alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        p0, p1 = VECTORS[source](alpha, beta)
        c0, c1 = VECTORS[target](alpha, beta)
        det = alpha * p1 - beta * p0
        return (c0 * p1 - c1 * p0) / det, (c1 * alpha - c0 * beta) / det


def ddim_step(
    vector: str, here: Pair, there: Pair, noise_std: Array | float = 0.0
) -> tuple[Array, Array]:
    """(scale, weight): x' = scale·x + weight·V = ᾱ' x̂₀ + √(β̄'² − ς²) ε̂, from here to there.

    ``here`` and ``there`` are (ᾱ, β̄); V is the vector of that name, seen here. With ς = 0 this
    is DDIM; adding ς z gives the update with free step noise (Song et al. 2021, eq. 12).
    """
    alpha, beta = here
    alpha_next, beta_next = there
    p0, p1 = VECTORS[vector](alpha, beta)
    kept = np.sqrt(np.maximum((beta_next - noise_std) * (beta_next + noise_std), 0.0))
    det = alpha * p1 - beta * p0
    return (alpha_next * p1 - kept * p0) / det, (kept * alpha - alpha_next * beta) / det
