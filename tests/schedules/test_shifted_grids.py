"""The grids of flow-matching models, against the arithmetic of where they come from."""

import numpy as np
import pytest
import torch
from peers import load as peer
from problems import DDPM, SCHEDULES, mixture_1d, points
from refusals import expect

import ddim_ode
from ddim_ode import grids, schedules
from ddim_ode.comparison.jobs import Entry, jobs
from ddim_ode.solvers.methods import get_method

FLOW = schedules.flow()
OPEN = ["shifted", "beta", "linear_quadratic", "sgm_uniform"]


def share(sigma):
    """σ of flow-matching models, which is t of ``schedules.flow``."""
    return FLOW.time(sigma)


def theirs(steps, mu=None, sigmas=None, **config):
    diffusers = peer("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    if sigmas is None:
        sigmas = np.linspace(1, 1 / steps, steps)  # what the pipelines hand over
    scheduler.set_timesteps(sigmas=sigmas.tolist(), mu=mu)
    return scheduler.sigmas.numpy()


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_shift_is_that_of_diffusers(shift, steps):
    ours = grids.shifted(FLOW, steps, shift)
    np.testing.assert_allclose(share(ours), theirs(steps, shift=shift), atol=1e-6)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("mu", [0.5, 1.15, 2.3])
def test_dynamic_shift_is_that_of_diffusers(mu, kind):
    ours = grids.shifted(FLOW, 8, mu=mu, time_shift=kind)
    expected = theirs(8, mu=mu, use_dynamic_shifting=True, time_shift_type=kind)
    np.testing.assert_allclose(share(ours), expected, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_beta_is_that_of_diffusers_between_the_same_ends(shift):
    expected = theirs(9, sigmas=np.linspace(1, 0.002, 9), shift=shift, use_beta_sigmas=True)
    cut = FLOW.sigma(float(expected[-2]))
    ours = grids.beta(FLOW, 9, sigma_min=cut)
    np.testing.assert_allclose(share(ours), expected, atol=1e-6)


@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.6), (0.5, 0.7)])
def test_beta_puts_quantiles_at_even_steps(steps, alpha, beta):
    from scipy import stats

    ours = grids.beta(FLOW, steps, alpha, beta)
    published = stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), alpha, beta)
    np.testing.assert_allclose(share(ours), np.append(published, 0), atol=1e-9)


@pytest.mark.parametrize("threshold", [0.025, 0.1])
@pytest.mark.parametrize("steps", [2, 3, 8, 29, 64])
def test_linear_quadratic_is_that_of_mochi(steps, threshold):
    theirs = peer("diffusers.pipelines.mochi.pipeline_mochi")
    ours = grids.linear_quadratic(FLOW, steps, threshold)
    expected = theirs.linear_quadratic_schedule(steps, threshold)
    np.testing.assert_allclose(share(ours), [*expected, 0.0], atol=1e-6)


@pytest.mark.parametrize("steps", [3, 9, 27, 37])
def test_sgm_uniform_is_even_in_the_indices_of_the_network(steps):
    """linspace over the indices T−1 … 0, less the last. Steps that divide T−1 fall on trained levels;
    between those, codes that interpolate ln σ in t differ from this one, which does so with ln ᾱ."""
    indices = np.linspace(999, 0, steps + 1)[:-1]
    expected = [DDPM.sigma(index + 1) for index in indices]
    np.testing.assert_allclose(grids.sgm_uniform(DDPM, steps), [*expected, 0.0], rtol=1e-9)


def test_sgm_uniform_of_a_flow_model_ends_a_step_above_a_thousandth():
    expected = np.linspace(1.0, 1e-3, 9)[:-1]
    np.testing.assert_allclose(share(grids.sgm_uniform(FLOW, 8)), [*expected, 0.0], atol=1e-12)


@pytest.mark.parametrize("ends", [(14.6, 0.03), (80.0, 0.002)])
@pytest.mark.parametrize("n", [2, 7, 30])
def test_kl_optimal_is_even_in_the_arctangent(n, ends):
    i = np.arange(n) / (n - 1)
    published = np.tan(i * np.arctan(ends[1]) + (1 - i) * np.arctan(ends[0]))
    ours = grids.kl_optimal(schedules.ve(80.0), n, sigma_max=ends[0], sigma_min=ends[1])
    np.testing.assert_allclose(ours, [*published, 0.0], rtol=1e-9)


def test_kl_optimal_starts_at_infinity_where_no_other_grid_in_sigma_does():
    grid = grids.kl_optimal(FLOW, 8)
    assert grid[0] == np.inf
    np.testing.assert_allclose(np.diff(np.arctan(grid[:-1])), np.diff(np.arctan(grid[:-1]))[0])


