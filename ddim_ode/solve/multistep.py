"""Adaptive multistep solves: one network call a trial step, each sample with its own levels and order.

A trial predicts the state at the next level by the polynomial through a sample's last x̂₀'s, integrated
exactly (solvers/quadrature.py, each sample with its own nodes), asks the network there, and corrects the
state by the polynomial through the new x̂₀, too. That x̂₀ is kept, though the state has moved, so a trial
costs one call. What the corrector moves the state by is the error of the prediction, an upper estimate of
that of the step. The order rises with each accepted step, and falls with each rejected one.

Everything else (who is where, what is accepted, dense output, the last jump) is that of active_set.py; the
steps are taken in ln σ.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._base.tensors import beside
from ..schedules.schedule import Array
from ..solvers.chart import SCALES, Scale
from ..solvers.controller import Controller, Gains, Mask
from ..solvers.methods import Method
from ..solvers.quadrature import step_weights
from ..solvers.ruler import Ruler
from .active_set import Field, OneCall, Solver, Trial
from .solution import norm_per_sample

# A step may spend the whole tolerance: what is kept is better than the prediction that is judged. Of the
# other constants, targets of .2 to .6, longest steps of 1 to 2.5 and growth by 1.7 to 4 need as many
# calls for an error within 5 %, on the mixture and networks of benchmarks/clock.py.
GAINS = Gains(
    share=1.0, target=0.35, integral=0.7, proportional=0.2, grow=2.5, first=0.3, longest=2.0
)


class MultistepSolver(Solver):
    """The samples under way, with their last x̂₀'s."""

    def __init__(
        self,
        field: Field,
        z: Tensor,
        method: Method,
        control: Controller,
        tolerances: tuple[float, float],
        keep: bool,
        lands: bool,
    ) -> None:
        super().__init__(field, z, OneCall(), control, tolerances, keep, lands)
        batch = z.shape[0]
        if self.path is not None:
            self.path.multistep = True
        self.past = method.past
        self.order = np.ones(batch, dtype=np.int64)
        self.nodes = np.full((batch, self.past), np.nan)  # σ of the past x̂₀'s, newest first
        self.history: list[Tensor] = []  # (n, *) each, of the active samples
        self._ruler = _scale(Ruler.up_to(max(field.ends)))

    def _began(self, u: Array) -> None:
        self.nodes[:, 0] = self.field.sigma(u)
        self.history = [self._x0(self.z, self.velocity, u)]

    def _x0(self, z: Tensor, velocity: Tensor, u: Array) -> Tensor:
        """x̂₀ = cos θ z − sin θ dz/dθ."""
        clock, theta = self.field.clock, self.field.clock.angle(u)
        rate = self.field.way * clock.angle_rate(u)
        of_z, of_velocity = self._send(np.stack([np.cos(theta), -np.sin(theta) / rate])).to(z.dtype)
        return beside(of_z, z) * z + beside(of_velocity, z) * velocity

    def _try(self) -> Trial:
        active, way = self.control.active, self.field.way
        h = self.control.step[active]
        u0 = self._position()
        u1 = u0 + way * h
        ends = self.field.sigma(u0), self.field.sigma(u1)
        order = self.order[active]
        self.control.error_order = self.order + 1
        nodes = self.nodes[active]
        known = np.arange(self.past) < order[:, None]
        inverse = SCALES["inv_sigma"]
        predictor = step_weights(inverse, self._ruler, nodes, known, *ends)
        corrector = step_weights(
            inverse,
            self._ruler,
            np.column_stack([ends[1], nodes]),
            np.column_stack([np.ones(len(h), dtype=bool), known]),
            *ends,
        )
        theta0, theta1 = np.arctan(ends[0]), np.arctan(ends[1])
        reach = np.sin(theta1)
        rate = way * self.field.clock.angle_rate(u1)
        sent = self._send(
            np.stack(
                [
                    *self.field.coefficients(u1),
                    reach / np.sin(theta0),
                    rate * np.cos(theta1) / reach,
                    -rate / reach,
                    *(reach * predictor.T),
                    *(reach * corrector.T),
                ]
            )
        )
        rows = [beside(row, self.z) for row in sent[4:].to(self.z.dtype)]
        kept, of_z, of_x0, weights = rows[0], rows[1], rows[2], rows[3:]
        self._rejected = np.zeros(len(h), dtype=bool)
        z, past = self._masked(self.z), [self._masked(x0) for x0 in self.history]
        start = kept * z
        predicted = start + _weighted(weights[: self.past], past)
        velocity = self._evaluate(predicted, sent[:4], u1)
        self._new = self._x0(predicted, velocity, u1), ends[1]
        end = start + _weighted(weights[self.past :], [self._new[0], *past])
        velocity = of_z * end + of_x0 * self._new[0]
        with torch.no_grad():
            measured = self._judged(z, end, end - predicted).cpu().double().numpy()
        ratio, local, finite = measured
        # A step so long that it may confirm itself is as uncertain as it is long.
        far = h > GAINS.longest * (1 + 1e-9)
        if far.any():
            with torch.no_grad():
                moved = norm_per_sample(end - z).cpu().double().numpy()
            local = np.where(far, np.maximum(local, moved), local)
        return Trial(end, velocity, None, h, ratio, local, np.full(len(h), np.nan), finite > 0)

    def _commit(self, trial: Trial, accepted: Mask) -> None:
        active = self.control.active
        x0, sigma = self._new
        before = [x0, *self.history[: self.past - 1]]
        older = [*self.history, self.history[-1]]
        if not accepted.all():
            where = beside(torch.as_tensor(accepted, device=x0.device), x0)
            before = [torch.where(where, new, old) for new, old in zip(before, older)]
            if len(self.history) == self.past or not accepted.any():
                before = before[: len(self.history)]
        self.history = before
        moved = active[accepted]
        self.nodes[moved] = np.column_stack([sigma[accepted], self.nodes[moved, :-1]])
        seen = np.isfinite(self.nodes[active]) | np.isinf(self.nodes[active])
        most = seen.sum(axis=1)
        order = np.where(accepted, self.order[active] + 1, self.order[active] - 1)
        self.order[active] = np.clip(
            np.where(trial.finite, order, 1), 1, np.minimum(most, self.past)
        )
        super()._commit(trial, accepted)

    def _release(self, leaving: Mask) -> None:
        super()._release(leaving)
        if self.control.active.size:
            stay = torch.as_tensor(np.flatnonzero(~leaving), device=self.z.device)
            self.history = [x0[stay] for x0 in self.history]


def _weighted(weights: list[Tensor], vectors: list[Tensor]) -> Tensor:
    terms = [w * v for w, v in zip(weights, vectors)]
    return sum(terms[1:], terms[0])


def _scale(ruler: Ruler) -> Scale:
    with np.errstate(divide="ignore"):
        return Scale(ruler.of, ruler.inverse, lambda s: 1 / (s * (1 + ruler.bend * s)))
