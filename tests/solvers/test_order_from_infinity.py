"""Order by slope from σ = inf, where flow networks start: every method, as run and from exact values."""

import itertools

import numpy as np
import pytest
import torch
from problems import mixture_1d
from test_order import DETERMINISTIC, MULTISTEP, TOLERANCE, error

import ddim_ode
from ddim_ode import schedules
from ddim_ode.grids import make_grid
from ddim_ode.solvers.chart import SCALES
from ddim_ode.solvers.methods import METHODS, RK_START_FROM, VARIANTS, get_method
from ddim_ode.solvers.tableau import Tableau

FLOW = mixture_1d(schedules.flow(), "flow")
X = torch.linspace(-1.5, 1.7, 6, dtype=torch.float64)[:, None]  # states of noise alone


def levels(steps):
    return make_grid("time", FLOW.schedule, steps, final="sigma_min", sigma_min=0.5)


def compiled(name, steps, **options):
    if not get_method(name).multistep:
        options["vector"] = "flow"
    return ddim_ode.plan(name, FLOW.schedule, levels(steps), **options)


def slope(name, coarse, past=0, **options):
    errors = [error(FLOW, X, compiled(name, n, **options), past) for n in (coarse, 2 * coarse)]
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_method_as_run_has_its_order_from_infinity(name):
    coarse = 120 if METHODS[name].multistep else 40 if METHODS[name].order == 5 else 80
    measured = slope(name, coarse)
    assert measured == pytest.approx(METHODS[name].order_as_run, abs=TOLERANCE)


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_multistep_method_from_exact_values_has_its_order_from_infinity(name):
    options = dict(start="ramp") if METHODS[name].rk_steps else {}
    # iPNDM's constants are Adams' where the clock is even, as these levels are.
    order = 4 if name == "ipndm" else METHODS[name].order
    measured = slope(name, 160, METHODS[name].past, **options)
    assert measured == pytest.approx(order, abs=TOLERANCE)


# Not unipc3, whose first corrected step errs by less than its kind from noise alone: 4.1 was measured.
@pytest.mark.parametrize("name", ["ab3", "ab4", "deis3", "dpmpp3m"])
def test_a_ramp_from_infinity_lowers_the_order(name):
    measured = slope(name, 160, start="ramp")
    assert measured == pytest.approx(METHODS[name].order_from_ramp, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["ab3", "ab4", "deis3", "dpm3"])
def test_a_chart_that_is_infinite_there_has_order_two(name):
    """What from_infinity is for: the chart is had by asking for it, at the order it has."""
    assert slope(name, 160, chart="eps") == pytest.approx(2, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["dpmpp2m", "dpmpp3m", "unipc2", "unipc3", "dpmpp2s"])
def test_few_steps_of_a_finite_chart_are_the_published_ones(name):
    ddim, few, many = (
        ddim_ode.plan(method, FLOW.schedule, levels(steps), vector="x0")
        for method, steps in (
            ("ddim", RK_START_FROM - 1),
            (name, RK_START_FROM - 1),
            (name, RK_START_FROM),
        )
    )
    assert few.ops[1] == ddim.ops[1]  # the first step
    assert {few.chart, many.chart} == {"data"}
    again = ddim_ode.plan(name, FLOW.schedule, levels(RK_START_FROM), chart="data", vector="x0")
    assert many == again
    assert many.ops[1].commit == (name == "dpmpp2m")  # a stage, or what will be corrected


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_up_to_infinity_and_back_is_the_identity_to_its_order(name):
    """The first step up is the last one down: both in finite coordinates."""
    distances = []
    for steps in (25, 50):
        x, up = X, compiled(name, steps, rising=True)
        down = compiled(name, steps)
        for plan in (down, up):
            x, *_ = ddim_ode.solve.loop.integrate(plan, FLOW.bind(plan.nodes, x), x)
        distances.append(float((x - X).square().mean().sqrt()))
    assert distances[1] < 1e-9 or np.log2(distances[0] / distances[1]) > METHODS[name].order - 1.2


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_calls_of_a_start_are_counted_and_the_plan_names_its_chart(name):
    plan = compiled(name, 20)
    assert plan.nfe == len(plan.nodes)
    spec = METHODS[name]
    if spec.chart == "eps" and (spec.stages or spec.multistep):
        assert plan.chart == "flow"
    else:
        assert plan.chart == spec.chart
    if isinstance(spec.stages, Tableau):
        assert plan.nfe == 20 * spec.nfe_per_step  # no DDIM step among them


@pytest.mark.parametrize(
    "name", [f"{n}:{variant}" for variant, v in VARIANTS.items() for n in v.of if METHODS[n].order]
)
def test_a_variant_goes_there_too(name):
    for steps, rising in itertools.product((6, 20), (False, True)):
        plan = ddim_ode.plan(name, FLOW.schedule, levels(steps), rising=rising)
        x, *_ = ddim_ode.solve.loop.integrate(plan, FLOW.bind(plan.nodes, X), X)
        assert x.isfinite().all()


def test_a_vector_that_is_asked_for_keeps_its_chart():
    assert ddim_ode.plan("ab3", FLOW.schedule, levels(20), vector="eps").chart == "eps"
    assert ddim_ode.plan("ab3", FLOW.schedule, levels(20), vector="flow", chart="flow") == (
        ddim_ode.plan("ab3", FLOW.schedule, levels(20))
    )


def test_the_scale_that_is_finite_there_is_the_log_far_below():
    scale, sigma = SCALES["log_fraction"], np.geomspace(1e-6, 1e6, 25)
    np.testing.assert_allclose(scale.inverse(scale.of(sigma)), sigma, rtol=1e-9)
    np.testing.assert_allclose(scale.of(sigma), -np.log1p(1 / sigma), rtol=1e-15)
    step = 1e-6 * sigma
    slopes = (scale.of(sigma + step) - scale.of(sigma - step)) / (2 * step)
    np.testing.assert_allclose(scale.rate(sigma), slopes, rtol=1e-3)
    assert scale.of(np.array(np.inf)) == 0
    assert scale.of(sigma[:1]) == pytest.approx(np.log(sigma[:1]), abs=1e-5)
