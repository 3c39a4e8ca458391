"""Checks of what the network's answers mean: how they are to be read, with which sign, at which scale of x
and which time, and whether they say anything at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Denoiser
from .findings import WILD_SAMPLES, Finding, Probe, rms

OF_MEANING = ("untrained", "sign", "prediction", "input-scale", "network-time", "terminal-snr")
_READINGS = ("eps", "x0", "v")
_FOLLOWS = 2.0  # share of the noise, in units of β̄, beyond that of an answer like x
_CLEARLY = 1.25  # ratio of losses from which one reading is better than another
_SCALES = (0.25, 0.5, 2.0, 4.0)
_TIMES = (1e-3, 0.1, 0.25, 0.5, 0.75, 1.33, 2.0, 4.0, 10.0)
_USUAL = 1000.0  # the T of most networks, where a configuration may say less
_BETTER = 1.1  # ratio of errors, with 1/√entries more, that makes a network worse than a·x + c
_DEAF = 1e-3  # relative change of answers to other questions
_ALIKE = 0.7  # correlation of an answer with the noise that it is shown
_SIZE = (0.5, 2.0)  # of an ε-network's answer to noise, in units of that noise


def misunderstood(probe: Probe) -> Finding | None:
    """Of a wrong reading, sign, scale or time the one whose cure helps most: each makes the others look
    wrong. Where none helps, answers that are worth nothing."""
    worst = deaf(probe)
    hidden = list(OF_MEANING)
    if worst is None:
        found = [f for f in (prediction(probe), sign(probe), input_scale(probe)) if f is not None]
        hidden = [*(f.check for f in found), "network-time", "untrained", "terminal-snr"]
        worst = max(found, key=lambda finding: finding.evidence, default=None)
    worst = worst or other_data(probe) or network_time(probe) or useless(probe)
    if worst is not None:
        others = [check for check in hidden if check != worst.check]
        probe.skip(f"set {worst.check!r} right first: it hides this", *others)
    return worst


def deaf(probe: Probe) -> Finding | None:
    """Answers that do not depend on what is asked, where they are not right all the same."""
    if probe.data is None:
        if probe.model.prediction == "x0":
            return None  # whatever it answers is then the sample
    elif probe.own < 1 / _CLEARLY:
        return None
    change = 0.0
    for sigma in probe.sigmas.tolist():
        one, other = (
            _answer(probe, probe.noised(x, sigma), sigma) for x in (probe.noise, probe.eps)
        )
        change = max(change, rms(one - other) / max(rms(one), 1e-12))
    if change > _DEAF:
        return None
    return Finding(
        "untrained",
        "error",
        1.0,
        f"shown other samples, the network's answers move by {change:.1e} of their size at most, less than "
        f"{_DEAF:g}: it does not look at x",
        "load the trained weights; see that net(x, t) uses its x",
    )


def useless(probe: Probe) -> Finding | None:
    """Answers further from what was to be answered than a multiple of x is, which needs no network."""
    if probe.wild(probe.x0):
        if probe.model.prediction != "eps" or (likeness := _likeness(probe)[0]) > _ALIKE / 2:
            probe.skip(WILD_SAMPLES, "untrained")
            return None
        error = 1 - likeness
        text = "of noise alone an ε-network returns that noise, and this one's answers have correlation "
        text += f"{likeness:.2f} with it"
    else:
        error, linear = probe.own, probe.linear(probe.x0)
        if error < linear * (_BETTER + probe.x0.numel() ** -0.5):
            return None
        shown = "data" if probe.data is not None else "samples of its own"
        text = f"on noised {shown} the network's answers have error {error:.2f}, and the best a·x + c, "
        text += f"two numbers a level, has {linear:.2f} (no answer: 1)"
    return Finding(
        "untrained",
        "error",
        error,
        f"{text}, and no other reading, sign, scale or time makes them better",
        "load the trained weights, and the data and conditions that they were trained with",
    )


def sign(probe: Probe) -> Finding | None:
    """Answers with the wrong sign: those of a network trained on the negative of its target."""
    flipped = probe.variant(net=_times(probe.model, -1.0))
    if probe.data is None and not probe.wild(probe.x0) and probe.own < 1:
        return None  # the model agrees with itself
    x0 = probe.data if probe.data is not None else probe.generate(flipped)
    if probe.wild(x0):
        return None
    own, cured = (probe.loss(model, x0) for model in (probe.model, flipped))
    ratio = own / max(cured, 1e-12)
    if not (ratio > _CLEARLY and cured < 1 / _CLEARLY):
        return None
    return Finding(
        "sign",
        "error",
        ratio,
        f"with the sign turned, the network's answers are {ratio:.3g} times closer to what a "
        f"{probe.model.prediction}-network returns (errors {own:.2f} and {cured:.2f})",
        "net=lambda x, t, **cond: -net(x, t, **cond)",
    )


def prediction(probe: Probe) -> Finding | None:
    """Which reading of the output makes the denoiser consistent with noise that was added to samples.

    With data, the reading of least error. Without, what the answers follow (see
    :func:`_by_what_it_follows`), and its error on samples that the model makes, read so or else as v (an
    undertrained ε-network makes wild ones).
    """
    declared = probe.model.prediction
    if declared not in _READINGS:
        reason = f"a {declared}-network's answers are not told from those of {', '.join(_READINGS)}"
        probe.skip(reason, "prediction")
        return None
    if probe.data is not None:
        x0 = probe.data
        best = min(_READINGS, key=lambda reading: probe.loss(_read_as(probe, reading), x0))
    else:
        best = _by_what_it_follows(probe)
        if best == declared:
            return None
        made = (probe.generate(_read_as(probe, reading)) for reading in (best, "v"))
        tame = next((x for x in made if not probe.wild(x)), None)
        if tame is None:
            probe.skip(WILD_SAMPLES, "prediction")
            return None
        x0 = tame
    errors = [probe.loss(_read_as(probe, reading), x0) for reading in (declared, best)]
    ratio = errors[0] / max(errors[1], 1e-12)
    if not (ratio > _CLEARLY and errors[1] < 1 / _CLEARLY):  # a reading that explains the answers
        return None
    key = dict(eps="epsilon", x0="sample", v="v_prediction")[best]
    return Finding(
        "prediction",
        "error",
        ratio,
        f"declared as {declared!r}, but its answers are {ratio:.3g} times closer to {best!r} (errors "
        f"{errors[0]:.2f} and {errors[1]:.2f}, where no answer has 1)",
        f"prediction={best!r} (in a scheduler's configuration prediction_type={key!r})",
    )


def _by_what_it_follows(probe: Probe) -> str:
    """The reading that the answers look like.

    In pure noise an ε-network returns x. In almost clean samples a v-network returns their noise, and
    an x0-network what is left without it: its answer moves with the noise by β̄ at most, as x does. The
    samples are those that the model makes when read as v, which only a v-network knows; those made when
    read as x0 tell nothing, since what a network returns is there the sample, whatever it is.
    """
    likeness, size = _likeness(probe)
    if likeness > _ALIKE and _SIZE[0] < size < _SIZE[1]:
        return "eps"
    made = probe.generate(_read_as(probe, "v"))
    if probe.wild(made):
        return "x0"
    sigma = float(probe.sigmas[0])
    alpha, beta = (float(scale) for scale in probe.model.schedule.scales(sigma))
    up, down = (
        _answer(probe, alpha * made + sign * beta * probe.eps, sigma) for sign in (1.0, -1.0)
    )
    followed = float((0.5 * (up - down) * probe.eps).mean() / probe.eps.square().mean())
    return "v" if followed > _FOLLOWS * beta else "x0"


def _likeness(probe: Probe) -> tuple[float, float]:
    """Correlation of the answer to noise alone, at the last level, with it, and its size in units of it."""
    sigma, eps = float(probe.sigmas[-1]), probe.eps.flatten()
    answer = _answer(probe, probe.noised(torch.zeros_like(probe.eps), sigma), sigma).flatten()
    return float(torch.corrcoef(torch.stack([answer, eps]))[0, 1]), rms(answer) / rms(eps)


def _answer(probe: Probe, x: Tensor, sigma: float) -> Tensor:
    """What the network returns, whatever it is declared to be."""
    return probe.wanted(probe.model.prediction, *probe.ask(probe.model, x, sigma), sigma)


def input_scale(probe: Probe) -> Finding | None:
    """Whether the data, and what the network is shown, have the scale it was trained in."""
    if probe.wild(probe.x0):
        probe.skip(WILD_SAMPLES, "input-scale")
        return None
    best, factor = probe.own, 1.0
    for scale in _SCALES:
        variant = probe.variant(net=_scaled(probe.model, scale))
        x0 = probe.data if probe.data is not None else probe.generate(variant)
        loss = float("inf") if probe.wild(x0) else probe.loss(variant, x0)
        if loss < best:
            best, factor = loss, scale
    ratio = probe.own / max(best, 1e-12)
    if ratio >= 1.5 and best < 1 / _CLEARLY:
        return Finding(
            "input-scale",
            "error",
            ratio,
            f"shown {factor:g}·x instead of x, the network denoises {ratio:.3g} times better",
            f"net=lambda x, t, **cond: net({factor:g} * x, t, **cond), or the schedule of that scale "
            "(ddim_ode.schedules.ve for networks that see x/ᾱ)",
        )
    return None


def other_data(probe: Probe) -> Finding | None:
    """Data whose mean or width is not that of the model's own samples (if it is read rightly)."""
    data = probe.data
    if data is None or probe.lifeless or probe.wild(probe.made):
        return None  # the model's own samples say nothing of their scale
    if probe.own < _CLEARLY * probe.loss(probe.model, probe.made):
        return None  # the network denoises these as well as those
    a, b = (float(v) for v in (data.mean(), data.std()))
    c, d = (float(v) for v in (probe.made.mean(), probe.made.std()))
    ratio = b / d if d else np.inf
    if 0.5 < ratio < 2 and abs(a - c) <= d:
        return None
    return Finding(
        "input-scale",
        "error",
        max(ratio, 1 / ratio),
        f"the data have mean {a:.3g} and std {b:.3g}, what the model makes {c:.3g} and {d:.3g}: "
        f"{ratio:.3g} times the scale it was trained in",
        f"x ↦ {d / b:.3g}·(x − {a:.3g}) + {c:.3g}, as in training (pixels to [−1, 1], latents "
        "times their scaling factor)",
    )


