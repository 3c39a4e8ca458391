"""Log-likelihoods by the instantaneous change of variables.

Along the ODE, in the state z = x/m, m = √(ᾱ²+β̄²), of adaptive solves (active_set.py), dz/ds = f(z, s), the
density of z changes by d ln p/ds = −∇·f (Chen et al. 2018; Song et al. 2021, arXiv:2011.13456, eq. 39). So,
from a point x of p at σ_min up to its latent x_T at σ_max,

    ln p(x; σ_min) = ln p(x_T; σ_max) + D ln(m_max/m_min) + ∫ ∇·f ds,

the middle term being the change of gauge (0 on variance-preserving schedules). With the network's P,
f = A z + (B/m) P(m z), and ∇·f = A D + B ∇·P. The integral is solved together with the state (density.py),
and a sample keeps its probes along its way, so that they see a smooth problem. The usual prior N(0, I) is
not what a model's ODE starts from where ᾱ(T) > 0; on the DDPM schedule it is off by some .03 nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import count, floating, number, one_of, refuse, shown
from .._base.notebook import ROWS, listed, note, table
from .._base.tensors import check_state
from .._base.warn import warn
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import check_model
from ..denoising.seeding import DEQUANTIZE, check_seeds, generator, prior_std
from ..schedules.schedule import Schedule
from ..solve.model_key import network_dtype
from ..solve.reference import in_float64
from ..solve.request import Request, SolveOptions, lists_options
from ..solvers.controller import SUCCESS
from ..solvers.methods import Method
from .density import Density, End, flat, solve
from .divergence import Products, draw_probes, unit_vectors

if TYPE_CHECKING:
    from typing_extensions import Unpack

CELL = 2 / 255  # of 8-bit pixels in [-1, 1]
Prior = Callable[[Tensor, float], Tensor]


@dataclass(repr=False)
class LogLikelihood:
    """What :func:`log_likelihood` found for each sample, and what it cost.

    Attributes:
        log_likelihood: (B,) nats; NaN for failed samples.
        std_error: (B,) its standard error over the probes; 0 if exact, NaN with one probe.
        error: (B,) an estimate of what the solver adds to it, nats; None with fixed steps.
        latent: (B, *) x_T, at ``sigmas[1]``.
        sigmas: (σ_min, σ_max).
        status: (B,) as of a :class:`ddim_ode.Solution`.
        nfe: Sequential evaluations of the field, each one network call and ``products`` derivatives of it.
        sample_nfe: (B,) those each sample took part in.
        net_evals: Rows the network processed, its derivatives not counted.
        products: Derivatives in an evaluation.
        cell: The width of a cell of the data, for ``bits_per_dim``; set it for other data than 8-bit pixels
            in [-1, 1].

    >>> import math, torch, ddim_ode
    >>> model = ddim_ode.exact.gaussian([0.0], [[1.0]], ddim_ode.schedules.vp())
    >>> found = ddim_ode.log_likelihood(model, torch.zeros(1, 1))
    >>> abs(float(found.log_likelihood[0]) + 0.5 * math.log(2 * math.pi)) < 1e-3  # of N(0, 1)
    True
    """

    log_likelihood: Tensor
    std_error: Tensor
    error: Tensor | None
    latent: Tensor
    sigmas: tuple[float, float]
    status: npt.NDArray[np.str_]
    nfe: int
    sample_nfe: npt.NDArray[np.int64]
    net_evals: int
    products: int
    cell: float = CELL

    def __repr__(self) -> str:
        values = [
            f"{value:.6g} ± {spread:.2g}" if spread else f"{value:.6g}"
            for value, spread in zip(self.log_likelihood.tolist(), self.std_error.tolist())
        ]
        return f"LogLikelihood([{listed(values)}] nats, nfe {self.nfe})"

    def _repr_html_(self) -> str:
        columns = (self.log_likelihood, self.std_error, self.bits_per_dim)
        numbers = zip(*(values[:ROWS].tolist() for values in columns))
        rows = [
            (i, f"{value:.6g}", f"{spread:.2g}", f"{bits:.4g}", status)
            for i, ((value, spread, bits), status) in enumerate(zip(numbers, self.status))
        ]
        mean = self.log_likelihood.nanmean()
        bottom, top = self.sigmas
        return table(
            ("sample", "nats", "standard error", "bits per dimension", "status"), rows, left=(4,)
        ) + note(
            f"{len(self.status):,} samples, mean {float(mean):.6g} nats; at σ = {bottom:.3g} by way of "
            f"{top:.3g}; {self.nfe} calls in a row, {self.products} derivatives each"
        )

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,) −log₂ of the probability of a cell, per dimension: −(ln p/D + ln cell)/ln 2.

        For x = pixels/127.5 − 1 dequantised by uniform noise (:func:`ddim_ode.dequantized`) its mean over
        that noise is an upper bound of the code length of the pixels under p at σ_min (Theis et al. 2016).
        Without dequantisation it is a density, and may be negative.

        Raises:
            ValueError: ``cell`` is no width.
        """
        d = max(1, self.latent[:1].numel())
        return -(self.log_likelihood / d + math.log(_width(self.cell))) / math.log(2)


