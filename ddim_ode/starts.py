"""Where a calibration starts: the textbook samplers it searches, and how much of that a budget pays for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .denoiser import Denoiser
from .levels import Levels
from .sampling import compile_for
from .solvers.family import Linear
from .solvers.methods import METHODS
from .solvers.plan import Plan

CUTS = (5, 20, 1, 40, 2, 10, 3)  # last levels of a textbook grid, in units of the schedule's σ_min
GRIDS = ("quadratic", "log_snr", "karras", "time")


class Effort(NamedTuple):
    """How much a budget spends. reference: steps, coarse to fine, until two differ by ``goal`` of the
    solutions' RMS. methods: of the search for the incumbent. rounds: of that search, (candidates kept,
    noises each) one after another. rank, starts, trial (iterations from each start, before one of them is
    chosen), iterations, subset (noises of each of them, at least), whole (iterations after those, with all
    noises): of the fit."""

    reference: tuple[int, ...]
    goal: float
    methods: tuple[str, ...]
    cuts: tuple[int, ...]
    rounds: tuple[tuple[int, int], ...]
    rank: int
    starts: int
    trial: int
    iterations: int
    subset: int
    whole: int


_FAST = ("ipndm", "dpmpp2m", "unipc3", "dpmpp3m", "unipc2", "deis3")
_ALL = (*_FAST, *(m for m in METHODS if m not in (*_FAST, "ddpm")))
EFFORTS = {
    "fast": Effort(
        reference=(24, 48),
        goal=math.inf,
        methods=_FAST,
        cuts=CUTS[:4],
        rounds=((102, 1), (24, 4), (6, 16)),
        rank=4,
        starts=2,
        trial=3,
        iterations=6,
        subset=8,
        whole=0,
    ),
    "thorough": Effort(
        reference=(100, 200, 400),
        goal=3e-3,
        methods=_ALL,
        cuts=CUTS,
        rounds=((10_000, 4), (24, 16), (6, 48)),
        rank=6,
        starts=3,
        trial=6,
        iterations=50,
        subset=24,
        whole=8,
    ),
}


class Candidate(NamedTuple):
    """A textbook sampler, on a grid of that name, and its loss on the noises of the last round."""

    name: str
    plan: Plan
    grid: str = ""
    score: float = math.inf


def textbook(model: Denoiser, nfe: int, effort: Effort, sigma_max: float | None) -> list[Candidate]:
    """The samplers to search, those first that usually do well."""
    found: dict[Plan, Candidate] = {}
    cuts = [(grid, cut * model.schedule.sigma_min) for cut in effort.cuts for grid in GRIDS]
    refusal = ValueError(f"nfe={nfe} is too small for any sampler")
    for grid, cut in [*cuts[: len(GRIDS)], ("trailing", None), *cuts[len(GRIDS) :]]:
        for name in effort.methods:
            try:
                levels = Levels(model, nfe=nfe, grid=grid, sigma_min=cut, sigma_max=sigma_max)
                plan = compile_for(METHODS[name], levels, None, None, None, None)
            except ValueError as error:
                refusal = error
                continue
            end = "" if cut is None else f", σ_min {cut:.3g}"
            found.setdefault(plan, Candidate(f"{name}, {grid}{end}", plan, grid))
    if not found:
        raise refusal
    return list(found.values())


def apart(found: Sequence[tuple[Candidate, Linear]], most: int) -> list[Linear]:
    """The first, and those after it that share neither method nor grid with one chosen before."""
    chosen: list[tuple[Candidate, Linear]] = []
    for candidate, point in found:
        near = any(
            c.plan.method == candidate.plan.method or c.grid == candidate.grid for c, _ in chosen
        )
        if len(chosen) < most and not near:
            chosen.append((candidate, point))
    return [point for _, point in chosen]
