"""Upwards at the edges: what is refused, what NaN, nothing and infinity do, and what is left alone."""

import numpy as np
import pytest
import torch
from problems import (
    COSINE,
    DDPM,
    EXPONENTIAL,
    Counting,
    gaussian_2d,
    mixture_1d,
    mixture_2d,
    points,
    spread,
    zero_snr,
)

import ddim_ode
from ddim_ode import Denoiser, schedules

MODEL = mixture_1d(EXPONENTIAL)


X = points(3, 2)
STUB = Denoiser(Counting(), COSINE)
DOWN = ddim_ode.plan("ddim", COSINE, [5.0, 1.0, 0.2])


@pytest.mark.parametrize("run", [ddim_ode.encode, ddim_ode.decode])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(grid=[0.2, 1.0, 5.0]), r"grid\[1\]=1 does not fall below grid\[0\]=0.2"),
        (dict(grid=[5.0, 1.0, 1.0]), r"grid\[2\]=1 does not fall"),
        (dict(grid=[5.0, np.nan, 1.0]), r"grid\[1\]=nan is outside"),
        (dict(grid=[1e9, 1.0]), r"grid\[0\]=1e\+09 is outside this schedule's range"),
        (dict(grid=[5.0, 1.0, 0.0]), r"grid\[2\]=0: the ODE ends before σ=0.*drop that entry"),
        (dict(steps=5, sigma_min=0.0), "sigma_min=0: need 0 < sigma_min < sigma_max"),
        (dict(steps=5, sigma_max=1e9), "sigma_max=1e.09 is outside"),
        (dict(steps=5, final="zero"), "final='zero': the jump to σ=0 cannot be undone"),
        (dict(steps=5, eta=0.5), "step noise cannot be undone; drop eta=0.5"),
        (dict(steps=5, noise_std=[0.1] * 5), "step noise cannot be undone; drop noise_std="),
        (dict(steps=5, method="ddpm"), "step noise cannot be undone; drop method='ddpm'"),
        (dict(steps=5, method="hune"), "unknown method 'hune'; valid, nearest first: heun,"),
        (dict(steps=5, nfe=5), "both steps and nfe are given; drop nfe"),
        (dict(plan=DOWN, method="ddim"), "both plan and method are given; drop method"),
        (dict(plan=DOWN, steps=4), "plan= already fixes how and where to step; drop steps=4"),
        (dict(plan="ddim"), "plan must be a Plan"),
        (dict(steps=5, rtol=1e-3), "a fixed plan has no tolerance"),
        (dict(), "method 'ddim' needs to know where to step"),
        (dict(steps=5, partner=X), "only method='reversible' has a second state; drop partner="),
        (dict(method="reversible"), "method 'reversible' needs to know where to step"),
        (dict(method="reversible", nfe=1), "nfe=1 is less than one step of 'reversible' costs"),
        (dict(method="reversible", steps=2, rtol=1e-3), "reversible has one way.*drop rtol"),
        (dict(method="reversible", steps=2, record="x"), "reversible has one way.*drop record"),
        (dict(method="reversible:eps", steps=2, chart="log"), "both method='reversible:eps' and chart="),
        (dict(method="reversible:esp", steps=2), "unknown chart 'esp'.*first: exp, eps"),
        (dict(method="reversible", steps=2, partner=X[:1]), r"partner has shape \(1, 2\)"),
        (dict(method="scipy:RK45", steps=5), "scipy:RK45 chooses its own steps"),
        (dict(method="scipy:RK45", chart="log"), "scipy:RK45 solves the ODE by its own steps; drop chart"),
        (dict(method="rk45", chart="log"), "rk45 solves adaptively, in its own chart.*drop chart"),
        (dict(steps=5, record="all"), "unknown record 'all'"),
    ],
)  # fmt: skip
def test_each_edge_says_what_to_change_in_both_directions(run, options, message):
    with pytest.raises(ValueError, match=message):
        run(STUB, X, **options)


@pytest.mark.parametrize("run", [ddim_ode.encode, ddim_ode.decode])
def test_wrong_types_are_named(run):
    with pytest.raises(ValueError, match="model must be a Denoiser, got Counting"):
        run(Counting(), X, steps=3)
    with pytest.raises(ValueError, match="x must be a floating tensor"):
        run(STUB, X.long(), steps=3)
    with pytest.raises(ValueError, match="the network returned shape"):
        run(Denoiser(lambda x, t: x[:, :1], COSINE), X, steps=3)
    with pytest.raises(ValueError, match=r"cond\['y'\] must be a tensor with one row per sample"):
        run(STUB, X, steps=3, cond={"y": torch.zeros(2)})
    with pytest.raises(ValueError, match="the plan was made for schedule"):
        run(mixture_2d(DDPM), X, plan=DOWN)


def test_the_solution_of_an_encode_says_all_but_the_conditions():
    up = ddim_ode.encode(MODEL, spread(), steps=3)
    with pytest.raises(ValueError, match="already says how to go back; drop steps=3"):
        ddim_ode.decode(MODEL, up, steps=3)
    up = ddim_ode.encode(MODEL, spread(), "reversible", steps=3)
    with pytest.raises(ValueError, match=r"the solution was made with schedule .* that encoded"):
        ddim_ode.decode(mixture_2d(DDPM), up)
    with pytest.raises(ValueError, match=r"rk45 has no plan to undo: give its \.x"):
        ddim_ode.decode(MODEL, ddim_ode.encode(MODEL, spread(), "rk45"))


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
        *(dict(method=m, steps=400) for m in ("midpoint", "rk4", "reversible", "dpmpp2m")),
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
    for options in (
        dict(method="rk45"),
        dict(method="reversible", steps=5),
    ):
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


def test_a_gradient_goes_up_too():
    x = spread(2).requires_grad_()
    up = ddim_ode.encode(MODEL, x, "heun", steps=8, sigma_max=5.0, differentiable=True)
    (gradient,) = torch.autograd.grad(up.x.sum(), x)
    h = 1e-5
    ahead, behind = (
        ddim_ode.encode(MODEL, spread(2) + s * h, "heun", steps=8, sigma_max=5.0).x for s in (1, -1)
    )
    torch.testing.assert_close(gradient, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)
    assert not ddim_ode.encode(MODEL, x, steps=3).x.requires_grad
