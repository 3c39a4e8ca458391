"""Whether one sampler errs less than another, from their errors on the same noises."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..schedules.schedule import Array
from .objectives import spread


class Verdict(NamedTuple):
    """log_ratio: the mean of ln(after/before); half: of its 95 % interval. mean, rms: the ratio of the mean
    errors, and of their root mean squares, which the hard noises decide."""

    log_ratio: float
    half: float
    mean: float
    rms: float

    @classmethod
    def of(cls, before: Array, after: Array, floor: float) -> Verdict:
        """Of errors (n,). floor: An error by chance near zero, as in few dimensions there are, says nothing
        of the sampler: what lies below counts as this."""
        ratio = 0.5 * np.log((after**2 + floor**2) / (before**2 + floor**2))
        mean, square = (
            float(np.mean(after**k)) / max(float(np.mean(before**k)), 1e-300) for k in (1, 2)
        )
        return cls(float(np.mean(ratio)), spread(ratio), mean, square**0.5)

    @property
    def is_less(self) -> bool:
        """Whether it errs less, on the typical noise and on the hard ones."""
        return self.log_ratio < 0 and self.rms < 1

    @property
    def is_likely_less(self) -> bool:
        """The same, by a standard error on the typical noise."""
        return self.log_ratio + self.half / 2 < 0 and self.rms < 1

    @property
    def is_clearly_less(self) -> bool:
        return self.log_ratio + self.half < 0 and self.mean < 1
