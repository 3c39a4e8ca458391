"""Calibration: the family it searches, its linearisation, and what the fitted plans gain.

All models here have closed-form networks; the errors are against converged solutions of noises that no
fit has seen.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
import torch
from problems import Counting

import ddim_ode
from ddim_ode.calibration.attempt import Attempt
from ddim_ode.calibration.descent import Descent, damped, gauss_newton
from ddim_ode.calibration.family import Linear
from ddim_ode.calibration.fitting import Fitting, linearised
from ddim_ode.calibration.search import EFFORTS
from ddim_ode.solve.answers import LEVELS
from ddim_ode.solve.look import COARSE, FINE
from ddim_ode.solve.reference import METHOD
from ddim_ode.solvers.compilation import plan as compile_plan
from ddim_ode.solvers.methods import METHODS

SCHEDULE = ddim_ode.schedules.cosine()
START = compile_plan("dpmpp2m", SCHEDULE, [10.0, 5.0, 2.0, 0.5, 0.0])


def mixture(schedule=SCHEDULE, dimension=6, scale=1.0, **options):
    rng = np.random.default_rng(5)
    means = scale * rng.normal(size=(4, dimension))
    covs = scale**2 * rng.uniform(0.02, 0.3, size=(4, dimension))
    return ddim_ode.exact.gaussian_mixture([0.4, 0.3, 0.2, 0.1], means, covs, schedule, **options)


def unseen(model, plan, n=64):
    """Errors (n,) on noises of other seeds."""
    x = ddim_ode.noise((model.means.shape[1],), model.schedule, seeds=range(9000, 9000 + n))
    grid = "karras" if model.schedule.family == "ve" else "quadratic"
    exact = ddim_ode.sample(model, x.double(), METHOD, steps=100, grid=grid).x
    return rms(ddim_ode.sample(model, x, plan=plan).x - exact)


def rms(x):
    return x.double().square().mean(1).sqrt().numpy()


def log_ratio(model, plan):
    """Mean and 95 % half width of ln(error / the incumbent's)."""
    incumbent = plan.fit["incumbent_plan"]
    grid = [float(sigma) for sigma in incumbent["grid"]]  # "inf" in plain data
    before = compile_plan(incumbent["method"], model.schedule, grid, start=incumbent["start"])
    ratio = np.log(unseen(model, plan) / unseen(model, before))
    return ratio.mean(), 2 * ratio.std() / np.sqrt(len(ratio))


@pytest.fixture(scope="module")
def three_calls():
    return ddim_ode.calibrate(mixture(), 3, n=32, progress=False)


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if not m.adds_noise])
def test_every_textbook_plan_is_a_point_of_the_family(name):
    model = mixture()
    x = ddim_ode.noise((6,), SCHEDULE, seeds=range(3), dtype=torch.float64)
    sol = ddim_ode.sample(model, x, name, steps=5)
    point = Linear.of(sol.plan)
    target = torch.zeros_like(x)
    ours = Fitting(model, x, target).run([point], torch.arange(3))
    assert float((ours - sol.x).abs().max()) < 1e-9
    if point.falls:
        again = point.to_plan(SCHEDULE, "again", {})
        assert again.nfe == sol.nfe
        assert again.steps == sol.nfe
        back = ddim_ode.sample(model, x, plan=again, record="x")
        assert float((back.x - sol.x).abs().max()) < 1e-9
        assert back.trajectory.shape == (again.steps + 1, 3, 6)


