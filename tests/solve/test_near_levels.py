"""Levels that nearly coincide: a solve errs no more than without one of them."""

import functools

import numpy as np
import pytest
import torch
from problems import DDPM, SCHEDULES, gaussian_2d, mixture_2d

import ddim_ode
from ddim_ode import Denoiser, grids, schedules
from ddim_ode.solvers import builder as steps
from ddim_ode.solvers import compilation
from ddim_ode.solvers.methods import METHODS

DETERMINISTIC = [name for name, method in METHODS.items() if method.order is not None]
MULTISTEP = [name for name in DETERMINISTIC if METHODS[name].multistep]
MODEL = gaussian_2d(DDPM)
GRID = grids.make_grid("quadratic", DDPM, 30)
X = ddim_ode.noise((2,), DDPM, seeds=range(8), dtype=torch.float64)
END = MODEL.flow(X, DDPM.sigma_max, 0.0)


def rms(x, exact):
    return float((x.double() - exact).square().mean().sqrt())


def with_near(grid, at, gap, several=1):
    """The grid with further levels below level ``at``, each nearer to the last by ``gap`` of it."""
    return np.insert(grid, at + 1, grid[at] * (1 - gap * np.arange(1, several + 1)))


PLAIN = functools.cache(lambda method: ddim_ode.sample(MODEL, X, method, grid=GRID).x)


@pytest.mark.parametrize(
    ("gap", "dtype"),
    [(1e-3, torch.float64), (1e-8, torch.float64), (5e-16, torch.float64), (1e-5, torch.float32)],
    ids=str,
)
@pytest.mark.parametrize("method", MULTISTEP)
def test_a_level_near_another_costs_no_accuracy(method, gap, dtype):
    plain = rms(PLAIN(method), END)
    for at, several in ((0, 1), (12, 1), (20, 3), (28, 1)):
        sol = ddim_ode.sample(MODEL, X.to(dtype), method, grid=with_near(GRID, at, gap, several))
        assert rms(sol.x, END) < 1.3 * plain
        assert sol.error is None or float(sol.error.max()) < 20 * plain


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_near_levels_on_the_way_up(method):
    low = GRID[:-1]
    x0 = MODEL.draw(8)
    end = MODEL.flow(x0, low[-1], low[0])
    plain, *near = (
        ddim_ode.encode(MODEL, x0, method, grid=grid).x
        for grid in (low, *(with_near(low, 15, gap, 2) for gap in (1e-5, 5e-16)))
    )
    for latent in near:
        assert rms(latent, plain) < 0.5 * rms(plain, end) + 1e-7


@pytest.mark.parametrize("method", ["ab4", "dpmpp2m", "unipc3"])
def test_near_times_and_near_trained_levels(method):
    """Also where the schedule itself has two that nearly coincide."""
    exact = rms(ddim_ode.sample(MODEL, X, method, timesteps=[1000, 700, 400, 150, 20]).x, END)
    near = [1000, 700, 700 - 1e-9, 400, 150, 150 - 1e-6, 20]
    assert rms(ddim_ode.sample(MODEL, X, method, timesteps=near).x, END) < 1.3 * exact

    trained = DDPM.alpha_bar(np.arange(10, 1001, 10)) ** 2
    flat = schedules.from_alphas_cumprod(np.insert(trained, 40, trained[39] * (1 - 1e-12)))
    ends = []
    for schedule, n in ((schedules.from_alphas_cumprod(trained), 100), (flat, 101)):
        model = gaussian_2d(schedule)
        snapping = Denoiser(model.net, schedule, time=lambda t, sigma: sigma, snap=True)
        ends.append(ddim_ode.sample(snapping, X, method, steps=n, grid="time").x)
    exact = model.flow(X, flat.sigma_max, 0.0)
    assert rms(ends[1], exact) < 1.3 * rms(ends[0], exact)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_the_levels_of_named_grids_are_all_read(schedule, monkeypatch):
    plans = {}
    for apart in (steps.APART, 0.0):
        monkeypatch.setattr(steps, "APART", apart)
        compilation.clear_cache()
        for name in grids.NAMES if schedule.family != "ve" else ("log_snr", "karras"):
            for n in (4, 50):
                for method in ("ab4", "unipc3"):  # of either ruler
                    try:
                        plan = ddim_ode.plan(method, schedule, grids.make_grid(name, schedule, n))
                    except ValueError:  # a grid in σ from σ = inf
                        continue
                    plans.setdefault((name, n, method), []).append(plan)
    compilation.clear_cache()
    # its first steps of one length in σ/(1 + σ) are many, and short beside the next
    plans = {key: both for key, both in plans.items() if key[0] != "linear_quadratic"}
    assert plans
    assert all(one == other for one, other in plans.values())


# -- the most steps with snap ---------------------------------------------------------------------
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", [*grids.NAMES, None])
def test_the_most_steps_on_trained_levels_are_found(name, final):
    schedule = schedules.ddpm(T=50, beta_end=0.3)
    model = Denoiser(lambda x, t: 0.5 * x, schedule, "x0", snap=True)

    def distinct(n):
        found = grids.make_grid(
            name or grids.default_name(schedule, n, final, snap=True), schedule, n, final=final
        )
        return len({*model.snapped(found[found > 0])}) == (found > 0).sum()

    apart = name is None and final == "zero"  # the default, whose levels are moved apart
    most = 50 if apart else max(n for n in range(1, 55) if distinct(n))
    for method in ("ddim", "unipc3"):
        sol = ddim_ode.sample(model, X[:1], method, nfe=5000, grid=name, final=final)
        assert sol.plan.steps == most


@pytest.mark.parametrize("steps", [15, 20, 50, 100])
@pytest.mark.parametrize("name", ["ddpm_2e-5", "cosine"])
def test_on_trained_levels_the_default_errs_about_as_little_as_between_them(name, steps):
    model = mixture_2d(SCHEDULES[name])
    x = ddim_ode.noise((2,), model.schedule, seeds=range(64))
    snapped = model.replace(snap=True)
    exact = ddim_ode.sample(model, x, "rk45", rtol=1e-8, atol=1e-8).x
    free, bound = (
        float((ddim_ode.sample(m, x, "unipc2", nfe=steps).x - exact).square().mean().sqrt())
        for m in (model, snapped)
    )
    assert bound < 1.5 * free + 2e-4
    levels = ddim_ode.sample(snapped, x, "unipc2", nfe=steps).sigmas
    assert len(levels) == steps + 1
    assert np.isin(levels[:-1], model.schedule.levels).all()


def test_a_budget_beyond_all_levels_takes_few_attempts(monkeypatch):
    model = Denoiser(lambda x, t: 0.5 * x, DDPM, "x0", snap=True)
    made = []
    make = grids.make_grid
    monkeypatch.setattr(
        "ddim_ode.solve.levels.make_grid",
        lambda name, s, n, **o: made.append(n) or make(name, s, n, **o),
    )
    assert ddim_ode.sample(model, X[:1], nfe=1_000_000).nfe == 1000
    assert made == [1000]
    steps = ddim_ode.sample(model, X[:1], nfe=1_000_000, grid="karras").plan.steps
    assert len(made) < 20 + 4 * steps < 500
