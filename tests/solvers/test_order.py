"""Order by slope on a nonlinear, non-autonomous problem whose flow is known exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import COSINE, EXPONENTIAL, mixture_1d, points

import ddim_ode
from ddim_ode import schedules
from ddim_ode.grids import make_grid
from ddim_ode.solve.loop import integrate
from ddim_ode.solvers.chart import CHARTS
from ddim_ode.solvers.methods import METHODS, get_method
from ddim_ode.solvers.plan import Op
from ddim_ode.solvers.tableau import Singlestep, Tableau

TOLERANCE = 0.15
MODELS = {"cosine": mixture_1d(COSINE), "exponential": mixture_1d(EXPONENTIAL)}
DETERMINISTIC = [name for name, m in METHODS.items() if m.order is not None]
MULTISTEP = [name for name in DETERMINISTIC if METHODS[name].multistep]
ONE_STEP = [name for name in DETERMINISTIC if not METHODS[name].multistep]


def start(model, sigma):
    """Six states spread over the marginal at that level (the data's variance is about 2.5)."""
    alpha, beta = model.schedule.scales(sigma)
    spread = float(np.sqrt(2.5 * alpha**2 + beta**2))
    return spread * torch.linspace(-1.6, 1.8, 6, dtype=torch.float64)[:, None]


def error(model, x, plan, past=0):
    """RMS distance from the exact flow; with ``past``, from that many exact starting values.

    Those are put into the history by nodes at which the network is asked at the exact state; the plan
    is joined at the step that first reads all of them.
    """
    evaluate = model.bind(plan.nodes, x)
    exact = {k: model.flow(x, plan.grid[0], plan.grid[k]) for k in range(1, past)}
    end = model.flow(x, plan.grid[0], plan.grid[-1])
    if past:
        commits = [i for i, op in enumerate(plan.ops) if op.commit]
        seeds = [Op(1.0, (), node, False, 0.0) for node in plan.nodes[:past]]
        ops = (*seeds, *plan.ops[commits[past - 2] + 1 :])
        plan = replace(plan, ops=ops, grid=plan.grid[past - 1 :], error_weights=())
    joined = exact.get(past - 1, x)
    out, *_ = integrate(plan, lambda y, k: evaluate(exact.get(k, x if k == 0 else y), k), joined)
    return float((out - end).square().mean().sqrt())


def slope(model, method, coarse, *, ends=(2.0, 0.2), past=0, **options):
    x = start(model, ends[0])
    errors = []
    for steps in (coarse, 2 * coarse):
        grid = make_grid(
            "time", model.schedule, steps, final="sigma_min", sigma_max=ends[0], sigma_min=ends[1]
        )
        if past and get_method(method).rk_steps:
            options["start"] = "ramp"
        errors.append(error(model, x, ddim_ode.plan(method, model.schedule, grid, **options), past))
    return np.log2(errors[0] / errors[1])


def test_every_method_has_an_order_or_is_stochastic():
    without = {row["name"] for row in ddim_ode.methods() if row["order"] is None}
    weak = {row["name"] for row in ddim_ode.methods() if row["weak_order"] is not None}
    assert without <= weak  # test_stochastic_orders.py
    assert set(ONE_STEP) | set(MULTISTEP) | without == {m["name"] for m in ddim_ode.methods()}


@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_method_has_the_order_on_its_label(name):
    measured = slope(MODELS["cosine"], name, 64)
    assert measured == pytest.approx(METHODS[name].order, abs=TOLERANCE)


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_method_from_exact_values_has_the_order_on_its_label(name):
    measured = slope(MODELS["exponential"], name, 180, past=METHODS[name].past)
    assert measured == pytest.approx(METHODS[name].order, abs=TOLERANCE)


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_method_as_run_has_the_order_as_run(name):
    # Even in t from a level where the velocity bends: the first step is as large as the others.
    measured = slope(MODELS["cosine"], name, 200)
    assert measured == pytest.approx(METHODS[name].order_as_run, abs=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in MULTISTEP if METHODS[name].rk_steps])
def test_a_ramp_lowers_the_global_order(name):
    measured = slope(MODELS["exponential"], name, 100, ends=(2.0, 1.0), start="ramp")
    assert measured == pytest.approx(METHODS[name].order_from_ramp, abs=TOLERANCE)
    assert METHODS[name].order_from_ramp < METHODS[name].order


