"""Noise schedules: x_t = ᾱ(t) x₀ + β̄(t) ε, in float64 numpy, without torch.

``alpha_bar`` ᾱ is the coefficient of x₀, *not* its square (ᾱ² is what other libraries call
``alphas_cumprod``). ``sigma`` is σ = β̄/ᾱ. Schedule time t runs over [0, T], ᾱ(0) = 1, σ(0) = 0,
and σ rises with t. The families and what follows from them: schedule.py.

The exponential form ᾱ(s) = e^{−5s}, s = (t/T)², is the continuous face of the discrete steps
α_t = √(1 − 0.02 t/T), T = 1000: their ln ᾱ_t = ½ Σ ln(1 − 0.02 i/T) ≈ −0.005 t(t+1)/T ≈ −5 t²/T².
How far apart the two are is measured in :func:`exponential`.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np

from .._base.checks import count, named, number, numbers, one_of, shown
from .schedule import Array, ArrayLike, LogAlphaSchedule, Schedule


def build(name: str, params: dict[str, Any]) -> Schedule:
    """The schedule of that name and parameters, as pickles and weights files store them."""
    makers = (ddpm, exponential, cosine, from_alphas_cumprod, vp, ve, flow)
    by_name = {maker.__name__: maker for maker in makers}
    maker = by_name[one_of("schedule", name, by_name)]
    for parameter in named("params", params):
        one_of(f"parameter of {name!r}", parameter, inspect.signature(maker).parameters)
    try:
        return maker(**params)
    except TypeError as error:  # one is missing
        raise ValueError(f"schedule {name!r}: {error}") from None


Schedule.build = staticmethod(build)


def _from_log_alphas(name: str, params: dict[str, Any], logs: Array) -> Schedule:
    """ln ᾱ at t = 1..T, interpolated linearly in t; a last ᾱ of zero is reached linearly in ᾱ."""
    knots = np.concatenate([[0.0], logs])
    t_knots = np.arange(knots.size, dtype=np.float64)
    T = t_knots[-1]
    last = T if np.isfinite(knots[-1]) else T - 1  # the last time with finite ln ᾱ
    finite, t_finite = knots[: int(last) + 1], t_knots[: int(last) + 1]

    def log_alpha(t: Array) -> Array:
        inside = np.interp(t, t_finite, finite)
        if last == T:
            return inside
        with np.errstate(divide="ignore"):
            return np.where(t <= last, inside, np.log(np.maximum(T - t, 0.0)) + finite[-1])

    def inverse(log_alpha: Array) -> Array:
        inside = np.interp(-log_alpha, -finite, t_finite)
        if last == T:
            return inside
        return np.where(log_alpha >= finite[-1], inside, T - np.exp(log_alpha - finite[-1]))

    slopes = np.diff(finite)

    def alpha_rate(t: Array, alpha: Array) -> Array:
        segment = np.clip(np.ceil(t).astype(int) - 1, 0, slopes.size - 1)
        return np.where(t <= last, alpha * slopes[segment], -np.exp(finite[-1]))

    schedule = LogAlphaSchedule(name, T, params, log_alpha, inverse, alpha_rate, discrete=True)
    schedule.knots = t_knots[1:-1]
    return schedule


def ddpm(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """The linear-β discrete schedule of DDPM (Ho et al. 2020): ᾱ_t² = Π_{i≤t} (1 − β_i).

    Between integer times ln ᾱ is interpolated linearly. ``ddpm(beta_start=2e-5)`` is α_t = √(1 − 0.02 t/T).

    Args:
        T: The number of levels.
        beta_start, beta_end: β at t = 1 and t = T, in (0, 1); it rises linearly between them.

    >>> from ddim_ode import schedules
    >>> schedules.ddpm().alpha_bar([1, 1000]).round(5).tolist()
    [0.99995, 0.00635]
    """
    T = _check_T(T)
    beta_start, beta_end = number("beta_start", beta_start), number("beta_end", beta_end)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"beta_start={beta_start!r}, beta_end={beta_end!r}: need 0 < beta_start <= beta_end < 1"
        )
    betas = np.linspace(beta_start, beta_end, T)
    params = dict(T=T, beta_start=beta_start, beta_end=beta_end)
    return _from_log_alphas("ddpm", params, 0.5 * np.cumsum(np.log1p(-betas)))


def exponential(rate: float = 5.0, T: float = 1000) -> Schedule:
    """ᾱ(s) = e^{−rate·s} with s = (t/T)², so the network's time is t = T√s.

    With rate 5, T = 1000 it approximates the discrete ᾱ_t of ``ddpm``; over t = 1..T the largest
    |ᾱ_exponential − ᾱ_ddpm| is 0.0019 for ``beta_start=2e-5`` (α_t = √(1 − 0.02 t/T), whose limit
    it is) and 0.0080 for the usual ``beta_start=1e-4``.

    >>> from ddim_ode import schedules
    >>> schedules.exponential().alpha_bar([500.0, 1000.0]).round(5).tolist()
    [0.2865, 0.00674]
    """
    rate, T = _positive("rate", rate), _positive("T", T)
    return LogAlphaSchedule(
        "exponential",
        T,
        dict(rate=rate, T=T),
        lambda t: -rate * (t / T) ** 2,
        lambda log_alpha: T * np.sqrt(-log_alpha / rate),
        lambda t, alpha: -2 * rate / T**2 * t * alpha,
    )


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """ᾱ(t) = cos(½π (t/T + s)/(1+s)) / cos(½π s/(1+s)) (Nichol & Dhariwal 2021), β_t ≤ max_beta.

    At integer t this is exactly the discrete schedule of the paper. Between them it follows the
    cosine, so it is smooth, except where a step is clipped (with the defaults only the last
    one, T−1 to T, which ends at ᾱ_T = 4.9e-5): there ln ᾱ is linear in t.

    >>> from ddim_ode import schedules
    >>> float(schedules.cosine().alpha_bar(500).round(5))
    0.70274
    """
    T = _check_T(T)
    s, max_beta = _positive("s", s), number("max_beta", max_beta)
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta={shown(max_beta)}: need 0 < max_beta < 1")

    def angle(t: Array) -> Array:
        return 0.5 * np.pi * (t / T + s) / (1 + s)

    start = float(angle(np.array(0.0)))

    def smooth(t: Array) -> Array:
        # cos a / cos a₀ = 1 − d with d small near t=0: ln through log1p keeps σ accurate there
        half_difference = 0.25 * np.pi * (t / T) / (1 + s)
        d = 2 * np.sin(half_difference) * np.sin(start + half_difference) / np.cos(start)
        with np.errstate(divide="ignore"):
            return np.log1p(-np.minimum(d, 1.0))

    t_all = np.arange(T + 1.0)
    steps = np.diff(smooth(t_all))  # ½ ln(1 − β_t); a last cosine of 0 (or rounding) clips too
    floor = 0.5 * np.log1p(-max_beta)
    steps = np.where(steps > floor, steps, floor)
    clipped = np.flatnonzero(steps <= floor)
    # β_t rises with t, so the clipped steps are the last ones.
    first = int(clipped[0]) if clipped.size else T  # smooth on [0, first]
    tail_t = np.arange(first, T + 1.0)
    tail = smooth(np.array(float(first))) + np.concatenate([[0.0], np.cumsum(steps[first:])])

    def log_alpha(t: Array) -> Array:
        return np.where(t <= first, smooth(np.minimum(t, first)), np.interp(t, tail_t, tail))

    def inverse(log_alpha: Array) -> Array:
        # 1 − cos(a₀+δ)/cos a₀ = d is a quadratic in w = tan δ/2; its stable root:
        d = -np.expm1(log_alpha)
        w = d / (np.tan(start) + np.sqrt(np.tan(start) ** 2 + d * (2 - d)))
        t = 4 * T * (1 + s) / np.pi * np.arctan(w)
        return np.where(log_alpha >= tail[0], t, np.interp(-log_alpha, -tail, tail_t))

    def alpha_rate(t: Array, alpha: Array) -> Array:
        speed = 0.5 * np.pi / (T * (1 + s))
        segment = np.clip(np.ceil(t).astype(int) - 1 - first, 0, max(tail.size - 2, 0))
        slopes = np.diff(tail) if tail.size > 1 else np.zeros(1)
        return np.where(
            t <= first, -speed * np.sin(angle(t)) / np.cos(start), alpha * slopes[segment]
        )

    params = dict(T=T, s=s, max_beta=max_beta)
    schedule = LogAlphaSchedule("cosine", T, params, log_alpha, inverse, alpha_rate, discrete=True)
    schedule.knots = tail_t[:-1]
    return schedule


def from_alphas_cumprod(array: ArrayLike) -> Schedule:
    """A discrete schedule from ᾱ² at t = 1..T, as diffusers stores ``alphas_cumprod``.

    Between integer times ln ᾱ is linear in t.

    Args:
        array: (T,), falling strictly within (0, 1); the last entry may be 0 (zero terminal SNR, for v-, x0-
            and flow-networks).

    >>> from ddim_ode import schedules
    >>> schedules.from_alphas_cumprod([0.81, 0.64, 0.25]).alpha_bar([1, 3]).round(3).tolist()
    [0.9, 0.5]
    """
    squares = numbers("alphas_cumprod", array)
    if squares.ndim != 1 or squares.size < 2:
        raise ValueError(f"alphas_cumprod must be 1-D with at least 2 entries, got {squares.shape}")
    good = (squares > 0) & (squares < 1)
    good[-1] |= squares[-1] == 0
    good[1:] &= squares[1:] < squares[:-1]
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        raise ValueError(
            f"alphas_cumprod[{i}]={squares[i]:g} must lie in (0, 1) and below its predecessor "
            "(only the last may be 0)"
        )
    with np.errstate(divide="ignore"):
        logs = 0.5 * np.log(squares)
    return _from_log_alphas("from_alphas_cumprod", dict(array=squares.tolist()), logs)


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The continuous VP SDE (Song et al. 2021), T = 1: ln ᾱ = −¼t²(β_max − β_min) − ½tβ_min.

    >>> from ddim_ode import schedules
    >>> round(float(schedules.vp().alpha_bar(1.0)), 5)
    0.00657
    """
    beta_min, beta_max = number("beta_min", beta_min), _positive("beta_max", beta_max)
    if not 0 < beta_min <= beta_max:
        raise ValueError(
            f"beta_min={beta_min!r}, beta_max={beta_max!r}: need 0 < beta_min <= beta_max"
        )
    slope = beta_max - beta_min
    return LogAlphaSchedule(
        "vp",
        1.0,
        dict(beta_min=beta_min, beta_max=beta_max),
        lambda t: -0.25 * slope * t * t - 0.5 * beta_min * t,
        lambda log_alpha: (
            -2 * log_alpha / (0.5 * beta_min + np.sqrt(0.25 * beta_min**2 - slope * log_alpha))
        ),
        lambda t, alpha: -0.5 * (slope * t + beta_min) * alpha,
    )


