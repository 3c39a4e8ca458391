"""Where a solve starts and stops when nobody says: by what the network can tell, and by the data."""

import warnings

import numpy as np
import pytest
import torch
from erring import COVS, MEANS, erring, good
from problems import COSINE
from refusals import expect

import ddim_ode
from ddim_ode import Denoiser, grids, schedules
from ddim_ode._base.warn import Caution
from ddim_ode.solvers.methods import METHODS, get_method


@pytest.mark.parametrize(("T", "nfe", "prediction"), [(100, 12, "score"), (1000, 20, "eps")])
def test_every_method_starts_where_an_eps_network_can_tell(T, nfe, prediction):
    schedule, n = schedules.cosine(T), 100
    model = erring(schedule, prediction)
    x = ddim_ode.noise((2,), schedule, range(n))
    for method in METHODS:
        seeds = range(n) if METHODS[method].adds_noise else None
        sol = ddim_ode.sample(model, x, method, nfe=nfe, seeds=seeds)
        first = sol.sigmas[0] if sol.plan is not None else sol.sigmas[0][0]
        assert first == 80.0
        assert good(sol.x) > 0.9, method


def test_from_the_end_of_the_schedule_they_do_not():
    """What the rule is for: at σ(T) = 20,291 an error of 1 % in ε̂ is one of 200 in x̂₀."""
    model = erring(COSINE)
    x = ddim_ode.noise((2,), COSINE, range(300))
    with pytest.warns(Caution, match=r"sigma_max=20291.*start from sigma_max=80"):
        sol = ddim_ode.sample(model, x, "dpmpp2m", nfe=20, sigma_max=COSINE.sigma_max)
    assert good(sol.x) < 0.1


@pytest.mark.parametrize(
    ("schedule", "prediction", "start"),
    [
        (schedules.ddpm(), "eps", "top"),
        (schedules.exponential(), "score", "top"),
        (schedules.vp(), "eps", "top"),
        (COSINE, "v", "top"),
        (COSINE, "x0", "top"),
        (COSINE, "eps", 80.0),
        (COSINE, "score", 80.0),
        (schedules.cosine(T=100), "eps", 80.0),
        (schedules.exponential(rate=9.0), "eps", 80.0),
        (schedules.ddpm(beta_end=0.04), "eps", 80.0),
        (schedules.ve(1348.0), "score", "top"),
        (schedules.flow(), "flow", "top"),
    ],
)
def test_the_default_start_follows_from_schedule_and_prediction(schedule, prediction, start):
    model = Denoiser(lambda x, t: torch.zeros_like(x), schedule, prediction)
    assert model.sigma_max == (schedule.sigma_max if start == "top" else start)
    assert grids.default_start(schedule, prediction) == model.sigma_max


def test_a_network_without_error_starts_at_the_end_of_the_schedule():
    exact = ddim_ode.exact.gaussian_mixture([0.5, 0.5], MEANS, COVS, COSINE)
    assert exact.sigma_max == COSINE.sigma_max
    assert ddim_ode.exact.gaussian([0.0], [[1.0]], COSINE, sigma_max=50.0).sigma_max == 50.0


@pytest.mark.parametrize("start", [80.0, 30.0])
def test_everything_starts_there(start, tmp_path):
    model = erring(COSINE) if start == 80.0 else erring(COSINE, sigma_max=start)
    x = ddim_ode.noise((2,), COSINE, range(8))
    assert ddim_ode.sample(model, x, "rk45", nfe=20).sigmas[0][0] == start
    assert ddim_ode.sample(model, x, "torchdiffeq:euler", steps=4).sigmas[0] == start
    plan = ddim_ode.calibrate(model, 1, n=4, progress=False)
    assert plan.fit["sigma_range"][1] == pytest.approx(start)
    assert ddim_ode.encode(model, x / 10, "heun", steps=4).sigmas[-1] == start
    assert ddim_ode.log_likelihood(model, x / 10, rtol=1e-2, atol=1e-2).sigmas[1] == start
    flow = ddim_ode.ProbabilityFlow(model, variable="sigma")
    assert flow.span()[0] == start
    run = dict(n=4, method="ddim", nfe=4, key="erring", progress=False)
    made = ddim_ode.generate(model, out=tmp_path / "run", **run)
    x = ddim_ode.noise((2,), COSINE, range(4))
    ours = ddim_ode.sample(model, x, nfe=4, sigma_max=start).x
    torch.testing.assert_close(torch.cat([shard.x for shard in made.shards]), ours)


def test_a_comparison_starts_its_reference_there_too():
    model = erring(COSINE)
    found = ddim_ode.compare(model, ["unipc2", "dpmpp2m", "heun"], nfe=[20], n=48, progress=False)
    assert min(row["error"] for row in found.rows) < 0.07  # a tenth of the data's spread
    lower = ddim_ode.compare(model, ["unipc2"], nfe=[20], n=48, sigma_max=20.0, progress=False)
    x = ddim_ode.noise((2,), COSINE, range(48))
    truth = ddim_ode.sample(model, x.double(), "unipc3", steps=400, grid="karras", sigma_max=20.0).x
    ours = ddim_ode.sample(model, x, "unipc2", nfe=20, sigma_max=20.0).x
    error = (ours - truth).square().mean(dim=1).sqrt().mean()
    assert lower.rows[0]["error"] == pytest.approx(float(error), rel=1e-2)


