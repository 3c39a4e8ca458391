"""Functions for ``Guidance(combine=...)``: what to make of the conditional and the null prediction.

With P_c and P_∅ the predictions, w the scale (1 is P_c), and all products and norms over the entries of one
sample:

    apg             P_c + (w − 1) (Δ_⊥ + η Δ_∥),   Δ = P_c − P_∅, at most ``most`` long, split along P_c
    cfg_zero_star   s P_∅ + w (P_c − s P_∅),       s = ⟨P_c, P_∅⟩/‖P_∅‖²
    cfg_plus_plus   P_∅ + λ σ/(σ − σ') (P_c − P_∅),   σ' the next level of the grid

CFG++ takes the guided x̂₀ and adds the noise of the null prediction: x' = ᾱ' x̂₀ + β̄' ε̂_∅. No pair with
x = ᾱ x̂₀ + β̄ ε̂ says that, but one DDIM step with the prediction above takes x to the same x', whatever the
network predicts. It knows the step, so it is no ODE: halve the steps, and its scale doubles. It belongs to
method "ddim" on the grid that it is given; what CFG++ is for other methods are updates of their own.

APG's momentum remembers the steps before, which a function of (cond, uncond, x, σ) cannot; nor can a rule
that looks into the network (perturbed attention, skipped layers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import number, numbers, shown
from .._base.tensors import beside


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """⟨one, other⟩ of each sample, in at least float32, to go beside (B, *)."""
    wide = torch.promote_types(one.dtype, torch.float32)
    return beside((one.to(wide) * other.to(wide)).flatten(1).sum(dim=1), one)


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top/bottom, and 0 where the bottom is 0."""
    return torch.where(bottom == 0, torch.zeros_like(top), top / bottom)


def _finite(name: str, value: Any, least: float = -math.inf) -> float:
    result = number(name, value)
    if not (math.isfinite(result) and result >= least):
        raise ValueError(f"{name}={shown(value)} must be a finite number >= {least:g}")
    return result


@dataclass(frozen=True)
class apg:
    """Adaptive projected guidance: less of what is along P_c, which oversaturates. Sadat et al. 2024,
    https://arxiv.org/abs/2410.02416 (without momentum). The paper projects x̂₀: ``vector="x0"``.

    Args:
        scale: w; 1 is the conditional prediction alone.
        eta: η, the share of the parallel part that stays; 1 is plain guidance.
        most: The largest norm of Δ; inf for no bound.

    >>> import ddim_ode
    >>> from ddim_ode.denoising.guidance_rules import apg
    >>> guidance = ddim_ode.Guidance(combine=apg(7.5, most=15.0), vector="x0", null={"y": 10})
    >>> guidance.to_dict()
    {'guidance_combine': 'apg(scale=7.5, eta=0.0, most=15.0)', 'guidance_vector': 'x0'}
    """

    scale: float
    eta: float = 0.0
    most: float = math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _finite("scale", self.scale))
        object.__setattr__(self, "eta", _finite("eta", self.eta))
        if not number("most", self.most) > 0:
            raise ValueError(f"most={shown(self.most)} must be a number > 0; inf is no bound")

    def __call__(self, cond: Tensor, uncond: Tensor, x: Tensor, sigma: Any) -> Tensor:
        difference = cond - uncond
        if math.isfinite(self.most):
            length = _dot(difference, difference).sqrt()
            shorter = _ratio(torch.full_like(length, self.most), length)
            shorter = torch.where(length > self.most, shorter, torch.ones_like(length))
            difference = difference * shorter.to(cond.dtype)
        along = _ratio(_dot(difference, cond), _dot(cond, cond)).to(cond.dtype) * cond
        return cond + (self.scale - 1) * (difference + (self.eta - 1) * along)


@dataclass(frozen=True)
class cfg_zero_star:
    """CFG-Zero*: the null prediction scaled to the conditional one. Fan et al. 2025,
    https://arxiv.org/abs/2503.18886, of velocities: for networks with ``prediction="flow"``.

    Args:
        scale: w; 1 is the conditional prediction alone.
        zero_above: The velocity is 0 at levels σ above it (inf: nowhere), the paper's zero-init: it leaves
            out the first steps.
    """

    scale: float
    zero_above: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _finite("scale", self.scale))
        if self.zero_above is not None:
            object.__setattr__(self, "zero_above", _finite("zero_above", self.zero_above, 0.0))

    def __call__(self, cond: Tensor, uncond: Tensor, x: Tensor, sigma: Any) -> Tensor:
        s = _ratio(_dot(cond, uncond), _dot(uncond, uncond)).to(cond.dtype)
        guided = torch.lerp(s * uncond, cond, self.scale)
        if self.zero_above is None:
            return guided
        if isinstance(sigma, Tensor):
            return torch.where(sigma > self.zero_above, torch.zeros_like(guided), guided)
        return torch.zeros_like(guided) if sigma > self.zero_above else guided


@dataclass(frozen=True)
class cfg_plus_plus:
    """CFG++ for method "ddim" on a given grid. Chung et al. 2024, https://arxiv.org/abs/2406.08070.

    Args:
        strength: λ, in [0, 1] as the paper has it; it may be more.
        grid: The levels of the solve, σ (steps+1,), falling: ``plan.grid``.

    >>> import ddim_ode
    >>> from ddim_ode.denoising.guidance_rules import cfg_plus_plus
    >>> cfg_plus_plus(0.6, [2.0, 1.0, 0.0]).grid
    (2.0, 1.0, 0.0)
    """

    strength: float
    grid: npt.ArrayLike

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", _finite("strength", self.strength, 0.0))
        levels = numbers("grid", self.grid)
        if levels.ndim != 1 or levels.size < 2 or not (np.diff(levels) < 0).all() or levels[-1] < 0:
            raise ValueError(
                f"grid={shown(self.grid)} must be falling levels σ >= 0, at least two: plan.grid"
            )
        object.__setattr__(self, "grid", tuple(levels.tolist()))

    def __call__(self, cond: Tensor, uncond: Tensor, x: Tensor, sigma: Any) -> Tensor:
        if isinstance(sigma, Tensor):
            flat = [self._scale(level) for level in sigma.flatten().tolist()]
            scale: Any = torch.tensor(flat, device=x.device, dtype=x.dtype).reshape(sigma.shape)
        else:
            scale = self._scale(sigma)
        return torch.lerp(uncond, cond, scale)

    def _scale(self, sigma: float) -> float:
        """λ σ/(σ − σ') of the step that begins at σ."""
        levels = np.array(self.grid)
        here = int(np.argmin(np.abs(levels - sigma))) if math.isfinite(sigma) else 0
        known = levels[here] == sigma or abs(levels[here] - sigma) <= 1e-5 * sigma
        if not known or here == levels.size - 1:
            raise ValueError(
                f"cfg_plus_plus: σ={sigma:g} begins none of the {levels.size - 1} steps of its grid; it is "
                "for method 'ddim' on that grid: give it plan.grid"
            )
        return (
            self.strength
            if math.isinf(sigma)
            else self.strength * sigma / (sigma - levels[here + 1])
        )
