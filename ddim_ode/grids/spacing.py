"""The names of grids: their parameters, and the arithmetic behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from .._base.checks import one_of, shown
from ..schedules.schedule import Array
from .published import PUBLISHED

_RHO = 7.0


def spaced(
    forward: Callable[[Array], Array], back: Callable[[Array], Array]
) -> Callable[[float, float, int], Array]:
    def grid(first: float, last: float, n: int) -> Array:
        ends = forward(np.array([first, last]))
        points = back(np.linspace(ends[0], ends[1], n))
        points[0] = first
        if n > 1:
            points[-1] = last  # the ends exactly, not through forward and back
        return points

    return grid


IN_TIME = {"time": spaced(lambda t: t, lambda t: t), "quadratic": spaced(np.sqrt, np.square)}
IN_SIGMA = {
    "log_snr": spaced(np.log, np.exp),
    "karras": spaced(lambda s: s ** (1 / _RHO), lambda r: r**_RHO),
}


def _even(intervals: int) -> Array:
    return 1 - np.arange(intervals + 1) / intervals


def _beta(intervals: int, alpha: float, beta: float) -> Array:
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, beta, _even(intervals)))


def _linear_quadratic(intervals: int, threshold: float) -> Array:
    """1 less a curve through 0, ``threshold`` after half the intervals, with that slope there, and 1."""
    half, i = intervals // 2, np.arange(intervals + 1)
    if half == 0:
        return _even(intervals)
    slope = threshold / half
    curve = (1 - slope * intervals) / (intervals - half) ** 2
    return 1 - (slope * i + curve * np.maximum(i - half, 0) ** 2)


def _shifted(u: Array, shift: float) -> Array:
    return shift * u / (1 + (shift - 1) * u)


# By name the parameters, each with its default and the open range that it must lie in.
_PARAMETERS: dict[str, dict[str, tuple[float, float, float]]] = {
    "shifted": dict(shift=(3.0, 1e-6, 1e6)),
    "beta": dict(alpha=(0.6, 0.0, math.inf), beta=(0.6, 0.0, math.inf)),
    "linear_quadratic": dict(threshold=(0.025, 0.0, 1.0)),
}
_OPEN = ("trailing", "shifted", "beta", "linear_quadratic", "sgm_uniform")
CLASSIC = (*IN_TIME, *IN_SIGMA, "trailing")
NAMES = (*CLASSIC, *(name for name in _OPEN if name != "trailing"), "kl_optimal")
# What a search for a flow-matching model tries beside the classic ones.
FLOW = ("shifted:2", "shifted:3", "shifted:5", "beta", "linear_quadratic", "kl_optimal")


def is_open(name: str) -> bool:
    """Whether a grid of that name goes to 0 by itself, and needs no σ_min to say where it ends."""
    return name.partition(":")[0] in _OPEN


def check_name(text: str) -> tuple[str, dict[str, float]]:
    """A grid's name and its parameters, by a text such as ``"shifted:3"``.

    Raises:
        ValueError: An unknown name or parameter, or a value out of range.

    >>> from ddim_ode import grids
    >>> grids.check_name("shifted:mu=0"), grids.check_name("beta:0.5")
    (('shifted', {'shift': 1.0}), ('beta', {'alpha': 0.5, 'beta': 0.6}))
    """
    if isinstance(text, str) and text in PUBLISHED:
        return text, {}
    name, colon, rest = text.partition(":") if isinstance(text, str) else (text, "", "")
    if not isinstance(name, str) or name not in NAMES:
        one_of("grid", text, (*NAMES, *PUBLISHED))
    known = _PARAMETERS.get(name, {})
    values = {key: default for key, (default, _, _) in known.items()}
    if not colon:
        return name, values
    words = dict(values, mu=0.0) if name == "shifted" else values
    listed = ", ".join(words)
    if not known:
        raise ValueError(f"grid={shown(text)}: {name!r} takes no parameters; drop {colon + rest!r}")
    for place, part in enumerate(rest.split(",")):
        key, equals, value = part.rpartition("=")
        key = key.strip() if equals else next(iter([*known][place : place + 1]), "")
        if key not in words:
            raise ValueError(f"grid={shown(text)}: {part!r} is none of the parameters {listed}")
        try:
            values[key] = float(value)
        except ValueError:
            raise ValueError(f"grid={shown(text)}: {key}={value!r} must be a number") from None
    if "mu" in values:
        if "shift" in rest or len(rest.split(",")) > 1:
            raise ValueError(f"grid={shown(text)}: mu and shift say the same; drop one")
        mu = values.pop("mu")
        values["shift"] = math.exp(mu) if abs(mu) < 14 else math.nan
    for key, (_, low, high) in known.items():
        if not low < values[key] < high:
            remedy = "" if key != "shift" else " (mu, its logarithm, between -13 and 13)"
            raise ValueError(
                f"grid={shown(text)}: {key}={values[key]:g} must be in ({low:g}, {high:g}){remedy}"
            )
    return name, values


def shares(
    name: str, parameters: Mapping[str, float], n: int, lands: bool, first: float, last: float
) -> Array:
    """t/T (n,), falling from ``first``: to ``last``, or, if it lands, on the way to 0."""
    if name == "sgm_uniform" or not lands:
        intervals = n if lands else max(1, n - 1)
    else:
        intervals, last = n, 0.0
    if name == "shifted":  # even in u
        s = parameters["shift"]
        u = _shifted(np.array([first, last]), 1 / s)
        return _shifted(u[1] + (u[0] - u[1]) * _even(intervals)[:n], s)
    if name == "beta":
        shape = _beta(intervals, **parameters)
    elif name == "linear_quadratic":
        shape = _linear_quadratic(intervals, **parameters)
    else:
        shape = _even(intervals)
    return last + (first - last) * shape[:n]
