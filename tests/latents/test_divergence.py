"""Derivatives of networks that torch.func cannot transform, and of those that have none to give."""

import numpy as np
import pytest
import torch
from problems import COSINE, Counting, mixture_2d, points
from refusals import expect
from torch.utils.checkpoint import checkpoint

from ddim_ode import Denoiser, Guidance, accelerate, log_likelihood

MODEL = mixture_2d(COSINE)
X = 0.3 * points(3, 2)
KNOWN = MODEL.log_prob(X, COSINE.sigma_min)
EXACT = dict(prior=MODEL.log_prob, rtol=1e-5, atol=1e-5)
ORIGINAL = MODEL.net


def energy(x, sigma):
    """−ln p up to a constant; its gradient is ε̂/β̄."""
    return -torch.logsumexp(MODEL._components(x, sigma)[0], dim=1).sum()


def column(sigma):
    return (sigma / torch.hypot(torch.ones_like(sigma), sigma))[:, None]


def numpy_time(x, t):
    return ORIGINAL(x, torch.from_numpy(np.asarray(t) * 1.0))


def gradient_inside(x, t):
    with torch.enable_grad():
        x = x if x.requires_grad else x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(energy(x, t), x, create_graph=True)
    return column(t) * gradient


def functional_gradient(x, t):
    return column(t) * torch.func.grad(lambda y: energy(y, t))(x)


class Old(torch.autograd.Function):
    """An autograd function of the old kind, which torch.func refuses."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


def own_function(x, t):
    return ORIGINAL(x, t) + Old.apply(x) - x**3


def harmless_detach(x, t):
    seen.append(float(x.detach().mean()))
    return ORIGINAL(x, t)


seen: list[float] = []
RIGHT = [numpy_time, gradient_inside, functional_gradient, own_function, harmless_detach]


def exact(net, prediction="eps", **options):
    return Denoiser(net, COSINE, prediction, time=lambda t, sigma: sigma, **options)


@pytest.mark.parametrize("net", RIGHT)
def test_the_closed_form_whatever_the_network_does_inside(net):
    found = log_likelihood(exact(net), X, **EXACT)
    torch.testing.assert_close(found.log_likelihood, KNOWN, atol=1e-4, rtol=0)


@pytest.mark.parametrize("net", RIGHT)
def test_probes_see_the_same_products(net):
    options = dict(divergence="hutchinson", probes=3, steps=12, method="rk4")
    found, known = (log_likelihood(exact(n), X, **options) for n in (net, ORIGINAL))
    torch.testing.assert_close(found.log_likelihood, known.log_likelihood, atol=1e-8, rtol=0)
    torch.testing.assert_close(found.std_error, known.std_error, atol=1e-8, rtol=0)


def conditional(plain):
    def net(x, t, c):
        answer = plain(x, t) if plain is ORIGINAL else numpy_time(x, t)
        return answer + 0.1 * c[:, None] * torch.sin(x)

    return net


@pytest.mark.filterwarnings("ignore:guidance")
@pytest.mark.parametrize("batch", [None, 2])
def test_conditions_and_guidance_come_with_plain_autograd(batch):
    """(1 + s(c − ∅)) is what a linear condition is guided to."""
    cond = {"c": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
    for options in (dict(rtol=1e-2), dict(steps=9, method="heun")):
        guided = exact(conditional(None), guidance=Guidance(2.0, {"c": -1.0}))
        if batch:
            guided = accelerate(guided, batch=batch)
        found = log_likelihood(guided, X, cond=cond, **options)
        plain = {"c": 2 * cond["c"] + 1}
        known = log_likelihood(exact(conditional(ORIGINAL)), X, cond=plain, **options)
        torch.testing.assert_close(found.log_likelihood, known.log_likelihood, atol=1e-8, rtol=0)


def test_calls_of_plain_autograd_are_counted():
    net = Counting(numpy_time)
    found = log_likelihood(exact(net), X, steps=4, method="heun")
    assert net.rows == found.net_evals == 3 * (found.nfe + 1)  # one call was torch.func's


def test_a_network_of_zeros_has_the_derivative_0():
    net = Counting(lambda x, t: torch.zeros_like(x))
    found = log_likelihood(exact(net), X, prior=lambda x, sigma: x.new_zeros(len(x)))
    bottom, top = (COSINE.scales(s)[0] for s in found.sigmas)
    # x/ᾱ stays, so the density changes by (ᾱ_T/ᾱ)² in two dimensions.
    torch.testing.assert_close(
        found.log_likelihood, torch.full_like(KNOWN, 2 * np.log(top / bottom)), atol=1e-3, rtol=1e-4
    )
    assert net.rows == found.net_evals


def classifier_guided(x, t):
    """As guided-diffusion's cond_fn has it: the gradient's own derivative is lost."""
    with torch.enable_grad():
        z = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad((z**4).sum(), z)
    return ORIGINAL(x, t) + gradient


def own_gradient_detached(x, t):
    with torch.enable_grad():
        z = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(energy(z, t), z, create_graph=True)
    return column(t) * gradient


def no_grad_within(x, t):
    with torch.no_grad():
        guess = torch.tanh(x)
    return ORIGINAL(x, t) + guess


CUT = {
    "detach": lambda x, t: ORIGINAL(x.detach(), t),
    "data": lambda x, t: ORIGINAL(x.data, t),
    "no_grad": torch.no_grad()(ORIGINAL),
    "numpy": lambda x, t: torch.from_numpy(0.5 * x.detach().numpy()),
    "self-conditioned": no_grad_within,
    "classifier": classifier_guided,
    "energy": own_gradient_detached,
    "module": lambda x, t: x + 0.5 * x.detach(),
    "at high levels": lambda x, t: torch.where(
        column(t) > 0.5, ORIGINAL(x, t).detach(), ORIGINAL(x, t)
    ),
}


@pytest.mark.parametrize(
    "options", [{}, dict(divergence="hutchinson"), dict(steps=3, method="heun")]
)
@pytest.mark.parametrize("name", CUT)
def test_a_cut_derivative_is_refused(name, options):
    with pytest.raises(ValueError, match=r"derivative is cut: .* keep the graph"):
        log_likelihood(exact(CUT[name]), X, **options)


def test_what_autograd_cannot_do_at_all_is_named():
    net = lambda x, t: checkpoint(ORIGINAL, x, t, use_reentrant=True)  # noqa: E731
    expect(lambda: log_likelihood(exact(net), X), r"no derivative .* operations that autograd can")
    with torch.inference_mode(), pytest.raises(ValueError, match="call log_likelihood outside it"):
        log_likelihood(exact(numpy_time), X)


def test_the_networks_own_error_comes_through():
    def net(x, t):
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        log_likelihood(exact(net), X)
