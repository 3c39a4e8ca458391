import numpy as np
import pytest
import torch
from problems import COSINE, DDPM, EXPONENTIAL, SCHEDULES, zero_snr

import ddim_ode
from ddim_ode import grids, schedules

SPACING = {
    "time": lambda s, sigma: s.time(sigma),
    "quadratic": lambda s, sigma: np.sqrt(s.time(sigma)),
    "log_snr": lambda s, sigma: np.log(sigma),
    "karras": lambda s, sigma: sigma ** (1 / 7),
}
FINITE = ["ddpm", "exponential", "cosine", "vp", "ve"]


@pytest.mark.parametrize("schedule", FINITE)
@pytest.mark.parametrize("name", SPACING)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_zero_ending_has_steps_positive_entries_between_the_ends_then_zero(schedule, name, steps):
    schedule = SCHEDULES[schedule]
    grid = grids.make_grid(name, schedule, steps)
    assert len(grid) == steps + 1
    assert grid[0] == schedule.sigma_max
    assert grid[-1] == 0
    assert np.all(np.diff(grid) < 0)
    if steps > 1:
        assert grid[-2] == schedule.sigma_min


@pytest.mark.parametrize("schedule", FINITE)
@pytest.mark.parametrize("name", [*SPACING, "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_sigma_min_ending_has_steps_plus_one_entries_down_to_sigma_min(schedule, name, steps):
    schedule = SCHEDULES[schedule]
    grid = grids.make_grid(name, schedule, steps, final="sigma_min")
    assert len(grid) == steps + 1
    assert grid[0] == schedule.sigma_max
    assert grid[-1] == pytest.approx(schedule.sigma_min, rel=1e-13)
    assert np.all(np.diff(grid) < 0)


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
    grid = grids.from_timesteps(DDPM, tau)
    np.testing.assert_array_equal(grid, [*DDPM.sigma([1000, 400, 37, 2]), 0.0])


def test_timesteps_with_final_sigma_min_stop_at_the_last():
    grid = grids.from_timesteps(DDPM, [900, 10], final="sigma_min")
    np.testing.assert_array_equal(grid, DDPM.sigma([900, 10]))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([1.0, 2.0, 0.0], r"grid\[1\]=2 does not fall below grid\[0\]=1; .*\[0, 148"),
        ([3.0, 2.0, 2.0, 0.0], r"grid\[2\]=2 does not fall below grid\[1\]=2"),
        ([3.0, np.nan, 0.0], r"grid\[1\]=nan is outside .*\[0, 148"),
        ([200.0, 1.0], r"grid\[0\]=200 is outside .*\[0, 148"),
        ([3.0, 1.0, -1.0], r"grid\[2\]=-1 is outside"),
        ([np.inf, 1.0], r"grid\[0\]=inf is outside"),
        ([3.0], "at least two σ, got shape"),
        ([[3.0, 1.0]], r"1-D array .* got shape \(1, 2\)"),
    ],
)
def test_a_bad_grid_is_refused_by_entry_value_and_range(grid, message):
    with pytest.raises(ValueError, match=message):
        ddim_ode.plan("ddim", EXPONENTIAL, grid)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grids.make_grid("karas", DDPM, 5), "unknown grid 'karas'.*nearest first: karras,"),
        (lambda: grids.make_grid("time", DDPM, 5, final="sigma"), "unknown final 'sigma'.*sigma_min, zero"),
        (lambda: grids.make_grid("time", DDPM, 0), "steps=0 must be a whole number >= 1"),
        (lambda: grids.make_grid("time", DDPM, 2.5), "steps=2.5 must be a whole number"),
        (lambda: grids.make_grid("time", DDPM, True), "steps=True must be a whole number"),
        (lambda: grids.make_grid("time", DDPM, 5, sigma_max=1e4), r"sigma_max=10000.*157"),
        (lambda: grids.make_grid("time", DDPM, 5, sigma_min=-1), "sigma_min=-1: need 0 < sigma_min"),
        (lambda: grids.make_grid("time", DDPM, 5, sigma_min=0), "sigma_min=0: need 0 < sigma_min"),
        (lambda: grids.make_grid("time", DDPM, 5, sigma_max=np.nan), "sigma_max=nan"),
        (lambda: grids.make_grid("time", DDPM, 5, sigma_max=1, sigma_min=2), "sigma_min < sigma_max"),
        (lambda: grids.make_grid("trailing", DDPM, 5, sigma_min=1), "drop sigma_min=1"),
        (lambda: grids.make_grid("karras", schedules.flow(), 5), "cannot start at σ_max=inf; use grid="),
        (lambda: grids.from_timesteps(DDPM, []), "non-empty 1-D sequence"),
        (lambda: grids.from_timesteps(DDPM, [1001, 5]), r"t=1001 is outside .*\[0, 1000\]"),
        (lambda: grids.from_timesteps(DDPM, [500, 0]), r"timesteps=0 must lie in \(0, 1000\].*from 1"),
        (lambda: grids.from_timesteps(DDPM, [900, 500, 700, 50, 60, 20]), "500 is followed by 700"),
    ],
)  # fmt: skip
def test_a_bad_request_for_a_grid_says_what_to_change(call, message):
    with pytest.raises(ValueError, match=message):
        call()


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
    assert grids.default_name(SCHEDULES["ve"], 5) == "log_snr"
    assert grids.default_name(SCHEDULES["ddpm"], 5, sigma_min=0.1) == "quadratic"
    assert grids.default_name(SCHEDULES["ddpm"], 50, snap=True) == "time"


@pytest.mark.parametrize("steps", [1, 2, 5, 14, 15, 40])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_default_grid_exists_for_every_schedule(name, steps):
    schedule = SCHEDULES[name]
    model = ddim_ode.Denoiser(lambda x, t: x, schedule, "v")
    assert len(ddim_ode.sample(model, torch.zeros(1, 2), steps=steps).sigmas) == steps + 1
