"""Adaptive solves behind :func:`ddim_ode.sample`: when a method is adaptive, how, and what comes out.

The solve itself: active_set.py (tensors), solvers/controller.py and solvers/clock.py (numbers).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .._base.bars import progress_bar
from .._base.checks import count, flag, number, one_of, shown
from ..solvers.clock import SMOOTH, logarithmic
from ..solvers.controller import SUCCESS, Controller
from ..solvers.embedded import embedded_pair, scheme_of
from .active_set import Field, OneCall, Released, Solver
from .multistep import GAINS, MultistepSolver
from .request import Request
from .solution import Solution, warn_of_scale, warn_of_start

DEFAULT_TOLERANCE, DEFAULT_MAX_NFE = 1e-3, 500
ERROR_NORMS = ("sample", "batch")


def solve(request: Request) -> Solution:
    """A request of kind "adaptive".

    Raises:
        ValueError: A tolerance, error norm or budget that is out of range.
    """
    model, x, method, levels = request.model, request.x, request.spec, request.levels
    options, record = request.options, request.options["record"]
    assert method is not None
    tolerances = tolerance("rtol", options["rtol"]), tolerance("atol", options["atol"])
    norm = "sample" if options["error_norm"] is None else options["error_norm"]
    joint = one_of("error_norm", norm, ERROR_NORMS) == "batch"
    dense = options["dense"] is None or flag("dense", options["dense"])
    given = options["max_nfe"]
    limit = DEFAULT_MAX_NFE if given is None else count("max_nfe", given)
    pair = embedded_pair(method)
    if pair is None and model.snap:
        raise ValueError(
            f"{method.name} with rtol=, atol= or max_nfe= steps where its x̂₀'s say, and snap=True allows "
            "trained levels alone: give steps= or nfe= for a fixed plan, or take rk45"
        )
    scheme = OneCall() if pair is None else scheme_of(pair)
    sigmas = levels.ends(scheme.cost)
    first, last = float(sigmas[0]), float(sigmas[1])
    clock = logarithmic(max(first, last)) if pair is None else SMOOTH
    ends = clock.of(np.array([first, last]))
    if not levels.rising:
        warn_of_start(x, first, model)
    batch = x.shape[0]
    control = Controller(
        batch,
        abs(ends[0] - ends[1]),
        error_order=scheme.error_order,
        cost=scheme.cost,
        limit=limit if levels.nfe is None else levels.nfe,
        stretch=levels.nfe is not None,
        joint=joint,
        resolution=4 * float(np.spacing(abs(ends).max())),
        gains=GAINS if pair is None else None,
    )
    z = x / float(np.hypot(*model.schedule.scales(first)))
    field = Field(request.problem, (first, last), clock)
    kept, lands = dense or record != "none", bool(sigmas[-1] == 0)
    how = (control, tolerances, kept, lands)
    solver = (
        MultistepSolver(field, z, method, *how) if pair is None else Solver(field, z, scheme, *how)
    )
    if not x.numel():  # nothing to ask the network
        control.status[:] = SUCCESS
    else:
        with progress_bar(options["progress"], unit="nfe", desc=method.name) as bar:
            solver.run(bar.update)
    end, error = gathered(solver.released, x)
    trajectory = None
    if record != "none" and solver.path is not None:
        trajectory = solver.path.trajectory(record, end, solver.sigmas)
    if not levels.rising:
        warn_of_scale(end, max(first, model.sigma_max))
    return Solution.of(
        end,
        solver.nfe,
        method=method.name,
        sigmas=[np.array(passed) for passed in solver.sigmas],
        sample_nfe=control.calls,
        net_evals=solver.rows,
        accepted=control.accepted,
        rejected=control.rejected,
        error=error,
        trajectory=trajectory,
        seeds=options["seeds"],
        outcome=control.status,
        path=solver.path if dense else None,
        alterations=model.alterations,
    )


def tolerance(name: str, value: float | None) -> float:
    """A tolerance, its default if not given; ValueError unless it is a number >= 0."""
    if value is None:
        return DEFAULT_TOLERANCE
    if not 0 <= (found := number(name, value)) < np.inf:
        raise ValueError(f"{name}={shown(value)} must be a finite number >= 0")
    return found


def gathered(released: Sequence[Released], x: Tensor) -> tuple[Tensor, Tensor]:
    """End states (B, *) and errors (B,) in the order of the batch."""
    if not released:
        return x, x.new_zeros(x.shape[0])
    order = np.argsort(np.concatenate([part.samples for part in released]))
    rows = torch.as_tensor(order, device=x.device)
    ends, errors = (
        torch.cat([getattr(part, name) for part in released]) for name in ("x", "error")
    )
    return ends[rows], errors[rows]
