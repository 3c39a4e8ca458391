"""Plan.trace: our own plans come back, and samplers that have no plan are refused."""

import numpy as np
import pytest
import torch
from peers import deviation, our_table
from problems import COSINE, DDPM, mixture_2d, points
from test_solver_refusals import by_hand

import ddim_ode
from ddim_ode import Plan
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
