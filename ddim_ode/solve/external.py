"""Solvers of other packages through the same front door: ``torchdiffeq:NAME`` and ``scipy:NAME``.

They see one :class:`ProbabilityFlow` for the whole batch, so its samples share step sizes, errors and
status. They run from σ_max to σ_min, or back, in ln σ where σ_max is finite and in t otherwise; the last
jump to x̂₀ is the same as everywhere.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._base.bars import progress_bar
from .._base.checks import count, one_of, refuse
from ..schedules.schedule import Array
from ..solvers.controller import MAX_NFE, NON_FINITE, SUCCESS, UNDERFLOW
from .adaptive import DEFAULT_MAX_NFE, tolerance
from .gradients import parameters
from .probability_flow import ProbabilityFlow
from .request import OF_SCIPY, Request, is_fixed_step
from .solution import Solution, finite_samples, warn_of_scale, warn_of_start

if TYPE_CHECKING:
    from scipy.integrate import OdeSolver


class _Stop(Exception):
    """Ends a solve from inside its ODE; the argument is the status."""


class End(NamedTuple):
    """Where an external solve ended: state x, status (None: success), steps where they are known."""

    x: Tensor
    failure: str | None
    accepted: int = 0
    rejected: int = 0


def solve(request: Request) -> Solution:
    """A request of kind "external", a method of another package."""
    model, x, method, levels = request.model, request.x, str(request.method), request.levels
    options = request.options
    max_nfe = options["max_nfe"]
    fixed = is_fixed_step(method)
    if fixed:
        refuse(
            f"{method} steps on a grid (steps=) and has no tolerance, budget or nfe plan",
            rtol=options["rtol"],
            atol=options["atol"],
            max_nfe=max_nfe,
            nfe=levels.nfe,
        )
        sigmas = levels.passed(levels.required(method))
    else:
        if levels.steps is not None or levels.grid is not None or levels.timesteps is not None:
            raise ValueError(
                f"{method} chooses its own steps: drop steps, timesteps or grid (rtol=, atol= and nfe= or "
                "max_nfe= govern it)"
            )
        sigmas = levels.ends()
    rtol, atol = tolerance("rtol", options["rtol"]), tolerance("atol", options["atol"])
    if not rtol + atol > 0:
        raise ValueError("rtol=0 and atol=0 together ask for an exact solve; raise one of them")
    limit = levels.nfe or count("max_nfe", DEFAULT_MAX_NFE if max_nfe is None else max_nfe)
    lands = sigmas[-1] == 0
    positive = sigmas[:-1] if lands else sigmas
    ode = ProbabilityFlow(
        model,
        variable="log_sigma" if np.isfinite(positive).all() else "t",
        shape=x.shape[1:],
        dtype=x.dtype,
        device=x.device,
        **request.problem.conditions,
    )
    if not levels.rising:
        warn_of_start(x, float(positive[0]), model)
    end = End(x, None)
    with progress_bar(options["progress"], unit="nfe", desc=method) as bar:
        if len(positive) > 1 and x.shape[0]:
            package, name = method.split(":", 1)
            most = sys.maxsize if fixed else limit - int(lands)
            budget = _Budget(ode, most, bar.update)
            if package == "scipy":
                end = _scipy(name, budget, x, positive, rtol, atol)
            else:
                adjoint = options["differentiable"] == "adjoint"
                wanted = parameters(request.problem) if adjoint else None
                end = _torchdiffeq(name, budget, x, positive, rtol, atol, wanted)
    out, calls, rows, accepted = end.x, ode.nfe, ode.rows, end.accepted
    if lands and end.failure is None and x.shape[0]:
        out = request.problem(out, positive[-1])[0]
        calls, rows, accepted = calls + 1, rows + model.rows(positive[-1]), accepted + 1
    if not levels.rising:
        warn_of_scale(out, max(float(positive[0]), model.sigma_max))
    return Solution.of(
        out,
        calls,
        method=method,
        sigmas=sigmas,
        net_evals=rows * len(x),
        accepted=accepted,
        rejected=end.rejected,
        seeds=options["seeds"],
        outcome=end.failure or SUCCESS,
        finite=finite_samples(out),
        alterations=model.alterations,
    )


class _Budget:
    """The ODE with a limit on its calls."""

    stop: type[Exception] = _Stop

    def __init__(self, ode: ProbabilityFlow, limit: int, observe: Callable[[], object]) -> None:
        self.ode, self.limit, self.observe = ode, limit, observe

    def turn_back(self) -> None:
        """From here on the calls are those of an adjoint, which has the same budget once more."""
        self.limit += self.ode.nfe
        self.stop, self.observe = RuntimeError, lambda: None  # there is no status to report it in

    def __call__(self, tau: float | Tensor, state: Tensor) -> Tensor:
        if self.ode.nfe >= self.limit:
            raise self.stop(MAX_NFE)
        number = float(tau.detach() if isinstance(tau, Tensor) else tau)
        if math.isnan(number):  # a step size computed from NaN
            raise self.stop(NON_FINITE)
        rate = self.ode(tau, state)
        self.observe()
        return rate


class _Watched(_Budget):
    """The same with torchdiffeq's callbacks: counts steps, knows the last accepted state."""

    accepted = rejected = 0
    last: tuple[float, Tensor] | None = None

    def callback_step(self, tau: Tensor, state: Tensor, step: Tensor) -> None:
        self.last = (float(tau), state)  # a step starts from the last accepted state

    def callback_accept_step(self, tau: Tensor, state: Tensor, step: Tensor) -> None:
        self.accepted += 1

    def callback_reject_step(self, tau: Tensor, state: Tensor, step: Tensor) -> None:
        self.rejected += 1


