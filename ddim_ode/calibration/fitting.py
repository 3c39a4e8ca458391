"""What a fit is measured by, with a black-box network, and how that depends on the sampler (family.py).

The residual of noise i is r_i = g(x_i) − g(x_i*), the end state against where the ODE takes that noise
(g: the identity, or features), and e_i the root mean square of its entries. How a fit goes downhill:
descent.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoising.denoiser import Denoiser
from ..schedules.schedule import Array
from ..solve.model_key import network_dtype
from ..solvers.plan import Node
from .family import Linear, Parameter

Features = Callable[[Tensor], Tensor]
_SMOOTH = 0.1  # of the errors' RMS


@dataclass
class Fitting:
    """Noises x (n, *), where the ODE takes them, and what the network is told beside x.

    features: f(x (b, *)) -> (b, ...), by default x itself. batch: rows the network gets at once. evals
    counts the rows it has processed. lost: noises left out of a step of a fit, for NaN or inf in it.
    """

    model: Denoiser
    x: Tensor
    target: Tensor
    cond: Mapping[str, Tensor] | None = None
    shared: Mapping[str, Any] | None = None
    features: Features | None = None
    batch: int = 64
    evals: int = 0
    lost: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.goal = self.target
        if self.features is not None:
            self.goal = torch.cat([self.features(x) for x in self.target.split(self.batch)])
        self.size = finite_mean(_rms(self.goal))  # NaN or inf where a noise has no solution
        # not 0, and nor is its square
        self.rounding = 16 * torch.finfo(self.x.dtype).eps * self.size + 1e-150
        # The step of the differences: small, for trained networks are rough; the tangents of float32 then
        # still have three digits.
        dtype = network_dtype(self.model) or self.x.dtype
        self.step = 3 * torch.finfo(dtype).eps ** 0.5

    def velocity(self, y: Tensor, sigma: float, vector: str, rows: Tensor) -> Tensor:
        """What call k stores, at y (b, *), states of the noises ``rows`` (b,)."""
        self.evals += len(y) * self.model.rows(sigma)
        t = float(self.model.schedule.time(np.array([sigma]))[0])
        model, cond = self.model.part(rows, self.cond)
        return model.bind([Node(sigma, t, vector)], y, cond, self.shared)(y, 0)

    def velocities(self, y: Tensor, told: Sequence[tuple[float, str]], rows: Tensor) -> Tensor:
        """The same of some samplers together, at y (samplers × b, *), one after another: in one network
        call, in which each row is told its own level. told: (σ, vector) of each."""
        if len(told) == 1:
            return self.velocity(y, *told[0], rows)
        sigmas = np.array([sigma for sigma, _ in told])
        self.evals += len(rows) * sum(map(self.model.rows, sigmas.tolist()))
        times = self.model.schedule.time(sigmas)
        nodes = [Node(s, t, v) for (s, v), t in zip(told, times.tolist())]
        model, cond = self.model.part(rows.repeat(len(told)), self.cond)
        levels = np.repeat(model.snapped(sigmas), len(rows))
        t = torch.tensor(model.network_time(levels, np.repeat(times, len(rows))))
        t = t.to(y.device, model.time_dtype(y))
        answer = model.network(y, cond, self.shared)(y, t, model.at(levels, y))
        if (conversions := model.conversions(nodes)) is None:
            return answer
        of_x, of_answer = zip(*conversions)
        return _scaled(answer, of_answer) + _scaled(y, of_x)

    def residual(self, x: Tensor, rows: Tensor) -> Tensor:
        """f(x) − f(x*), (b, entries), float64."""
        seen = x if self.features is None else self.features(x)
        return (seen - self.goal[rows])[..., None].flatten(1).double()

    def errors(self, point: Linear, rows: Tensor) -> Array:
        """e_i (len(rows),) of a sampler; NaN or inf where it diverges."""
        return np.concatenate(
            [self.distances(self.run([point], part), part) for part in rows.split(self.batch)]
        )

    def errors_of(self, points: Sequence[Linear], rows: Tensor) -> list[Array]:
        """The errors of several samplers: those of as many calls run together, as a batch holds them."""
        errors: dict[int, Array] = {}
        together = max(1, self.batch // len(rows))
        for nfe in {point.nfe for point in points}:
            alike = [i for i, point in enumerate(points) if point.nfe == nfe]
            for some in (alike[i : i + together] for i in range(0, len(alike), together)):
                if len(some) == 1:  # perhaps of more noises than a batch
                    errors[some[0]] = self.errors(points[some[0]], rows)
                    continue
                ends = self.run([points[i] for i in some], rows)
                each = self.distances(ends, rows.repeat(len(some))).reshape(len(some), -1)
                errors.update(zip(some, each))
        return [errors[i] for i in range(len(points))]

    def distances(self, x: Tensor, rows: Tensor) -> Array:
        """The RMS (b,) over a sample's entries of f(x) − f(x*)."""
        return _rms(self.residual(x, rows)).cpu().numpy()

    def run(self, points: Sequence[Linear], rows: Tensor) -> Tensor:
        """The end states (samplers × b, *) of samplers of as many calls, one after another."""
        y = self.x[rows].repeat(len(points), *(1,) * (self.x.ndim - 1))
        y = _scaled(y, [float(point.scale[0]) for point in points])
        past: list[Tensor] = []
        for k in range(points[0].nfe):
            told = [(float(point.sigma[k]), point.vectors[k]) for point in points]
            past.append(self.velocities(y, told, rows))
            y = _step(points, k, y, past)
        return y

    def loss(self, errors: Array, floor: float | None = None) -> float:
        """L = ½ mean ln(e² + f²) + ½ ln(mean e² + f²) of errors (n,).

        Half the geometric mean, in which all noises count alike, and half the plain one, which the hard
        ones decide. floor: f, by default that of these errors.
        """
        errors = self.counted(errors)
        f = self.smoothing(errors) if floor is None else floor
        return float(
            0.5 * np.mean(np.log(errors**2 + f**2)) + 0.5 * np.log(np.mean(errors**2) + f**2)
        )

    def smoothing(self, errors: Array) -> float:
        """f: what is so small beside the others counts no more for being smaller still."""
        return max(self.rounding, _SMOOTH * float(np.sqrt(np.mean(self.counted(errors) ** 2))))

    def counted(self, errors: Array) -> Array:
        """Errors, where NaN or inf is as bad as the worst of the others, and as no answer at all."""
        finite = np.isfinite(errors)
        return np.where(finite, errors, np.max(errors[finite], initial=self.size))


