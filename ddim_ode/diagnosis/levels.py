"""Checks of the levels: where a scheduler steps, and what that does to the model's samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from ..schedules.schedule import Array
from ..solve.levels import Levels
from .findings import Finding
from .probe import OUT_OF_SCALE, Probe, rms

_OF_PLACEMENT = ("stride", "duplicate-timesteps", "rounded-timesteps", "last-alpha")
_APART = 1e-3  # in ln σ: more than float32 levels
_ROUNDED = 0.01  # in ln σ
_LEFT = 1e-3  # noise left at the end, in units of the data


def checks(probe: Probe) -> Iterator[Finding]:
    """All findings of the levels that the model's scheduler, or our default grid, visits."""
    if probe.degenerate:
        probe.skip(probe.degenerate, *_OF_PLACEMENT)
        return
    try:
        levels = _levels(probe)
    except ValueError as error:  # of a scheduler that has none, or not at so many steps
        probe.skip(str(error), *_OF_PLACEMENT)
    else:
        yield from filter(
            None,
            (
                stride(probe, *levels),
                duplicates(probe, *levels),
                rounded(probe, *levels),
                last_alpha(probe, *levels),
            ),
        )


def _levels(probe: Probe) -> tuple[Array, Array, Array]:
    """σ asked at, σ reached, and network time of each step; ValueError for a scheduler that has none."""
    model = probe.model
    if (placement := getattr(model, "placement", None)) is not None:  # of a scheduler it came with
        asked, reached, told = placement(probe.steps)
        return asked, reached, told
    positive = Levels(model.replace(profile=None)).sigmas(probe.steps)[:-1]
    return positive, np.append(positive[1:], 0.0), model.network_time(positive)


def stride(probe: Probe, asked: Array, reached: Array, told: Array) -> Finding | None:
    """Steps that arrive at another level than the one the next call is told of."""
    with np.errstate(divide="ignore"):
        off = np.abs(np.log(reached[:-1]) - np.log(asked[1:]))
    wrong = int((off > _APART).sum())
    if not wrong:
        return None
    consistent = np.append(asked[1:], reached[-1])
    moved = rms(_ddim(probe, asked, reached) - _ddim(probe, asked, consistent)) / rms(probe.x0)
    T, N = int(probe.model.schedule.T), probe.steps
    good = sorted((d for d in range(2, T + 1) if T % d == 0), key=lambda d: abs(d - N))[:3]
    return Finding(
        "stride",
        "error",
        moved,
        f"{wrong} of {len(off)} steps of N={N} arrive at another level than the next call is told (the "
        f"stride is T//N={T // N}, whatever the spacing): the end moves by {moved:.2g} times the data",
        f"timestep_spacing='trailing' and an N that divides {T}: {', '.join(map(str, sorted(good)))}; or "
        "our ddim on model.grid(N)",
    )


def duplicates(probe: Probe, asked: Array, reached: Array, told: Array) -> Finding | None:
    """Calls told the same time as the call before, or at the same level."""
    same = np.flatnonzero((np.diff(told) == 0) | (np.diff(asked) == 0))
    if not same.size:
        return None
    i = int(same[0])
    x = probe.noised(probe.x0, float(asked[i]))
    wasted = rms(probe.ask(probe.model, x, float(asked[i]))[0] - probe.x0) / rms(probe.x0)
    return Finding(
        "duplicate-timesteps",
        "warning",
        float(same.size),
        f"{same.size} of {len(told)} calls at N={probe.steps} are told a time that has just been asked "
        f"(first t={told[i]:g}, where x̂₀ is off by {wasted:.2g} times the data)",
        f"fewer steps (at most {len(np.unique(told))}), another spacing, or our grids, whose times are "
        "not rounded",
    )


def rounded(probe: Probe, asked: Array, reached: Array, told: Array) -> Finding | None:
    """σ of the state against σ of the time that the network is told."""
    model = probe.model
    if model.time is not None:
        return None
    t = np.clip(told - model.time_offset, 0.0, model.schedule.T)
    finite = np.isfinite(asked) & (t > 0)
    off = np.zeros(len(asked))
    with np.errstate(divide="ignore"):
        off[finite] = np.abs(np.log(model.schedule.sigma(t[finite])) - np.log(asked[finite]))
    worst = int(off.argmax())
    if not off[worst] > _ROUNDED:
        return None
    sigma = float(asked[worst])
    x = probe.noised(probe.x0, sigma)
    right = probe.ask(model, x, sigma)[1]
    fixed = probe.model.replace(time=lambda _, s: np.full(s.shape, told[worst]), time_offset=0.0)
    moved = rms(probe.ask(fixed, x, sigma)[1] - right) / rms(right)
    return Finding(
        "rounded-timesteps",
        "warning",
        float(off[worst]),
        f"the state is at σ={sigma:.4g} and the network is told t={told[worst]:g}, {off[worst]:.3g} away "
        f"in ln σ: its ε̂ moves by {moved:.1%}",
        "round σ and t together (snap=True), or neither (our grids)",
    )


def last_alpha(probe: Probe, asked: Array, reached: Array, told: Array) -> Finding | None:
    """A last step that does not reach σ = 0: noise that stays, or a call that does nothing."""
    end = float(reached[-1])
    if end <= 0:
        return None
    model = probe.model
    x = probe.noised(probe.x0, end)
    left = rms(x - probe.ask(model, x, end)[0]) / rms(probe.x0)
    idle = end >= float(asked[-1]) * (1 - 1e-6)
    if not (idle or left > _LEFT):
        if probe.out_of_scale(probe.x0):
            probe.skip(OUT_OF_SCALE, "last-alpha")
        return None
    what = "the last call changes nothing, and " if idle else ""
    return Finding(
        "last-alpha",
        "warning",
        left,
        f"{what}the last step ends at σ={end:.3g} and not at 0: x̂₀ there is {left:.2g} times the data away "
        "from what is returned",
        "set_alpha_to_one=True (final_sigmas_type='zero'); ours land on x̂₀ with the last call",
    )


def _ddim(probe: Probe, asked: Array, reached: Array) -> Tensor:
    """DDIM whose call i is at asked[i], whatever level the step before reached."""
    schedule, x = probe.model.schedule, probe.noise
    for sigma, to in zip(asked.tolist(), reached.tolist()):
        if np.isinf(sigma):
            continue
        x0, eps = probe.ask(probe.model, x, sigma)
        alpha, beta = (float(v) for v in schedule.scales(to))
        x = alpha * x0 + beta * eps
    return x