@pytest.mark.parametrize("name", ["ddim", "ipndm", "dpmpp2m", "unipc3"])
@pytest.mark.parametrize("first", [1, 2])
def test_calls_left_out_answered_no_data(name, first):
    """Beside a network that says x̂₀ = 0 down to where the first call is made."""
    schedule = ddim_ode.schedules.ve(80.0)
    model = mixture(schedule)
    x = ddim_ode.noise((6,), schedule, seeds=range(3), dtype=torch.float64)
    plan = ddim_ode.sample(model, x, name, steps=6).plan
    told, inner = plan.nodes[first].t, model.net

    def blind(y, sigma):
        top = float(sigma[0])
        _, beta_bar = schedule.scales(top)
        if top > plan.nodes[first].sigma * (1 + 1e-6):
            return y / float(beta_bar)
        return inner(y, sigma)

    model.net = blind
    whole = ddim_ode.sample(model, x, plan=plan).x
    model.net = inner
    point = Linear.of(plan).without_calls(first, schedule)
    short = point.to_plan(schedule, "short", {})
    assert (short.nfe, short.nodes[0].t) == (plan.nfe - first, told)
    sol = ddim_ode.sample(model, x, plan=short, record="x0")
    assert float((sol.x - whole).abs().max()) < 1e-9
    assert sol.trajectory.shape == (short.steps + 1, 3, 6)
    assert float((Fitting(model, x, x).run([point], torch.arange(3)) - whole).abs().max()) < 1e-9


@pytest.mark.parametrize(("batch", "guided"), [(3, False), (8, True), (64, True)])
def test_samplers_that_run_together_end_where_each_does_alone(batch, guided):
    """Samplers of other methods, levels, vectors and numbers of calls, under conditions of each noise."""
    shift = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    inner = mixture().net

    def net(y, t, shift):
        return inner(y, t) + 0.1 * shift

    guidance = ddim_ode.Guidance(1.5, null={"shift": 0.0}, interval=(0.5, 6.0)) if guided else None
    model = ddim_ode.Denoiser(net, SCHEDULE, time=lambda t, sigma: sigma, guidance=guidance)
    x = ddim_ode.noise((6,), SCHEDULE, seeds=range(5), dtype=torch.float64)
    names = ("ipndm", "dpmpp2m", "unipc3", "heun", "ddim", "dpm2")
    points = [
        Linear.of(ddim_ode.plan_for(model, name, nfe=nfe, grid=grid))
        for name, grid, nfe in itertools.product(names, ("karras", "log_snr"), (5, 6))
    ]
    problem = Fitting(model, x, torch.zeros_like(x), cond={"shift": shift}, batch=batch)
    alone = [problem.errors(point, torch.arange(5)) for point in points]
    evals, problem.evals = problem.evals, 0
    together = problem.errors_of(points, torch.arange(5))
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    assert problem.evals == evals  # no row more, in fewer calls


def test_where_the_noise_has_the_size_of_every_state_the_first_call_sees_it_as_it_is(three_calls):
    plan = ddim_ode.plan("unipc3", SCHEDULE, [2e4, 60.0, 8.0, 1.0, 0.2, 0.0])
    short = Linear.of(plan).without_calls(1, SCHEDULE).to_plan(SCHEDULE, "short", {})
    assert short.ops[0].scale == 1.0
    told = Linear.of(plan).without_calls(1, ddim_ode.schedules.ve(2e4))
    assert told.scale[0] != 1.0
    assert three_calls.ops[0].scale == 1.0


def test_parameters_are_met_in_the_order_of_a_run():
    def named(point, **options):
        return [
            f"{p.kind[0]}{p.k}" + ("" if p.j < 0 else str(p.j)) for p in point.parameters(**options)
        ]

    point = Linear.of(ddim_ode.plan("ab3", SCHEDULE, [50.0, 4.0, 0.5, 0.0]))
    whole = ["s0", "l0", "s1", "w00", "l1", "s2", "w11", "w10", "l2", "s3", "w22", "w21", "w20"]
    assert named(point) == whole
    assert named(point, memory=2) == [name for name in whole if name != "w20"]
    assert named(point, memory=1) == ["s0", "l0", "s1", "w00", "l1", "s2", "w11", "l2", "s3", "w22"]
    assert named(point, levels=False) == [name for name in whole if name[0] != "l"]
    assert named(point, first_scale=False) == whole[1:]
    from_infinity = Linear.of(
        ddim_ode.plan("ddim", ddim_ode.schedules.flow(), [np.inf, 4.0, 0.5, 0.0])
    )
    assert named(from_infinity) == [name for name in whole if name != "l0"]


