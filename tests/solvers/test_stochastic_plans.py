"""Plans with step noise: their identities, their limits, what is refused, and their files."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import COSINE
from refusals import expect

import ddim_ode
from ddim_ode import Method, Plan
from ddim_ode.solvers.chart import ddim_step
from ddim_ode.solvers.methods import METHODS
from ddim_ode.solvers.renoising import Ancestral, Churn, Restart
from ddim_ode.solvers.stochastic import eta_noise, of_tau
from ddim_ode.solvers.tableau import HEUN

GRID = np.append(np.geomspace(50.0, 0.02, 17), 0.0)
DATA = [name for name, method in METHODS.items() if method.chart == "data"]


def coefficients(plan):
    return np.array([value for op in plan.ops for value in (op.scale, *op.weights)])


@pytest.mark.parametrize("name", [*DATA, "ddim"])
def test_without_noise_it_is_the_plan_of_the_ode(name):
    """Bit by bit at eta = 0, and in the limit to rounding."""
    ode = replace(METHODS[name], eta=None)
    start = "ramp" if ode.rk_steps else None
    plain = ddim_ode.plan(ode, COSINE, GRID, start=start) if name != "ddim" else None
    none = ddim_ode.plan(name, COSINE, GRID, eta=0.0, start=start)
    if plain is not None:
        assert none == plain
    little = ddim_ode.plan(name, COSINE, GRID, eta=1e-9)
    assert not none.is_stochastic
    assert little.is_stochastic
    np.testing.assert_allclose(coefficients(little), coefficients(none), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_one_velocity_is_ddim_with_its_eta(eta):
    """DDPM's mean and variance at 1, through the quadrature and not through the discrete formula."""
    one = Method("one", None, "data", past=1, corrector=True, ruler="log_sigma", eta=eta)
    plan = ddim_ode.plan(one, COSINE, GRID)
    predictions = [op for op in plan.ops[1:] if op.node is not None]
    alpha, beta = COSINE.scales(GRID)
    noise = eta_noise(COSINE, GRID, eta)
    here, after = (alpha[:-1], beta[:-1]), (alpha[1:], beta[1:])
    scale, weight = ddim_step("x0", here, after, noise)
    for i, op in enumerate(predictions):
        assert op.scale == pytest.approx(scale[i], abs=1e-12)
        assert op.weights == pytest.approx((weight[i],), abs=1e-12)
        assert op.noise == pytest.approx(noise[i], abs=1e-12)
    if eta == 1.0:  # the posterior of DDPM, in its own words
        squares = alpha**2
        posterior = (1 - squares[1:]) / (1 - squares[:-1]) * (1 - squares[:-1] / squares[1:])
        np.testing.assert_allclose(noise**2, posterior, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["dpmpp2m", "dpmpp3m", "dpmpp2s", "unipc3", "sa3:pece", "seeds3"])
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_a_constant_prediction_is_followed_exactly(name, tau):
    """x̂₀ = 1 everywhere: the weights of a step are 1 − (σ_t/σ_s)^{1+τ²}, and its variance is that of the
    exact transition, also over its stages."""
    levels = GRID[3:8]
    plan = ddim_ode.plan(name, COSINE, levels, noise_std=of_tau(COSINE, levels, tau))
    alpha = COSINE.scales(levels)[0]
    step = 0
    for op in plan.ops[1:]:
        sigma = op.node.sigma if op.node else levels[step + 1]
        a, b = map(float, COSINE.scales(sigma))
        power = (sigma / levels[step]) ** (1 + tau**2)
        assert op.scale == pytest.approx(a / alpha[step] * power, rel=1e-12)
        assert sum(op.weights) == pytest.approx(a * (1 - power), rel=1e-12)
        kept = (sigma / levels[step]) ** (2 * tau**2)
        assert np.linalg.norm(op.noise) == pytest.approx(b * np.sqrt(1 - kept), rel=1e-12)
        step += op.commit


@pytest.mark.parametrize("name", ["dpmpp2m", "unipc2", "dpmpp2s", "seeds3"])
def test_noise_at_its_bound_leaves_nothing_of_the_state(name):
    levels = np.geomspace(20.0, 0.1, 6)
    bound = COSINE.scales(levels[1:])[1]
    plan = ddim_ode.plan(name, COSINE, levels, noise_std=bound)
    commits = [op for op in plan.ops if op.commit]
    alpha = COSINE.scales(levels[1:])[0]
    for op, a, b in zip(commits, alpha, bound):
        assert abs(op.scale) < 1e-15
        assert sum(op.weights) == pytest.approx(a, rel=1e-9)
        assert np.linalg.norm(op.noise) == pytest.approx(b, rel=1e-9)


