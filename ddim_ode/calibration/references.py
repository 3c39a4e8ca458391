"""Where the ODE takes the noises of a calibration: what its samplers are held against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..denoising.denoiser import Denoiser
from ..denoising.problem import Problem
from ..solve.look import finest
from ..solve.planning import plan_for
from ..solve.reference import METHOD, in_float64
from ..solve.sampling import sample
from ..solve.solution import norm_per_sample
from ..solvers.plan import Plan
from ..solvers.surrogate import Surrogate
from .fitting import finite_mean
from .search import Effort

_LEAST = 16  # noises, of which a surrogate has seen two: one alone may mislead


def plan_of(model: Denoiser, steps: int, surrogate: Surrogate | None) -> Plan:
    """The plan of a solve, on the surrogate's grid where there is one."""
    if surrogate is not None:
        return finest(model, surrogate, steps, own=True)
    # What is steady at a few dozen calls, on trained networks too: of our methods and grids these err
    # least there, of the order of 1e-3 of the data, where others need a hundred calls and more.
    if math.isfinite(model.sigma_max) and not model.snap:
        return plan_for(model, "unipc2", steps=steps, grid="log_snr")
    return plan_for(model, METHOD, steps=steps, grid="time", start="ramp")


def references(
    conditioned: Problem,
    x: Tensor,
    effort: Effort,
    surrogate: Surrogate | None,
    held: int,
    batch: int,
    observe: Callable[[int], object],
) -> tuple[Tensor, Tensor]:
    """Where the ODE takes the noises x from ``held`` on before the last refinement, and all after it.

    Only those held out, which tell how far it errs, are solved on coarser grids too. surrogate: makes the
    grids, where the effort asks for such. observe: told the network rows of each solve.
    """
    model = in_float64(conditioned.model)
    problem = replace(conditioned, model=model)
    if not effort.designed or model.snap or len(x) < _LEAST:
        surrogate = None
    steps = effort.reference if surrogate is None else effort.designed
    if model.snap:
        most = len(model.schedule.levels)
        steps = tuple(dict.fromkeys(min(k, most) for k in steps))

    def solved(rows: Tensor, plan: Plan) -> Tensor:
        parts = []
        for part in rows.split(batch):
            own = problem.rows(part)
            with np.errstate(invalid="ignore"):
                sol = sample(own.model, x[part].double(), plan=plan, **own.conditions)
            parts.append(sol.x.to(x.dtype))
            observe(sol.net_evals)
        return torch.cat(parts)

    others, few = torch.arange(len(x)).split([held, len(x) - held])
    ends: list[Tensor] = []
    for k in steps:
        plan = plan_of(model, k, surrogate)
        ends.append(solved(few, plan))
        if len(ends) > 1:
            gap, size = (finite_mean(norm_per_sample(y)) for y in (ends[-1] - ends[-2], ends[-1]))
            if gap <= effort.goal * size:
                break
    # on all of its levels a model that snaps has no finer solution
    return ends[max(0, len(ends) - 2)], torch.cat([solved(others, plan), ends[-1]])