def test_a_point_s_plan_keeps_no_weights_of_0_behind_the_last():
    grid = [50.0, 4.0, 0.5, 0.1, 0.0]  # whose last step looks at its own call alone
    for name, lengths in (("ddim", [0, 1, 1, 1, 1]), ("ab2", [0, 1, 2, 2, 1])):
        plan = Linear.of(ddim_ode.plan(name, SCHEDULE, grid)).to_plan(SCHEDULE, "again", {})
        assert [len(op.weights) for op in plan.ops] == lengths
        assert plan.grid == tuple(grid)
        assert plan.ops[0].noise == plan.ops[-1].noise == 0.0


def test_levels_fall_only_where_each_is_below_the_last():
    point = Linear.of(ddim_ode.plan("ddim", SCHEDULE, [50.0, 4.0, 0.5, 0.0]))
    assert point.falls
    for sigma in ([50.0, 4.0, 4.0], [50.0, 4.0, 5.0]):
        assert not dataclasses.replace(point, sigma=np.array(sigma)).falls


def sines(x):
    return torch.sin(x[:, :4])


@pytest.mark.parametrize(
    ("features", "rank", "left_out"), [(None, 6, 0), (None, 40, 1), (sines, 6, 1), (sines, 40, 0)]
)
def test_the_linearisation_is_the_derivative(features, rank, left_out):
    """Against central differences of whole runs. Six entries have six directions: rank 6 is exact."""
    model = mixture()
    x = ddim_ode.noise((6,), SCHEDULE, seeds=range(2), dtype=torch.float64)
    problem = Fitting(model, x, torch.zeros_like(x), features=features)
    plan = ddim_ode.sample(model, x, "dpmpp2m", steps=5, sigma_max=100.0).plan
    point, rows = Linear.of(plan).without_calls(left_out, SCHEDULE), torch.arange(2)
    parameters = point.parameters()
    _, jacobian = linearised(problem, point, rows, parameters, rank)
    for i in range(len(parameters)):
        step = np.zeros(len(parameters))
        step[i] = 1e-5
        above, below = (
            problem.residual(problem.run([point.moved(parameters, s)], rows), rows)
            for s in (step, -step)
        )
        slope = (above - below) / 2e-5
        assert float((slope - jacobian[:, i]).abs().max()) < 2e-4 * (1 + float(slope.abs().max()))


def test_a_descent_goes_on_where_it_was():
    """In one go, or two iterations at a time, are the same samplers, at no row more."""
    model = mixture()
    x = ddim_ode.noise((6,), SCHEDULE, seeds=range(24), dtype=torch.float64)
    target = ddim_ode.sample(model, x, "unipc3", steps=60).x
    start = Linear.of(ddim_ode.plan_for(model, "dpmpp2m", nfe=5))
    rows, judges = torch.arange(16), torch.arange(16, 24)
    how = Descent(6, 6, True, (SCHEDULE.sigma_min, 1e4), memory=2, subset=6, decay=0.6)
    whole, parts = Fitting(model, x, target), Fitting(model, x, target)
    at_once = gauss_newton(whole, start, rows, judges, how)
    fit = start
    for _ in range(3):
        fit = gauss_newton(parts, fit, rows, judges, dataclasses.replace(how, iterations=2))
    assert parts.evals == whole.evals
    np.testing.assert_array_equal(fit.point.weights, at_once.point.weights)
    np.testing.assert_array_equal(fit.errors, at_once.errors)
    assert at_once.iterations > 0
    assert whole.loss(at_once.errors) < whole.loss(whole.errors(start, judges)) - 0.3


@pytest.mark.parametrize("part", [-1.0, 1.0])
def test_a_move_within_its_bounds_keeps_levels_in_order_and_in_range(part):
    """Levels that all go down, or up, as far as they may, ten times over."""
    x = ddim_ode.noise((6,), SCHEDULE, seeds=range(2))
    point = Linear.of(ddim_ode.sample(mixture(), x, "dpmpp2m", steps=5).plan)
    parameters = point.parameters()
    told = [parameter.kind == "level" for parameter in parameters]
    lowest, highest = SCHEDULE.sigma_min, SCHEDULE.sigma_max
    for _ in range(10):
        low, high = point.bounds(parameters, lowest, highest)
        assert np.array_equal(np.isfinite(low), told)
        assert np.all(low <= 0)
        assert np.all(high >= 0)
        point = point.moved(parameters, np.where(told, low if part < 0 else high, 0.0))
        assert point.falls
        assert lowest <= point.sigma.min()
        assert point.sigma.max() <= highest


