"""Network calls on a part of the batch at a time, as many rows as fit into memory.

A solve keeps a few vectors a sample, a network all its activations: it is the network's batch that memory
limits. It can be smaller than the solve's, since row i of the output depends on row i of the input alone (a
network for which that does not hold, such as one with batch norm in training, samples wrongly anyway).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .guidance import Call, Level


class MicroBatches:
    """At most ``rows`` samples a call. With ``rows=None`` all of them, and half as many whenever memory
    runs out, down to one; ``halved`` counts how often.
    """

    def __init__(self, rows: int | None) -> None:
        self.rows = rows
        self.halved = 0
        self._adapts = rows is None

    def over(self, network: Callable[[slice], Call], n: int) -> Call:
        """``call(x, t, at)`` of a batch of n, by the calls that ``network(rows)`` gives of its parts."""
        bound: dict[int, list[tuple[slice, Call]]] = {}

        def parts(size: int) -> list[tuple[slice, Call]]:
            if size not in bound:
                slices = [slice(i, i + size) for i in range(0, max(1, n), size)]
                bound[size] = [(s, network(s)) for s in slices]
            return bound[size]

        def call(x: Tensor, t: Tensor, at: Level | None = None) -> Tensor:
            while True:
                size = max(1, min(self.rows or len(x), len(x)))
                try:
                    out = [
                        call_part(x[s], t[s], None if at is None else at.part(s, len(x)))
                        for s, call_part in parts(size)
                    ]
                    return out[0] if len(out) == 1 else torch.cat(out)
                except RuntimeError as error:
                    if not self._adapts or size == 1 or not _out_of_memory(error):
                        raise
                # Only here, where the error and with it the network's tensors are let go of.
                bound.clear()
                self.rows, self.halved = size // 2, self.halved + 1
                if x.is_cuda:
                    torch.cuda.empty_cache()

        return call


def _out_of_memory(error: RuntimeError) -> bool:
    """Of a device, or of the CPU, whose allocator has no error of its own."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
