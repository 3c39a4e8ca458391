"""Identities of every solve: schedules × grids × methods × shapes × dtypes × batches, drawn at random."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import SCHEDULES, Counting, mixture_2d

import ddim_ode
from ddim_ode import Denoiser, exact, grids
from ddim_ode.solvers.methods import METHODS

DETERMINISTIC = [name for name, method in METHODS.items() if not method.adds_noise]


def start(shape, schedule, n, sigma, dtype=torch.float32):
    return ddim_ode.noise(shape, schedule, seeds=range(n), sigma=sigma, dtype=dtype)


@st.composite
def solves(draw, methods=tuple(METHODS)):
    """A schedule, and the options that put a method on one of its grids."""
    schedule = SCHEDULES[draw(st.sampled_from(sorted(SCHEDULES)))]
    final = draw(st.sampled_from(grids.FINALS))
    grid = draw(st.sampled_from(grids.NAMES))
    options = dict(
        method=draw(st.sampled_from(methods)), grid=grid, final=final, steps=draw(st.integers(2, 7))
    )
    if np.isinf(schedule.sigma_max):
        options["sigma_max"] = 50.0
    return schedule, options


@given(solves(), st.sampled_from([(2,), (1, 2), (2, 1, 1)]), st.sampled_from([0, 1, 4]),
       st.sampled_from([torch.float32, torch.float64]))  # fmt: skip
def test_calls_are_those_of_the_plan_and_every_sample_arrives(solve, shape, n, dtype):
    schedule, options = solve
    net = Counting(mixture_2d(schedule).net)
    model = Denoiser(net, schedule, time=lambda t, sigma: sigma)
    x = start(shape, schedule, n, options.get("sigma_max"), dtype)
    sol = ddim_ode.sample(model, x, seeds=range(n), **options)
    assert (sol.nfe, net.calls) == ((sol.plan.nfe,) * 2 if n else (0, 0))
    assert (sol.net_evals, net.rows) == (n * sol.plan.nfe, n * net.calls)
    assert sol.sample_nfe.tolist() == [sol.nfe] * n
    assert sol.accepted.tolist() == [sol.plan.steps] * n
    assert sol.status.tolist() == ["success"] * n
    assert (sol.x.dtype, sol.x.shape) == (dtype, x.shape)
    assert sol.x.isfinite().all()


@given(solves(), st.permutations(range(4)), st.integers(1, 4))
def test_a_sample_does_not_see_its_batch(solve, order, kept):
    schedule, options = solve
    model, seeds = mixture_2d(schedule), np.array([7, 1, 900, 4])
    x = ddim_ode.noise((2,), schedule, seeds, options.get("sigma_max"), dtype=torch.float64)
    whole = ddim_ode.sample(model, x, seeds=seeds, **options)
    rows = list(order)[:kept]
    part = ddim_ode.sample(model, x[rows], seeds=seeds[rows], **options)
    # Up to what a matrix product of another size rounds differently.
    torch.testing.assert_close(part.x, whole.x[rows], rtol=1e-9, atol=1e-9)


@given(solves(DETERMINISTIC), st.sampled_from([0.5, -1.0, 4.0]))
def test_a_linear_field_keeps_scale_and_sign(solve, factor):
    # The ODE of N(0, C) is linear in x, and a power of two scales a float without rounding.
    schedule, options = solve
    model = exact.gaussian([0.0, 0.0], [[0.5, 0.2], [0.2, 0.3]], schedule)
    x = start((2,), schedule, 3, options.get("sigma_max"), torch.float64)
    one, scaled = (ddim_ode.sample(model, c * x, **options).x for c in (1.0, factor))
    torch.testing.assert_close(scaled, factor * one, rtol=1e-13, atol=0)


@given(solves(DETERMINISTIC))
def test_single_precision_agrees_with_double(solve):
    schedule, options = solve
    # A one-step method stores what the network predicts, and x̂₀ is well conditioned at every σ.
    model = mixture_2d(schedule, "x0")
    options["sigma_max"] = min(schedule.sigma_max, 50.0)
    x = start((2,), schedule, 3, options["sigma_max"])
    single, double = (ddim_ode.sample(model, x.to(d), **options) for d in (x.dtype, torch.float64))
    size = 1 + double.x.abs().max()
    gain = sum(abs(w) for op in double.plan.ops for w in op.weights) / len(double.plan.ops)
    assert (single.x - double.x).abs().max() < 1e-4 * size * max(1.0, gain)


@given(solves(DETERMINISTIC))
@settings(max_examples=25)
def test_a_bfloat16_network_is_fed_bfloat16_and_the_state_is_not_rounded(solve):
    schedule, options = solve
    seen = set()

    def net(x, t):
        seen.add((x.dtype, t.dtype))
        return torch.zeros_like(x)

    model = Denoiser(net, schedule, "x0", dtype=torch.bfloat16)
    x = start((2,), schedule, 3, options.get("sigma_max"))
    half = ddim_ode.sample(model, x, **options).x
    # x̂₀ = 0 has the same bits in either precision: so must the end state.
    full = ddim_ode.sample(Denoiser(net, schedule, "x0"), x, **options).x
    assert torch.equal(half, full)
    assert seen == {(torch.bfloat16, torch.float32), (torch.float32, torch.float32)}


@pytest.mark.parametrize("name", [*METHODS, "scipy:RK45", "torchdiffeq:dopri5"])
def test_how_a_start_lies_in_memory_does_not_matter(name):
    model = mixture_2d(SCHEDULES["cosine"])
    x = start((2,), model.schedule, 4, None, torch.float64)
    options = dict(seeds=range(4)) if ":" in name else dict(seeds=range(4), steps=4)
    plain = ddim_ode.sample(model, x, name, **options).x
    tracked = x.clone().requires_grad_()
    end = ddim_ode.sample(model, tracked, name, **options).x
    assert torch.equal(end, plain)
    assert not end.requires_grad
    strided = torch.stack([x, x + 1], -1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(ddim_ode.sample(model, strided, name, **options).x, plain)
    with torch.inference_mode():
        inside = ddim_ode.sample(model, x.clone(), name, **options).x
    assert torch.equal(inside, plain)
