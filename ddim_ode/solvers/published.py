"""Readers of samplers that others have learned: their tables become plans, their lists of levels grids.

Most are published as pickles, which run code when they are read. So what is read here is a JSON file of
their numbers, which the line in ``HOW`` makes of the pickle inside its own repository, whose code you
trust. All is in the levels of that code: σ = β̄/ᾱ for networks of noise, where its state is x/ᾱ, and
t = σ/(1 + σ) for flow-matching ones, where it is x. Which of the two it is, the schedule says.

    DyWeight   Zhao et al. 2026, arXiv 2603.11607   a plan: weights of past answers, levels told askew
    EPD        Zhu et al. 2025, arXiv 2507.14797    a plan: K calls inside each step
    OSS        Pei et al. 2025, arXiv 2503.21774    a grid: some of the levels of a teacher
    AYS, GITS  and whoever publishes levels         a grid: a list of numbers

Levels that are few numbers ship as named grids, ``"ays:sd15"``: :mod:`ddim_ode.grids.published`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._base import json_file
from .._base.checks import flag, numbers, shown
from ..grids import check_grid
from ..schedules.schedule import Array, Schedule, check_schedule
from .plan import Plan

_LIMIT = 4 * 2**20  # bytes
_MOST = 200  # steps

_PRINT = "f = lambda a: None if a is None else a.tolist(); print(json.dumps(dict("
HOW = {
    "DyWeight": "import json, pickle; p = pickle.load(open(FILE, 'rb'))['predictor']; w, s = p(); "
    f"{_PRINT}hybrid_weights=f(w), t_scale=f(s), afs=p.afs, t_steps=T_STEPS)))",
    "DyWeight for FLUX": "import json, torch; p = torch.load(FILE, weights_only=True); "
    f"{_PRINT}dyweight_weights_raw=f(p['dyweight_weights_raw']), "
    "dyweight_t_scales=f(p['dyweight_t_scales']), t_steps=T_STEPS)))",
    "EPD": "import json; from training.ppo.cold_start import load_predictor_table; "
    f"p = load_predictor_table(FILE); {_PRINT}r=f(p.positions), weight=f(p.weights), "
    "scale_dir=f(p.scale_dir), scale_time=f(p.scale_time), afs=bool(p.metadata['afs']), "
    "t_steps=T_STEPS)))",
}


def load_plan(path: str | Path, schedule: Schedule, name: str | None = None) -> Plan:
    """The plan of a JSON file of DyWeight's or EPD's numbers.

    Its end is what their code returns as the sample: the state, or x/ᾱ of it, at the last of ``t_steps``.
    It makes its calls one after another, also those that EPD makes at once.

    Args:
        path: Of an object with ``t_steps``, the levels of that code, and for DyWeight
            ``hybrid_weights`` and ``t_scale``, or (FLUX) ``dyweight_weights_raw`` and
            ``dyweight_t_scales``; for EPD ``r`` and ``weight``, perhaps ``scale_dir`` and ``scale_time``;
            for both perhaps ``afs``. ``HOW`` has the lines that print one.
        schedule: Of the model it will run on.
        name: The plan's method (default: ``"dyweight"``, ``"dyweight-flux"`` or ``"epd"``).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A pickle, which is never read, or other fields; a level outside the schedule.
    """
    check_schedule(schedule)
    source = str(path)
    values = _values(path)
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: is no table of a plan; a list of levels goes to load_grid")
    try:
        for own, (required, optional, reader) in _READERS.items():
            if required <= {*values}:
                if unknown := {*values} - required - optional - {"t_steps", "afs"}:
                    raise ValueError(f"the field {shown(min(unknown), 60)} is unknown")
                run = _Run(values, schedule)
                return run.plan(reader(values, run), own if name is None else name)
        raise ValueError(
            "has the fields of no table that is known: "
            + ", ".join(f"{' and '.join(sorted(r))} ({own})" for own, (r, _, _) in _READERS.items())
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def load_grid(path: str | Path, schedule: Schedule) -> Array:
    """The grid of a JSON file of levels: AYS's, GITS's or anybody's list, or OSS's.

    Args:
        path: Of a falling list of levels of that code; or of an object with OSS's ``oss_steps`` (rising)
            and the ``fm_steps`` that they count in.
        schedule: Of the model.

    Returns:
        σ, for ``grid=``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A pickle, which is never read, other fields, or no grid of that schedule.
    """
    check_schedule(schedule)
    values = _values(path)
    try:
        if isinstance(values, Mapping):
            if {*values} != {"oss_steps", "fm_steps"}:
                raise ValueError("must hold a list of levels, or oss_steps and fm_steps")
            teacher = numbers("fm_steps", values["fm_steps"])
            steps = numbers("oss_steps", values["oss_steps"])
            whole = steps.ndim == 1 and steps.size > 0 and np.all(steps == np.rint(steps))
            if teacher.ndim != 1 or not (whole and steps.min() > 0 and steps.max() < teacher.size):
                raise ValueError(f"oss_steps must be places in fm_steps, 1 to {teacher.size - 1}")
            values = [*teacher[steps.astype(int)[::-1]], teacher[0]]
        return check_grid(_sigma(numbers("levels", values), schedule), schedule)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _values(path: str | Path) -> Any:
    data = json_file.content(path, "table", _LIMIT)
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        lines = "; ".join(f'{name}: python -c "{line}"' for name, line in HOW.items())
        raise ValueError(
            f"{path}: is a pickle, which runs code when it is read; print its numbers as JSON in its own "
            f"repository, with T_STEPS the list of its levels: {lines}"
        )
    return json_file.parsed(data, str(path), "table", _LIMIT)


def _sigma(level: Array, schedule: Schedule) -> Array:
    """σ of levels of other code."""
    if schedule.family != "flow":
        return level
    if not np.all((level >= 0) & (level <= 1)):
        worst = float(level.flat[int(np.argmax(np.abs(level - 0.5)))])
        raise ValueError(f"the level t={worst:g} must lie in [0, 1]")
    with np.errstate(divide="ignore"):
        return np.asarray(level / (1 - level))


class _Run:
    """A run of their loop on coordinates: the start is e₀, and the answer to call k is e_{k+1}.

    A network that is told t' and answers V has D = y − t' V, so that their slope (y − D)/t is V t'/t.
    """

    def __init__(self, values: Mapping[str, Any], schedule: Schedule) -> None:
        self.schedule = schedule
        self.levels = _array("t_steps", values.get("t_steps"), 1)
        if not 2 <= self.levels.size <= _MOST:
            raise ValueError(f"t_steps must be 2 to {_MOST} levels, got {self.levels.size}")
        rising = np.flatnonzero(np.diff(self.levels) >= 0)
        if rising.size or not self.levels[-1] >= 0:
            raise ValueError("t_steps must fall, each level below the one before, and none below 0")
        self.afs = flag("afs", values.get("afs", False))
        self.first = _sigma(self.levels[:1], schedule)
        self.told: list[float] = []  # by call
        self.shown: list[Array] = []

    @property
    def pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.levels[:-1].tolist(), self.levels[1:].tolist()))

    def start(self, most: int) -> Array:
        """Their state at the start, where at most so many calls follow."""
        y = np.zeros(most + 1)
        y[0] = 1.0 / self._gauge(self.first)[0]
        return y

    def free(self, y: Array, t: float) -> Array:
        """The slope of a first step without a call."""
        if self.schedule.family == "flow":
            raise ValueError(
                "afs=true is a first step of networks of noise; the schedule is flow's"
            )
        return np.asarray(y / np.sqrt(1 + t * t))

    def call(self, y: Array, told: float, t: float | None) -> Array:
        """The slope that the network makes of a state at t; t=None: its answer itself."""
        self.told.append(told)
        self.shown.append(y)
        slope = np.zeros_like(y)
        slope[len(self.told)] = 1.0 if t is None else told / t
        return slope

    def plan(self, end: Array, name: str) -> Plan:
        sigma = _sigma(np.array(self.told), self.schedule)
        n = len(sigma) + 1
        rows = [gauge * y[:n] for gauge, y in zip(self._gauge(sigma), self.shown)]
        vector = "flow" if self.schedule.family == "flow" else "eps"
        options: dict[str, Any] = dict(sigma_max=float(self.first[0]), prediction=vector, name=name)
        return Plan.from_table(sigma, [*rows, end[:n]], self.schedule, **options)

    def _gauge(self, sigma: Array) -> Array:
        """What their state is multiplied by to be the network's."""
        if self.schedule.family == "flow":
            return np.ones_like(sigma)
        return np.asarray(self.schedule.scales(sigma)[0])


