"""Which reading of a network its answers bear out, on noised samples.

The measure is the *misfit*: at a level, the error of ε̂ over that of the best a·x + c. As x = ᾱx̂₀ +
β̄ε̂, it is the same for x̂₀, v or any other vector. A trained mean has 1 at most, and less where the data
are not Gaussian; a wrong reading has more at some level. With data, all readings are measured on them,
and a call serves all predictions and signs at once. Without, each is measured on the samples that the
model makes when it is read so; a wrong one does not recognise its samples when they are noised again, or
makes samples that hardly differ.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..denoising.denoiser import PREDICTIONS
from ..denoising.guidance import Limit
from ..schedules.schedule import Array
from ..solvers.chart import VECTORS, convert
from .probe import Probe, rms
from .readings import SCALES, Clock, Reading, clocks, others

CLEARLY = 1.2  # ratio of misfits from which one reading is better than another
_LITTLE, _EQUAL = 1.1, 1.03  # the same on data where it is better at each level, or hardly worse
LEAST = 6  # different clean samples that say something of the data, and not of themselves alone
# what a change must pay: whoever wrote the configuration knew the prediction
_PRICE, _PRICES = 1.05, {"prediction": 1.2}
_RACE = (1, 4)  # levels at which readings are tried first
_FLOOR = 0.2  # relative error of an answer that is as good as none: networks are no better
# misfit at each level, at most, of samples that are recognised, and perhaps
_WHOLE, _HALF = 1.05, 1.5
_KNOWING = 0.98  # mean misfit from which a network says more than a·x + c does
_FITTING = 1.15  # mean misfit on data of a network that is trained
_USABLE = 1.5  # and on samples that it makes
_RIVAL = 1.1  # ratio of prices within which two readings are not told apart
_NARROW = 0.4  # width of samples, in units of the widest, that is that of answers with the mean
_THIN = 0.25  # the same where they are few
_USUAL_WIDTH = 0.3  # of data, at least, as networks are trained on
# Samples of few numbers, and how much better they must know another reading: they are soon alike.
_SMALL, _OF_SMALL = 16, 2.0
_FINALISTS = 3  # readings that are looked at closely
_STEPS = 8  # of a first look at what a reading makes
_SIDE = 0.2  # correlation that says which sign
_ALIKE = 0.7  # correlation of the answer to noise with that noise
_FALLS = 2.0  # how much more an x0-network says of what is clean
OF_READING = ("network-time", "prediction", "sign", "input-scale")
_NO_WITNESS = (
    "the samples that the model makes do not tell one reading of it from another; give data"
)


class Trial(NamedTuple):
    """A reading on samples: its misfit at each level, and how far the samples are from each other."""

    reading: Reading
    misfits: Array
    width: float = 1.0

    @property
    def misfit(self) -> float:
        return mean(self.misfits)

    @property
    def recognises(self) -> bool:
        """Whether the samples, its own, are noised and known again: nowhere worse than by a·x + c."""
        return bool(self.misfits.max() < _WHOLE) and self.misfit < _KNOWING

    @property
    def plausible(self) -> bool:
        """Whether a network that errs may be read so."""
        return bool(self.misfits.max() < _HALF) and self.misfit < _KNOWING


class Better(NamedTuple):
    """A reading that is better than the model's own, and the mean misfits of both on the same samples."""

    reading: Reading
    misfit: float
    own: float


def mean(misfits: Array) -> float:
    """Geometric; inf where one is not finite."""
    return float(np.exp(np.log(misfits).mean())) if np.isfinite(misfits).all() else np.inf


class Bench:
    """Clean samples, noised at the probe's levels, to measure readings on. Answers are kept."""

    def __init__(self, probe: Probe, x0: Tensor) -> None:
        self.probe, self.own = probe, Reading(probe.model.prediction)
        self.x0, self.eps = x0.double(), probe.eps[: len(x0)].double()
        self.scales = [probe.model.schedule.scales(sigma) for sigma in probe.sigmas]
        self.x = [float(a) * x0 + float(b) * probe.eps[: len(x0)] for a, b in self.scales]
        self._residuals = [_residual(x.double(), self.eps) for x in self.x]
        self._answers: dict[tuple[Clock | None, float, int], Tensor | None] = {}

    def errors(self, reading: Reading, k: int) -> tuple[float, float]:
        """At level k, of the network read so and of the best a·x + c: ‖answer − target‖/‖target‖.

        The target is that of training: ε, x0, ᾱε − β̄x0, ... 0 is truth, 1 no answer; inf for a question
        that the network does not take.
        """
        of_x0, of_eps = (float(c) for c in VECTORS[reading.prediction](*self.scales[k]))
        target = of_x0 * self.x0 + of_eps * self.eps
        slope = abs(float(convert("eps", reading.prediction, *self.scales[k])[1]))
        answer = self._answer(reading.clock, reading.scale, k)
        error = np.inf if answer is None else rms(reading.sign * answer - target)
        error = error if np.isfinite(error) else np.inf
        return error / rms(target), slope * self._residuals[k] / rms(target)

    def misfits(self, reading: Reading, levels: Sequence[int] | None = None) -> Array:
        """At each level, or those; inf for a reading whose question the network does not take."""
        at = range(len(self.x)) if levels is None else levels
        errors, linear = np.transpose([self.errors(reading, k) for k in at])
        return np.asarray((errors + _FLOOR) / (linear + _FLOOR))

    @property
    def loss(self) -> tuple[float, float]:
        """The errors of the network as it is, and of the best a·x + c: their means over levels."""
        own, linear = np.mean([self.errors(self.own, k) for k in range(len(self.x))], axis=0)
        return float(own), float(linear)

    def _answer(self, clock: Clock | None, scale: float, k: int) -> Tensor | None:
        key = clock, scale, k
        if key not in self._answers:
            self._answers[key] = self.probe.answer(
                Reading(self.own.prediction, 1.0, scale, clock), self.x[k], k
            )
        return self._answers[key]


