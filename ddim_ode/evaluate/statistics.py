"""What real data look like in some features: the half of every metric that is computed once, and kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import count, seed_of, tensor_of
from ..nets import weights
from .features import Features, check_features, content_sha256
from .frechet import moments
from .pairs import Floats, as_rows

_ARRAYS = ("mean", "cov", "rows")
_SCALARS = ("n", "features", "features_sha256", "data_sha256", "seed")


@dataclass(frozen=True, eq=False, repr=False)
class FeatureStatistics:
    """The statistics of n rows of features, and some of the rows.

    Attributes:
        mean, cov: (D,) and (D, D), float64, over all n rows, for the Fréchet distance.
        rows: (K, D), K ≤ n of them, drawn once with ``seed``, for the metrics that need samples.
        features, features_sha256: What the rows are.
        data_sha256: Of the data themselves (type, shape and bytes).
    """

    mean: Floats
    cov: Floats
    rows: npt.NDArray[Any]
    n: int
    features: str
    features_sha256: str
    data_sha256: str
    seed: int = 0

    def __repr__(self) -> str:
        kept = f"{len(self.rows):,} of {self.n:,} rows kept"
        return f"FeatureStatistics({self.features}, {len(self.mean)} dimensions, {kept})"

    @classmethod
    def of(
        cls,
        images: Tensor | npt.NDArray[Any],
        features: Features,
        *,
        keep: int = 10_000,
        seed: int = 0,
    ) -> FeatureStatistics:
        """From real images (N, C, H, W) in network space; keep=0 leaves only the Fréchet distance.

        >>> from ddim_ode.evaluate.features import IDENTITY
        >>> real = np.random.default_rng(0).standard_normal((1000, 2))
        >>> FeatureStatistics.of(real, IDENTITY, keep=500).rows.shape
        (500, 2)
        """
        rng = np.random.default_rng(seed_of(seed))
        rows = check_features(features)(images)
        mean, cov = moments(as_rows("the reference's features", rows))
        keep, seed = count("keep", keep, 0), seed_of(seed)
        drawn = np.sort(rng.choice(len(rows), min(keep, len(rows)), replace=False))
        kept = rows[drawn] if keep < len(rows) else rows
        data = content_sha256({"data": tensor_of("images", images)}, "data")
        return cls(mean, cov, kept, len(rows), features.name, features.sha256, data, seed)

    @property
    def sha256(self) -> str:
        """Which reference this is: data, features, n and the draw of the rows, not the last bits."""
        parts = (self.data_sha256, self.features_sha256, self.n, len(self.rows), self.seed)
        return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()

    def check(self, features: Features) -> None:
        """ValueError unless these are the features it was computed in."""
        if check_features(features).sha256 != self.features_sha256:
            raise ValueError(
                f"the reference was computed in {self.features!r} ({self.features_sha256[:12]}), and "
                f"these are {features.name!r} ({features.sha256[:12]}): distances across the two mean "
                "nothing; pass the reference's features, or compute it again with "
                "FeatureStatistics.of(images, features)"
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically; nothing in it is pickled."""
        tensors = self._tensors()
        scalars = {name: getattr(self, name) for name in _SCALARS}
        contents = content_sha256(tensors, "")
        weights.write(path, tensors, dict(kind="reference", contents_sha256=contents, **scalars))

    @classmethod
    def load(cls, path: str | Path, features: Features | None = None) -> FeatureStatistics:
        """Read what :meth:`save` wrote, and check it against ``features`` when they are given.

        FileNotFoundError or ValueError naming the file when it is missing, truncated, damaged, or
        something else.
        """
        tensors, config = weights.read(path)
        kind = config.get("kind") if isinstance(config, dict) else None
        if kind != "reference":
            raise ValueError(f"{path}: holds a {kind!r}, not a 'reference'")
        try:
            contents = config["contents_sha256"]
            fields: dict[str, Any] = {name: tensors[name].numpy() for name in _ARRAYS}
            reference = cls(**fields, **{name: config[name] for name in _SCALARS})
        except KeyError as error:
            raise ValueError(f"{path}: a reference without {error}; compute it again") from error
        if content_sha256(tensors, "") != contents:
            raise ValueError(f"{path}: damaged, its numbers are not those saved; compute it again")
        if features is not None:
            reference.check(features)
        return reference

    def _tensors(self) -> dict[str, Tensor]:
        return {
            name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in _ARRAYS
        }
