"""Ways to read a network: what it predicts, with which sign, at which scale of x, and on which clock.

A clock is what a network is told of the level, a function of the schedule's t and σ. Those that are tried
are the conventions of the field: t, t/T or 1000 t/T, forwards or backwards, squared or its root; σ, ln σ,
¼ ln σ or −2 ln σ; the model's own clock in other units; the times of other schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .. import schedules
from ..denoising.denoiser import PREDICTIONS, Denoiser
from ..schedules.schedule import Array, Schedule

_UNITS = (1e-3, 1e-2, 0.1, 10.0, 100.0, 1e3)
_USUAL = 1000  # the T of most networks
_SAME = 0.03  # relative difference of two clocks that no network tells apart
SCALES = (0.25, 0.5, 2.0, 4.0)
_KEYS = dict(eps="epsilon", x0="sample", v="v_prediction", flow="flow_prediction")


class Clock(NamedTuple):
    """What a network is told: the code of an expression in t and s (σ), the same as a function, and the
    argument of :class:`ddim_ode.Denoiser` that has it told so."""

    code: str
    of: Callable[[Array, Array], Array]
    fix: str


class Reading(NamedTuple):
    """How a network is read. clock: None for the model's own."""

    prediction: str
    sign: float = 1.0
    scale: float = 1.0
    clock: Clock | None = None

    def changes(self, declared: str) -> dict[str, tuple[str, str]]:
        """{check: (what is done differently, the code that does it)}, the most telling first."""
        changed = {}
        if self.clock is not None:
            changed["network-time"] = f"told {self.clock.code}", self.clock.fix
        if self.prediction != declared:
            text, fix = f"read as {self.prediction!r}", f"prediction={self.prediction!r}"
            if self.prediction in _KEYS:
                fix += (
                    f" (in a scheduler's configuration prediction_type={_KEYS[self.prediction]!r})"
                )
            changed["prediction"] = text, fix
        if self.sign < 0:
            changed["sign"] = "with the sign turned", "net=lambda x, t, **cond: -net(x, t, **cond)"
        if self.scale != 1:
            fix = (
                f"net=lambda x, t, **cond: net({self.scale:g} * x, t, **cond), or the schedule of that "
                "scale (ddim_ode.schedules.ve for networks that see x/ᾱ)"
            )
            changed["input-scale"] = f"shown {self.scale:g}·x instead of x", fix
        return changed

    def has_changes_of(self, other: Reading, own: Reading) -> bool:
        """Whether all that ``other`` does differently from ``own`` is done so here."""
        return all(b in (a, c) for a, b, c in zip(self, other, own))


def others(declared: str) -> Iterator[Reading]:
    """The readings at the model's own clock, but for its own."""
    yield Reading(declared, -1.0)
    for prediction in PREDICTIONS:
        if prediction != declared:
            yield from (Reading(prediction), Reading(prediction, -1.0))
    yield from (Reading(declared, scale=scale) for scale in SCALES)


def clocks(model: Denoiser, sigmas: Array) -> list[Clock]:
    """Those of the usual clocks that are not the model's own, nor alike, at the levels σ."""
    levels = model.snapped(sigmas)
    t = model.schedule.time(levels)
    known = [model.network_time(levels, t)]
    fresh = []
    for clock in _usual(model):
        with np.errstate(over="ignore"):
            times = clock.of(t, levels)
        if np.isfinite(times).all() and not any(np.allclose(times, o, _SAME, 0) for o in known):
            known.append(times)
            fresh.append(clock)
    return fresh


def _usual(model: Denoiser) -> Iterator[Clock]:
    schedule, T = model.schedule, model.schedule.T
    for unit in dict.fromkeys((T, 1.0, float(_USUAL))):
        yield from _of_share(model, unit)
    if schedule.discrete:
        yield _clock("t", lambda t, s: t, model)
        yield _clock("t - 1", lambda t, s: t - 1, model)
    yield _clock("s", lambda t, s: s, model)
    yield _clock("np.log(s)", lambda t, s: np.log(s), model)
    yield _clock("np.log(s) / 4", lambda t, s: np.log(s) / 4, model)
    yield _clock("-2 * np.log(s)", lambda t, s: -2 * np.log(s), model)
    yield from (_in_units(model, unit) for unit in dict.fromkeys((*_UNITS, T, 1 / T)) if unit != 1)
    if schedule.family == "vp":
        usual = (schedules.ddpm(), schedules.cosine(), schedules.exponential())
        yield from (_of_schedule(model, other) for other in usual)


def _clock(code: str, of: Callable[[Array, Array], Array], model: Denoiser) -> Clock:
    also = ", without time_offset" if model.time_offset else ""
    return Clock(code, of, f"time=lambda t, s: {code}{also}")


def _of_share(model: Denoiser, unit: float) -> Iterator[Clock]:
    """``unit`` times t/T, forwards and backwards, its square and its root."""
    T = model.schedule.T
    share, power = ("t", "t") if T == 1 else (f"t / {T:g}", f"(t / {T:g})")
    times = "" if unit == 1 else f"{unit:g} * "
    forwards = "t" if unit == T else times + share
    backwards = f"{T:g} - t" if unit == T else f"1 - {share}"
    if unit not in (1, T):
        backwards = f"{times}({backwards})"
    yield _clock(forwards, lambda t, s: unit * (t / T), model)
    yield _clock(backwards, lambda t, s: unit * (1 - t / T), model)
    yield _clock(f"{times}{power} ** 2", lambda t, s: unit * (t / T) ** 2, model)
    yield _clock(f"{times}{power} ** 0.5", lambda t, s: unit * (t / T) ** 0.5, model)


def _in_units(model: Denoiser, unit: float) -> Clock:
    """The model's own clock, each of whose numbers is ``unit`` times as large."""
    own, offset = "time(t, s)", model.time_offset
    if model.time is None:
        own = f"(t {'-' if offset < 0 else '+'} {abs(offset):g})" if offset else "t"
    code = f"{unit:g} * {own}" if unit > 1 else f"{own} / {1 / unit:g}"
    return _clock(code, lambda t, s: unit * model.network_time(s, t), model)


def _of_schedule(model: Denoiser, other: Schedule) -> Clock:
    """The times that another schedule has for the same levels."""

    def of(t: Array, s: Array) -> Array:
        return other.time(np.minimum(s, other.sigma_max)) + model.time_offset

    return Clock(f"the times of {other!r}", of, f"schedule={other!r}")
