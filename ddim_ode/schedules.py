"""Noise schedules: x_t = ᾱ(t) x₀ + β̄(t) ε, in float64 numpy, without torch.

``alpha_bar`` ᾱ is the coefficient of x₀, *not* its square (ᾱ² is what other libraries call
``alphas_cumprod``). ``sigma`` is σ = β̄/ᾱ. Schedule time t runs over [0, T], ᾱ(0) = 1, σ(0) = 0,
and σ rises with t. Three families fix ᾱ and β̄ given σ:

    variance preserving   ᾱ = 1/√(1+σ²)    β̄ = σ/√(1+σ²)
    variance exploding    ᾱ = 1            β̄ = σ
    flow                  ᾱ = 1/(1+σ)      β̄ = σ/(1+σ)

A variance-preserving schedule is given by L(t) = ln ᾱ(t), and everything else follows without
cancellation: β̄ = √(−expm1(2L)), σ = √(expm1(−2L)), and back L = −½ log1p(σ²). So σ keeps its
relative accuracy at both ends, where 1 − ᾱ² or ᾱ itself would lose it.

The exponential form ᾱ(s) = e^{−5s}, s = (t/T)², is the continuous face of the discrete steps
α_t = √(1 − 0.02 t/T), T = 1000: their ln ᾱ_t = ½ Σ ln(1 − 0.02 i/T) ≈ −0.005 t(t+1)/T ≈ −5 t²/T².
How far apart the two are is measured in :func:`exponential`.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ._checks import one_of

Array = npt.NDArray[np.float64]
ArrayLike = npt.ArrayLike

# Rounding slack at the ends of a range: a float32 copy of σ(T) is off by 6e-8 relative.
_SLACK = 1e-6


class Schedule(ABC):
    """ᾱ(t), β̄(t), σ(t) and the inverse t(σ); float64 numpy in and out, elementwise.

    ``T``: the last time. ``discrete``: whether only t = 1..T were trained. ``knots``: times in
    (0, T) where σ(t) is not smooth. ``name`` and ``params`` say how to build it again.
    """

    family: str = "vp"

    def __init__(self, name: str, T: float, params: dict[str, Any], discrete: bool) -> None:
        self.name = name
        self.T = float(T)
        self.params = params
        self.discrete = discrete
        self.knots: Array = np.empty(0)

    # -- what a schedule is ------------------------------------------------------------------
    @abstractmethod
    def _sigma(self, t: Array) -> Array: ...

    @abstractmethod
    def _time(self, sigma: Array) -> Array: ...

    @abstractmethod
    def _rates(self, t: Array) -> tuple[Array, Array]: ...

    # -- what follows ------------------------------------------------------------------------
    def sigma(self, t: ArrayLike) -> Array:
        """σ(t) = β̄/ᾱ; inf where ᾱ = 0. ValueError outside [0, T]."""
        return self._sigma(_within("t", t, self.T))

    def time(self, sigma: ArrayLike) -> Array:
        """The inverse t(σ). ValueError outside [0, σ(T)]."""
        t = self._time(self.check_sigma(sigma))
        if not self.discrete:
            return t
        whole = np.rint(t)  # a trained level is its integer, not 499.9999999999999
        return np.where(np.abs(t - whole) < 1e-9, whole, t)

    def check_sigma(self, sigma: ArrayLike, name: str = "sigma") -> Array:
        """σ as float64; ValueError outside [0, σ(T)], up to the rounding of a float32 copy of σ(T)."""
        return _within(name, sigma, self.sigma_max)

    def alpha_bar(self, t: ArrayLike) -> Array:
        """ᾱ(t), the coefficient of x₀. ValueError outside [0, T]."""
        return self.scales(self.sigma(t))[0]

    def beta_bar(self, t: ArrayLike) -> Array:
        """β̄(t), the coefficient of ε. ValueError outside [0, T]."""
        return self.scales(self.sigma(t))[1]

    def scales(self, sigma: ArrayLike) -> tuple[Array, Array]:
        """(ᾱ, β̄) at noise level σ ∈ [0, inf]."""
        sigma = np.asarray(sigma, dtype=np.float64)
        if self.family == "ve":
            return np.ones_like(sigma), sigma
        norm = 1.0 + sigma if self.family == "flow" else np.hypot(1.0, sigma)
        with np.errstate(invalid="ignore"):
            return 1.0 / norm, np.where(np.isinf(sigma), 1.0, sigma / norm)

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        """(dᾱ/dt, dβ̄/dt), from the left where σ(t) has a kink; infinite at t=0 where β̄ ~ √t."""
        with np.errstate(divide="ignore"):
            return self._rates(_within("t", t, self.T))

    def time_rate(self, sigma: ArrayLike) -> Array:
        """dt/dσ, the derivative of the inverse."""
        sigma = self.check_sigma(sigma)
        alpha, beta = self.scales(sigma)
        d_alpha, d_beta = self.rates(self._time(sigma))
        return alpha**2 / (d_beta * alpha - d_alpha * beta)

    def scale_rates(self, sigma: ArrayLike) -> tuple[Array, Array]:
        """(dᾱ/dσ, dβ̄/dσ) of the family, at finite σ."""
        sigma = np.asarray(sigma, dtype=np.float64)
        if self.family == "ve":
            return np.zeros_like(sigma), np.ones_like(sigma)
        if self.family == "flow":
            return -((1 + sigma) ** -2), (1 + sigma) ** -2
        alpha = self.scales(sigma)[0]
        return -sigma * alpha**3, alpha**3

    @functools.cached_property
    def sigma_max(self) -> float:
        """σ(T), the level sampling starts from; inf where ᾱ(T) = 0."""
        return float(self._sigma(np.array(self.T)))

    @functools.cached_property
    def sigma_min(self) -> float:
        """The default last positive level: σ(1) of a discrete schedule, σ(10⁻³ T) otherwise."""
        return float(self._sigma(np.array(1.0 if self.discrete else 1e-3 * self.T)))

    @functools.cached_property
    def levels(self) -> Array:
        """σ at the integer times 1..T, rising; ValueError where T is not a whole number ≥ 2."""
        if self.T < 2 or int(self.T) != self.T:
            raise ValueError(
                f"schedule {self.name!r} has T={self.T:g} and so no integer levels to snap to; "
                "use snap=False"
            )
        levels = self._sigma(np.arange(1.0, self.T + 1.0))
        levels.flags.writeable = False  # kept, and shared by all models on this schedule
        return levels

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of the curve σ(t), equal for schedules that agree to 9 digits."""
        n = int(self.T) if self.discrete else 64
        sigmas = self._sigma(np.linspace(0.0, self.T, n + 1)[1:])
        text = f"{self.family} {self.T:.9g} " + " ".join(f"{s:.9g}" for s in sigmas)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __reduce__(self) -> tuple[Callable[..., Schedule], tuple[str, dict[str, Any]]]:
        return build, (self.name, self.params)

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={_short(v)}" for k, v in self.params.items())
        return f"ddim_ode.schedules.{self.name}({args})"


