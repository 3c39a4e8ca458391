"""The metrics of a run that does not fit into memory: one shard at a time, each verified as it is read.

The Fréchet distance needs a mean and a covariance, which add up over parts (Chan, Golub & LeVeque 1979):
with d = m_b − m_a and S the sums of squares about the means,

    n = n_a + n_b,   m = m_a + d n_b/n,   S = S_a + S_b + d dᵀ n_a n_b/n.

The other metrics need rows, and get a random ``keep`` of them: those whose samples drew the smallest of n
random numbers, so that which they are does not depend on the shards.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from .._base.bars import progress_bar
from .._base.checks import count, seed_of
from .._base.warn import warn
from ..solvers.controller import MAX_NFE, SUCCESS
from .features import Features
from .metrics import METRICS, Measured, check_names, row_of
from .pairs import Floats, as_rows
from .statistics import FeatureStatistics

if TYPE_CHECKING:
    from torch import Tensor


class Run(Protocol):
    """What a run on disk says of itself; :class:`ddim_ode.generation.shards.Run` is one."""

    @property
    def n(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def decides(self) -> Mapping[str, Any]: ...

    @property
    def sha256(self) -> str: ...


class Shard(Protocol):
    """Samples x (b, *), and of each its index and status."""

    @property
    def x(self) -> Tensor: ...

    @property
    def samples(self) -> Sequence[int]: ...

    @property
    def status(self) -> Sequence[str]: ...


class Shards(Protocol):
    """A run, and its shards, each verified as it is read."""

    @property
    def run(self) -> Run: ...

    def __iter__(self) -> Iterator[Shard]: ...

    def __len__(self) -> int: ...


class Moments:
    """Mean and covariance of rows that come in parts.

    >>> parts = np.random.default_rng(0).standard_normal((3, 10, 2))
    >>> found = Moments()
    >>> for part in parts:
    ...     found.add(part)
    >>> np.allclose(found.cov, np.cov(parts.reshape(-1, 2), rowvar=False))
    True
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: Floats = np.zeros(0)
        self._squares: Floats = np.zeros((0, 0))

    def add(self, rows: Floats) -> None:
        """Take in rows (k, D)."""
        mean = rows.mean(axis=0)
        squares = (rows - mean).T @ (rows - mean)
        n, k = self.n, len(rows)
        if n:
            gap = mean - self.mean
            squares += self._squares + np.outer(gap, gap) * (n * k / (n + k))
            mean = self.mean + gap * (k / (n + k))
        self.n, self.mean, self._squares = n + k, mean, squares

    @property
    def cov(self) -> Floats:
        """(D, D), unbiased; ValueError with fewer than two rows."""
        if self.n < 2:
            raise ValueError(f"{self.n} good samples have no covariance; at least 2 are needed")
        return self._squares / (self.n - 1)


class Kept:
    """The rows with the ``most`` smallest keys, of rows that come in parts."""

    def __init__(self, most: int) -> None:
        self._most, self._rows, self._keys, self._held = most, list[Any](), list[Floats](), 0

    def add(self, rows: Floats, keys: Floats) -> None:
        """Take in rows (k, D) with their keys (k,)."""
        self._rows.append(rows)
        self._keys.append(keys)
        self._held += len(rows)
        if self._held > 2 * self._most + 4096:
            self._cut()

    @property
    def rows(self) -> Floats:
        """(≤ most, D), in the order in which they came."""
        self._cut()
        return self._rows[0]

    def _cut(self) -> None:
        rows, keys = np.concatenate(self._rows), np.concatenate(self._keys)
        first = np.sort(np.argsort(keys, kind="stable")[: self._most])
        self._rows, self._keys, self._held = [rows[first]], [keys[first]], len(first)


class Summary(NamedTuple):
    """What a run's samples are. distinct: different ones, by their bytes. sha256: of all that was read."""

    row: dict[str, Any]
    status: Counter[str]
    distinct: int
    sha256: str


