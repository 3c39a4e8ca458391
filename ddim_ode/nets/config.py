"""What a training run is (no torch: the command line reads its defaults)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._base.checks import count, seed_of


@dataclass(frozen=True)
class TrainConfig:
    """What a run is; a resumed run must agree on everything but ``steps``."""

    steps: int = 8000
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 200
    ema: float = 0.9995
    label_dropout: float = 0.1
    dropout: float = 0.0
    channels: tuple[int, ...] = (32, 64, 128)
    blocks: int = 1
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "warmup", "blocks"):
            count(name, getattr(self, name))
        seed_of(self.seed)
        for name in ("label_dropout", "dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must lie in [0, 1)")

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero at ``steps``."""
        rise = min(1.0, (step + 1) / self.warmup)
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
