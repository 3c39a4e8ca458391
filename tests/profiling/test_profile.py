"""Profiles: what they cost, that their grids are better on noises they never saw, and where they go."""

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from peers import load as peer
from problems import COSINE, Counting, mixture_2d
from refusals import expect
from short_search import FULL, short_search

import ddim_ode
from ddim_ode import Denoiser, Profile, exact, schedules
from ddim_ode.profiling.screening import prior_share

N = 6


@pytest.fixture(autouse=True, scope="module")
def _short_search():
    with short_search():
        yield


def twelve(schedule=COSINE, prediction="eps"):
    """Twelve Gaussians in eight dimensions."""
    means, covs = np.random.default_rng(1).normal(size=(12, 8)), np.full((12, 8), 0.2)
    return exact.gaussian_mixture(np.ones(12) / 12, means, covs, schedule, prediction=prediction)


@pytest.fixture(scope="module")
def model():
    return twelve()


@pytest.fixture(scope="module")
def prof(model):
    return ddim_ode.profile(model, N, progress=False)


def error(model, truth, x, **options):
    end = ddim_ode.sample(model, x, **options).x
    return float((end - truth).square().mean(dim=1).sqrt().mean())


@pytest.mark.parametrize(
    "schedule", [COSINE, schedules.ve(60.0), schedules.flow()], ids=lambda s: s.family
)
def test_its_grids_are_better_than_the_default_on_noises_it_never_saw(schedule):
    model = twelve(schedule, "x0")
    with short_search(**FULL):
        found = ddim_ode.profile(model, N, progress=False)
    start = dict(sigma=model.sigma_max, dtype=torch.float64)
    x = ddim_ode.noise((8,), schedule, range(1000, 1040), **start)
    truth = ddim_ode.sample(model, x, "rk45", rtol=1e-7, atol=1e-7).x
    best = found.recommend(N)
    mine = error(model, truth, x, method=best.method, nfe=N, grid=found)
    default = error(model, truth, x, method=best.method, nfe=N)
    assert mine < 0.7 * default
    assert best.error < 3 * mine


def test_it_costs_what_it_says_and_asking_again_is_free():
    net = Counting(mixture_2d(COSINE).net)
    model = Denoiser(net, COSINE, shape=(2,))
    found = ddim_ode.profile(model, progress=False)
    assert net.rows == found.net_evals <= 8 * 60 + 2 * 88
    for nfe in (3, 5):
        before = net.rows
        levels = found.grid(nfe)
        assert net.rows == found.net_evals
        assert 0 < net.rows - before <= 8 * 12 * nfe
        before = net.rows
        np.testing.assert_array_equal(found.grid(nfe), levels)
        found.grid(nfe, method="unipc2"), found.recommend(nfe), found.grid(nfe, sigma_max=5.0)
        assert net.rows == before


def test_it_comes_back_from_disk_and_goes_on_without_its_model(prof, tmp_path):
    prof.save(tmp_path / "p.json")
    back = Profile.load(tmp_path / "p.json")
    assert back.to_json() == prof.to_json()
    assert back.describe() == prof.describe()
    assert f"{N} calls" in prof.describe()
    for method in (None, "unipc2", "heun"):  # the best, one that was tried, one that was not
        np.testing.assert_array_equal(back.grid(N, method=method), prof.grid(N, method=method))
    other = back.recommend(N + 3)
    assert not other.measured
    assert len(other.levels) - 1 <= N + 3
    assert (tmp_path / "p.json").stat().st_size < 100_000


