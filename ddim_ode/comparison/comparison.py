"""Which solver, how many steps: solvers side by side on the same noises, against a converged solution.

What is measured is the error of the solver alone. For noise i, eᵢ is the root mean square over the
entries of x̂ᵢ − x̂ᵢ*, where x̂ᵢ* is where the ODE takes that very noise (reference.py). A row's ``error``
is the mean of eᵢ over the samples, with a bootstrap interval (statistics.py). Two rows are compared
sample by sample, by the geometric mean of the ratios of their errors, which orders rows as their own
geometric means do, ``error_typical``. No label, data set or feature network enters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._base.bars import progress_bar
from .._base.checks import count, flag, one_of, seed_of
from .._base.interrupted import Interrupted
from .._base.version import __version__
from .._base.versions import versions
from ..denoising.cost import seconds_a_call, tell_comparison
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import Cond, check_model, conditions, device_of, sample_shape
from ..denoising.problem import Problem
from ..denoising.seeding import noise
from ..evaluate.features import Features
from ..solve.answers import ask
from ..solve.levels import budgets
from ..solve.near import PLAN, Near
from ..solve.plan_checks import (
    plain_alterations,
    warn_of_another_network,
    warn_of_own_examples,
    warn_of_own_noises,
)
from ..solve.reference import STEPS, Reference, aims, given, joined, plans, solve
from ..solve.sampling import sample
from ..solve.solution import norm_per_sample, warn_of_scale
from ..solvers.controller import SUCCESS
from ..solvers.fit import ode_text
from ..solvers.plan import Plan
from ..solvers.profile import Profile
from . import distribution, jobs
from .distribution import Distances
from .jobs import Job
from .result import METRICS, Comparison
from .rows import Cell
from .statistics import check_confidence
from .work import Work, goal_of, storage


def compare(
    model: Denoiser,
    methods: Any = None,
    nfe: int | Sequence[int] = (5, 8, 10, 20),
    *,
    shape: Sequence[int] | None = None,
    n: int = 256,
    seed: int = 0,
    cond: Cond | None = None,
    shared: Mapping[str, Any] | None = None,
    grid: str | Profile | Sequence[str | Profile] | None = None,
    sigma_max: float | None = None,
    sigma_min: float | Sequence[float] | None = None,
    batch: int = 64,
    reference: float | Tensor | None = None,
    cache: str | Path | None = None,
    key: str | None = None,
    keep: int = 0,
    confidence: float = 0.95,
    progress: bool = True,
    device: str | torch.device | None = None,
    metric: str = "error",
    features: Features | None = None,
) -> Comparison:
    """Run every method at every budget of network calls, from the same n noises.

    Args:
        model: What is solved.
        methods: Names (``"dpmpp3m:half"``, ``"torchdiffeq:euler"``), :class:`Method` and compiled
            :class:`Plan` objects; {label: method} names them, also {label: {nfe: Plan}}; None: a
            selection of nine. A fixed-step method gets the largest plan within each budget.
            ``torchdiffeq:dopri5`` and its kind run at their default tolerances with the budget as limit,
            and fail where it is too small.
        nfe: The budgets.
        shape: Of ONE sample (default: the model's own).
        n: Noises, of the seeds seed..seed+n−1: runs with other n agree on the samples they share.
        seed: Of the first noise.
        cond: Conditions {name: tensor (n, ...)}, or f(indices (n,)) that returns them.
        shared: Passed to the network as it is.
        grid: A name, a :class:`ddim_ode.Profile`, several of these (an axis of the table), or None: what
            ``sample`` takes by itself. ``"best"`` tries trailing, and time, quadratic, log_snr and karras
            down to σ at the times 1, 2, 3, 5, 10 and 20 (of 1000), on flow schedules also those of
            ``ddim_ode.grids.FLOW``, for each method and budget. It decides on the first min(n/2, 32)
            noises, and all rows report on the others only, so that the choice does not flatter them.
        sigma_max: The level that all of them, and the reference, start from (default ``model.sigma_max``).
        sigma_min: The last positive level, or several.
        batch: Noises solved together.
        reference: The largest RMS difference of two refinements to accept (default 1.5e-4 of the solutions'
            RMS, 1e-6 for exact mixtures), or known solutions (n, *shape).
        cache: A folder that keeps solved batches under a hash of all that decides them; the same call takes
            them from there. A network is also known by its answers to four calls of one sample, which the
            result does not count.
        key: A name for the network, changed whenever it changes. With ``cache`` it is needed for one that
            is neither an exact mixture nor a ``torch.nn.Module``: without it nothing is kept, with a
            warning.
        keep: How many end states of each row to keep, in ``samples``.
        confidence: Of all intervals.
        progress: Show a bar, and before it, on stderr, how many network calls will be made and how long
            they will take, from a few that are timed (and not counted). Most are the reference's, 604 a
            noise at least: for a large model take few noises, or give solutions that you have.
        device: Where to solve (default: the network's own).
        metric: ``"error"``, of each noise against where the ODE takes it, which says everything about
            solvers of the ODE, and has no meaning with step noise. ``"distribution"``: how far the n
            samples of a row are from samples of the model itself, 2n converged solutions of other noises
            (or ``reference``, any number of such samples), as an unbiased squared energy distance, which
            may come out below 0; a row's ``error`` is that, and the floor what two samples of the model
            show of each other. It takes methods with step noise and without, and more noises to tell as
            much: some hundred.
        features: What ``metric="distribution"`` looks at instead of the samples themselves; the distance
            is then KID's.

    Returns:
        The rows and their answers. All network evaluations made are in it: ``net_evals`` for the methods,
        the search included, and ``reference.net_evals``. A budget too small for a method, and samples that
        fail, are noted in their rows.

    Raises:
        ValueError: Before any network call, for an unknown method, one with step noise under
            ``metric="error"``, an unknown grid, no budgets, or conditions of another length.
        Interrupted: On Ctrl-C; a KeyboardInterrupt whose ``partial`` holds the finished rows.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.cosine()
    >>> model = ddim_ode.exact.gaussian_mixture([0.5, 0.5], [-1.0, 1.0], [0.2, 0.2], schedule)
    >>> r = ddim_ode.compare(model, ["ddim", "unipc2"], nfe=[5, 10], n=64, progress=False)
    >>> [row["method"] for row in r.ranking(nfe=10)], r.ranking(nfe=10)[1]["tie"]
    (['unipc2', 'ddim'], False)
    >>> r.recommend(target_error=0.04)["nfe"]
    10
    """
    check_model(model)
    model = model.starting_at(sigma_max)
    whole = one_of("metric", metric, METRICS) == "distribution"
    n = count("n", n)
    seed = seed_of(seed, (1 + distribution.HALVES) * n if whole else n)
    batch, keep = count("batch", batch), count("keep", keep, least=0)
    flag("progress", progress)
    confidence = check_confidence(confidence)
    entries = jobs.entries(methods, model, noisy=whole)
    wanted = budgets(nfe)
    ends = jobs.cuts(sigma_min, model)
    names = jobs.grid_names(grid, ends)
    todo = [row for entry in entries for row in jobs.jobs(entry, wanted, names, ends, model)]
    searched = jobs.searched(names, n)
    if whole:
        distribution.check(features, n, bool(searched))
    elif features is not None:
        raise ValueError(
            "features= is read by metric='distribution' alone; drop it, or ask for that"
        )
    for profile in [g for g in (*names, model.profile) if isinstance(g, Profile)]:
        warn_of_own_noises(profile, range(seed, seed + n))
    shape = sample_shape(model, shape)
    place = device_of(model, device)
    seeds = range(seed, seed + n)
    noises = noise(shape, model.schedule, seeds, model.sigma_max, place)
    problem, goal = Problem(model, conditions(cond, n, place), shared), goal_of(reference)
    work = Work(problem, seeds, noises, batch, keep, goal, *storage(model, cache, key, shared))
    work.whole = whole
    fitted = [entry.solver for entry in entries if isinstance(entry.solver, Plan)]
    if key is None and (work.store.takes or any((p.fit or {}).get("answers") for p in fitted)):
        work.answers = ask(problem, shape, place)
    for plan in fitted:
        warn_of_own_examples(plan, seeds, work.key)
        warn_of_another_network(plan, model, None if key else work.key, work.answers)
    solved = work
    if whole:
        solved = distribution.others(work, reference)
    elif isinstance(reference, Tensor):
        work.known = given(reference, n, shape)
    arguments = dict(
        methods=list(dict.fromkeys(entry.label for entry in entries)),
        nfe=wanted,
        shape=list(shape),
        n=n,
        seed=seed,
        grid=[jobs.called(name) for name in names],
        sigma_max=model.sigma_max,
        sigma_min=ends,
        batch=batch,
        reference="given" if solved.known else goal,
        keep=keep,
        confidence=float(confidence),
        metric=metric,
        **plain_alterations(model),
    )
    ode = filter(None, [f"{model.prediction}-network", ode_text(model.alterations)])
    result = Comparison(
        budgets=wanted,
        confidence=confidence,
        seeds=list(seeds[searched:]),
        searched=searched,
        model=f"{type(model).__name__}({', '.join(ode)})",
        schedule=repr(model.schedule),
        fingerprints=dict(
            model=work.key or "unknown", schedule=model.schedule.fingerprint, version=__version__
        ),
        about=dict(**versions(), device=str(place), arguments=arguments),
    )
    if progress:
        _tell(solved, todo, n, searched)
    try:
        with progress_bar(progress, unit="eval", unit_scale=True) as bar:
            _run(work, solved, features, todo, result, bar)
    except KeyboardInterrupt:
        raise Interrupted(_stopped(work, todo, result), result) from None
    return result


def _tell(work: Work, todo: list[list[Job]], n: int, searched: int) -> None:
    """Say what it will cost, from a few calls of the network."""
    few = slice(0, work.batch)
    seconds = seconds_a_call(work.problem.rows(few), work.noises[few])
    solves = [] if work.known else [plan.nfe for plan in plans(work.problem.model)]
    calls = sum(_calls(todo, n, searched))
    tell_comparison(seconds, len(work.noises), solves, calls, len(todo), work.store.folder)


def _stopped(work: Work, todo: list[list[Job]], result: Comparison) -> str:
    """What is finished, and where it is kept."""
    folder = work.store.folder if work.store.takes else None
    kept = f"kept in {folder}" if folder else "in .partial (give cache=)"
    done = f"{len(result.rows)} of {len(todo)} rows are finished and {kept}"
    if result.reference is None:
        kept = f"whose finished solves are kept in {folder}" if folder else "give cache="
        done = f"0 of {len(todo)} rows are finished, the reference is not ({kept})"
    return f"stopped: {done}; the same call {'goes on from there' if folder else 'starts again'}"


def _calls(todo: list[list[Job]], n: int, searched: int) -> tuple[int, int]:
    """Of the search for grids and of the rows, over all noises, as far as they are known before."""
    search = searched * sum(job.cost for row in todo if len(row) > 1 for job in row)
    return search, (n - searched) * sum(max(job.cost for job in row) for row in todo)


def _run(
    work: Work,
    solved: Work,
    features: Features | None,
    todo: list[list[Job]],
    result: Comparison,
    bar: Any,
) -> None:
    """Fill the result. solved: the work of solving its reference."""
    n, searched = len(work.noises), result.searched
    rate = work.problem.model.rows_per_sample
    search, report = _calls(todo, n, searched)
    bar.total = rate * (search + report)
    if solved.known is None:
        bar.total += len(solved.noises) * rate * sum(STEPS[:2])
    bar.set_description("reference")
    exact = solved.known or _reference(solved, searched, bar)
    bar.total = bar.n + rate * (search + report)  # how often it was refined is known now
    held: Reference | Distances = exact
    if work.whole:
        held = Distances(exact, features, result.confidence)
        result.reference, result.distribution = exact, held.about
    else:
        result.reference = replace(exact, x=exact.x[searched:n], gap=exact.gap[searched:n])
    warn_of_scale(exact.x, work.problem.model.sigma_max)
    for row in todo:
        label = row[0].entry.label
        bar.set_description(f"{label} at {row[0].budget}")
        job, tried, evals = row[0], None, 0
        if len(row) > 1:
            cells = [_solved(work, job, held, 0, searched, bar) for job in row]
            job = min(zip(row, cells), key=lambda pair: _merit(pair[1]))[0]
            tried, evals = len(row), sum(cell.net_evals for cell in cells)
            result.search += [
                dict(
                    method=label,
                    budget=j.budget,
                    grid=j.grid,
                    sigma_min=c.sigma_min,
                    error=c.error,
                    error_typical=c.typical,
                )
                for j, c in zip(row, cells)
            ]
        cell = None if job.refusal else _solved(work, job, held, searched, n, bar)
        result.add(job, cell, tried, evals)
    bar.total = bar.n
    bar.refresh()


def _merit(cell: Cell) -> tuple[int, float]:
    """Fewest samples without an error, then the smallest typical error."""
    return int(np.isnan(cell.errors).sum()), np.nan_to_num(cell.typical, nan=np.inf)


def _reference(work: Work, searched: int, bar: Any) -> Reference:
    how: dict[str, Any] = dict(goal=work.goal, store=work.store, observe=bar.update)
    solutions = []
    for part in [*work.parts(0, searched), *work.parts(searched, len(work.noises))]:
        problem, origin = work.problem.rows(part), work.origin(part)
        solutions.append(solve(problem, work.noises[part], origin=origin, **how))
    return joined(solutions)


def _solved(
    work: Work, job: Job, held: Reference | Distances, first: int, last: int, bar: Any
) -> Cell:
    """A job on the samples first..last−1, a batch at a time, from the store where it is there."""
    exact = held if isinstance(held, Reference) else None
    cells = [_batch(work, job, exact, part, first, bar) for part in work.parts(first, last)]
    kept = [cell.samples for cell in cells if cell.samples is not None]
    cell = Cell(
        np.concatenate([cell.errors for cell in cells]),
        [status for cell in cells for status in cell.status],
        float(np.average([cell.nfe for cell in cells], weights=[len(c.status) for c in cells])),
        sum(cell.net_evals for cell in cells),
        sum(cell.seconds for cell in cells),
        cells[0].steps,
        cells[0].sigma_min,
        torch.cat(kept) if kept else None,
    )
    if isinstance(held, Distances) and (samples := cell.samples) is not None:
        errors = held(samples, [status == SUCCESS for status in cell.status])
        samples = samples[: work.keep] if work.keep else None
        interval = held.interval(errors)
        cell = replace(cell, errors=errors, samples=samples, interval=interval)
    return cell


def _batch(
    work: Work, job: Job, exact: Reference | None, part: slice, first: int, bar: Any
) -> Cell:
    """A job on one batch. exact: where the ODE takes it, None if only the end states are wanted."""
    x, problem = work.noises[part], work.problem.rows(part)
    keep = len(x) if work.whole else min(max(work.keep - (part.start - first), 0), len(x))
    (parts, near), (solver, numbers) = work.origin(part), job.content()
    aim = aims(work.goal) if work.known is None else [work.known.x[part]]
    aim = ["end states"] if exact is None else aim
    parts = [*parts, solver, keep, aim, str(x.device)]
    near = Near.joined(near, Near.of(numbers, PLAN, PLAN))
    if stored := work.store.get("cell", parts, near):
        tensors, config = stored
        bar.total -= config["net_evals"]
        return Cell(tensors["errors"].double().numpy(), samples=tensors.get("samples"), **config)
    started = time.perf_counter()
    with torch.no_grad(), np.errstate(invalid="ignore"):
        if job.plan is not None:
            seeds = list(work.seeds[part]) if job.plan.is_stochastic else None
            sol = sample(problem.model, x, plan=job.plan, seeds=seeds, **problem.conditions)
        else:
            method = str(job.entry.solver)
            options = {**problem.conditions, **job.options}
            sol = sample(problem.model, x, method, **options)
        end = sol.x.cpu()  # waits for the device
    seconds = time.perf_counter() - started
    errors, status = np.zeros(len(x)), sol.status.tolist()
    if exact is not None:
        errors = norm_per_sample(end.double() - exact.x[part]).numpy()
        known = np.isfinite(exact.gap[part])
        status = [s if s != SUCCESS or has else "no_reference" for s, has in zip(status, known)]
    errors = np.where(np.array(status) == SUCCESS, errors, np.nan)
    config = dict(
        status=status,
        nfe=float(sol.sample_nfe.mean()),
        net_evals=sol.net_evals,
        seconds=seconds,
        steps=len(sol.sigmas) - 1 if job.cost and (job.plan or "steps" in job.options) else None,
        sigma_min=float(np.array(sol.sigmas)[-2]),
    )
    samples = end[:keep].clone() if keep else None
    tensors = {"errors": torch.from_numpy(errors)}
    if samples is not None:
        tensors["samples"] = samples
    work.store.put("cell", parts, near, tensors, config)
    bar.update(sol.net_evals)
    return Cell(errors=errors, samples=samples, **config)
