"""Inversion: the sampling ODE run upwards, from data to latents, and down again.

The ODE is a bijection between the levels σ_min and σ_max. :func:`encode` solves it from σ_min to σ_max on
the grid of :func:`decode`, which is :func:`ddim_ode.sample` that stops at σ_min: a last jump to x̂₀ cannot
be undone. Any method goes either way, since clocks, rulers and weights are signed; DDIM upwards is the DDIM
inversion of Song et al. 2021 (https://arxiv.org/abs/2010.02502, eq. 14). Two solves in opposite directions
do not undo each other exactly, since a step up looks at other states than the step down. The difference is
of the method's order; ``certify=True`` measures it, and ``"reversible"`` has none (reversible.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._base.checks import flag, refuse
from .._base.warn import warn
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import check_model
from ..schedules.schedule import Array
from ..solve.request import (
    COMPILING,
    PLACING,
    WATCHING,
    Request,
    SolveOptions,
    check_names,
    lists_options,
)
from ..solve.sampling import solve
from ..solve.solution import RoundTrip, Solution, mean_square, norm_per_sample
from ..solvers.methods import Method
from ..solvers.plan import Plan

if TYPE_CHECKING:
    from typing_extensions import Unpack


@lists_options
def encode(
    model: Denoiser,
    x0: Tensor,
    method: str | Method | None = None,
    *,
    partner: Tensor | None = None,
    certify: bool = False,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Integrate the ODE from x0 at σ_min up to σ_max: ``.x`` is the latent, in network space.

    Warns for a guided model: the guided field is not the flow of any density, so latents leave N(0, I), and
    it amplifies errors; with certify, the round trips with and without guidance show by how much.

    Args:
        model: The denoiser, without limits on x̂₀.
        x0: (B, *), taken for what it is at the lowest level of the grid, σ_min > 0 (by default
            ``model.schedule.sigma_min``): it is neither scaled by ᾱ(σ_min) nor given that level's noise,
            and nothing is clipped.
        method: As in :func:`ddim_ode.sample`, or ``"reversible"``, whose ``decode`` comes back to x0 up to
            rounding, in any number of steps, if it is given ``.partner`` too. That one is of second order,
            costs steps + 1 calls, and takes ``chart`` (default ``"flow"``; ``"reversible:trig"`` is
            ``chart="trig"``).
        partner: The second state of ``"reversible"`` (default: x0).
        certify: Decode again, and on half the steps. ``.round_trip`` is then a
            :class:`ddim_ode.solve.solution.RoundTrip`, for 2N calls more (or, adaptive, N).

    **Options**, as of :func:`ddim_ode.sample`:
        grid: Falling as there, and passed from its end, which must be > 0 (so ``final`` can only be
            ``"sigma_min"``).
        plan: One that goes up runs as it is. Of one that goes down, the method is compiled upwards on its
            positive levels, which needs a textbook plan: the weights of a calibrated or traced one belong
            to the way down.

    Returns:
        A :class:`Solution` whose ``sigmas`` rise.

    Raises:
        ValueError: It says which argument to drop or change.

    >>> import ddim_ode, torch
    >>> model = ddim_ode.exact.gaussian([1.0], [[0.25]], ddim_ode.schedules.exponential())
    >>> sol = ddim_ode.encode(model, torch.tensor([[1.0], [1.5]]), "heun", steps=20, certify=True)
    >>> [round(z, 1) for z in sol.x[:, 0].tolist()], round(sol.round_trip.order)
    ([0.0, 1.0], 3)
    """
    request = Request.of(model, x0, method, options, caller="encode", partner=partner)
    sol = solve(request)
    if flag("certify", certify):
        with torch.no_grad():
            sol.round_trip = _certified(request, sol)
    if model.guidance is not None:
        warn(_guided(model, sol.round_trip))
    return sol


