"""What a comparison runs: each method at each budget on each grid, compiled before any network call."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .._base.checks import number, one_of, several, shown
from ..denoising.denoiser import Denoiser
from ..grids import NAMES, check_name
from ..grids import searched as searched_grids
from ..schedules.schedule import Schedule
from ..solve.levels import Levels
from ..solve.near import of_plan
from ..solve.plan_checks import check_plan
from ..solve.planning import plan_for
from ..solve.request import is_external, is_fixed_step
from ..solve.sampling import sample
from ..solvers.methods import DEFAULT_METHODS, Method, get_method
from ..solvers.plan import Plan
from ..solvers.profile import Profile

CUT_TIMES = (1, 2, 3, 5, 10, 20)  # of 1000; where grid="best" lets the positive levels end
SEARCH = 32  # noises, at most, that it is decided on
OWN, AS_GIVEN = "own steps", "plan"
PROFILE = "profile"  # what a grid of a profile is called
Grid = str | Profile | None


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: its name, and a method to compile, another package's name, or a plan."""

    label: str
    solver: Method | str | Plan


@dataclass(frozen=True)
class Job:
    """One solve: an entry at a budget on a grid. refusal: why there is no such solve.

    group: the grid as it was asked for. options: of :func:`ddim_ode.sample`, for a solver of another
    package.
    """

    entry: Entry
    budget: int
    group: str
    grid: str
    plan: Plan | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    refusal: str | None = None

    @property
    def cost(self) -> int:
        """Network calls, as far as they are known before."""
        if self.refusal is not None:
            return 0
        return self.plan.nfe if self.plan is not None else self.budget

    def content(self) -> tuple[list[Any], list[float]]:
        """What decides the outcome on given noises, as the store keys it: exact parts, and numbers."""
        if self.plan is not None:
            return of_plan(self.plan)
        numbers = {k: v for k, v in self.options.items() if isinstance(v, float)}
        exact = {k: None if k in numbers else v for k, v in self.options.items()}
        return [str(self.entry.solver), exact], list(numbers.values())


def entries(methods: Any, model: Denoiser, noisy: bool = False) -> list[Entry]:
    """The methods as they were asked for; ValueError for one that is unknown or ambiguous, or adds noise
    unless ``noisy``."""
    if methods is None:
        methods = DEFAULT_METHODS
    if isinstance(methods, Mapping):
        named: list[tuple[str | None, Any]] = [(str(k), v) for k, v in methods.items()]
    else:
        named = [(None, solver) for solver in several(methods)]
    entered: dict[Any, Entry] = {}
    for label, one in named:
        # calibrated plans come as {nfe: Plan}
        solvers = list(one.values()) if isinstance(one, Mapping) else [one]
        if not solvers:
            raise ValueError(
                f"methods[{shown(label)}] has no plans; give {{nfe: Plan}}, or drop it"
            )
        for solver in solvers:
            entry = _entry(label, solver, model, noisy)
            key = (entry.label, entry.solver.nfe if isinstance(entry.solver, Plan) else None)
            if key in entered and entered[key].solver != entry.solver:
                raise ValueError(
                    f"two different methods are called {entry.label!r}; name them: "
                    "methods={'name': method, ...}"
                )
            entered[key] = entry
    if not entered:
        raise ValueError(
            "methods is empty; give names of ddim_ode.methods(), or None for a selection"
        )
    return list(entered.values())


def _entry(label: str | None, solver: Any, model: Denoiser, noisy: bool) -> Entry:
    if isinstance(solver, Plan):
        check_plan(solver, model)
        stochastic = solver.is_stochastic
        label = label or solver.method
        checked: Method | str | Plan = solver
    elif is_external(solver):
        is_fixed_step(solver)
        checked, stochastic, label = str(solver), False, label or str(solver)
    else:
        spec = get_method(solver)
        checked, stochastic, label = spec, spec.adds_noise, label or spec.name
    if stochastic and not noisy:
        raise ValueError(
            f"{label!r} adds noise at every step, so its end points are not the ODE's: metric='error' "
            "would measure the noise, not the solver; take metric='distribution', or drop it"
        )
    return Entry(label, checked)


def cuts(sigma_min: Any, model: Denoiser) -> list[float | None]:
    """The last positive levels asked for; ValueError unless between 0 and where the model starts."""
    ends = [None if cut is None else number("sigma_min", cut) for cut in several(sigma_min)]
    top = model.sigma_max
    for cut in ends:
        if cut is not None and not 0 < cut < top:
            raise ValueError(
                f"sigma_min={shown(cut)} must lie in (0, {top:g}), below the level that sampling starts "
                "from"
            )
    if not ends:
        raise ValueError("sigma_min is empty; drop it, or give a σ or several")
    return ends


