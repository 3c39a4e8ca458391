"""Calibration to real data and in features: the distance, what a fit gains, what decides, what reports."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import ddim_ode
from ddim_ode.calibration.family import Linear
from ddim_ode.calibration.fitting import Fitting
from ddim_ode.calibration.matching import Matching, Response
from ddim_ode.calibration.objectives import (
    change,
    deciding,
    pull,
    random_features,
    reporting,
    scale_notes,
    squared_energy,
)
from ddim_ode.evaluate.energy import energy_distance
from ddim_ode.evaluate.features import IDENTITY

SCHEDULE = ddim_ode.schedules.cosine()
WRONG = ddim_ode.exact.gaussian([0.3] * 4, 0.25 * np.eye(4), SCHEDULE)
SHAPE = (4,)


def real(n=800, seed=0, mean=0.6, std=0.2):
    return mean + std * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def made(plan, model=WRONG, seeds=range(9000, 9600)):
    x = ddim_ode.noise(SHAPE, SCHEDULE, seeds)
    return ddim_ode.sample(model, x, plan=plan).x.double().numpy()


@pytest.fixture(scope="module")
def solution():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ddim_ode.calibrate(WRONG, 3, n=32, shape=SHAPE, progress=False)


def to_data(start, model=WRONG, **options):
    given = dict(nfe=3, objective="data", data=real(), n=150)
    given |= dict(shape=SHAPE, progress=False, start=start)
    return ddim_ode.calibrate(model, **(given | options))


# -- the distance --------------------------------------------------------------------------------
@pytest.mark.parametrize("dimension", [1, 3, 40])
def test_the_derivative_of_the_distance(dimension):
    """Against central differences, and the value against the energy distance of all pairs."""
    draw = np.random.default_rng(dimension)
    x, y = draw.normal(size=(7, dimension)), draw.normal(1.0, 2.0, size=(11, dimension))
    value, slope = pull(x, y)
    within = np.linalg.norm(y[:, None] - y, axis=2).sum() / (11 * 10)
    assert value - within == pytest.approx(squared_energy(x, y), abs=1e-9)
    for i, j in ((0, 0), (3, dimension - 1), (6, dimension // 2)):
        step = np.zeros_like(x)
        step[i, j] = 1e-5
        difference = (pull(x + step, y)[0] - pull(x - step, y)[0]) / 2e-5
        assert difference == pytest.approx(slope[i, j], rel=1e-5, abs=1e-8)


def test_the_distance_is_without_bias_and_zero_on_equal_distributions():
    draw = np.random.default_rng(0)
    values = [squared_energy(*draw.normal(size=(2, 40, 3))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    far = squared_energy(draw.normal(size=(900, 3)), draw.normal(1.0, 1.0, size=(900, 3)))
    assert far == pytest.approx(
        energy_distance(draw.normal(size=(900, 3)), draw.normal(1.0, 1.0, size=(900, 3))) ** 2,
        rel=0.1,
    )


def test_a_point_that_repeats_has_a_derivative():
    x = np.zeros((3, 2))
    value, slope = pull(x, np.array([[0.0, 0.0], [3.0, 4.0]]))
    assert value == pytest.approx(5.0)
    assert np.allclose(slope, [[-0.2, -4 / 15]] * 3)


def test_a_change_has_its_interval():
    """Over draws of noises and data, the interval holds the mean change about as often as it says."""
    draw = np.random.default_rng(1)
    held, mean = [], []
    for _ in range(150):
        x, y = draw.normal(size=(60, 2)), draw.normal(0.5, 1.0, size=(80, 2))
        held.append(change(x, x + 0.1, y))
        mean.append(held[-1][0])
    inside = [abs(value - np.mean(mean)) < half for value, half in held]
    assert 0.88 < np.mean(inside) <= 1.0
    assert np.mean([half for _, half in held]) < 3 * np.std(mean)


def test_a_bound_of_a_step_is_kept_and_the_others_go_where_is_best_with_it():
    """Two parameters that each move one feature: one is held, the other is as without it."""
    draw = np.random.default_rng(2)
    rows, data = draw.normal(size=(80, 2)), draw.normal(0.4, 1.0, size=(300, 2))
    slopes = np.stack([np.tile(np.eye(2)[k], 80) for k in range(2)])
    wide = (np.full(2, -np.inf), np.full(2, np.inf))
    narrow = (np.array([-np.inf, 0.0]), np.array([np.inf, 0.1]))
    free, bounded = (
        Response(rows, slopes, np.eye(2), data, np.zeros(2), bounds).step(1e-3)
        for bounds in (wide, narrow)
    )
    assert free == pytest.approx([0.4, 0.4], abs=0.25)
    assert bounded[1] == 0.1 < free[1]
    inner = Response(rows, slopes, np.eye(2), data, np.zeros(2), narrow)
    nearby = [inner.distance(bounded + [h, 0.0])[0] for h in (-0.05, 0.0, 0.05)]
    assert nearby[1] < min(nearby[0], nearby[2])


# -- features --------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 8), (4, 1, 1), (5,), (2, 3), ()])
def test_features_that_decide_are_never_those_that_report(shape):
    like = 3 + 5 * torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    first = deciding(None, like)
    others = reporting(like, first.function)
    assert [other.name for other in others] == ["samples", random_features(like, 1).name]
    assert first.name not in {other.name for other in others}
    for decides in (lambda x: x, None):
        names = [other.name for other in reporting(like, decides)]
        assert names == [random_features(like, seed).name for seed in (1, 2)]
    for seen in (first, *others):
        rows = seen.rows(like, 4)
        assert rows.shape[0] == 6
        assert np.isfinite(rows).all()
        assert np.std(rows, axis=0).max() > 0
    assert ("classifier" in first.name) == (shape == (1, 28, 28))
    assert np.array_equal(others[1].rows(like, 6), random_features(like, 1).rows(like, 6))


# -- fits ------------------------------------------------------------------------------------------
def test_a_fit_to_data_goes_where_the_model_itself_is_wrong(solution, tmp_path):
    """A Gaussian of another mean and width: on unseen noises and data, nearer by far."""
    plan = to_data(solution)
    fit, others = plan.fit["data"], real(1500, seed=1).double().numpy()
    before, after = (squared_energy(made(p), others) for p in (solution, plan))
    assert after < 0.1 * before
    assert fit["matched"]
    assert fit["held_out"]["high"] < 0
    assert (plan.fit["objective"], fit["features"]) == ("data", "random layer, seed 0")
    assert set(fit["unseen"]) == {"samples", "random layer, seed 1"}
    assert all(one["low"] <= one["change"] <= one["high"] for one in fit["unseen"].values())
    assert fit["unseen"]["samples"]["after"] < 0.1 * fit["unseen"]["samples"]["before"]
    plan.save(tmp_path / "plan.json")
    assert ddim_ode.Plan.load(tmp_path / "plan.json") == plan
    lines = plan.describe()
    assert "unseen     samples " in lines
    assert "squared distance" in lines
    assert to_data(solution).ops == plan.ops  # the same seed, the same plan


def test_data_that_the_solution_plan_made_keep_it(solution):
    data = torch.from_numpy(made(solution, seeds=range(20_000, 21_500)))
    with pytest.warns(UserWarning, match="no plan is nearer to the data"):
        plan = to_data(solution, data=data)
    assert plan.ops == solution.ops
    assert not plan.fit["data"]["matched"]
    assert all(one["change"] == 0 for one in plan.fit["data"]["unseen"].values())
    assert plan.fit["held_out"] == solution.fit["held_out"]


def test_conditions_guidance_several_budgets_and_features_of_the_caller():
    def net(x, t, shift):  # a Gaussian of mean 0.3 and std 0.5, moved
        alpha, sigma = (
            torch.as_tensor(f(t.double().numpy())).to(x)[:, None]
            for f in (SCHEDULE.alpha_bar, SCHEDULE.sigma)
        )
        return WRONG.net(x - alpha * shift, sigma[:, 0])

    model = ddim_ode.Denoiser(net, SCHEDULE, guidance=ddim_ode.Guidance(1.5, null={"shift": 0.0}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plans = ddim_ode.calibrate(
            model,
            [1, 2],
            objective="data",
            data=real(mean=0.7),
            shape=SHAPE,
            n=60,
            cond=lambda i: {"shift": (0.1 * (i % 3 - 1.0))[:, None].expand(-1, 4).float()},
            features=IDENTITY,
            progress=False,
        )
    assert list(plans) == [1, 2]
    for nfe, plan in plans.items():
        assert plan.nfe == nfe
        assert plan.fit["guidance"] == 1.5
        assert plan.fit["data"]["features"] == "identity"
        held = plan.fit["data"]["held_out"]
        assert held["after"] < 0.3 * held["before"]


def test_what_is_counted_is_what_the_network_did(solution):
    calls, inner = 0, WRONG.net

    def counted(x, t):
        nonlocal calls
        calls += len(x)
        return inner(x, t)

    model = ddim_ode.exact.gaussian([0.3] * 4, 0.25 * np.eye(4), SCHEDULE)
    model.net = counted
    whole = Fitting(model, *2 * [ddim_ode.noise(SHAPE, SCHEDULE, range(60))])
    spent = []
    plan = Matching(whole, real(), deciding(None, real()), "fast", spent.append).plan(solution)
    assert calls == sum(spent) == plan.fit["data"]["net_evals"]


def test_a_solution_in_features_reports_what_it_did_not_see():
    rng = np.random.default_rng(5)
    means, covs = rng.normal(size=(4, 4)), rng.uniform(0.02, 0.3, size=(4, 4))
    model = ddim_ode.exact.gaussian_mixture([0.25] * 4, means, covs, SCHEDULE)
    plan = ddim_ode.calibrate(model, 3, objective="features", n=32, progress=False)
    assert plan.fit["objective"] == "features"
    assert plan.fit["features"]
    assert plan.fit["calibrated"]
    assert set(plan.fit["unseen"]) == {"samples", "random layer, seed 1"}
    assert all(one["high"] < 0 for one in plan.fit["unseen"].values())


# -- mistakes --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(objective="pictures"), "unknown objective 'pictures'; valid, nearest first: .*data"),
        (dict(objective="solution"), "objective='solution' takes no data; drop data="),
        (dict(objective="features"), "objective='features' takes no data"),
        (dict(data=None), "pass data=x0"),
        (dict(data="fashion-mnist"), "data must be a dense tensor"),
        (dict(data=torch.zeros(100, 3)), r"data has shape \(100, 3\), but must be \(N, 4\)"),
        (dict(data=torch.zeros(4)), r"data has shape \(4,\)"),
        (dict(data=torch.zeros(63, 4)), "data has 63 samples, but must have at least 64"),
        (dict(data=torch.zeros(0, 4)), "data has 0 samples"),
        (dict(data=torch.full((99, 4), torch.nan)), "data has NaN or inf in 99 of 99"),
        (dict(data=real().index_fill(0, torch.tensor([3]), torch.inf)), "in 1 of 800 samples"),
        (dict(data=torch.zeros(99, 4, dtype=torch.uint8)), "data is of torch.uint8.*127.5"),
        (dict(data=60 * real() + 127.5), "data has mean .* must be in the model's scale .*127.5"),
        (dict(data=1e-30 * real()), "data has mean .* must be in the model's scale"),
        (dict(data=torch.ones(99, 4)), "data are 99 times the same sample"),
        (dict(n=47), "n=47 must be a whole number >= 48"),
        (dict(features=3), "features=3 must be callable"),
        (dict(features=lambda x: x.mean()), r"got torch.float32 of shape \(\)"),
        (dict(features=lambda x: x / 0), "are NaN or inf for 800 of 800 finite samples"),
        (dict(features=lambda x: x.repeat(1, 3000)), "features has 12000 numbers"),
        (dict(nfe=4), "start has nfe 3"),
    ],
)
def test_mistakes_in_objective_and_data_are_named(solution, options, message):
    with pytest.raises(ValueError, match=message):
        to_data(solution, **options)


@pytest.mark.parametrize(("data", "notes"), [(real(), 0), (3 * real(), 1), (real() + 1.0, 1)])
def test_data_of_another_size_or_mean_is_told(data, notes):
    assert len(scale_notes(data, real(400))) == notes


def test_a_network_that_is_lost_on_most_noises_is_an_error(solution):
    model = ddim_ode.exact.gaussian([0.3] * 4, 0.25 * np.eye(4), SCHEDULE)
    model.net = lambda x, t: torch.full_like(x, torch.nan)
    x = ddim_ode.noise(SHAPE, SCHEDULE, range(60))
    whole = Matching(Fitting(model, x, x), real(), deciding(None, real()), "fast")
    with pytest.raises(ValueError, match="60 of 60 noises have no finite end"):
        whole.plan(solution)


def test_features_that_fail_in_places_lose_those_noises(solution):
    with pytest.warns(UserWarning, match="noises have no finite end and are left out"):
        plan = to_data(solution, features=lambda x: torch.log(x + 0.6))
    assert plan.fit["data"]["held_out"]["n"] < 50
    assert np.isfinite(list(plan.fit["data"]["held_out"].values())).all()


def test_noises_that_are_lost_are_left_out(solution):
    """A network that fails for large states: those noises take no part, and the rest is fitted."""
    model = ddim_ode.exact.gaussian([0.3] * 4, 0.25 * np.eye(4), SCHEDULE)
    inner = model.net
    model.net = lambda x, t: torch.where((x > 2.2).any(1, keepdim=True), torch.nan, inner(x, t))
    x = ddim_ode.noise(SHAPE, SCHEDULE, range(150))
    whole = Matching(Fitting(model, x, x), real(), deciding(None, real()), "fast")
    with pytest.warns(UserWarning, match="of 150 noises have no finite end and are left out"):
        plan = whole.plan(solution)
    assert plan.fit["data"]["held_out"]["n"] < 50
    assert plan.fit["data"]["matched"]
    assert Linear.of(plan).falls
