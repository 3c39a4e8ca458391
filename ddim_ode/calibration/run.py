"""One calibration on its way: its noises, its reference, the search, the fits, and what they cost."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._base.version import __version__
from .._base.warn import warn
from ..denoising.cost import SOLUTION_CALLS, fit_calls, most_calls
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import plain
from ..denoising.problem import Problem
from ..denoising.seeding import GENERATOR
from ..schedules.schedule import Array
from ..solve.answers import Answers, ask, cost_of_asking
from ..solve.look import look
from ..solve.model_key import model_key
from ..solve.solution import norm_per_sample
from ..solvers.plan import Plan
from ..solvers.surrogate import Surrogate
from .attempt import Attempt, finite_rows
from .descent import Fit
from .family import Linear
from .fitting import Features, Fitting, finite_mean
from .references import references
from .rehearsal import expected
from .search import EFFORTS, Candidate, Effort, textbook
from .starts import best_fit, ranked, rehearsals, with_a_call

FEW = 16  # noises below which held-out figures say little
_TOGETHER = 3.8  # single fits, that those of any number of budgets cost, and 4 with their judging
_LOOKED_AT = 8  # noises, for the surrogate
_AWAY = 1e6  # times the data's size


@dataclass
class Run:
    """A calibration: its noises, and the network rows it has spent."""

    conditioned: Problem
    x: Tensor
    features: Features | None
    batch: int
    seed: int
    budget: str
    bar: Any
    problem: Fitting = field(init=False)
    fitted: Tensor = field(init=False)
    held: Tensor = field(init=False)
    off: Array = field(init=False)  # (n,) by how much the references of those held out err, at most
    reference_rows: int = 0  # of the network
    answers: Answers | None = None
    asked: int = 0  # network rows, for those answers
    notes: list[str] = field(default_factory=list)
    share: float = 1.0  # of what one fit may cost, where several share what they have in common
    surrogate: Surrogate | None = None
    seen: int = 0  # network rows, for the surrogate
    shown: int = 0  # of the problem's rows, by the bar
    last: Linear | None = None  # the best sampler of fewer calls

    @property
    def model(self) -> Denoiser:
        return self.conditioned.model

    @property
    def effort(self) -> Effort:
        """What the budget pays for."""
        return EFFORTS[self.budget]

    def share_among(self, budgets: Sequence[int]) -> None:
        """Let all fits together cost no more than a few single ones would."""
        shared, own = SOLUTION_CALLS[self.budget], sum(fit_calls(self.budget, k) for k in budgets)
        one = sum(most_calls(self.budget, k) for k in budgets) / len(budgets)
        if self.budget == "fast":
            self.share = min(1.0, (_TOGETHER * one - shared) / own)
        rows = self.model.rows_per_sample * len(self.x)
        self.bar.total = int(rows * max(one, shared + self.share * own))

    def prepare(self) -> None:
        """What the model answers, the reference, and which noises are fitted and which held out."""
        x, given = self.x, self.conditioned
        shape = tuple(x.shape[1:])
        self.answers = ask(given, shape, x.device)
        self.asked = 0 if self.answers is None else cost_of_asking(given, shape)
        n, held = len(self.x), max(1, len(self.x) // 4)
        self._tell("reference")
        self._look()
        known, told = self.surrogate, self._solved
        coarser, target = references(given, x, self.effort, known, n - held, self.batch, told)
        self.features = self.look_at(target)
        self.problem = Fitting(
            given.model, x, target, given.cond, given.shared, self.features, self.batch
        )
        every = torch.arange(n, device=self.x.device)
        # of a second-order method, with half the steps or fewer before: a third of the last move
        self.off = np.zeros(n)
        self.off[n - held :] = self.problem.distances(coarser, every[n - held :]) / 3
        ends = self.problem.distances(target, every)  # 0, or NaN
        solved, said = finite_rows(every, self.off + ends, "solution", self.seed)
        if said:
            self._note(said)
        self.fitted, self.held = solved[solved < n - held], solved[solved >= n - held]
        if min(len(self.fitted), len(self.held)) == 0:
            raise ValueError(
                f"of {n} noises only {len(solved)} have a finite solution, too few to fit some and hold "
                "out others: give more (n=)"
            )
        if len(solved) < FEW:
            self._note(f"{len(solved)} noises are few: the held-out figures say little below {FEW}")

    def look_at(self, target: Tensor) -> Features | None:
        """The features that errors are of, None for the samples themselves; target: the solutions."""
        return self.features

    def _solved(self, rows: int) -> None:
        self.reference_rows += rows
        self.bar.update(rows)

    def _look(self) -> None:
        """The surrogate, from the first noises; none where the look meets NaN or samples that run away, or
        of fewer than 8."""
        few = torch.arange(min(_LOOKED_AT, len(self.x) // 8), device=self.x.device)
        if not len(few):  # it would cost more than the fits may
            return

        def counted(rows: int) -> None:
            self.seen += rows
            self.bar.update(rows)

        with contextlib.suppress(ValueError), np.errstate(all="ignore"):
            seen = look(self.conditioned.rows(few), self.x[few], self.batch, counted)
            surrogate = seen.surrogate
            seen_all = (surrogate.gram, surrogate.gain, surrogate.response)
            most = (_AWAY * (1 + finite_mean(norm_per_sample(seen.ends)))) ** 2
            if all(np.isfinite(a).all() for a in seen_all) and surrogate.gram.max() < most:
                self.surrogate = surrogate

    def _note(self, text: str) -> None:
        self.notes.append(text)
        warn(text)

    def plan(self, nfe: int, start: Plan | None) -> Plan:
        """The best plan of nfe calls."""
        self.problem.lost.clear()
        before, allowed = self.problem.evals, self._allowed(nfe)
        self._tell(f"{nfe} calls: search")
        candidates = [Candidate("start", Linear.of(start))] if start else self._search(nfe, allowed)
        incumbent = next(c for c in candidates if c.is_textbook)
        attempt = Attempt.on(self.held, self.problem, nfe, incumbent, self.seed)
        fit = chosen = None
        if attempt.is_open(self.off):
            fit = self._fit(attempt, candidates, allowed - (self.problem.evals - before))
            attempt.note_fit(fit)
        if fit is not None:
            chosen = attempt.chosen(fit, self._one_more(nfe))
        after = attempt.errors if chosen is None else chosen.errors
        record = self._record(attempt, after, chosen is not None)
        if fit is not None:
            finer = "; budget='thorough' refines it" if self.budget == "fast" else ""
            attempt.note_reference(record["reference_error"], after, finer)
        best = incumbent.point if chosen is None else chosen.point
        self.last = best if best.nfe == nfe and best.falls else None
        spent = self.asked + self.seen + self.reference_rows
        record["net_evals"] = self.problem.evals - before + spent
        record["warnings"] = [*self.notes, *attempt.notes]
        if chosen is None:
            return replace(incumbent.plan, fit=record)
        return best.to_plan(self.model.schedule, f"calibrated-{nfe}", record)

    def _allowed(self, nfe: int) -> float:
        """Network rows that the search and the fit may spend."""
        if self.budget != "fast":
            return math.inf
        each, n = self.model.rows_per_sample, len(self.x)
        over = self.reference_rows - each * n * SOLUTION_CALLS["fast"]
        allowed = each * n * fit_calls("fast", nfe) - max(0.0, over)
        return self.share * (allowed - self.asked - self.seen)

    def _fit(self, attempt: Attempt, candidates: Sequence[Candidate], allowed: float) -> Fit | None:
        """The best fit from those of the candidates that make all calls; None where there is none."""

        def observe(fit: Fit) -> None:
            ratio = float(np.mean(attempt.errors_of(fit))) / float(np.mean(attempt.errors))
            self._tell(f"{attempt.nfe} calls: fit", ratio)
            self._observe()

        able = [c for c in candidates if c.point.nfe == attempt.nfe]
        noises = self.fitted, attempt.held
        return best_fit(self.problem, able, noises, self.effort, allowed, self.seed, observe)

    def _record(self, attempt: Attempt, after: Array, better: bool) -> dict[str, Any]:
        """What ``plan.fit`` says, but for what it cost. after: The plan's errors on the noises held out."""
        model, plan = self.model, attempt.incumbent.plan
        low = [sigma for sigma in plan.grid if sigma > 0][-1]
        return dict(
            model=f"{type(model).__name__}({model.prediction}-network)",
            model_key=model_key(model),
            answers=None if self.answers is None else self.answers.to_dict(),
            prediction=model.prediction,
            guidance=None if model.guidance is None else plain(model.guidance.scale),
            alterations={k: v for k, v in model.alterations.items() if k != "guidance"},
            sigma_range=[low, plan.grid[0] if math.isfinite(plan.grid[0]) else "inf"],
            shape=list(self.x.shape[1:]),
            placing=getattr(model, "placing", None),
            incumbent=attempt.incumbent.name,
            incumbent_plan=plan.to_dict(),
            calibrated=better,
            budget=self.budget,
            features=self.features is not None,
            n=len(self.x),
            seed=self.seed,
            generator=GENERATOR,
            held_out=attempt.held_out(after),
            reference_error=float(np.mean(self.off[self.held.cpu()])),
            version=__version__,
        )

    def _search(self, nfe: int, allowed: float) -> list[Candidate]:
        """Samplers of at most nfe calls, the best first, textbook ones and others to start from."""
        searches = [
            textbook(self.model, nfe, self.effort, skipped) for skipped in (0, *self.effort.skips)
        ]
        starts: list[Candidate] = []
        rounds = self.effort.rounds
        if self.surrogate is not None:
            able = [c for some in searches for c in ranked(self.surrogate, some)]
            able = sorted((c for c in able if c.point.nfe == nfe), key=lambda c: c.score)
            starts = rehearsals(self.model, self.surrogate, able, self.effort.memory)
            if (wider := self._one_more(nfe)) is not None:
                starts.append(wider)
                wide = ranked(self.surrogate, [wider])
                starts += rehearsals(self.model, self.surrogate, wide, self.effort.memory)
        if starts and self.budget == "fast":  # the surrogate says which are worth a first look
            first = [c for c in able if not c.skipped]
            searches, rounds = [first or searches[0]], rounds[1:] if first else rounds
        share = allowed / 4 / len(searches)
        screened = [c for some in searches for c in self._screen(some, nfe, share, rounds)]
        some = self.fitted[: self.effort.rounds[-1][1]]
        return sorted(screened + self._scored(starts, some), key=lambda c: c.score)

    def _one_more(self, nfe: int) -> Candidate | None:
        """The best sampler of one call fewer, with a call that it makes no use of yet."""
        surrogate, model = self.surrogate, self.model
        if surrogate is None or self.last is None or self.last.nfe != nfe - 1 or model.snap:
            return None
        places = with_a_call(self.last, model.schedule, model.schedule.sigma_min)
        if not places:
            return None
        best = min(places, key=lambda point: expected(surrogate, point))
        return Candidate(f"the plan of {nfe - 1} calls", best, rehearsed=True)

    def _screen(
        self, left: list[Candidate], nfe: int, allowed: float, rounds: Sequence[tuple[int, int]]
    ) -> list[Candidate]:
        """The best of some candidates: fewer stay, on more noises, each round."""
        cost = sum(min(keep, len(left)) * m for keep, m in rounds) * nfe
        share = min(1.0, allowed / (max(cost, 1) * self.model.rows_per_sample))
        for keep, m in rounds:
            scored = self._scored(left[: max(1, int(share * keep))], self.fitted[:m])
            left = sorted(scored, key=lambda c: c.score)
        return left

    def _scored(self, candidates: Sequence[Candidate], rows: Tensor) -> list[Candidate]:
        """The candidates with their losses on some noises."""
        errors = self.problem.errors_of([c.point for c in candidates], rows)
        self._observe()
        return [c._replace(score=self.problem.loss(e)) for c, e in zip(candidates, errors)]

    def _observe(self) -> None:
        self.bar.update(self.problem.evals - self.shown)
        self.shown = self.problem.evals

    def _tell(self, phase: str, ratio: float | None = None) -> None:
        """What the bar says: where it is, and how the best sampler so far errs beside the textbook's."""
        self.bar.set_description_str(phase, refresh=False)
        if ratio is not None:
            self.bar.set_postfix_str(f"error {ratio:.2f} × textbook", refresh=False)
