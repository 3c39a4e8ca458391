"""Checks of the network: what it returns, what that means, and whether it is the same twice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .findings import Finding
from .interpretation import OF_MEANING, dominant_error
from .precision import half_precision, repeatable
from .probe import Probe, rms

_NEED_NUMBERS = ("half-precision", *OF_MEANING)
_BLIND = 100.0  # error of x̂₀ at the first level, in units of the data, that no first step survives


def checks(probe: Probe) -> Iterator[Finding]:
    """All findings of the network; what is wrong with its output is set right for the rest."""
    variance = learned_variance(probe)
    if variance is not None:
        yield variance
        probe.model = probe.model.replace(learned_variance="split")
    broken = non_finite(probe)
    if broken is not None:
        yield broken
        probe.skip(f"set {broken.check!r} right first: it hides this", *_NEED_NUMBERS)
        return
    if probe.degenerate and probe.data is None:
        probe.skip(f"{probe.degenerate}; give data", *_NEED_NUMBERS)
        yield from filter(None, (unfinished(probe),))
        return
    yield from filter(None, (repeatable(probe) or half_precision(probe),))
    found = dominant_error(probe) or [*filter(None, (terminal_snr(probe),))]
    yield from found or filter(None, (unfinished(probe),))


def learned_variance(probe: Probe) -> Finding | None:
    """Twice the channels: a prediction and a variance."""
    model = probe.model
    if model.learned_variance == "split":
        config = getattr(model, "config", {})
        kind = config.get("variance_type", "learned")
        if kind in ("learned", "learned_range"):
            return None
        return Finding(
            "learned-variance",
            "error",
            2.0,
            "the network returns twice the channels of x, and its scheduler is told "
            f"variance_type={kind!r}: it would take the variance for a part of the prediction",
            "set variance_type='learned_range' in the scheduler's configuration (this package splits the "
            "output by itself)",
        )
    channels: list[float] = []

    def listening(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out: Tensor = model.net(x, t, **cond)
        if x.ndim > 1 and out.shape[1:2] == (2 * x.shape[1],):
            channels.append(out.shape[1] / x.shape[1])
            return out[:, : x.shape[1]]
        return out

    probe.ask(probe.model.replace(net=listening), probe.noise, float(probe.sigmas[0]))
    if not channels:
        return None
    return Finding(
        "learned-variance",
        "error",
        channels[0],
        f"the network returns {channels[0]:g} × the channels of x: a prediction and a learned variance",
        "Denoiser(..., learned_variance='split')",
    )


def non_finite(probe: Probe) -> Finding | None:
    """NaN or inf at some level, the lowest that a solve asks for among them."""
    x = probe.noise if probe.data is None else probe.data
    sigmas = [probe.model.schedule.sigma_min, *probe.sigmas.tolist()]
    bad = [
        int((~probe.ask(probe.model, probe.noised(x, sigma), sigma)[1].isfinite()).sum())
        for sigma in sigmas
    ]
    if not any(bad):
        return None
    share = sum(bad) / (x.numel() * len(sigmas))
    where = ", ".join(f"{sigma:.3g}" for sigma, count in zip(sigmas, bad) if count)
    return Finding(
        "non-finite",
        "error",
        share,
        f"{share:.1%} of the network's answers are NaN or inf, those at σ={where}",
        "look for overflow in the weights' precision (load them in float32), and for what the network does "
        "with t there",
    )


def unfinished(probe: Probe) -> Finding | None:
    """Samples that are NaN or inf, where nothing else says why."""
    share = float((~probe.made.isfinite()).float().mean())
    if not share:
        return None
    return Finding(
        "non-finite",
        "error",
        share,
        f"{share:.1%} of what the model makes in a few steps is NaN or inf, though the network's answers "
        "to noised samples are finite",
        "look at the network's answers between those levels, and at states larger than the data's",
    )


def terminal_snr(probe: Probe) -> Finding | None:
    """ε-prediction where ᾱ is (almost) 0: x̂₀ = (x − β̄ε̂)/ᾱ magnifies the network's error by σ.

    Asked at the level that the model starts from, which need not be σ(T).
    """
    model, schedule = probe.model, probe.model.schedule
    if model.prediction not in ("eps", "score"):
        return None
    top = model.sigma_max
    beta = float(schedule.scales(top)[1])
    unit = probe.noise / float(schedule.scales(schedule.sigma_max)[1])
    x = beta * unit
    call = model.network(x, probe.cond, probe.shared)
    level = model.snapped(np.array([top]))
    t = torch.full((probe.rows,), float(model.network_time(level)[0]), device=probe.device)
    with torch.no_grad():
        answer = call(x, t)
    eps = answer if model.prediction == "eps" else -beta * answer
    error = rms(eps - unit)
    fix = (
        "train for v or x0 there (prediction_type='v_prediction'), or start lower: "
        f"sigma_max={min(float(schedule.sigma(0.98 * schedule.T)), top / 2):.3g}"
    )
    if math.isinf(top):
        return Finding(
            "terminal-snr",
            "error",
            error,
            "ᾱ=0 at the first level (zero terminal SNR, rescale_betas_zero_snr): the network's ε̂ errs by "
            f"RMS {error:.2g} there, and x̂₀ = (x − ε̂)/0",
            fix,
        )
    blown = top * error / rms(probe.x0)
    if probe.limit or not blown > _BLIND:  # a limited x̂₀ cannot err by so much
        return None
    return Finding(
        "terminal-snr",
        "error",
        blown,
        f"at σ={top:.3g}, where it starts, the network's ε̂ errs by RMS {error:.2g}, so x̂₀ errs by "
        f"{blown:.3g} times the data",
        fix,
    )
