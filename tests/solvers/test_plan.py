import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from problems import COSINE, DDPM, EXPONENTIAL, Counting, gaussian_2d, mixture_2d, points, zero_snr
from refusals import expect

import ddim_ode
from ddim_ode import grids, schedules
from ddim_ode.denoising.seeding import StepNoise
from ddim_ode.solvers.chart import CHARTS, convert
from ddim_ode.solvers.compilation import clear_cache
from ddim_ode.solvers.methods import METHODS, Method

ALL = list(METHODS)
DETERMINISTIC = [name for name, m in METHODS.items() if m.order is not None]
GRID = grids.make_grid("time", COSINE, 5, sigma_max=20.0)


def test_the_numbers_layer_never_imports_torch_and_the_package_nothing_heavy():
    script = """
import operator, sys
import ddim_ode
assert not {"torch", "numpy", "scipy", "matplotlib"} & set(sys.modules)
sys.modules["torch"] = None  # an import of it fails
ddim_ode.solvers.methods, ddim_ode.solvers.controller, ddim_ode.solvers.embedded
assert not hasattr(ddim_ode.evaluate, "nothing")
for name in ("interop.config", "evaluate.metrics"):  # modules are there without an import of their own
    try:
        operator.attrgetter(name)(ddim_ode)
    except ModuleNotFoundError as error:
        assert error.name == "torch"
for schedule in (ddim_ode.schedules.ddpm(), ddim_ode.schedules.flow(), ddim_ode.schedules.ve(80.0)):
    grid = ddim_ode.grids.make_grid("time", schedule, 6, sigma_max=min(40.0, schedule.sigma_max))
    for row in ddim_ode.methods():
        ddim_ode.plan(row["name"], schedule, grid).describe()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", [n for n in ALL if n != "restart"])  # it passes some twice
def test_a_landing_costs_one_call_and_a_full_step_nfe_per_step(name):
    per_step = METHODS[name].nfe_per_step
    assert ddim_ode.plan(name, COSINE, GRID).nfe == 4 * per_step + 1
    assert ddim_ode.plan(name, COSINE, GRID[:-1]).nfe == 4 * per_step


@pytest.mark.parametrize("final", grids.FINALS)
@pytest.mark.parametrize("name", ALL)
def test_a_budget_gives_the_largest_plan_that_fits(name, final):
    model = ddim_ode.Denoiser(Counting(), COSINE)

    def plan(**size):  # on a named grid: rk45 and bosh3 are adaptive without one
        return ddim_ode.plan_for(model, name, grid="time", final=final, **size)

    # the least: a step, but of restart one step thrice, and the landing
    least = 7 if name == "restart" else METHODS[name].nfe_per_step
    for budget in (least, least + 1, 14, 15, 26):
        fits = plan(nfe=budget)
        if METHODS[name].rk_steps:  # with a ramp, a call a step: any budget can be met
            assert fits.nfe == budget
        else:
            assert fits.nfe <= budget < plan(steps=fits.steps + 1).nfe


@pytest.mark.parametrize("name", ALL)
def test_memory_is_the_longest_history_an_op_reads(name):
    plan = ddim_ode.plan(name, COSINE, grids.make_grid("time", COSINE, 9))
    expected = {row["name"]: row["memory"] for row in ddim_ode.methods()}[name]
    assert plan.memory == expected == max(len(op.weights) for op in plan.ops)


def test_the_same_compilation_is_kept():
    clear_cache()
    first = ddim_ode.plan("ddim", COSINE, GRID)
    assert ddim_ode.plan("ddim", COSINE, GRID.tolist(), eta=0.0) is first
    noisy = ddim_ode.plan("ddim", COSINE, GRID, eta=0.5)
    assert (first.is_stochastic, noisy.is_stochastic) == (False, True)
    assert ddim_ode.plan("ddim", COSINE, GRID, chart="flow") is not first
    assert ddim_ode.plan("ddim", EXPONENTIAL, GRID) is not first
    clear_cache()
    assert ddim_ode.plan("ddim", COSINE, GRID) is not first


@pytest.mark.parametrize("name", ALL)
def test_describe_has_every_op_with_its_level_weights_and_noise(name):
    plan = ddim_ode.plan(name, COSINE, GRID)
    lines = plan.describe().splitlines()
    assert f"nfe {plan.nfe}" in lines[0]
    for op, line in zip(plan.ops, lines[-len(plan.ops) :], strict=True):
        assert op.node is None or f"{op.node.sigma:.5g}" in line
        assert all(f"{weight:+.6g}" in line for weight in op.weights)
        assert (" z" in line) == bool(np.any(op.noise))


def test_describe_shows_no_rounding_for_a_weight():
    plan = ddim_ode.plan("ab2", COSINE, GRID)
    last = plan.ops[-1]._replace(weights=(1.0, -7e-15, 2e-12))
    shown = dataclasses.replace(plan, ops=(*plan.ops[:-1], last)).describe()
    assert shown.endswith("+1 +0 +2e-12")


def test_nodes_pair_sigma_with_its_own_time():
    for node in ddim_ode.plan("rk4", DDPM, grids.make_grid("karras", DDPM, 7)).nodes:
        assert node.t == pytest.approx(float(DDPM.time(node.sigma)), rel=1e-13)


def test_two_vectors_convert_into_each_other_through_x():
    alpha, beta = COSINE.scales(np.array([0.01, 1.0, 30.0]))
    x0, eps = np.array([0.3, -0.2, 0.9]), np.array([1.1, 0.4, -0.8])
    x = alpha * x0 + beta * eps
    values = dict(
        x0=x0, eps=eps, v=alpha * eps - beta * x0, flow=eps - x0, score=-eps / beta,
        exp=alpha**2 / beta * eps - alpha * x0,
    )  # fmt: skip
    for source, given in values.items():
        for target, expected in values.items():
            a, b = convert(source, target, alpha, beta)
            np.testing.assert_allclose(a * x + b * given, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if METHODS[name].corrector])
def test_final_zero_lands_on_the_x0_of_the_last_call_of_a_corrector(name):
    """Which looked at the state before it was corrected."""
    options = dict(grid=GRID, chart="data", record="x0")
    sol = ddim_ode.sample(mixture_2d(COSINE), points(4, 2), name, **options)
    torch.testing.assert_close(sol.x, sol.trajectory[-2], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if not METHODS[name].corrector])
def test_final_zero_lands_on_the_x0_of_the_last_level(name):
    model, x = mixture_2d(COSINE), points(4, 2)
    for chart in CHARTS:
        landed, stopped = (
            ddim_ode.sample(model, x, name, grid=grid, chart=chart).x for grid in (GRID, GRID[:-1])
        )
        torch.testing.assert_close(landed, model(stopped, GRID[-2])[0], rtol=1e-9, atol=1e-10)


STARTS = {("flow", prediction): schedules.flow() for prediction in ("flow", "x0")}
STARTS |= {("zero_snr", prediction): zero_snr() for prediction in ("v", "x0", "flow")}


@pytest.mark.parametrize("start", STARTS, ids="-".join)
def test_where_the_clock_is_infinite_the_first_step_is_ddim(start):
    schedule, prediction = STARTS[start], start[1]
    model, x = mixture_2d(schedule, prediction), points(4, 2)
    x0, _ = model(x, np.inf)
    alpha, beta = map(float, schedule.scales(3.0))
    for name in [*DETERMINISTIC, "ddpm"]:
        sol = ddim_ode.sample(model, x, name, grid=[np.inf, 3.0], seeds=range(4), chart="eps")
        noise = x if name != "ddpm" else StepNoise(range(4), x)()  # whose noise is fresh
        torch.testing.assert_close(sol.x, alpha * x0 + beta * noise, rtol=1e-12, atol=1e-12)


def flow_error_from_infinity(start, name, steps):
    schedule, prediction = STARTS[start], start[1]
    model, x = gaussian_2d(schedule, prediction), points(4, 2)
    # At ᾱ = 0 the marginal is N(0, I): the flow of one Gaussian keeps standardised coordinates.
    q, spread = torch.as_tensor(model.eigenvectors[0]), torch.as_tensor(model.eigenvalues[0])
    alpha, beta = map(float, schedule.scales(0.1))
    gain = torch.sqrt(alpha**2 * spread + beta**2)
    exact = alpha * torch.as_tensor(model.means[0]) + (x @ q * gain) @ q.T
    options = dict(steps=steps, final="sigma_min", sigma_min=0.1)
    return float((ddim_ode.sample(model, x, name, **options).x - exact).abs().max())


@pytest.mark.parametrize(
    ("start", "name"),
    [
        *((("zero_snr", ("v", "x0", "flow")[i % 3]), n) for i, n in enumerate(DETERMINISTIC)),
        *((start, n) for start in STARTS if start[0] == "flow" for n in ("ddim", "ab3")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_solves_from_infinite_sigma_approach_the_exact_flow(start, name):
    coarse, fine = (flow_error_from_infinity(start, name, steps) for steps in (20, 80))
    assert fine < 0.3 * coarse < 0.06


def relative_error(name, prediction, sigma_max):
    """Of a float32 run against a float64 run of the same plan."""
    x, model = points(64, 2, dtype=torch.float32), mixture_2d(COSINE, prediction)
    narrow, wide = (
        ddim_ode.sample(model, start, name, steps=12, sigma_max=sigma_max)
        for start in (x, x.double())
    )
    assert narrow.plan is wide.plan
    return float((narrow.x.double() - wide.x).norm() / wide.x.norm())


@pytest.mark.parametrize(
    ("name", "prediction"), [(n, ("x0", "v", "flow")[i % 3]) for i, n in enumerate(DETERMINISTIC)]
)
def test_single_precision_costs_little(name, prediction):
    assert max(relative_error(name, p, 10.0) for p in ("eps", prediction)) < 1e-5
    # from ᾱ = 5e-5, where 1/ᾱ multiplies the rounding of an ε̂
    lost = relative_error(name, "eps", None) if METHODS[name].multistep else 0.0
    assert relative_error(name, prediction, None) < lost + 1e-5


@pytest.mark.parametrize(
    "method", [Method("mine", 2, past=2, ruler="t"), "rk4"], ids=["own", "named"]
)
def test_a_plan_runs_the_same_as_the_method_it_came_from(method):
    model, x = mixture_2d(COSINE), points(2, 2)
    sol = ddim_ode.sample(model, x, method, grid=GRID)
    assert sol.method == getattr(method, "name", method)
    plan = ddim_ode.plan(method, COSINE, GRID, vector="eps")
    assert torch.equal(sol.x, ddim_ode.sample(model, x, plan=plan).x)


@pytest.mark.parametrize("name", ["ddim", "heun", "rk4", "ab3"])
@pytest.mark.parametrize("nfe", [12, 60])
def test_a_budget_under_snap_gives_the_most_steps_that_fit_both(name, nfe):
    model, x = ddim_ode.Denoiser(Counting(), schedules.ddpm(T=20), snap=True), points(3, 2)
    sol = ddim_ode.sample(model, x, name, nfe=nfe)
    assert sol.nfe <= nfe
    steps = sol.plan.steps + 1  # one more fits either the budget or the levels, not both
    if steps <= 20:
        assert ddim_ode.sample(model, x, name, steps=steps).nfe > nfe
    else:
        expect(lambda: ddim_ode.sample(model, x, name, steps=steps), "distinct trained levels")