# Two methods, of a tableau and of single steps, in every chart; of the others, each in two.
IN_CHARTS = [
    *((name, chart) for name in ("bosh3", "dpm3") for chart in CHARTS),
    *((n, list(CHARTS)[(i + j) % len(CHARTS)]) for i, n in enumerate(ONE_STEP) for j in (0, 3)),
]
IN_CHARTS = list(dict.fromkeys(IN_CHARTS))


@pytest.mark.parametrize(("name", "chart"), IN_CHARTS)
def test_one_step_method_keeps_its_order_in_every_chart(name, chart):
    coarse = 90 if METHODS[name].order == 5 else 60
    measured = slope(MODELS["exponential"], name, coarse, ends=(3.5, 0.3), chart=chart)
    assert measured == pytest.approx(METHODS[name].order, abs=TOLERANCE)


@pytest.mark.parametrize("ruler", ["log_sigma", "fraction", "t", "atan_sigma"])
def test_adams_keeps_its_order_in_every_ruler(ruler):
    method = replace(METHODS["ab3"], ruler=ruler)
    measured = slope(MODELS["cosine"], method, 100, past=3)
    assert measured == pytest.approx(3, abs=TOLERANCE)


def test_a_wrong_tableau_is_seen():
    heun = METHODS["heun"]
    wrong = replace(heun.stages, c=(0, 0.9), a=((), (0.9,)))
    measured = slope(MODELS["exponential"], replace(heun, stages=wrong), 64)
    assert measured == pytest.approx(1, abs=TOLERANCE)


def test_wrong_weights_of_a_multistep_method_are_seen():
    """Adams' constants, right only on a grid uniform in σ, are of second order on this one."""
    model, errors = MODELS["exponential"], []
    x = start(model, 2.0)
    for steps in (100, 200):
        grid = make_grid(
            "time", EXPONENTIAL, steps, final="sigma_min", sigma_max=2.0, sigma_min=0.2
        )
        plan = ddim_ode.plan("ab3", EXPONENTIAL, grid, start="ramp")
        constants = np.array([23, -16, 5]) / 12
        ops = [
            op._replace(weights=tuple(constants * sum(op.weights))) if len(op.weights) == 3 else op
            for op in plan.ops
        ]
        errors.append(error(model, x, replace(plan, ops=tuple(ops)), past=3))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=TOLERANCE)


@pytest.mark.parametrize(("name", "chart"), IN_CHARTS)
def test_the_stored_vector_does_not_change_a_plan(name, chart):
    ends, x = {}, points(4)
    grid = make_grid("time", COSINE, 6, sigma_max=20.0)
    for vector in ("eps", "x0", "v", "flow"):
        plan = ddim_ode.plan(name, COSINE, grid, chart=chart, vector=vector)
        assert {node.vector for node in plan.nodes} == {vector}
        ends[vector] = integrate(plan, MODELS["cosine"].bind(plan.nodes, x), x)[0]
    for vector in ("x0", "v", "flow"):
        torch.testing.assert_close(ends[vector], ends["eps"], rtol=1e-10, atol=1e-10)


FROM_INFINITY = mixture_1d(schedules.flow(), "flow")


@pytest.mark.parametrize("name", [n for n in ONE_STEP if isinstance(METHODS[n].stages, Tableau)])
def test_one_step_method_keeps_its_order_from_infinite_sigma_in_another_chart(name):
    x, errors = torch.linspace(-1.5, 1.7, 6).double()[:, None], []
    for steps in (40, 80):
        grid = make_grid("time", FROM_INFINITY.schedule, steps, final="sigma_min", sigma_min=0.5)
        plan = ddim_ode.plan(name, FROM_INFINITY.schedule, grid, chart="trig", vector="flow")
        errors.append(error(FROM_INFINITY, x, plan))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(METHODS[name].order, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "stages", "order"),
    [
        ("dpm2", Singlestep((0, 0.45), ((), (0,), (1,))), 1),
        ("dpmpp2s", Singlestep((0, 0.45), ((), (0,), (1,))), 1),
        ("dpm3", Singlestep((0, 1 / 3, 0.6), ((), (0,), (0, 1), (0, 2))), 2),
        ("dpm3", Singlestep((0, 1 / 3, 2 / 3), ((), (0,), (0,), (0, 2))), 2),
    ],
)
def test_a_wrong_stage_of_a_singlestep_method_is_seen(name, stages, order):
    measured = slope(MODELS["exponential"], replace(METHODS[name], stages=stages), 64)
    assert measured == pytest.approx(order, abs=TOLERANCE)