@pytest.mark.parametrize("n", [1, 3, 12])
def test_a_screen_costs_twelve_calls_a_noise_at_most(model, n):
    found = ddim_ode.profile(model, 4, n=n, progress=False)
    assert 0 < found.screens[4].net_evals <= 12 * 4 * n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format="ddim_ode plan"), "format must be 'ddim_ode profile'"),
        (lambda v: v.update(version=9), "version=9 .*update"),
        (lambda v: v.pop("gram"), "'gram' is missing"),
        (lambda v: v.update(more=1), "'more' is missing, or unknown"),
        (lambda v: v["gram"][3].__setitem__(0, 7.0), "altered or damaged"),
        (lambda v: v["screens"].clear(), "altered or damaged"),
    ],
)
def test_a_damaged_file_is_refused(prof, change, message):
    values = json.loads(prof.to_json())
    change(values)
    expect(lambda: Profile.from_json(json.dumps(values), "p.json"), f"p.json: .*{message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["levels"].reverse(), "does not fall"),
        (lambda v: v["levels"].pop(), "gram must be"),
        (lambda v: v["gain"].__setitem__(0, "x"), "gain"),
        (lambda v: v["about"].update(n="8"), "about.n"),
        (lambda v: v["about"].pop("seed"), "about must be"),
        (lambda v: v["screens"][0].update(nfe=0), r"screens\[0\].nfe"),
        (lambda v: v["screens"][0]["tried"][0].update(method="os"), "unknown .*method"),
        (lambda v: v["screens"][0]["tried"][0].update(levels=[1.0, 2.0]), "does not fall below"),
        (lambda v: v["schedule"].update(name="nothing"), "nothing"),
        (lambda v: v.update(schedule=[]), "schedule=.* must have a name"),
        (lambda v: v.update(gram=5), "gram must be"),
        (lambda v: v["gram"][2].__setitem__(1, True), r"gram\[2\] must be a list of numbers"),
        (lambda v: v["gain"].__setitem__(1, 1e300), "gain and response must be at most"),
        (lambda v: v["levels"].__setitem__(1, v["levels"][0] * (1 - 1e-15)), "levels"),
        (lambda v: v["about"].update(model="x\x1b[31m"), "about.model"),
        (lambda v: v["about"].update(n=True), "about.n"),
        (lambda v: v["screens"][0]["tried"][0].update(method="ddpm"), "unknown .*method"),
        (lambda v: v["screens"][0]["tried"][0].update(error=-1.0), "error=-1.0 must be"),
        (lambda v: v["screens"][0]["tried"][0].update(levels=[9.0, 1.0, 0.0]), "from σ="),
        (lambda v: v.update(screens=[5]), "screens must be"),
    ],
)
def test_numbers_that_are_no_profile_are_refused(prof, change, message):
    """Also with a checksum that fits."""
    from ddim_ode._base.digests import digest

    values = json.loads(prof.to_json())
    values.pop("sha256")
    change(values)
    expect(lambda: Profile.from_json(json.dumps(dict(values, sha256=digest(values)))), message)


def test_grids_of_other_ends(model, prof):
    low = prof.grid(5, method="unipc2", sigma_max=10.0)
    assert low[0] == 10.0
    assert (np.diff(low) < 0).all()
    stops = prof.grid(5, method="unipc2", final="sigma_min", sigma_min=0.1)
    assert (len(stops), stops[-1]) == (6, 0.1)
    assert prof.grid(5, sigma_min=0.02)[-2] == 0.02
    lower = ddim_ode.profile(model, sigma_max=80.0, progress=False)
    expect(lambda: lower.grid(5, sigma_max=1000.0), "sigma_max=1000 is above .*another")
    # as messages write a level, it may be a little more
    assert lower.grid(5, sigma_max=80.0 * (1 + 5e-6))[0] == 80.0
    expect(lambda: lower.grid(5, sigma_max=80.01), "is above .*another")
    assert lower.grid(5)[0] == 80
    expect(lambda: prof.grid(0), "steps=0")
    assert len(prof.grid(1)) == 2
    assert prof.grid(4, order=1)[-1] == 0


def test_everything_that_takes_a_grid_takes_a_profile(model, prof, tmp_path):
    x = ddim_ode.noise((8,), COSINE, range(3), sigma=model.sigma_max)
    sol = ddim_ode.sample(model, x, "unipc2", nfe=N, grid=prof)
    assert sol.grid == "profile"
    np.testing.assert_array_equal(sol.sigmas, prof.grid(N, method="unipc2"))
    assert ddim_ode.plan_for(model, "unipc2", nfe=N, grid=prof) == sol.plan
    assert ddim_ode.sample(model, x, "heun", nfe=9, grid=prof).nfe == 9
    up = ddim_ode.encode(model, x, "unipc2", steps=N, grid=prof)
    assert up.sigmas[-1] == model.sigma_max
    r = ddim_ode.compare(model, ["unipc2"], [N], n=8, seed=8, grid=[prof, "time"], progress=False)
    errors = {row["grid"]: row["error"] for row in r.rows}
    assert errors["profile"] < errors["time"]
    run = ddim_ode.generate(model, 2, tmp_path / "run", "unipc2", nfe=N, grid=prof, progress=False)
    assert run.status == {"success": 2}


