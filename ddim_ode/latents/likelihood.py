"""Log-likelihoods by the instantaneous change of variables.

Along the ODE, in the state z = x/m, m = √(ᾱ²+β̄²), of adaptive solves (active_set.py), dz/ds = f(z, s), the
density of z changes by d ln p/ds = −∇·f (Chen et al. 2018; Song et al. 2021, arXiv:2011.13456, eq. 39). So,
from a point x of p at σ_min up to its latent x_T at σ_max,

    ln p(x; σ_min) = ln p(x_T; σ_max) + D ln(m_max/m_min) + ∫ ∇·f ds,

the middle term being the change of gauge (0 on variance-preserving schedules). With the network's P,
f = A z + (B/m) P(m z), and ∇·f = A D + B ∇·P.

The integral is solved together with the state, as further entries of it, one for each probe (or one for
the exact divergence): every sample has its own steps, and no step is accepted whose error in the mean of
those entries is above tolerance. A sample keeps its probes along its way: they see a smooth problem.

ln p(x_T; σ_max) is the prior's. The usual N(0, I) is not what a model's ODE starts from where ᾱ(T) > 0:
on the DDPM schedule (ᾱ(T) = .0064), and a 64-D mixture fitted to digits, whose own density at σ(T) is
known, it is off by .033 nats in the root mean square, and by at most .13 at 4,000 points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.bars import progress_bar
from .._base.checks import count, flag, floating, number, one_of, refuse, shown
from .._base.notebook import ROWS, listed, note, table
from .._base.tensors import check_state
from .._base.warn import warn
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import check_model
from ..denoising.problem import Problem
from ..denoising.seeding import DEQUANTIZE, check_seeds, generator, prior_std
from ..schedules.schedule import Schedule
from ..solve.adaptive import DEFAULT_MAX_NFE, tolerance
from ..solve.levels import Levels
from ..solve.model_key import network_dtype
from ..solve.reference import in_float64
from ..solve.request import NOT_ADAPTIVE, kind_of
from ..solvers.controller import SUCCESS
from ..solvers.methods import Method, get_method
from .density import Density, End, adaptive, fixed, flat
from .divergence import KINDS, MODES, Products, draw_probes, unit_vectors

CELL = 2 / 255  # of 8-bit pixels in [-1, 1]
Prior = Callable[[Tensor, float], Tensor]


@dataclass(repr=False)
class LogLikelihood:
    """log_likelihood (B,): nats, NaN where status is not success. std_error (B,): its standard error over
    the probes (0 if exact, NaN with one probe). error (B,): an estimate of what the solver
    adds to it, nats (None with fixed steps). latent (B, *): x_T, at sigmas[1]; sigmas: (σ_min, σ_max).
    status (B,): as of a :class:`ddim_ode.Solution`. nfe: sequential evaluations of the field, each one
    network call and ``products`` derivatives of it (in ``mode`` "forward" or "reverse"); sample_nfe (B,):
    those a sample took part in. net_evals: rows the network processed, its derivatives not counted.

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
    mode: str
    cell: float

    def __repr__(self) -> str:
        found = [
            f"{value:.6g} ± {spread:.2g}" if spread else f"{value:.6g}"
            for value, spread in zip(self.log_likelihood.tolist(), self.std_error.tolist())
        ]
        return f"LogLikelihood([{listed(found)}] nats, nfe {self.nfe})"

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
            f"{top:.3g}; {self.nfe} calls in a row, {self.products} derivatives each ({self.mode})"
        )

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,) −log₂ of the probability of a cell of width ``cell``, per dimension:
        −(ln p/D + ln cell)/ln 2.

        For x = pixels/127.5 − 1 dequantised by uniform noise (:func:`ddim_ode.dequantized`) its mean over
        that noise is an upper bound of the code length of the pixels under p at σ_min (Theis et al. 2016).
        Without dequantisation it is a density, and may be negative.
        """
        d = max(1, self.latent[:1].numel())
        return -(self.log_likelihood / d + math.log(self.cell)) / math.log(2)


def log_likelihood(
    model: Denoiser,
    x: Tensor,
    *,
    divergence: str = "exact",
    probes: int | None = None,
    probe: str | None = None,
    seeds: Sequence[int] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    prior: str | Prior = "normal",
    method: str | Method = "rk45",
    rtol: float | None = None,
    atol: float | None = None,
    max_nfe: int | None = None,
    steps: int | None = None,
    grid: str | npt.ArrayLike | None = None,
    cond: Mapping[str, Tensor] | None = None,
    shared: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    chunk: int = 16,
    mode: str = "reverse",
    cell: float = CELL,
    progress: bool = False,
) -> LogLikelihood:
    """ln p(x; σ_min) of x (B, *), in nats, under the model's probability flow.

    x is a point of p at σ_min > 0 (default ``model.schedule.sigma_min``), in network space: data x₀ come
    there as ᾱ x₀ + β̄ ε. divergence: ``"exact"``, D derivative products an evaluation, or
    ``"hutchinson"``, ``probes`` of them (default 1), ``probe="rademacher"`` or ``"gaussian"``, drawn from
    ``seeds``, one per sample (default 0..B−1). prior: ``"normal"``, N(0, I) on variance-preserving
    schedules and N(0, β̄² I) at σ_max on the others, or a callable ``prior(x_T, sigma_max) -> (B,)`` such
    as ``model.log_prob`` of an exact mixture.

    rtol, atol (default 1e-3), max_nfe (500): adaptive, for rk45, bosh3 and heun, each sample with its own
    steps; atol is of entries of x and of nats. steps=, or grid= a falling σ-array: fixed Runge–Kutta steps
    instead, with ``method`` any of rk45, bosh3, rk4, heun, midpoint.

    dtype: ``torch.float64`` solves in that precision; the network is called in its own (one in float64 is
    ``load(..., dtype=torch.float64)``). chunk: derivatives taken at a time, the memory of as many rows a
    sample; mode: ``"reverse"`` or ``"forward"``, see :mod:`ddim_ode.latents.divergence`. cell: of
    ``bits_per_dim``.

    Under guidance a UserWarning: the guided field is the flow of no density.

    ValueError says which argument to drop or change.

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
    cell = _width(cell)
    if model.guidance is not None:
        warn(
            f"guidance {model.guidance.scale:g}: the guided field is the flow of no density, so this is "
            "the log-likelihood of nothing; use guidance 1"
        )
    if one_of("divergence", divergence, ("exact", "hutchinson")) == "exact":
        refuse(
            "divergence='exact' draws no probes ('hutchinson' does)",
            probes=probes,
            probe=probe,
            seeds=seeds,
        )
        vectors = unit_vectors(x)
    else:
        seeds = range(len(x)) if seeds is None else check_seeds(seeds, len(x))
        kind = one_of("probe", probe or "rademacher", KINDS)
        if probes is None:
            warn("a single probe has no standard error (std_error is NaN); give probes=8, say")
        vectors = draw_probes(seeds, 1 if probes is None else count("probes", probes), x, kind)
    spec, visible = get_method(method), flag("progress", progress)
    given = grid is not None and not isinstance(grid, str)
    final = None if given else "sigma_min"
    levels = Levels(model, steps, None, grid, None, final, sigma_max, sigma_min, rising=True)
    asked = any(value is not None for value in (rtol, atol, max_nfe))
    by_tolerance = kind_of(spec, placed=levels.placed, tolerant=asked) == "adaptive"
    if not by_tolerance:
        refuse(NOT_ADAPTIVE, rtol=rtol, atol=atol, max_nfe=max_nfe)
    sigmas = (
        levels.ends() if by_tolerance else levels.passed(levels.required(f"method {spec.name!r}"))
    )
    field = Density(
        Problem(model, cond, shared),
        (float(sigmas[0]), float(sigmas[-1])),
        x,
        vectors,
        divergence == "exact",
        Products(
            count("chunk", chunk), one_of("mode", mode, MODES), network_dtype(model) or x.dtype
        ),
    )
    with torch.no_grad(), progress_bar(visible, unit="nfe", desc=spec.name) as bar:
        if by_tolerance:
            limit = count("max_nfe", DEFAULT_MAX_NFE if max_nfe is None else max_nfe)
            tolerances = tolerance("rtol", rtol), tolerance("atol", atol)
            end = adaptive(field, x, spec, tolerances, limit, bar.update)
        else:
            end = fixed(field, x, spec, sigmas, bar.update)
        return _result(field, x, end, prior, cell)