def _residual(x: Tensor, eps: Tensor) -> float:
    """RMS error of the best a·x + c for ε."""
    x, eps = (v.flatten() - v.mean() for v in (x, eps))
    return rms(eps - (x @ eps) / x.square().sum() * x)


def better(probe: Probe, bench: Bench) -> Better | None:
    """The reading that is clearly better than the model's own, if one is. bench: of the data, if any."""
    return _on_its_own(probe) if probe.data is None else _on_data(probe, bench)


def _on_data(probe: Probe, bench: Bench) -> Better | None:
    """Of all predictions and signs at all clocks, and all scales, the best."""
    own = bench.own
    at_own = list(others(own.prediction))
    unscaled = [own, *(r for r in at_own if r.scale == 1)]
    elsewhere = [r._replace(clock=clock) for clock in usable_clocks(probe) for r in unscaled]
    first = mean(bench.misfits(own, _RACE))
    finalists = [r for r in (*at_own, *elsewhere) if mean(bench.misfits(r, _RACE)) < first]
    trials = [Trial(r, bench.misfits(r)) for r in (own, *finalists)]
    least = _LITTLE if probe.different >= LEAST else CLEARLY
    return _clearly(min(trials, key=_price(own)), trials[0], _FITTING, least)


def _on_its_own(probe: Probe) -> Better | None:
    """Of predictions, signs and scales, and where the model's own samples leave a doubt of clocks, the one
    that makes the samples that it knows best; judged on these against the model as it is."""
    own = Reading(probe.model.prediction)
    trials = [_look(probe, r, _STEPS, probe.few) for r in (own, *_by_side(probe, None))]
    as_it_is = trials[0]
    if not as_it_is.recognises or as_it_is.width < _USUAL_WIDTH:
        elsewhere = (r for clock in usable_clocks(probe) for r in _by_side(probe, clock))
        trials += [_look(probe, r, _STEPS, probe.few) for r in elsewhere]
    kinds = PREDICTIONS if _unlike_noise(probe, own) else (own.prediction,)
    first = _ranked(trials, own, kinds, _THIN)
    settled = as_it_is in first and as_it_is.misfit < CLEARLY * first[0].misfit
    finalists = [] if settled else [_look(probe, t.reading) for t in first[:_FINALISTS]]
    final = _ranked(finalists, own, kinds, _NARROW)
    small = math.prod(probe.shape) < _SMALL
    if final and not _rivalled(final[0], [*final[1:], *first[_FINALISTS:]], own):
        best = final[0]
        bench = Bench(probe, probe.generate(probe.read(best.reading), Limit()))
        clear = _clearly(best, Trial(own, bench.misfits(own)), _USABLE)
        if not small or (clear and clear.own > _OF_SMALL * clear.misfit):
            return clear
    if small:
        probe.skip(_NO_WITNESS, *OF_READING)
    if not as_it_is.recognises:
        probe.skip(_NO_WITNESS, *OF_READING)
    if not settled and any(t.misfit < as_it_is.misfit / CLEARLY for t in trials):
        probe.skip(_NO_WITNESS, "untrained")
    return None


def _unlike_noise(probe: Probe, own: Reading) -> bool:
    """Whether a network that is said to answer noise with noise does not."""
    if own.prediction not in ("eps", "score", "flow"):
        return False
    beta = float(probe.model.schedule.scales(probe.sigmas[-1])[1])
    answer = probe.answer(own, beta * probe.eps, len(probe.sigmas) - 1)
    return answer is not None and abs(correlation(answer, probe.eps)) < _ALIKE


