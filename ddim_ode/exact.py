"""Closed-form ε: Gaussians and Gaussian mixtures, the oracles of tests and benchmarks.

For data p₀ = Σ_k w_k N(μ_k, Σ_k) the marginal at level σ is Σ_k w_k N(ᾱμ_k, ᾱ²Σ_k + β̄²I). With
Σ_k = Q diag(λ) Qᵀ, z = Qᵀ(x − ᾱμ_k), v = ᾱ²λ + β̄² and r_k the posterior of component k,

    ε̂ = β̄ Σ_k r_k Q (z/v),       x̂₀ = Σ_k r_k [μ_k + ᾱ Q (λz/v)],

neither of which cancels, so both keep the precision of x at either end of σ. The exact flow of the ODE
is known for one Gaussian (each eigen-direction scales by √(v'/v)) and for 1-D mixtures, where the
ODE preserves the cumulative distribution: F_σ'(x') = F_σ(x).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr
from torch import Tensor

from ._base.checks import count, numbers, seed_of
from ._base.tensors import check_floating
from .denoising.denoiser import Denoiser
from .schedules.schedule import Array, Schedule


class ExactModel(Denoiser):
    """A Gaussian mixture as a denoiser; see :func:`gaussian_mixture`."""

    def __init__(
        self,
        weights: npt.ArrayLike,
        means: npt.ArrayLike,
        covs: npt.ArrayLike,
        schedule: Schedule,
        prediction: str = "eps",
        **options: Any,
    ) -> None:
        self.weights, self.means, covs = (
            numbers(name, a) for name, a in (("weights", weights), ("means", means), ("covs", covs))
        )
        if self.means.ndim == 1:
            self.means = self.means[:, None]
            covs = covs[:, None] if covs.ndim == 1 else covs
        if self.weights.ndim != 1 or self.means.ndim != 2 or len(self.means) != len(self.weights):
            raise ValueError(
                f"weights {self.weights.shape} and means {self.means.shape} must be (K,) and (K, D)"
            )
        if not (np.all(self.weights > 0) and abs(self.weights.sum() - 1) < 1e-8):
            raise ValueError(f"weights must be positive and sum to 1, got {self.weights}")
        k, d = self.means.shape
        if covs.shape == (k, d):
            covs = covs[:, :, None] * np.eye(d)
        if covs.shape != (k, d, d) or not np.allclose(covs, covs.swapaxes(1, 2)):
            raise ValueError(
                f"covs has shape {covs.shape}; give symmetric ({k}, {d}, {d}), or variances ({k}, {d})"
            )
        self.covs = covs
        self.eigenvalues, self.eigenvectors = np.linalg.eigh(covs)
        if self.eigenvalues.min() < -1e-10 * max(1.0, self.eigenvalues.max()):
            raise ValueError(f"covs has the negative eigenvalue {self.eigenvalues.min():g}")
        self.eigenvalues = self.eigenvalues.clip(0)
        self._tensors: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}
        # The network's time is σ itself: ᾱ and β̄ then follow on the device, without a host trip.
        super().__init__(self._predict, schedule, prediction, time=_sigma, **options)
        # Its ε̂ is right to the last digit, at any level.
        if options.get("sigma_max") is None:
            self.sigma_max = schedule.sigma_max

    def __getstate__(self) -> dict[str, Any]:
        """Without the copies on devices, which are made again."""
        return {**vars(self), "_tensors": {}}

    def log_prob(self, x: Tensor, sigma: float) -> Tensor:
        """Log density (B,) of x (B, *), in nats, under the marginal at level σ (0 allowed)."""
        level = self.schedule.level(sigma)
        check_floating(x)
        levels = torch.full((x.shape[0],), level, dtype=x.dtype, device=x.device)
        d = self.means.shape[1]
        return torch.logsumexp(self._components(x, levels)[0], dim=1) - 0.5 * d * np.log(2 * np.pi)

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """n samples (n, D) of the data distribution, float64."""
        rng = np.random.default_rng(seed_of(seed))
        p = self.weights / self.weights.sum()
        k = rng.choice(len(p), size=count("n", n, 0), p=p)
        z = rng.standard_normal((n, self.means.shape[1])) * np.sqrt(self.eigenvalues[k])
        return torch.from_numpy(self.means[k] + np.einsum("nij,nj->ni", self.eigenvectors[k], z))

    def flow(self, x: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
        """Where the ODE takes x (B, *) from one level to another, exactly (float64 inside).

        Raises:
            ValueError: A mixture in more than one dimension, whose flow has no closed form.
        """
        k, d = self.means.shape
        sigma_from = self.schedule.level(sigma_from, "sigma_from")
        sigma_to = self.schedule.level(sigma_to, "sigma_to")
        check_floating(x)
        self._check_width(x)
        flat = x.detach().cpu().double().reshape(len(x), d).numpy()
        if k == 1:
            moved = self._gaussian_flow(flat, sigma_from, sigma_to)
        elif d == 1:
            moved = self._cdf_flow(flat[:, 0], sigma_from, sigma_to)[:, None]
        else:
            raise ValueError(
                f"a mixture of {k} in {d} dimensions has no closed flow; use one Gaussian or 1-D"
            )
        return torch.as_tensor(moved).to(x).reshape(x.shape)

    def _gaussian_flow(self, x: Array, sigma_from: float, sigma_to: float) -> Array:
        (a, b), (a_to, b_to) = (self.schedule.scales(s) for s in (sigma_from, sigma_to))
        q, eigenvalues, mean = self.eigenvectors[0], self.eigenvalues[0], self.means[0]
        gain = np.sqrt((a_to**2 * eigenvalues + b_to**2) / (a**2 * eigenvalues + b**2))
        return a_to * mean + ((x - a * mean) @ q * gain) @ q.T

    def _cdf_flow(self, x: Array, sigma_from: float, sigma_to: float) -> Array:
        (a, b), (a_to, b_to) = (self.schedule.scales(s) for s in (sigma_from, sigma_to))
        mean, variance = self.means[:, 0], self.eigenvalues[:, 0]
        std, std_to = np.sqrt(a**2 * variance + b**2), np.sqrt(a_to**2 * variance + b_to**2)
        # The nearer tail, so that a probability close to 1 does not lose its digits.
        side = np.where(ndtr((x[:, None] - a * mean) / std) @ self.weights > 0.5, -1.0, 1.0)

        def tail(at: Array, centre: Array, width: Array) -> Array:
            return ndtr(side[:, None] * (at[:, None] - centre) / width) @ self.weights

        target = tail(x, a * mean, std)
        # Mapping by each component alone brackets the answer.
        alone = a_to * mean + (x[:, None] - a * mean) / std * std_to
        low, high = alone.min(axis=1), alone.max(axis=1)
        for _ in range(70):
            middle = 0.5 * (low + high)
            right = side * (tail(middle, a_to * mean, std_to) - target) < 0
            low, high = np.where(right, middle, low), np.where(right, high, middle)
        return 0.5 * (low + high)

    def _constants(self, x: Tensor) -> tuple[Tensor, ...]:
        key = (x.device, x.dtype)
        if key not in self._tensors:
            arrays = (np.log(self.weights), self.means, self.eigenvalues, self.eigenvectors)
            with torch.inference_mode(False):  # kept for later calls, which may want gradients
                self._tensors[key] = tuple(torch.as_tensor(a).to(x.device, x.dtype) for a in arrays)
        return self._tensors[key]

    def _check_width(self, x: Tensor) -> None:
        d = self.means.shape[1]
        if x.shape[1:].numel() != d:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this model's samples have {d} entries, so give (B, {d})"
            )

    def _components(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log joint densities without (2π)^{−D/2}, (B, K), z/v (B, K, D), and ᾱ, β̄ (B, 1, 1)."""
        self._check_width(x)
        log_weights, means, eigenvalues, eigenvectors = self._constants(x)
        sigma = sigma.reshape(-1, 1, 1)
        if self.schedule.family == "ve":
            alpha, beta = torch.ones_like(sigma), sigma
        elif self.schedule.family == "flow":
            alpha, beta = 1 / (1 + sigma), 1 / (1 + 1 / sigma)
        else:
            one = torch.ones_like(sigma)
            alpha, beta = 1 / torch.hypot(one, sigma), 1 / torch.hypot(one, 1 / sigma)
        variance = alpha**2 * eigenvalues + beta**2
        centred = x.reshape(x.shape[0], 1, means.shape[1]) - alpha * means
        z = torch.einsum("bki,kij->bkj", centred, eigenvectors)
        scaled = z / variance
        log_joint = log_weights - 0.5 * (z * scaled + torch.log(variance)).sum(-1)
        return log_joint, scaled, alpha, beta

    def _predict(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        if cond:
            raise ValueError(
                f"an exact mixture knows no condition {min(cond)!r}; drop cond and shared"
            )
        log_joint, scaled, alpha, beta = self._components(x, sigma)
        _, means, eigenvalues, eigenvectors = self._constants(x)
        posterior = torch.softmax(log_joint, dim=1)

        def mean_over_components(directions: Tensor) -> Tensor:
            weighted = posterior[:, :, None] * directions
            return torch.einsum("bkj,kij->bi", weighted, eigenvectors)

        def eps() -> Tensor:
            return beta[:, 0] * mean_over_components(scaled)

        def x0() -> Tensor:
            return posterior @ means + alpha[:, 0] * mean_over_components(eigenvalues * scaled)

        if self.prediction == "eps":
            out = eps()
        elif self.prediction == "x0":
            out = x0()
        elif self.prediction == "score":
            out = -mean_over_components(scaled)
        elif self.prediction == "flow":
            out = eps() - x0()
        else:
            out = alpha[:, 0] * eps() - beta[:, 0] * x0()
        return out.reshape(x.shape)


def _sigma(t: Array, sigma: Array) -> Array:
    return sigma


def gaussian_mixture(
    weights: npt.ArrayLike,
    means: npt.ArrayLike,
    covs: npt.ArrayLike,
    schedule: Schedule,
    prediction: str = "eps",
    **options: Any,
) -> ExactModel:
    """The exact denoiser of the mixture Σ_k w_k N(μ_k, Σ_k).

    It takes x (B, *) with D entries a sample, and has ``log_prob(x, sigma)``, ``draw(n, seed)`` and, in
    1-D, the exact ``flow(x, from, to)``.

    Args:
        weights: (K,), summing to 1.
        means: (K, D); in one dimension also (K,).
        covs: (K, D, D), or variances (K, D); in one dimension also (K,).
        schedule: Of the levels.
        prediction: What its "network" returns.
        **options: As in :class:`Denoiser` (``snap=``, ``dtype=``).

    >>> import ddim_ode, torch
    >>> schedule = ddim_ode.schedules.cosine()
    >>> model = ddim_ode.exact.gaussian_mixture([.5, .5], [[-2.], [2.]], [[[.25]], [[.25]]], schedule)
    >>> x0, eps = model(torch.zeros(1, 1), sigma=1.0)
    >>> float(x0.abs()), float(eps.abs())  # by symmetry
    (0.0, 0.0)
    """
    return ExactModel(weights, means, covs, schedule, prediction, **options)


def gaussian(
    mean: npt.ArrayLike,
    cov: npt.ArrayLike,
    schedule: Schedule,
    prediction: str = "eps",
    **options: Any,
) -> ExactModel:
    """The exact denoiser of N(mean (D,), cov (D, D)), with its exact ``flow`` in any dimension.

    >>> import torch, ddim_ode
    >>> model = ddim_ode.exact.gaussian([2.0], [[1.0]], ddim_ode.schedules.ve(8.0))
    >>> float(model(torch.tensor([[2.0]]), 1.0)[0])  # x̂₀ at the mean
    2.0
    """
    one = numbers("mean", mean)[None], numbers("cov", cov)[None]
    return ExactModel([1.0], *one, schedule, prediction, **options)