def test_a_model_with_a_profile_steps_on_it_by_itself(model, prof):
    x = ddim_ode.noise((8,), COSINE, range(2), sigma=model.sigma_max)
    own = model.replace(profile=prof)
    sol = ddim_ode.sample(own, x, "unipc2", nfe=N)
    assert sol.grid == "profile"
    assert sol.plan == ddim_ode.plan_for(model, "unipc2", nfe=N, grid=prof)
    assert ddim_ode.sample(own, x, "unipc2", nfe=N, grid="time").grid == "time"
    assert ddim_ode.sample(own, x, "rk45").plan is None
    assert ddim_ode.sample(model, x, "unipc2", nfe=N).grid == "trailing"
    assert ddim_ode.sample(model, x, "unipc2", grid=[5.0, 1.0, 0.0]).grid is None


def test_levels_of_a_snapped_model_are_trained_ones_and_distinct():
    model = mixture_2d(schedules.ddpm(T=12)).replace(snap=True)
    prof = ddim_ode.profile(model, progress=False)
    for steps in (5, 11):
        plan = ddim_ode.plan_for(model, "dpmpp2m", steps=steps, grid=prof)
        times = model.schedule.time(np.array(plan.grid[:-1]))
        assert times.tolist() == np.unique(np.rint(times))[::-1].tolist()
    expect(lambda: ddim_ode.plan_for(model, "dpmpp2m", steps=13, grid=prof), "snap=True: 13 levels")


def test_a_recommendation_prints_what_to_sample_with(prof):
    best = prof.recommend(5)
    assert str(best).startswith(f"{best.method} at σ = {best.levels[0]:.3g}, ")
    assert str(best).endswith(f", 0: error {best.error:.3g}, measured")


def test_noises_without_an_end_are_left_out_and_most_of_them_are_refused(model):
    def some(x, t):
        bad = (x[:, :1] > 0.5) & (t[:, None] < 50)
        return torch.where(bad, torch.nan, model.net(x, t))

    with pytest.warns(UserWarning, match=r"of 12 noises have no finite end \(seeds "):
        found = ddim_ode.profile(Denoiser(some, COSINE, shape=(8,)), 5, n=12, progress=False)
    assert 0 < max(tried.n for tried in found.screens[5].tried) < 12
    nowhere = Denoiser(lambda x, t: x * torch.nan, COSINE, shape=(8,))
    expect(lambda: ddim_ode.profile(nowhere, progress=False), "NaN or inf; ask ddim_ode.diagnose")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: ddim_ode.profile(m, n=0, progress=False), "n=0"),
        (lambda m, p: ddim_ode.profile(m, "five", progress=False), "nfe"),
        (lambda m, p: ddim_ode.profile(3, progress=False), "model must be a Denoiser"),
        (lambda m, p: Denoiser(m.net, schedules.ddpm(), profile=p), "the profile is of .*cosine"),
        (
            lambda m, p: Denoiser(m.net, COSINE, profile="p.json"),
            "profile must be a ddim_ode.Profile",
        ),
        (
            lambda m, p: ddim_ode.plan_for(twelve(schedules.ddpm()), "unipc2", nfe=5, grid=p),
            "the profile is of .*make one",
        ),
        (lambda m, p: p.grid(5, method="nothing"), "unknown method"),
        (lambda m, p: p.grid(5, nfe=-1), "nfe=-1"),
        (lambda m, p: p.recommend(10**7), "nfe=10000000 .*<= 1000"),
        (lambda m, p: p.grid(5, sigma_max=1e-4), "sigma_max=0.0001 must be above"),
        (lambda m, p: Profile.from_json(3), "must be a profile's text"),
        (
            lambda m, p: ddim_ode.compare(m, "unipc2", 5, n=2, grid=[p, copy.copy(p)]),
            "two profiles",
        ),
        (lambda m, p: ddim_ode.sample(m, torch.ones(1, 8), "unipc2", grid=p), "steps= or nfe="),
    ],
)
def test_each_mistake_says_what_to_change(model, prof, call, message):
    expect(lambda: call(model, prof), message)


