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
from .ruler import Ruler
from .screens import TRIED, Screen, Tried
from .surrogate import Surrogate

FORMAT, VERSION = "ddim_ode profile", 1
SIZE_LIMIT = 4 * 2**20  # bytes
_MOST_LEVELS, _MOST_SCREENS, _MOST_TRIED = 200, 1000, 1000
_MOST_RESPONSE, _LONGEST = 1e6, 200
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
        if values.get("version") != VERSION or values["version"] is True:
            raise ValueError(
                f"version={shown(values.get('version'))} must be {VERSION}; update ddim_ode"
            )
        if {*values} != {*_FIELDS}:
            odd = sorted({*values} ^ {*_FIELDS})[0]
            raise ValueError(f"the field {shown(odd)} is missing, or unknown")
        checksum = values.pop("sha256")
        if checksum != digest(values):
            raise ValueError("was altered or damaged: its sha256 is not that of what it holds")
        surrogate = _surrogate(values)
        return surrogate, _about(values["about"]), _screens(values["screens"], surrogate)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise ValueError(f"{source}: not the fields of a profile: {error}") from None


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
    return _floats(name, [math.inf if value == "inf" else value for value in values])


def _floats(name: str, values: Any) -> Array:
    """Numbers, and no booleans."""
    if not isinstance(values, list) or any(isinstance(value, bool) for value in values):
        raise ValueError(f"{name} must be a list of numbers, got {shown(values, 60)}")
    return numbers(name, values)


def _positive(name: str, value: Any) -> float:
    found = number(name, value)
    if isinstance(value, bool) or not 0 <= found < math.inf:
        raise ValueError(f"{name}={shown(value, 60)} must be a finite number >= 0")
    return found


def _surrogate(values: Mapping[str, Any]) -> Surrogate:
    schedule_values = values["schedule"]
    if not isinstance(schedule_values, dict) or {*schedule_values} != {"name", "params"}:
        raise ValueError(f"schedule={shown(schedule_values, 60)} must have a name and params")
    schedule = Schedule.build(schedule_values["name"], schedule_values["params"])
    levels = _levels("levels", values["levels"])
    size = len(levels)
    if not 2 <= size <= _MOST_LEVELS:
        raise ValueError(f"levels has {size} entries, and must have 2 to {_MOST_LEVELS}")
    check_grid(levels, schedule)
    if levels[-1] <= 0:
        raise ValueError(f"levels[{size - 1}]={levels[-1]:g} must be above 0")
    if not (np.diff(Ruler.up_to(float(levels[0])).of(levels)) < -1e-9).all():
        raise ValueError("levels must be apart")
    gram = np.zeros((size + 1, size + 1))
    rows = values["gram"]
    triangle = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    if not triangle or [len(row) for row in rows] != list(range(1, size + 2)):
        raise ValueError("gram must be the rows of a triangle, one longer than levels")
    for i, row in enumerate(rows):
        gram[i, : i + 1] = gram[: i + 1, i] = _floats(f"gram[{i}]", row)
    answers = [_floats(name, values[name]) for name in ("gain", "response")]
    if any(answer.shape != (size,) or not np.isfinite(answer).all() for answer in answers):
        raise ValueError("gain and response must have a finite number for each of the levels")
    if (np.abs(answers) > _MOST_RESPONSE).any() or (answers[1] < 0).any():
        raise ValueError(f"gain and response must be at most {_MOST_RESPONSE:g}, response >= 0")
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
        wrong = isinstance(values[name], bool) != (kind is bool)
        if wrong or not isinstance(values[name], kind):
            raise ValueError(f"about.{name}={shown(values[name])} is of the wrong type")
        text = values[name] if isinstance(values[name], str) else ""
        if len(text) > _LONGEST or not text.isprintable():
            raise ValueError(f"about.{name}={shown(text, 60)} must be a short line of text")
    count("about.n", values["n"])
    for name in ("seed", "net_evals"):
        count(f"about.{name}", values[name], least=0)
    _positive("about.reference_error", values["reference_error"])
    return values


def _screens(values: Any, surrogate: Surrogate) -> dict[int, Screen]:
    if (
        not isinstance(values, list)
        or not all(isinstance(value, dict) for value in values)
        or len(values) > _MOST_SCREENS
    ):
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
        name = f"screens[{i}].tried"
        if nfe in found:
            raise ValueError(f"screens[{i}].nfe={nfe} is there twice")
        tried = tuple(_tried(f"{name}[{j}]", row, nfe, surrogate) for j, row in enumerate(rows))
        found[nfe] = Screen(nfe, evals, tried)
    return found


def _tried(name: str, row: Any, nfe: int, surrogate: Surrogate) -> Tried:
    levels = check_grid(_levels(f"{name}.levels", row["levels"]), surrogate.schedule)
    if len(levels) < 2 or not (np.diff(levels) < 0).all() or levels[-1] != 0:
        raise ValueError(f"{name}.levels must fall to 0")
    if len(levels) > nfe + 1 or levels[0] != surrogate.levels[0]:
        raise ValueError(
            f"{name}.levels must be at most {nfe + 1}, from σ={surrogate.levels[0]:g} on"
        )
    method = one_of(f"{name}.method", row["method"], TRIED)
    error, said = (_positive(f"{name}.{key}", row[key]) for key in ("error", "expected"))
    return Tried(
        method, str(row["source"]), tuple(levels.tolist()), error, count("n", row["n"]), said
    )