@lists_options
def log_likelihood(
    model: Denoiser,
    x: Tensor,
    method: str | Method = "rk45",
    *,
    divergence: str = "exact",
    probes: int | None = None,
    prior: str | Prior = "normal",
    dtype: torch.dtype | None = None,
    chunk: int = 16,
    **options: Unpack[SolveOptions],
) -> LogLikelihood:
    """ln p(x; σ_min) of x (B, *), in nats, under the model's probability flow.

    Warns for a guided model: the guided field is the flow of no density.

    Args:
        model: The denoiser, without limits on x̂₀.
        x: (B, *), a point of p at σ_min > 0: data x₀ come there as ᾱ x₀ + β̄ ε.
        method: ``"rk45"``, ``"bosh3"`` or ``"heun"``, each sample with its own steps; with steps or grid
            also ``"rk4"`` and ``"midpoint"``.
        divergence: ``"exact"``, D derivative products an evaluation, or ``"hutchinson"``, ``probes`` of
            them.
        probes: How many random signs v estimate the divergence as vᵀJv (default 1).
        prior: ``"normal"``, N(0, I) on variance-preserving schedules and N(0, β̄² I) at σ_max on the
            others, or a callable ``prior(x_T, sigma_max) -> (B,)`` such as ``model.log_prob`` of an exact
            mixture.
        dtype: ``torch.float64`` solves in that precision. The network is called in its own (one in float64
            is ``load(..., dtype=torch.float64)``).
        chunk: Derivatives taken at a time, which need the memory of as many rows a sample.

    **Options**, as of :func:`ddim_ode.encode`:
        sigma_min, sigma_max: Where x is (default ``model.schedule.sigma_min``), and where the prior is.
        rtol, atol: Of entries of x and of nats (default 1e-3 each).
        max_nfe: The most evaluations for a sample (default 500).
        steps, grid: Fixed Runge–Kutta steps instead.
        seeds: Of the probes, one per sample (default 0..B−1).
        cond, shared, progress: As there.

    Returns:
        The log-likelihoods, and what they cost.

    Raises:
        ValueError: It says which argument to drop or change.

    >>> import ddim_ode, torch
    >>> model = ddim_ode.exact.gaussian([1.0], [[0.25]], ddim_ode.schedules.exponential())
    >>> x = torch.tensor([[1.0], [1.5]], dtype=torch.float64)
    >>> found = ddim_ode.log_likelihood(model, x, prior=model.log_prob, rtol=1e-6, atol=1e-6)
    >>> exact = model.log_prob(x, model.schedule.sigma_min)
    >>> bool((found.log_likelihood - exact).abs().max() < 1e-5)
    True
    """
    check_model(model, limited=False)
    x = check_state(x)
    if dtype is not None:
        if floating(dtype) not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={shown(dtype)} must be torch.float32 or torch.float64")
        x, model = x.to(dtype), in_float64(model)
    if not (isinstance(prior, str) and prior == "normal") and not callable(prior):
        raise ValueError(
            f"prior={shown(prior)} must be 'normal' or callable as prior(x, sigma) -> (B,)"
        )
    if model.guidance is not None:
        warn(
            f"guidance {model.guidance.label}: the guided field is the flow of no density, so this is "
            "the log-likelihood of nothing; use guidance 1"
        )
    request = Request.of(model, x, method, options, caller="log_likelihood")
    seeds = request.options["seeds"]
    exact = one_of("divergence", divergence, ("exact", "hutchinson")) == "exact"
    if exact:
        reason = "divergence='exact' draws no probes ('hutchinson' does)"
        refuse(reason, probes=probes, seeds=seeds)
        vectors = unit_vectors(x)
    else:
        if probes is None:
            warn("a single probe has no standard error (std_error is NaN); give probes=8, say")
        n = 1 if probes is None else count("probes", probes)
        vectors = draw_probes(range(len(x)) if seeds is None else seeds, n, x)
    products = Products(count("chunk", chunk), network_dtype(model) or x.dtype)
    with torch.no_grad():
        return _result(*solve(request, vectors, exact, products), prior)


