"""Upwards: order, the DDIM inversion of the paper, exact reversal, and what a certificate says."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import (
    COSINE,
    EXPONENTIAL,
    SCHEDULES,
    Counting,
    mixture_1d,
    mixture_2d,
    points,
    spread,
)
from refusals import expect

import ddim_ode
from ddim_ode import Denoiser, Guidance, Method
from ddim_ode.solve.solution import norm_per_sample
from ddim_ode.solvers.methods import METHODS

TOLERANCE = 0.15
MODEL = mixture_1d(EXPONENTIAL)
LOW, HIGH = 0.2, 2.0
DETERMINISTIC = [name for name, method in METHODS.items() if method.order is not None]


def slope(model, method, coarse, x=None, ends=(LOW, HIGH), **options):
    x = spread() if x is None else x
    errors = []
    for steps in (coarse, 2 * coarse):
        options |= dict(sigma_min=ends[0], sigma_max=ends[1], grid="time")
        latent = ddim_ode.encode(model, x, method, steps=steps, **options).x
        errors.append(float((latent - model.flow(x, *ends)).square().mean().sqrt()))
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_method_keeps_its_order_on_the_way_up(name):
    method = METHODS[name]
    measured = slope(MODEL, name, 200 if method.multistep else 32 if name == "rk45" else 64)
    assert measured == pytest.approx(method.order_as_run, abs=TOLERANCE)


def test_a_ramp_and_other_charts_keep_theirs():
    assert slope(MODEL, "ab3", 100, start="ramp", ends=(1.0, 2.0)) == pytest.approx(
        2, abs=TOLERANCE
    )
    for chart in ("data", "log", "trig", "exp"):
        assert slope(MODEL, "bosh3", 64, chart=chart) == pytest.approx(3, abs=TOLERANCE)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("name", ["ddpm", "cosine", "ve", "flow"])
def test_ddim_upwards_is_the_inversion_of_the_paper(name, prediction):
    schedule = SCHEDULES[name]
    model, x = mixture_2d(schedule, prediction), points(4, 2)
    grid = [9.0, 3.0, 0.8, 0.1, 0.02]
    latent = ddim_ode.encode(model, x, grid=grid).x
    for here, there in zip(grid[:0:-1], grid[-2::-1]):
        x0, eps = model(x, here)  # at the lower level of the two
        alpha, beta = map(float, schedule.scales(there))
        x = alpha * x0 + beta * eps
    torch.testing.assert_close(latent, x, rtol=1e-12, atol=1e-12)


def test_levels_calls_and_trajectory_are_those_of_decode_in_the_other_order():
    net = Counting(mixture_2d(COSINE).net)
    model = Denoiser(net, COSINE, time=lambda t, sigma: sigma)
    up = ddim_ode.encode(model, points(3, 2), "heun", steps=5, record="x")
    assert net.calls == up.nfe == up.plan.nfe == 10
    np.testing.assert_array_equal(torch.stack(net.times)[::2, 0], up.sigmas[:-1])
    assert up.trajectory.shape == (6, 3, 2)
    torch.testing.assert_close(up.trajectory[-1], up.x, rtol=0, atol=0)
    down = ddim_ode.decode(model, up.x, "heun", steps=5)
    np.testing.assert_array_equal(down.sigmas, up.sigmas[::-1])
    assert down.sigmas[-1] == COSINE.sigma_min
    seen = []
    ddim_ode.encode(model, points(3, 2), steps=3, callback=seen.append)
    assert [step.sigma for step in seen] == ddim_ode.encode(model, points(3, 2), steps=3).sigmas[
        1:
    ].tolist()


# -- adaptive, and other packages -----------------------------------------------------------------
@pytest.mark.parametrize(("name", "tolerance"), [("rk45", 1e-4), ("bosh3", 1e-4)])
def test_adaptive_steps_go_up_within_their_tolerance_each_sample_by_its_own(name, tolerance):
    x, ends = spread(), (0.05, 40.0)
    options = dict(rtol=tolerance, atol=tolerance, sigma_min=0.05, sigma_max=40.0)
    found = ddim_ode.encode(MODEL, x, name, **options)
    error = norm_per_sample(found.x - MODEL.flow(x, *ends))
    assert (found.status == "success").all()
    assert error.max() < 1e-3
    assert (error < 6 * found.error + 1e-6).all()
    for sigma in (0.1, 1.0, 7.0):
        assert (found.at(sigma) - MODEL.flow(x, 0.05, sigma)).abs().max() < 3e-3
    back = ddim_ode.decode(MODEL, found.x, name, **options)
    assert (back.x - x).abs().max() < 3e-3
    assert (np.diff(found.sigmas[0]) > 0).all()
    assert len(set(found.sample_nfe.tolist())) > 1
    alone = ddim_ode.encode(MODEL, x[3:4], name, **options)
    np.testing.assert_array_equal(alone.sigmas[0], found.sigmas[3])
    torch.testing.assert_close(alone.x[0], found.x[3], rtol=1e-12, atol=1e-12)
    for limit, share in ((dict(nfe=25), 1), (dict(max_nfe=25), 0)):  # a budget brings each up
        cut = ddim_ode.encode(MODEL, x, name, **options | dict(rtol=1e-9, atol=1e-9) | limit)
        assert (cut.status == "max_nfe").all()  # above tolerance, but there
        assert (cut.sample_nfe <= 25).all()
        assert all((levels[-1] > 39.9) == share for levels in cut.sigmas)


def test_the_recorded_x0_of_an_adaptive_solve_is_the_models():
    x = spread()
    found = ddim_ode.encode(MODEL, x, "rk45", sigma_max=20.0, rtol=1e-5, atol=1e-5, record="x0")
    states = ddim_ode.encode(MODEL, x, "rk45", sigma_max=20.0, rtol=1e-5, atol=1e-5, record="x")
    for k in (0, 3, -1):
        x0, _ = MODEL(states.trajectory[2][k][None], found.sigmas[2][k])
        torch.testing.assert_close(found.trajectory[2][k], x0[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["scipy:DOP853", "torchdiffeq:dopri8", "torchdiffeq:rk4"])
def test_other_packages_go_up(method):
    options = dict(steps=30) if method.endswith("rk4") else dict(rtol=1e-6, atol=1e-6)
    up = ddim_ode.encode(MODEL, spread(), method, sigma_max=20.0, **options)
    exact = MODEL.flow(spread(), EXPONENTIAL.sigma_min, 20.0)
    assert (up.x - exact).abs().max() < 1e-3
    down = ddim_ode.decode(MODEL, up.x, method, sigma_max=20.0, **options)
    assert (down.x - spread()).abs().max() < 1e-3


# -- the reversible scheme ------------------------------------------------------------------------
@pytest.mark.parametrize("chart", [None, "eps", "trig", "log"])
@pytest.mark.parametrize("steps", [1, 5, 60])
def test_the_reversible_scheme_comes_back_at_rounding_error_from_any_network(steps, chart):
    rough = Denoiser(lambda x, t: torch.sin(3 * x + t[:, None]).round(decimals=1), COSINE)
    x = points(5, 2)
    options = dict(steps=steps, sigma_min=0.05, sigma_max=20.0, chart=chart)
    up = ddim_ode.encode(rough, x, "reversible", **options)
    assert up.nfe == steps + 1
    down = ddim_ode.decode(rough, up.x, "reversible", partner=up.partner, **options)
    assert (down.x - x).abs().max() < 1e-10
    assert (down.partner - x).abs().max() < 1e-10
    back = ddim_ode.encode(rough, down.x, "reversible", partner=down.partner, **options)
    torch.testing.assert_close(back.x, up.x, rtol=0, atol=1e-9)
    again = ddim_ode.decode(rough, up)  # the Solution says it all
    torch.testing.assert_close(again.x, down.x, rtol=0, atol=0)


def test_without_its_partner_the_reversible_scheme_does_not_come_back():
    up = ddim_ode.encode(MODEL, spread(), "reversible", steps=8)
    with pytest.warns(UserWarning, match="without partner= starts from equal states"):
        down = ddim_ode.decode(MODEL, up.x, "reversible", steps=8)
    assert 1e-4 < (down.x - spread()).abs().max() < 1


@pytest.mark.parametrize("chart", ["eps", "flow", "log", "trig", "exp", "data"])
def test_the_reversible_scheme_is_of_second_order(chart):
    measured = slope(MODEL, "reversible", 100, chart=chart)
    assert measured == pytest.approx(2, abs=TOLERANCE)


def test_the_reversible_scheme_is_the_one_of_its_paper():
    """Two steps by hand in y = x/ᾱ over σ."""
    grid, x = np.array([0.2, 0.5, 1.1]), spread()
    alpha = EXPONENTIAL.scales(grid)[0]

    def f(y, k):
        return MODEL(float(alpha[k]) * y, float(grid[k]))[1]

    y = hat = x / float(alpha[0])
    for k, h in enumerate(np.diff(grid).tolist()):
        ahead = 2 * y - hat + h * f(hat, k)
        y = y + h / 2 * (f(hat, k) + f(ahead, k + 1))
        hat = ahead
    found = ddim_ode.encode(MODEL, x, "reversible:eps", grid=grid[::-1])
    torch.testing.assert_close(found.x, float(alpha[2]) * y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.partner, float(alpha[2]) * hat, rtol=1e-12, atol=1e-12)


# -- plans ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["ddim", "ab3", "dpmpp2m:exact", "unipc2", "dpm3", "rk4"])
def test_any_textbook_plan_goes_up_on_its_positive_levels(name):
    grid = [20.0, 6.0, 2.0, 0.7, 0.2, 0.05]
    for plan in (
        ddim_ode.plan(name, EXPONENTIAL, [*grid, 0.0]),
        ddim_ode.plan(name, EXPONENTIAL, grid),
    ):
        up = ddim_ode.encode(MODEL, spread(), plan=plan)
        asked = ddim_ode.encode(MODEL, spread(), name, grid=grid, start=plan.start)
        torch.testing.assert_close(up.x, asked.x, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(up.sigmas, grid[::-1])
        down = ddim_ode.decode(MODEL, up)
        torch.testing.assert_close(
            ddim_ode.decode(MODEL, up.x, plan=plan).x, down.x, rtol=1e-12, atol=1e-12
        )
        np.testing.assert_array_equal(down.sigmas, grid)


def test_a_rising_plan_runs_as_it_is_and_sample_refuses_it():
    plan = ddim_ode.plan("heun", EXPONENTIAL, [5.0, 1.0, 0.2], rising=True)
    assert plan.grid == (0.2, 1.0, 5.0)
    assert ddim_ode.encode(MODEL, spread(), plan=plan).plan is plan
    message = "plan 'heun' goes up, from σ=0.2 to 5; use ddim_ode.encode"
    expect(lambda: ddim_ode.sample(MODEL, spread(), plan=plan), message)


def test_a_plan_that_is_not_what_its_label_says_cannot_be_turned():
    plan = ddim_ode.plan("ab2", EXPONENTIAL, [5.0, 1.0, 0.2])
    bent = replace(plan, ops=(*plan.ops[:-1], plan.ops[-1]._replace(scale=0.9)))
    fitted = replace(bent, fit={"held_out": {}})
    own = ddim_ode.plan(Method("mine", 3, "flow", past=3), EXPONENTIAL, [5.0, 1.0, 0.2])
    noisy = ddim_ode.plan("ddim", EXPONENTIAL, [5.0, 1.0, 0.2], eta=1.0)
    down = ddim_ode.decode(MODEL, spread(), plan=fitted)  # its own way, to a level > 0
    assert down.plan is fitted
    for run, plan, message in (
        (ddim_ode.encode, bent, "was made for the way down .*give method="),
        (ddim_ode.encode, fitted, "was calibrated for the way down .*give method="),
        (ddim_ode.encode, own, "was made for the way down .*give method="),
        (ddim_ode.encode, noisy, "step noise, which cannot be undone"),
        (ddim_ode.decode, noisy, "step noise, which cannot be undone"),
    ):
        expect(lambda run=run, plan=plan: run(MODEL, spread(), plan=plan), f"plan '.*' .*{message}")


# -- the certificate ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("ab3", 3), ("bosh3", 3), ("heun", 3)])
def test_a_certificate_is_the_round_trip_and_its_order(name, order):
    """heun's is one above its own: of an even order the leading errors cancel."""
    net = Counting(MODEL.net)
    model = Denoiser(net, EXPONENTIAL, time=lambda t, sigma: sigma)
    options = dict(steps=64, grid="time", sigma_min=LOW, sigma_max=HIGH)
    up = ddim_ode.encode(model, spread(), name, certify=True, **options)
    trip = up.round_trip
    assert net.calls == up.nfe + trip.nfe
    back = ddim_ode.decode(MODEL, up.x, name, **options).x
    torch.testing.assert_close(trip.error, norm_per_sample(back - spread()), rtol=1e-9, atol=1e-15)
    assert trip.order == pytest.approx(order, abs=0.3)
    half = ddim_ode.encode(MODEL, spread(), name, start=up.plan.start, **(options | dict(steps=32)))
    torch.testing.assert_close(
        trip.latent_gap, norm_per_sample(half.x - up.x), rtol=1e-6, atol=1e-12
    )
    assert trip.unguided is None


