"""Where the ODE takes the noises of a calibration: what its samplers are held against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..denoising.problem import Problem
from ..solve.planning import plan_for
from ..solve.reference import METHOD, in_float64
from ..solve.sampling import sample
from ..solve.solution import norm_per_sample
from ..solvers.methods import Method
from .fitting import finite_mean
from .search import Effort


def references(
    conditioned: Problem,
    x: Tensor,
    effort: Effort,
    held: int,
    batch: int,
    observe: Callable[[int], object],
) -> tuple[Tensor, Tensor]:
    """Where the ODE takes the noises x from ``held`` on before the last refinement, and all after it.

    Only those held out, which tell how far it errs, are solved on coarser grids too. observe: told the
    network rows of each solve.
    """
    model = in_float64(conditioned.model)
    problem = replace(conditioned, model=model)
    # What is steady at a few dozen calls, on trained networks too: of our methods and grids these err
    # least there, of the order of 1e-3 of the data, where others need a hundred calls and more.
    method: str | Method = "unipc2"
    name, start = "log_snr", None
    if not math.isfinite(model.sigma_max) or model.snap:
        method, name, start = METHOD, "time", "ramp"
    steps = effort.reference
    if model.snap:
        most = len(model.schedule.levels)
        steps = tuple(dict.fromkeys(min(k, most) for k in steps))

    def solved(rows: Tensor, k: int) -> Tensor:
        plan = plan_for(model, method, steps=k, grid=name, start=start)
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
        ends.append(solved(few, k))
        if len(ends) > 1:
            gap, size = (finite_mean(norm_per_sample(y)) for y in (ends[-1] - ends[-2], ends[-1]))
            if gap <= effort.goal * size:
                break
    # on all of its levels a model that snaps has no finer solution
    return ends[max(0, len(ends) - 2)], torch.cat([solved(others, k), ends[-1]])