def test_a_step_within_bounds_is_the_best_there():
    """The conditions of Karush, Kuhn and Tucker: downhill only where a bound forbids it."""
    draw = np.random.default_rng(0)
    root = draw.normal(size=(8, 12))
    matrix, vector = root @ root.T, draw.normal(size=8)
    free = damped(matrix, vector, 1e-9, (np.full(8, -np.inf), np.full(8, np.inf)))
    assert np.allclose(matrix @ free, -vector, atol=1e-6)
    low, high = -0.3 * np.abs(free), 0.3 * np.abs(free)
    low[:4], high[:4] = -np.inf, np.inf
    step = damped(matrix, vector, 1e-9, (low, high))
    slope = matrix @ step + vector
    at_low, at_high = np.isclose(step, low), np.isclose(step, high)
    assert np.any(at_low | at_high)
    assert np.all(np.abs(slope[~(at_low | at_high)]) < 1e-6)
    assert np.all(slope[at_low] > 0)
    assert np.all(slope[at_high] < 0)


def test_fewer_directions_than_tangents_come_close():
    model = mixture(dimension=30)
    x = ddim_ode.noise((30,), SCHEDULE, seeds=range(4), dtype=torch.float64)
    problem = Fitting(model, x, torch.zeros_like(x))
    point = Linear.of(ddim_ode.sample(model, x, "ipndm", steps=7).plan)
    parameters, rows = point.parameters(), torch.arange(4)
    _, whole = linearised(problem, point, rows, parameters, 99)
    before = problem.evals
    _, few = linearised(problem, point, rows, parameters, 6)
    assert problem.evals - before <= 4 * 7 * (6 + 2)
    assert float((few - whole).norm() / whole.norm()) < 0.02


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (ddim_ode.schedules.ddpm(), dict(snap=True)),
        (ddim_ode.schedules.exponential(), {}),
        (ddim_ode.schedules.vp(), {}),
        (ddim_ode.schedules.ve(80.0 * 200), dict(scale=200.0)),  # data of another scale
        (ddim_ode.schedules.flow(), dict(prediction="flow")),
    ],
    ids=lambda value: value if isinstance(value, dict) else value.family,
)
def test_a_fitted_plan_beats_the_best_textbook_one_within_its_budget(schedule, options):
    model, n, nfe = mixture(schedule, **options), 64, 5
    model.net = net = Counting(model.net)
    plan = ddim_ode.calibrate(model, nfe, n=n, progress=False)
    assert net.rows == plan.fit["net_evals"] <= n * (70 + 12 * nfe)
    assert plan.fit["calibrated"]
    assert plan.nfe == nfe
    mean, half = log_ratio(model, plan)
    assert mean + half < np.log(0.4)  # more than the search alone gains
    if model.snap:
        levels = np.array([sigma for sigma in plan.grid if sigma > 0])
        assert np.allclose(model.snapped(levels), levels, rtol=1e-12)


def test_a_thorough_budget_searches_every_method_without_noise_and_errs_no_more(three_calls):
    plan = ddim_ode.calibrate(mixture(), 3, n=16, budget="thorough", progress=False)
    assert (plan.nfe, plan.fit["budget"]) == (3, "thorough")
    assert unseen(mixture(), plan).mean() < 1.02 * unseen(mixture(), three_calls).mean()
    noisy = {name for name, method in METHODS.items() if method.adds_noise}
    assert noisy
    assert not noisy & {*EFFORTS["thorough"].methods}
    assert {*EFFORTS["thorough"].methods} | noisy == {*METHODS}


