"""Where a calibration starts: the textbook samplers it searches, and how much of that a budget pays for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..denoising.denoiser import Denoiser
from ..grids import searched
from ..schedules.schedule import Schedule
from ..solve.planning import plan_for
from ..solvers.compilation import plan as compile_plan
from ..solvers.design import CUTS
from ..solvers.methods import METHODS
from ..solvers.plan import Plan
from .family import Linear

GRIDS = ("quadratic", "log_snr", "karras", "time")  # in the order they are tried


class Effort(NamedTuple):
    """How much a budget spends.

    reference: steps, coarse to fine, until two differ by ``goal`` of the solutions' RMS; designed: the same
    on grids that a surrogate makes for the model, () where none is asked.
    Of the search for the incumbent: methods, cuts; rounds, (candidates kept, noises each) one after
    another; skips: first calls left out, each a search of its own for a start, among the methods and cuts
    of the fast budget.
    Of the fit: rank, memory, starts, trial (iterations from each start, before one of them is chosen),
    iterations, subset (noises of each of them, at least), decay (of what was known before, an iteration
    later), patience (iterations without a better judgement), whole (iterations after those, with all
    noises), pooled (whether all noises judge the iterations, and not the held-out ones alone).
    """

    reference: tuple[int, ...]
    designed: tuple[int, ...]
    goal: float
    methods: tuple[str, ...]
    cuts: tuple[int, ...]
    rounds: tuple[tuple[int, int], ...]
    skips: tuple[int, ...]
    rank: int
    memory: int | None
    starts: int
    trial: int
    iterations: int
    subset: int
    decay: float
    patience: int
    whole: int
    pooled: bool


_FAST = ("ipndm", "dpmpp2m", "unipc3", "dpmpp3m", "unipc2", "deis3")
_ALL = (*_FAST, *(name for name, m in METHODS.items() if name not in _FAST and not m.adds_noise))
EFFORTS = {
    "fast": Effort(
        reference=(24, 48),
        designed=(18, 36),
        goal=math.inf,
        methods=_FAST,
        cuts=CUTS,
        rounds=((102, 1), (16, 4), (4, 12)),
        skips=(1,),
        rank=10,
        memory=4,
        starts=2,
        trial=3,
        iterations=40,
        subset=8,
        decay=0.6,
        patience=40,  # its rows are allowed for: it goes on while they last
        whole=0,
        pooled=False,
    ),
    "thorough": Effort(
        reference=(100, 200, 400),
        designed=(),
        goal=5e-3,
        methods=_ALL,
        cuts=CUTS[:7],
        rounds=((10_000, 2), (32, 12), (6, 48)),
        skips=(1, 2),
        rank=12,
        memory=None,
        starts=3,
        trial=4,
        iterations=40,
        subset=32,
        decay=0.6,
        patience=10,
        whole=6,
        pooled=True,
    ),
}


class Candidate(NamedTuple):
    """A sampler to start from: ``point``, the textbook plan without its ``skipped`` first calls, on a grid
    of that name, or what a surrogate made of it (rehearsal.py); its loss on the noises of the last
    round."""

    name: str
    point: Linear
    grid: str = ""
    skipped: int = 0
    score: float = math.inf
    rehearsed: bool = False

    @property
    def is_textbook(self) -> bool:
        return not (self.skipped or self.rehearsed)

    @property
    def plan(self) -> Plan:
        return self.point.plan


def textbook(model: Denoiser, nfe: int, effort: Effort, skipped: int = 0) -> list[Candidate]:
    """The samplers to search, those first that usually do well. skipped: first calls that each leaves
    out, and spends further down."""
    candidates: dict[Plan, Candidate] = {}
    if skipped and model.schedule.family == "flow":
        return []  # the first call would see its state scaled, which no pipeline does
    if skipped:
        effort = EFFORTS["fast"]
    names = searched(model.schedule)
    closed = [*GRIDS, *(name for name, searches_end in names if searches_end and name not in GRIDS)]
    cuts = [(grid, cut * model.schedule.least_cut) for cut in effort.cuts for grid in closed]
    to_zero = [(name, None) for name, searches_end in names if not searches_end]
    refusal = ValueError(f"nfe={nfe} is too small for any sampler")
    sizes: dict[
        str, dict[str, Any]
    ] = {}  # by method; a grid does not change them, unless levels snap
    for grid, cut in [*cuts[: len(closed)], *to_zero, *cuts[len(closed) :]]:
        for name in effort.methods:
            size = sizes.get(name, dict(nfe=nfe + skipped))
            try:
                plan = plan_for(model, name, grid=grid, sigma_min=cut, **size)
            except ValueError as error:
                refusal = error
                continue
            if not model.snap:
                sizes[name] = dict(steps=plan.steps, start=plan.start)
            end = "" if cut is None else f", σ_min {cut:.3g}"
            point = Linear.of(plan)
            if skipped:
                if plan.nfe != nfe + skipped:
                    continue
                point = point.without_calls(skipped, model.schedule)
            candidates.setdefault(plan, Candidate(f"{name}, {grid}{end}", point, grid, skipped))
    if not candidates and not skipped:
        raise refusal
    return list(candidates.values())


def apart(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """The first of each number of skipped calls, in the order of their scores, and then those of another
    method or grid than any chosen before."""
    first = {(c.skipped, c.rehearsed): c for c in reversed(candidates)}
    chosen = sorted(first.values(), key=lambda c: c.score)[:most]
    for candidate in candidates:
        near = any(
            c.plan.method == candidate.plan.method and c.grid == candidate.grid for c in chosen
        )
        if len(chosen) < most and not near:
            chosen.append(candidate)
    return chosen


def incumbent_of(plan: Plan, schedule: Schedule) -> Plan | None:
    """The textbook plan that a fit began from, compiled again; None where the fit does not say."""
    fit = plan.fit or {}
    if fit.get("calibrated") is False:
        return plan
    if (facts := fit.get("incumbent_plan")) is None:
        return None
    grid = [float(sigma) for sigma in facts["grid"]]  # "inf" too
    options = {name: facts.get(name) for name in ("start", "chart", "vector")}
    return compile_plan(facts["method"], schedule, grid, **options)
