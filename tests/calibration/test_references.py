"""The solutions that fits are held against: on grids of the model's own, with fewer calls."""

import numpy as np
import pytest
import torch

import ddim_ode
from ddim_ode.calibration.references import plan_of, references
from ddim_ode.calibration.search import EFFORTS
from ddim_ode.denoising.cost import SOLUTION_CALLS
from ddim_ode.denoising.problem import Problem
from ddim_ode.solve.look import look
from ddim_ode.solve.reference import METHOD

SCHEDULES = dict(
    ddpm=ddim_ode.schedules.ddpm(),
    cosine=ddim_ode.schedules.cosine(),
    ve=ddim_ode.schedules.ve(80.0),
    flow=ddim_ode.schedules.flow(),
)
EFFORT = EFFORTS["fast"]


@pytest.fixture(scope="module", params=SCHEDULES, ids=str)
def solved(request):
    """A mixture, noises, where the ODE takes them, and the surrogate of eight of them."""
    schedule = SCHEDULES[request.param]
    means = np.random.default_rng(0).standard_normal((10, 6))
    covs = np.full((10, 6), 0.01)
    kind = "flow" if request.param == "flow" else "eps"
    model = ddim_ode.exact.gaussian_mixture(
        np.full(10, 0.1), means, covs, schedule, prediction=kind
    )
    x = ddim_ode.noise((6,), schedule, seeds=range(64), dtype=torch.float64)
    grid = "karras" if np.isfinite(model.sigma_max) else "quadratic"
    exact = ddim_ode.sample(model, x, METHOD, steps=400, grid=grid).x
    return model, x, exact, look(Problem(model), x[:8], 64, lambda rows: None).surrogate


def error(x, exact):
    return float((x - exact).square().mean().sqrt())


def test_the_models_own_grid_needs_fewer_calls(solved):
    model, x, exact, surrogate = solved
    own, named = (
        ddim_ode.sample(model, x, plan=plan_of(model, steps, known)).x
        for steps, known in ((EFFORT.designed[-1], surrogate), (EFFORT.reference[-1], None))
    )
    if np.isfinite(model.sigma_max):
        assert error(own, exact) < 0.7 * error(named, exact)
    else:  # where METHOD in 48 even steps of time errs by 1e-4 already
        assert error(own, exact) < 2 * error(named, exact) < 3e-4


def test_the_last_refinement_bounds_its_error(solved):
    model, x, exact, surrogate = solved
    rows = []
    coarse, fine = references(Problem(model), x, EFFORT, surrogate, 48, 64, rows.append)
    assert len(coarse) == 16
    assert len(fine) == 64
    assert sum(rows) == 64 * EFFORT.designed[-1] + 16 * EFFORT.designed[0]
    assert sum(rows) == 64 * SOLUTION_CALLS["fast"]  # which is what a user is told
    assert error(fine, exact) < error(coarse, fine[48:])


def test_few_noises_are_solved_on_a_named_grid(solved):
    model, x, _, surrogate = solved
    rows = []
    references(Problem(model), x[:12], EFFORT, surrogate, 9, 64, rows.append)
    assert sum(rows) == 12 * EFFORT.reference[-1] + 3 * EFFORT.reference[0]
