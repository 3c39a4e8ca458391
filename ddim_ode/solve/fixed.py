"""Fixed-step solves: a plan, run on tensors, and what is watched on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .._base.bars import progress_bar
from ..denoising.denoiser import Denoiser
from ..denoising.seeding import StepNoise, drawn_ahead
from ..solvers.chart import convert
from ..solvers.plan import Node, Plan
from . import gradients
from .brownian import PathNoise
from .loop import Progress, integrate
from .planning import plan_of
from .request import Request
from .solution import Solution, norm_per_sample, warn_of_scale, warn_of_start


def solve(request: Request) -> Solution:
    """Run the plan of a request of kind "plan" or "fixed"."""
    return run(request, plan_of(request))


def run(request: Request, plan: Plan) -> Solution:
    """What comes of that plan, with the request's noise, conditions and watching."""
    model, x, options = request.model, request.x, request.options
    record, callback, batch = options["record"], options["callback"], x.shape[0]
    seeds, draw = _step_noise(request, plan)
    if plan.grid[0] > plan.grid[-1]:
        warn_of_start(x, plan.grid[0], model)
    evaluate = request.problem.bind(plan.nodes, x)
    if options["differentiable"] == "checkpoint":
        evaluate = gradients.checkpointed(evaluate)
    if batch == 0:  # nothing to ask the network
        evaluate = lambda y, k: y  # noqa: E731

    alterations, project, known = model.alterations, None, options["known"]
    if known is not None:
        alterations = {**alterations, "known": True}
        project = known.bind(plan.grid, model.schedule, x)

    trajectory = _Trajectory(record, model, plan)
    if record == "x":
        trajectory.kept.append(x if project is None else project(x, 0))
    progress = options["progress"]
    bar = progress_bar(True, total=plan.nfe, unit="nfe", desc=plan.method) if progress else None

    def after_call(k: int, y: Tensor, vector: Tensor) -> None:
        if bar is not None:
            bar.update()
        trajectory.after_call(k, y, vector)

    def after_step(step: Progress) -> None:
        if record == "x":
            trajectory.kept.append(step.x)
        if callback is not None:
            callback(step)

    with bar or contextlib.nullcontext():
        end, finite, calls, error = integrate(
            plan,
            evaluate,
            x,
            draw=draw,
            hold=options["on_nan"] == "hold",
            project=project,
            after_call=after_call if progress or record == "x0" else None,
            after_step=after_step if record == "x" or callback is not None else None,
        )
    if plan.grid[0] > plan.grid[-1]:
        warn_of_scale(end, max(plan.grid[0], model.sigma_max))
    return Solution.of(
        end,
        calls,
        method=plan.method,
        sigmas=np.array(plan.grid),
        net_evals=batch * model.rows([node.sigma for node in plan.nodes]),
        accepted=plan.steps,
        plan=plan,
        grid=request.grid_name(plan.steps),
        error=None if error is None or known is not None else norm_per_sample(error),
        trajectory=trajectory.whole(end),
        seeds=seeds,
        finite=finite,
        alterations=alterations,
    )


def _step_noise(
    request: Request, plan: Plan
) -> tuple[list[int] | None, Callable[[], Tensor] | None]:
    """The seeds of a request, drawn where step noise needs some, and the noise of its steps; None for a
    plan without."""
    x, seeds = request.x, request.options["seeds"]
    by_path = request.options["noise"] == "path"
    if not plan.is_stochastic:
        return None if seeds is None else list(seeds), None
    if seeds is None and by_path:
        raise ValueError("noise='path' is one path per seed; give seeds=, one per sample")
    if seeds is None:
        seeds = torch.randint(2**63 - 1, (x.shape[0],)).tolist()
    spans = plan.draws()
    drawn = PathNoise(seeds, spans, x) if by_path else StepNoise(seeds, x)
    return list(seeds), drawn_ahead(drawn, len(spans), x) if x.shape[0] else drawn


class _Trajectory:
    """What ``record`` keeps: the states at the levels ("x"), the x̂₀ there ("x0"), or nothing (None)."""

    def __init__(self, record: str | None, model: Denoiser, plan: Plan) -> None:
        if record == "x0" and len({*np.sign(np.diff(plan.grid))}) > 1:
            raise ValueError(
                f"record='x0' has one x̂₀ for each level, and {plan.method!r} goes up to some by noise; "
                "use record='x'"
            )
        self.kept: list[Tensor] = []
        self._model, self._plan, self._of_x0 = model, plan, record == "x0"
        self._calls = set(plan.level_calls()) if self._of_x0 else set()

    def after_call(self, k: int, y: Tensor, vector: Tensor) -> None:
        if k in self._calls:
            self.kept.append(x0_of(self._model, self._plan.nodes[k], y, vector))

    def whole(self, end: Tensor) -> Tensor | None:
        """All of it (K+1, B, *), with what there is at the last level."""
        if self._of_x0:
            self.kept.append(end if self._plan.grid[-1] == 0 else self.kept[-1])
        return torch.stack(self.kept) if self.kept else None


def x0_of(model: Denoiser, node: Node, y: Tensor, vector: Tensor) -> Tensor:
    """x̂₀ (B, *) at y (B, *), of what a node stored there."""
    level = model.snapped(np.array([node.sigma]))
    a, b = convert(node.vector, "x0", *model.schedule.scales(level))
    return y * float(a[0]) + vector * float(b[0])