def test_two_noises_keep_their_budget_and_are_said_to_be_few():
    model = mixture()
    model.net = net = Counting(model.net)
    with pytest.warns(UserWarning, match="2 noises are few"):
        plan = ddim_ode.calibrate(model, 3, n=2, progress=False)
    assert net.rows == plan.fit["net_evals"] <= 2 * (70 + 12 * 3)


def test_the_same_seed_gives_the_same_plan_and_several_budgets_share_a_reference(three_calls):
    several = ddim_ode.calibrate(mixture(), nfe=range(3, 5), n=32, progress=False)
    assert {nfe: plan.nfe for nfe, plan in several.items()} == {3: 3, 4: 4}
    assert several[3] == three_calls


def test_one_call_more_takes_over_only_where_it_errs_less_on_hard_noises_too(monkeypatch):
    chosen = Attempt.chosen

    def lucky(attempt, fit, wider):
        if attempt.nfe == 3:
            return chosen(attempt, fit, wider)
        same = attempt.problem.errors(wider.point, attempt.held)
        by_chance = same * np.resize([0.5, 1.5], len(same))
        by_chance *= 0.99 * same.mean() / by_chance.mean()
        return chosen(attempt, dataclasses.replace(fit, errors=by_chance), wider)

    monkeypatch.setattr(Attempt, "chosen", lucky)
    plans = ddim_ode.calibrate(mixture(), [3, 4], n=32, progress=False)
    x = ddim_ode.noise((6,), SCHEDULE, seeds=range(4), dtype=torch.float64)
    three, four = (ddim_ode.sample(mixture(), x, plan=plans[nfe]) for nfe in (3, 4))
    assert (three.nfe, four.nfe) == (3, 4)
    assert torch.allclose(three.x, four.x, atol=1e-9)


def test_conditions_and_guidance_are_part_of_the_model():
    inner = mixture()

    def net(x, t, shift):  # the mixture, moved
        alpha_bar, sigma = (
            torch.as_tensor(f(t.double().numpy())).to(x)
            for f in (SCHEDULE.alpha_bar, SCHEDULE.sigma)
        )
        return inner.net(x - alpha_bar[:, None] * shift, sigma)

    guidance = ddim_ode.Guidance(1.5, null={"shift": 0.0})
    model = ddim_ode.Denoiser(net, SCHEDULE, guidance=guidance)
    shifts = torch.linspace(-0.3, 0.3, 48)[:, None].expand(48, 6).contiguous()
    options = dict(shape=(6,), n=48, start=START, progress=False)
    plan = ddim_ode.calibrate(model, 4, cond=lambda i: {"shift": shifts[i]}, **options)
    assert plan == ddim_ode.calibrate(model, 4, cond={"shift": shifts}, **options)
    assert plan.fit["guidance"] == 1.5
    assert plan.fit["held_out"]["after"] < plan.fit["held_out"]["before"]


def test_features_are_what_is_minimised():
    """Two halves that know nothing of each other, one hard, one easy: a fit of the easy one alone does
    better there than a fit of both."""
    means = np.repeat([[a, b] for a in (-1.0, 1.0) for b in (-0.5, 0.5)], 4, axis=1)
    covs = np.repeat([[0.01, 0.2]] * 4, 4, axis=1)
    model = ddim_ode.exact.gaussian_mixture([0.25] * 4, means, covs, SCHEDULE)
    x = ddim_ode.noise((8,), SCHEDULE, seeds=range(9000, 9128))
    exact = ddim_ode.sample(model, x.double(), METHOD, steps=150, grid="quadratic").x

    def error(plan):
        return np.log(rms((ddim_ode.sample(model, x, plan=plan).x - exact)[:, 4:])).mean()

    options = dict(nfe=2, n=64, progress=False)
    whole = ddim_ode.calibrate(model, **options)
    options["features"] = lambda x: 3 * x[:, 4:]
    easy = ddim_ode.calibrate(model, **options)
    assert easy.fit["features"]
    assert error(easy) < error(whole) - 0.5
    options["nfe"] = 6
    with pytest.warns(UserWarning, match=r"the reference may err by .*% of the plan's own error"):
        near = ddim_ode.calibrate(model, **options)
    assert "the reference may err by" in near.fit["warnings"][0]


