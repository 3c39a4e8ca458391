"""Plan.trace: our own plans come back, and samplers that have no plan are refused."""

import itertools

import numpy as np
import pytest
import torch
from peers import deviation, our_table
from problems import COSINE, DDPM, EXPONENTIAL, mixture_2d, points

import ddim_ode
from ddim_ode import Plan, schedules
from ddim_ode.grids import make_grid
from ddim_ode.solve.loop import integrate
from ddim_ode.solvers.chart import convert

GRID = make_grid("karras", COSINE, 9, sigma_max=100.0, sigma_min=0.02)


def loop_of(plan, sigma=False):
    """A plan as a sampler that knows nothing of plans: it asks net for what the plan stores."""
    asked = [node.sigma if sigma else node.t for node in plan.nodes]
    return lambda net, x: integrate(plan, lambda y, k: net(y, asked[k]), x).x


def padded(plan):
    width = plan.nfe
    return np.array(
        [[op.scale, *op.weights, *[0.0] * (width - len(op.weights))] for op in plan.ops]
    )


def by_hand(net, x, edit=lambda x0: x0, sigmas=(10.0, 3.0, 0.5, 0.0)):
    """DDIM with a chance to edit x̂₀; asks at σ."""
    for here, there in itertools.pairwise(sigmas):
        (a, b), (a_to, b_to) = COSINE.scales(here), COSINE.scales(there)
        eps = net(x, here)
        x = float(a_to) * edit((x - float(b) * eps) / float(a)) + float(b_to) * eps
    return x


@pytest.mark.parametrize("grid", [GRID, GRID[:-1]], ids=["to 0", "to σ_min"])
@pytest.mark.parametrize(
    ("method", "vector"),
    [
        *(("ddim", v) for v in ("eps", "x0", "v", "flow")),
        ("heun", "eps"),
        ("heun", "v"),
        ("ab4:full_order_final", "eps"),
        ("ipndm", "eps"),
        ("deis3", "eps"),
        ("dpmpp2m", "x0"),
        ("dpmpp3m", "x0"),
    ],
)
def test_our_own_plan_comes_back(method, vector, grid):
    ours = ddim_ode.plan(method, COSINE, grid, vector=vector)
    traced = Plan.trace(loop_of(ours), COSINE, prediction=vector, sigma_end=grid[-1])
    np.testing.assert_allclose(padded(traced), padded(ours), rtol=1e-9, atol=1e-11)
    assert [op.commit for op in traced.ops] == [op.commit for op in ours.ops]
    assert traced.memory <= ours.memory
    np.testing.assert_allclose(traced.grid, ours.grid, rtol=1e-12)
    for mine, theirs in zip(traced.nodes, ours.nodes, strict=True):
        assert mine.vector == theirs.vector
        assert mine[:2] == pytest.approx(theirs[:2], rel=1e-9)


