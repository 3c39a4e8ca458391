"""States: floating tensors (B, *), and numbers of the host beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .checks import described, has_digits, is_dense


def wide(dtype: torch.dtype) -> torch.dtype:
    """That precision, and float32 for what is narrower: a state is never narrower than that."""
    return torch.promote_types(dtype, torch.float32)


def beside(values: Tensor, like: Tensor) -> Tensor:
    """(n,) as (n, 1, ...), to be multiplied with ``like`` (n, *)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def column(values: npt.NDArray[np.float64], like: Tensor) -> Tensor:
    """Numbers (n,) as (n, 1, ...) beside ``like``, in its dtype and on its device."""
    return beside(torch.tensor(values).to(like), like)


def check_floating(x: Any, name: str = "x") -> None:
    """ValueError unless it is a floating tensor (B, *)."""
    if not isinstance(x, Tensor) or not (is_dense(x) and x.ndim and has_digits(x.dtype)):
        raise ValueError(f"{name} must be a floating tensor (B, *), got {described(x)}")


def check_state(x: Tensor) -> Tensor:
    """x as float32 or wider; ValueError unless it is a floating tensor (B, *)."""
    check_floating(x)
    return x.to(wide(x.dtype))
