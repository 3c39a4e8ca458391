"""Grids that others have optimised for one model family and published: few numbers, each with its source.

``"ays:sd15"`` and its like are names of grids, wherever a grid has a name. A list of N+1 levels is that of
N steps; for other numbers of steps its logarithm is interpolated evenly, as the authors of AYS advise.
With ``final="zero"`` the last level is 0 instead, as programs that run these lists have it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..schedules.schedule import Array, Schedule


class Published(NamedTuple):
    """levels: falling; σ, or where ``flow`` t/T of a flow-matching model. source: where they are from."""

    levels: tuple[float, ...]
    flow: bool
    source: str


_AYS = "Sabour et al. 2024, Align Your Steps, arXiv 2404.14507, Table 3: {}"
_OSS = "Pei et al. 2025, Optimal Stepsize, arXiv 2503.21774, github.com/bebebe666/OptimalSteps: {}"
_GITS = (
    "Chen et al. 2024, Trajectory Regularity, arXiv 2405.11326, github.com/zju-pi/diff-sampler: {}"
)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


PUBLISHED: dict[str, Published] = {
    "ays:sd15": Published(
        _numbers("14.615 6.475 3.861 2.697 1.886 1.396 .963 .652 .399 .152 .029"),
        False,
        _AYS.format("Stable Diffusion 1.5"),
    ),
    "ays:sdxl": Published(
        _numbers("14.615 6.315 3.771 2.181 1.342 .862 .555 .380 .234 .113 .029"),
        False,
        _AYS.format("SDXL"),
    ),
    "ays:deepfloyd": Published(
        _numbers("160.41 8.081 3.315 1.885 1.207 .785 .553 .293 .186 .030 .006"),
        False,
        _AYS.format("DeepFloyd-IF, stage 1"),
    ),
    "ays:svd": Published(
        _numbers("700 54.5 15.886 7.977 4.248 1.789 .981 .403 .173 .034 .002"),
        False,
        _AYS.format("Stable Video Diffusion"),
    ),
    "gits:cifar10": Published(
        _numbers("80 10.9836 3.8811 1.584 .5666 .1698 .002"),
        False,
        _GITS.format("EDM's CIFAR-10, iPNDM, README"),
    ),
    "gits:sd15": Published(
        _numbers(
            "14.61464119 5.85520077 2.84484982 1.67050016 1.08895338 .74807048 .50118381 .32104823 "
            ".19894916 .09824532 .02916753"
        ),
        False,
        _GITS.format("Stable Diffusion 1.5, coefficient 1.20, 10 steps, as ComfyUI has it"),
    ),
    "oss:flux": Published(
        _numbers(".9968 .9886 .9819 .975 .966 .9471 .9158 .8287 .5512 .2808 .001"),
        True,
        _OSS.format("FLUX.1-dev, as ComfyUI has it"),
    ),
    "oss:wan": Published(
        _numbers(
            "1 .997 .995 .993 .991 .989 .987 .985 .98 .975 .973 .968 .96 .946 .927 .902 .864 .776 .539 "
            ".208 .001"
        ),
        True,
        _OSS.format("Wan 2.1, as ComfyUI has it"),
    ),
}

_APART = 1e-4  # by how much of itself a start may be off that is still the list's: it is a rounded number


def published(name: str, schedule: Schedule, steps: int, top: float, lands: bool) -> Array:
    """σ (steps+1,) of a published grid; ValueError where it is another family's, or starts elsewhere.

    lands: whether the last level is 0.
    """
    own = PUBLISHED[name]
    if own.flow != (schedule.family == "flow"):
        kind = "flow-matching models" if own.flow else "networks of noise"
        raise ValueError(f"grid={name!r} is for {kind}, and not for {schedule!r}; use a named grid")
    logs = np.log(own.levels)
    places = np.linspace(0, len(logs) - 1, steps + 1)
    levels = np.exp(np.interp(places, np.arange(len(logs)), logs))
    if own.flow:
        with np.errstate(divide="ignore"):
            levels = levels / (1 - np.minimum(levels, 1.0))
    first = float(levels[0])
    if not (top == first or abs(top - first) < _APART * first):
        raise ValueError(
            f"grid={name!r} starts at σ={first:g}, and not at σ_max={top:g}; give sigma_max={first:g}, if "
            "the noise starts there, or use another grid"
        )
    levels[0] = top
    if lands:
        levels[-1] = 0.0
    return np.asarray(levels)
