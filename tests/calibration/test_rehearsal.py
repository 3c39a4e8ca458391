"""Fits on a surrogate: it expects of a sampler what it does of the plan; a call more changes nothing."""

import numpy as np
import pytest
import torch

import ddim_ode
from ddim_ode.calibration.family import Linear
from ddim_ode.calibration.rehearsal import expected, rehearsed
from ddim_ode.calibration.starts import with_a_call
from ddim_ode.denoising.problem import Problem
from ddim_ode.solve.look import look

SCHEDULE = ddim_ode.schedules.cosine()
MODEL = ddim_ode.exact.gaussian_mixture(
    [0.5, 0.5], [[-1.0, 0.5], [1.0, -0.2]], np.full((2, 2), 0.1), SCHEDULE
)
GRID = [40.0, 6.0, 1.5, 0.4, 0.0]


@pytest.fixture(scope="module")
def surrogate():
    x = ddim_ode.noise((2,), SCHEDULE, seeds=range(8))
    return look(Problem(MODEL), x, 64, lambda rows: None).surrogate


@pytest.mark.parametrize("method", ["dpmpp2m", "ipndm", "unipc2"])
def test_what_is_expected_is_the_surrogates_own_and_a_rehearsal_lowers_it(surrogate, method):
    plan = ddim_ode.plan(method, SCHEDULE, GRID)
    point = Linear.of(plan)
    assert expected(surrogate, point) == pytest.approx(surrogate.error(plan), rel=1e-9)
    better = rehearsed(surrogate, point, (SCHEDULE.sigma_min, SCHEDULE.sigma_max))
    assert expected(surrogate, better) < 0.7 * expected(surrogate, point)
    assert better.falls


def test_a_call_more_at_any_place_makes_the_same():
    point = Linear.of(ddim_ode.plan("dpmpp2m", SCHEDULE, GRID))
    x = ddim_ode.noise((2,), SCHEDULE, seeds=range(4), sigma=40.0, dtype=torch.float64)
    before = ddim_ode.sample(MODEL, x, plan=point.to_plan(SCHEDULE, "before", {})).x
    wider = with_a_call(point, SCHEDULE, SCHEDULE.sigma_min)
    assert len(wider) == 4
    for other in wider:
        plan = other.to_plan(SCHEDULE, "after", {})
        assert plan.nfe == 5
        assert torch.allclose(ddim_ode.sample(MODEL, x, plan=plan).x, before, rtol=0, atol=1e-11)
