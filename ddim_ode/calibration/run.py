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
from ..denoising.problem import Problem as Conditioned
from ..denoising.seeding import GENERATOR
from ..schedules.schedule import Array
from ..solve.answers import Answers, ask, cost_of_asking
from ..solve.look import look
from ..solve.model_key import model_key
from ..solve.solution import norm_per_sample
from ..solvers.plan import Plan
from ..solvers.surrogate import Surrogate
from .descent import Descent, Fit, gauss_newton
from .family import Linear
from .fitting import Features, Problem, finite_mean
from .objectives import spread
from .references import references
from .rehearsal import expected
from .search import EFFORTS, Candidate, Effort, apart, textbook
from .starts import ranked, rehearsals, with_a_call
from .verdict import Verdict

_UNSURE = 0.5  # error of the reference, in units of the plan's, that makes its figures uncertain
FEW = 16  # noises below which held-out figures say little
_LOST = 0.5  # share of the noises that may be left out for NaN or inf
_TOGETHER = 3.8  # single fits, that those of any number of budgets cost, and 4 with their judging
_LOOKED_AT = 8  # noises, for the surrogate
_RESIDUALS = 3  # for each parameter, at least
_AWAY = 1e6  # times the data's size
_WORSE = 1.4  # of the loss, which is twice an error's logarithm: beyond, a rehearsed start is none


