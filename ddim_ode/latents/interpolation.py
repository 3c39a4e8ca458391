"""Interpolation of latents along great circles.

Noise of D entries lies near the sphere of radius √D, and a straight line between two noises passes inside
of it: half-way between two independent ones it is too short by √2, and a model makes something dull of
that. With Ω the angle between z_a and z_b, the path

    z(w) = r(w) [sin((1−w)Ω) z_a/|z_a| + sin(wΩ) z_b/|z_b|] / sin Ω,       r(w) = (1−w)|z_a| + w|z_b|

turns at constant speed Ω, and its norm goes linearly from the one to the other. At equal norms it is that
of Shoemake 1985 and of Song et al. 2021, eq. 67 (https://arxiv.org/abs/2010.02502).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import described, is_dense, numbers, shown


def slerp(a: Tensor, b: Tensor, weights: npt.ArrayLike) -> Tensor:
    """Points (K, B, *) between two latents, each sample on a great circle of its own.

    Where a and b point the same way the path is the straight line.

    Args:
        a, b: The latents (B, *), of one dtype.
        weights: (K,) in [0, 1]: 0 is a, 1 is b; one number gives (B, *).

    Returns:
        The points, computed in float64 and returned in the latents' dtype.

    Raises:
        ValueError: Weights out of range, tensors that are not alike, a latent that is zero or not finite,
            or two that point in opposite directions, which every great circle joins.

    >>> import torch
    >>> a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    >>> [round(float(z.norm()), 5) for z in slerp(a, b, [0.0, 0.5, 1.0])]
    [3.0, 4.0, 5.0]
    """
    w = numbers("weights", weights)
    if w.ndim > 1 or not np.all((w >= 0) & (w <= 1)):
        raise ValueError(f"weights={shown(weights)} must be numbers in [0, 1], from a (0) to b (1)")
    for name, z in (("a", a), ("b", b)):
        if not isinstance(z, Tensor) or not is_dense(z):
            raise ValueError(f"latent {name} must be a tensor (B, *), got {described(z)}")
    if a.ndim < 2 or (a.shape, a.dtype) != (b.shape, b.dtype) or not a.is_floating_point():
        raise ValueError(
            f"latents must be two floating tensors (B, *) alike, got {a.dtype} {tuple(a.shape)} and "
            f"{b.dtype} {tuple(b.shape)}"
        )
    if not a.numel():
        return a.new_empty((*w.shape, *a.shape))
    norms, units = zip(*(_polar(name, z) for name, z in (("a", a), ("b", b))))
    # 2 atan2 keeps its digits at both ends, where the arc cosine of u_a·u_b loses half of them.
    apart = torch.linalg.vector_norm(units[0] - units[1], dim=1)
    together = torch.linalg.vector_norm(units[0] + units[1], dim=1)
    # Nearer to each other's opposite, rounding decides where the plane of the circle lies.
    close = max(8 * torch.finfo(a.dtype).eps, 1e-8)
    opposite = torch.nonzero(together < close).flatten().tolist()
    if opposite:
        raise ValueError(
            f"latents a and b of sample {opposite[0]} point in opposite directions, and every great "
            "circle joins them: go by way of a third one"
        )
    omega = 2 * torch.atan2(apart, together)
    at = torch.as_tensor(np.atleast_1d(w), device=a.device)[:, None]
    angles = torch.stack([(1 - at) * omega, at * omega])
    # sin x = x sinc x: the ratio has its limit, w, at Ω = 0.
    share = torch.stack([1 - at, at]) * _sinc(angles) / _sinc(omega)
    radius = (1 - at) * norms[0] + at * norms[1]
    path = radius[..., None] * (share[0, ..., None] * units[0] + share[1, ..., None] * units[1])
    path = path.to(a.dtype).reshape(-1, *a.shape)
    return path if w.ndim else path[0]


def _polar(name: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (B,) and directions (B, D) of latents, float64."""
    flat = z.double().flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1)
    bad = torch.nonzero(~((norm > 0) & torch.isfinite(norm))).flatten().tolist()
    if bad:
        raise ValueError(f"latent {name} of sample {bad[0]} has norm {float(norm[bad[0]]):g}")
    return norm, flat / norm[:, None]


def _sinc(x: Tensor) -> Tensor:
    return torch.sinc(x / torch.pi)
