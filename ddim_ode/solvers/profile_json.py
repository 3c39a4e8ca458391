"""Profiles on disk: JSON of bounded size with a checksum. Numbers and names only; nothing of it is run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from .._base import json_file
from .._base.checks import count, number, numbers, one_of, shown
from .._base.digests import digest
from ..grids import check_grid
from ..schedules.schedule import Array, Schedule
from .methods import METHODS
from .screens import Screen, Tried
from .surrogate import Surrogate

FORMAT, VERSION = "ddim_ode profile", 1
SIZE_LIMIT = 4 * 2**20  # bytes
_MOST_LEVELS, _MOST_SCREENS, _MOST_TRIED = 200, 1000, 1000
_FIELDS = (
    *("format", "version", "schedule", "about", "levels", "gram", "gain", "response", "screens"),
    "sha256",
)


def dumps(profile: Any) -> str:
    """The text of a profile's file."""
    values = _values(profile)
    return json.dumps(dict(values, sha256=digest(values)), ensure_ascii=False) + "\n"


def fields(raw: bytes, source: str) -> tuple[Surrogate, dict[str, Any], dict[int, Screen]]:
    """What the content of a file says; ValueError, beginning with ``source``, for any other."""
    values = json_file.parsed(raw, source, "profile", SIZE_LIMIT)
    try:
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(
                f"not a profile: its format must be {FORMAT!r}, as Profile.save writes it"
            )
        if values.get("version") != VERSION:
            raise ValueError(
                f"version={shown(values.get('version'))} must be {VERSION}; update ddim_ode"
            )
        if {*values} != {*_FIELDS}:
            odd = sorted({*values} ^ {*_FIELDS})[0]
            raise ValueError(f"the field {shown(odd)} is missing, or unknown")
        checksum = values.pop("sha256")
        if checksum != digest(values):
            raise ValueError("was altered or damaged: its sha256 is not that of what it holds")
        return _surrogate(values), _about(values["about"]), _screens(values["screens"])
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"{source}: {error}") from None


def _values(profile: Any) -> dict[str, Any]:
    surrogate, schedule = profile.surrogate, profile.schedule
    rows = [row[: i + 1].tolist() for i, row in enumerate(surrogate.gram)]
    screens = [
        dict(
            nfe=screened.nfe,
            net_evals=screened.net_evals,
            tried=[dict(asdict(tried), levels=_told(tried.levels)) for tried in screened.tried],
        )
        for _, screened in sorted(profile.screens.items())
    ]
    return dict(
        format=FORMAT,
        version=VERSION,
        schedule=dict(name=schedule.name, params=schedule.params),
        about=profile.about,
        levels=_told(surrogate.levels.tolist()),
        gram=rows,
        gain=surrogate.gain.tolist(),
        response=surrogate.response.tolist(),
        screens=screens,
    )


def _told(levels: Any) -> list[float | str]:
    return ["inf" if sigma == math.inf else float(sigma) for sigma in levels]


def _levels(name: str, values: Any) -> Array:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name} must be a list of σ")
    return numbers(name, [math.inf if value == "inf" else value for value in values])


def _surrogate(values: Mapping[str, Any]) -> Surrogate:
    schedule_values = values["schedule"]
    schedule = Schedule.build(schedule_values["name"], schedule_values["params"])
    levels = _levels("levels", values["levels"])
    size = len(levels)
    if not 2 <= size <= _MOST_LEVELS:
        raise ValueError(f"levels has {size} entries, and must have 2 to {_MOST_LEVELS}")
    check_grid(levels, schedule)
    if levels[-1] <= 0:
        raise ValueError(f"levels[{size - 1}]={levels[-1]:g} must be above 0")
    gram = np.zeros((size + 1, size + 1))
    rows = values["gram"]
    if not isinstance(rows, list) or [len(row) for row in rows] != list(range(1, size + 2)):
        raise ValueError("gram must be the rows of a triangle, one longer than levels")
    for i, row in enumerate(rows):
        gram[i, : i + 1] = gram[: i + 1, i] = numbers(f"gram[{i}]", row)
    answers = [numbers(name, values[name]) for name in ("gain", "response")]
    if any(answer.shape != (size,) or not np.isfinite(answer).all() for answer in answers):
        raise ValueError("gain and response must have a finite number for each of the levels")
    if not np.isfinite(gram).all() or (np.diag(gram) < 0).any():
        raise ValueError("gram must be finite, and not negative on its diagonal")
    return Surrogate(schedule, levels, gram, *answers)


_ABOUT: dict[str, type | tuple[type, ...]] = {
    **dict(model=str, model_key=(str, type(None)), prediction=str, alterations=dict),
    **dict(n=int, seed=int, generator=str, shape=list, snap=bool, solver=str),
    **dict(reference_error=(float, int), net_evals=int, version=str),
}


def _about(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict) or {*values} != {*_ABOUT}:
        raise ValueError(f"about must be an object with {', '.join(_ABOUT)}")
    for name, kind in _ABOUT.items():
        if not isinstance(values[name], kind):
            raise ValueError(f"about.{name}={shown(values[name])} is of the wrong type")
    return values


def _screens(values: Any) -> dict[int, Screen]:
    if not isinstance(values, list) or len(values) > _MOST_SCREENS:
        raise ValueError(f"screens must be a list of at most {_MOST_SCREENS}")
    found: dict[int, Screen] = {}
    for i, value in enumerate(values):
        nfe, evals = (
            count(f"screens[{i}].nfe", value["nfe"]),
            count("net_evals", value["net_evals"], 0),
        )
        rows = value["tried"]
        if not isinstance(rows, list) or not 0 < len(rows) <= _MOST_TRIED:
            raise ValueError(f"screens[{i}].tried must be a list of 1 to {_MOST_TRIED}")
        tried = tuple(_tried(f"screens[{i}].tried[{j}]", row) for j, row in enumerate(rows))
        found[nfe] = Screen(nfe, evals, tried)
    return found


def _tried(name: str, row: Any) -> Tried:
    levels = _levels(f"{name}.levels", row["levels"])
    if len(levels) < 2 or not (np.diff(levels) < 0).all() or levels[-1] != 0:
        raise ValueError(f"{name}.levels must fall to 0")
    method = one_of(f"{name}.method", row["method"], METHODS)
    error, said = (number(f"{name}.{key}", row[key]) for key in ("error", "expected"))
    return Tried(
        method, str(row["source"]), tuple(levels.tolist()), error, count("n", row["n"]), said
    )
