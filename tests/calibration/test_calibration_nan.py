"""Calibration of a network that is NaN or inf for a few inputs: those noises are left out, and said."""

import warnings

import numpy as np
import pytest
import torch
from test_calibration import log_ratio, mixture

import ddim_ode
from ddim_ode import Denoiser
from ddim_ode.solve.answers import LEVELS

SCHEDULE = ddim_ode.schedules.cosine()
N = 64
MODEL = mixture()
# What the network is known by, and the reference of the fast budget, for all noises at once.
REFERENCE_CALLS = len(LEVELS) + 1 + 24 + 48


def failing(noises, value=torch.nan, after=REFERENCE_CALLS):
    """The mixture, and for these noises that value, once the reference is there."""
    calls = 0

    def net(x, t, k):
        nonlocal calls
        calls += 1
        out = MODEL.net(x, t)
        if calls > after:
            out = torch.where(torch.isin(k, torch.tensor(noises))[:, None], value, out)
        return out

    return Denoiser(net, SCHEDULE, time=lambda t, sigma: sigma)


def calibrate(model, **options):
    """The plan, and what was warned of."""
    given = dict(nfe=4, n=N, seed=100, shape=(6,), cond={"k": torch.arange(N)}, progress=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan = ddim_ode.calibrate(model, **(given | options))
    assert all(issubclass(w.category, UserWarning) for w in said)
    return plan, " ".join(str(w.message) for w in said)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_noises_that_fail_under_the_samplers_are_left_out(value, tmp_path):
    """Two that are fitted, and one held out: the others are fitted as well as without them."""
    plan, said = calibrate(failing([5, 17, 50], value))
    assert "1 of 16 noises have no finite end under" in said
    assert "(seeds 150)" in said
    assert plan.fit["held_out"]["n"] == 15
    assert plan.fit["calibrated"]
    mean, spread = log_ratio(MODEL, plan)
    assert mean + spread < -0.1
    plan.save(tmp_path / "plan.json")  # all of its figures are numbers


def test_noises_lost_in_the_fit_are_named():
    said = calibrate(failing([5], after=0))[1]
    assert "1 of 64 noises have no finite solution (seeds 105)" in said
    said = calibrate(failing(list(range(12))), nfe=3)[1]
    assert "noises met NaN or inf in the fit (seeds 1" in said


@pytest.mark.parametrize(
    ("bad", "after", "message"),
    [
        (
            range(48, 60),
            REFERENCE_CALLS,
            "12 of 16 noises have no finite end under .*seeds 148, 149",
        ),
        (range(N), REFERENCE_CALLS, "16 of 16 noises have no finite end"),
        (range(40), 0, "40 of 64 noises have no finite solution.*returns? NaN or inf"),
    ],
)
def test_too_many_that_fail_are_an_error(bad, after, message):
    with pytest.raises(ValueError, match=message):
        calibrate(failing(list(bad), after=after))


@pytest.mark.parametrize(
    ("low", "high", "value"),
    [
        (1.0, 1.01, torch.nan),
        (0.2, 0.21, torch.nan),
        (2.5, 99.0, torch.nan),
        (0.2, 0.21, torch.inf),
        (0.0, 0.5, -1e30),
    ],
)
def test_a_network_that_fails_in_places_has_a_plan(low, high, value):
    def net(x, t):
        return torch.where(((x > low) & (x < high)).any(1, keepdim=True), value, torch.tanh(2 * x))

    plan, _ = calibrate(Denoiser(net, SCHEDULE, "x0"), shape=(2,), cond=None)
    held = plan.fit["held_out"]
    assert np.isfinite([held["before"], held["after"], plan.fit["reference_error"]]).all()
    assert held["after"] <= held["before"]


def test_features_that_fail_in_places():
    plan, said = calibrate(MODEL, cond=None, features=lambda x: torch.log(x + 2.2))
    assert "have no finite solution" in said
    assert plan.fit["held_out"]["after"] <= plan.fit["held_out"]["before"]