def checked(features: Features) -> Features:
    """The features, of a copy, since some change what they are given; ValueError for no features."""
    shapes = set[tuple[int, ...]]()

    def call(x: Tensor) -> Tensor:
        seen: Any = features(x.clone())
        if not isinstance(seen, Tensor):
            raise ValueError(f"features must return a tensor (b, ...), got {type(seen).__name__}")
        fits = seen.ndim and len(seen) == len(x) and seen.numel() >= len(x)
        if not fits or seen.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"features of {len(x)} samples must be float32 or float64 of shape ({len(x)}, ...), got "
                f"{seen.dtype} of shape {tuple(seen.shape)}"
            )
        shapes.add(tuple(seen.shape[1:]))
        if len(shapes) > 1:
            raise ValueError(
                "features must be as many for every sample, whatever the batch; got shapes "
                f"{sorted(shapes)} for one"
            )
        return seen

    return call


def _step(points: Sequence[Linear], k: int, y: Tensor, past: Sequence[Tensor]) -> Tensor:
    y = _scaled(y, [float(point.scale[k + 1]) for point in points])
    weights = np.array([point.weights[k, : k + 1] for point in points])
    for j in np.flatnonzero(weights.any(0)).tolist():
        if len(points) == 1:
            y.add_(past[j], alpha=float(weights[0, j]))
        else:
            y.add_(_scaled(past[j], weights[:, j].tolist()))
    return y


def _scaled(y: Tensor, factors: Sequence[float]) -> Tensor:
    """y (samplers × b, *) times a factor of each sampler."""
    if len(factors) == 1:
        return y * factors[0]
    each = torch.tensor(factors, dtype=y.dtype).to(y.device).reshape(-1, *(1,) * y.ndim)
    return (y.unflatten(0, (len(factors), -1)) * each).flatten(0, 1)


def _rms(x: Tensor) -> Tensor:
    return x.detach()[..., None].flatten(1).double().square().mean(1).sqrt()


def finite_mean(values: Tensor) -> float:
    """The mean of the finite ones; 0 if there are none."""
    finite = values[values.isfinite()]
    return float(finite.mean()) if len(finite) else 0.0


