"""Gradients through a solve, at three prices.

``sample(..., differentiable=)`` takes the gradient of a loss of the end state with respect to x_T, the
network's parameters and the guidance scale. ``True`` backpropagates through the steps, and keeps all
activations of all network calls. ``"checkpoint"`` gives the same numbers, keeps the state that each call
was given, and calls the network once more on the way back (Chen et al. 2016,
https://arxiv.org/abs/1604.06174). ``"adjoint"`` solves a second ODE from σ_min back to σ_max (Chen et al.
2018, https://arxiv.org/abs/1806.07366) and keeps the end state alone; its gradient has an error of its own,
of the order of the tolerance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._base.checks import flag, one_of
from ..denoising.network import by_name
from ..denoising.problem import Problem
from .loop import Evaluate

WHERE = {
    "checkpoint": "fixed plans (steps= or nfe=)",
    "adjoint": "torchdiffeq's solvers (method='torchdiffeq:dopri5')",
}


def check_mode(differentiable: Any, who: str, *able: str) -> Any:
    """``differentiable`` if it is a bool or one of ``able``; else a ValueError that says what has it.

    Nor can anything but False be had under ``torch.inference_mode``.
    """
    if not isinstance(differentiable, str):
        differentiable = flag("differentiable", differentiable)
    elif one_of("differentiable", differentiable, WHERE) not in able:
        raise ValueError(
            f"{who} has no differentiable={differentiable!r}, which is for {WHERE[differentiable]}; "
            f"use {' or '.join([*map(repr, able), 'True'])}"
        )
    if differentiable and torch.is_inference_mode_enabled():
        raise ValueError(
            f"differentiable={differentiable!r}: torch.inference_mode() keeps no gradients; call it outside"
        )
    return differentiable


def checkpointed(evaluate: Evaluate) -> Evaluate:
    """``evaluate(y, k)`` that forgets what it computed but y, and computes it again for a gradient."""

    def evaluate_again(y: Tensor, k: int) -> Tensor:
        vector: Tensor = checkpoint(evaluate, y, k, use_reentrant=False)
        return vector

    return evaluate_again


def parameters(problem: Problem) -> tuple[Tensor, ...]:
    """The tensors besides x that a network's answer depends on and that require a gradient.

    Those of a network that is a ``torch.nn.Module`` or a method of one, of its guidance, and the
    conditions. What another callable closes over cannot be seen from outside.
    """
    model = problem.model
    net = getattr(model.net, "__self__", model.net)
    tensors: list[Any] = list(net.parameters()) if isinstance(net, torch.nn.Module) else []
    if model.guidance is not None:
        tensors += [model.guidance.scale, *model.guidance.null.values()]
    tensors += by_name(**problem.conditions).values()
    wanted = {id(p): p for p in tensors if isinstance(p, Tensor) and p.requires_grad}
    return tuple(wanted.values())
