"""The converged solutions that comparisons measure against."""

import numpy as np
import pytest
import torch
from problems import COSINE, DDPM, SCHEDULES, Counting, mixture_1d, zero_snr

import ddim_ode
from ddim_ode.denoising.problem import Problem
from ddim_ode.solve import reference
from ddim_ode.solve.solution import norm_per_sample


def exact_end(model, x):
    top, bottom = model.schedule.sigma_max, model.schedule.sigma_min
    return model(model.flow(x.double(), top, bottom), bottom)[0]


@pytest.mark.parametrize(
    "name", ["ddpm_2e-5", "exponential", "cosine", "cumprod", "ve", "flow", "zero_snr"]
)
def test_reference_is_as_near_the_exact_flow_as_it_says(name):
    schedule = zero_snr() if name == "zero_snr" else SCHEDULES[name]
    blind = np.isinf(schedule.sigma_max)
    model = mixture_1d(schedule, "v" if blind else "eps")
    x = ddim_ode.noise((1,), schedule, seeds=range(16))
    made = reference.solve(Problem(model), x)
    error = float(norm_per_sample(made.x - exact_end(model, x)).mean())
    assert 0 < error <= made.error < 2e-6
    assert made.x.dtype == torch.float64


def test_reference_refines_until_its_goal():
    model = mixture_1d(DDPM)
    x = ddim_ode.noise((1,), DDPM, seeds=range(8))
    coarse, fine = (reference.solve(Problem(model), x, goal=goal) for goal in (1e-5, 1e-7))
    assert coarse.error > 1e-7 >= fine.error
    assert fine.net_evals > coarse.net_evals
    assert norm_per_sample(fine.x - exact_end(model, x)).mean() < 1e-7


def test_reference_calls_a_float32_network_in_float32():
    seen = set()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x, t):
            seen.add(x.dtype)
            return torch.tanh(self.layer(x))

    with torch.no_grad():
        made = reference.solve(Problem(ddim_ode.Denoiser(Net(), COSINE)), torch.randn(2, 2))
    assert seen == {torch.float32}
    assert made.x.dtype == torch.float64


def test_reference_of_a_snapping_model_sees_trained_levels_only():
    exact = mixture_1d(SCHEDULES["cumprod"])
    net = Counting(exact.net)
    model = ddim_ode.Denoiser(net, exact.schedule, time=exact.time, snap=True)
    reference.solve(Problem(model), torch.zeros(1, 1))
    levels = exact.schedule.levels.astype(np.float32)
    assert {float(t) for t in torch.cat(net.times)} <= {float(s) for s in levels}


def test_given_reference_is_used_as_it_is():
    model = mixture_1d(COSINE)
    x = ddim_ode.noise((1,), COSINE, seeds=range(4))
    r = ddim_ode.compare(model, ["ddim"], [5], n=4, reference=exact_end(model, x), progress=False)
    assert (r.reference_error, r.reference_net_evals, r.floor) == (0.0, 0, 0.0)
    expected = ddim_ode.sample(model, x, "ddim", nfe=5).x - exact_end(model, x)
    assert r.errors[0] == pytest.approx(expected.abs().squeeze(1).numpy(), rel=1e-6)