WAYS_IN = {
    "sigma_max": dict(method="ddim", steps=4, sigma_max=2000.0),
    "grid": dict(method="ddim", grid=[2000.0, 10.0, 0.0]),
    "timesteps": dict(method="ddim", timesteps=[1000, 500]),
    "plan": dict(plan=ddim_ode.plan("ddim", COSINE, [2000.0, 10.0, 0.0])),
}


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_start_where_nothing_can_be_told_warns(way, prediction, recwarn):
    model = erring(COSINE, prediction)
    ddim_ode.sample(model, ddim_ode.noise((2,), COSINE, range(2)), **WAYS_IN[way])
    told = [str(w.message) for w in recwarn if "it is lost" in str(w.message)]
    assert len(told) == (prediction == "eps")


def test_a_denoiser_told_to_start_there_warns_once(recwarn):
    model = erring(COSINE, sigma_max=2000.0)
    assert len(recwarn) == 1
    ddim_ode.sample(model, ddim_ode.noise((2,), COSINE, range(2)), steps=2)
    assert not [w for w in recwarn.list[1:] if "it is lost" in str(w.message)]


@pytest.mark.parametrize("value", [0.0, -1.0, 1e9, np.nan, "high"])
def test_a_start_outside_the_schedule_is_refused(value):
    expect(lambda: erring(COSINE, sigma_max=value), "sigma_max")


def test_ends_larger_than_the_first_level_are_named():
    wild = Denoiser(lambda x, t: -900.0 * torch.ones_like(x), schedules.ddpm(), "eps")
    x = ddim_ode.noise((2,), wild.schedule, range(3))
    with pytest.warns(Caution, match=r"3 of 3 samples end at an RMS of up to .* far above σ=157.4"):
        ddim_ode.sample(wild, x, steps=5)


# -- the end on a schedule whose time is σ ---------------------------------------------------------
def test_two_valued_pixels_keep_their_spread_whatever_the_first_level():
    for top in (80.0, 1348.0):
        schedule = schedules.ve(top)
        model = ddim_ode.exact.gaussian_mixture(
            [0.5, 0.5], [[0.2], [0.8]], [[1e-4], [1e-4]], schedule
        )
        x = ddim_ode.noise((1,), schedule, range(200))
        spread = float(model.flow(x, top, 0.002).std())
        methods = [m for m in METHODS if get_method(m).multistep and get_method(m).order]
        for method in [*methods, "ddim", "heun"]:
            sol = ddim_ode.sample(model, x, method, nfe=20)
            assert float(sol.x.std()) == pytest.approx(spread, rel=0.03), (top, method)
        assert float(ddim_ode.sample(model, x, "rk45").x.std()) == pytest.approx(spread, rel=1e-3)
        (row,) = ddim_ode.compare(model, ["heun"], nfe=[20], n=32, progress=False).rows
        flowed = model.flow(x[:32].double(), top, 0.0)
        ours = ddim_ode.sample(model, x[:32], "heun", nfe=20).x
        assert row["error"] == pytest.approx(float((ours - flowed).abs().mean()), rel=0.05)


def test_training_times_of_ve_are_spread_over_the_orders_of_sigma():
    told = []

    def net(x, t):
        told.append(t)
        return torch.zeros_like(x)

    schedule = schedules.ve(1348.0, sigma_min=0.01)
    source = torch.Generator().manual_seed(0)
    ddim_ode.eps_loss(net, schedule, torch.zeros(4000, 1), generator=source)
    share = np.sort(np.log(told[0].numpy() / 0.01) / np.log(1348.0 / 0.01))
    assert abs(share - (np.arange(4000) + 0.5) / 4000).max() < 0.03  # Kolmogorov–Smirnov


def test_a_trapezoid_over_a_huge_sigma_is_warned_of():
    schedule = ddim_ode.schedules.from_alphas_cumprod(np.linspace(0.999, 1e-9, 1000))
    model = ddim_ode.exact.gaussian_mixture(
        [0.5, 0.5], [[-0.6], [0.6]], [[0.01], [0.01]], schedule, "v"
    )
    x = ddim_ode.noise((1,), schedule, range(200))
    with pytest.warns(UserWarning, match=r"heun steps in σ, from 3.162e\+04 .* chart='flow'"):
        off = ddim_ode.sample(model, x, "heun", nfe=20)
    assert float(off.x.std()) > 2  # of 0.61
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low = ddim_ode.noise((1,), schedule, range(200), sigma=80.0)
        for method, start, how in (
            ("heun", x, dict(chart="flow")),
            ("heun", low, dict(sigma_max=80.0)),
            ("midpoint", x, {}),
            ("rk4", x, {}),
        ):
            end = ddim_ode.sample(model, start, method, nfe=20, **how)
            assert abs(float(end.x.std()) - 0.61) < 0.06


# -- states that are none of the level ------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(nfe=5), dict(method="rk45"), dict(method="scipy:RK45")])
@pytest.mark.parametrize(
    ("schedule", "times"), [(schedules.ve(80.0), 1 / 80), (schedules.ddpm(), 10.0)]
)
def test_a_start_on_another_scale_is_warned_of(options, schedule, times):
    model = ddim_ode.exact.gaussian([0.5, -0.5], np.eye(2) / 4, schedule)
    x = ddim_ode.noise((2,), schedule, range(32))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*no state of that level")
        ddim_ode.sample(model, x, **options)
        lower = 10.0 if schedule.family == "ve" else 1.0  # an image of a larger scale, half noised
        ddim_ode.sample(model, 3 * x, sigma_max=lower, nfe=5)
        brief = ddim_ode.exact.gaussian([9.0, -9.0], np.eye(2), schedules.ddpm(T=20))
        ddim_ode.sample(brief, 9 * x / x.abs().mean(), nfe=5)  # a schedule that ends in signal
    for n in (32, 4):  # a few entries are enough where they are much too small
        if n == 32 or times < 1:
            with pytest.warns(UserWarning, match="this is no state of that level"):
                ddim_ode.sample(model, times * x[:n], **options)