def _dyweight(values: Mapping[str, Any], run: _Run) -> Array:
    """y' = y + (t_{i+1} − t) Σ_j w_ij d_j, and then t moves by Σ_j w_ij of the way to t_{i+1}."""
    of_flux = "dyweight_weights_raw" in values
    weights, scales = (
        ("dyweight_weights_raw", "dyweight_t_scales") if of_flux else ("hybrid_weights", "t_scale")
    )
    n = len(run.pairs)
    w = _array(weights, values[weights], 2)
    told = values.get(scales)
    calls = n - run.afs
    scale = np.ones(calls) if told is None else _array(scales, told, 1)
    if w.shape != (n, n) or scale.shape != (calls,):
        raise ValueError(
            f"{weights} of shape {w.shape} and {scales} of {scale.size} do not go with {n + 1} t_steps, "
            f"which need ({n}, {n}) and {calls}"
        )
    y, t = run.start(n), float(run.levels[0])
    slopes: list[Array] = []
    for i, (_, below) in enumerate(run.pairs):
        if run.afs and i == 0:
            slopes.append(run.free(y, t))
        else:
            told_t = abs(float(scale[i - run.afs]) * t)
            # their pixel networks answer D, of which the slope is (y − D)/(t + 1e-8); FLUX the slope
            slopes.append(run.call(y, told_t, None if of_flux else t + 1e-8))
        y = y + (below - t) * sum(wj * d for wj, d in zip(w[i, : i + 1].tolist(), slopes))
        t = t + float(w[i, : i + 1].sum()) * (below - t)
    return y


