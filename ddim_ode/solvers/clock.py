"""The clock of adaptive solves.

The state z = x/√(ᾱ²+β̄²) turns with the angle θ = atan σ ∈ (0, π/2]:

    z = cos θ x̂₀ + sin θ ε̂,        dz/dθ = cos θ ε̂ − sin θ x̂₀ = v̂/√(ᾱ²+β̄²),

so a DDIM step is a rotation, z(θ') = cos(θ'−θ) z + sin(θ'−θ) dz/dθ, and x̂₀ = cos θ z − sin θ dz/dθ. The
solver steps in

    u = asinh(σ̃/a),    σ̃ = σ/(1 + bσ),    a = b = 0.3,

which is linear in σ below a, ln σ between, and linear in 1/σ above 1/b: finite and smooth at σ = inf
(zero terminal SNR, flow schedules), where ln σ and asinh(σ/c) are not.

How it was chosen: calls per sample that rk45 needs for an end error (RMS) of 1e-2 / 1e-3 / 1e-5 on a
64-D mixture of 20 Gaussians fitted to digits (DDPM schedule, σ from 157 to 0.01), the tolerance being
the best for that error, steps free:

    ln σ                      40 / 60 / 120       asinh(σ/1)                 48 / 53 / 118
    atan σ                    25 / 43 /  84       asinh(σ/0.1)               35 / 54 / 104
    asinh(atan σ/0.3)         25 / 34 /  82       u with b=1, a=0.4          25 / 35 /  79
    u with b=0.3, a=0.3       27 / 39 /  83       u with b=0.03, a=0.3       32 / 49 /  94

So that mixture asks for few steps at large σ. A trained network asks for the opposite: the shipped one
(as ε(t), at fixed x) jumps by 5e-4 RMS from one t to the next; a step in u multiplies that by
dlnσ/du, which at its σ_max = 148 is 148 for atan σ, 45 for b = 0.3, 5 for b = 0.03, and the flow
then amplifies the mean brightness 10 times. With about 45 calls its end error is 0.08 for asinh(atan
σ/0.3), 0.02 for b ≤ 0.3 if the first step is short (controller.py). b = 0.3 is the compromise.
Below 1e-2 that network converges like noise, in any clock: no order of a method shows.
"""

from __future__ import annotations

import numpy as np

from ..schedule import Array

LOW, HIGH = 0.3, 0.3


def clock(sigma: Array) -> Array:
    """u at noise level σ ∈ (0, inf]."""
    with np.errstate(divide="ignore"):
        return np.arcsinh(1 / (LOW * (1 / sigma + HIGH)))


def level(u: Array) -> Array:
    """σ at clock u; inf at and past the clock of σ = inf."""
    bounded = LOW * np.sinh(u)
    with np.errstate(divide="ignore"):
        return bounded / np.maximum(1 - HIGH * bounded, 0.0)


def angle(u: Array) -> Array:
    """θ = atan σ at clock u."""
    return np.arctan(level(u))


def angle_rate(u: Array) -> Array:
    """dθ/du."""
    bounded = LOW * np.sinh(u)
    # dσ/du = LOW cosh u / (1 − HIGH·bounded)², and dθ/dσ = 1/(1 + σ²): finite at σ = inf
    return LOW * np.cosh(u) / ((1 - HIGH * bounded) ** 2 + bounded**2)