def dequantized(x: Tensor, seeds: Sequence[int], cell: float = CELL) -> Tensor:
    """x (B, *) plus uniform noise in ±cell/2, one seed a sample: a density's view of quantised data.

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
    """Of a cell of quantised data; ValueError for what is none."""
    found = number("cell", cell)
    if not 0 < found < math.inf:
        raise ValueError(
            f"cell={shown(cell)} must be a width > 0; 2/255 for 8-bit pixels in [-1, 1]"
        )
    return found


def _result(field: Density, x: Tensor, end: End, prior: str | Prior, cell: float) -> LogLikelihood:
    latent, integrals = end.state[:, : field.size], end.state[:, field.size :]
    schedule, (bottom, top) = field.model.schedule, field.ends
    m_bottom, m_top = (float(np.hypot(*schedule.scales(s))) for s in (bottom, top))
    good = torch.as_tensor(end.status == SUCCESS, device=x.device)
    x_T = latent.reshape(x.shape)
    density = _prior_density(prior, x_T, schedule, top)
    found = density + field.size * math.log(m_top / m_bottom) + integrals.mean(dim=1)
    if field.exact:
        spread = torch.zeros_like(found)
    else:  # NaN for one probe
        k = field.entries
        spread = (integrals - integrals.mean(dim=1, keepdim=True)).square().sum(dim=1)
        spread = (spread / (k * (k - 1))).sqrt() if k > 1 else spread * torch.nan
    return LogLikelihood(
        torch.where(good, found, torch.nan),
        torch.where(good, spread, torch.nan),
        end.error,
        x_T,
        (bottom, top),
        end.status,
        end.nfe,
        end.sample_nfe,
        end.rows + field.products.extra * len(x) * field.model.rows(bottom),
        len(field.vectors),
        field.products.mode,
        cell,
    )


def _prior_density(prior: str | Prior, x: Tensor, schedule: Schedule, sigma: float) -> Tensor:
    if callable(prior):
        found = prior(x, sigma)
        if not isinstance(found, Tensor) or found.shape != x.shape[:1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"prior(x, sigma) returned {got}; it must return log densities ({len(x)},)"
            )
        return found.to(x)
    std, rows = prior_std(schedule, sigma), flat(x)
    constant = rows.shape[1] * math.log(std * math.sqrt(2 * math.pi))
    return -0.5 * (rows / std).square().sum(dim=1) - constant