def _epd(values: Mapping[str, Any], run: _Run) -> Array:
    """y' = y + (t_{i+1} − t_i) Σ_j w_ij s_ij d(y + (τ_ij − t_i) d_i, τ_ij), at τ = t_{i+1}^r t_i^(1−r)."""
    n = len(run.pairs)
    r, w = (_array(name, values[name], 2) for name in ("r", "weight"))
    if not r.shape[1]:
        raise ValueError(
            "r has no stages, and a step without any moves nothing; give at least one each"
        )
    ones = np.ones_like(r)
    direction, time = (
        ones if values.get(name) is None else _array(name, values[name], 2)
        for name in ("scale_dir", "scale_time")
    )
    for name, array in (("r", r), ("weight", w), ("scale_dir", direction), ("scale_time", time)):
        if array.shape != (n, r.shape[1]):
            raise ValueError(
                f"{name} has shape {array.shape}, but {n + 1} t_steps need ({n}, {r.shape[1]})"
            )
    y = run.start(n * (r.shape[1] + 1))
    for i, (t, below) in enumerate(run.pairs):
        first = run.free(y, t) if run.afs and i == 0 else run.call(y, t, t)
        step = np.zeros_like(y)
        for j in range(r.shape[1]):
            middle = below ** r[i, j] * t ** (1 - r[i, j])
            if not 0 < middle < np.inf:
                raise ValueError(
                    f"r={r[i, j]:g} between t={t:g} and {below:g} asks the network at t={middle:g}; "
                    "t_steps must end above 0"
                )
            inside = y + (middle - t) * first
            slope = run.call(inside, float(time[i, j] * middle), float(middle))
            step = step + w[i, j] * direction[i, j] * (below - t) * slope
        y = y + step
    return y


def _array(name: str, value: Any, axes: int) -> Array:
    array = numbers(name, value)
    if array.ndim != axes or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be {'a list' if axes == 1 else 'a list of lists'} of numbers"
        )
    return array


_Reader = Callable[[Mapping[str, Any], _Run], Array]  # the end, in coordinates
# By name the fields that say so, those that may be missing, and the reader.
_READERS: dict[str, tuple[set[str], set[str], _Reader]] = {
    "dyweight": ({"hybrid_weights"}, {"t_scale"}, _dyweight),
    "dyweight-flux": ({"dyweight_weights_raw"}, {"dyweight_t_scales"}, _dyweight),
    "epd": ({"r", "weight"}, {"scale_dir", "scale_time"}, _epd),
}