@pytest.mark.parametrize("name", DATA)
def test_steps_without_noise_among_others(name):
    noise = eta_noise(COSINE, GRID, 1.0)
    noise[::2] = 0.0
    plan = ddim_ode.plan(name, COSINE, GRID, noise_std=noise)
    ends = {to for _, to in plan.draws()}
    assert {GRID[i + 1] for i in np.flatnonzero(noise)} <= ends
    assert not ends & {GRID[i + 1] for i in np.flatnonzero(noise == 0)}
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", [*DATA, "sa3:pece"])
def test_file_keeps_shared_draws(name):
    plan = ddim_ode.plan(name, COSINE, GRID, eta=1.0)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.is_stochastic
    assert "z" in plan.describe()


@pytest.mark.parametrize("chart", ["flow", "eps"])
def test_start_at_infinity_is_a_draw_like_any(chart):
    levels = [np.inf, 5.0, 1.0, 0.2, 0.0]
    plan = ddim_ode.plan("dpmpp2m", ddim_ode.schedules.flow(), levels, eta=1.0)
    assert plan.draws()[0] == (np.inf, 5.0)
    assert all(np.isfinite(op.scale) for op in plan.ops)


def test_methods_show_both_orders():
    rows = {row["name"]: row for row in ddim_ode.methods()}
    assert (rows["sa3"]["weak_order"], rows["sa3"]["strong_order"]) == (2, 1)
    assert (rows["ddim"]["weak_order"], rows["rk4"]["weak_order"]) == (1, None)


# -- levels that go back up ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["edm_stochastic", "restart"])
def test_noise_takes_the_state_up_exactly(name):
    plan = ddim_ode.plan(name, COSINE, GRID)
    rises = [i for i, (a, b) in enumerate(pairwise(plan.grid)) if b > a]
    ups = [op for op in plan.ops if op.draws]
    assert len(rises) == len(ups) == len(plan.draws()) > 0
    for i, op in zip(rises, ups):
        low, high = plan.grid[i : i + 2]
        alpha = COSINE.scales(np.array([low, high]))[0]
        assert (op.weights, op.node.sigma) == ((), high)
        assert op.scale == pytest.approx(alpha[1] / alpha[0], rel=1e-14)
        assert op.noise == pytest.approx(alpha[1] * np.sqrt(high**2 - low**2), rel=1e-12)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.steps == GRID.size - 1


def test_churn_and_restart_pass_the_levels_of_their_papers():
    grid = np.array([80.0, 20.0, 4.0, 0.6, 0.06, 0.01, 0.0])
    churn = Churn(amount=6 * 0.1, low=0.05, high=50.0).levels(grid)
    assert churn == pytest.approx([80, 20, 22, 4, 4.4, 0.6, 0.66, 0.06, 0.066, 0.01, 0])
    assert Churn(amount=1e6).levels(np.array([10.0, 0.0]))[1] == pytest.approx(10 * np.sqrt(2))
    again = Restart(times=2, low=0.06, high=4.0).levels(grid)
    assert again.tolist() == [80, 20, *[4, 0.6, 0.06] * 3, 0.01, 0]
    assert Restart(low=30.0, high=90.0).levels(grid).tolist()[:5] == [80, 20, 80, 20, 80]
    assert Ancestral(eta=0.0).levels(grid).tolist() == grid.tolist()
    karras = ddim_ode.grids.make_grid(
        "karras", ddim_ode.schedules.ve(80.0), 18, sigma_max=80.0, sigma_min=0.002
    )
    own = replace(METHODS["restart"], rises=Restart())
    plan = ddim_ode.plan(own, ddim_ode.schedules.ve(80.0), karras)
    assert plan.nfe == 43  # of table 1 of Xu et al. for CIFAR-10, K = 2, [0.06, 0.30]