def network_time(probe: Probe) -> Finding | None:
    """Whether other times than those it is told suit the network better: a wrong schedule or unit of t."""
    model, most = probe.model, probe.model.schedule.T
    if most > 1 and probe.device.type == "cpu":  # elsewhere an index out of range ends the process
        most = max(most, _USUAL)
    if probe.wild(probe.x0):
        probe.skip(WILD_SAMPLES, "network-time")
        return None
    sigmas, ratios, factors = probe.sigmas[1:-1], [], []
    for sigma in sigmas.tolist():
        level = np.array([sigma])
        own = probe.loss(model, probe.x0, level)
        t = float(model.network_time(model.snapped(level))[0])
        losses = {1.0: own}
        for factor in _TIMES:
            if 0 < factor * t <= most:
                # a network may have a table of the times that its configuration says
                beyond = factor * t > model.schedule.T
                with contextlib.suppress(Exception) if beyond else contextlib.nullcontext():
                    losses[factor] = probe.loss(_at_time(probe, factor * t), probe.x0, level)
        best = min(losses, key=losses.__getitem__)
        ratios.append(own / max(losses[best], 1e-12))
        factors.append(best)
    ratio = float(np.exp(np.mean(np.log(ratios))))
    if ratio < 1.5:
        return None
    shown = ", ".join(f"{f:g}×" for f in factors)
    return Finding(
        "network-time",
        "error",
        ratio,
        f"told other times than its own, the network denoises {ratio:.3g} times better (best at {shown} "
        f"the time, for σ = {', '.join(f'{s:.3g}' for s in sigmas)})",
        "the schedule is not the one of training, or t is counted otherwise: check the betas, time= and "
        "time_offset=",
    )


def _read_as(probe: Probe, reading: str) -> Denoiser:
    return probe.variant(prediction=reading)


def _scaled(model: Denoiser, scale: float) -> Callable[..., Tensor]:
    return lambda x, t, **cond: model.net(scale * x, t, **cond)


def _times(model: Denoiser, factor: float) -> Callable[..., Tensor]:
    return lambda x, t, **cond: factor * model.net(x, t, **cond)


def _at_time(probe: Probe, t: float) -> Denoiser:
    """The model told t whatever the level."""
    return probe.variant(
        time=lambda _, sigma: np.full(sigma.shape, t), time_offset=0.0, _levels=None, snap=False
    )