def test_a_pipeline_s_scheduler_steps_on_it(prof, model):
    peer("diffusers")
    from diffusers import DDIMScheduler

    from ddim_ode.interop.diffusers import DDIMODEScheduler

    linear = twelve(schedules.ddpm())
    own = ddim_ode.profile(linear, N, progress=False)
    config = DDIMScheduler(beta_schedule="linear").config
    scheduler = DDIMODEScheduler.from_config(config, method="unipc2", profile=own)
    scheduler = DDIMODEScheduler.from_config(json.loads(scheduler.to_json_string()))
    scheduler.set_timesteps(N)
    expected = linear.schedule.time(own.grid(N, method="unipc2")[:-1]) - 1
    np.testing.assert_allclose(scheduler.timesteps.numpy(), expected, rtol=1e-5)
    other = lambda: DDIMODEScheduler.from_config(config, profile=prof)  # noqa: E731
    expect(other, "the profile is of")


def test_the_command_makes_one_that_the_others_take(tmp_path, capsys, monkeypatch):
    from ddim_ode.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["profile", "mixture", "--nfe", "5", "--quiet", "--out", "p.json"]) == 0
    assert "--grid p.json" in capsys.readouterr().out
    assert Profile.load("p.json").screens.keys() == {5}
    small = ["generate", "-n", "2", "--model", "mixture", "--method", "unipc2", "--nfe", "5"]
    assert main([*small, "--quiet", "--grid", "p.json", "--out", "a"]) == 0
    assert main([*small, "--quiet", "--grid", "model", "--out", "b"]) == 0
    assert len([*(tmp_path / "cache" / "ddim_ode").glob("profile-*.json")]) == 1
    next((tmp_path / "cache" / "ddim_ode").glob("*.json")).write_text("{")
    assert main([*small, "--quiet", "--grid", "model", "--out", "d"]) == 0
    assert "made anew" in capsys.readouterr().err
    assert main([*small, "--quiet", "--grid", "none.json", "--out", "c"]) == 2
    assert "none.json: no such profile file" in capsys.readouterr().err


def test_a_profile_goes_to_other_processes_without_its_model(model, prof):
    own = model.replace(profile=prof)
    for back in (pickle.loads(pickle.dumps(prof)), copy.deepcopy(prof)):
        assert back.to_json() == prof.to_json()
        assert back.screener is None
    again = pickle.loads(pickle.dumps(own))
    x = ddim_ode.noise((8,), COSINE, range(2), sigma=model.sigma_max)
    torch.testing.assert_close(
        ddim_ode.sample(again, x, "unipc2", nfe=N).x, ddim_ode.sample(own, x, "unipc2", nfe=N).x
    )


def test_a_solve_by_default_never_calls_the_network_for_its_grid(model):
    found = ddim_ode.profile(model, progress=False)
    x = ddim_ode.noise((8,), COSINE, range(2), sigma=model.sigma_max)
    before = found.net_evals
    ddim_ode.sample(model.replace(profile=found), x, "unipc2", nfe=7)
    assert found.net_evals == before
    ddim_ode.sample(model, x, "unipc2", nfe=7, grid=found)
    assert found.net_evals > before
    assert len(found.grid(101, method="unipc2")) == 102  # made, and not tried
    assert 101 not in found.screens


@pytest.mark.parametrize(
    "other",
    [
        lambda m: exact.gaussian([30.0] * 8, np.eye(8), COSINE),
        lambda m: twelve(prediction="v"),
        lambda m: Denoiser(m.net, COSINE, clip=0.5),
    ],
)
def test_another_model_s_profile_is_warned_of_once(model, prof, other):
    another = other(model)
    with pytest.warns(UserWarning, match="profile is of another model"):
        ddim_ode.plan_for(another, "unipc2", nfe=N, grid=prof)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ddim_ode.plan_for(another, "unipc2", nfe=N, grid=prof)
        ddim_ode.plan_for(model, "unipc2", nfe=N, grid=prof)


