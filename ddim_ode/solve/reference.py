"""Where the ODE takes given noises: converged solutions, with an error estimate of their own.

The path is the limit of many steps of :func:`ddim_ode.sample`: by the ODE to the schedule's default σ_min,
and from there by the last jump to x̂₀, whatever cut a method under test uses. The state is float64; the
network is called in its own precision. The number of steps is raised until two solutions in a row differ by
no more than the goal. Their difference is the error of the coarser one, and an upper estimate of that of
the finer one, which is the reference. A trained network is rough in σ, where it converges at first order
with any method: so nothing is extrapolated, and √2 between step counts is cheaper than 2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..denoising.denoiser import Denoiser
from ..denoising.problem import Problem
from ..grids import make_grid
from ..schedules.schedule import Array
from ..solvers.compilation import plan as compile_plan
from ..solvers.methods import Method
from ..solvers.plan import Plan
from .cache import NOWHERE, Store
from .model_key import is_exact, network_dtype
from .near import NOTHING, Near
from .sampling import sample
from .solution import norm_per_sample

# UniPC of order 4 in the flow chart and its own clock, both finite at σ = inf. With 400 steps it errs by
# 1e-9 to 1e-6 on a 1-D mixture and nine schedules; unipc3, in the data chart, by 2e-6 to 2e-5 at σ = inf.
METHOD = Method("UniPC-4", order=4, chart="flow", past=3, ruler="fraction", corrector=True)
STEPS: tuple[int, ...] = (200, 400, 566, 800, 1131, 1600)
GOAL, EXACT_GOAL = 1.5e-4, 1e-6  # of the solution's RMS; for exact mixtures, which cost little


@dataclass(repr=False)
class Reference:
    """Converged solutions, and how far they are from converged.

    Attributes:
        x: (n, *shape) float64 on the CPU, NaN where a sample has none.
        gap: (n,) RMS over a sample's entries of what the last refinement moved it by.
        solver: How, in words.
        nfe: Sequential network calls, all refinements together, the mean over batches.
        net_evals: Rows the network processed.
        seconds: Wall time, when it was made.
    """

    x: Tensor
    gap: Array
    solver: str
    nfe: float
    net_evals: int
    seconds: float

    @property
    def error(self) -> float:
        """The mean over samples of ``gap``; NaN if no sample has a reference."""
        finite = self.gap[np.isfinite(self.gap)]
        return float(finite.mean()) if finite.size else float("nan")

    def __repr__(self) -> str:
        return f"Reference({self.solver}, {len(self.gap)} samples, error {self.error:.1e})"


def given(x: Tensor, n: int, shape: Sequence[int]) -> Reference:
    """A solution the caller knows, (n, *shape), taken as free of error.

    Raises:
        ValueError: It has another shape.
    """
    if tuple(x.shape) != (n, *shape):
        raise ValueError(f"reference has shape {tuple(x.shape)}; give (n, *shape) = {(n, *shape)}")
    x = x.detach().cpu().double()
    gap = torch.where(torch.isfinite(norm_per_sample(x)), 0.0, torch.nan).numpy()
    return Reference(x, gap, "given", 0.0, 0, 0.0)


def joined(parts: Sequence[Reference]) -> Reference:
    """The references of several batches as one."""
    return Reference(
        torch.cat([part.x for part in parts]),
        np.concatenate([part.gap for part in parts]),
        max((part.solver for part in parts), key=lambda s: (len(s), s)),
        float(np.average([part.nfe for part in parts], weights=[len(part.gap) for part in parts])),
        sum(part.net_evals for part in parts),
        sum(part.seconds for part in parts),
    )


def in_float64(model: Denoiser) -> Denoiser:
    """The same denoiser for float64 states: the network sees its own precision."""
    return model.replace(dtype=network_dtype(model))


def plans(model: Denoiser) -> list[Plan]:
    """The solves of a reference, coarse to fine."""
    schedule, steps = model.schedule, STEPS
    grid = "karras" if np.isfinite(model.sigma_max) else "quadratic"
    if model.snap:  # all trained levels, and before that every other one
        grid, steps = "time", (int(schedule.T) // 2, int(schedule.T))
    out = []
    for n in steps:
        sigmas = make_grid(grid, schedule, n, sigma_max=model.sigma_max)
        if model.snap:
            sigmas = np.append(model.snapped(sigmas[:-1]), 0.0)
        out.append(compile_plan(METHOD, schedule, sigmas, start="ramp" if model.snap else None))
    return out


def solve(
    problem: Problem,
    x: Tensor,
    *,
    goal: float | None = None,
    store: Store = NOWHERE,
    origin: tuple[list[Any], Near] = ([], NOTHING),
    observe: Callable[[int], object] = lambda rows: None,
) -> Reference:
    """The reference of one batch of noises.

    Args:
        problem: The model and its conditions.
        x: The noises (B, *).
        goal: The RMS difference of two solutions to stop at (default: 1.5e-4 of the solution's own RMS, and
            1e-6 for exact mixtures). If the finest does not reach it, ``error`` says so.
        store: Keeps each solve.
        origin: Which model, noises and conditions these are, in exact parts and in numbers.
        observe: observe(rows) is called with the network rows of each solve.
    """
    parts, near = origin
    share = EXACT_GOAL if is_exact(problem.model) else GOAL
    problem, x = replace(problem, model=in_float64(problem.model)), x.double()
    before: Tensor | None = None
    gap: npt.NDArray[np.float64] = np.full(x.shape[0], np.nan)
    calls, rows, seconds, counts = 0, 0, 0.0, []
    for plan in plans(problem.model):
        exact = [*parts, METHOD, plan.steps]
        if kept := store.get("solution", exact, near):
            end, cost = kept[0]["x"], kept[1]
        else:
            end, cost = _solution(problem, x, plan)
            store.put("solution", exact, near, {"x": end}, cost)
            observe(cost["net_evals"])
        calls, rows = calls + cost["nfe"], rows + cost["net_evals"]
        seconds += cost["seconds"]
        counts.append(plan.steps)
        if before is not None:
            gap = norm_per_sample(end - before).numpy()
            finite = np.isfinite(gap)
            size = float(norm_per_sample(end)[finite].mean()) if finite.any() else 0.0
            if not finite.any() or gap[finite].mean() <= (share * size if goal is None else goal):
                break
        before = end
    finite = np.isfinite(gap)
    x0 = end.clone()
    x0[torch.from_numpy(~finite)] = torch.nan
    solver = f"{METHOD.name}, {counts[-1]} against {counts[-2]} steps"
    return Reference(x0, gap, solver, calls, rows, seconds)


def aims(goal: float | None) -> list[Any]:
    """What decides a reference beside the problem."""
    return [METHOD, STEPS, GOAL, EXACT_GOAL, goal]


def _solution(problem: Problem, x: Tensor, plan: Plan) -> tuple[Tensor, dict[str, Any]]:
    """The end of one solve, on the CPU, and what it cost."""
    started = time.perf_counter()
    with np.errstate(invalid="ignore"):  # inf − inf, in a check of grids that start at σ = inf
        sol = sample(problem.model, x, plan=plan, **problem.conditions)
    end = sol.x.detach().cpu()
    seconds = time.perf_counter() - started
    return end, dict(nfe=sol.nfe, net_evals=sol.net_evals, seconds=seconds)
