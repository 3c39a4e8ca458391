"""One look at a model: a coarse and a fine solve of a few noises, of which a surrogate is made.

The coarse solve has even steps in ln σ. A surrogate of what it saw chooses the method and the grid of the
fine one, whose ends are the reference and whose x̂₀ the final surrogate keeps; how the two solves differ at
the coarse one's levels says how the model answers a disturbance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..denoising.denoiser import Denoiser
from ..denoising.problem import Problem
from ..schedules.schedule import Array, Schedule
from ..solvers.compilation import plan as compile_plan
from ..solvers.design import designed, named
from ..solvers.methods import METHODS, Method
from ..solvers.plan import Plan
from ..solvers.ruler import Ruler
from ..solvers.surrogate import Surrogate
from .fixed import x0_of
from .loop import integrate
from .reference import METHOD, in_float64
from .solution import norm_per_sample

COARSE, FINE = 16, 44  # calls
# The fine solve may end so much above the smallest level, where trained networks answer with next to x.
_LOWEST = 5.01
_FINITE = ("unipc2", "unipc3", "deis3")


@dataclass(frozen=True, eq=False)
class Look:
    """surrogate: what was seen, as numbers. ends (n, *): where the noises go, float64 on the CPU, NaN where
    a solve was not finite. error: what the fine solve says of its own, the mean over noises. net_evals:
    rows the network processed. solver: of the fine solve.
    """

    surrogate: Surrogate
    ends: Tensor
    error: float
    net_evals: int
    solver: str


@dataclass(frozen=True, eq=False)
class _Seen:
    """A solve of some noises (n, *): the states shown to the network, the x̂₀ it answered with, the end, and
    its own estimate of the error (n,)."""

    plan: Plan
    states: list[Tensor]
    x0: list[Tensor]
    end: Tensor
    error: Array

    def basis(self, schedule: Schedule, row: int) -> Tensor:
        """(K+1, D) The normed start and the x̂₀ of one noise."""
        first = float(np.hypot(*schedule.scales(self.plan.grid[0])))
        kept = [self.states[0][row] / first, *(x0[row] for x0 in self.x0)]
        return torch.stack(kept).reshape(len(kept), -1)


def look(problem: Problem, x: Tensor, batch: int, observe: Callable[[int], object]) -> Look:
    """Solve the noises x (n, *) twice; observe(rows) is told the network rows of each batch.

    Raises:
        ValueError: More than half of the noises have no finite end.
    """
    model = problem.model
    exact = replace(problem, model=in_float64(model))
    parts = torch.arange(len(x)).split(batch)
    evals = 0

    def solved(plan: Plan, part: Tensor) -> _Seen:
        nonlocal evals
        rows = len(part) * model.rows([node.sigma for node in plan.nodes])
        evals += rows
        observe(rows)
        return _solved(exact.rows(part), x[part].double(), plan)

    coarse_plan = _coarse(model)
    coarse = [solved(coarse_plan, part) for part in parts]
    first = _surrogate(model, coarse)
    fine_plan = finest(model, first, FINE)
    # One part at a time: only the coarse solves stay in memory.
    grams, secants, ends, errors = [], [], [], []
    for part, before in zip(parts, coarse):
        seen = solved(fine_plan, part)
        ends.append(seen.end.cpu())
        errors.append(seen.error)
        moved = norm_per_sample(seen.end - before.end).cpu().numpy()
        good = np.flatnonzero(np.isfinite(moved)).tolist()
        grams += [_gram(seen.basis(model.schedule, row)) for row in good]
        if good:
            blank = _blank(model, fine_plan, np.eye(len(seen.x0) + 1))
            secants += [_secants(blank, before, seen, row) for row in good]
    if 2 * len(grams) < len(x):
        raise ValueError(
            f"{len(x) - len(grams)} of {len(x)} noises have no finite end: the network returns NaN or inf "
            "there; ask ddim_ode.diagnose(model) first"
        )
    surrogate = _blank(model, fine_plan, np.mean(grams, axis=0))
    gain, response = _response(surrogate, np.array(coarse_plan.grid[:-1]), np.sum(secants, axis=0))
    surrogate = replace(surrogate, gain=gain, response=response)
    said = f"{fine_plan.method}, {fine_plan.nfe} calls"
    error = float(np.nanmean(np.concatenate(errors)))
    return Look(surrogate, torch.cat(ends), error, evals, said)


def _coarse(model: Denoiser) -> Plan:
    """Even steps in ln σ, which flattens towards σ = inf, down to the smallest level."""
    top, bottom = model.sigma_max, model.schedule.least_cut
    ruler = Ruler.up_to(top)
    levels = ruler.inverse(np.linspace(ruler.of(top), ruler.of(bottom), COARSE))
    levels[0], levels[-1] = top, bottom
    method = METHODS["unipc2"] if np.isfinite(top) else METHOD
    return _compiled(model, method, np.append(levels, 0.0))


def finest(model: Denoiser, surrogate: Surrogate, calls: int, *, own: bool = False) -> Plan:
    """The plan of a named grid that goes far down, of which the surrogate expects the least error.

    own: on levels that the surrogate makes of those, where it expects less of them."""
    methods = [METHODS[name] for name in _FINITE] if np.isfinite(model.sigma_max) else [METHOD]
    best: tuple[float, Method, Plan] | None = None
    for _, levels in named(surrogate, calls):
        if levels[-2] > _LOWEST * model.schedule.least_cut:
            continue
        for method in methods:
            try:
                plan = _compiled(model, method, levels)
            except ValueError:  # levels that snap to too few
                continue
            error = surrogate.error(plan)
            if best is None or error < best[0]:
                best = error, method, plan
    if best is None:
        return _compiled(model, methods[0], surrogate.levels)
    _, method, plan = best
    if not own or model.snap:
        return plan
    levels = designed(surrogate, method, np.array(plan.grid), begin=plan.start).levels
    return _compiled(model, method, levels)


def _compiled(model: Denoiser, method: Method, levels: Array) -> Plan:
    if model.snap:
        levels = np.append(np.unique(model.snapped(levels[levels > 0]))[::-1], 0.0)
    start = None if method.past < 3 else "ramp"  # without calls beside those at the levels
    return compile_plan(method, model.schedule, levels, start=start)


def _solved(problem: Problem, x: Tensor, plan: Plan) -> _Seen:
    states: list[Tensor] = []
    x0: list[Tensor] = []

    def after_call(k: int, y: Tensor, vector: Tensor) -> None:
        states.append(y)
        x0.append(x0_of(problem.model, plan.nodes[k], y, vector))

    with torch.no_grad(), np.errstate(invalid="ignore"):
        evaluate = problem.bind(plan.nodes, x)
        outcome = integrate(plan, evaluate, x, after_call=after_call)
    error = norm_per_sample(outcome.error if outcome.error is not None else outcome.x * torch.nan)
    return _Seen(plan, states, x0, outcome.x, error.cpu().numpy())


def _gram(basis: Tensor) -> Array:
    return (basis @ basis.T / basis.shape[1]).cpu().numpy()


def _blank(model: Denoiser, plan: Plan, gram: Array) -> Surrogate:
    """A surrogate on the levels of a plan that does not answer to disturbances."""
    levels = np.array(plan.grid[:-1])
    return Surrogate(model.schedule, levels, gram, np.zeros(len(levels)), np.zeros(len(levels)))


def _surrogate(model: Denoiser, coarse: list[_Seen]) -> Surrogate:
    """Of the coarse solves alone, as if data were Gaussian of the spread of the ends."""
    grams = [
        _gram(seen.basis(model.schedule, row))
        for seen in coarse
        for row in np.flatnonzero(np.isfinite(norm_per_sample(seen.end).cpu().numpy())).tolist()
    ]
    if not grams:
        raise ValueError(
            "no noise has a finite end: the network returns NaN or inf; ask ddim_ode.diagnose(model) first"
        )
    plan = coarse[0].plan
    found = _blank(model, plan, np.mean(grams, axis=0))
    ends = torch.cat([seen.end for seen in coarse])
    spread = float(ends[torch.isfinite(ends)].std(correction=0))
    gain = spread**2 / (spread**2 + found.levels**2)
    return replace(found, gain=gain, response=gain)


def _secants(surrogate: Surrogate, before: _Seen, seen: _Seen, row: int) -> Array:
    """(3, k) of one noise at the coarse levels: |δ|², ⟨δx̂₀, δ⟩ and |δx̂₀|², with δ = δx/ᾱ."""
    schedule, levels = surrogate.schedule, np.array(before.plan.grid[:-1])
    alpha, beta = schedule.scales(levels)
    x0, state = surrogate.path(levels)
    basis = seen.basis(schedule, row)
    on_path = [
        torch.from_numpy(table).to(basis) @ basis
        for table in (x0, state * np.hypot(alpha, beta)[:, None])
    ]
    found = np.zeros((3, len(levels)))
    for k in range(1, len(levels)):
        # below the last level of the fine solve there is no path
        if levels[k] >= surrogate.levels[-1] * (1 - 1e-9):
            moved = (before.states[k][row].reshape(-1) - on_path[1][k]) / float(alpha[k])
            answered = before.x0[k][row].reshape(-1) - on_path[0][k]
            found[:, k] = [
                float(moved @ moved),
                float(moved @ answered),
                float(answered @ answered),
            ]
    return found


def _response(surrogate: Surrogate, levels: Array, secants: Array) -> tuple[Array, Array]:
    """Gain and response at the surrogate's levels, by interpolation of those at the coarse ones."""
    square, product, answer = secants
    seen = square > 0
    if not seen.any():
        return np.zeros(len(surrogate.levels)), np.zeros(len(surrogate.levels))
    at = surrogate.ruler.of(levels[seen])[::-1]
    gain, response = product[seen] / square[seen], np.sqrt(answer[seen] / square[seen])
    r = surrogate.ruler.of(surrogate.levels)
    found = [np.interp(r, at, values[::-1]) for values in (gain, response)]
    return found[0], found[1]
