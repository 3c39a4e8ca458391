"""Adaptive solves behind :func:`ddim_ode.sample`: when a method is adaptive, how, and what comes out.

The solve itself: active_set.py (tensors), solvers/controller.py and solvers/clock.py (numbers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._base.bars import progress_bar
from .._base.checks import count, number, one_of, shown
from ..denoising.denoiser import Denoiser
from ..solvers.clock import clock
from ..solvers.controller import SUCCESS, Controller
from ..solvers.embedded import adaptive_by_itself, embedded_pair, scheme_of
from ..solvers.methods import Method
from .active_set import Field, Released, Solver
from .levels import Levels
from .solution import Solution, warn_of_scale

DEFAULT_TOLERANCE, DEFAULT_MAX_NFE = 1e-3, 500
ERROR_NORMS = ("sample", "batch")


class Options(NamedTuple):
    """How an adaptive solve is controlled; the arguments of :func:`ddim_ode.sample` of those names."""

    rtol: float = DEFAULT_TOLERANCE
    atol: float = DEFAULT_TOLERANCE
    max_nfe: int | None = None
    error_norm: str = "sample"
    record: str = "none"
    dense: bool = True


def error_norm(given: Any) -> str:
    """That norm, ``"sample"`` for None; ValueError for one that is not known."""
    return "sample" if given is None else one_of("error_norm", given, ERROR_NORMS)


def is_adaptive(method: Method, asked: bool, placed: bool) -> bool:
    """Whether to solve adaptively: ``asked`` for a tolerance or budget, or steps not ``placed``.

    heun only if asked. ValueError for both.
    """
    able = embedded_pair(method) is not None
    if asked and placed and able:
        raise ValueError(
            f"{method.name} with rtol=, atol= or max_nfe= chooses its own steps: drop steps, grid and "
            "timesteps, or drop rtol, atol and max_nfe for a fixed plan"
        )
    return able and (asked or (adaptive_by_itself(method) and not placed))


def solve(
    model: Denoiser,
    x: Tensor,
    method: Method,
    levels: Levels,
    options: Options,
    seeds: list[int] | None,
    cond: Mapping[str, Tensor] | None,
    shared: Mapping[str, Any] | None,
    progress: bool,
) -> Solution:
    """What :func:`ddim_ode.sample` and ``encode`` do adaptively; x (B, *) in network space at the first
    level.

    ValueError for a budget that is no whole number >= 1.
    """
    limit = DEFAULT_MAX_NFE if options.max_nfe is None else count("max_nfe", options.max_nfe)
    pair = embedded_pair(method)
    assert pair is not None  # is_adaptive said so
    scheme = scheme_of(pair)
    sigmas = levels.ends(scheme.cost)
    first, last = float(sigmas[0]), float(sigmas[1])
    ends = clock(np.array([first, last]))
    batch = x.shape[0]
    control = Controller(
        batch,
        abs(ends[0] - ends[1]),
        error_order=scheme.error_order,
        cost=scheme.cost,
        limit=limit if levels.nfe is None else levels.nfe,
        stretch=levels.nfe is not None,
        joint=options.error_norm == "batch",
        resolution=4 * float(np.spacing(abs(ends).max())),
    )
    z = x / float(np.hypot(*model.schedule.scales(first)))
    solver = Solver(
        Field(model, (first, last)),
        z,
        scheme,
        control,
        (options.rtol, options.atol),
        options.dense or options.record != "none",
        bool(sigmas[-1] == 0),
        cond,
        shared,
    )
    if not x.numel():  # nothing to ask the network
        control.status[:] = SUCCESS
    else:
        with progress_bar(progress, unit="nfe", desc=method.name) as bar:
            solver.run(bar.update)
    end, error = gathered(solver.released, x)
    trajectory = None
    if options.record != "none" and solver.path is not None:
        trajectory = solver.path.trajectory(options.record, end, solver.sigmas)
    if not levels.rising:
        warn_of_scale(end, max(first, model.sigma_max))
    return Solution(
        x=end,
        method=method.name,
        sigmas=[np.array(passed) for passed in solver.sigmas],
        nfe=solver.nfe,
        sample_nfe=control.calls,
        net_evals=solver.rows,
        accepted=control.accepted,
        rejected=control.rejected,
        error=error,
        trajectory=trajectory,
        seeds=seeds,
        outcome=control.status,
        path=solver.path if options.dense else None,
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