def _leading(tangents: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Directions M (b, r, *) and coordinates C (b, p, r) with tangents (b, p, *) ≈ C M, of each sample.

    From the eigenvectors of the small Gram matrix, in float64, the tangents scaled to one length: the
    parameters they belong to are not of one size. Of a sample with NaN or inf in its tangents, none.
    """
    b, p = tangents.shape[:2]
    if p <= rank:
        return tangents, torch.eye(p, dtype=tangents.dtype, device=tangents.device).expand(b, p, p)
    flat = tangents.reshape(b, p, -1).double()
    flat = torch.where(flat.isfinite().all(2).all(1)[:, None, None], flat, 0.0)
    size = flat.norm(dim=2, keepdim=True)
    flat = flat / torch.where(size > 0, size, 1.0)
    rank = min(rank, flat.shape[2])
    vectors = torch.linalg.eigh(torch.bmm(flat, flat.mT)).eigenvectors[:, :, -rank:]
    directions = torch.bmm(vectors.mT, flat).to(tangents.dtype)
    return directions.reshape(b, rank, *tangents.shape[2:]), (vectors * size).to(tangents.dtype)


def _along(
    f: Callable[[Tensor, int], Tensor], at: Tensor, value: Tensor, directions: Tensor, step: float
) -> Tensor:
    """The derivatives of f along directions (b, r, *) at ``at`` (b, *), where it is ``value``: differences.

    f(states, r) gets r states a sample, sample by sample.
    """
    b, r = directions.shape[:2]
    if not r:
        return directions.new_zeros((b, 0, *value.shape[1:]))
    size = _rms(directions.flatten(0, 1)).reshape(b, r)
    reach = step * _rms(at)[:, None]
    # a direction of no length has no derivative to find: any finite multiple of it will do
    unit = torch.where((size > 0) & (reach > 0), reach / torch.where(size > 0, size, 1.0), step)
    ones = (1,) * (at.ndim - 1)
    moved = at[:, None] + directions * unit.to(at).reshape(b, r, *ones)
    values = f(moved.flatten(0, 1), r).reshape(b, r, *value.shape[1:])
    return (values - value[:, None]) / unit.to(value).reshape(b, r, *(1,) * (value.ndim - 1))


def linearised(
    problem: Fitting, point: Linear, rows: Tensor, parameters: Sequence[Parameter], rank: int
) -> tuple[Tensor, Tensor]:
    """The residuals (b, entries) of some noises, and their derivatives (b, parameters, entries).

    No gradient is taken: derivatives are carried forward beside the run. A call turns the tangents ∂y/∂θ of
    its state into ∂V/∂θ = (∂V/∂y) ∂y/∂θ, by a difference of two calls for every direction. The many
    tangents of one sample lie near a space of few dimensions, since all V of a sample resemble one another.
    So each sample takes its own ``rank`` leading directions, and an iteration costs (rank + 2) × nfe calls
    however many parameters there are.
    """
    x = problem.x[rows]
    y = x * float(point.scale[0])
    # of y, by the parameters met so far: the first scale, if it is one
    tangents = x[:, None] if Parameter("scale", 0) in parameters else x[:, None][:, :0]
    past: list[Tensor] = []
    # of each V: coordinates (b, p, r), directions (b, r, *)
    slopes: list[tuple[Tensor, Tensor]] = []
    for k in range(point.nfe):
        sigma, vector = float(point.sigma[k]), point.vectors[k]
        v = problem.velocity(y, sigma, vector, rows)

        def call(states: Tensor, r: int, sigma: float = sigma, vector: str = vector) -> Tensor:
            return problem.velocity(states, sigma, vector, rows.repeat_interleave(r))

        directions, coordinates = _leading(tangents, rank)
        slope = _along(call, y, v, directions, problem.step)
        if Parameter("level", k) in parameters:
            lower = problem.velocity(y, sigma * float(np.exp(-problem.step)), vector, rows)
            slope = torch.cat([slope, ((v - lower) / problem.step)[:, None]], 1)
            coordinates = torch.nn.functional.pad(coordinates, (0, 1, 0, 1))
            coordinates[:, -1, -1] = 1
            tangents = torch.cat([tangents, torch.zeros_like(y)[:, None]], 1)
        past.append(v)
        slopes.append((coordinates, slope))
        after = tangents * float(point.scale[k + 1])
        for j in np.flatnonzero(point.weights[k, : k + 1]).tolist():
            of, directions = slopes[j]
            part = torch.einsum("bpr,br...->bp...", of, directions)
            after[:, : of.shape[1]].add_(part, alpha=float(point.weights[k, j]))
        weights = [p for p in parameters if p.kind == "weight" and p.k == k]
        met = [y, *(past[p.j] for p in weights)]  # the next scale comes before the weights
        y, tangents = _step([point], k, y, past), torch.cat([after, torch.stack(met, 1)], 1)
    residual = problem.residual(y, rows)
    if problem.features is None:
        return residual, tangents[..., None].flatten(2).double()
    features = problem.features
    directions, coordinates = _leading(tangents, rank)
    slope = _along(lambda x, r: features(x), y, features(y), directions, problem.step)
    whole = torch.einsum("bpr,bro->bpo", coordinates, slope[..., None].flatten(2).to(coordinates))
    return residual, whole.double()
