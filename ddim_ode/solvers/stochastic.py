"""Step noise: the free σ_t of a sampler, one more exponent of the same quadrature; numbers only, float64.

With y = x/ᾱ, λ = −ln σ and a stochasticity τ(σ) >= 0 (0: the ODE, 1: the reverse SDE), every solution of

    y_t = (σ_t/σ_s)^p y_s + ∫ x̂₀ du + σ_t √(1 − e^{−2τ²h}) z,    u = (σ_t/σ)^p,  p = 1 + τ²,  h = λ_t − λ_s

has the marginals of the ODE (τ constant on the step s → t). So a step with noise is a step of chart "data"
in another clock u. The parameter is DDIM's η, the standard deviation being ς = η β̄_t √(1 − (σ_t/σ_s)²),
from which the τ of the step follows: 1 − e^{−2τ²h} = η² (1 − e^{−2h}). For a fine grid η = τ.

    | who                                      | their name | ours on a fine grid | exactly       |
    | DDIM (Song et al. 2021)                  | η          | η                   | always        |
    | SA-Solver (Xue et al. 2023)              | τ          | η = τ               | at 0 and at 1 |
    | k-diffusion's 2M and 3M SDE              | eta = τ²   | η = √eta            | at 0 and at 1 |
    | k-diffusion's dpmpp_sde, ancestral ones  | eta        | η = eta             | always        |

:func:`of_tau` gives the ``noise_std=`` of another's τ exactly, on any grid.

What a step needs to know of its own noise: the stages of a one-step method at σ_1 > σ_2 > ... feel the
noise up to there, which is part of the step's. Each stretch between two levels has one draw, shared by all
lines that feel it; predictor and corrector share theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._base.checks import exclusive, function, number, numbers
from ..schedules.schedule import Array, Schedule

Eta = float | Callable[[float], float]
# τ²h of a step whose noise is at its bound, where nothing is left of the state: e^{-40} is no number of
# float64 beside 1, and quadrature in ln σ still resolves the clock.
MOST = 40.0


@dataclass(frozen=True)
class StepClock:
    """The clock u = (σ_t/σ)^p of N steps to σ_t = end (N,), each with its p = 1 + tau2 (N,); a Scale."""

    tau2: Array
    end: Array

    def of(self, sigma: Array) -> Array:
        end, power = self._like(sigma)
        return (end / sigma) ** power

    def rate(self, sigma: Array) -> Array:
        return -self._like(sigma)[1] * self.of(sigma) / sigma

    def inverse(self, u: Array) -> Array:
        end, power = self._like(u)
        return end * u ** (-1 / power)

    def rows(self, i: int, count: int) -> StepClock:
        """That of step i, so many times."""
        return StepClock(np.full(count, self.tau2[i]), np.full(count, self.end[i]))

    def _like(self, values: Array) -> tuple[Array, Array]:
        shape = (-1,) + (1,) * (values.ndim - 1)
        return self.end.reshape(shape), 1 + self.tau2.reshape(shape)


def decay(noise: Array, beta: Array) -> Array:
    """τ²h of steps that add noise of that standard deviation and arrive at β̄; infinite at the bound."""
    share = np.divide(noise, beta, out=np.zeros_like(noise), where=beta > 0)
    with np.errstate(divide="ignore"):
        return -0.5 * np.log1p(-(np.minimum(share, 1.0) ** 2))


def stretches(tau2: Array, levels: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Weights (N, m+1, m) of the draws of m stretches in x/β̄ at levels (N, m+1), the first that of the
    start; and whether the levels fall, so that a stretch has a length at all (N, m)."""
    at = -np.log(levels)
    lengths = np.diff(at, axis=1)
    own = np.sqrt(-np.expm1(-2 * tau2[:, None] * np.maximum(lengths, 0.0)))
    later = at[:, :, None] - at[:, None, 1:]
    carried = np.exp(-tau2[:, None, None] * np.maximum(later, 0.0))
    felt = np.tri(levels.shape[1], levels.shape[1] - 1, -1, dtype=bool)
    return np.where(felt, carried * own[:, None, :], 0.0), lengths > 0


def noise_bound(schedule: Schedule, sigmas: Array) -> Array:
    """The largest step noise of each step: β̄ of the level it arrives at."""
    return schedule.scales(sigmas[1:])[1]


def eta_noise(schedule: Schedule, sigmas: Array, eta: Array | float) -> Array:
    """ς of each step for η: η β̄' √(1 − (σ'/σ)²), for VP schedules the usual
    η (β̄_{t−1}/β̄_t) √(1 − ᾱ_t²/ᾱ_{t−1}²). η = 1 is DDPM with the posterior variance."""
    ratio = sigmas[1:] / sigmas[:-1]  # 0 from σ = inf
    return eta * noise_bound(schedule, sigmas) * np.sqrt((1 - ratio) * (1 + ratio))


