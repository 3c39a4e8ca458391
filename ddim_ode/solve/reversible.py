"""A scheme that can be run backwards exactly: reversible Heun.

In a chart y = x/m, dy/du = g(u, y), a second state ŷ is carried beside y and both start equal. A step of
length h (of either sign) from u to u' makes one new evaluation:

    ŷ' = 2y − ŷ + h g(u, ŷ),        y' = y + ½h [g(u, ŷ) + g(u', ŷ')].

Put (y', ŷ') in with −h and the same two lines give (y, ŷ): the inverse is the scheme itself on the reversed
grid, for any network and any step, up to rounding. It is of second order. What is lost is damping: y − ŷ is
never forgotten, and grows where the flow contracts. By how much is a matter of the chart: in 10 calls on
the shipped model, from equal states, the way down errs by .07 in ``flow``, the default, by .12 in ``trig``,
8.4 in ``eps`` and 63 in ``log``.

Reference: Kidger, Foster, Li, Lyons 2021, https://arxiv.org/abs/2105.13493, algorithm 1. The coupled
one-step schemes of McCallum & Foster 2024, https://arxiv.org/abs/2410.11648, were worse per call.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .._base.bars import progress_bar
from .._base.checks import exclusive
from .._base.tensors import check_state
from ..denoising.problem import Problem
from ..schedules.schedule import Array
from ..solvers.chart import SCALES, get_chart
from ..solvers.plan import Node
from .request import REVERSIBLE, Request
from .solution import Solution, finite_samples

CHART = "flow"


def integrate_pair(
    problem: Problem,
    x: Tensor,
    partner: Tensor,
    sigmas: Array,
    chart: str,
    observe: Callable[[], object],
) -> tuple[Tensor, Tensor]:
    """Take (x, partner), both in network space, through the levels ``sigmas`` in their order, in
    len(sigmas) calls; observe() follows each.

    Raises:
        ValueError: The chart is infinite at a level.
    """
    schedule = problem.model.schedule
    coordinates = get_chart(chart, schedule)
    alpha, beta = schedule.scales(sigmas)
    with np.errstate(divide="ignore", invalid="ignore"):
        m = coordinates.gauge(alpha, beta)
        h = np.diff(SCALES[coordinates.clock].of(sigmas))
        factor = coordinates.factor(alpha, beta)
        weight = m[1:] * h  # the weights of g = q W, in x
        table = np.stack([m[1:] / m[:-1], weight * factor[:-1], weight * factor[1:]])
    if not np.isfinite(table).all():
        raise ValueError(
            f"{REVERSIBLE}: chart {chart!r} is infinite at σ={sigmas.max():g}; use chart='flow' or a "
            "finite sigma_max"
        )
    nodes = [
        Node(s, t, coordinates.vector)
        for s, t in zip(sigmas.tolist(), schedule.time(sigmas).tolist())
    ]
    evaluate = problem.bind(nodes, x)
    vector = evaluate(partner, 0)
    observe()
    for k, (r, before, after) in enumerate(table.T.tolist(), start=1):
        partner = torch.add(r * (2 * x - partner), vector, alpha=before)
        x = torch.add(r * x, vector, alpha=0.5 * before)
        vector = evaluate(partner, k)
        observe()
        x = torch.add(x, vector, alpha=0.5 * after)
    return x, partner


def solve(request: Request) -> Solution:
    """A request of kind "reversible", by ``"reversible"`` or ``"reversible:CHART"``."""
    model, x, levels, method = request.model, request.x, request.levels, str(request.method)
    partner, chart = request.partner, request.options["chart"]
    name, _, named = method.partition(":")
    exclusive(**{f"method={method!r}": named or None, "chart=": chart})
    chart = named or chart or CHART
    partner = x if partner is None else check_state(partner).to(x)
    if partner.shape != x.shape:
        raise ValueError(
            f"partner has shape {tuple(partner.shape)} and x {tuple(x.shape)}; give it as it came"
        )
    steps = levels.steps
    if levels.nfe is not None:
        if levels.nfe < 2:
            raise ValueError(
                f"nfe={levels.nfe} is less than one step of {name!r} costs (2); raise nfe"
            )
        steps = levels.nfe - 1
    if steps is None and not levels.given:
        raise ValueError(f"method {name!r} needs to know where to step: give steps= or nfe=")
    sigmas = levels.passed(levels.sigmas(steps or 0))
    calls = len(sigmas) if x.numel() else 0
    if calls:  # else nothing to ask the network
        with progress_bar(request.options["progress"], unit="nfe", desc=method) as bar:
            x, partner = integrate_pair(request.problem, x, partner, sigmas, chart, bar.update)
    return Solution.of(
        x,
        calls,
        method=name if chart == CHART else f"{name}:{chart}",
        sigmas=sigmas,
        net_evals=len(x) * model.rows(sigmas) if calls else 0,
        accepted=len(sigmas) - 1,
        finite=finite_samples(x) & finite_samples(partner),
        partner=partner,
        schedule=model.schedule.fingerprint,
        alterations=model.alterations,
    )