def test_compare_says_that_it_measures_on_the_profile_s_own_noises(model, prof):
    options = dict(n=4, grid=prof, progress=False)
    with pytest.warns(UserWarning, match="chosen on noises of seeds 0 to 7, and 4 .* seed=8"):
        ddim_ode.compare(model, ["unipc2"], [N], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ddim_ode.compare(model, ["unipc2"], [N], seed=8, **options)


def test_a_profile_that_starts_lower_is_refused_where_it_would_be_left_aside(model):
    low = ddim_ode.profile(model, sigma_max=20.0, progress=False)
    expect(lambda: Denoiser(model.net, COSINE, profile=low), "starts at σ=20 .*sigma_max=20")
    own = Denoiser(model.net, COSINE, profile=low, sigma_max=20.0, shape=(8,))
    x = ddim_ode.noise((8,), COSINE, range(2), sigma=20.0)
    assert ddim_ode.sample(own, x, "unipc2", nfe=4).grid == "profile"


def test_ends_that_are_no_better_than_what_they_judge_are_warned_of():
    """A network that is rough in t converges nowhere near what a few calls resolve."""
    rough = lambda x, t: torch.tanh(x) * (1 + 0.5 * torch.sin(37.0 * t))[:, None]  # noqa: E731
    with pytest.warns(UserWarning, match="nfe=60: .* is not sure"):
        ddim_ode.profile(Denoiser(rough, COSINE, "x0", shape=(4,)), 60, progress=False)


def test_ends_that_a_check_finds_off_are_solved_anew_before_they_judge():
    """44 calls of any solver err by more than the best of 20 there, and say that they do not."""
    fast = lambda x, t: torch.tanh(x) * (1 + 0.3 * torch.sin(t / 10))[:, None]  # noqa: E731
    model = Denoiser(fast, COSINE, "x0", shape=(2,))
    x = ddim_ode.noise((2,), COSINE, range(8), model.sigma_max)
    true = ddim_ode.sample(model, x, "heun", nfe=1000, grid="log_snr").x
    with short_search(**FULL):
        found = ddim_ode.profile(model, 20, progress=False)
    assert found.about["solver"].split(", ")[1] in ("88 calls", "176 calls")
    best = found.recommend(20)
    end = ddim_ode.sample(model, x, best.method, grid=best.levels).x
    error = float((end - true).square().mean(1).sqrt().mean())
    assert abs(error - best.error) <= 2 * found.about["reference_error"]


# -- the surrogate's share in the ranking -----------------------------------------------------------


def share_of(missed, sampled, n=8, candidates=24, seed=0):
    """Of candidates that the surrogate misses by a factor of spread exp(missed), each measured by n noises
    that differ by a factor of spread exp(sampled), beside what is common to all."""
    rng = np.random.default_rng(seed)
    surprise = missed * rng.standard_normal(candidates)
    common, own = rng.standard_normal((1, n)), sampled * rng.standard_normal((candidates, n))
    errors = np.exp(surprise[:, None] + 0.5 * common + own)
    return prior_share(
        errors, np.log(errors.mean(axis=1))
    )  # every candidate is expected to err by 1


@pytest.mark.parametrize(("missed", "sampled"), [(0.3, 0.3), (0.5, 0.3), (0.3, 0.1)])
def test_the_surrogate_has_the_share_of_the_better_known_estimate(missed, sampled):
    best = sampled**2 / 8 / (sampled**2 / 8 + missed**2)
    found = np.mean([share_of(missed, sampled, seed=seed) for seed in range(50)])
    assert found == pytest.approx(best, rel=0.3, abs=0.01)


def test_the_surrogate_has_half_of_the_word_at_most_and_little_beside_one_noise():
    assert share_of(0.0, 0.3) == 0.5
    assert share_of(0.3, 0.3, n=1) == share_of(0.3, 0.3, candidates=1) == 0.15