def test_features_in_double_precision_are_those_in_single():
    singles, doubles = (
        ddim_ode.calibrate(mixture(), 3, n=16, features=features, progress=False)
        for features in (lambda x: x[:, :2], lambda x: x[:, :2].double())
    )
    assert singles.nfe == doubles.nfe == 3
    assert np.allclose(singles.grid, doubles.grid, rtol=0.02)


def test_without_a_gain_the_incumbent_is_returned_and_said_so():
    """One Gaussian of no width: x̂₀ is constant, and DDIM is exact already."""
    model = ddim_ode.exact.gaussian([0.3, -0.2], np.zeros((2, 2)), SCHEDULE)
    with pytest.warns(UserWarning, match="is returned"):
        plan = ddim_ode.calibrate(model, 2, n=12, progress=False)
    assert plan.fit["calibrated"] is False
    assert plan.fit["warnings"]
    assert plan.method in METHODS


def test_a_start_is_improved_from_its_own_first_level():
    """Instead of the best textbook sampler."""
    model = mixture(ddim_ode.schedules.ve(80.0))
    start = compile_plan("dpmpp2m", model.schedule, [10.0, 5.0, 2.0, 0.5, 0.0])
    plan = ddim_ode.calibrate(model, 4, start=start, n=64, progress=False)
    assert plan.fit["incumbent_plan"]["method"] == "dpmpp2m"
    assert plan.fit["calibrated"]
    x = ddim_ode.noise((6,), model.schedule, seeds=range(9000, 9064), sigma=10.0)
    exact = ddim_ode.sample(model, x.double(), METHOD, steps=150, grid="karras", sigma_max=10.0).x
    before, after = (rms(ddim_ode.sample(model, x, plan=p).x - exact).mean() for p in (start, plan))
    assert plan.grid[0] == 10
    assert after < 0.7 * before


