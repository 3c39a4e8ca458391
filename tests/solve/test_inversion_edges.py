"""Upwards at the edges: what NaN, nothing and infinity do, and what is left alone."""

import numpy as np
import pytest
import torch
from problems import COSINE, EXPONENTIAL, Counting, gaussian_2d, mixture_1d, points, zero_snr

import ddim_ode
from ddim_ode import Denoiser, schedules

MODEL = mixture_1d(EXPONENTIAL)


X = points(3, 2)


@pytest.mark.parametrize(
    "options",
    [
        *(dict(method=name, steps=6) for name in ("ddim", "heun", "unipc2", "reversible")),
        dict(method="rk45"),
        dict(method="ddim", steps=6, on_nan="hold"),
    ],
)
@pytest.mark.parametrize("run", [ddim_ode.encode, ddim_ode.decode])
def test_a_nan_stays_in_its_sample(run, options):
    def net(x, t):
        bad = (x[:, :1] > 50).expand_as(x)
        return torch.where(bad, torch.nan, torch.tanh(x))

    model, x = Denoiser(net, COSINE), points(4, 2)
    x[1, 0] = 1e3
    found = run(model, x, sigma_max=20.0, **options)
    assert found.status.tolist() == ["success", "non_finite", "success", "success"]
    others = [0, 2, 3]
    clean = run(model, x[others], sigma_max=20.0, **options)
    torch.testing.assert_close(found.x[others], clean.x, rtol=1e-12, atol=1e-12)
    if options["method"] == "rk45" or "on_nan" in options:
        assert found.x.isfinite().all()  # the last good state


@pytest.mark.parametrize(
    "options",
    [
        dict(steps=4),
        dict(method="reversible", steps=4),
        dict(method="rk45"),
        dict(method="scipy:RK45"),
    ],
)
def test_an_empty_batch_asks_the_network_nothing(options):
    net = Counting()
    found = ddim_ode.encode(Denoiser(net, COSINE), points(0, 2), certify=True, **options)
    assert (found.x.shape, net.calls, found.nfe, len(found.round_trip.error)) == ((0, 2), 0, 0, 0)


INFINITE = {"flow": schedules.flow(), "zero_snr": zero_snr()}


@pytest.mark.parametrize("name", INFINITE)
@pytest.mark.parametrize(
    "options",
    [
        *(dict(method=m, steps=200) for m in ("midpoint", "rk4", "reversible", "dpmpp2m")),
        dict(method="rk45", rtol=1e-6, atol=1e-6),
        dict(method="scipy:RK45", rtol=1e-4, atol=1e-4, max_nfe=4000),
    ],
    ids=lambda options: options["method"],
)
def test_the_way_up_may_end_at_infinity(name, options):
    schedule = INFINITE[name]
    model = gaussian_2d(schedule, "flow" if name == "flow" else "v")
    x = points(4, 2)
    if "steps" in options:
        options = options | dict(grid="time")
    up = ddim_ode.encode(model, x, sigma_min=0.05, **options)
    assert np.asarray(up.sigmas[0] if isinstance(up.sigmas, list) else up.sigmas)[-1] == np.inf
    exact = model.flow(x, 0.05, np.inf)
    loose = options["method"] == "dpmpp2m" or name == "zero_snr"  # a DDIM step at the end; kinks
    assert (up.x - exact).abs().max() < (0.05 if loose else 1e-3)


def test_an_eps_network_is_not_asked_at_infinity_on_the_way_up():
    """The last call is below, and the last step by DDIM. A method that must ask there is refused."""
    model = gaussian_2d(schedules.flow(), "eps")
    up = ddim_ode.encode(model, X, "heun", steps=200, sigma_min=0.1, chart="flow")
    assert (up.x - model.flow(X, 0.1, np.inf)).abs().max() < 0.02
    for options in (dict(method="rk45"), dict(method="reversible", steps=5)):
        with pytest.raises(ValueError, match="prediction='eps' says nothing of x0 at σ=inf"):
            ddim_ode.encode(model, X, sigma_min=0.1, **options)
    v = gaussian_2d(schedules.flow(), "v")
    with pytest.raises(ValueError, match="reversible: chart 'eps' is infinite at σ=inf"):
        ddim_ode.encode(v, X, "reversible:eps", steps=5, sigma_min=0.1)


def test_snap_goes_up_over_trained_levels():
    schedule = schedules.ddpm(T=20, beta_end=0.4)
    net = Counting()
    model = Denoiser(net, schedule, snap=True)
    up = ddim_ode.encode(model, X, steps=6)
    assert set(up.sigmas.tolist()) <= set(schedule.levels.tolist())
    assert {float(t[0]) for t in net.times} <= set(range(1, 21))
    with pytest.raises(
        ValueError, match=r"snap=True: 31 levels .* only 20 distinct trained levels"
    ):
        ddim_ode.encode(model, X, steps=30)


def test_nothing_is_clipped_or_scaled():
    """ε̂ = 0: the ODE only scales, by ᾱ, whatever the size of x."""
    model = Denoiser(lambda x, t: torch.zeros_like(x), COSINE)
    x = 1e3 * points(3, 2)
    up = ddim_ode.encode(model, x, grid=[5.0, 0.1])
    alpha = COSINE.scales(np.array([5.0, 0.1]))[0]
    torch.testing.assert_close(up.x, x * float(alpha[0] / alpha[1]), rtol=1e-12, atol=0)
