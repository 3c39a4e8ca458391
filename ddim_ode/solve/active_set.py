"""Adaptive solves: every sample is its own initial value problem.

State and clock are those of solvers/clock.py: z = x/√(ᾱ²+β̄²) moves by dz/du = (dθ/du) v̂/√(ᾱ²+β̄²). With
s = |u − u(first level)| the solver goes forward,

    dz/ds = ±(dθ/du) [a z + (b/m) P],      v̂ = a x + b P,      m = √(ᾱ²+β̄²),

where P is what the network predicts, and the sign is − on the way down (sampling), + on the way up. All
samples take their trial steps together, in one batch, but each from its own s, with its own h, at its own
network times: the numbers of a step (times, scales, conversions, h) are computed on the host in float64
and sent in one piece, and one small table of error ratios comes back; after a rejection a mask goes, too.
A sample that is done or given up leaves the batch, and its conditions with it.

The last stage of a step is the velocity at its end (heun is given one), so the next step has its
first for nothing, and so has the last jump to x̂₀ = cos θ z − sin θ dz/dθ.

Global error. E' = E exp ∫λ ds + ‖e‖, with ‖e‖ the RMS of the embedded error and λ the growth of a
perturbation along the flow, of which each step has a difference quotient: two stages at the same time
with different states give λ = (Δk·ΔY)/|ΔY|². Where the tableau has no two such stages (bosh3), the second
stage is compared with the Hermite interpolant of the finished step at its time. With more than one entry
λ < 0 counts as 0: that one direction shrinks says nothing of the others. On the digits mixture (64-D), at
tolerances from 0.1 to 1e-4, the estimate of rk45 was 0.3 to 3 times the true error in the median and for
no sample less than a sixth of it. bosh3's was 5 to 26 times too large and heun's 60 to 1,400 times, because
their embedded solution is that much less accurate than the one they go on with.

The estimate supposes that the field is smooth over a step. A network that is rough in t errs more than
it says: on the shipped one, with rk45 at the default tolerance, 18 times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._base.tensors import beside
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import Call
from ..denoising.problem import Problem
from ..schedules.schedule import Array
from ..solvers.clock import SMOOTH, Clock
from ..solvers.controller import MAX_NFE, Controller, Index, Mask, amplified
from ..solvers.embedded import Scheme
from ..solvers.tableau import Tableau
from .dense import Arrival, Path, hermite
from .solution import finite_samples, norm_per_sample


class Field:
    """dz/ds of the active samples: the network, and what makes a velocity of its prediction."""

    def __init__(self, problem: Problem, ends: tuple[float, float], clock: Clock = SMOOTH) -> None:
        """ends: the first level and the last; ``way`` is du/ds between them."""
        self.problem, self.ends, self.clock = problem, ends, clock
        self._marks = [(float(clock.of(np.array(end))), end) for end in ends]
        self.way = 1.0 if ends[1] > ends[0] else -1.0
        self.call: Call

    @property
    def model(self) -> Denoiser:
        return self.problem.model

    def bind(self, like: Tensor) -> None:
        """Point the network at the rows of ``like``, which are those of the problem."""
        self.call = self.problem.network(like)

    def sigma(self, u: Array) -> Array:
        """The level at clock u, within the ends whatever the rounding, and exact at both."""
        sigma = np.clip(self.clock.level(u), min(self.ends), max(self.ends))
        for mark, end in self._marks:
            sigma = np.where(u == mark, end, sigma)
        return sigma

    def coefficients(self, u: Array) -> Array:
        """(4, *u.shape): the network's time, m, and A, B of dz/ds = A z + B P."""
        flat = u.reshape(-1)
        sigma = self.sigma(flat)
        seen = self.model.snapped(sigma)
        m = np.hypot(*self.model.schedule.scales(sigma))
        a, b = self.model.coefficients(self.model.answers, "v", seen)
        rate = self.way * self.clock.angle_rate(flat)
        table = np.stack([self.model.network_time(seen), m, rate * a, rate * b / m])
        return table.reshape(4, *u.shape)

    def __call__(self, z: Tensor, columns: Tensor, seen: Array) -> Tensor:
        """dz/ds at z (n, *); columns: the coefficients (4, n) on the device; seen: the levels (n,)."""
        time = columns[0].to(self.model.time_dtype(z))
        m, of_z, of_prediction = (beside(c, z) for c in columns[1:].to(z.dtype))
        return of_z * z + of_prediction * self.call(m * z, time, self.model.at(seen, z))