class _VE(Schedule):
    family = "ve"

    def scales(self, sigma: ArrayLike) -> tuple[Array, Array]:
        sigma = numbers("sigma", sigma)
        return np.ones_like(sigma)[()], sigma[()]

    def scale_rates(self, sigma: ArrayLike) -> tuple[Array, Array]:
        return np.zeros(np.shape(sigma))[()], np.ones(np.shape(sigma))[()]

    def _sigma(self, t: Array) -> Array:
        return t

    def _time(self, sigma: Array) -> Array:
        return sigma

    def _rates(self, t: Array) -> tuple[Array, Array]:
        return np.zeros_like(t), np.ones_like(t)

    @functools.cached_property
    def sigma_min(self) -> float:
        return float(self.params["sigma_min"])

    @property
    def least_cut(self) -> float:
        """0.01 by default, as the discrete schedules have it: few steps never pay down to EDM's 0.002."""
        return 5 * self.sigma_min

    def training_time(self, u: ArrayLike) -> Array:
        """Log-uniform between σ_max and σ_min: evenly in t, hardly a level would be of the data's size."""
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** numbers("u", u)


def ve(sigma_max: float, sigma_min: float = 0.002) -> Schedule:
    """Variance exploding: ᾱ = 1, β̄ = σ = t, T = ``sigma_max`` (EDM's parameterisation).

    Args:
        sigma_max: σ(T), in units of the data: 80 for EDM's networks, 50 to 1348 for NCSN++'s.
        sigma_min: The last positive level, where sampling jumps to x̂₀, in units of the data. It does not
            grow with ``sigma_max``. The default is that of Karras et al. 2022, for data of a standard
            deviation near 0.5; data in other units (pixels 0 to 255) want it in those.

    Raises:
        ValueError: Unless 0 < sigma_min < sigma_max < inf.

    >>> from ddim_ode import schedules
    >>> float(schedules.ve(80.0).sigma(3.0))
    3.0
    """
    sigma_max, sigma_min = _positive("sigma_max", sigma_max), _positive("sigma_min", sigma_min)
    if not sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min={sigma_min:g} must lie below sigma_max={sigma_max:g}; give ve(sigma_max, "
            "sigma_min), both in units of the data"
        )
    params = dict(sigma_max=sigma_max, sigma_min=sigma_min)
    return _VE("ve", sigma_max, params, discrete=False)


