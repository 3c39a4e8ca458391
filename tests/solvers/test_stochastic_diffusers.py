"""Parity with diffusers' stochastic schedulers, coefficient by coefficient: each network input and the end
over the start, the answers and the draws (helpers/noisy_peers.py).

| peer                                  | ours                                  | departure, its size here |
|---------------------------------------|---------------------------------------|----------------------------|
| EulerAncestral                        | euler_ancestral                       | none |
| KDPM2Ancestral                        | dpm2 with rises=Ancestral()           | none |
| DPMSolverMultistep sde-dpmsolver++, 1 | euler_ancestral                       | none |
| the same, 2, midpoint                 | dpmpp2m_sde                           | none |
| the same, 2, heun                     | dpmpp2m_sde without rules             | none |
| the same, 3                           | dpmpp3m_sde                           | a sign: weak order 1 [4] |
| EDMDPMSolverMultistep sde, 2          | dpmpp2m_sde                           | none |
| DPMSolverSDE                          | dpmpp_sde                             | draws' correlation [1] |
| SASolver, past p and corrector p + 1  | chart data, past=p, corrector, η = τ  | of order 2: to .4 [2] |
| Euler, EDMEuler with s_churn          | Euler with rises=Churn()              | the network's input [3] |

1: Those of stage and step are correlated as Brownian motion in σ, ours in 1/σ².
2: Predictor and corrector of order 2 weigh D₀ − D₁ by h²/2 instead of its integral.
3: They ask the network before they add the noise, and take its answer for the one after.
4: That of 1/2 in the weight of D'', so that the end errs at first order.
"""

from dataclasses import replace
from itertools import pairwise
from unittest import mock

import moments
import noisy_peers
import numpy as np
import peers
import pytest
import torch
from peers import ANY_SIGMA, deviation, our_table

import ddim_ode
from ddim_ode.solvers.methods import METHODS, Method
from ddim_ode.solvers.renoising import Ancestral, Churn

N = 8
SDE = dict(algorithm_type="sde-dpmsolver++", lower_order_final=False, euler_at_final=True)
TWO = METHODS["dpmpp2m_sde"]


def compiled(method, grid):
    return ddim_ode.plan(method, ANY_SIGMA, grid)


@pytest.mark.parametrize(
    ("name", "calls", "config", "method"),
    [
        ("EulerAncestralDiscrete", N, {}, METHODS["euler_ancestral"]),
        ("KDPM2AncestralDiscrete", 2 * N - 1, {}, replace(METHODS["dpm2"], rises=Ancestral())),
        ("DPMSolverMultistep", N, dict(SDE, solver_order=1), METHODS["euler_ancestral"]),
        ("DPMSolverMultistep", N, SDE, TWO),
        ("DPMSolverMultistep", N, dict(SDE, solver_type="heun"), replace(TWO, rules=())),
        ("EDMDPMSolverMultistep", N, SDE, TWO),
        ("EDMEuler", N, {}, METHODS["ddim"]),
    ],
)
def test_same_coefficients(name, calls, config, method):
    edm = name.startswith("EDM")
    draws = {"KDPM2AncestralDiscrete": N - 1, "EDMEuler": 0}.get(name, N)
    in_sigma = edm or name.endswith("Discrete")
    table = noisy_peers.diffusers(name, N, calls, draws, in_sigma=in_sigma, **config)
    ours = our_table(compiled(method, table.grid), "x0" if edm else "eps")
    assert deviation(table.rows, ours) < 1e-6


def test_dpm_solver_sde_differs_in_the_correlation_of_its_draws_alone():
    table = noisy_peers.diffusers("DPMSolverSDE", N, 2 * N - 1, 2 * N - 2, in_sigma=True)
    plan = compiled("dpmpp_sde", table.grid)
    shared = [op.noise for op in plan.ops if isinstance(op.noise, tuple)]

    def theirs(draws):  # its second draw is the step's whole noise
        for i, (own, before) in enumerate(shared):
            whole = np.hypot(own, before)
            draws[2 * i + 1] = (whole * draws[2 * i + 1] - before * draws[2 * i]) / own
        return draws

    assert deviation(table.rows, our_table(plan, draws=theirs)) < 1e-6
    assert deviation(table.rows, our_table(plan)) > 0.1


@pytest.mark.parametrize(("name", "answers"), [("EulerDiscrete", "eps"), ("EDMEuler", "x0")])
def test_churn_of_theirs_asks_before_it_adds_the_noise(name, answers):
    churn = dict(s_churn=4.0, s_tmin=0.05, s_tmax=10.0)
    first = noisy_peers.diffusers(name, N, N, 0, in_sigma=True)
    inside = int(((first.grid[:-1] >= 0.05) & (first.grid[:-1] <= 10.0)).sum())
    table = noisy_peers.diffusers(name, N, N, inside, in_sigma=True, step=churn)
    method = Method("churned", None, rises=Churn(4.0, 0.05, 10.0))
    ours = our_table(compiled(method, table.grid), answers)
    draws = slice(1 + N, None)
    k = int(np.flatnonzero(first.grid <= 10.0)[0])
    assert abs(ours[k, draws]).max() > 0.1  # its first noise
    assert abs(table.rows[k, draws]).max() == 0.0
    assert deviation(table.rows, ours) > 0.01


# -- a third-order scheduler --------------------------------------------------------------------