RK = ddim_ode.plan("heun", SCHEDULE, [10.0, 5.0, 2.0, 0.5, 0.0])
FEW_LEVELS = mixture(ddim_ode.schedules.ddpm(T=5, beta_end=0.9), snap=True)
UP = ddim_ode.encode(mixture(), torch.zeros(1, 6), "ddim", steps=4).plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model="fashion-mnist"), "must be a Denoiser"),
        (dict(nfe=[]), "nfe is empty"),
        (dict(nfe=0), "nfe=0"),
        (dict(n=1), "n=1"),
        (dict(budget="quick"), "unknown budget 'quick'"),
        (dict(cond={"y": torch.zeros(3)}), "one row per noise"),
        (dict(start=START, nfe=5), "start has nfe 4"),
        (dict(start=START, sigma_max=80.0), "start begins at σ=10"),
        (dict(start=UP, nfe=UP.nfe), "start goes up"),
        (dict(start=ddim_ode.plan("ddpm", SCHEDULE, [50.0, 1.0, 0.0]), nfe=2), "adds step noise"),
        (dict(features=lambda x: x.mean()), r"shape \(8, ...\), got torch.float32 of shape \(\)"),
        (dict(features=lambda x: x[:1]), r"got torch.float32 of shape \(1, 6\)"),
        (dict(features=lambda x: x > 0), "got torch.bool"),
        (dict(features=lambda x: (x,)), "must return a tensor .*got tuple"),
        (dict(features=lambda x: x[:, :0]), r"got torch.float32 of shape \(8, 0\)"),
        (dict(features=lambda x: x[:, :1] * 0), "features are the same for all 8 samples"),
        (
            dict(features=lambda x: x.new_ones(len(x), len(x)) * x[:, :1], n=9, batch=8),
            "features must be as many for every sample",
        ),
        (dict(start=RK, nfe=RK.nfe), "start='heun' does not fall .*ipndm"),
        (dict(model=FEW_LEVELS, nfe=[3, 6]), "nfe=6: the model has 5 trained levels.*at most 5"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ddim_ode.calibrate(**dict(model=mixture(), nfe=4, n=8, progress=False) | options)


# -- a network that is NaN or inf for a few inputs: those noises are left out, and said ----------
N = 64
MODEL = mixture()
# What the network is known by, a look at a few noises, and the reference of the fast budget, of those held
# out and of the others at once.
REFERENCE_CALLS = len(LEVELS) + 1 + COARSE + FINE + 18 + 36 + 36


def failing(noises, value=torch.nan, after=REFERENCE_CALLS):
    """The mixture, and for these noises that value, once the reference is there."""
    calls = 0

    def net(x, t, k):
        nonlocal calls
        calls += 1
        out = MODEL.net(x, t)
        if calls > after:
            out = torch.where(torch.isin(k, torch.tensor(noises))[:, None], value, out)
        return out

    return ddim_ode.Denoiser(net, SCHEDULE, time=lambda t, sigma: sigma)


def fitted(model, **options):
    """The plan, and what was warned of."""
    given = dict(nfe=4, n=N, seed=100, shape=(6,), start=START, progress=False)
    given["cond"] = {"k": torch.arange(N)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan = ddim_ode.calibrate(model, **(given | options))
    assert all(issubclass(w.category, UserWarning) for w in said)
    return plan, " ".join(str(w.message) for w in said)


@pytest.mark.parametrize(
    ("value", "start"), [(torch.nan, START), (torch.inf, START), (3e38, None)], ids=str
)
def test_noises_that_fail_under_the_samplers_are_left_out(value, start, tmp_path):
    """Two that are fitted, and one held out: the others are fitted as well as without them."""
    plan, said = fitted(failing([5, 17, 50], value), start=start)
    assert "1 of 16 noises have no finite end under" in said
    assert "(seeds 150)" in said
    assert plan.fit["held_out"]["n"] == 15
    assert plan.fit["calibrated"]
    if start is None:
        mean, spread = log_ratio(MODEL, plan)
        assert mean + spread < -0.1
    plan.save(tmp_path / "plan.json")  # all of its figures are numbers


def test_noises_lost_in_the_fit_are_named():
    said = fitted(failing([5], after=0))[1]
    assert "1 of 64 noises have no finite solution (seeds 105)" in said
    said = fitted(failing(list(range(12))))[1]
    assert "noises met NaN or inf in the fit (seeds 1" in said


@pytest.mark.parametrize(
    ("bad", "after", "message"),
    [
        (range(48, 60), REFERENCE_CALLS, "12 of 16 noises have no finite end under .*seeds 148, 1"),
        (range(N), REFERENCE_CALLS, "16 of 16 noises have no finite end"),
        (range(40), 0, "40 of 64 noises have no finite solution.*returns? NaN or inf"),
    ],
    ids=["of those held out", "all", "of the solutions"],
)
def test_too_many_that_fail_are_an_error(bad, after, message):
    with pytest.raises(ValueError, match=message):
        fitted(failing(list(bad), after=after))


@pytest.mark.parametrize(
    ("low", "high", "value", "start"),
    [
        (0.2, 0.21, torch.nan, None),
        (2.5, 99.0, torch.nan, START),
        (0.2, 0.21, torch.inf, START),
        (0.0, 0.5, -1e30, None),
    ],
    ids=str,
)
def test_a_network_that_fails_in_places_has_a_plan(low, high, value, start):
    def net(x, t):
        return torch.where(((x > low) & (x < high)).any(1, keepdim=True), value, torch.tanh(2 * x))

    model = ddim_ode.Denoiser(net, SCHEDULE, "x0")
    plan, _ = fitted(model, shape=(2,), cond=None, start=start, nfe=4 if start else 3)
    held = plan.fit["held_out"]
    assert np.isfinite([held["before"], held["after"], plan.fit["reference_error"]]).all()
    assert held["after"] <= held["before"]


def test_features_that_fail_in_places():
    plan, said = fitted(MODEL, cond=None, features=lambda x: torch.log(x + 2.2))
    assert "have no finite solution" in said
    assert plan.fit["held_out"]["after"] <= plan.fit["held_out"]["before"]