class _Flow(Schedule):
    family = "flow"

    def scales(self, sigma: ArrayLike) -> tuple[Array, Array]:
        sigma = numbers("sigma", sigma)
        return self._normed(sigma, 1.0 + sigma)

    def scale_rates(self, sigma: ArrayLike) -> tuple[Array, Array]:
        rate = (1.0 + numbers("sigma", sigma)) ** -2
        return -rate, rate

    def _sigma(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            return t / (1.0 - t)

    def _time(self, sigma: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(sigma), 1.0, sigma / (1.0 + sigma))

    def _rates(self, t: Array) -> tuple[Array, Array]:
        return -np.ones_like(t), np.ones_like(t)


def flow() -> Schedule:
    """Rectified flow / flow matching: ᾱ = 1 − t, β̄ = t, T = 1, so σ(T) = inf.

    >>> from ddim_ode import schedules
    >>> schedules.flow().sigma([0.5, 1.0]).tolist()
    [1.0, inf]
    """
    return _Flow("flow", 1.0, {}, discrete=False)


def _check_T(T: int) -> int:
    """T as an int; its levels are kept in arrays, hence the upper bound."""
    return count("T", T, least=2, most=10_000_000)


def _positive(name: str, value: float) -> float:
    real = number(name, value)
    if not (np.isfinite(real) and real > 0):
        raise ValueError(f"{name}={shown(value)} must be positive and finite")
    return real
