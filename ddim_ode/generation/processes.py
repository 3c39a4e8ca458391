"""Which part of a run is this process's, as given or as torchrun says."""

from __future__ import annotations

import os

from .._base.checks import count


def share_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world size), as given or in the environment of torchrun."""
    world = _environment("WORLD_SIZE", 1) if world_size is None else world_size
    mine = _environment("RANK", 0) if rank is None else rank
    world, mine = count("world_size", world), count("rank", mine, least=0)
    if mine >= world:
        raise ValueError(f"rank={mine} must be below world_size={world}")
    return mine, world


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise ValueError(
            f"{name}={text!r} in the environment must be a whole number, as torchrun sets it; unset it, "
            "or give rank= and world_size="
        )
    return int(text)
