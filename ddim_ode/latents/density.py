"""The state and the integral of its divergence, solved together (see likelihood.py).

A flat state (n, D + k) is z = x/m and ∫ ∇·f ds, one for each of k probes, or one where the divergence is
exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.bars import progress_bar
from .._base.checks import count
from .._base.tensors import beside
from ..denoising.problem import Problem
from ..schedules.schedule import Array
from ..solve.active_set import Field, Solver, combined
from ..solve.adaptive import DEFAULT_MAX_NFE, gathered, tolerance
from ..solve.request import Request
from ..solve.solution import finite_samples
from ..solvers.clock import clock
from ..solvers.controller import NON_FINITE, SUCCESS, Controller
from ..solvers.embedded import scheme_of
from ..solvers.methods import METHODS
from ..solvers.tableau import Tableau
from .divergence import Products


@dataclass
class End:
    """Where a solve ended.

    Attributes:
        state: (B, D + k) x at σ_max, and the integrals.
        error: (B,) of the integral, or None.
        status, nfe, sample_nfe, rows: As of a :class:`ddim_ode.Solution`.
    """

    state: Tensor
    error: Tensor | None
    status: npt.NDArray[np.str_]
    nfe: int
    sample_nfe: npt.NDArray[np.int64]
    rows: int


class Density(Field):
    """The field of flat states (n, D + k): z, and the integral of the divergence for each probe."""

    def __init__(
        self,
        problem: Problem,
        ends: tuple[float, float],
        x: Tensor,
        vectors: Tensor,
        exact: bool,
        products: Products,
    ) -> None:
        super().__init__(problem, ends)
        self.shape, self.size = x.shape[1:], x[:1].numel()
        self.exact, self.products = exact, products
        self.vectors = vectors
        self.entries = 1 if exact else len(vectors)

    def bind(self, like: Tensor) -> None:
        super().bind(like.new_empty((len(like), *self.shape)))

    def keep(self, rows: Tensor) -> None:
        """Go on with these samples; unit vectors are a view, the same for all."""
        self.vectors = self.vectors[:, : len(rows)] if self.exact else self.vectors[:, rows]

    def __call__(self, z: Tensor, columns: Tensor, seen: Array) -> Tensor:
        time = columns[0].to(self.model.time_dtype(z))
        m, of_z, of_prediction = (beside(c, z) for c in columns[1:].to(z.dtype))
        x = (m * z[:, : self.size]).reshape(-1, *self.shape)
        at = self.model.at(seen, x)
        prediction, products = self.products(lambda y: self.call(y, time, at), x, self.vectors)
        trace = products.sum(dim=0, keepdim=True) if self.exact else products
        rate = of_z * z[:, : self.size] + of_prediction * prediction.reshape(len(z), -1)
        return torch.cat([rate, of_z * self.size + of_prediction * m * trace.T], dim=1)


class _Solver(Solver):
    """Steps are judged by the state and by the integral, each against the tolerance; ``error`` is the
    sum of the integral's local errors."""

    field: Density

    def _measure(self, step: Tensor, states: list[Tensor], velocities: list[Tensor]) -> Tensor:
        ratio, _, _, finite = super()._measure(step, states, velocities)
        size, tableau = self.field.size, self.tableau
        error = (step * combined(tableau.b_error, velocities))[:, size:].mean(dim=1).abs()
        before, after = (states[k][:, size:].mean(dim=1).abs() for k in (0, -1))
        rtol, atol = self.tolerances
        tiny = torch.finfo(error.dtype).tiny
        scale = (atol + rtol * torch.maximum(before, after)).clamp_min(tiny)
        ratio = torch.maximum(ratio, (error / scale).clamp(max=1e15))
        return torch.stack([ratio, error, torch.zeros_like(error), finite])

    def _release(self, leaving: npt.NDArray[np.bool_]) -> None:
        super()._release(leaving)
        self.field.keep(torch.as_tensor(np.flatnonzero(~leaving), device=self.z.device))


