"""Somebody else's sampler as a plan.

A deterministic sampler that is linear in its start x_T and in the network's answers V_0, V_1, ... is a
table (table.py): y_k = c_k x_T + Σ_{j<k} W_kj V_j. So it is run once, elementwise as samplers are, on a
state whose entries are the coordinates of that space: x_T = e_0, and call k is answered with e_{k+1}. What
the network is shown, and what comes back, are the rows. Each is rewritten as a multiple of the last row
that is a level and as many of the newest V as it takes, which is a plan. A last run on random numbers finds
samplers that are not linear (clipping, thresholding) or not deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._base.checks import finite, number, one_of, text_of
from ..schedules.schedule import Schedule
from .chart import PREDICTIONS
from .ops import Op
from .table import fields_of_rows, states

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Network = Callable[[Tensor, Any], Tensor]
    Loop = Callable[[Network, Tensor], Tensor]

_LINEAR = 1e-4  # float32 samplers agree with their own table to about 1e-6
_ROUNDING = 1e-6  # a weight this small beside its own column of the table comes from rounding


def trace(
    loop: Loop,
    schedule: Schedule,
    *,
    prediction: str = "eps",
    time: str = "t",
    time_offset: float = 0.0,
    sigma_end: float = 0.0,
    dtype: torch.dtype | None = None,
    name: str = "traced",
) -> dict[str, Any]:
    """The fields of the plan of a deterministic sampler that is linear in (x, ε).

    The plan runs on any model with this schedule. Its grid is the levels of the calls; a call that no later
    one goes below, or that is at the level of a later one, is a stage.

    Args:
        loop: ``loop(net, x) -> x_end``: it starts from x in network space, calls ``net(x, t)`` on states in
            network space and returns one, at the level sigma_end. It runs three times, so it must make its
            own state anew (a scheduler remembers).
        schedule: Of the models it will run on.
        prediction: What net answers, and the plan stores: ``"eps" | "x0" | "v" | "flow" | "score"``.
        time: What loop passes for t: ``"t"``, the network's time, or ``"sigma"``.
        time_offset: Of the network's time from the schedule's, as in :class:`ddim_ode.Denoiser`.
        sigma_end: The level that loop ends at.
        dtype: Of the tensors (1, 1, 1, n) that it runs on (default float64).
        name: The plan's method.

    Raises:
        ValueError: The sampler never calls the network, is not linear or not deterministic.
    """
    import torch

    if not callable(loop) or not isinstance(schedule, Schedule):
        raise ValueError("trace takes a callable loop(net, x) and a schedule of ddim_ode.schedules")
    dtype = torch.float64 if dtype is None else dtype
    sigma_end, time_offset = number("sigma_end", sigma_end), finite("time_offset", time_offset)
    if not sigma_end >= 0:
        raise ValueError(f"sigma_end={sigma_end!r} must be >= 0, the level that the loop ends at")
    text_of("name", name)
    one_of("time", time, ("t", "sigma"))
    one_of("prediction", prediction, PREDICTIONS)
    if time == "sigma" and time_offset:
        raise ValueError(f"time='sigma' has no offset; drop time_offset={time_offset:g}")
    probe = _Run(loop, torch.ones(1, 1, 1, 1, dtype=dtype), None)
    n = len(probe.times)
    if n == 0:
        raise ValueError("the sampler never called net(x, t): nothing to trace")
    basis = torch.eye(n + 1, dtype=dtype).reshape(n + 1, 1, 1, 1, n + 1).unbind(0)
    run = _Run(loop, basis[0], basis[1:])
    if run.times != probe.times:
        raise ValueError(
            f"the sampler called net {n} times, then {len(run.times)} times or at other times: it is "
            "adaptive or random, and has no one plan"
        )
    if time == "sigma":
        sigmas = schedule.check_sigma(probe.times, "the sampler's sigma")
        times = schedule.time(sigmas)
    else:
        times = np.array(probe.times) - time_offset
        sigmas = schedule.sigma(times)
    rows = torch.stack([*run.shown, run.end]).reshape(n + 1, n + 1).double().numpy()
    end = float(sigma_end)
    fields = fields_of_rows(
        rows, sigmas, times, prediction, schedule, name, end, rounding=_ROUNDING
    )
    _verify(fields["ops"], loop, prediction, dtype)
    return fields


class _Run:
    """One run of the sampler: the times and states it asked about, and its end."""

    def __init__(self, loop: Loop, x: Tensor, answers: Sequence[Tensor] | None) -> None:
        self.times: list[float] = []
        self.shown: list[Tensor] = []

        import torch

        def net(y: Tensor, t: Any) -> Tensor:
            k = len(self.times)
            time = float(torch.as_tensor(t, dtype=torch.float64).flatten()[0])
            if math.isnan(time):
                raise ValueError(f"the sampler passed the time NaN in its call {k}")
            self.times.append(time)
            self.shown.append(_like(y, x, "showed the network").clone())
            if answers is None:
                return torch.zeros_like(y)
            if k == len(answers):
                raise ValueError(
                    "the sampler calls net more often for some states than for others: it is adaptive, and "
                    "has no one plan"
                )
            return answers[k].to(y.dtype).reshape(y.shape).clone()

        with torch.no_grad():
            self.end = _like(loop(net, x.clone()), x, "returned")


def _like(y: Any, x: Tensor, did: str) -> Tensor:
    """y without its graph; ValueError unless it is a tensor as large as x."""
    from torch import Tensor

    if not isinstance(y, Tensor) or y.numel() != x.numel():
        got = f"a tensor {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(
            f"the sampler {did} {got} for x of {tuple(x.shape)}; it must be one state in, one state out "
            "(guidance belongs into the Denoiser)"
        )
    return y.detach().reshape(x.shape)


def _verify(ops: Sequence[Op], loop: Loop, vector: str, dtype: torch.dtype) -> None:
    """ValueError unless ops and sampler agree on random states and answers."""
    import torch

    calls = sum(op.node is not None for op in ops)
    source = torch.Generator().manual_seed(0)
    x, *answers = (3 * torch.randn(calls + 1, 1, 1, 1, 16, generator=source, dtype=dtype)).unbind(0)
    run = _Run(loop, x, answers)
    stored = [answer.double().numpy() for answer in answers]
    theirs = [y.double().numpy() for y in (*run.shown, run.end)]
    for k, (ours, y) in enumerate(
        zip(states(ops, x.double().numpy(), lambda k, _: stored[k]), theirs)
    ):
        gap = float(np.abs(ours - y).max() / max(np.abs(y).max(), 1.0))
        if not gap < _LINEAR:
            where = f"the state of call {k}" if k < calls else "the end state"
            raise ValueError(
                f"the sampler is not linear in (x, {vector}), or not deterministic: on random numbers "
                f"{where} differs from its table by {gap:.1e} of its size; switch off clipping, "
                "thresholding and noise"
            )