def third(grid, constant=-0.5):
    """dpmpp3m_sde with the weight of D''/2 as in diffusers, (1 − e^{−2h} − 2h)/(2h)² − 1/2, where + 1/2 is
    right, and half of the integral."""
    plan = compiled("dpmpp3m_sde", grid)
    ops, levels = list(plan.ops), [-np.log(sigma) for sigma in grid if sigma > 0]
    for i in range(3, len(levels)):
        h, *past = (levels[i - j] - levels[i - j - 1] for j in range(3))
        r0, r1 = past[0] / h, past[1] / h
        mean = (1 - np.exp(-2 * h) - 2 * h) / (2 * h) ** 2
        theirs, whole = mean + constant, 2 * mean + 1.0
        alpha = float(ANY_SIGMA.scales(grid[i])[0])
        second = np.array([1 / r0, -1 / r0 - 1 / r1, 1 / r1]) / (r0 + r1)
        weights = np.array(ops[i].weights) + alpha * (theirs - whole) * second
        ops[i] = ops[i]._replace(weights=tuple(weights.tolist()))
    return replace(plan, ops=tuple(ops))


def test_the_sign_of_its_third_order_makes_it_first():
    table = noisy_peers.diffusers("DPMSolverMultistep", N, N, N, solver_order=3, **SDE)
    tables = [our_table(third(table.grid, constant)) for constant in (-0.5, 0.5)]
    # from the third step on; the second is its own of order two
    gaps = [_steps(ours, table, 3) for ours in tables]
    assert gaps[0] < 1e-5
    assert gaps[1] > 0.1


def _steps(ours, table, first):
    """How far single steps are apart: their rows from ours before them, by the coefficients of a step."""
    plan_steps, theirs = _coefficients(ours, table.grid), _coefficients(table.rows, table.grid)
    return max(abs(a - b).max() for a, b in list(zip(plan_steps, theirs))[first - 1 :])


def _coefficients(rows, grid):
    """Of each step over the state before it, the last three x̂₀ and its draw."""
    calls = len(rows) - 1
    alpha, beta = ANY_SIGMA.scales(grid[:-1])
    answers = np.eye(rows.shape[1])[1 : 1 + calls]
    x0 = (rows[:-1] - beta[:, None] * answers) / alpha[:, None]
    draws = np.eye(rows.shape[1])[1 + calls :]
    for k, (before, after) in enumerate(pairwise(rows)):
        columns = [before, *x0[max(0, k - 2) : k + 1][::-1], *draws[k : k + 1]]
        yield np.linalg.lstsq(np.stack(columns, 1), after, rcond=None)[0]


@pytest.mark.parametrize(("constant", "order"), [(-0.5, 1.0), (0.5, 2.0)])
def test_weak_order_of_that_scheduler(constant, order):
    exact = moments.exact(0.1, ANY_SIGMA, 0.4, 0.3)
    counts, errors = [320, 640], []
    for n in counts:
        plan = third(np.geomspace(10.0, 0.1, n + 1), constant)
        errors.append(moments.end(plan, ANY_SIGMA, 0.4, 0.3)[1] - exact[1])
    assert moments.slope(counts, errors) == pytest.approx(order, abs=0.15)


# -- SA-Solver ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("past", "tau"), [(1, 1.0), (2, 1.0), (3, 1.0), (3, 0.0)])
def test_sa_solver_step_by_step(past, tau):
    """Each predictor and corrector over the corrected state before it, the answers and the step's draw; of
    order two, departures of the size in the table."""
    module = peers.load("diffusers.schedulers.scheduling_sasolver")
    config = dict(prediction_type="sample", tau_func=lambda t: tau, lower_order_final=False)
    with peers.quiet():
        scheduler = module.SASolverScheduler(
            predictor_order=past, corrector_order=past + 1, **config
        )
        scheduler.set_timesteps(N)
    scheduler.sigmas = scheduler.sigmas.double()
    size = 1 + 2 * N
    unit = torch.eye(size, dtype=torch.float64).reshape(size, 1, 1, 1, 1, size)
    answers, draws = unit[1 : 1 + N], iter(unit[1 + N :])
    predicted, corrected = [unit[0]], []
    with mock.patch.object(module, "randn_tensor", side_effect=draws):
        for k, t in enumerate(scheduler.timesteps):
            predicted.append(scheduler.step(answers[k], t, predicted[-1], return_dict=False)[0])
            corrected.append(scheduler.last_sample)
    x, c, e = (np.stack([row.flatten().numpy() for row in v]) for v in (predicted, corrected, unit))
    method = Method("sa", None, "data", past=past, corrector=True, ruler="log_sigma", eta=tau)
    plan = compiled(method, scheduler.sigmas.numpy())
    moves = [op for op in plan.ops[1:] if op.node is not None]
    moves_again = [op for op in plan.ops[1:-1] if op.node is None]

    def gap(op, answers, before, after, draw):
        columns = [before, *(e[1 + i] for i in answers), e[1 + N + draw]]
        theirs = np.linalg.lstsq(np.stack(columns, 1), after, rcond=None)[0]
        noise = op.noise[-1] if isinstance(op.noise, tuple) else op.noise
        return abs(np.array([op.scale, *op.weights, noise]) - theirs).max()

    for k in range(N - 1):
        known = range(k, max(-1, k - past), -1)
        order = len(known)
        first = gap(moves[k], known, c[k], x[k + 1], k)
        second = gap(moves_again[k], [k + 1, *known], c[k], c[k + 1], k)
        assert first < 1e-6 if order != 2 else 1e-3 < first < 0.5
        assert second < 1e-6 if order != 1 else 1e-3 < second < 0.5