def flat(x: Tensor) -> Tensor:
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def _gauge(field: Density, end: int) -> float:
    """m = √(ᾱ² + β̄²) at one of the field's ends."""
    return float(np.hypot(*field.model.schedule.scales(field.ends[end])))


def solve(
    request: Request, vectors: Tensor, exact: bool, products: Products
) -> tuple[Density, End]:
    """The state and its integrals at σ_max, by the request's adaptive method or in its fixed steps."""
    method, levels, x = request.spec, request.levels, request.x
    tableau = None if method is None else method.stages
    if method is None or not isinstance(tableau, Tableau) or method.adds_noise:
        steady = (m for m in METHODS.values() if not m.adds_noise)
        able = [m.name for m in steady if isinstance(m.stages, Tableau)]
        raise ValueError(
            f"method={str(request.method)!r}: a likelihood is solved by Runge–Kutta, {', '.join(able)}"
        )
    adaptive = request.kind == "adaptive"
    who = f"method {method.name!r}"
    sigmas = levels.ends() if adaptive else levels.passed(levels.required(who))
    ends = float(sigmas[0]), float(sigmas[-1])
    field = Density(request.problem, ends, x, vectors, exact, products)
    z = torch.cat([flat(x) / _gauge(field, 0), x.new_zeros(len(x), field.entries)], dim=1)
    with progress_bar(request.options["progress"], unit="nfe", desc=method.name) as bar:
        if adaptive:
            end = _adaptive(field, z, tableau, request.options, bar.update)
        else:
            end = _fixed(field, z, tableau, sigmas, bar.update)
    return field, end


def _adaptive(
    field: Density,
    z: Tensor,
    tableau: Tableau,
    options: Mapping[str, Any],
    observe: Callable[[int], object],
) -> End:
    limit = count("max_nfe", DEFAULT_MAX_NFE if options["max_nfe"] is None else options["max_nfe"])
    tolerances = tolerance("rtol", options["rtol"]), tolerance("atol", options["atol"])
    scheme = scheme_of(tableau)
    ends = clock(np.array(field.ends))
    control = Controller(
        len(z),
        abs(ends[0] - ends[1]),
        error_order=scheme.error_order,
        cost=scheme.cost,
        limit=limit,
        resolution=4 * float(np.spacing(abs(ends).max())),
    )
    solver = _Solver(field, z, scheme, control, tolerances, False, False)
    if field.size:
        solver.run(observe)
    else:
        control.status[:] = SUCCESS
    state, error = gathered(solver.released, z)
    state[:, field.size :] /= _gauge(field, 1)
    return End(state, error, control.status, solver.nfe, control.calls, solver.rows)


def _fixed(
    field: Density, z: Tensor, tableau: Tableau, sigmas: Array, observe: Callable[[int], object]
) -> End:
    """Runge–Kutta steps in the clock u, the same for all samples."""
    u, batch = clock(sigmas), len(z)
    stages, calls, rows = tableau.stages, 0, 0
    wide = torch.promote_types(z.dtype, field.model.time_dtype(z))
    field.bind(z)
    for start, h in zip(u[:-1].tolist(), np.diff(u).tolist()) if field.size else ():
        velocities: list[Tensor] = []
        for c, row in zip(tableau.c[:stages], tableau.a):
            y = z + h * combined(row, velocities) if row else z
            at = np.full(batch, start + c * h)
            columns = torch.as_tensor(field.coefficients(at)).to(z.device, wide)
            seen = field.model.snapped(field.sigma(at))
            velocities.append(field(y, columns, seen))
            calls, rows = calls + 1, rows + field.model.rows(seen)
            observe(1)
        z = z + h * combined(tableau.b[:stages], velocities)
    state = torch.cat([_gauge(field, 1) * z[:, : field.size], z[:, field.size :]], dim=1)
    status = np.where(finite_samples(state).cpu().numpy(), SUCCESS, NON_FINITE)
    return End(state, None, status, calls, np.full(batch, calls), rows)