def certified(model, x, method, **options):
    return ddim_ode.encode(model, x, method, certify=True, **options).round_trip


def test_a_certificate_of_what_has_no_order():
    adaptive = certified(MODEL, spread(), "rk45", rtol=1e-5, atol=1e-5)
    assert adaptive.error.max() < 1e-4
    assert (adaptive.order, adaptive.latent_gap) == (None, None)
    assert "latent" not in repr(adaptive)
    silent = Denoiser(lambda x, t: torch.zeros_like(x), ddim_ode.schedules.ve(64.0))
    for x in (spread(), 0 * spread()):  # what comes back to the last bit
        nothing = certified(silent, x, "heun", steps=4)
        assert (nothing.error.max(), nothing.order, nothing.latent_gap.max()) == (0, None, 0)
    straight = Denoiser(lambda x, t: torch.ones_like(x), EXPONENTIAL)
    exact = certified(MODEL, spread(), "reversible", steps=8)
    for trip in (certified(straight, spread(), "heun", steps=8), exact):
        assert trip.error.max() < 1e-12
        assert trip.order is None
    assert exact.latent_gap.max() > 1e-3  # the round trip alone does not see how good the latent is
    assert "latent off by some" in repr(exact)


def guided(scale):
    def net(x, t, y):
        return torch.tanh(x + y[:, None]) + 0.1 * y[:, None]

    guidance = Guidance(scale, null={"y": 0.0})
    return Denoiser(net, COSINE, guidance=guidance), {
        "y": torch.linspace(1, 3, 4, dtype=torch.float64)
    }


def test_guidance_warns_and_the_certificate_says_by_how_much():
    (model, cond), x = guided(7.0), points(4, 2)
    options = dict(steps=20, sigma_max=20.0, cond=cond)
    with pytest.warns(UserWarning, match=r"guidance 7 makes inversion unfaithful.*certify=True"):
        ddim_ode.encode(model, x, **options)
    with pytest.warns(
        UserWarning, match="guidance 7 .*off by .* RMS, without guidance by"
    ) as caught:
        up = ddim_ode.encode(model, x, certify=True, **options)
    plain, _ = guided(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without = ddim_ode.encode(plain, x, certify=True, **options).round_trip
    torch.testing.assert_close(up.round_trip.unguided, without.error)
    said = map(float, re.findall(r"[\d.]*\d(?:e-\d+)?(?= RMS|$)", str(caught[0].message)))
    for value, error in zip(said, (up.round_trip.error, up.round_trip.unguided)):
        assert value == pytest.approx(float(error.square().mean().sqrt()), rel=0.05)