class Trial(NamedTuple):
    """A step tried from every active sample, and per sample (n,) what is to be judged by."""

    z: Tensor
    velocity: Tensor
    middle: Tensor | None
    step: Array
    ratio: Array
    local: Array
    rate: Array
    finite: Mask


class Released(NamedTuple):
    """Samples (n,) that left the batch, with their end states x (n, *) and error estimates (n,)."""

    samples: Index
    x: Tensor
    error: Tensor


class OneCall:
    """What is asked of a scheme whose trial is one call, with no two velocities at one level."""

    cost, error_order = 1, 2
    twins = None


class Solver:
    """The samples under way: their states and velocities on the device, their errors on the host."""

    def __init__(
        self,
        field: Field,
        z: Tensor,
        scheme: Scheme | OneCall,
        control: Controller,
        tolerances: tuple[float, float],
        keep: bool,
        lands: bool,
    ) -> None:
        batch = z.shape[0]
        self.field, self.z, self.scheme, self.control = field, z, scheme, control
        self.tolerances, self.lands = tolerances, lands
        self.end = float(field.clock.of(np.array(field.ends[1])))
        self.error, self.rate = np.zeros(batch), np.full(batch, np.nan)
        self.sigmas: list[list[float]] = [[field.ends[0]] for _ in range(batch)]
        self.path = Path(batch, field.model.schedule, field.ends, field.clock) if keep else None
        self.released: list[Released] = []
        self.nfe = self.rows = 0

    @property
    def tableau(self) -> Tableau:
        """Of a scheme that has stages."""
        assert isinstance(self.scheme, Scheme)
        return self.scheme.tableau

    def run(self, observe: Callable[[int], object]) -> None:
        """Solve; observe(calls) after the first call and after each trial step."""
        control = self.control
        self.field.bind(self.z)
        start = self._position()
        (columns,) = self._send(self.field.coefficients(start)[:, None]).unbind(1)
        self.velocity = self._evaluate(self.z, columns, start)
        control.charge(1)
        observe(1)
        control.fail(~(finite_samples(self.z) & finite_samples(self.velocity)).cpu().numpy())
        self._began(start)
        self._arrive(np.ones(len(start), dtype=bool), start, None)
        while True:
            leaving = control.propose()
            if leaving.any():
                self._release(leaving)
            if not control.active.size:
                break
            trial = self._try()
            self._commit(trial, control.judge(trial.ratio, trial.finite))
            observe(self.scheme.cost)

    def _began(self, u: Array) -> None:
        """Called with the first velocities, at u (n,)."""

    def _position(self) -> Array:
        return self.end - self.field.way * self.control.remaining[self.control.active]

    def _send(self, table: Array) -> Tensor:
        """Host numbers to the device, as wide as the state and the network's time."""
        wide = torch.promote_types(self.z.dtype, self.field.model.time_dtype(self.z))
        return torch.as_tensor(table).to(device=self.z.device, dtype=wide)

    def _evaluate(self, z: Tensor, columns: Tensor, u: Array) -> Tensor:
        seen = self.field.model.snapped(self.field.sigma(u))
        self.nfe += 1
        self.rows += self.field.model.rows(seen)
        return self.field(z, columns, seen)

    def _try(self) -> Trial:
        tableau, z = self.tableau, self.z
        h = self.control.step[self.control.active]
        c = np.array(tableau.c[1:])[:, None]
        positions = self._position() + self.field.way * c * h
        table = self.field.coefficients(positions)
        sent = self._send(np.concatenate([table, np.broadcast_to(h, (1, *table.shape[1:]))]))
        step = beside(sent[4, 0].to(z.dtype), z)
        # A rejected trial must leave no trace in a gradient: 0 · NaN is NaN.
        self._rejected = np.zeros(len(h), dtype=bool)
        z, velocity = self._masked(z), self._masked(self.velocity)
        states, velocities = [z], [velocity]
        for stage, row in enumerate(tableau.a[1:]):
            states.append(z + step * combined(row, velocities))
            velocities.append(self._evaluate(states[-1], sent[:4, stage], positions[stage]))
        end = states[-1]
        middle = None
        if tableau.b_middle and self.path is not None:
            middle = z + step * combined(tableau.b_middle, velocities)
        with torch.no_grad():
            measured = self._measure(step, states, velocities).cpu().double().numpy()
        ratio, local, rate, finite = measured
        return Trial(end, velocities[-1], middle, h, ratio, local, rate, finite > 0)

    def _masked(self, x: Tensor) -> Tensor:
        """x, whose gradient skips the samples that are rejected by the time it is taken."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        rejected, passed = self._rejected, x * 1.0

        def skip(gradient: Tensor) -> Tensor:
            rows = beside(torch.as_tensor(rejected, device=gradient.device), gradient)
            return torch.where(rows, torch.zeros_like(gradient), gradient)

        passed.register_hook(skip)
        return passed

    def _measure(self, step: Tensor, states: list[Tensor], velocities: list[Tensor]) -> Tensor:
        """(4, n): error ratio, RMS of the local error, growth λ (NaN: not seen), whether all is finite."""
        z, end = states[0], states[-1]
        error = step * combined(self.tableau.b_error, velocities)
        ratio, local, finite = self._judged(z, end, error)
        if self.scheme.twins is not None:
            i, j = self.scheme.twins
            moved, change = states[i] - states[j], velocities[i] - velocities[j]
        else:
            on_curve, slope = hermite(
                self.tableau.c[1], step, (z, end), (velocities[0], velocities[-1])
            )
            moved, change = states[1] - on_curve, velocities[1] - slope
        squared = _total(moved * moved)
        # Below this the states differ by rounding, and so would the quotient.
        seen = squared > (64 * torch.finfo(z.dtype).eps) ** 2 * _total(end * end)
        rate = torch.where(seen, _total(moved * change) / squared, torch.nan)
        return torch.stack([ratio, local, rate, finite * finite_samples(velocities[-1])])

    def _judged(self, z: Tensor, end: Tensor, error: Tensor) -> Tensor:
        """(3, n): error ratio, RMS of the local error, whether all is finite."""
        rtol, atol = self.tolerances
        size, kind = torch.maximum(z.abs(), end.abs()), torch.finfo(z.dtype)
        scale = (atol + rtol * size).clamp_min(kind.tiny)
        ratio = (error / scale).clamp(-1e15, 1e15)  # a square that overflows is no error of inf
        finite = finite_samples(end) & finite_samples(error)
        # no step is better than rounding
        local = norm_per_sample(error) + kind.eps * norm_per_sample(end)
        return torch.stack([norm_per_sample(ratio), local, finite.to(z.dtype)])

    def _commit(self, trial: Trial, accepted: Mask) -> None:
        """Move the accepted samples; the others keep their state and their first velocity."""
        self._rejected[:] = ~accepted
        if accepted.all():
            self.z, self.velocity = trial.z, trial.velocity
        elif accepted.any():
            where = beside(torch.as_tensor(accepted, device=self.z.device), self.z)
            self.z = torch.where(where, trial.z, self.z)
            self.velocity = torch.where(where, trial.velocity, self.velocity)
        i, h = self.control.active[accepted], trial.step[accepted]
        before, now = self.rate[i], trial.rate[accepted]
        now = np.where(np.isnan(now), before, now)
        if self.scheme.twins is None:  # seen within the step, not at its end
            before = now
        first = np.where(np.isnan(before), now, before)
        rates = [np.nan_to_num(first), np.nan_to_num(now)]
        if self.z[0].numel() > 1:
            rates = [np.maximum(rate, 0.0) for rate in rates]
        self.error[i] = amplified(self.error[i], h, (rates[0], rates[1]), trial.local[accepted])
        self.rate[i] = now
        self._arrive(accepted, self._position(), trial.middle)

    def _arrive(self, accepted: Mask, u: Array, middle: Tensor | None) -> None:
        samples, u = self.control.active[accepted], u[accepted]
        if not samples.size:
            return
        for sample, sigma in zip(samples.tolist(), self.field.sigma(u).tolist()):
            if self.control.accepted[sample]:
                self.sigmas[sample].append(sigma)
        if self.path is not None:
            z, velocity = self.z, self.velocity
            if not accepted.all():
                rows = torch.as_tensor(np.flatnonzero(accepted), device=z.device)
                z, velocity = z[rows], velocity[rows]
                middle = None if middle is None else middle[rows]
            self.path.add(Arrival(samples, u, z, velocity, middle))

    def _release(self, leaving: Mask) -> None:
        """Take samples from the batch, to where they are going: the last level, x̂₀, or no further.

        The last jump is a DDIM step, which is linear: x = p z + q dz/ds.
        """
        control, u = self.control, self._position()[leaving]
        samples = control.active[leaving]
        sigma, theta = self.field.sigma(u), self.field.clock.angle(u)
        arrived = control.remaining[samples] == 0
        cut = control.stretch & (control.status[samples] == MAX_NFE) & ~arrived
        jumps = cut | (arrived & self.lands)
        target = 0.0 if self.lands else self.field.ends[1]
        m, m_target = (np.hypot(*self.field.model.schedule.scales(s)) for s in (sigma, target))
        turn = np.arctan(target) - theta
        p = np.where(jumps, m_target * np.cos(turn), m)
        q = np.where(
            jumps, self.field.way * m_target * np.sin(turn) / self.field.clock.angle_rate(u), 0.0
        )
        growth = np.maximum(abs(p), abs(p + q * np.nan_to_num(self.rate[samples])))
        table = self._send(np.stack([p, q, growth * self.error[samples], cut * m_target]))
        table = table.to(self.z.dtype)
        rows, stay = (
            torch.as_tensor(np.flatnonzero(k), device=self.z.device) for k in (leaving, ~leaving)
        )
        z = self.z[rows]
        ends = beside(table[0], z) * z
        if jumps.any():  # not 0 · inf for the others
            moved = ends + beside(table[1], z) * self.velocity[rows]
            ends = torch.where(beside(torch.as_tensor(jumps).to(z.device), z), moved, ends)
        with torch.no_grad():  # a cut-off sample is as uncertain as its jump is long
            jump = norm_per_sample(ends - beside(table[3], z) * z)
            error = table[2] + torch.where(table[3] > 0, jump, 0.0)
        self.released.append(Released(samples, ends, error))
        for sample in samples[jumps].tolist():
            self.sigmas[sample].append(target)
        control.accepted[samples] += jumps
        control.drop(leaving)
        if control.active.size:
            self.z, self.velocity = self.z[stay], self.velocity[stay]
            self.field.problem = self.field.problem.rows(stay)
            self.field.bind(self.z)


def combined(weights: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    """Σ wᵢ vᵢ, the zero weights left out."""
    terms = [w * v for w, v in zip(weights, vectors) if w]
    return sum(terms[1:], terms[0])


def _total(values: Tensor) -> Tensor:
    return values.reshape(values.shape[0], -1).sum(dim=1)
