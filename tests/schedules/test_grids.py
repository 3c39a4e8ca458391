import numpy as np
import pytest
import torch
from problems import COSINE, DDPM, EXPONENTIAL, SCHEDULES, zero_snr
from refusals import expect

import ddim_ode
from ddim_ode import grids, schedules

SPACING = {
    "time": lambda s, sigma: s.time(sigma),
    "quadratic": lambda s, sigma: np.sqrt(s.time(sigma)),
    "log_snr": lambda s, sigma: np.log(sigma),
    "karras": lambda s, sigma: sigma ** (1 / 7),
}
FINITE = ["ddpm", "exponential", "cosine", "vp", "ve"]


@pytest.mark.parametrize("final", grids.FINALS)
@pytest.mark.parametrize("schedule", FINITE)
@pytest.mark.parametrize("name", [*SPACING, "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_grid_falls_from_one_end_to_the_other_in_as_many_steps(schedule, name, steps, final):
    schedule = SCHEDULES[schedule]
    grid = grids.make_grid(name, schedule, steps, final=final)
    assert len(grid) == steps + 1
    assert grid[0] == schedule.sigma_max
    assert np.all(np.diff(grid) < 0)
    if final == "sigma_min":
        assert grid[-1] == pytest.approx(schedule.sigma_min, rel=1e-13)
    else:
        assert grid[-1] == 0
        assert steps == 1 or name == "trailing" or grid[-2] == schedule.sigma_min


@pytest.mark.parametrize("name", SPACING)
@pytest.mark.parametrize("final", grids.FINALS)
@pytest.mark.parametrize("steps", [2, 9])
def test_named_grid_is_even_in_its_own_scale(name, final, steps):
    grid = grids.make_grid(name, COSINE, steps, final=final, sigma_max=40.0, sigma_min=0.03)
    positive = grid[grid > 0]
    gaps = np.diff(SPACING[name](COSINE, positive))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)
    assert (positive[0], positive[-1]) == (40.0, 0.03)


def test_karras_is_the_published_formula():
    i, n, top, cut = np.arange(18), 18, 80.0, 0.002
    published = (top ** (1 / 7) + i / (n - 1) * (cut ** (1 / 7) - top ** (1 / 7))) ** 7
    grid = grids.make_grid("karras", schedules.ve(80.0), n, sigma_max=top, sigma_min=cut)
    np.testing.assert_allclose(grid, np.append(published, 0), rtol=1e-13)


@pytest.mark.parametrize("steps", [1, 7, 10, 1000])
def test_trailing_is_T_times_1_minus_i_over_N(steps):
    grid = grids.make_grid("trailing", DDPM, steps)
    np.testing.assert_allclose(
        DDPM.time(grid), 1000 * (1 - np.arange(steps + 1) / steps), rtol=1e-11, atol=1e-9
    )
    assert grid[-1] == 0


@pytest.mark.parametrize("schedule", [schedules.flow(), zero_snr()], ids=["flow", "zero_snr"])
@pytest.mark.parametrize("name", ["time", "quadratic", "trailing"])
def test_grids_in_time_may_start_at_infinite_sigma(schedule, name):
    grid = grids.make_grid(name, schedule, 4)
    assert grid[0] == np.inf
    assert np.all(np.diff(grid) < 0)


@pytest.mark.parametrize("tau", [[1000, 400, 37, 2], [2, 37, 400, 1000]])
def test_timesteps_are_called_at_in_falling_order_whichever_way_they_come(tau):
    levels = DDPM.sigma([1000, 400, 37, 2])
    np.testing.assert_array_equal(grids.from_timesteps(DDPM, tau), [*levels, 0.0])
    stopped = grids.from_timesteps(DDPM, tau, final="sigma_min")
    np.testing.assert_array_equal(stopped, levels)


def make(name="time", steps=5, schedule=DDPM, **options):
    return lambda: grids.make_grid(name, schedule, steps, **options)


def levels(*grid):
    return lambda: ddim_ode.plan("ddim", EXPONENTIAL, list(grid))


def times(*tau):
    return lambda: grids.from_timesteps(DDPM, list(tau))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (levels(1.0, 2.0, 0.0), r"grid\[1\]=2 does not fall below grid\[0\]=1; .*\[0, 148"),
        (levels(3.0, 2.0, 2.0, 0.0), r"grid\[2\]=2 does not fall below grid\[1\]=2"),
        (levels(3.0, np.nan, 0.0), r"grid\[1\]=nan is outside .*\[0, 148"),
        (levels(200.0, 1.0), r"grid\[0\]=200 is outside .*\[0, 148"),
        (levels(3.0, 1.0, -1.0), r"grid\[2\]=-1 is outside"),
        (levels(3.0), "at least two σ"),
        (levels([3.0, 1.0]), r"1-D array .* shape \(1, 2\)"),
        (make("karas"), "grid 'karas'.*nearest first: karras,"),
        (make(final="sigma"), "final 'sigma'.*sigma_min, zero"),
        (make(steps=0), "steps=0 must be a whole number >= 1"),
        (make(sigma_max=1e4), "sigma_max=10000.*157"),
        (make(sigma_min=-1), "sigma_min=-1: need 0 < sigma_min"),
        (make(sigma_max=1, sigma_min=2), "sigma_min < sigma_max"),
        (make("trailing", sigma_min=1), "drop sigma_min=1"),
        (make("karras", schedule=schedules.flow()), "cannot start at σ_max=inf; use grid="),
        (times(), "non-empty 1-D sequence"),
        (times(1001, 5), r"t=1001 is outside .*\[0, 1000\]"),
        (times(500, 0), r"timesteps=0 must lie in \(0, 1000\].*from 1"),
        (times(900, 500, 700, 50, 60, 20), "500 is followed by 700"),
    ],
)
def test_a_bad_grid_is_refused_by_entry_value_and_range(call, message):
    expect(call, message)


def test_the_default_grid_ends_high_with_few_steps_and_is_quadratic_with_many():
    model = ddim_ode.Denoiser(lambda x, t: x, SCHEDULES["ddpm"])
    x = torch.zeros(1, 2)
    for steps, final, name in (
        (14, "zero", "trailing"),
        (15, "zero", "quadratic"),
        (14, "sigma_min", "quadratic"),
    ):
        sol = ddim_ode.sample(model, x, steps=steps, final=final)
        expected = grids.make_grid(name, SCHEDULES["ddpm"], steps, final=final)
        np.testing.assert_array_equal(sol.sigmas, expected)
        assert grids.default_name(SCHEDULES["ddpm"], steps, final) == name
    for schedule in SCHEDULES.values():  # there is one for each
        model = ddim_ode.Denoiser(lambda x, t: x, schedule, "v")
        for steps in (1, 2, 14, 15, 40):
            assert len(ddim_ode.sample(model, x, steps=steps).sigmas) == steps + 1
    assert grids.default_name(SCHEDULES["ve"], 5) == "log_snr"
    assert grids.default_name(SCHEDULES["ddpm"], 5, sigma_min=0.1) == "quadratic"
    assert grids.default_name(SCHEDULES["ddpm"], 50, snap=True) == "quadratic"
    assert grids.default_name(SCHEDULES["ddpm"], 50, "sigma_min", snap=True) == "time"
