"""The sampling ODE as the general ODE packages are given it, and their solvers on it.

``PeerField`` is the right-hand side in a chosen variable and state, counting its calls. Each solver goes
from σ_max to σ_min and then takes the same last jump to x̂₀ as everybody, which costs one call more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Problem
from torch import Tensor

from ddim_ode.schedules.schedule import Array, Schedule

Solve = Callable[["PeerField", float], tuple[Tensor, float]]


class TooManyCalls(Exception):
    """A solve that went past the calls it was allowed."""


class Clock(NamedTuple):
    """The variable τ that a peer solves in: τ(σ), σ(τ) and dσ/dτ, all by arrays."""

    of: Callable[[Any], Any]
    inverse: Callable[[Any], Any]
    rate: Callable[[Any], Any]


def schedule_time(schedule: Schedule) -> Clock:
    """t itself: uniform steps in it are the levels that most samplers of images take."""

    def rate(sigma: Array) -> Array:
        alpha, beta = schedule.scales(sigma)
        d_alpha, d_beta = schedule.rates(schedule.time(sigma))
        return (d_beta * alpha - beta * d_alpha) / alpha**2

    return Clock(schedule.time, schedule.sigma, rate)


CLOCKS = {
    "ln sigma": Clock(np.log, np.exp, lambda s: s),
    "sigma": Clock(lambda s: s, lambda u: u, np.ones_like),
    "atan sigma": Clock(np.arctan, np.tan, lambda s: 1 + s * s),
}
STATES = ("x", "x/alpha")


class PeerField:
    """dstate/dτ of the whole batch, at one τ or one per sample; TooManyCalls past ``most`` calls."""

    def __init__(self, problem: Problem, clock: str, state: str, most: int) -> None:
        self.problem, self.state, self.most, self.calls = problem, state, most, 0
        schedule = problem.model.schedule
        self.clock = schedule_time(schedule) if clock == "t" else CLOCKS[clock]
        self.ends = schedule.sigma_max, schedule.sigma_min

    def __call__(self, tau: Tensor | float, state: Tensor) -> Tensor:
        if self.calls >= self.most:
            raise TooManyCalls
        self.calls += 1
        model, x = self.problem.model, self.problem.x
        tau = np.atleast_1d(np.asarray(tau, dtype=np.float64))
        # trial steps may leave the interval, in τ by far and in σ by a rounding error
        tau = np.clip(tau, *sorted(self.span()))
        sigma = np.clip(self.clock.inverse(tau), self.ends[1], self.ends[0])
        y = state.reshape(x.shape).to(x)
        alpha = self._column(model.schedule.scales(sigma)[0])
        x0, eps = model(y if self.state == "x" else y * alpha, sigma, self.problem.cond)
        d_sigma = self.clock.rate(sigma)
        if self.state == "x":
            d_alpha, d_beta = (self._column(r * d_sigma) for r in model.schedule.scale_rates(sigma))
            return (x0 * d_alpha + eps * d_beta).reshape(state.shape)
        return (eps * self._column(d_sigma)).reshape(state.shape)

    def span(self) -> tuple[float, float]:
        """(τ at σ_max, τ at σ_min)."""
        return float(self.clock.of(self.ends[0])), float(self.clock.of(self.ends[1]))

    def start(self) -> Tensor:
        """The noises as the state at σ_max."""
        return self.problem.x / self._scale(self.ends[0])

    def landed(self, state: Tensor) -> Tensor:
        """x̂₀ from the state at σ_min."""
        x = state.reshape(self.problem.x.shape).to(self.problem.x) * self._scale(self.ends[1])
        return self.problem.model(x, self.ends[1], self.problem.cond)[0]

    def _scale(self, sigma: float) -> float:
        """What x is in units of the state."""
        return float(self.problem.model.schedule.scales(sigma)[0]) if self.state != "x" else 1.0

    def _column(self, values: Array) -> Tensor:
        x = self.problem.x
        return torch.as_tensor(np.array(values)).to(x).reshape(-1, *[1] * (x.ndim - 1))


def torchdiffeq_dopri5(field: PeerField, tol: float) -> tuple[Tensor, float]:
    """(x̂₀, calls)."""
    from torchdiffeq import odeint

    taus = torch.tensor(field.span(), dtype=torch.float64)
    options = dict(step_t=taus[1:])  # end on σ_min, not past it
    path = odeint(field, field.start(), taus, rtol=tol, atol=tol, method="dopri5", options=options)
    return field.landed(path[-1]), field.calls + 1


def torchdiffeq_fixed(field: PeerField, method: str, steps: int) -> tuple[Tensor, float]:
    """The same with a fixed-step method on steps equal in τ."""
    from torchdiffeq import odeint

    taus = torch.linspace(*field.span(), steps + 1, dtype=torch.float64)
    path = odeint(field, field.start(), taus, method=method)
    return field.landed(path[-1]), field.calls + 1


def torchode_dopri5(field: PeerField, tol: float) -> tuple[Tensor, float]:
    """A sample is charged for its own steps only, though torchode evaluates the whole batch until the
    last is done."""
    import torchode

    n = field.problem.x.shape[0]
    y0 = field.start().reshape(n, -1)
    top, bottom = (torch.full((n,), tau, dtype=y0.dtype) for tau in field.span())
    term = torchode.ODETerm(field)
    method = torchode.Dopri5(term=term)
    control = torchode.PIDController(tol, tol, pcoeff=0.2, icoeff=0.5, dcoeff=0.0, term=term)
    solver = torchode.AutoDiffAdjoint(method, control)
    sol = solver.solve(torchode.InitialValueProblem(y0=y0, t_start=top, t_end=bottom))
    if int(sol.status.max()) != 0:
        raise FloatingPointError("torchode gave up")
    steps = sol.stats["n_steps"].double().mean()
    return field.landed(sol.ys[:, -1]), 2 + 6 * float(steps) + 1


def scipy_dop853(field: PeerField, tol: float) -> tuple[Tensor, float]:
    """The whole batch as one vector."""
    from scipy.integrate import solve_ivp

    def rate(tau: float, flat: np.ndarray) -> np.ndarray:
        return field(tau, torch.as_tensor(flat)).double().numpy()

    y0 = field.start().double().reshape(-1).numpy()
    sol = solve_ivp(rate, field.span(), y0, "DOP853", rtol=max(tol, 1e-13), atol=tol)
    if not sol.success:
        raise FloatingPointError(sol.message)
    return field.landed(torch.as_tensor(sol.y[:, -1])), field.calls + 1


ADAPTIVE: dict[str, Solve] = {
    "torchdiffeq dopri5": torchdiffeq_dopri5,
    "torchode dopri5": torchode_dopri5,
    "scipy DOP853": scipy_dop853,
}


def ladder(
    problem: Problem, solve: Solve, clock: str, state: str, tolerances: Sequence[float], most: int
) -> list[tuple[float, float, Tensor]]:
    """(tolerance, calls per sample, x̂₀) from loose to tight, as long as ``most`` calls are enough."""
    found = []
    for tol in tolerances:
        field = PeerField(problem, clock, state, most)
        try:
            with torch.no_grad():
                end, nfe = solve(field, tol)
        except TooManyCalls:
            break  # a tighter tolerance will not take fewer
        except (AssertionError, FloatingPointError):
            continue  # a step underflow, in these packages
        found.append((tol, nfe, end))
    return found
