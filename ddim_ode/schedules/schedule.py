"""What a schedule is: ᾱ(t), β̄(t), σ(t) and back, in float64 numpy. The ones there are: __init__.py.

Three families fix ᾱ and β̄ given σ:

    variance preserving   ᾱ = 1/√(1+σ²)    β̄ = σ/√(1+σ²)
    variance exploding    ᾱ = 1            β̄ = σ
    flow                  ᾱ = 1/(1+σ)      β̄ = σ/(1+σ)

A variance-preserving schedule is given by L(t) = ln ᾱ(t), and everything else follows without
cancellation: β̄ = √(−expm1(2L)), σ = √(expm1(−2L)), and back L = −½ log1p(σ²). So σ keeps its
relative accuracy at both ends, where 1 − ᾱ² or ᾱ itself would lose it.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .._base.checks import Array as Array
from .._base.checks import number, numbers
from .._base.fingerprints import fingerprint

ArrayLike = npt.ArrayLike

# Rounding slack at the ends of a range. Other libraries keep ᾱ² as a cumulative product in float32: of 1000
# factors, each rounded by up to 2⁻²⁴, it may be off by 6e-5 of itself, and σ = √(1/ᾱ² − 1) by half of that.
_SLACK = 3e-5


class Schedule(ABC):
    """ᾱ(t), β̄(t), σ(t) and the inverse t(σ); float64 numpy in and out, elementwise.

    Of one number the answer is a numpy scalar, which multiplies tensors as a Python float does.

    Attributes:
        name, params: How to build it again.
        T: The last time.
        discrete: Whether only t = 1..T were trained.
        knots: Times in (0, T) where σ(t) is not smooth.
        family: ``"vp"``, ``"ve"`` or ``"flow"``, which gives ᾱ(σ) and β̄(σ). This class has those of a
            variance-preserving schedule; the others override them.
    """

    family: str = "vp"
    # By name and parameters; set beside the named ones, which know this class and not it them.
    build: ClassVar[Callable[[str, dict[str, Any]], Schedule]]

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

    def training_time(self, u: ArrayLike) -> Array:
        """The t in (0, T] of a training draw u, uniform in [0, 1): spread evenly in t.

        A schedule whose levels are not spread evenly over its times (``ve``) overrides it.
        """
        u = numbers("u", u)
        return np.floor(u * self.T) + 1.0 if self.discrete else (1.0 - u) * self.T

    # -- what follows ------------------------------------------------------------------------
    # [()] makes the answer for one level a number: unlike a 0-d array it can multiply a tensor.
    def sigma(self, t: ArrayLike) -> Array:
        """σ(t) = β̄/ᾱ; inf where ᾱ = 0. ValueError outside [0, T]."""
        return self._sigma(_within("t", t, self.T))[()]

    def time(self, sigma: ArrayLike) -> Array:
        """The inverse t(σ). ValueError outside [0, σ(T)]."""
        t = self._time(self.check_sigma(sigma))[()]
        if not self.discrete:
            return t[()]
        whole = np.rint(t)  # a trained level is its integer, not 499.9999999999999
        return np.where(np.abs(t - whole) < 1e-9, whole, t)[()]

    def check_sigma(self, sigma: ArrayLike, name: str = "sigma") -> Array:
        """σ as float64; ValueError outside [0, σ(T)]. What float32 rounding puts above σ(T) is σ(T)."""
        return _within(name, sigma, self.sigma_max)

    def level(self, sigma: ArrayLike, name: str = "sigma") -> float:
        """One σ as a float; ValueError outside [0, σ(T)]."""
        return float(self.check_sigma(number(name, sigma), name))

    def alpha_bar(self, t: ArrayLike) -> Array:
        """ᾱ(t), the coefficient of x₀. ValueError outside [0, T]."""
        return self.scales(self.sigma(t))[0]

    def beta_bar(self, t: ArrayLike) -> Array:
        """β̄(t), the coefficient of ε. ValueError outside [0, T]."""
        return self.scales(self.sigma(t))[1]

    def scales(self, sigma: ArrayLike) -> tuple[Array, Array]:
        """(ᾱ, β̄) at noise level σ ∈ [0, inf]."""
        sigma = numbers("sigma", sigma)
        return self._normed(sigma, np.hypot(1.0, sigma))

    @staticmethod
    def _normed(sigma: Array, norm: Array) -> tuple[Array, Array]:
        """(1, σ)/norm, with the limit (0, 1) at σ = inf."""
        with np.errstate(invalid="ignore"):
            return (1.0 / norm)[()], np.where(np.isinf(sigma), 1.0, sigma / norm)[()]

    def rates(self, t: ArrayLike) -> tuple[Array, Array]:
        """(dᾱ/dt, dβ̄/dt), from the left where σ(t) has a kink; infinite at t=0 where β̄ ~ √t."""
        with np.errstate(divide="ignore"):
            d_alpha, d_beta = self._rates(_within("t", t, self.T))
        return d_alpha[()], d_beta[()]

    def time_rate(self, sigma: ArrayLike) -> Array:
        """dt/dσ, the derivative of the inverse."""
        sigma = self.check_sigma(sigma)
        alpha, beta = self.scales(sigma)
        d_alpha, d_beta = self.rates(self._time(sigma))
        return alpha**2 / (d_beta * alpha - d_alpha * beta)

    def scale_rates(self, sigma: ArrayLike) -> tuple[Array, Array]:
        """(dᾱ/dσ, dβ̄/dσ) of the family, at finite σ."""
        sigma = numbers("sigma", sigma)
        alpha = self.scales(sigma)[0]
        return -sigma * alpha**3, alpha**3

    @functools.cached_property
    def sigma_max(self) -> float:
        """σ(T), the level sampling starts from; inf where ᾱ(T) = 0."""
        return float(self._sigma(np.array(self.T)))

    @functools.cached_property
    def sigma_min(self) -> float:
        """The default last positive level: σ(1) of a discrete schedule, else σ(10⁻³ T)."""
        return float(self._sigma(np.array(1.0 if self.discrete else 1e-3 * self.T)))

    @property
    def least_cut(self) -> float:
        """The smallest last level that searches of a grid try."""
        return self.sigma_min

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
        """A short hash of the curve σ(t), equal for schedules that agree to 9 digits, on any processor."""
        n = int(self.T) if self.discrete else 64
        return fingerprint(self.name, self.family, self.T, n, self.params)

    def __reduce__(self) -> tuple[Callable[..., Schedule], tuple[str, dict[str, Any]]]:
        return type(self).build, (self.name, self.params)

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={_short(v)}" for k, v in self.params.items())
        return f"ddim_ode.schedules.{self.name}({args})"


class LogAlphaSchedule(Schedule):
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
            return np.sqrt(np.expm1(-2.0 * self._log_alpha(t))) + 0.0  # and not −0 at t = 0

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


def check_schedule(schedule: object) -> None:
    """ValueError unless it is a :class:`Schedule`."""
    if not isinstance(schedule, Schedule):
        raise ValueError(
            f"schedule must come from ddim_ode.schedules, got {type(schedule).__name__}; an array "
            "of ᾱ² goes through ddim_ode.schedules.from_alphas_cumprod"
        )


def _within(name: str, value: ArrayLike, top: float) -> Array:
    value = numbers(name, value)
    good = (value >= 0) & (value <= top * (1 + _SLACK))  # False for NaN
    if not np.all(good):
        bad = value[~good].flat[0] if value.ndim else value
        raise ValueError(f"{name}={bad:g} is outside this schedule's range [0, {top:g}]")
    return np.minimum(value, top)


def _short(value: Any) -> str:
    return f"[{value[0]:g}, …, {value[-1]:g}]" if isinstance(value, list) else repr(value)
