"""The sampling ODE as a callable: one exact trajectory solves it in every variable and state."""

import itertools

import numpy as np
import pytest
import torch
from problems import EXPONENTIAL, SCHEDULES, Counting, gaussian_2d, points
from scipy.integrate import solve_ivp
from torchdiffeq import odeint

import ddim_ode
from ddim_ode.solve.probability_flow import STATES, VARIABLES

NAMES = ["ddpm", "exponential", "cosine", "vp", "ve", "flow"]
# Eighth-order central difference.
STENCIL = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}


def tau_of(variable, schedule, t):
    sigma = float(schedule.sigma(t))
    return dict(s=(t / schedule.T) ** 2, t=t, sigma=sigma, log_sigma=np.log(sigma))[variable]


def sigma_at(variable, schedule, tau):
    if variable in ("s", "t"):
        return float(schedule.sigma(tau if variable == "t" else schedule.T * np.sqrt(tau)))
    return tau if variable == "sigma" else float(np.exp(tau))


def tanh_model(schedule=EXPONENTIAL, prediction="eps"):
    return ddim_ode.Denoiser(
        lambda x, t: torch.tanh(1.3 * x + torch.sin(t / 170)[:, None]), schedule, prediction
    )


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("name", NAMES)
def test_the_exact_flow_solves_the_ode(name, variable, state):
    schedule = SCHEDULES[name]
    model, x = gaussian_2d(schedule), points(4, 2)
    field = ddim_ode.ProbabilityFlow(model, variable, state)
    for fraction in (0.1, 0.5, 0.9):
        t, width = fraction * schedule.T, 0.04 * min(fraction, 1 - fraction) * schedule.T
        if name == "ddpm":  # inside one segment of the interpolation
            t, width = t + 0.5, 0.4
        tau = tau_of(variable, schedule, t)
        h = (tau_of(variable, schedule, t + width) - tau) / 4
        start = sigma_at(variable, schedule, tau)

        def path(at, start=start):
            sigma = sigma_at(variable, schedule, at)
            moved = model.flow(x, start, sigma)
            return moved if state == "x" else moved / float(schedule.scales(sigma)[0])

        slope = sum(w * (path(tau + k * h) - path(tau - k * h)) for k, w in STENCIL.items()) / h
        assert (field(tau, path(tau)) - slope).abs().max() <= 1e-8 * slope.abs().max()