def of_tau(schedule: Schedule, sigmas: npt.ArrayLike, tau: npt.ArrayLike) -> Array:
    """ς (steps,) of each step of a grid σ (steps+1,) for a stochasticity τ, one number or one a step.

    ``noise_std=of_tau(schedule, grid, tau)`` is SA-Solver with that τ, and k-diffusion's 2M and 3M SDE
    with eta = τ², exactly.

    >>> import ddim_ode
    >>> from ddim_ode.solvers.stochastic import of_tau
    >>> of_tau(ddim_ode.schedules.ve(9.0), [9.0, 3.0, 0.0], 1.0).round(4).tolist()
    [2.8284, 0.0]
    """
    levels = np.asarray(sigmas, dtype=np.float64)
    with np.errstate(divide="ignore"):
        h = np.log(levels[:-1] / levels[1:])
    decay = np.asarray(tau, dtype=np.float64) ** 2 * h
    return noise_bound(schedule, levels) * np.sqrt(
        -np.expm1(-2 * np.nan_to_num(decay, posinf=np.inf))
    )


def check_eta(eta: object) -> Eta:
    """A number or a function of σ; ValueError otherwise."""
    return function("eta", eta) if callable(eta) else number("eta", eta)


def step_noise(
    name: str,
    own: Eta | None,
    free: bool,
    schedule: Schedule,
    sigmas: Array,
    eta: Eta | None,
    noise_std: npt.ArrayLike | None,
) -> Array | None:
    """ς of each step, None for a solve of the ODE.

    Args:
        name, own: Of the method, and the η that it has by itself; a function is its τ(σ).
        free: Whether a caller may choose another.
        schedule, sigmas: Of the plan.
        eta, noise_std: As in :func:`ddim_ode.sample`.
    """
    exclusive(eta=eta, noise_std=noise_std)
    if eta is None and noise_std is None:
        if callable(own):
            return of_tau(schedule, sigmas, _eta_values(own, sigmas))
        eta = own or 0.0
    elif not free:
        chosen = "eta" if eta is not None else "noise_std"
        raise ValueError(
            f"method {name!r} takes no {chosen}: free step noise belongs to ddim and to methods in chart "
            "'data' (dpmpp2s, dpmpp2m, dpmpp3m, unipc2, unipc3, or chart='data')"
        )
    if eta is not None:
        values = _eta_values(eta, sigmas)
        if not values.any():
            return None
        noise = eta_noise(schedule, sigmas, values)
    else:
        noise = numbers("noise_std", noise_std)
        if noise.shape != (sigmas.size - 1,):
            raise ValueError(
                f"noise_std has shape {noise.shape}; give one standard deviation per step, "
                f"({sigmas.size - 1},)"
            )
    bound = noise_bound(schedule, sigmas)
    bad = np.flatnonzero(~((noise >= 0) & (noise <= bound * (1 + 1e-12))))
    if bad.size:
        i = int(bad[0])
        source = "eta makes " if callable(eta) else f"eta={eta!r} makes " if eta is not None else ""
        raise ValueError(
            f"{source}noise_std[{i}]={noise[i]:g} at σ'={sigmas[i + 1]:g}; allowed is [0, {bound[i]:g}], "
            "β̄ of the level the step arrives at"
        )
    return np.minimum(noise, bound)


def _eta_values(eta: Eta, sigmas: Array) -> Array:
    """η of each step; a function of σ is asked for the middle of the step in ln σ."""
    if not callable(eta):
        if not (np.isfinite(eta) and eta >= 0):
            raise ValueError(f"eta={eta!r} must be finite and >= 0 (0 is DDIM, 1 is DDPM)")
        return np.full(sigmas.size - 1, float(eta))
    middle = np.sqrt(sigmas[:-1]) * np.sqrt(sigmas[1:])
    middle = np.where(np.isinf(middle), sigmas[1:], middle)
    middle[middle == 0] = sigmas[:-1][middle == 0]  # the landing on 0, which adds no noise
    values = np.array([number("eta(σ)", eta(sigma)) for sigma in middle.tolist()])
    if (bad := np.flatnonzero(~(np.isfinite(values) & (values >= 0)))).size:
        i = bad[0]
        raise ValueError(
            f"eta({middle[i]:g})={values[i]:g} must be finite and >= 0, at any level σ"
        )
    return values


def er_tau(sigma: float) -> float:
    """τ(σ) of ER-SDE-Solver's fifth noise scale φ(σ) = σ (e^{σ^0.3} + 10): τ² = σφ'/φ − 1."""
    root = min(sigma, 1e6) ** 0.3
    grown = np.exp(min(root, 700.0))
    return float(np.sqrt(0.3 * root * grown / (grown + 10)))
