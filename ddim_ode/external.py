"""Solvers of other packages through the same front door: ``torchdiffeq:NAME`` and ``scipy:NAME``.

They see one :class:`ProbabilityFlow` for the whole batch, so its samples share step sizes, errors and
fate. They run from σ_max to σ_min, in ln σ where σ_max is finite and in t otherwise; the last jump
to x̂₀ is the same as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ._checks import one_of
from .probability_flow import ProbabilityFlow
from .schedules import Array
from .solution import MAX_NFE, NON_FINITE, UNDERFLOW

if TYPE_CHECKING:
    from scipy.integrate import OdeSolver

PREFIXES = ("torchdiffeq:", "scipy:")
_SCIPY = ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")


class _OutOfBudget(Exception):
    """The next call of the network would exceed max_nfe."""


class End:
    """Where an external solve ended: state x, status (None: success), accepted steps if known."""

    def __init__(self, x: Tensor, failure: str | None, accepted: int) -> None:
        self.x, self.failure, self.accepted = x, failure, accepted


def is_external(method: object) -> bool:
    return isinstance(method, str) and method.startswith(PREFIXES)


def solve(
    method: str,
    ode: ProbabilityFlow,
    x: Tensor,
    sigmas: Array,
    rtol: float,
    atol: float,
    max_nfe: int,
    observe: Callable[[], None],
) -> End:
    """Solve from sigmas[0] to sigmas[-1] > 0; a fixed-step torchdiffeq method steps on all of them.

    ode: counts its calls; observe() is called after each. ValueError for an unknown solver.
    """
    package, name = method.split(":", 1)
    budget = _Budget(ode, max_nfe, observe)
    if package == "scipy":
        return _scipy(name, budget, x, sigmas, rtol, atol)
    return _torchdiffeq(name, budget, x, sigmas, rtol, atol)


class _Budget:
    """The ODE with a limit on its calls; remembers the last state it was asked about."""

    def __init__(self, ode: ProbabilityFlow, limit: int, observe: Callable[[], None]) -> None:
        self.ode, self.limit, self.observe = ode, limit, observe
        self.last: tuple[float, Tensor] | None = None

    def __call__(self, tau: float | Tensor, state: Tensor) -> Tensor:
        if self.ode.nfe >= self.limit:
            raise _OutOfBudget
        self.last = (float(tau), state)
        rate = self.ode(tau, state)
        self.observe()
        return rate


def is_fixed_step(method: str) -> bool:
    """Whether an external method steps on a grid; ValueError for an unknown one."""
    package, name = method.split(":", 1)
    if package == "scipy":
        one_of("scipy solver", name, _SCIPY)
        return False
    from torchdiffeq._impl.odeint import SOLVERS
    from torchdiffeq._impl.solvers import FixedGridODESolver

    return issubclass(SOLVERS[one_of("torchdiffeq solver", name, SOLVERS)], FixedGridODESolver)


def _torchdiffeq(
    name: str, budget: _Budget, x: Tensor, sigmas: Array, rtol: float, atol: float
) -> End:
    from torchdiffeq import odeint
    from torchdiffeq._impl.odeint import SOLVERS
    from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver

    ode = budget.ode
    fixed = is_fixed_step(f"torchdiffeq:{name}")
    levels = sigmas if fixed else sigmas[[0, -1]]
    taus = torch.tensor([ode.tau(s) for s in levels], dtype=torch.float64, device=x.device)
    # By itself torchdiffeq steps past the end and interpolates back; the network ends at σ_min.
    options = (
        {"step_t": taus[-1:]} if issubclass(SOLVERS[name], RKAdaptiveStepsizeODESolver) else {}
    )
    state = ode.to_state(x, levels[0])
    try:
        path = odeint(budget, state, taus, rtol=rtol, atol=atol, method=name, options=options)
    except _OutOfBudget:
        return _last(budget, x, MAX_NFE)
    except AssertionError as error:  # torchdiffeq asserts that its step does not underflow
        if "underflow" not in str(error) and "non-finite" not in str(error):
            raise
        return _last(budget, x, UNDERFLOW)
    return End(ode.to_x(path[-1], taus[-1]), None, len(levels) - 1 if fixed else 0)


def _last(budget: _Budget, x: Tensor, failure: str) -> End:
    if budget.last is None:
        return End(x, failure, 0)
    tau, state = budget.last
    return End(budget.ode.to_x(state, tau), failure, 0)


def _scipy(name: str, budget: _Budget, x: Tensor, sigmas: Array, rtol: float, atol: float) -> End:
    import scipy.integrate

    ode = budget.ode
    solver_class: type[OdeSolver] = getattr(scipy.integrate, one_of("scipy solver", name, _SCIPY))
    start, end = ode.tau(sigmas[0]), ode.tau(sigmas[-1])
    y0 = ode.to_state(x, sigmas[0]).reshape(-1).double().cpu().numpy()
    if not np.isfinite(y0).all():
        return End(x, NON_FINITE, 0)
    accepted, failure = 0, None

    def back(tau: float, state: Array) -> Tensor:
        return ode.to_x(state, tau).to(x)

    def rate(tau: float, state: Array) -> Array:
        out: Array = budget(tau, state)  # type: ignore[arg-type, assignment]
        if not np.isfinite(out).all():
            raise FloatingPointError  # scipy's step control loops for ever on NaN
        return out

    tau, state = start, y0
    try:
        solver = solver_class(
            rate, start, y0, end, rtol=max(rtol, 100 * np.finfo(float).eps), atol=atol
        )
        while solver.status == "running":
            solver.step()
            if solver.status == "failed":
                failure = UNDERFLOW
                break
            accepted += 1
            tau, state = float(solver.t), solver.y
    except _OutOfBudget:
        failure = MAX_NFE
    except FloatingPointError:
        failure = NON_FINITE
    return End(back(tau, state), failure, accepted)
