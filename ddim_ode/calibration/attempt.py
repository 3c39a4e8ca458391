"""One fit against the best textbook sampler of as many calls, on the noises held out: which is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._base.warn import warn
from ..denoising.seeding import seeds_text
from ..schedules.schedule import Array
from .descent import Fit
from .fitting import Fitting
from .search import Candidate
from .verdict import Verdict

_LOST = 0.5  # share of the noises that may be left out for NaN or inf
_UNSURE = 0.5  # error of the reference, in units of the plan's, that makes its figures uncertain


def finite_rows(rows: Tensor, errors: Array, why: str, seed: int) -> tuple[Tensor, str]:
    """The noises ``rows``, of seeds from ``seed`` on, whose errors are numbers, and what there is to say of
    the others; ValueError if these are too many."""
    finite = torch.from_numpy(np.isfinite(errors)).to(rows.device)
    lost = [seed + k for k in rows[~finite].tolist()]
    said = f"{len(lost)} of {len(rows)} noises have no finite {why} ({seeds_text(lost)})"
    if len(lost) > _LOST * len(rows):
        raise ValueError(
            f"{said}, too many to calibrate on the rest: the network or features return NaN or inf"
        )
    return rows[finite], f"{said} and are left out" if lost else ""


@dataclass
class Attempt:
    """What is to beat: the incumbent, with its ``errors`` on the noises ``held`` out. seed: Of the first
    noise. notes: What a user should know of this plan."""

    problem: Fitting
    nfe: int
    incumbent: Candidate
    held: Tensor
    errors: Array
    seed: int
    notes: list[str] = field(default_factory=list)

    @classmethod
    def on(
        cls, held: Tensor, problem: Fitting, nfe: int, incumbent: Candidate, seed: int
    ) -> Attempt:
        """Without the noises that the incumbent does not bring to an end."""
        errors = problem.errors(incumbent.point, held)
        left, said = finite_rows(held, errors, f"end under {incumbent.name}", seed)
        attempt = cls(problem, nfe, incumbent, left, errors[np.isfinite(errors)], seed)
        if said:
            attempt.note(said)
        return attempt

    def note(self, text: str) -> None:
        self.notes.append(f"nfe={self.nfe}: {text}")
        warn(self.notes[-1])

    def is_open(self, off: Array) -> bool:
        """Whether the incumbent errs by more than the references may, ``off`` (n,); said where not."""
        floor = np.maximum(off[self.held.cpu()], self.problem.rounding)
        if np.median(self.errors / floor) > 1:
            return True
        self.note(
            f"{self.incumbent.name} errs by {np.median(self.errors):.2g}, no more than the reference may "
            f"({np.median(floor):.2g}); nothing is left to calibrate, and it is returned"
        )
        return False

    def errors_of(self, fit: Fit) -> Array:
        """A fit's errors on the noises held out, which are the last that judged it."""
        return self.problem.counted(fit.errors)[-len(self.held) :]

    def note_fit(self, fit: Fit | None) -> None:
        """Say why there is no fit, and which noises were lost on the way."""
        if fit is None:
            self.note(
                f"no sampler tried of so many calls falls with each, as a fit needs; "
                f"{self.incumbent.name}, of {self.incumbent.point.nfe} calls, is returned"
            )
        if lost := [self.seed + k for k in sorted(self.problem.lost)]:
            self.note(
                f"{len(lost)} noises met NaN or inf in the fit ({seeds_text(lost)}), and were left out of "
                "those steps"
            )

    def chosen(self, fit: Fit, wider: Candidate | None) -> Fit | None:
        """The fit, or the plan of one call fewer where that errs no more; None, which is said, where it is
        no better than the incumbent. wider: That plan, with a call it makes no use of."""
        best = replace(fit, errors=self.errors_of(fit))
        if wider is not None:
            same = self.problem.counted(self.problem.errors(wider.point, self.held))
            if not self.verdict(best.errors, same).is_likely_less:  # more calls are never worse
                best = Fit(wider.point, same)
        verdict = self.verdict(best.errors)
        if verdict.is_clearly_less or (wider is not None and verdict.is_less):
            return best
        mean, half = verdict.log_ratio, verdict.half
        few = mean + half >= 0 > mean  # better as far as they go
        said = "too few to tell that the fit is" if few else "where the fit is not"
        self.note(
            f"{len(self.held)} noises are held out, {said} better than {self.incumbent.name} "
            f"(mean ln ratio {mean:+.3f} ± {half:.3f}), which is returned; more noises (n=) may help"
        )
        return None

    def note_reference(self, error: float, after: Array, remedy: str) -> None:
        """Say where the reference errs by so much of what the plan does that its figures are unsure."""
        share = error / max(float(np.mean(after)), 1e-300)
        if share > _UNSURE:
            self.note(
                f"the reference may err by {error:.2g}, {share:.0%} of the plan's own error, and the "
                f"held-out figures by as much{remedy}"
            )

    def verdict(self, after: Array, before: Array | None = None) -> Verdict:
        """Of errors on the noises held out, beside others there, by default the incumbent's."""
        before = self.errors if before is None else before
        return Verdict.of(before, after, self.problem.smoothing(before))

    def held_out(self, after: Array) -> dict[str, Any]:
        """What a plan's fit says of these errors beside the incumbent's."""
        seeds, verdict = [self.seed + k for k in self.held.tolist()], self.verdict(after)
        mean, half = verdict.log_ratio, verdict.half
        return dict(
            n=len(seeds),
            seeds=[seeds[0], seeds[-1]],
            before=float(np.mean(self.errors)),
            after=float(np.mean(after)),
            log_ratio=mean,
            low=mean - half if math.isfinite(half) else None,
            high=mean + half if math.isfinite(half) else None,
        )
