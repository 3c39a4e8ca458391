"""A whole fixed-step solve as one CUDA graph: recorded once, then launched by one call a batch.

The loop reads nothing from the device (see loop.py), so everything between the start noise and
the samples can be recorded. What ``sample`` uploads before its first network call, network times and
scales, is uploaded once beforehand: a graph that had recorded those copies would read host memory that is
gone when it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..denoising.denoiser import Denoiser
from ..denoising.network import check_cond
from ..denoising.problem import Problem
from ..solvers.plan import Plan
from .sampling import sample


class Uploads(TorchFunctionMode):
    """Keeps what a first run moves from the host to a device, and hands it out in a second run.

    ``kept`` has to live as long as the graph recorded in the second run.
    """

    def __init__(self, kept: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.kept: list[Tensor] = [] if kept is None else list(kept)
        self.again = None if kept is None else iter(self.kept)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.Tensor.to or not _leaves_host(args, kwargs):
            return func(*args, **kwargs)
        if self.again is not None:
            return next(self.again)
        self.kept.append(func(*args, **kwargs))
        return self.kept[-1]


class Captured(NamedTuple):
    """A solve as a graph: ``replay`` it, and ``end``'s tensors hold its outcome."""

    graph: Any
    end: Any
    uploads: list[Tensor]

    def replay(self) -> Any:
        self.graph.replay()
        return self.end


def capture(solve: Callable[[], Any]) -> Captured:
    """One CUDA graph of everything that ``solve`` does on the device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        solve()  # what is set up once (cuDNN's choices, workspaces) is no part of the graph
        with Uploads() as uploads:
            solve()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with Uploads(uploads.kept), torch.cuda.graph(graph):
        end = solve()
    return Captured(graph, end, uploads.kept)


class GraphedPlan:
    """A deterministic plan for batches like x with conditions like ``cond``, as one CUDA graph.

    Calling it with another x and cond of the same shapes copies them in, replays the graph and returns new
    tensors: the samples (B, *), and which of them are finite (B,). With a model, the null values of its
    guidance are copied in too, if they have a row for each sample.

    Args:
        model: The denoiser.
        plan: What runs.
        x: (B, *) on a CUDA device.
        cond, shared: As in :func:`ddim_ode.sample`.

    Raises:
        ValueError: Off CUDA, for a plan with step noise (drawn on the host), and for other shapes than
            those recorded.
    """

    def __init__(
        self,
        model: Denoiser,
        plan: Plan,
        x: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> None:
        check_graphable(plan, x.device)
        self._x = x.clone()
        problem = Problem(model, check_cond(cond, len(x)), shared)
        self._problem = problem.rows(torch.arange(len(x)))  # copies

        def solve() -> tuple[Tensor, Tensor]:
            own = self._problem
            sol = sample(own.model, self._x, plan=plan, **own.conditions)
            assert sol.finite is not None
            return sol.x, sol.finite

        self._captured = capture(solve)

    def fits(self, x: Tensor) -> bool:
        """Whether it was recorded for batches of this shape."""
        return x.shape == self._x.shape

    def __call__(
        self,
        x: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        model: Denoiser | None = None,
    ) -> tuple[Tensor, Tensor]:
        rows, kept = check_cond(cond, len(x)), self._problem.cond or {}
        if not self.fits(x) or rows.keys() != kept.keys():
            raise ValueError(
                f"the graph was recorded for x {tuple(self._x.shape)} and conditions "
                f"{sorted(kept)}, got {tuple(x.shape)} and {sorted(rows)}: record another"
            )
        self._x.copy_(x)
        for name, value in kept.items():
            value.copy_(rows[name])
        guidance = self._problem.model.guidance
        if model is not None and model.guidance and guidance:
            null = model.guidance.rows(rows)
            for name, value in guidance.rows(kept).items():
                value.copy_(null[name])
        end, finite = self._captured.replay()
        return end.clone(), finite.clone()


def check_graphable(plan: Plan | None, device: torch.device) -> None:
    """ValueError unless this solve can be recorded on this device."""
    if device.type != "cuda":
        raise ValueError(
            f"cuda_graph=True records what a CUDA device does, and this is {device}; drop it"
        )
    if plan is None or plan.is_stochastic:
        what = (
            "an adaptive solve decides on the host" if plan is None else "step noise is drawn there"
        )
        raise ValueError(f"cuda_graph=True: a graph cannot ask the host, and {what}; drop it")


def _leaves_host(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether ``args[0].to(*args[1:], **kwargs)`` goes from the CPU to another device."""
    if args[0].device.type != "cpu":
        return False
    for target in (*args[1:], *kwargs.values()):
        if isinstance(target, Tensor):
            target = target.device
        if isinstance(target, (torch.device, str)) and torch.device(target).type != "cpu":
            return True
    return False