def test_small_weights_are_kept():
    """A weight of 1e-5 matters to an x of size 1, however large x_T's factor in x has grown."""
    ours = ddim_ode.plan("ab4:full_order_final", COSINE, GRID, start="ramp")
    model, x = mixture_2d(COSINE), points(4, 2)
    traced = Plan.trace(loop_of(ours), COSINE)
    ends = [ddim_ode.sample(model, x, plan=plan).x for plan in (ours, traced)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", [GRID, GRID[:-1]], ids=["to 0", "to σ_min"])
@pytest.mark.parametrize(
    ("method", "vector"),
    [
        ("rk4", "flow"),
        ("rk45", "eps"),
        ("dpm3", "eps"),
        ("dpmpp2s", "x0"),
        ("unipc2", "x0"),
        ("unipc3", "x0"),
        ("dpmpp3m", "eps"),
    ],
)
def test_coefficients_come_back_where_ops_differ(method, vector, grid):
    """A stage between two levels looks like a level, a corrector has no call, ε̂ for x̂₀ remembers more."""
    ours = ddim_ode.plan(method, COSINE, grid)

    def loop(net, x):
        def evaluate(y, k):
            node = ours.nodes[k]
            a, b = convert(vector, node.vector, *COSINE.scales(node.sigma))
            return float(a) * y + float(b) * net(y, node.t)

        return integrate(ours, evaluate, x).x

    traced = Plan.trace(loop, COSINE, prediction=vector, sigma_end=grid[-1])
    assert deviation(our_table(traced, vector), our_table(ours, vector)) < 1e-5
    assert traced.grid[-1] == grid[-1] < traced.grid[-2]


@pytest.mark.parametrize("grid", [GRID, GRID[:-1]], ids=["to 0", "to σ_min"])
def test_heun_s_stages_are_no_levels(grid):
    ours = ddim_ode.plan("heun", COSINE, grid)
    traced = Plan.trace(loop_of(ours), COSINE, sigma_end=grid[-1])
    assert traced.steps == ours.steps < traced.nfe
    assert [op.commit for op in traced.ops] == [op.commit for op in ours.ops]


def test_time_may_be_sigma_or_the_network_s():
    ours = ddim_ode.plan("ddim", COSINE, [10.0, 3.0, 0.5, 0.0])
    traced = Plan.trace(by_hand, COSINE, time="sigma", name="by hand")
    np.testing.assert_allclose(padded(traced), padded(ours), rtol=1e-12, atol=1e-14)
    assert traced.method == "by hand"
    assert traced.grid == (10.0, 3.0, 0.5, 0.0)

    levels = [900, 500, 100]  # of a network that counts from 0
    theirs = ddim_ode.plan("ddim", DDPM, [*DDPM.sigma(np.array(levels) + 1.0), 0.0])
    shifted = Plan.trace(
        lambda net, x: integrate(theirs, lambda y, k: net(y, torch.tensor(levels[k])), x).x,
        DDPM,
        time_offset=-1.0,
    )
    assert [node.t for node in shifted.nodes] == [901, 501, 101]
    assert shifted.grid == theirs.grid


def test_a_float32_sampler_is_traced():
    ours = ddim_ode.plan("ab3", COSINE, GRID[:-1])
    traced = Plan.trace(loop_of(ours), COSINE, dtype=torch.float32, sigma_end=GRID[-2])
    np.testing.assert_allclose(padded(traced), padded(ours), rtol=1e-5, atol=1e-4)


def test_a_traced_plan_belongs_to_its_schedule():
    traced = Plan.trace(loop_of(ddim_ode.plan("ddim", COSINE, GRID)), COSINE)
    with pytest.raises(ValueError, match="the plan was made for schedule"):
        ddim_ode.sample(mixture_2d(EXPONENTIAL), points(2, 2), plan=traced)


def clipped(net, x):
    return by_hand(net, x, lambda x0: x0.clamp(-1, 1))


def thresholded(net, x):
    def edit(x0):
        bound = x0.abs().flatten(1).quantile(0.9, dim=1).clamp_min(1.0)
        return x0 / bound.reshape(-1, *[1] * (x0.ndim - 1))

    return by_hand(net, x, edit)


def squared(net, x):
    return by_hand(net, x, torch.square)


def noisy(net, x):
    return by_hand(net, x) + 0.1 * torch.randn_like(x)


def call_until_small(net, x):
    for sigma in (10.0, 5.0, 2.0, 1.0, 0.5):
        if x.abs().max() < 0.3:
            break
        x = 0.5 * x - 0.1 * net(x, sigma)
    return x


def step_by_error(net, x):
    sigma = 10.0
    while sigma > 0.5:
        eps = net(x, sigma)
        sigma *= 0.9 if eps.abs().max() > 0.5 else 0.5
        x = x - eps
    return x


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (clipped, "not linear in .x, eps.*switch off clipping"),
        (thresholded, "not linear in .x, eps.*thresholding"),
        (squared, "not linear in .x, eps"),
        (noisy, "not deterministic.*the end state differs.*noise"),
        (call_until_small, "adaptive.*no one plan"),
        (step_by_error, "adaptive.*no one plan"),
        (lambda net, x: 2 * x, "never called net"),
        (lambda net, x: x - net(x, 1e6), "the sampler's sigma=1e.06 is outside"),
    ],
)
def test_a_sampler_without_a_plan_is_refused(loop, message):
    with pytest.raises(ValueError, match=message):
        Plan.trace(loop, COSINE, time="sigma")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(time="lambda"), "time"),
        (dict(prediction="noise"), "prediction"),
        (dict(time_offset=-1.0), "t=1001 is outside this schedule's range"),
        (dict(sigma_end=1e5), "sigma_end=100000 must be below"),
        (dict(time_offset=1.0), "t=-1 is outside this schedule's range"),
    ],
)
def test_wrong_options_are_refused(options, message):
    def loop(net, x):
        return x - net(x, 0.0 if options.get("time_offset") == 1.0 else 1000.0)

    with pytest.raises(ValueError, match=message):
        Plan.trace(loop, COSINE, **options)


def restarting(net, x):
    z = net(x, 5.0)
    z = x + net(z, 1.0)
    return z - net(z, 0.5)


@pytest.mark.parametrize(
    ("loop", "options", "message"),
    [
        (restarting, {}, "comes back to its start x after call 1"),
        (lambda net, x: (net(x, 1.0),), {}, "returned a tuple"),
        (lambda net, x: net(torch.cat([x, x]), 1.0)[:1], {}, "showed the network a tensor"),
        (lambda net, x: net(x, float("nan")), {}, "passed the time NaN in its call 0"),
        (lambda net, x: net(x, 1.0), dict(sigma_end=-1.0), "sigma_end=-1.0 must be >= 0"),
        (lambda net, x: net(x, 1.0), dict(time_offset=-1.0), "drop time_offset=-1"),
        (None, {}, "takes a callable"),
    ],
)
def test_a_loop_that_is_no_sampler_says_why(loop, options, message):
    with pytest.raises(ValueError, match=message):
        ddim_ode.Plan.trace(loop, schedules.cosine(), time="sigma", **options)