def dequantized(x: Tensor, seeds: Sequence[int], cell: float = CELL) -> Tensor:
    """x (B, *) plus uniform noise in ±cell/2: a density's view of quantised data.

    Args:
        x: The data.
        seeds: One per sample.
        cell: The width of a cell (default: of 8-bit pixels in [-1, 1]).

    >>> import ddim_ode, torch
    >>> pixels = torch.zeros(2, 1, 4, 4)
    >>> noisy = ddim_ode.dequantized(pixels / 127.5 - 1, seeds=[0, 1])
    >>> bool(((noisy + 1).abs() <= 1 / 255).all())
    True
    """
    x, cell = check_state(x), _width(cell)
    out = torch.empty(x.shape, dtype=x.dtype)
    for row, seed in zip(out, check_seeds(seeds, len(x))):
        row.copy_(torch.as_tensor(cell * (generator(seed, DEQUANTIZE).random(row.shape) - 0.5)))
    return x + out.to(x.device)


def _width(cell: float) -> float:
    """``cell`` as the width of a cell of quantised data; else a ValueError."""
    width = number("cell", cell)
    if not 0 < width < math.inf:
        raise ValueError(
            f"cell={shown(cell)} must be a width > 0; 2/255 for 8-bit pixels in [-1, 1]"
        )
    return width


def _result(field: Density, end: End, prior: str | Prior) -> LogLikelihood:
    latent, integrals = end.state[:, : field.size], end.state[:, field.size :]
    schedule, (bottom, top) = field.model.schedule, field.ends
    m_bottom, m_top = (float(np.hypot(*schedule.scales(s))) for s in (bottom, top))
    good = torch.as_tensor(end.status == SUCCESS, device=latent.device)
    x_T = latent.reshape(len(latent), *field.shape)
    density = _prior_density(prior, x_T, schedule, top)
    nats = density + field.size * math.log(m_top / m_bottom) + integrals.mean(dim=1)
    if field.exact:
        spread = torch.zeros_like(nats)
    else:  # NaN for one probe
        k = field.entries
        spread = (integrals - integrals.mean(dim=1, keepdim=True)).square().sum(dim=1)
        spread = (spread / (k * (k - 1))).sqrt() if k > 1 else spread * torch.nan
    return LogLikelihood(
        torch.where(good, nats, torch.nan),
        torch.where(good, spread, torch.nan),
        end.error,
        x_T,
        (bottom, top),
        end.status,
        end.nfe,
        end.sample_nfe,
        end.rows + field.products.extra * len(x_T) * field.model.rows(bottom),
        len(field.vectors),
    )


def _prior_density(prior: str | Prior, x: Tensor, schedule: Schedule, sigma: float) -> Tensor:
    if callable(prior):
        density = prior(x, sigma)
        if not isinstance(density, Tensor) or density.shape != x.shape[:1]:
            got = tuple(density.shape) if isinstance(density, Tensor) else type(density).__name__
            raise ValueError(
                f"prior(x, sigma) returned {got}; it must return log densities ({len(x)},)"
            )
        return density.to(x)
    std, rows = prior_std(schedule, sigma), flat(x)
    constant = rows.shape[1] * math.log(std * math.sqrt(2 * math.pi))
    return -0.5 * (rows / std).square().sum(dim=1) - constant
