"""Checks of the network's own precision: one answer to one question, and the same one in half the bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..denoising.denoiser import Denoiser
from ..denoising.problem import Problem
from .findings import Finding
from .probe import Probe, rms

_CHANCE = 1e-3  # relative difference of two answers to one question that is more than rounding
_HALF = 0.1  # relative error of a network in half precision that is more than rounding


def repeatable(probe: Probe) -> Finding | None:
    """Whether one question has one answer."""
    sigma = float(probe.sigmas[len(probe.sigmas) // 2])
    x = probe.noised(probe.noise if probe.out_of_scale(probe.x0) else probe.x0, sigma)
    first, again = (probe.ask(probe.model, x, sigma)[1] for _ in range(2))
    chance = rms(again - first) / max(rms(first), 1e-12)
    if not chance > _CHANCE:
        return None
    probe.skip("the network answers one question in two ways", "half-precision")
    net = probe.model.net
    training = isinstance(net, nn.Module) and any(part.training for part in net.modules())
    return Finding(
        "repeatable",
        "error",
        chance,
        f"asked the same twice, the network's answers differ by {chance:.1%}",
        "call net.eval(): it is in training mode, where dropout is on"
        if training
        else "look for what its answers depend on beside x, t and the conditions: random numbers, or what "
        "an earlier call left behind",
    )


def half_precision(probe: Probe) -> Finding | None:
    """The same network on the same inputs: once more, in float16 and in bfloat16."""
    net = probe.model.net
    if not isinstance(net, nn.Module) or not any(p.is_floating_point() for p in net.parameters()):
        probe.skip("the network is no torch.nn.Module with weights to convert", "half-precision")
        return None
    few = slice(0, 2)
    sigmas = probe.sigmas[[0, len(probe.sigmas) // 2, -1]].tolist()
    x0 = probe.noise if probe.out_of_scale(probe.x0) else probe.x0
    inputs = [probe.noised(x0, sigma)[few] for sigma in sigmas]

    def answers(model: Denoiser) -> Tensor:
        problem = Problem(model, probe.cond, probe.shared).rows(few)
        with torch.no_grad():
            out = [problem(x, s)[1] for x, s in zip(inputs, sigmas)]
        return torch.stack(out)

    exact = answers(probe.model)
    if not exact.any():
        probe.skip("the network answers 0", "half-precision")
        return None
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        try:
            half = answers(probe.model.replace(net=copy.deepcopy(net).to(dtype), dtype=dtype))
        except Exception as failure:  # no such kernels here, a network that insists on its dtype
            reason = str(failure).strip().split("\n")[0]
            probe.skip(f"it does not run in {name} here ({reason})", f"half-precision, {name}")
            continue
        if not half.isfinite().all():
            most = _largest_activation(probe.model, net, answers)
            return Finding(
                "half-precision",
                "warning",
                most,
                f"in {name} the network's answers are not finite: its activations reach {most:.3g}, and "
                f"{name} ends at {torch.finfo(dtype).max:.3g}",
                "keep it in float32, or use torch.bfloat16",
            )
        error = rms(half - exact) / rms(exact)
        if error > _HALF:
            return Finding(
                "half-precision",
                "warning",
                error,
                f"in {name} the network's answers move by {error:.1%}",
                "keep the network in float32",
            )
    return None


def _largest_activation(
    model: Denoiser, net: nn.Module, answers: Callable[[Denoiser], Tensor]
) -> float:
    """The largest entry of any module's output, in the network's own precision."""
    most = [0.0]

    def listening(module: nn.Module, inputs: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.is_floating_point():
            most[0] = max(most[0], float(out.abs().max()))

    hooks = [module.register_forward_hook(listening) for module in net.modules()]
    try:
        answers(model)
    finally:
        for hook in hooks:
            hook.remove()
    return most[0]