@dataclass
class Run:
    """A calibration: its noises, and the network rows it has spent."""

    conditioned: Conditioned
    x: Tensor
    features: Features | None
    batch: int
    seed: int
    budget: str
    bar: Any
    problem: Problem = field(init=False)
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
        self.problem = Problem(
            given.model, x, target, given.cond, given.shared, self.features, self.batch, self.bar.n
        )
        every = torch.arange(n, device=self.x.device)
        # of a second-order method, with half the steps or fewer before: a third of the last move
        self.off = np.zeros(n)
        self.off[n - held :] = self.problem.distances(coarser, every[n - held :]) / 3
        ends = self.problem.distances(target, every)  # 0, or NaN
        solved = self._left(every, self.off + ends, "solution")
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

    def _left(self, rows: Tensor, errors: Array, why: str) -> Tensor:
        """The noises ``rows`` whose errors are numbers; ValueError if too many are left out."""
        finite = torch.from_numpy(np.isfinite(errors)).to(rows.device)
        if lost := rows[~finite].tolist():
            text = f"{len(lost)} of {len(rows)} noises have no finite {why} ({self._seeds(lost)})"
            if len(lost) > _LOST * len(rows):
                raise ValueError(
                    f"{text}, too many to calibrate on the rest: the network or features return NaN or inf"
                )
            self._note(f"{text} and are left out")
        return rows[finite]

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
            over = self.reference_rows - rate * n * SOLUTION_CALLS["fast"]
            allowed = rate * n * fit_calls("fast", nfe) - max(0.0, over)
            allowed = self.share * (allowed - self.asked - self.seen)
        self._tell(f"{nfe} calls: search")
        candidates = [Candidate("start", Linear.of(start))] if start else self._search(nfe, allowed)
        incumbent = next(c for c in candidates if c.is_textbook)
        errors = self.problem.errors(incumbent.point, self.held)
        held = self._left(self.held, errors, f"end under {incumbent.name}")
        errors = errors[np.isfinite(errors)]
        floor = np.maximum(self.off[held.cpu()], self.problem.rounding)
        if np.median(errors / floor) <= 1:
            self._note(
                f"nfe={nfe}: {incumbent.name} errs by {np.median(errors):.2g}, no more than the "
                f"reference may ({np.median(floor):.2g}); nothing is left to calibrate, and it is returned"
            )
            fitted = None
        else:
            left = allowed - (self.problem.evals - before)
            fitted = self._fit(candidates, held, nfe, left, float(np.mean(errors)))
            if fitted is None:
                self._note(
                    f"nfe={nfe}: no sampler tried of so many calls falls with each, as a fit needs; "
                    f"{incumbent.name}, of {incumbent.point.nfe} calls, is returned"
                )
            if lost := sorted(self.problem.lost):
                self._note(
                    f"nfe={nfe}: {len(lost)} noises met NaN or inf in the fit ({self._seeds(lost)}), and "
                    "were left out of those steps"
                )
        # those held out are the last of the judges
        after = errors if fitted is None else self.problem.counted(fitted.errors)[-len(held) :]
        wider = None if fitted is None else self._one_more(nfe)
        if wider is not None:
            same = self.problem.counted(self.problem.errors(wider.point, held))
            if not self._verdict(same, after).is_likely_less:  # more calls are never worse
                fitted, after = Fit(wider.point, same), same
        verdict = self._verdict(errors, after)
        better = verdict.is_clearly_less or (wider is not None and verdict.is_less)
        if fitted is not None and not better:
            mean, half = verdict.log_ratio, verdict.half
            few = mean + half >= 0 > mean  # better as far as they go
            said = "too few to tell that the fit is" if few else "where the fit is not"
            self._note(
                f"nfe={nfe}: {len(held)} noises are held out, {said} better than {incumbent.name} "
                f"(mean ln ratio {mean:+.3f} ± {half:.3f}), which is returned; more noises (n=) may help"
            )
        seeds = [self.seed + k for k in held.tolist()]
        record = self._record(incumbent, seeds, errors, after if better else errors, better)
        share = record["reference_error"] / max(record["held_out"]["after"], 1e-300)
        if fitted is not None and share > _UNSURE:
            self._note(
                f"nfe={nfe}: the reference may err by {record['reference_error']:.2g}, {share:.0%} of the "
                "plan's own error, and the held-out figures by as much"
                + ("; budget='thorough' refines it" if self.budget == "fast" else "")
            )
        best = incumbent.point if fitted is None or not better else fitted.point
        self.last = best if best.nfe == nfe and best.falls else None
        spent = self.asked + self.seen + self.reference_rows
        record["net_evals"] = self.problem.evals - before + spent
        record["warnings"], self.notes = self.notes, notes
        if fitted is None or not better:
            return replace(incumbent.plan, fit=record)
        return fitted.point.to_plan(self.model.schedule, f"calibrated-{nfe}", record)

    def _verdict(self, before: Array, after: Array) -> Verdict:
        return Verdict.of(before, after, self.problem.smoothing(before))

    def _record(
        self, incumbent: Candidate, seeds: Sequence[int], before: Array, after: Array, better: bool
    ) -> dict[str, Any]:
        """What ``plan.fit`` says, but for what it cost."""
        model, plan = self.model, incumbent.plan
        ratio = np.log(np.maximum(after, 1e-300) / np.maximum(before, 1e-300))
        mean, half = float(np.mean(ratio)), spread(ratio)
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
                low=mean - half if math.isfinite(half) else None,
                high=mean + half if math.isfinite(half) else None,
            ),
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

    def _fit(
        self,
        candidates: Sequence[Candidate],
        held: Tensor,
        nfe: int,
        allowed: float,
        incumbent: float,
    ) -> Fit | None:
        """The best fit from the best candidates that a fit can start from; None if there is none.

        incumbent: Its mean error on the noises held out."""
        schedule, effort = self.model.schedule, self.effort
        judges = torch.cat([self.fitted, held]) if effort.pooled else held
        able = [c for c in candidates if c.point.nfe == nfe and c.point.can_be_fitted]
        if self.budget == "fast":  # which pays for few starts: those that lead furthest down
            most = able[0].score + _WORSE if able else 0.0
            able = [c for c in able if c.rehearsed and c.score < most] or able[:1]
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
        how = Descent(
            iterations=effort.iterations,
            rank=rank,
            levels=not self.model.snap,
            limits=(schedule.sigma_min, self.model.sigma_max),
            memory=effort.memory,
            subset=size,
            seed=self.seed,
            decay=effort.decay,
            patience=effort.patience,
        )
        end = self.problem.evals + allowed

        def descend(start: Linear | Fit, **changes: Any) -> Fit:
            left = replace(how, allowed=end - self.problem.evals, **changes)
            return gauss_newton(self.problem, start, self.fitted, judges, left, observe)

        def observe(fit: Fit) -> None:
            errors = self.problem.counted(fit.errors)[-len(held) :]
            self._tell(f"{nfe} calls: fit", float(np.mean(errors)) / incumbent)
            self._observe()

        fits = [descend(point, iterations=tries) for point in points] if tries else []
        fit = descend(
            min(fits, key=lambda fit: self.problem.loss(fit.errors)) if fits else points[0]
        )
        if effort.whole:
            fit = descend(fit.point, iterations=effort.whole, subset=None, decay=0.0, patience=3)
        return fit

    def _observe(self) -> None:
        self.bar.update(self.problem.evals - self.bar.n)

    def _tell(self, phase: str, ratio: float | None = None) -> None:
        """What the bar says: where it is, and how the best sampler so far errs beside the textbook's."""
        self.bar.set_description_str(phase, refresh=False)
        if ratio is not None:
            self.bar.set_postfix_str(f"error {ratio:.2f} × textbook", refresh=False)