@lists_options
def decode(
    model: Denoiser,
    z: Tensor | Solution,
    method: str | Method | None = None,
    *,
    partner: Tensor | None = None,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Integrate the ODE from the latent z at σ_max down to σ_min: the inverse of :func:`encode`.

    With the same arguments it passes the same levels in the other order.

    Args:
        model: The denoiser.
        z: (B, *), or the Solution of an ``encode`` with a fixed method: its levels, method and partner are
            then taken, and only cond and shared are to be given.
        method: As in :func:`encode`.
        partner: The second state of ``"reversible"``; without it the way back is of second order, and
            warns.
        **options: Those of :func:`ddim_ode.sample` with ``final="sigma_min"``, with the restrictions of
            :func:`encode` on plan, grid and noise.

    Returns:
        The samples ``.x`` at σ_min, and what they cost.

    Raises:
        ValueError: It says which argument to drop or change.

    >>> import ddim_ode, torch
    >>> model = ddim_ode.exact.gaussian([1.0], [[0.25]], ddim_ode.schedules.exponential())
    >>> x0 = torch.tensor([[1.0], [1.5]], dtype=torch.float64)
    >>> latent = ddim_ode.encode(model, x0, "reversible", steps=3)
    >>> bool((ddim_ode.decode(model, latent).x - x0).abs().max() < 1e-12)
    True
    """
    check_names("decode", options)
    if isinstance(z, Solution):
        back = _way_back(z, model)
        placing = (*PLACING, *COMPILING, "plan")
        refuse(
            "the Solution of an encode already says how to go back",
            method=method,
            partner=partner,
            **{name: options.get(name) for name in placing if name != "final"},
        )
        method, plan, grid = back
        partner, z = z.partner, z.x
        options = {**options, "plan": plan, "grid": grid}
    request = Request.of(model, z, method, options, caller="decode", partner=partner)
    sol = solve(request)
    if request.kind == "reversible" and partner is None:
        warn(
            f"decode by {method!r} without partner= starts from equal states, and comes back as a solver "
            "of second order does; to come back to rounding give the Solution of encode, or its .partner"
        )
    return sol


def _way_back(sol: Solution, model: Denoiser) -> tuple[str | None, Plan | None, Array | None]:
    """Method, plan and grid to undo a solve with."""
    check_model(model)
    if sol.schedule not in (None, model.schedule.fingerprint):
        raise ValueError(
            f"the solution was made with schedule {sol.schedule}, and the model has "
            f"{model.schedule.fingerprint} ({model.schedule!r}); decode with the model that encoded"
        )
    if sol.partner is not None:
        return sol.method, None, np.sort(sol.sigmas)[::-1]
    if sol.plan is None:
        raise ValueError(
            f"this solution of {sol.method} has no plan to undo; give its .x, and say again how it was "
            f"made: decode(model, latent.x, {sol.method!r}, ...)"
        )
    return None, sol.plan, None


def _certified(request: Request, up: Solution) -> RoundTrip:
    """The round trip of ``up``, which encoded the request's x: measured, by the same solver, not estimated.

    The order is seen by the same trip on every other level. That trip also shows how far the latent itself
    is from converged; a round trip alone does not, since errors up and down may cancel (those of a
    reversible method do so completely).
    """
    model, x, reversible = request.model, request.x, request.kind == "reversible"
    own = {name: v for name, v in request.options.items() if v is not None and name not in WATCHING}
    spent = []

    def run(
        caller: str, model: Denoiser, x: Tensor, partner: Tensor | None, grid: Array | None
    ) -> Solution:
        options, method = dict(own), request.method
        if grid is not None:
            options |= dict.fromkeys(PLACING) | dict(grid=grid)
            if up.plan is not None:
                method = up.plan.method if request.kind == "plan" else method
                options |= dict(plan=None, start=up.plan.start, chart=up.plan.chart)
        spent.append(solve(Request.of(model, x, method, options, caller=caller, partner=partner)))
        return spent[-1]

    def trip(model: Denoiser, up: Solution, grid: Array | None = None) -> Tensor:
        return norm_per_sample(run("decode", model, up.x, up.partner, grid).x - x)

    error = trip(model, up)
    order = gap = unguided = None
    steps = 0 if isinstance(up.sigmas, list) else len(up.sigmas) - 1
    if (up.plan is not None or reversible) and steps > 1:
        falling = np.asarray(up.sigmas)[::-1]
        half = falling[np.rint(np.linspace(0, steps, steps // 2 + 1)).astype(int)]
        coarse = run("encode", model, x, None, half)
        gap = norm_per_sample(coarse.x - up.x)
        if not reversible:
            fine, rough = mean_square(error), mean_square(trip(model, coarse, half))
            if min(fine, rough) ** 0.5 > _rounding(model, up):
                order = float(0.5 * np.log(rough / fine) / np.log(steps / (steps // 2)))
    if model.guidance is not None:
        plain = model.replace(guidance=None)
        unguided = trip(plain, run("encode", plain, x, None, None))
    nfe, rows = sum(sol.nfe for sol in spent), sum(sol.net_evals for sol in spent)
    return RoundTrip(error, order, gap, unguided, nfe, rows)


def _rounding(model: Denoiser, up: Solution) -> float:
    """About what rounding the latent does to the data: two units in its last place, on the way down."""
    top = max(sigma for sigma in np.asarray(up.sigmas) if np.isfinite(sigma))
    alpha = float(model.schedule.scales(top)[0])
    return 2 * torch.finfo(up.x.dtype).eps * mean_square(norm_per_sample(up.x)) ** 0.5 / alpha


def _guided(model: Denoiser, measured: RoundTrip | None) -> str:
    assert model.guidance is not None
    message = (
        f"guidance {model.guidance.label} makes inversion unfaithful: the guided field is not the flow "
        "of any density, and it amplifies errors; encode with guidance 1 where you can"
    )
    if measured is None or measured.unguided is None:
        return f"{message} (certify=True measures by how much)"
    with_it, without = (mean_square(e) ** 0.5 for e in (measured.error, measured.unguided))
    return f"{message}. Round trip measured: off by {with_it:.2g} RMS, without guidance by {without:.2g}"
