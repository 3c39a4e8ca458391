"""Grids: strictly decreasing arrays of σ, as functions of nothing but numbers.

Every named grid has ``steps`` positive entries from σ_max to σ_min and then 0 (``final="zero"``),
or ``steps + 1`` entries ending at σ_min (``final="sigma_min"``):

    time       linspace in t
    quadratic  linspace in √t
    log_snr    linspace in ln σ
    karras     linspace in σ^{1/7}                   (Karras et al. 2022, eq. 5)
    kl_optimal linspace in arctan σ                  (Sabour et al. 2024, AYS; also from σ = inf)

These go to 0 by themselves, with u = 1 − i/N: their last positive level is where that falls, unless σ_min
says where. They are those of flow-matching models, whose t/T is the share of noise:

    trailing          t/T = u                                      (Lin et al. 2024)
    shifted           t/T = s u / (1 + (s − 1) u), s = 3           (Esser et al. 2024; FLUX: s = e^mu)
    beta              t/T = the quantile u of Beta(0.6, 0.6)       (Lee et al. 2024)
    linear_quadratic  1 − t/T linear to 0.025 in N/2 steps, then quadratic to 1          (Mochi, LTX)
    sgm_uniform       linspace in t from T to t_min, less the last

A name takes its parameters after a colon, wherever a grid has a name: ``"shifted:5"`` or
``"shifted:shift=5"``, ``"shifted:mu=1.15"`` (s = e^mu), ``"beta:0.5,0.7"``, ``"linear_quadratic:0.05"``.
The functions of these names say the same: ``grids.shifted(schedule, 8, shift=5)``.

``"ays:sd15"``, ``"gits:cifar10"``, ``"oss:flux"`` and others are published for one family of models
(published.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.checks import count, exclusive, flag, number, numbers, one_of
from ..schedules.schedule import Array, Schedule, check_schedule
from .published import PUBLISHED as PUBLISHED
from .published import published
from .spacing import CLASSIC as CLASSIC
from .spacing import FLOW as FLOW
from .spacing import IN_SIGMA, IN_TIME, shares, spaced
from .spacing import NAMES as NAMES
from .spacing import check_name as check_name
from .spacing import is_open as is_open

FINALS = ("zero", "sigma_min")
FEW_STEPS, FEW_CALLS = 15, 30
# ε-networks are trusted up to the σ(T) of the linear schedules that most are trained on, 148 to 158. Where
# σ(T) lies beyond, they start at EDM's σ_max (benchmarks/start.py measures other levels).
TRUSTED, LOWERED = 160.0, 80.0


def trusted(schedule: Schedule, prediction: str) -> float:
    """The highest level σ where x̂₀ of such a network is worth a step: 160 for ε and score, else inf.

    An ε- or score-network has x̂₀ = (x − β̄ε̂)/ᾱ, whose error is σ times that of ε̂. On a schedule that
    ends in almost no signal (cosine: σ(1000) = 20,291) that is noise of thousands, which few steps never
    take back. Networks of ``ve`` are trained for their σ_max, however large.
    """
    blind = prediction in ("eps", "score") and schedule.family != "ve"
    return TRUSTED if blind else np.inf


def default_start(schedule: Schedule, prediction: str) -> float:
    """The level σ that sampling starts from by default: σ(T), or 80 if that is finite but not trusted.

    To start from noise alone there leaves out 1/80 of the data. (At σ(T) = inf an ε-network cannot start,
    and the solve says so.)

    Args:
        schedule: Of the network.
        prediction: What the network predicts, as in :class:`ddim_ode.Denoiser`.

    >>> from ddim_ode import grids, schedules
    >>> [round(grids.default_start(schedules.cosine(), network)) for network in ("eps", "v")]
    [80, 20291]
    """
    top = schedule.sigma_max
    return LOWERED if trusted(schedule, prediction) < top < np.inf else top


def default_name(
    schedule: Schedule,
    steps: int,
    final: str = "zero",
    sigma_min: float | None = None,
    snap: bool = False,
) -> str:
    """The named grid that ``sample`` takes by default.

    ``"log_snr"`` where t is σ itself (``schedules.ve``). Otherwise ``"trailing"`` below 15 steps, where it
    can be had (to σ = 0, no sigma_min given), and ``"quadratic"`` from there: with few steps a last level
    far from 0 pays most (``python benchmarks/peers.py``). For a model with snap the same, whose levels are
    then moved apart, and to another end than σ = 0 ``"time"``, whose levels stay apart.

    >>> from ddim_ode import grids, schedules
    >>> [grids.default_name(schedules.ddpm(), steps) for steps in (8, 30)]
    ['trailing', 'quadratic']
    """
    check_schedule(schedule)
    one_of("final", final, FINALS)
    if schedule.family == "ve":
        return "log_snr"
    steps = count("steps", steps)
    lands = final == "zero" and sigma_min is None
    if steps < FEW_STEPS and lands:
        return "trailing"
    return "time" if flag("snap", snap) and not lands else "quadratic"


def default_spacing(
    schedule: Schedule,
    steps: int,
    calls: int = 1,
    *,
    final: str = "zero",
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    snap: bool = False,
) -> tuple[str, float | None]:
    """:func:`default_name`, and the ``sigma_min`` that goes with it, for a method of ``calls`` a step.

    A few calls never pay down to the smallest level (``python benchmarks/start.py``):

    - on ``ve``, below 30 calls, the last level is 15 σ_min, 0.03 by default;
    - steps of three calls and more reach further down than ``"trailing"`` would let them: they are spaced
      in time, and the last level is at t = 2 T/(network calls), as it is for those of two.

    >>> from ddim_ode import grids, schedules
    >>> grids.default_spacing(schedules.ve(80.0), 20), grids.default_spacing(schedules.ve(80.0), 40)
    (('log_snr', 0.03), ('log_snr', None))
    """
    name = default_name(schedule, steps, final, sigma_min, snap)
    if sigma_min is not None or final != "zero":
        return name, sigma_min
    if schedule.family == "ve" and steps * calls < FEW_CALLS:
        return name, 15 * schedule.sigma_min
    if name == "trailing" and calls > 2:
        top = schedule.time(schedule.sigma_max if sigma_max is None else sigma_max)
        return "time", float(schedule.sigma(2 * top / (steps * calls)))
    return name, None


def searched(schedule: Schedule) -> list[tuple[str, bool]]:
    """The names that a search tries on a schedule, each with whether its last level is searched too."""
    own = [(name, name != "trailing") for name in CLASSIC]
    return own + [(name, not is_open(name)) for name in FLOW if schedule.family == "flow"]


def make_grid(
    name: str,
    schedule: Schedule,
    steps: int,
    *,
    final: str = "zero",
    sigma_max: float | None = None,
    sigma_min: float | None = None,
) -> Array:
    """The named grid with ``steps`` intervals.

    Args:
        name: One of ``NAMES``, perhaps with its parameters: ``"shifted:5"``.
        schedule: Of the model.
        steps: Intervals.
        final: ``"zero"`` ends at σ = 0, ``"sigma_min"`` at σ_min.
        sigma_max: Where it starts (default σ(T)).
        sigma_min: Its last positive level (default σ(1) for discrete schedules, σ(10⁻³T) otherwise).

    Returns:
        σ (steps+1,), strictly decreasing.

    Raises:
        ValueError: An unknown name, a range outside the schedule's, or σ_max = inf in a grid spaced in σ.

    >>> from ddim_ode import grids, schedules
    >>> grids.make_grid("karras", schedules.ve(80.0), 4).round(2).tolist()
    [80.0, 9.72, 0.47, 0.0, 0.0]
    >>> grids.make_grid("shifted:3", schedules.flow(), 3).round(2).tolist()
    [inf, 6.0, 1.5, 0.0]
    """
    check_schedule(schedule)
    base, parameters = check_name(name)
    one_of("final", final, FINALS)
    steps = count("steps", steps)
    top = schedule.sigma_max
    if sigma_max is not None:
        top = schedule.level(sigma_max, "sigma_max")
    cut = schedule.sigma_min if sigma_min is None else number("sigma_min", sigma_min)
    if not 0 < cut < top:
        raise ValueError(
            f"sigma_max={top:g}, sigma_min={cut:g}: need 0 < sigma_min < sigma_max <= "
            f"{schedule.sigma_max:g}, the schedule's σ(T)"
        )
    n = steps if final == "zero" else steps + 1
    if base in PUBLISHED:
        if sigma_min is not None:
            raise ValueError(f"grid={name!r} has its own last level; drop sigma_min={cut:g}")
        return published(base, schedule, steps, top, final == "zero")
    if base == "trailing" and final == "zero" and sigma_min is not None:
        raise ValueError(
            f"grid='trailing' with final='zero' puts its last level at T/steps; drop "
            f"sigma_min={cut:g}, or use grid='time'"
        )
    if is_open(base):
        lands = final == "zero" and sigma_min is None
        ends = schedule.time(np.array([top, cut])) / schedule.T
        t = schedule.T * shares(base, parameters, n, lands, *ends.tolist())
        sigmas = schedule.sigma(np.maximum(t, 0.0))
        sigmas[0] = top
        if n > 1 and not lands:
            sigmas[-1] = cut
        if not (sigmas[1:] < sigmas[:-1]).all():
            raise ValueError(
                f"grid={name!r} has levels that coincide or rise with {steps} steps; take fewer, or milder "
                "parameters"
            )
    elif base in IN_TIME:
        t = IN_TIME[base](float(schedule.time(top)), float(schedule.time(cut)), n)
        sigmas = schedule.sigma(t)
        sigmas[0] = top
        if n > 1:
            sigmas[-1] = cut
    elif base == "kl_optimal":
        sigmas = spaced(np.arctan, np.tan)(top, cut, n)
    else:
        if np.isinf(top):
            raise ValueError(
                f"grid={name!r} is spaced in σ and cannot start at σ_max=inf; use grid='time', "
                "'quadratic' or 'kl_optimal', or give a finite sigma_max"
            )
        sigmas = IN_SIGMA[base](top, cut, n)
    return np.append(sigmas, 0.0) if final == "zero" else sigmas


def shifted(
    schedule: Schedule,
    steps: int,
    shift: float | None = None,
    *,
    mu: float | None = None,
    time_shift: str = "exponential",
    **ends: Any,
) -> Array:
    """The grid ``"shifted"``: t/T = s u / (1 + (s − 1) u), which spends steps where there is more noise.

    Args:
        schedule: Of the model.
        steps: Intervals.
        shift: s (default 3, SD3's); 1 is ``"trailing"``.
        mu: Gives s instead, as FLUX and its kin have it: s = e^mu.
        time_shift: ``"linear"`` for s = mu.
        **ends: ``final``, ``sigma_max`` and ``sigma_min``, of :func:`make_grid`.

    >>> from ddim_ode import grids, schedules
    >>> grids.shifted(schedules.flow(), 2, mu=0.0).tolist()
    [inf, 1.0, 0.0]
    """
    exclusive(shift=shift, mu=mu)
    one_of("time_shift", time_shift, ("exponential", "linear"))
    if mu is None:
        text = "shifted" if shift is None else f"shifted:{number('shift', shift)!r}"
    elif time_shift == "linear":
        text = f"shifted:{number('mu', mu)!r}"
    else:
        text = f"shifted:mu={number('mu', mu)!r}"
    return make_grid(text, schedule, steps, **ends)


def beta(
    schedule: Schedule, steps: int, alpha: float = 0.6, beta: float = 0.6, **ends: Any
) -> Array:
    """The grid ``"beta"``: t/T are quantiles of Beta(alpha, beta), dense at both ends below 1.

    Args:
        schedule, steps: As of :func:`make_grid`.
        alpha, beta: Of the distribution.
        **ends: ``final``, ``sigma_max`` and ``sigma_min``, of :func:`make_grid`.

    >>> from ddim_ode import grids, schedules
    >>> grids.beta(schedules.flow(), 2).round(6).tolist()
    [inf, 1.0, 0.0]
    """
    text = f"beta:{number('alpha', alpha)!r},{number('beta', beta)!r}"
    return make_grid(text, schedule, steps, **ends)


def linear_quadratic(
    schedule: Schedule, steps: int, threshold: float = 0.025, **ends: Any
) -> Array:
    """The grid ``"linear_quadratic"``: 1 − t/T grows evenly to a threshold, and then as a parabola to 1.

    Args:
        schedule, steps: As of :func:`make_grid`.
        threshold: Where 1 − t/T is after half the steps.
        **ends: ``final``, ``sigma_max`` and ``sigma_min``, of :func:`make_grid`.

    >>> from ddim_ode import grids, schedules
    >>> grids.linear_quadratic(schedules.flow(), 2, 0.2).round(6).tolist()
    [inf, 4.0, 0.0]
    """
    text = f"linear_quadratic:{number('threshold', threshold)!r}"
    return make_grid(text, schedule, steps, **ends)


def sgm_uniform(schedule: Schedule, steps: int, **ends: Any) -> Array:
    """The grid ``"sgm_uniform"``: even in t down to t_min, which is left out for 0.

    >>> from ddim_ode import grids, schedules
    >>> grids.sgm_uniform(schedules.ve(3.0, 1.0), 2).tolist()
    [3.0, 2.0, 0.0]
    """
    return make_grid("sgm_uniform", schedule, steps, **ends)


def kl_optimal(schedule: Schedule, steps: int, **ends: Any) -> Array:
    """The grid ``"kl_optimal"``: even in arctan σ, from σ = inf too.

    >>> from ddim_ode import grids, schedules
    >>> grids.kl_optimal(schedules.flow(), 3, sigma_min=0.5).round(3).tolist()
    [inf, 1.618, 0.5, 0.0]
    """
    return make_grid("kl_optimal", schedule, steps, **ends)


def from_timesteps(schedule: Schedule, timesteps: npt.ArrayLike, final: str = "zero") -> Array:
    """The grid of a sub-sequence τ of schedule times.

    Args:
        schedule: Of the model.
        timesteps: τ in (0, T], rising or falling. (A network trained on indices 0..T−1 still has its times
            counted 1..T here.)
        final: ``"zero"`` calls the network at each τ and lands on σ = 0; ``"sigma_min"`` stops at the last.

    Returns:
        σ, strictly decreasing.

    >>> from ddim_ode import grids, schedules
    >>> grids.from_timesteps(schedules.ddpm(), [1000, 500, 100]).round(3).tolist()
    [157.407, 3.424, 0.339, 0.0]
    """
    check_schedule(schedule)
    one_of("final", final, FINALS)
    tau = numbers("timesteps", timesteps)
    if tau.ndim != 1 or tau.size == 0:
        raise ValueError(f"timesteps must be a non-empty 1-D sequence, got shape {tau.shape}")
    tau = tau[::-1] if tau.size > 1 and tau[0] < tau[-1] else tau
    sigmas = schedule.sigma(tau)
    if not tau[-1] > 0:
        raise ValueError(
            f"timesteps={tau[-1]:g} must lie in (0, {schedule.T:g}]: times count from 1 here, also for a "
            "network on indices 0..T-1 (time_offset=-1), and final='zero' adds the landing at 0"
        )
    rising = np.flatnonzero(np.diff(tau) >= 0)
    if rising.size:
        i = int(rising[0])
        raise ValueError(
            f"timesteps must all differ and run in one direction, but {tau[i]:g} is followed by "
            f"{tau[i + 1]:g}"
        )
    return check_grid(np.append(sigmas, 0.0) if final == "zero" else sigmas, schedule)


def upward(grid: Array) -> Array:
    """The levels of a (falling) grid in the order of inversion; ValueError if it ends at σ = 0."""
    if grid[-1] == 0:
        raise ValueError(
            f"grid[{grid.size - 1}]=0: the ODE ends before σ=0, and a landing on x̂₀ cannot be undone; "
            "drop that entry (final='sigma_min'), so that the grid ends at a level > 0"
        )
    return grid[::-1]


def check_grid(grid: npt.ArrayLike, schedule: Schedule) -> Array:
    """``grid`` as a float64 array; ValueError naming the entry that makes it no grid."""
    check_schedule(schedule)
    sigmas = numbers("grid", grid)
    if sigmas.ndim != 1 or sigmas.size < 2:
        raise ValueError(f"a grid is a 1-D array of at least two σ, got shape {sigmas.shape}")
    if not np.all((sigmas >= 0) & (sigmas <= schedule.sigma_max)):
        # NaN, out of range, or perhaps only a float32 copy of σ(T)
        sigmas = np.array([schedule.check_sigma(s, f"grid[{i}]") for i, s in enumerate(sigmas)])
    rising = np.flatnonzero(~(sigmas[1:] < sigmas[:-1]))
    if rising.size:
        i = int(rising[0]) + 1
        raise ValueError(
            f"grid[{i}]={sigmas[i]:g} does not fall below grid[{i - 1}]={sigmas[i - 1]:g}; "
            f"a grid is strictly decreasing within [0, {schedule.sigma_max:g}]"
        )
    return sigmas
