import itertools

import numpy as np
import pytest
from problems import COSINE, DDPM
from scipy.integrate import quad

import ddim_ode
from ddim_ode.solvers.chart import SCALES, Scale
from ddim_ode.solvers.methods import Method
from ddim_ode.solvers.quadrature import step_weights

ADAMS = {
    "ab2": [3 / 2, -1 / 2],
    "ab3": [23 / 12, -16 / 12, 5 / 12],
    "ab4": [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def weights(clock, ruler, nodes, end, knots=None):
    nodes = np.array([nodes])
    known = np.ones(nodes.shape, dtype=bool)
    return step_weights(clock, ruler, nodes, known, nodes[:, 0], np.array([end]), knots)[0]


@pytest.mark.parametrize("name", ADAMS)
def test_uniform_sigma_gives_the_constants_of_adams(name):
    grid = np.arange(8.0, 0.0, -1.0)
    last = ddim_ode.plan(name, COSINE, grid).ops[-1]
    gauge = COSINE.scales(grid[-1])[0]  # y = x/ᾱ, dy = ε dσ, a step of −1
    np.testing.assert_allclose(np.array(last.weights) / -gauge, ADAMS[name], rtol=1e-12)


def test_two_step_adams_on_any_grid_is_its_formula():
    grid = np.array([9.0, 4.0, 3.2, 1.0])
    plan = ddim_ode.plan("ab2", COSINE, grid)
    for i, op in enumerate(plan.ops[2:], start=1):
        h, before = grid[i + 1] - grid[i], grid[i] - grid[i - 1]
        expected = np.array([h + h**2 / (2 * before), -(h**2) / (2 * before)])
        np.testing.assert_allclose(op.weights, expected * COSINE.scales(grid[i + 1])[0], rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("ruler", ["sigma", "log_sigma", "fraction", "atan_sigma", "inv_sigma"])
@pytest.mark.parametrize("clock", ["sigma", "log_sigma", "fraction", "inv_sigma", "log_alpha"])
def test_polynomials_in_the_ruler_are_integrated_exactly_in_the_clock(clock, ruler, k):
    u, r = SCALES[clock], SCALES[ruler]
    nodes, end = np.array([2.0, 2.9, 3.7, 5.0])[:k], 1.4
    w = weights(u, r, nodes, end)
    middle = r.of(np.array(2.5))
    for power in range(k):
        g = lambda s, p=power: (r.of(np.array(s)) - middle) ** p * u.rate(np.array(s))  # noqa: E731
        assert w @ (r.of(nodes) - middle) ** power == pytest.approx(
            quad(g, nodes[0], end, epsabs=1e-13, epsrel=1e-13)[0], rel=1e-10, abs=1e-12
        )


def test_a_ruler_with_kinks_is_integrated_between_them():
    time = Scale(DDPM.time, DDPM.sigma, DDPM.time_rate)
    t = np.array([440.3, 455.8])
    nodes, end = DDPM.sigma(t), float(DDPM.sigma(431.6))
    w = weights(SCALES["sigma"], time, nodes, end, DDPM.knots)
    # ∫ ℓ_j dσ by parts, so that only σ(t) and no derivative of it is integrated
    spread, cuts = t[0] - t[1], [431.6, *range(432, 441), 440.3]
    area = sum(quad(DDPM.sigma, a, b, epsabs=1e-14)[0] for a, b in itertools.pairwise(cuts))
    ends = [(431.6 - t[1]) / spread, 1.0]
    newest = ends[0] * end - ends[1] * nodes[0] + area / spread
    np.testing.assert_allclose(w, [newest, end - nodes[0] - newest], rtol=1e-10)
    assert abs(w / weights(SCALES["sigma"], time, nodes, end) - 1).max() > 1e-7  # not split there


@pytest.mark.parametrize("ruler", ["sigma", "log_sigma", "t"])
def test_a_multistep_step_is_exact_for_a_constant_velocity(ruler):
    method = Method("m", 3, past=3, ruler=ruler)
    grid = ddim_ode.grids.make_grid("karras", DDPM, 7, sigma_max=40.0)
    for i, op in enumerate(ddim_ode.plan(method, DDPM, grid).ops[1:]):
        gauge = DDPM.scales(grid[i + 1])[0]
        assert sum(op.weights) == pytest.approx(gauge * (grid[i + 1] - grid[i]), rel=1e-11)
