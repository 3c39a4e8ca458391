"""Parity with k-diffusion's stochastic samplers on a nonlinear network, with the noise that it drew.

| peer                         | ours                             | departure |
|------------------------------|----------------------------------|----------------------------------------|
| sample_euler_ancestral       | euler_ancestral                  | none |
| sample_dpmpp_2m_sde midpoint | dpmpp2m_sde                      | none |
| sample_dpmpp_2m_sde heun     | the same without rules           | none |
| sample_dpmpp_3m_sde          | dpmpp3m_sde with rules=("half",) | D'' without its factor 2, as its ODE |
| sample_dpmpp_sde             | dpmpp_sde, in weights at η = 1   | draws of stage and step are correlated |
|                              |                                  | as Brownian in σ, ours in 1/σ² |
| sample_dpm_2_ancestral       | dpm2 with rises=Ancestral()      | none |
| sample_heun, churn           | edm_stochastic, rises=Churn(...) | none |
| sample_euler, churn          | Euler with rises=Churn(...)      | none |
| sample_dpm_2, churn          | dpm2 with rises=Churn(...)       | none |
"""

from dataclasses import replace

import numpy as np
import peers
import pytest
import torch

import ddim_ode
from ddim_ode.solve.loop import integrate
from ddim_ode.solvers.methods import METHODS, Method
from ddim_ode.solvers.renoising import Ancestral, Churn
from ddim_ode.solvers.stochastic import of_tau

SCHEDULE = ddim_ode.schedules.ve(80.0)
GRID = np.append(np.geomspace(20.0, 0.05, 9), 0.0)
X = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)[:, None] * 20.0


def x0_of(x, sigma):
    return torch.tanh(x / (1 + sigma)) + 0.1 * torch.sin(x)


def peer(name, sampler=True, **options):
    """The peer's end state, and its draws in order."""
    module = peers.load("k_diffusion.sampling")
    made, source = [], torch.Generator().manual_seed(0)

    def draw(*levels):
        made.append(torch.randn(X.shape, generator=source, dtype=torch.float64))
        return made[-1]

    end = getattr(module, f"sample_{name}")(
        lambda x, sigma, **extra: x0_of(x, sigma[0]),
        X,
        torch.as_tensor(GRID),
        disable=True,
        **(dict(noise_sampler=draw) if sampler else {}),
        **options,
    )
    return end, made


def ours(plan, draws):
    nodes, ready = plan.nodes, iter(draws)
    end = integrate(plan, lambda y, k: x0_of(y, nodes[k].sigma), X, draw=lambda: next(ready)).x
    assert next(ready, None) is None
    return end


@pytest.mark.parametrize(
    ("name", "options", "method"),
    [
        ("euler_ancestral", {}, METHODS["euler_ancestral"]),
        ("dpmpp_2m_sde", dict(solver_type="midpoint"), METHODS["dpmpp2m_sde"]),
        ("dpmpp_2m_sde", dict(solver_type="heun"), replace(METHODS["dpmpp2m_sde"], rules=())),
        ("dpmpp_3m_sde", {}, replace(METHODS["dpmpp3m_sde"], rules=("half",))),
    ],
)
def test_same_draws_make_the_same_samples(name, options, method):
    end, draws = peer(name, **options)
    plan = ddim_ode.plan(method, SCHEDULE, GRID, vector="x0")
    torch.testing.assert_close(ours(plan, draws), end, rtol=1e-6, atol=1e-6)


CHURNS = [Churn(40.0, 0.0, 100.0), Churn(2.0, 0.1, 5.0, 1.007)]


@pytest.mark.parametrize("churn", CHURNS)
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("heun", METHODS["edm_stochastic"]),
        ("euler", Method("euler", None)),
        ("dpm_2", METHODS["dpm2"]),
    ],
)
def test_churn_is_theirs_with_all_its_settings(name, method, churn, monkeypatch):
    made, source = [], torch.Generator().manual_seed(0)

    def randn_like(x):
        made.append(torch.randn(X.shape, generator=source, dtype=torch.float64))
        return made[-1]

    monkeypatch.setattr(peers.load("k_diffusion.sampling").torch, "randn_like", randn_like)
    settings = dict(s_churn=churn.amount, s_tmin=churn.low, s_tmax=churn.high)
    end, _ = peer(name, sampler=False, s_noise=churn.noise_scale, **settings)
    plan = ddim_ode.plan(replace(method, rises=churn), SCHEDULE, GRID, vector="x0")
    used = [z for z, s in zip(made, GRID) if churn.low <= s <= churn.high]
    if len(made) == len(GRID) - 1:  # it draws in every step, and leaves out what it has no use for
        inside = (GRID[:-1] >= churn.low) & (GRID[:-1] <= churn.high)
        used = [z for z, add in zip(made, inside) if add]
    torch.testing.assert_close(ours(plan, used), end, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_steps_of_dpm_2(eta):
    end, draws = peer("dpm_2_ancestral", eta=eta)
    method = replace(METHODS["dpm2"], rises=Ancestral(eta))
    plan = ddim_ode.plan(method, SCHEDULE, GRID, vector="x0")
    torch.testing.assert_close(ours(plan, draws), end, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_its_eta_of_2m_is_tau_squared(eta):
    end, draws = peer("dpmpp_2m_sde", eta=eta)
    noise = of_tau(SCHEDULE, GRID, np.sqrt(eta))
    plan = ddim_ode.plan("dpmpp2m_sde", SCHEDULE, GRID, noise_std=noise)
    torch.testing.assert_close(ours(plan, draws), end, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_its_eta_of_ancestral_steps_is_ddims(eta):
    end, draws = peer("euler_ancestral", eta=eta)
    plan = ddim_ode.plan("euler_ancestral", SCHEDULE, GRID, eta=eta)
    torch.testing.assert_close(ours(plan, draws), end, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_dpmpp_sde_differs_in_the_correlation_of_its_draws_alone(eta):
    """At η = 1 all weights are its own; below, its stage has DDIM's η over half the step, ours the τ of the
    whole."""
    end, draws = peer("dpmpp_sde", eta=eta)
    plan = ddim_ode.plan("dpmpp_sde", SCHEDULE, GRID, eta=eta)
    shared = [op.noise for op in plan.ops if isinstance(op.noise, tuple)]
    # its second draw is the step's whole noise: ours is what of that is not in the first
    made = list(draws)
    for i, (own, before) in enumerate(shared):
        whole = np.hypot(own, before)
        made[2 * i + 1] = (whole * draws[2 * i + 1] - before * draws[2 * i]) / own
    gap = float((ours(plan, made) - end).abs().max())
    assert gap < 1e-6 if eta == 1.0 else 1e-4 < gap < 0.5


def test_the_plain_3m_has_the_factor_that_its_has_not():
    end, draws = peer("dpmpp_3m_sde")
    plan = ddim_ode.plan("dpmpp3m_sde", SCHEDULE, GRID)
    assert 1e-3 < float((ours(plan, draws) - end).abs().max()) < 1.0