def summarise(
    shards: Shards,
    features: Features | None = None,
    reference: FeatureStatistics | None = None,
    *,
    metrics: Sequence[str] = METRICS,
    keep: int = 10_000,
    seed: int = 0,
    progress: bool = False,
) -> Summary:
    """Read and verify every shard; with a reference, also measure the good samples against it.

    Memory: one shard, ``keep`` rows, and a covariance.

    Args:
        shards: Of :func:`ddim_ode.generate`.
        features: Those of the reference.
        reference: Of real data.
        metrics: Names, see :func:`ddim_ode.evaluate.metrics.measure`.
        keep: Rows for all metrics but the Fréchet distance, which uses every sample.
        seed: Of which rows, and of the metrics' own draws.
        progress: Show a bar.

    Returns:
        ``row`` has the run's n, failed (samples that did not arrive, left out of everything but the
        counts), seeds, run and samples (the starts of their hashes), mean and std of the entries, and what
        ``measure`` says.

    Raises:
        ValueError: A shard that is missing or damaged, features unlike the reference's, unknown metrics.
    """
    if (features is None) != (reference is None):
        raise ValueError("features and reference belong together; give both, or neither")
    names = check_names(metrics)
    run = shards.run
    arrived = _arrived(run)
    draw = np.random.default_rng(seed_of(seed))  # a key for each sample of the run in turn
    status: Counter[str] = Counter()
    bytes_of, whole = set[bytes](), hashlib.sha256()
    entries, gaussian, kept = Moments(), Moments(), Kept(count("keep", keep, 4))
    if features is not None and reference is not None:
        reference.check(features)
    for shard in progress_bar(progress, iterable=shards, total=len(shards), unit="shard"):
        status.update(shard.status)
        for sample in shard.x.numpy():
            digest = hashlib.sha256(sample.tobytes()).digest()
            bytes_of.add(digest[:16])
            whole.update(digest)
        keys = draw.random(len(shard.samples))
        good = np.array([word in arrived for word in shard.status])
        if not good.any():
            continue
        x = shard.x[good]
        entries.add(x.double().reshape(-1, 1).numpy())
        if features is not None:
            rows = features(x)
            gaussian.add(as_rows("the samples' features", rows, least=1))
            kept.add(rows, keys[good])
    row: dict[str, Any] = dict(
        n=run.n,
        failed=run.n - sum(status[word] for word in arrived),
        distinct=len(bytes_of),
        seeds=f"{run.seed}-{run.seed + run.n - 1}",
        run=run.sha256[:12],
        samples=whole.hexdigest()[:12],
    )
    if entries.n > 1:
        row |= dict(mean=float(entries.mean[0]), std=float(entries.cov[0, 0]) ** 0.5)
    if reference is not None:
        a = as_rows("the samples' features", kept.rows)
        fewest = min(gaussian.n, reference.n)
        if "frechet_distance" in names and fewest <= a.shape[1]:
            warn(
                f"the Fréchet distance of {fewest} samples in {a.shape[1]} features is mostly bias (their "
                "covariance is singular); make more samples than features, or take kernel_distance"
            )
        measured = Measured(a, (gaussian.mean, gaussian.cov), reference, seed)
        row |= dict(row_of(measured, names), n=run.n, rows=len(a))
    return Summary(row, status, len(bytes_of), whole.hexdigest())


def _arrived(run: Run) -> tuple[str, ...]:
    """The statuses of samples that are at the end. With ``nfe=`` an adaptive solve of ours brings them all
    there, those that would have needed more calls less accurately; another package's stops on the way."""
    solver = run.decides.get("solver")
    if (
        not isinstance(solver, Mapping)
        or solver.get("nfe") is None
        or ":" in str(solver.get("method"))
    ):
        return (SUCCESS,)
    return (SUCCESS, MAX_NFE)