@pytest.mark.parametrize("final", grids.FINALS)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("name", [*OPEN, "kl_optimal", "shifted:0.2", "shifted:mu=-3", "beta:3,2"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_they_fall_between_their_ends_on_every_schedule(schedule, name, steps, final):
    schedule = SCHEDULES[schedule]
    for cut in (None, 3 * schedule.sigma_min):
        grid = grids.make_grid(name, schedule, steps, final=final, sigma_min=cut)
        assert len(grid) == steps + 1
        assert grid[0] == schedule.sigma_max
        assert np.all(np.diff(grid) < 0)
        ends_at = grid[-1] if final == "sigma_min" else grid[-2]
        assert (grid[-1] == 0) == (final == "zero")
        if steps > 1 and name != "sgm_uniform" and (cut is not None or final == "sigma_min"):
            assert ends_at == pytest.approx(cut or schedule.sigma_min, rel=1e-12)


@pytest.mark.parametrize("name", OPEN)
def test_they_start_where_they_are_told(name):
    grid = grids.make_grid(name, FLOW, 6, sigma_max=2.0)
    assert grid[0] == 2.0
    assert np.all(np.diff(grid) < 0)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("shifted", lambda: grids.shifted(FLOW, 8)),
        ("shifted:3", lambda: grids.shifted(FLOW, 8, 3)),
        ("shifted:shift=5.5", lambda: grids.shifted(FLOW, 8, shift=5.5)),
        ("shifted:mu=1.15", lambda: grids.shifted(FLOW, 8, mu=1.15)),
        ("shifted:1", lambda: grids.make_grid("trailing", FLOW, 8)),
        ("beta:0.5,0.7", lambda: grids.beta(FLOW, 8, 0.5, 0.7)),
        ("beta:beta=0.7", lambda: grids.beta(FLOW, 8, beta=0.7)),
        ("linear_quadratic:0.1", lambda: grids.linear_quadratic(FLOW, 8, threshold=0.1)),
    ],
)
def test_a_text_says_what_the_function_does(text, same):
    np.testing.assert_allclose(grids.make_grid(text, FLOW, 8), same(), rtol=1e-12)
    model = mixture_1d(FLOW, "flow")
    plan = ddim_ode.plan_for(model, "ddim", steps=8, grid=text)
    np.testing.assert_allclose(plan.grid, same(), rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shiftd:3", ["shifted"]),
        ("shifted:", ["shift", "number"]),
        ("shifted:x", ["shift", "'x'", "number"]),
        ("shifted:0", ["shift=0", "(1e-06"]),
        ("shifted:1e30", ["shift=1e+30"]),
        ("shifted:-1", ["shift=-1"]),
        ("shifted:inf", ["shift=inf"]),
        ("shifted:nan", ["shift=nan"]),
        ("shifted:mu=1000", ["mu", "13"]),
        ("linear_quadratic:.999", ["coincide or rise", "milder"]),
        ("beta:.001,.001", ["coincide or rise"]),
        ("shifted:3,mu=1", ["mu", "drop"]),
        ("shifted:3,4", ["'4'", "shift"]),
        ("shifted:size=3", ["size", "shift"]),
        ("beta:0", ["alpha=0"]),
        ("beta:1,2,3", ["'3'", "alpha"]),
        ("linear_quadratic:1", ["threshold=1", "(0, 1)"]),
        ("time:3", ["time", "no parameters"]),
        ("kl_optimal:3", ["no parameters"]),
    ],
)
def test_a_wrong_text_is_refused_with_its_remedy(text, words):
    model = mixture_1d(FLOW, "flow")
    for call in (
        lambda: grids.make_grid(text, FLOW, 8),
        lambda: ddim_ode.sample(model, points(2), steps=8, grid=text),
    ):
        with pytest.raises(ValueError, match="grid") as error:
            call()
        for word in words:
            assert word in str(error.value)


def test_a_comparison_refuses_a_wrong_text_before_it_runs():
    model = mixture_1d(FLOW, "flow")
    expect(lambda: ddim_ode.compare(model, ["ddim"], nfe=4, n=4, grid="shifted:x"), "'x'")


@pytest.mark.parametrize("value", [None, "3", True, float("nan"), torch.ones(2)])
def test_a_shift_that_is_no_number_is_refused(value):
    if value is None:
        expect(lambda: grids.shifted(FLOW, 8, shift=3.0, mu=1.0), "shift")
        return
    with pytest.raises(ValueError, match="shift"):
        grids.shifted(FLOW, 8, value)


def test_a_comparison_on_a_flow_model_tries_them():
    model = mixture_1d(FLOW, "flow")
    table = ddim_ode.compare(model, ["unipc2"], nfe=6, n=16, grid=["best", "shifted:3"])
    assert [row["grid"] for row in table.to_dicts()][-1] == "shifted:3"
    for schedule, extra in ((FLOW, set(grids.FLOW)), (DDPM, set())):
        entry = Entry("unipc2", get_method("unipc2"))
        [tries] = jobs(entry, [6], ["best"], [None], mixture_1d(schedule, "v"))
        assert {job.grid for job in tries} - set(grids.CLASSIC) == extra


def test_a_calibration_searches_them():
    from ddim_ode.calibration.search import EFFORTS, textbook

    model = mixture_1d(FLOW, "flow")
    tried = {candidate.grid for candidate in textbook(model, 6, EFFORTS["fast"])}
    assert set(grids.FLOW) <= tried
    kept = {candidate.grid for candidate in textbook(mixture_1d(DDPM), 6, EFFORTS["fast"])}
    assert kept == set(grids.CLASSIC)