def test_without_churn_it_is_heun_and_runs_like_any_plan():
    none = replace(METHODS["edm_stochastic"], rises=Churn(amount=0.0))
    assert replace(ddim_ode.plan(none, COSINE, GRID), method="heun") == ddim_ode.plan(
        "heun", COSINE, GRID
    )
    model = ddim_ode.exact.gaussian([0.4], [[0.3]], COSINE)
    x = ddim_ode.noise((1,), COSINE, range(600), sigma=50.0)
    for name in ("edm_stochastic", "restart"):
        options = dict(grid=GRID, seeds=range(600), record="x")
        sol = ddim_ode.sample(model, x, name, **options)
        assert float(sol.x.var()) == pytest.approx(0.3, rel=0.2)
        assert len(sol.trajectory) == len(sol.sigmas) > GRID.size
        few = ddim_ode.sample(model, x[3:5], name, **options | dict(seeds=[3, 4]))
        np.testing.assert_allclose(few.x, sol.x[3:5], rtol=1e-5, atol=1e-6)
    budget = ddim_ode.plan_for(model, "restart", nfe=30, sigma_max=50.0)
    assert 20 < budget.nfe <= 30


def test_steps_are_those_of_the_grid_whatever_goes_up_between():
    for rises in (Ancestral(), Churn(), Restart(low=1.0, high=3.0)):
        method = Method("mine", None, stages=HEUN, rises=rises)
        for grid in ([80.0, 5.0, 4.0, 3.0, 0.0], np.geomspace(40.0, 0.1, 9)):
            plan = ddim_ode.plan(method, ddim_ode.schedules.ve(80.0), grid)
            assert plan.steps == len(grid) - 1


def plan(method, schedule=COSINE, grid=GRID, **options):
    return lambda: ddim_ode.plan(method, schedule, grid, **options)


def restarted(run, grid=GRID, **options):
    model = ddim_ode.exact.gaussian([0.4], [[0.3]], COSINE)
    return lambda: run(model, torch.zeros(2, 1), "restart", grid=grid, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (plan("rk4", eta=0.5), "'rk4' takes no eta.*chart 'data'.*chart='data'"),
        (plan("ddpm", eta=0.5), "'ddpm' takes no eta"),
        (plan("deis3", noise_std=[0.0] * 17), "'deis3' takes no noise_std"),
        (plan("dpmpp3m", eta=0.5, start="rk"), "start='rk'.*adds no noise.*drop start"),
        (plan("dpmpp2m", eta=0.5, rising=True), "eta: step noise cannot be undone"),
        (plan("sa2", rising=True), "sa2: step noise cannot be undone"),
        (plan("dpmpp2m", eta=3.0), r"eta=3.0 makes noise_std\[0\].*allowed is \[0"),
        (plan("dpmpp2m", eta=lambda sigma: -1.0), r"eta\(.*\)=-1 must be finite and >= 0"),
        (plan("dpmpp2m", eta=lambda sigma: np.nan), r"eta\(.*\)=nan must be finite"),
        (plan("dpmpp2m", eta=lambda sigma: "a"), r"eta\(σ\)='a' must be real"),
        (plan("dpmpp2m", eta="1"), "eta='1' must be"),
        (plan("dpmpp2m", eta=lambda sigma: 9.0), r"eta makes noise_std\[0\]"),
        (plan("dpmpp2m", eta=1.0, chart="flow"), "takes no eta.*chart"),
        (plan("restart", eta=1.0), "takes no eta"),
        (plan("restart", grid=GRID[:-1], rising=True), "cannot be undone"),
        (
            plan("edm_stochastic", ddim_ode.schedules.ve(40.0), [40.0, 1.0, 0.0]),
            "adds noise up to σ=56.5.*schedule's 40; start lower",
        ),
        (lambda: Churn(low=3.0, high=1.0), "high=1.0 must be a σ above low=3.0"),
        (lambda: Churn(amount=-1.0), "amount=-1.0 must be finite and >= 0"),
        (lambda: Churn(high="a"), "high='a' must be real numbers"),
        (lambda: Restart(times=0), "times=0"),
        (lambda: Restart(low=0.0), "low=0 is no level to go up again from"),
        (lambda: Ancestral(eta=np.nan), "eta=nan must be"),
        (lambda: replace(METHODS["ab2"], rises=Churn()), "'ab2': between rises="),
        (lambda: replace(METHODS["ddpm"], rises=Churn()), "'ddpm': between rises="),
        (lambda: Method("x", 2, stages=HEUN, rises=3), "rises=3 must be a Churn"),
        (lambda: Method("x", 2, stages=HEUN, rises=Churn), "rises="),
        (restarted(ddim_ode.sample, record="x0", seeds=[0, 1]), "goes up to some by noise"),
        (restarted(ddim_ode.sample, noise="path", seeds=[0, 1]), "goes back up.*noise='step'"),
        (restarted(ddim_ode.encode, GRID[:-1]), "cannot be undone"),
    ],
)
def test_refusals(call, message):
    expect(call, message)
