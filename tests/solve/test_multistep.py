"""Adaptive multistep solves: their order, what they cost, and how a sample's history follows it."""

import numpy as np
import pytest
import torch
from problems import COSINE, mixture_1d, mixture_2d, points
from refusals import expect

import ddim_ode
from ddim_ode import Denoiser, exact, schedules

UNI = ("unipc2", "unipc3")
SPAN = dict(sigma_max=20.0, sigma_min=0.01, final="sigma_min")


def solve(model, x, method, tol, **options):
    return ddim_ode.sample(model, x, method, rtol=tol, atol=tol, max_nfe=10**5, **options)


@pytest.mark.parametrize(
    ("method", "schedule", "tight", "order"),
    [
        ("unipc2", schedules.ve(80.0), 1e-7, 2.7),
        ("unipc3", COSINE, 1e-8, 3.5),
        ("unipc3", schedules.flow(), 1e-8, 3.5),
    ],
    ids=lambda value: getattr(value, "family", None),
)
def test_the_error_falls_with_the_calls_at_the_order_of_the_method(method, schedule, tight, order):
    model = mixture_1d(schedule)
    x = points(5) * float(np.hypot(*schedule.scales(20.0)))
    truth = model.flow(x, 20.0, 0.01)
    loose, fine = (solve(model, x, method, tol, **SPAN) for tol in (1e-4, tight))
    errors = [float((sol.x - truth).abs().max()) for sol in (loose, fine)]
    calls = [float(sol.sample_nfe.mean()) for sol in (loose, fine)]
    assert np.log(errors[0] / errors[1]) / np.log(calls[1] / calls[0]) > order


@pytest.mark.parametrize("method", UNI)
def test_a_constant_prediction_is_followed_exactly_at_any_tolerance(method):
    net = lambda x, t: torch.full_like(x, 0.7)  # noqa: E731
    model = Denoiser(net, COSINE, "x0")
    sol = solve(model, points(3, 2), method, 0.5)
    torch.testing.assert_close(sol.x, torch.full_like(sol.x, 0.7), rtol=0, atol=1e-12)
    assert sol.rejected.sum() == 0
    (alpha, beta), (top, size) = COSINE.scales(1.0), COSINE.scales(model.sigma_max)
    expected = 0.7 * alpha + beta * (points(3, 2) - 0.7 * top) / size
    torch.testing.assert_close(sol.at(1.0), expected, rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def twenty():
    """Twenty Gaussians in 16 dimensions, noises and their ends."""
    means = np.random.default_rng(0).normal(size=(20, 16))
    covs = np.full((20, 16), 0.05)
    model = exact.gaussian_mixture(np.ones(20) / 20, means, covs, schedules.ddpm())
    x = ddim_ode.noise((16,), model.schedule, seeds=range(24), dtype=torch.float64)
    return model, x, solve(model, x, "rk45", 1e-8).x


@pytest.mark.parametrize("method", UNI)
def test_a_trial_costs_one_call_and_few_are_rejected(method, twenty):
    model, x, _ = twenty
    for tol in (1e-1, 1e-2, 1e-3):
        sol = solve(model, x, method, tol)
        assert sol.sample_nfe.tolist() == (sol.accepted + sol.rejected).tolist()
        assert sol.rejected.sum() <= 0.2 * sol.sample_nfe.sum()


def test_it_needs_fewer_calls_than_runge_kutta_for_an_error(twenty):
    model, x, truth = twenty

    def cheapest(name):
        for tol in np.geomspace(0.1, 1e-5, 10):  # fewer calls come first
            sol = solve(model, x, name, tol)
            if float((sol.x - truth).square().mean().sqrt()) <= 3e-3:
                return sol.sample_nfe.mean()

    assert max(map(cheapest, UNI)) < 0.95 * min(map(cheapest, ("rk45", "bosh3")))


@pytest.mark.parametrize("method", UNI)
def test_a_solve_starts_at_infinite_sigma_and_comes_back(method):
    model = mixture_1d(schedules.flow(), "flow")
    x = points(5)
    sol = solve(model, x, method, 1e-5, final="sigma_min")
    truth = model.flow(x, np.inf, model.schedule.sigma_min)
    torch.testing.assert_close(sol.x, truth, rtol=0, atol=1e-3)
    tight = dict(rtol=1e-5, atol=1e-5, max_nfe=10**4)
    up = ddim_ode.encode(MIXTURE, points(5), method, **tight)
    down = ddim_ode.decode(MIXTURE, up.x, method, **tight)
    torch.testing.assert_close(down.x, points(5), rtol=0, atol=1e-3)


MIXTURE = mixture_1d(COSINE)


@pytest.mark.parametrize("method", UNI)
def test_a_budget_is_spent_better_than_by_ddim(method):
    x = ddim_ode.noise((1,), COSINE, seeds=range(8), dtype=torch.float64)
    sol = ddim_ode.sample(MIXTURE, x, method, rtol=1e-6, nfe=12)
    truth = solve(MIXTURE, x, "rk45", 1e-8).x
    steady = ddim_ode.sample(MIXTURE, x, "ddim", steps=12, grid="log_snr").x
    assert float((sol.x - truth).square().mean()) < float((steady - truth).square().mean())


@pytest.mark.parametrize("nfe", [2, 3])
def test_a_budget_too_small_to_tell_is_no_success(nfe):
    """One step from pure noise to next to the data confirms itself."""
    model = mixture_1d(schedules.flow(), "flow")
    x = ddim_ode.noise((1,), model.schedule, range(12), sigma=np.inf, dtype=torch.float64)
    for method in UNI:
        sol = ddim_ode.sample(model, x, method, rtol=1e-3, atol=1e-3, nfe=nfe)
        assert (sol.status == "max_nfe").all()
        truth = solve(model, x, "rk45", 1e-7).x
        assert float(sol.error.mean()) > 0.2 * float((sol.x - truth).abs().mean())


def test_snapped_models_are_refused_with_the_reason():
    model = mixture_2d(schedules.ddpm()).replace(snap=True)
    expect(lambda: solve(model, points(2, 2), "unipc2", 1e-2), "snap=True .* nfe= for a fixed plan")