def grid_names(grid: Any, sigma_min: Sequence[float | None]) -> list[Grid]:
    """The grids asked for; ValueError for an unknown one, or cuts that have no grid to end."""
    names = several(grid)
    for name in names:
        if not isinstance(name, (str, Profile, type(None))):
            raise ValueError(
                f"grid={shown(grid)} must be names or a profile, which place the levels for each budget; "
                "levels of your own belong in a plan: "
                "compare(model, {'mine': plan_for(model, 'unipc2', grid=levels)})"
            )
        if isinstance(name, str):
            if name == "best" or ":" not in name:
                one_of("grid", name, (*NAMES, "best"))
            else:
                check_name(name)
    if not names:
        raise ValueError(f"grid is empty; give names of {', '.join(NAMES)}, or 'best'")
    if sum(isinstance(name, Profile) for name in names) > 1:
        raise ValueError("grid has two profiles, which a table could not tell apart; give one")
    if any(cut is not None for cut in sigma_min):
        if "best" in names:
            raise ValueError("grid='best' searches the cuts itself; drop sigma_min")
        if names == ["trailing"]:
            raise ValueError("grid='trailing' puts its last level at T/steps; drop sigma_min")
    return list(dict.fromkeys(names))


def called(grid: Grid) -> str | None:
    """What a grid is called in tables; None for the default."""
    return PROFILE if isinstance(grid, Profile) else grid


def searched(grids: Sequence[Grid], n: int) -> int:
    """How many of n noises decide on ``grid="best"``, and are not reported on; ValueError for too few."""
    if "best" not in grids:
        return 0
    if n < 2:
        raise ValueError(
            f"grid='best' decides on some noises and reports on others; n={n} is too few"
        )
    return min(n // 2, SEARCH)


def jobs(
    entry: Entry,
    wanted: Sequence[int],
    names: Sequence[Grid],
    sigma_min: Sequence[float | None],
    model: Denoiser,
) -> list[list[Job]]:
    """For every row its candidates: one job, or for ``grid="best"`` those to choose from."""
    if isinstance(entry.solver, Plan):
        fits = [n for n in wanted if n >= entry.solver.nfe]
        budget = fits[0] if fits else entry.solver.nfe
        return [[Job(entry, budget, AS_GIVEN, AS_GIVEN, entry.solver)]]
    out: list[list[Job]] = []
    free = is_external(entry.solver) and not is_fixed_step(str(entry.solver))
    for budget in wanted:
        for name in [None] if free and "best" not in names else names:
            if name == "best":
                out.append(_search(entry, budget, free, model))
                continue
            # trailing goes to 0 by itself: no row for every cut
            for cut in [None] if name == "trailing" else sigma_min:
                group = (called(name) or "default") + ("" if cut is None else f" to σ={cut:g}")
                out.append([_job(entry, budget, group, name, cut, free, model)])
    return out


def _search(entry: Entry, budget: int, free: bool, model: Denoiser) -> list[Job]:
    schedule = model.schedule
    if schedule.family == "ve":  # whose σ is t, in units of the data
        ends = [t * schedule.least_cut for t in CUT_TIMES]
    else:
        unit = max(1.0, schedule.T / 1000) if schedule.discrete else schedule.T / 1000
        times = [t * unit for t in CUT_TIMES if t * unit < schedule.T / 4]
        ends = [float(sigma) for sigma in schedule.sigma(times)]
    choices: list[tuple[Grid, float | None]]
    if free:
        choices = [(None, cut) for cut in ends]
    else:
        names = sorted(searched_grids(schedule), key=lambda entry: entry[1])  # without cuts first
        choices = [(name, cut) for name, cuts in names for cut in (ends if cuts else [None])]
    tries = [_job(entry, budget, "best", name, cut, free, model) for name, cut in choices]
    return [job for job in tries if job.refusal is None] or tries[:1]


def _job(
    entry: Entry,
    budget: int,
    group: str,
    name: Grid,
    cut: float | None,
    free: bool,
    model: Denoiser,
) -> Job:
    solver = entry.solver
    try:
        if isinstance(solver, Method):
            plan = plan_for(model, solver, nfe=budget, grid=name, sigma_min=cut)
            if plan.steps == 1 < solver.nfe_per_step:  # nothing but the landing, which is DDIM's
                raise ValueError(_no_room(budget, solver.name, solver.nfe_per_step + 1))
            levels = Levels(model, nfe=budget, sigma_min=cut)
            chosen = called(name) or levels.spacing(plan.steps, solver.nfe_per_step)[0]
            return Job(entry, budget, group, chosen, plan)
        if free:
            return Job(entry, budget, group, OWN, options=dict(nfe=budget, sigma_min=cut))
        steps = _external_steps(str(solver), budget, model.schedule)
        options = dict(steps=steps, grid=name, sigma_min=cut)
        chosen = called(name) or Levels(model, steps, sigma_min=cut).spacing(steps)[0]
        return Job(entry, budget, group, chosen, options=options)
    except ValueError as error:
        return Job(entry, budget, group, called(name) or "default", refusal=str(error))


@functools.lru_cache(maxsize=256)
def _external_steps(method: str, budget: int, schedule: Schedule) -> int:
    """The most steps of a fixed-step method of another package within the budget, by a stub's count."""
    stub = Denoiser(lambda x, t: torch.zeros_like(x), schedule, "x0")

    def cost(steps: int) -> int:
        return sample(stub, torch.zeros(1, 1), method, steps=steps).nfe

    fits, over = 1, budget + 1  # one step is the landing alone
    while over - fits > 1:
        middle = (fits + over) // 2
        fits, over = (middle, over) if cost(middle) <= budget else (fits, middle)
    if fits == 1:
        raise ValueError(_no_room(budget, method, cost(2)))
    return fits


def _no_room(budget: int, method: str, least: int) -> str:
    return f"nfe={budget}: one step of {method!r} and the landing cost {least} calls"