@pytest.mark.parametrize("s", [1e-6, 1e-3, 0.2, 1.0])
def test_the_exponential_schedule_gives_its_formula_literally(s):
    def eps_theta(x, t):
        return torch.tanh(1.3 * x + torch.sin(t / 170)[:, None])

    x = points(4, 2)
    ode = ddim_ode.ProbabilityFlow(ddim_ode.Denoiser(eps_theta, EXPONENTIAL), variable="s")
    eps = eps_theta(x, torch.full((4,), 1000 * np.sqrt(s), dtype=torch.float64))
    expected = 5 * (eps / np.sqrt(-np.expm1(-10 * s)) - x)
    torch.testing.assert_close(ode(s, x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("variable", "state"), [*zip(VARIABLES, itertools.cycle(STATES))])
def test_torchdiffeq_and_scipy_take_it_as_it_is(variable, state):
    exact, x = gaussian_2d(EXPONENTIAL), points(4, 2)
    net, tight = Counting(exact.net), dict(rtol=1e-6, atol=1e-7)
    model = ddim_ode.Denoiser(net, EXPONENTIAL, time=exact.time)
    ode = ddim_ode.ProbabilityFlow(model, variable, state, shape=(2,))
    first, (top, end) = ode.to_state(x, 20.0), ode.span(20.0, 0.1)
    path = odeint(ode, first, torch.tensor([top, end], dtype=torch.float64), **tight)
    assert ode.nfe == net.calls > 0
    known = exact.flow(x, 20.0, 0.1)
    torch.testing.assert_close(ode.to_x(path[-1], end), known, rtol=0, atol=1e-3)
    out = solve_ivp(ode, (top, end), first.numpy().reshape(-1), method="DOP853", **tight)
    torch.testing.assert_close(ode.to_x(out.y[:, -1], out.t[-1]), known, rtol=0, atol=1e-3)
    assert ode.nfe == net.calls


@pytest.mark.parametrize("variable", VARIABLES)
def test_torchdiffeq_may_step_past_both_default_ends(variable):
    model, x = gaussian_2d(EXPONENTIAL), points(4, 2)
    ode = ddim_ode.ProbabilityFlow(model, variable)
    assert variable != "t" or ode.span() == pytest.approx((1000.0, 1.0))  # as sampling's
    span = torch.tensor(ode.span(), dtype=torch.float64)
    path = odeint(ode, x, span, rtol=1e-5, atol=1e-7)
    expected = model.flow(x, EXPONENTIAL.sigma_max, EXPONENTIAL.sigma_min)
    torch.testing.assert_close(path[-1], expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize("state", STATES)
def test_states_convert_there_and_back(state):
    ode, x = ddim_ode.ProbabilityFlow(gaussian_2d(EXPONENTIAL), "s", state), points(4, 2)
    torch.testing.assert_close(ode.to_x(ode.to_state(x, 9.0), ode.tau(9.0)), x)
    expected = x if state == "x" else x * np.hypot(1, 9.0)
    torch.testing.assert_close(ode.to_state(x, 9.0), expected)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("variable", VARIABLES)
def test_the_field_is_differentiable_in_the_state(variable, state):
    ode = ddim_ode.ProbabilityFlow(tanh_model(), variable, state)
    x = points(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ode(ode.tau(1.5), x), (x,))


def test_a_whole_solve_is_differentiable_in_the_network():
    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    model = ddim_ode.Denoiser(lambda x, t: torch.tanh(weight * x), EXPONENTIAL)
    ode, x = ddim_ode.ProbabilityFlow(model, "log_sigma"), points(2, 2)
    span = torch.linspace(*ode.span(5.0, 0.2), 9, dtype=torch.float64)

    def end(value):
        with torch.no_grad():
            weight.fill_(value)
        return odeint(ode, x, span, method="rk4")[-1].sum()

    difference = (end(0.8 + 1e-5) - end(0.8 - 1e-5)).item() / 2e-5
    (gradient,) = torch.autograd.grad(end(0.8), weight)
    assert gradient.item() == pytest.approx(difference, rel=1e-8)


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_the_field_starts_at_infinite_sigma_for_networks_that_see_x0(prediction):
    schedule = ddim_ode.schedules.flow()
    model, x = gaussian_2d(schedule, prediction), points(4, 2)
    rate = ddim_ode.ProbabilityFlow(model, "t")(1.0, x)
    # At ᾱ = 0 nothing is known of x₀ but its mean, and ε is x.
    torch.testing.assert_close(rate, x - torch.tensor([0.7, -0.4]).double())


def test_conditions_reach_the_network():
    def net(x, t, y, gain):
        return gain * y[:, None] * x

    model, x = ddim_ode.Denoiser(net, EXPONENTIAL), points(3, 2)
    y = torch.tensor([0.0, 1.0, 2.0]).double()
    ode = ddim_ode.ProbabilityFlow(
        model, "sigma", "x/alpha_bar", cond=dict(y=y), shared=dict(gain=3.0)
    )
    alpha = float(EXPONENTIAL.scales(2.0)[0])
    torch.testing.assert_close(ode(2.0, x), 3 * y[:, None] * x * alpha)


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_field_past_the_end_is_that_of_sigma_min(variable):
    # dopri5's first trial step over data of unit variance, whose x hardly moves, is as long as this
    ode, x = ddim_ode.ProbabilityFlow(tanh_model(), variable), points(2, 2)
    assert torch.equal(ode(-2000.0, x), ode(ode.tau(ode.model.schedule.sigma_min), x))
