"""Surrogates: what they expect of a plan is what the model makes of it, and their grids are better."""

import functools

import numpy as np
import pytest
import torch
from problems import COSINE, gaussian_2d, mixture_2d
from scipy.interpolate import PchipInterpolator

import ddim_ode
from ddim_ode import exact, schedules
from ddim_ode.denoising.problem import Problem
from ddim_ode.solve.look import look
from ddim_ode.solvers.compilation import draft
from ddim_ode.solvers.design import designed, expected, monotone, named
from ddim_ode.solvers.methods import METHODS
from ddim_ode.solvers.screens import TRIED

FLOW = schedules.flow()


@functools.cache
def seen(model, dim, n=8):
    x = ddim_ode.noise((dim,), model.schedule, range(n), sigma=model.sigma_max)
    return x, look(Problem(model), x, 64, lambda rows: None)


def error(model, x, plan, ends):
    end = ddim_ode.sample(model, x.double(), plan=plan).x
    return float((end - ends).square().mean().sqrt())


@functools.cache
def gaussian(schedule):
    return exact.gaussian([1.0] * 4, np.eye(4) * 0.3, schedule)


@pytest.mark.parametrize("schedule", [COSINE, schedules.ve(50.0), schedules.exponential()])
@pytest.mark.parametrize("method", [*TRIED, "heun", "ddim"])
def test_what_it_expects_on_gaussian_data_is_what_happens(schedule, method):
    """There x̂₀ is affine in x, and g its one derivative."""
    model = gaussian(schedule)
    x, found = seen(model, 4)
    for steps in (4, 7):
        for grid in ("log_snr", "karras"):
            plan = ddim_ode.plan_for(model, method, steps=steps, grid=grid, sigma_min=0.05)
            told = found.surrogate.error(plan)
            assert told == pytest.approx(error(model, x, plan, found.ends), rel=0.2, abs=8e-3)


@pytest.mark.parametrize("schedule", [COSINE, FLOW])
@pytest.mark.parametrize("method", [*TRIED, "heun", "ddim"])
def test_a_draft_is_the_plan_without_what_a_search_does_not_read(schedule, method):
    grid = np.append(np.geomspace(min(schedule.sigma_max, 80.0), 0.05, 17), 0.0)
    for levels in (grid, np.insert(grid, 0, np.inf)) if schedule is FLOW else (grid, grid[10:]):
        plan = ddim_ode.plan(method, schedule, levels)
        assert draft(METHODS[method], schedule, levels) == plan.ops


def test_levels_between_knots_are_scipys_monotone_cubic():
    at, rng = np.linspace(0, 1, 29), np.random.default_rng(0)
    for count in (2, 5, 5, 8):
        values = np.append(0.0, np.cumsum(np.exp(3 * rng.normal(size=count))))
        theirs = PchipInterpolator(np.linspace(0, 1, count + 1), values)(at)
        np.testing.assert_allclose(monotone(values, at), theirs, rtol=1e-12)


def test_its_ends_are_converged_and_say_by_how_much():
    model = mixture_2d(COSINE)
    x, found = seen(model, 2)
    truth = ddim_ode.sample(model, x.double(), "rk45", rtol=1e-8, atol=1e-8).x
    off = float((found.ends - truth).square().mean(dim=1).sqrt().mean())
    assert off < 5e-3
    assert found.error > 0.2 * off
    assert found.net_evals <= 60 * 8


@pytest.mark.parametrize(
    "model", [mixture_2d(COSINE), mixture_2d(FLOW, "flow")], ids=["vp", "flow"]
)
@pytest.mark.parametrize("method", ["unipc2", "ipndm", "ddim"])
def test_the_grid_made_for_a_method_is_better_than_all_it_began_with(model, method):
    surrogate = seen(model, 2)[1].surrogate
    spec = METHODS[method]
    grids = [levels for _, levels in named(surrogate, 6)]
    best = min(grids, key=lambda levels: expected(surrogate, spec, levels))
    made = designed(surrogate, spec, best)
    assert made.error < 0.99 * expected(surrogate, spec, best)
    assert made.levels[0] == model.sigma_max
    assert made.levels[-1] == 0
    assert len(made.levels) == 7
    assert (np.diff(made.levels) < 0).all()


def test_a_grid_that_stops_keeps_both_ends():
    model = gaussian_2d(COSINE)
    surrogate = seen(model, 2)[1].surrogate
    start = np.geomspace(80.0, 0.5, 6)
    made = designed(surrogate, METHODS["unipc2"], start, free=False)
    assert made.levels[[0, -1]].tolist() == [80.0, 0.5]
    assert made.error <= expected(surrogate, METHODS["unipc2"], start)


def test_what_it_expects_ranks_the_plans_of_a_mixture():
    rng = np.random.default_rng(1)
    covs = np.full((12, 8), 0.04)
    model = exact.gaussian_mixture(np.ones(12) / 12, rng.normal(size=(12, 8)), covs, COSINE)
    x, found = seen(model, 8)
    told, true = [], []
    for method in ("ddim", *TRIED):
        for grid in ("time", "quadratic", "log_snr", "karras"):
            plan = ddim_ode.plan_for(model, method, nfe=8, grid=grid)
            told.append(found.surrogate.error(plan))
            true.append(error(model, x, plan, found.ends))
    ranks = [np.argsort(np.argsort(values)) for values in (told, true)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9
    assert torch.isfinite(found.ends).all()