def _torchdiffeq(
    name: str,
    budget: _Budget,
    x: Tensor,
    sigmas: Array,
    rtol: float,
    atol: float,
    adjoint: Sequence[Tensor] | None,
) -> End:
    """adjoint: the tensors besides x whose gradient torchdiffeq's adjoint gives; None for no adjoint."""
    from torchdiffeq import odeint, odeint_adjoint
    from torchdiffeq._impl.odeint import SOLVERS
    from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver

    ode = budget.ode
    fixed = is_fixed_step(f"torchdiffeq:{name}")
    levels = sigmas if fixed else sigmas[[0, -1]]
    taus = torch.tensor([ode.tau(s) for s in levels], dtype=torch.float64, device=x.device)
    options: dict[str, Any] = {}
    if issubclass(SOLVERS[name], RKAdaptiveStepsizeODESolver):
        budget = _Watched(ode, budget.limit, budget.observe)
        # By itself torchdiffeq steps past the end and interpolates back; the network ends at σ_min.
        options = dict(step_t=taus[-1:], norm=ode.norm)
    failure = None
    try:
        state = ode.to_state(x, levels[0])
        settings: dict[str, Any] = dict(rtol=rtol, atol=atol, method=name, options=options)
        if adjoint is None:
            path = odeint(budget, state, taus, **settings)
        else:
            settings |= dict(adjoint_params=adjoint, adjoint_options={})
            path = odeint_adjoint(budget, state, taus, **settings)
            budget.turn_back()
        end = ode.to_x(path[-1], taus[-1])
    except _Stop as stop:
        failure = str(stop)
    except AssertionError as error:  # torchdiffeq asserts that its step does not underflow
        if "underflow" not in str(error) and "non-finite" not in str(error):
            raise
        failure = UNDERFLOW
    if isinstance(budget, _Watched):
        if failure is not None and budget.last is not None:
            tau, state = budget.last
            x = ode.to_x(state, tau)
        accepted, rejected = budget.accepted, budget.rejected
    else:
        accepted, rejected = (len(levels) - 1 if fixed and failure is None else 0), 0
    return End(x if failure is not None else end, failure, accepted, rejected)


def _scipy(name: str, budget: _Budget, x: Tensor, sigmas: Array, rtol: float, atol: float) -> End:
    import scipy.integrate

    ode = budget.ode
    solver_class: type[OdeSolver] = getattr(scipy.integrate, one_of("scipy solver", name, OF_SCIPY))
    start, end = ode.tau(sigmas[0]), ode.tau(sigmas[-1])
    y0 = ode.to_state(x, sigmas[0]).reshape(-1).double().cpu().numpy()
    if not np.isfinite(y0).all():
        return End(x, NON_FINITE)
    accepted, failure = 0, None

    def back(tau: float, state: Array) -> Tensor:
        return ode.to_x(state, tau).to(x)

    def rate(tau: float, state: Array) -> Array:
        out: Array = budget(tau, state)  # type: ignore[arg-type, assignment]
        if not np.isfinite(out).all():
            raise _Stop(NON_FINITE)  # scipy's step control loops for ever on NaN
        return out

    tau, state = start, y0
    try:
        least = 100 * np.finfo(float).eps
        solver = solver_class(rate, start, y0, end, rtol=max(rtol, least), atol=atol)
        while solver.status == "running":
            solver.step()
            if solver.status == "failed":
                failure = UNDERFLOW
                break
            accepted += 1
            tau, state = float(solver.t), solver.y
    except _Stop as stop:
        failure = str(stop)
    return End(back(tau, state), failure, accepted)
