"""The sampling ODE as a callable, for anybody's solver.

With s = (t/T)², the DDIM form of the ODE is  d(x/ᾱ)/ds = ε̂ · d(β̄/ᾱ)/ds, and in x itself
dx/dτ = x̂₀ dᾱ/dτ + ε̂ dβ̄/dτ. One exact trajectory solves it in every variable τ ∈ {s, t, σ, ln σ} and in
both states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import device_of, floating, host_number, numbers, one_of
from .._base.tensors import check_floating
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import check_model
from ..denoising.problem import Problem
from ..denoising.seeding import sizes

VARIABLES = ("s", "t", "sigma", "log_sigma")
STATES = ("x", "x/alpha_bar")


class ProbabilityFlow:
    """``ode(τ, state) -> dstate/dτ``: torchdiffeq's and scipy's calling order.

    A tensor state (B, *) gives a tensor and is differentiable (see ``norm``). A flat numpy state of
    B·prod(shape) numbers gives a flat numpy array, without a gradient. ``nfe`` counts the calls, ``rows``
    what the network processes in them for one sample (under guidance, two a call). Past the ends of the
    schedule, where adaptive solvers take trial steps, the field keeps the value it has at σ_min or σ(T).

    Args:
        model: A :class:`Denoiser`.
        variable: What τ is, ``"s" | "t" | "sigma" | "log_sigma"``, s = (t/T)².
        state: ``"x"`` or ``"x/alpha_bar"``.
        shape: Of ONE sample, needed for flat states.
        dtype, device: Of the tensors made from numpy states. (A float32 network wants ``torch.float32``,
            here or in its Denoiser.)
        cond: {name: tensor (B, ...)}.
        shared: {name: value}, passed to the network as it is.

    Raises:
        ValueError: In a call at σ = 0, where the ODE ends: ``span`` ends at σ_min, where
            ``ddim_ode.sample`` by default jumps to x̂₀.

    >>> import ddim_ode, torch
    >>> from torchdiffeq import odeint
    >>> schedule = ddim_ode.schedules.exponential()
    >>> model = ddim_ode.exact.gaussian([0.0], [[1.0]], schedule)
    >>> ode = ddim_ode.ProbabilityFlow(model, variable="s")
    >>> x = torch.ones(1, 1, dtype=torch.float64)
    >>> path = odeint(ode, x, torch.tensor(ode.span(10.0, 0.1), dtype=torch.float64))
    >>> round(float(path[-1, 0, 0]), 6)  # unit variance data: x does not move
    1.0
    """

    def __init__(
        self,
        model: Denoiser,
        variable: str = "s",
        state: str = "x",
        shape: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> None:
        check_model(model)
        self.variable = one_of("variable", variable, VARIABLES)
        self.state = one_of("state", state, STATES)
        self.shape = None if shape is None else sizes(shape)
        self.dtype, self.device = floating(dtype), device_of(device)
        self.problem = Problem(model, cond, shared)
        self.nfe = self.rows = 0

    @property
    def model(self) -> Denoiser:
        """The denoiser."""
        return self.problem.model

    def __repr__(self) -> str:
        return f"ProbabilityFlow({self.model!r}, {self.state} over {self.variable}, nfe {self.nfe})"

    def __call__(self, tau: float | Tensor, state: Tensor | npt.NDArray[np.float64]) -> Any:
        tau = host_number("tau", tau)
        if isinstance(state, np.ndarray):
            return self._numpy_rate(tau, state)
        check_floating(state, "state")
        tau = self._within(tau)
        sigma = self._sigma(tau)
        x = self._scaled(state, sigma, inverse=False)
        x0, eps = self.problem(x, sigma)
        self.nfe, self.rows = self.nfe + 1, self.rows + self.model.rows(sigma)
        d_alpha, d_beta = self._rates(tau, sigma)
        if self.state == "x":
            return x0 * d_alpha + eps * d_beta
        alpha, beta = map(float, self.model.schedule.scales(sigma))
        return eps * ((d_beta * alpha - beta * d_alpha) / alpha**2)

    @staticmethod
    def norm(state: Tensor) -> Tensor:
        """RMS without a gradient, for ``options={"norm": ode.norm}`` of torchdiffeq's adaptive methods.

        Their step sizes depend on the state, but τ reaches the network as a number: with the norm's
        graph kept, a backward pass would take half of that dependence for the whole.
        """
        return state.detach().square().mean().sqrt()

    def _numpy_rate(self, tau: float, state: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if state.ndim != 1:
            raise ValueError(
                f"a numpy state must be flat, got shape {state.shape}: vectorized=False"
            )
        with torch.no_grad():
            rate: Tensor = self(tau, self._tensor(state))
        return rate.reshape(-1).double().cpu().numpy()

    def span(
        self, sigma_max: float | None = None, sigma_min: float | None = None
    ) -> tuple[float, float]:
        """(τ at sigma_max, τ at sigma_min): the interval of sampling; defaults as in ``sample``."""
        schedule = self.model.schedule
        top = self.model.starting_at(sigma_max).sigma_max
        cut = schedule.sigma_min if sigma_min is None else schedule.level(sigma_min, "sigma_min")
        return self.tau(top), self.tau(cut)

    def tau(self, sigma: float) -> float:
        """The variable's value at noise level σ > 0."""
        sigma = host_number("sigma", sigma)
        if not sigma > 0:
            raise ValueError(f"sigma={sigma!r} must be positive: the ODE ends before σ=0")
        t = float(self.model.schedule.time(sigma))
        if np.isinf(sigma) and self.variable in ("sigma", "log_sigma"):
            raise ValueError(
                f"variable={self.variable!r} is infinite at σ=inf; use variable='t' or 's', or a finite "
                "sigma_max"
            )
        if self.variable == "sigma":
            return float(sigma)
        if self.variable == "log_sigma":
            return float(np.log(sigma))
        return t if self.variable == "t" else (t / self.model.schedule.T) ** 2

    def to_state(self, x: Tensor, sigma: float) -> Tensor:
        """x (B, *) at level σ as the ODE's state."""
        check_floating(x)
        return self._scaled(x, sigma, inverse=True)

    def to_x(self, state: Tensor | npt.NDArray[np.float64], tau: float | Tensor) -> Tensor:
        """The ODE's state at τ back as x (B, *)."""
        sigma = self._sigma(host_number("tau", tau))
        return self._scaled(self._tensor(state), sigma, inverse=False)

    def _within(self, tau: float) -> float:
        """τ where the field is defined; ValueError at σ = 0."""
        with np.errstate(over="ignore"):  # a trial step far past the start
            past_the_end = np.exp(tau) == 0 if self.variable == "log_sigma" else tau <= 0
        if past_the_end:
            if tau == 0:
                raise ValueError(
                    f"the ODE ends before σ=0 ({self.variable}=0): stop at sigma_min > 0 and take x̂₀ "
                    "there, as ddim_ode.sample does"
                )
            return self.tau(self.model.schedule.sigma_min)
        top = self.model.schedule.sigma_max
        return tau if np.isinf(top) and "sigma" in self.variable else min(tau, self.tau(top))

    def _sigma(self, tau: float) -> float:
        value, schedule = tau, self.model.schedule
        if self.variable == "sigma":
            return value
        if self.variable == "log_sigma":
            return min(float(np.exp(value)), schedule.sigma_max)
        return float(schedule.sigma(value if self.variable == "t" else schedule.T * value**0.5))

    def _rates(self, tau: float, sigma: float) -> tuple[float, float]:
        """(dᾱ/dτ, dβ̄/dτ)."""
        schedule = self.model.schedule
        if self.variable in ("sigma", "log_sigma"):
            factor = 1.0 if self.variable == "sigma" else sigma
            d_alpha, d_beta = schedule.scale_rates(sigma)
        else:
            t = tau if self.variable == "t" else schedule.T * tau**0.5
            factor = 1.0 if self.variable == "t" else schedule.T**2 / (2 * t)  # dt/ds
            d_alpha, d_beta = schedule.rates(t)
        return factor * float(d_alpha), factor * float(d_beta)

    def _tensor(self, state: Tensor | npt.NDArray[np.float64]) -> Tensor:
        if isinstance(state, Tensor):
            check_floating(state, "state")
            return state
        state = numbers("state", state)
        if self.shape is None:
            raise ValueError(
                "a flat numpy state needs ProbabilityFlow(..., shape=) of one sample to be unflattened"
            )
        if np.size(state) % max(math.prod(self.shape), 1):
            raise ValueError(
                f"a state of {np.size(state)} numbers is no batch of samples of shape={self.shape}; give a "
                f"multiple of {math.prod(self.shape)} numbers"
            )
        tensor = torch.as_tensor(state, dtype=self.dtype, device=self.device)
        return tensor.reshape(-1, *self.shape)

    def _scaled(self, x: Tensor, sigma: float, inverse: bool) -> Tensor:
        if self.state == "x":
            return x
        alpha = float(self.model.schedule.scales(self.model.schedule.level(sigma))[0])
        if alpha == 0:
            raise ValueError("state='x/alpha_bar' is infinite at σ=inf; use state='x'")
        return x / alpha if inverse else x * alpha
