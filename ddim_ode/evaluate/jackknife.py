"""Distances between two samples without bias, and how sure they are, from blocks of them left out.

    D² = 2 E d(x, y) − E d(x, x') − E d(y, y'),    d = −kernel

is estimated over all pairs of different rows, so without bias: on equal distributions it scatters around
zero. Both samples are cut into the same number of blocks. Leaving block k out of both gives D²₋ₖ, and its
pseudo-value K D² − (K−1) D²₋ₖ (Tukey 1958), moved so that their mean is the estimate; their scatter says
how sure it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .pairs import Floats, Kernel

BLOCKS = 16


class Blocks:
    """A sample in blocks, and its sums of kernel(x_i, x_j), i ≠ j, between every two of them.

    Args:
        kernel: Symmetric.
        parts: The rows (n_k, D) of each block.
    """

    def __init__(self, kernel: Kernel, parts: Sequence[Floats]) -> None:
        self.kernel, self.parts = kernel, parts
        self.sizes = np.array([len(part) for part in parts])
        sums = np.zeros((len(parts), len(parts)))
        for k, part in enumerate(parts):
            own = kernel(part, part)
            sums[k, k] = own.sum() - np.trace(own)
            for j in range(k):
                sums[k, j] = sums[j, k] = kernel(part, parts[j]).sum()
        self._within = self._means(sums, self.sizes, within=True)

    def distances(self, other: Blocks) -> Floats:
        """The pseudo-values (K,) of D² to a sample of as many blocks; NaN with too few rows."""
        sums = np.array([[self.kernel(a, b).sum() for b in other.parts] for a in self.parts])
        across = self._means(sums, other.sizes, within=False)
        whole, *without = self._within + other._within - 2 * across
        blocks = len(without)
        values = -(blocks - 1) * np.array(without)
        return values + (whole - values.mean())

    def _means(self, sums: Floats, others: Floats, within: bool) -> Floats:
        """Of all pairs, and without each block in turn (K+1,)."""
        mine, theirs = (np.append(0, size) for size in (self.sizes, others))
        n, m = mine.sum() - mine, theirs.sum() - theirs
        left = sums.sum() - sums.sum(0) - sums.sum(1) + sums.diagonal()
        counts = n * (n - 1 if within else m)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(counts > 0, np.append(sums.sum(), left) / counts, np.nan)
