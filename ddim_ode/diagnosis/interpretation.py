"""Checks of what the network's answers mean: how they are to be read, with which sign, at which scale of x
and which time, and whether they say anything at all."""

from __future__ import annotations

import math

import numpy as np
import torch

from .evidence import CLEARLY, LEAST, OF_READING, Bench, better, correlation, usable_clocks
from .findings import Finding
from .probe import OUT_OF_SCALE, Probe, rms
from .readings import Reading

OF_MEANING = (*OF_READING, "untrained", "terminal-snr")
_BETTER = 1.1  # ratio of errors, with 1/√entries more, that makes a network worse than a·x + c
_NUMBERS = 16  # in clean samples, at least, for the same
_WORSE = 1.25  # ratio of errors on data and on samples of its own that makes the data others
_IGNORED = 1e-3  # relative change of answers to other questions
_ALIKE = 0.7  # correlation of an answer with the noise that it is shown


def dominant_error(probe: Probe) -> list[Finding]:
    """What is to be read otherwise, by the reading that the answers bear out; where none is, answers that
    are worth nothing."""
    bench = Bench(probe, probe.clean)
    findings = _one(ignores_input(probe, bench) or ignores_time(probe, bench))
    findings = findings or misread(probe, bench)
    findings = findings or _one(other_data(probe, bench)) or _one(worse_than_linear(probe, bench))
    if findings:
        named = [finding.check for finding in findings]
        others = [check for check in OF_MEANING if check not in named]
        probe.skip(f"set {named[0]!r} right first: it hides this", *others)
    return findings


def _one(finding: Finding | None) -> list[Finding]:
    return [] if finding is None else [finding]


def ignores_input(probe: Probe, bench: Bench) -> Finding | None:
    """Answers that do not depend on what is asked, where they are not right all the same."""
    if probe.data is None:
        if probe.model.prediction == "x0":
            return None  # whatever it answers is then the sample
    elif bench.loss[0] < 1 / CLEARLY:
        return None
    change = _change(probe, bench.own)
    if change > _IGNORED:
        return None
    if any(_change(probe, bench.own._replace(clock=c)) > _IGNORED for c in usable_clocks(probe)):
        return None
    return Finding(
        "untrained",
        "error",
        1.0,
        f"shown other samples, the network's answers move by {change:.1e} of their size at most, less than "
        f"{_IGNORED:g}: it does not look at x",
        "load the trained weights; see that net(x, t) uses its x",
    )


def ignores_time(probe: Probe, bench: Bench) -> Finding | None:
    """Answers to one x that are the same whatever the level, where that cannot be right.

    What removes noise from data on a known scale can tell the level from x itself, if x is large: such
    networks exist, and do well. Without data, or where this one does not do well, it is told.
    """
    if probe.data is not None and bench.loss[0] < bench.loss[1] / CLEARLY:
        return None
    clocks = (None, *usable_clocks(probe))  # told of other times, it may look at them
    if not all(_blind(probe, bench.own._replace(clock=clock)) for clock in clocks):
        return None
    return Finding(
        "network-time",
        "warning",
        1.0,
        f"shown one x at levels from σ={probe.sigmas[0]:.3g} to {probe.sigmas[-1]:.3g}, the network "
        "answers the same: it does not look at t",
        "see that net(x, t) uses its t, and that what it is told differs from level to level",
    )


def _blind(probe: Probe, reading: Reading) -> bool:
    """Whether the answers to one x are the same at all levels, to the last bit."""
    x = probe.noised(probe.noise, float(probe.sigmas[len(probe.sigmas) // 2]))
    first = probe.answer(reading, x, 0)
    later = (probe.answer(reading, x, k) for k in range(1, len(probe.sigmas)))
    return all(first is None or a is None or torch.equal(a, first) for a in later)


def _change(probe: Probe, reading: Reading) -> float:
    """How much the answers move at most when other samples are shown, in units of their size."""
    change = 0.0
    for k, sigma in enumerate(probe.sigmas.tolist()):
        shown = (probe.noised(x, sigma) for x in (probe.noise, probe.eps))
        one, other = (probe.answer(reading, x, k) for x in shown)
        if one is None or other is None:
            return 0.0
        change = max(change, rms(one - other) / max(rms(one), 1e-12))
        if change > _IGNORED:
            break
    return change


def misread(probe: Probe, bench: Bench) -> list[Finding]:
    """What is to be read otherwise, one finding for each change."""
    winner = better(probe, bench)
    if winner is None:
        return []
    changes, ratio = winner.reading.changes(bench.own.prediction), winner.own / winner.misfit
    text = ", ".join(what for what, fix in changes.values())
    message = (
        f"{text}, the network denoises {ratio:.3g} times better (its error is {winner.misfit:.2f} times "
        f"that of the best a·x + c, and as it is read now {winner.own:.2f} times)"
    )
    return [Finding(check, "error", ratio, message, fix) for check, (_, fix) in changes.items()]


def other_data(probe: Probe, bench: Bench) -> Finding | None:
    """Data whose mean or width is not that of the model's own samples (if it is read rightly)."""
    data = probe.data
    if data is None or probe.different < LEAST or probe.degenerate:
        return None
    error, linear = Bench(probe, probe.made).loss
    if probe.out_of_scale(probe.made) and not error < linear:
        return None  # the model's own samples say nothing of their scale
    if bench.loss[0] < _WORSE * error:
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


def worse_than_linear(probe: Probe, bench: Bench) -> Finding | None:
    """Answers further from what was to be answered than a multiple of x is, which needs no network."""
    if "untrained" in probe.not_checked:
        return None
    numbers = probe.different * math.prod(probe.shape)
    if probe.out_of_scale(probe.clean):
        last = len(probe.sigmas) - 1
        shown = probe.noised(torch.zeros_like(probe.eps), float(probe.sigmas[last]))
        answer = probe.answer(bench.own, shown, last)
        likeness = 0.0 if answer is None else correlation(answer, probe.eps)
        if probe.model.prediction != "eps" or likeness > _ALIKE / 2:
            probe.skip(OUT_OF_SCALE, "untrained")
            return None
        error = 1 - likeness
        text = "of noise alone an ε-network returns that noise, and this one's answers have correlation "
        text += f"{likeness:.2f} with it"
    elif probe.different < LEAST or numbers < _NUMBERS:
        least = max(LEAST, -(-_NUMBERS // math.prod(probe.shape)))
        reason = f"{probe.different} samples are too few to fit a·x + c to; give n={least} or more"
        probe.skip(reason, "untrained")
        return None
    else:
        error, linear = bench.loss
        if error < linear * (_BETTER + numbers**-0.5):
            return None
        whose = "data" if probe.data is not None else "samples of its own"
        text = f"on noised {whose} the network's answers have error {error:.2f}, and the best a·x + c, "
        text += f"two numbers a level, has {linear:.2f} (no answer: 1)"
    return Finding(
        "untrained",
        "error",
        error,
        f"{text}, and no other reading, sign, scale or time makes them better",
        "load the trained weights, and the data and conditions that they were trained with",
    )