def _short(value: Any) -> str:
    return f"[{value[0]:g}, …, {value[-1]:g}]" if isinstance(value, list) else repr(value)


def build(name: str, params: dict[str, Any]) -> Schedule:
    """The schedule of that name and parameters: what pickling and weights files store."""
    makers = (ddpm, exponential, cosine, from_alphas_cumprod, vp, ve, flow)
    by_name = {maker.__name__: maker for maker in makers}
    return by_name[one_of("schedule", name, by_name)](**params)


def _within(name: str, value: ArrayLike, top: float) -> Array:
    value = np.asarray(value, dtype=np.float64)
    good = (value >= 0) & (value <= top * (1 + _SLACK))  # False for NaN
    if not np.all(good):
        bad = value[~good].flat[0] if value.ndim else value
        raise ValueError(f"{name}={bad:g} is outside this schedule's range [0, {top:g}]")
    return np.minimum(value, top)


class _LogAlpha(Schedule):
    """A variance-preserving schedule from L(t) = ln ᾱ(t), its inverse t(L) and dᾱ/dt (t, ᾱ)."""

    def __init__(
        self,
        name: str,
        T: float,
        params: dict[str, Any],
        log_alpha: Callable[[Array], Array],
        inverse: Callable[[Array], Array],
        alpha_rate: Callable[[Array, Array], Array],
        discrete: bool = False,
    ) -> None:
        super().__init__(name, T, params, discrete)
        self._log_alpha, self._inverse, self._alpha_rate = log_alpha, inverse, alpha_rate

    def _sigma(self, t: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.sqrt(np.expm1(-2.0 * self._log_alpha(t)))

    def _time(self, sigma: Array) -> Array:
        # ½ log1p(σ²), in a form that does not overflow for σ > 1e154
        small = np.minimum(sigma, 1e8)
        with np.errstate(divide="ignore"):
            minus_log_alpha = np.where(sigma < 1e8, 0.5 * np.log1p(small * small), np.log(sigma))
        return np.clip(self._inverse(-minus_log_alpha), 0.0, self.T)

    def _rates(self, t: Array) -> tuple[Array, Array]:
        alpha, beta = self.scales(self._sigma(t))
        d_alpha = self._alpha_rate(t, alpha)
        return d_alpha, -alpha * d_alpha / beta


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

    schedule = _LogAlpha(name, T, params, log_alpha, inverse, alpha_rate, discrete=True)
    schedule.knots = t_knots[1:-1]
    return schedule


def ddpm(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """The linear-β discrete schedule of DDPM (Ho et al. 2020): ᾱ_t² = Π_{i≤t} (1 − β_i).

    β rises linearly from ``beta_start`` (t=1) to ``beta_end`` (t=T); between integer times ln ᾱ
    is interpolated linearly. ``ddpm(beta_start=2e-5)`` is α_t = √(1 − 0.02 t/T).
    """
    T = _check_T(T)
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
    """
    _check_positive(rate=rate, T=T)
    return _LogAlpha(
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
    """
    T = _check_T(T)
    _check_positive(s=s)
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta={max_beta!r}: need 0 < max_beta < 1")

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
    schedule = _LogAlpha("cosine", T, params, log_alpha, inverse, alpha_rate, discrete=True)
    schedule.knots = tail_t[:-1]
    return schedule


def from_alphas_cumprod(array: ArrayLike) -> Schedule:
    """A discrete schedule from ᾱ² at t = 1..T, as diffusers stores ``alphas_cumprod``.

    ``array`` (T,) must fall strictly within (0, 1); its last entry may be 0 (zero terminal SNR,
    for v-, x0- and flow-networks). Between integer times ln ᾱ is linear in t.
    """
    squares = np.array(array, dtype=np.float64)
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
    """The continuous VP SDE (Song et al. 2021), T = 1: ln ᾱ = −¼t²(β_max − β_min) − ½tβ_min."""
    if not 0 < beta_min <= beta_max:
        raise ValueError(
            f"beta_min={beta_min!r}, beta_max={beta_max!r}: need 0 < beta_min <= beta_max"
        )
    slope = beta_max - beta_min
    return _LogAlpha(
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

    def _sigma(self, t: Array) -> Array:
        return t

    def _time(self, sigma: Array) -> Array:
        return sigma

    def _rates(self, t: Array) -> tuple[Array, Array]:
        return np.zeros_like(t), np.ones_like(t)


def ve(sigma_max: float) -> Schedule:
    """Variance exploding: ᾱ = 1, β̄ = σ = t, T = ``sigma_max`` (EDM's parameterisation)."""
    _check_positive(sigma_max=sigma_max)
    return _VE("ve", sigma_max, dict(sigma_max=sigma_max), discrete=False)


class _Flow(Schedule):
    family = "flow"

    def _sigma(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            return t / (1.0 - t)

    def _time(self, sigma: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(sigma), 1.0, sigma / (1.0 + sigma))

    def _rates(self, t: Array) -> tuple[Array, Array]:
        return -np.ones_like(t), np.ones_like(t)


def flow() -> Schedule:
    """Rectified flow / flow matching: ᾱ = 1 − t, β̄ = t, T = 1, so σ(T) = inf."""
    return _Flow("flow", 1.0, {}, discrete=False)


def _check_T(T: int) -> int:
    if not isinstance(T, (int, np.integer)) or T < 2:
        raise ValueError(f"T={T!r}: the number of discrete levels must be an integer >= 2")
    return int(T)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be positive and finite")
