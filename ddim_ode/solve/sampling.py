"""The front door: from noise to samples with any method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..denoising.denoiser import Denoiser
from ..solvers.methods import Method
from . import adaptive, external, fixed, reversible
from .request import Request, SolveOptions, lists_options
from .solution import Solution

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SOLVERS: dict[str, Callable[[Request], Solution]] = {
    "plan": fixed.solve,
    "fixed": fixed.solve,
    "adaptive": adaptive.solve,
    "external": external.solve,
    "reversible": reversible.solve,
}


@lists_options
def sample(
    model: Denoiser,
    x: Tensor,
    method: str | Method | None = None,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Integrate the sampling ODE from x at the grid's first level to its last.

    Args:
        model: The denoiser.
        x: (B, *) noise at the first level, in network space, as :func:`ddim_ode.noise` makes it.
        method: A name of :func:`ddim_ode.methods`, a :class:`ddim_ode.Method`, ``"torchdiffeq:NAME"`` or
            ``"scipy:NAME"`` (default ``"ddim"``).

    **Where it steps**, one of the first five:
        steps: Intervals of the grid.
        nfe: Network calls: the largest plan with at most so many.
        grid: An array of σ; or with steps or nfe the name of a spacing or a :class:`ddim_ode.Profile`
            (default: ``model.profile``, or without one :func:`ddim_ode.grids.default_spacing`).
        timesteps: τ in (0, T], counted from 1 also for a network on indices 0..T−1.
        plan: A compiled :class:`ddim_ode.Plan`.
        sigma_max: Where a named grid starts (default: ``model.sigma_max``).
        sigma_min: Its last level above 0.
        final: ``"zero"`` lands on x̂₀ with the last call (the default), ``"sigma_min"`` stops there.
        variant, start, chart: As in :func:`ddim_ode.plan`. (A multistep method stores its chart's vector:
            an x0-network started above σ ≈ 10³ in float32 keeps more digits in ``"data"`` or ``"flow"``.)

    **Noise:**
        eta: Step noise of ``ddim`` and of methods in chart "data": ς = η β̄' √(1 − (σ'/σ)²), a number or a
            function of σ (0: the ODE, 1: the reverse SDE; others' eta: ``ddim_ode.solvers.stochastic``).
        noise_std: One standard deviation a step instead, 0 ≤ ς ≤ β̄'. At ς = 0 nothing is drawn.
        noise: ``"step"``, fresh draws (the default), or ``"path"``: increments of one Brownian path per
            seed, so that 20 and 40 steps see the same noise.
        seeds: One per sample, for that noise (default: torch's generator; ``noise="path"`` needs them).

    **Tolerance**, for adaptive solves, each sample with its own steps: unipc2 and unipc3 (one call a step),
    rk45, bosh3 and heun, and other packages' solvers. rk45 and bosh3 solve so as well where no steps, grid
    or timesteps are given; then ``nfe`` is a budget in which every sample arrives, if need be above
    tolerance (``sol.status``), in whole steps (6 calls of rk45, 3 of bosh3, 2 of heun).
        rtol, atol: Relative and absolute (default 1e-3 each).
        max_nfe: The most calls of a sample, which is left where it is then (default 500).
        error_norm: ``"sample"`` (the default), or ``"batch"``: one error and one step for the whole batch,
            as ODE packages have it.
        dense: False drops what ``sol.at`` needs, three states a step.

    **Conditions:**
        cond: {name: tensor (B, ...)}, a row for each sample.
        shared: {name: value}, passed to the network as it is.
        known: A :class:`ddim_ode.Known`, what is put back after each step of a fixed plan: inpainting,
            which solves no ODE (``sol.alterations`` say so) and has no error estimate.

    **Watching:**
        progress: A bar.
        callback: Called with a :class:`ddim_ode.Progress` after each step.
        record: ``"x"`` keeps the states, ``"x0"`` the x̂₀ of each level's call (the last entry is the end
            state, or where nothing is called there the last x̂₀ again).
        on_nan: ``"hold"`` keeps each sample's last finite state, at the cost of a check per step (adaptive
            solves always do).
        differentiable: Keep the graph, to x, to the network's parameters and to a guidance scale that is a
            tensor; in less memory with ``"checkpoint"`` (fixed plans) or ``"adjoint"`` (torchdiffeq's
            solvers; parameters only of a net that is a ``torch.nn.Module``), see
            :mod:`ddim_ode.solve.gradients`.

    Returns:
        The samples ``.x``, and what they cost.

    Raises:
        ValueError: It says which argument to drop or change.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.exponential()
    >>> model = ddim_ode.exact.gaussian([1.0], [[0.25]], schedule)
    >>> x_T = ddim_ode.noise((1,), schedule, seeds=[0, 1, 2])
    >>> sol = ddim_ode.sample(model, x_T, method="heun", steps=10)
    >>> sol.nfe, sol.status.tolist()
    (19, ['success', 'success', 'success'])
    """
    return solve(Request.of(model, x, method, options))


def solve(request: Request) -> Solution:
    """Solve what was asked for, by the solver of its kind."""
    with torch.set_grad_enabled(bool(request.options["differentiable"])):
        return _SOLVERS[request.kind](request)