def _ranked(
    trials: Sequence[Trial], own: Reading, kinds: Sequence[str], narrow: float
) -> list[Trial]:
    """Of trials, each on its own samples, those that may be right, the best first.

    Readings of any prediction that know their samples again; where there is none, those of these
    kinds that may err, and then those of a network that is hardly trained. Samples of less than
    ``narrow`` times the widest are answers with the mean.
    """
    same = [t for t in trials if t.reading.prediction in kinds]
    tiers = (
        [t for t in trials if t.recognises],
        [t for t in same if t.plausible],
        [t for t in same if t.misfit < _USABLE],
    )
    widest = max((t.width for t in trials if t.plausible), default=0.0)
    wide = ([t for t in tier if t.width > narrow * widest] for tier in tiers)
    return sorted(next(filter(None, wide), []), key=_price(own))


def _rivalled(best: Trial, others: Sequence[Trial], own: Reading) -> bool:
    """Whether a reading is not surely right, and there is one as good, that is not the same and more."""
    price = _price(own)
    rivals = (t for t in others if not t.reading.has_changes_of(best.reading, own))
    return not best.recognises and any(price(t) < _RIVAL * price(best) for t in rivals)


def _clearly(best: Trial, own: Trial, most: float, least: float = CLEARLY) -> Better | None:
    """Whether it is the better one, and fits: a mean misfit of ``most``, and by the ratio CLEARLY, or
    ``least`` where it is better at each level."""
    ratio, everywhere = own.misfit / best.misfit, (best.misfits < _EQUAL * own.misfits).all()
    clear = best.misfit < most and ratio > (least if everywhere else CLEARLY)
    return Better(best.reading, best.misfit, own.misfit) if clear else None


def _price(own: Reading) -> Callable[[Trial], float]:
    """A trial's misfit, raised for all that it changes."""

    def price(trial: Trial) -> float:
        changes = trial.reading.changes(own.prediction)
        return trial.misfit * math.prod(_PRICES.get(check, _PRICE) for check in changes)

    return price


def _look(probe: Probe, reading: Reading, steps: int = 15, rows: int | None = None) -> Trial:
    """What the model makes when it is read so, and what it says of that."""
    foreign = contextlib.nullcontext() if reading.clock is None else contextlib.suppress(Exception)
    with foreign:
        x0 = probe.generate(probe.read(reading), Limit(), steps, rows)
        if x0.isfinite().all():
            return Trial(reading, Bench(probe, x0).misfits(reading), float(x0.std(0).mean()))
    return Trial(reading, np.full(len(probe.sigmas), np.inf))


def _by_side(probe: Probe, clock: Clock | None) -> Iterator[Reading]:
    """The readings to try at a clock, each with the sign that its answers have.

    The answer of an x0- or v-network goes along x where there is hardly any noise in it, that of an ε- or
    flow-network where there is nothing else, and a score's against it. An x0-network says more of the
    former than of the latter.
    """
    declared, unit = probe.model.prediction, probe.eps[: probe.few]
    shown = [unit, float(probe.model.schedule.scales(probe.sigmas[-1])[1]) * unit]
    raw = Reading(declared, clock=clock)
    clean, noisy = (probe.answer(raw, x, k) for x, k in zip(shown, (0, len(probe.sigmas) - 1)))
    if clean is None or noisy is None:
        return
    for prediction in PREDICTIONS if clock is None else (declared,):
        if clock and prediction == "x0" and not rms(clean) > _FALLS * rms(noisy - noisy.mean(0)):
            continue
        answer = clean if prediction in ("x0", "v") else noisy
        side = correlation(answer, unit) * (-1 if prediction == "score" else 1)
        for sign in (1.0, -1.0):
            if side * sign > -_SIDE and (clock, prediction, sign) != (None, declared, 1.0):
                yield Reading(prediction, sign, clock=clock)
    if clock is None:
        yield from (Reading(declared, scale=scale) for scale in SCALES)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.double().flatten()]))[0, 1])


def usable_clocks(probe: Probe) -> list[Clock]:
    """Those that the network may be asked on: elsewhere than on the CPU, an index beyond a table ends the
    process, so that there no network that may have one is told more than its schedule has."""
    every, schedule = clocks(probe.model, probe.sigmas), probe.model.schedule
    net = probe.model.net
    safe = isinstance(net, nn.Module) and not any(
        isinstance(m, nn.Embedding) for m in net.modules()
    )
    if probe.device.type == "cpu" or safe:
        return every
    t = schedule.time(probe.sigmas)
    inside = [
        c
        for c in every
        if ((times := c.of(t, probe.sigmas)) >= 0).all() and (times < schedule.T).all()
    ]
    if len(inside) < len(every):
        reason = (
            f"on {probe.device.type} an index beyond a table ends the process; diagnose on the CPU"
        )
        probe.skip(reason, f"network-time beyond 0..{schedule.T:g}")
    return inside
