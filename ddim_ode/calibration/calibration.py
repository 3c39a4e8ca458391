"""Calibration: the sampler of few network calls that fits the user's own model.

Every fixed-step solver is a point of one family (family.py). ``calibrate`` finds the best textbook
point for a model, which is the incumbent, and goes downhill from there by Gauss–Newton (fitting.py), over
the levels, the scales and the weights together. What it minimises is the error of the end state against
where the ODE takes the same noise. The network is only ever called; nothing of it is changed or
differentiated.

The noises are split: three quarters are fitted, one quarter is held out and decides whether the fitted plan
is better than the incumbent at all. When to stop, the thorough budget asks all of them, and the fast one,
which cannot pay for that, those held out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from .._base.bars import progress_bar
from .._base.checks import count, flag, function, number, one_of, seed_of, shown, single
from .._base.interrupted import Interrupted
from .._base.version import __version__
from .._base.warn import warn
from ..denoising.cost import most_calls, seconds_a_call, tell_calibration
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import Cond, check_model, conditions, device_of, sample_shape
from ..denoising.seeding import GENERATOR, noise
from ..schedules.schedule import Array
from ..solve.answers import Answers, ask, cost_of_asking
from ..solve.levels import Levels, budgets
from ..solve.model_key import model_key
from ..solve.plan_checks import check_plan
from ..solve.planning import compile_for
from ..solve.reference import METHOD, in_float64
from ..solve.sampling import sample
from ..solve.solution import norm_per_sample
from ..solvers.methods import get_method
from ..solvers.plan import Plan
from .family import Linear
from .fitting import Features, Fit, Problem, checked, finite_mean, gauss_newton
from .search import EFFORTS, Candidate, Effort, apart, textbook

_UNSURE = 0.5  # error of the reference, in units of the plan's, that makes its figures uncertain
FEW = 16  # noises below which held-out figures say little
_LOST = 0.5  # share of the noises that may be left out for NaN or inf
_RESIDUALS = 3  # for each parameter, at least


def calibrate(
    model: Denoiser,
    nfe: int | Iterable[int] = 6,
    *,
    shape: Sequence[int] | None = None,
    n: int = 128,
    seed: int = 0,
    budget: str = "fast",
    start: Plan | None = None,
    cond: Cond | None = None,
    shared: Mapping[str, Any] | None = None,
    features: Features | None = None,
    sigma_max: float | None = None,
    batch: int = 64,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> Any:  # a Plan, or for several budgets dict[int, Plan]
    """The plan of ``nfe`` network calls with the least error on this model; ``{nfe: Plan}`` for several.

    shape: of ONE sample (default: the model's own, where it has one). n: noises, of the seeds
    seed..seed+n−1, a quarter of them held out. From two upwards; below 16 a warning says that the
    held-out figures say little. budget: ``"fast"`` spends at most n × (100 + 12 nfe) network evaluations,
    ``"thorough"`` several times that: some n × (300 + 300 nfe), and searches all textbook samplers.
    start: a plan to improve, instead of the best textbook sampler. cond: conditions {name: tensor (n,
    ...)}, or f(indices (n,)) that gives them; guidance is part of the model. shared: passed to the network
    as it is. features: f(x (b, *)) -> (b, ...), to measure the error in; default x itself. sigma_max:
    where the noise starts (default ``model.sigma_max``, or where ``start`` does). batch: rows the network
    gets at once. progress: a bar, and before it, on stderr, how long it will take, from a few network calls
    that are timed (and not counted). device: where to run (default: the network's own).

    The loss is ½ mean ln e² + ½ ln mean e² over the noises, e the RMS error of the end state against a
    converged solution from the same noise. A small distance between distributions is another aim, and
    need not follow: where a model's own solution is not the best picture, neither is a plan that comes
    close to it (benchmarks/calibration.py, shipped). ``features`` is where to say what counts.

    The held-out noises say whether the fit improves on the incumbent: if the 95 % interval of the mean of
    ln(e/e_incumbent), errors below a tenth of the incumbent's RMS smoothed to that, does not lie below 0,
    the incumbent is returned, and a warning says why. ``plan.fit`` has the figures, in plain data. A model
    with snap=True keeps the incumbent's levels and is fitted in the weights alone.

    Budgets are fitted one by one, from one reference: one fit does not serve them all. On a mixture in 64
    dimensions the levels of a fit of 6 calls, stretched to 4 to 12 and under the best textbook method for
    them, err 5 to 35 times as much as a fit of that budget (benchmarks/calibration.py, transfer).

    Deterministic for a seed, on one machine. ValueError for fewer than two noises, an unknown budget, a
    start of another schedule, or an nfe too small for any sampler. Ctrl-C raises
    ``ddim_ode.Interrupted``, a KeyboardInterrupt that holds the finished plans {nfe: Plan} as ``partial``.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.cosine()
    >>> model = ddim_ode.exact.gaussian_mixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1], schedule)
    >>> plan = ddim_ode.calibrate(model, nfe=4, n=96, progress=False)
    >>> plan.nfe, plan.fit["held_out"]["after"] < 0.7 * plan.fit["held_out"]["before"]
    (4, True)
    """
    check_model(model)
    wanted = budgets(nfe)
    n = count("n", n, least=2)
    seed = seed_of(seed, n)
    batch, _ = count("batch", batch), flag("progress", progress)
    if features is not None:
        features = checked(function("features", features))
    effort = EFFORTS[one_of("budget", budget, EFFORTS)]
    if start is not None:
        check_plan(start, model)
        sigma_max = _first_level(start, sigma_max)
        if wanted != [start.nfe]:
            raise ValueError(f"start has nfe {start.nfe}; calibrate it with nfe={start.nfe}")
        Linear.of(start)
    model, place = model.starting_at(sigma_max), device_of(model, device)
    shape = sample_shape(model, shape)
    x = noise(shape, model.schedule, range(seed, seed + n), model.sigma_max, place)
    rows = conditions(cond, n, place)
    if progress:
        few = slice(0, batch)
        asked, some = model.part(few, rows)
        tell_calibration(seconds_a_call(asked, x[few], some, shared), n, budget, wanted)
    began = time.perf_counter()
    plans: dict[int, Plan] = {}
    try:
        with torch.no_grad(), progress_bar(progress, unit="eval", unit_scale=True) as bar:
            run = _Run(model, x, rows, shared, features, batch, seed, budget, effort, bar)
            run.prepare()
            for k in wanted:
                plans[k] = run.plan(k, start)
    except KeyboardInterrupt:
        said = f"stopped: {len(plans)} of {len(wanted)} plans are fitted, and in .partial"
        raise Interrupted(said, _timed(plans, began)) from None
    plans = _timed(plans, began)
    return plans[wanted[0]] if single(nfe) else plans


def _timed(plans: Mapping[int, Plan], began: float) -> dict[int, Plan]:
    """The plans, with the time that all of them took."""
    seconds = round(time.perf_counter() - began, 2)
    return {
        k: replace(plan, fit={**(plan.fit or {}), "seconds": seconds}) for k, plan in plans.items()
    }


@dataclass
class _Run:
    """A calibration: its noises, and the network rows it has spent."""

    model: Denoiser
    x: Tensor
    cond: dict[str, Tensor] | None
    shared: Mapping[str, Any] | None
    features: Features | None
    batch: int
    seed: int
    budget: str
    effort: Effort
    bar: Any
    problem: Problem = field(init=False)
    fitted: Tensor = field(init=False)
    held: Tensor = field(init=False)
    off: Array = field(init=False)  # (n,) by how much the references err, at most
    reference_calls: int = 0
    answers: Answers | None = None
    asked: int = 0  # network rows, for those answers
    notes: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """What the model answers, the reference, and which noises are fitted and which held out."""
        x = self.x
        self.answers = ask(self.model, tuple(x.shape[1:]), self.cond, self.shared, x.device)
        self.asked = (
            0 if self.answers is None else cost_of_asking(self.model, tuple(x.shape[1:]), self.cond)
        )
        coarser, target = self._reference()
        spent = self.bar.n
        self.problem = Problem(
            self.model, self.x, target, self.cond, self.shared, self.features, self.batch, spent
        )
        n = len(self.x)
        # of a second-order method, with half the steps or fewer before: a third of the last move
        self.off = self.problem.distances(coarser, torch.arange(n, device=self.x.device)) / 3
        there = self._left(torch.arange(n, device=self.x.device), self.off, "solution")
        held = max(1, n // 4)
        self.fitted, self.held = there[there < n - held], there[there >= n - held]
        if min(len(self.fitted), len(self.held)) == 0:
            raise ValueError(
                f"of {n} noises only {len(there)} have a finite solution, too few to fit some and hold out "
                "others: give more (n=)"
            )
        if len(there) < FEW:
            self._note(f"{len(there)} noises are few: the held-out figures say little below {FEW}")

    def _reference(self) -> tuple[Tensor, Tensor]:
        """Where the ODE takes the noises, before the last refinement and after it."""
        model = in_float64(self.model)
        # What is steady at a few dozen calls, on trained networks too: of our methods and grids these err
        # least there, of the order of 1e-3 of the data, where others need a hundred calls and more.
        method, name, start = get_method("unipc2"), "log_snr", None
        if not math.isfinite(model.sigma_max) or model.snap:
            method, name, start = METHOD, "time", "ramp"
        steps = self.effort.reference
        if model.snap:
            most = len(model.schedule.levels)
            steps = tuple(dict.fromkeys(min(k, most) for k in steps))
        x, ends = self.x, []
        for k in steps:
            levels = Levels(model, k, grid=name)
            plan = compile_for(method, levels, start, None, None, None)
            parts = []
            for part in torch.arange(len(x)).split(self.batch):
                own, cond = model.part(part, self.cond)
                with np.errstate(invalid="ignore"):
                    sol = sample(own, x[part].double(), plan=plan, cond=cond, shared=self.shared)
                parts.append(sol.x.to(x.dtype))
                self.bar.update(sol.net_evals)
            ends.append(torch.cat(parts))
            self.reference_calls += plan.nfe
            if len(ends) > 1:
                gap, size = (
                    finite_mean(norm_per_sample(y)) for y in (ends[-1] - ends[-2], ends[-1])
                )
                if gap <= self.effort.goal * size:
                    break
        # on all of its levels a model that snaps has no finer solution
        return ends[max(0, len(ends) - 2)], ends[-1]

    def _note(self, text: str) -> None:
        self.notes.append(text)
        warn(text)

    def _left(self, rows: Tensor, errors: Array, why: str) -> Tensor:
        """The noises ``rows`` whose errors are numbers; ValueError if too many are left out."""
        there = torch.from_numpy(np.isfinite(errors)).to(rows.device)
        if lost := rows[~there].tolist():
            text = f"{len(lost)} of {len(rows)} noises have no finite {why} ({self._seeds(lost)})"
            if len(lost) > _LOST * len(rows):
                raise ValueError(
                    f"{text}, too many to calibrate on the rest: the network or features return NaN or inf"
                )
            self._note(f"{text} and are left out")
        return rows[there]

    def _seeds(self, rows: Sequence[int]) -> str:
        some = ", ".join(str(self.seed + k) for k in rows[:5])
        return f"seeds {some}{', …' if len(rows) > 5 else ''}"

    def plan(self, nfe: int, start: Plan | None) -> Plan:
        """The best plan of nfe calls."""
        self.problem.lost.clear()
        before, notes, rate = self.problem.evals, list(self.notes), self.model.rows_per_sample
        allowed = math.inf
        if self.budget == "fast":
            n = len(self.x)
            allowed = rate * n * (most_calls("fast", nfe) - sum(self.effort.reference))
            allowed -= self.asked
        candidates = [Candidate("start", Linear.of(start))] if start else self._search(nfe, allowed)
        incumbent = next(c for c in candidates if not c.skipped)
        errors = self.problem.errors(incumbent.point, self.held)
        held = self._left(self.held, errors, f"end under {incumbent.name}")
        errors = errors[np.isfinite(errors)]
        floor = np.maximum(self.off[held.cpu()], self.problem.rounding)
        if np.median(errors / floor) <= 1:
            self._note(
                f"nfe={nfe}: {incumbent.name} errs by {np.median(errors):.2g}, no more than the "
                f"reference may ({np.median(floor):.2g}); nothing is left to calibrate, and it is returned"
            )
            found = None
        else:
            found = self._fit(candidates, held, nfe, allowed - (self.problem.evals - before))
            if lost := sorted(self.problem.lost):
                self._note(
                    f"nfe={nfe}: {len(lost)} noises met NaN or inf in the fit ({self._seeds(lost)}), and "
                    "were left out of those steps"
                )
        # those held out are the last of the judges
        after = errors if found is None else self.problem.counted(found.errors)[-len(held) :]
        # an error by chance near zero, as in few dimensions there are, says nothing of the sampler
        f = self.problem.smoothing(errors)
        ratio = 0.5 * np.log((after**2 + f**2) / (errors**2 + f**2))
        mean, spread = float(np.mean(ratio)), _spread(ratio)
        # of the hard noises, too: the mean error is mostly theirs
        better = found is not None and mean + spread < 0 and np.mean(after) < np.mean(errors)
        if found is not None and not better:
            few = mean + spread >= 0 > mean  # better as far as they go
            said = "too few to tell that the fit is" if few else "where the fit is not"
            self._note(
                f"nfe={nfe}: {len(ratio)} noises are held out, {said} better than {incumbent.name} "
                f"(mean ln ratio {mean:+.3f} ± {spread:.3f}), which is returned; more noises (n=) may help"
            )
        seeds = [self.seed + k for k in held.tolist()]
        fit = self._record(incumbent, seeds, errors, after if better else errors, better)
        share = fit["reference_error"] / max(fit["held_out"]["after"], 1e-300)
        if found is not None and share > _UNSURE:
            self._note(
                f"nfe={nfe}: the reference may err by {fit['reference_error']:.2g}, {share:.0%} of the "
                "plan's own error, and the held-out figures by as much"
                + ("; budget='thorough' refines it" if self.budget == "fast" else "")
            )
        spent = self.asked + rate * len(self.x) * self.reference_calls
        fit["net_evals"] = self.problem.evals - before + spent
        fit["warnings"], self.notes = self.notes, notes
        if found is None or not better:
            return replace(incumbent.plan, fit=fit)
        return found.point.to_plan(self.model.schedule, f"calibrated-{nfe}", fit)

    def _record(
        self, incumbent: Candidate, seeds: Sequence[int], before: Array, after: Array, better: bool
    ) -> dict[str, Any]:
        """What ``plan.fit`` says, but for what it cost."""
        model, plan = self.model, incumbent.plan
        ratio = np.log(np.maximum(after, 1e-300) / np.maximum(before, 1e-300))
        mean, spread = float(np.mean(ratio)), _spread(ratio)
        low = [sigma for sigma in plan.grid if sigma > 0][-1]
        return dict(
            model=f"{type(model).__name__}({model.prediction}-network)",
            model_key=model_key(model),
            answers=None if self.answers is None else self.answers.to_dict(),
            prediction=model.prediction,
            guidance=None if model.guidance is None else float(model.guidance.scale),
            alterations={k: v for k, v in model.alterations.items() if k != "guidance"},
            sigma_range=[low, plan.grid[0] if math.isfinite(plan.grid[0]) else "inf"],
            incumbent=incumbent.name,
            incumbent_plan=plan.to_dict(),
            calibrated=bool(better),
            budget=self.budget,
            features=self.features is not None,
            n=len(self.x),
            seed=self.seed,
            generator=GENERATOR,
            held_out=dict(
                n=len(seeds),
                seeds=[seeds[0], seeds[-1]],
                before=float(np.mean(before)),
                after=float(np.mean(after)),
                log_ratio=mean,
                low=mean - spread if math.isfinite(spread) else None,
                high=mean + spread if math.isfinite(spread) else None,
            ),
            reference_error=float(np.mean(self.off[np.isfinite(self.off)])),
            version=__version__,
        )

    def _search(self, nfe: int, allowed: float) -> list[Candidate]:
        """Samplers of at most nfe calls, the best first, textbook ones and others to start from."""
        searches = [
            textbook(self.model, nfe, self.effort, skipped) for skipped in (0, *self.effort.skips)
        ]
        share = allowed / 4 / len(searches)
        found = [c for candidates in searches for c in self._screen(candidates, nfe, share)]
        return sorted(found, key=lambda c: c.score)

    def _screen(self, found: list[Candidate], nfe: int, allowed: float) -> list[Candidate]:
        """The best of some candidates: fewer stay, on more noises, each round."""
        cost = sum(min(keep, len(found)) * m for keep, m in self.effort.rounds) * nfe
        share = min(1.0, allowed / (max(cost, 1) * self.model.rows_per_sample))
        for keep, m in self.effort.rounds:
            found = found[: max(1, int(share * keep))]
            some = self.fitted[:m]
            scored = []
            for candidate in found:
                errors = self.problem.errors(candidate.point, some)
                scored.append(candidate._replace(score=self.problem.loss(errors)))
                self._observe()
            found = sorted(scored, key=lambda c: c.score)
        return found

    def _fit(
        self, candidates: Sequence[Candidate], held: Tensor, nfe: int, allowed: float
    ) -> Fit | None:
        """The best fit from the best candidates that a fit can start from; None if there is none."""
        schedule, effort = self.model.schedule, self.effort
        judges = torch.cat([self.fitted, held]) if effort.pooled else held
        able = [
            candidate
            for candidate in candidates
            if candidate.point.nfe == nfe
            and candidate.point.falls
            and np.all(np.isfinite(candidate.point.scale))
        ]
        points = [candidate.point for candidate in apart(able, effort.starts)]
        if not points:
            return None
        tries = effort.trial if len(points) > 1 else 0
        rank = min(effort.rank, self.x[0].numel())
        # never so few that their residuals do not determine the parameters
        entries = self.problem.goal[0].numel()
        least = math.ceil(_RESIDUALS * len(points[0].parameters(memory=effort.memory)) / entries)
        size = max(effort.subset, least)
        if math.isfinite(allowed):  # what leaves room for all iterations
            iterations = effort.iterations + tries * len(points)
            runs = allowed / (iterations * nfe * self.model.rows_per_sample) - len(judges)
            size = max(size, int(runs / (rank + 4.5)))
        size = min(size, len(self.fitted))
        options: dict[str, Any] = dict(
            rank=rank,
            memory=effort.memory,
            levels=not self.model.snap,
            limits=(schedule.sigma_min, self.model.sigma_max),
            seed=self.seed,
            observe=self._observe,
        )
        end = self.problem.evals + allowed

        def descend(point: Linear, iterations: int, **more: Any) -> Fit:
            return gauss_newton(
                self.problem,
                point,
                self.fitted,
                judges,
                iterations=iterations,
                allowed=end - self.problem.evals,
                **options,
                **more,
            )

        if tries:
            found = [descend(point, tries, subset=size) for point in points]
            points = [min(found, key=lambda fit: self.problem.loss(fit.errors)).point]
        fit = descend(points[0], effort.iterations, subset=size)
        if effort.whole:
            fit = descend(fit.point, effort.whole, patience=3)
        return fit

    def _observe(self) -> None:
        self.bar.update(self.problem.evals - self.bar.n)


def _first_level(start: Plan, sigma_max: float | None) -> float:
    """Where the noise of that plan starts; ValueError if that is not where the caller said."""
    first = start.grid[0]
    if first < start.grid[-1]:
        raise ValueError("start goes up, from data to noise; give a plan that goes down")
    if sigma_max is not None and not math.isclose(
        number("sigma_max", sigma_max), first, rel_tol=1e-9
    ):
        raise ValueError(
            f"sigma_max={shown(sigma_max)}, but start begins at σ={first:g}; drop one of them"
        )
    return first


def _spread(values: Array) -> float:
    """Half the 95 % interval of the mean; inf where a single value says nothing of it."""
    if len(values) < 2:
        return math.inf
    return float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values)))
