"""The front door: conditions, guidance, snapping, what is recorded, and other packages' solvers."""

import json

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
    zero_snr,
)

import ddim_ode
from ddim_ode import Denoiser, Guidance, grids
from ddim_ode.solvers.methods import METHODS

X = points(3, 2)
LABELS = torch.tensor([1, 4, 2])


def labelled(x, t, y):
    return torch.tanh(x + 0.3 * y[:, None].to(x.dtype))


@pytest.mark.parametrize(
    ("name", "scale"), [("ddim", 0.0), ("heun", 2.5), ("ab2", -1.0), ("ddim", 1.0)]
)
def test_guidance_is_the_formula_of_two_calls_and_one_batched_call(name, scale):
    net = Counting(labelled)

    def by_hand(x, t, y):
        null = labelled(x, t, torch.zeros_like(y))
        return null + scale * (labelled(x, t, y) - null)

    options = dict(method=name, steps=6, cond=dict(y=LABELS))
    expected = ddim_ode.sample(Denoiser(by_hand, COSINE), X, **options)
    guidance = Guidance(scale, null={} if scale == 1 else dict(y=0))
    sol = ddim_ode.sample(Denoiser(net, COSINE, guidance=guidance), X, **options)
    torch.testing.assert_close(sol.x, expected.x, rtol=1e-12, atol=1e-13)
    assert sol.nfe == net.calls == expected.nfe
    assert sol.net_evals == net.rows == (3 if scale == 1 else 6) * sol.nfe


def test_guidance_drops_only_the_conditions_it_names():
    seen = []

    def net(x, t, y, z):
        seen.append((y.tolist(), z.tolist()))
        return torch.tanh(x)

    model = Denoiser(net, COSINE, guidance=Guidance(2.0, null=dict(y=9)))
    ddim_ode.sample(model, X, steps=1, cond=dict(y=LABELS, z=LABELS + 10))
    assert seen == [([1, 4, 2, 9, 9, 9], [11, 14, 12, 11, 14, 12])]


def test_a_null_condition_may_be_a_tensor_of_one_sample():
    def net(x, t, c):
        return torch.tanh(x + c)

    null = torch.tensor([0.5, -0.5], dtype=torch.float64)
    model = Denoiser(net, COSINE, guidance=Guidance(0.0, null=dict(c=null)))
    sol = ddim_ode.sample(model, X, steps=4, cond=dict(c=torch.ones(3, 2).double()))
    plain = ddim_ode.sample(Denoiser(net, COSINE), X, steps=4, cond=dict(c=null.expand(3, 2)))
    torch.testing.assert_close(sol.x, plain.x)


@pytest.mark.parametrize("method", ["ddim", "rk4", "torchdiffeq:dopri5", "scipy:RK45"])
def test_each_sample_gets_its_own_condition(method):
    where = {} if ":" in method else dict(steps=6)
    options = dict(method=method, shared=dict(gain=0.7), **where)
    model = Denoiser(lambda x, t, y, gain: gain * labelled(x, t, y), COSINE)
    together = ddim_ode.sample(model, X, cond=dict(y=LABELS), sigma_max=20.0, **options)
    alone = ddim_ode.sample(model, X[1:2], cond=dict(y=LABELS[1:2]), sigma_max=20.0, **options)
    # The adaptive solvers share their steps over the batch.
    torch.testing.assert_close(together.x[1:2], alone.x, rtol=0, atol=0.02 if ":" in method else 0)


def test_snap_moves_sigma_and_time_together():
    net = Counting()
    sol = ddim_ode.sample(Denoiser(net, DDPM, snap=True, time_offset=-1.0), X, steps=7)
    times = torch.stack(net.times)[:, 0].numpy()
    np.testing.assert_array_equal(times, times.round())
    np.testing.assert_allclose(sol.sigmas[:-1], DDPM.sigma(times + 1), rtol=1e-13)


@pytest.mark.parametrize(("t", "nearest"), [(400.3, 400), (400.7, 401), (0.2, 1)])
def test_snap_between_levels_answers_for_the_nearest(t, nearest):
    exact = mixture_2d(DDPM)
    net = lambda x, t: exact.net(x, torch.as_tensor(DDPM.sigma(t.numpy())))  # noqa: E731
    between = float(DDPM.sigma(t))
    x0, eps = Denoiser(net, DDPM, snap=True)(X, between)
    expected_x0, expected_eps = exact(X, float(DDPM.sigma(nearest)))
    torch.testing.assert_close(eps, expected_eps, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(x0, expected_x0, rtol=1e-9, atol=1e-10)


def test_a_custom_time_sees_schedule_time_and_sigma_of_the_same_level():
    net = Counting()
    model = Denoiser(net, COSINE, time=lambda t, sigma: 1000 * t + np.log(sigma))
    sol = ddim_ode.sample(model, X, steps=5, sigma_max=30.0)
    levels = sol.sigmas[:-1]
    expected = 1000 * COSINE.time(levels) + np.log(levels)
    np.testing.assert_allclose(torch.stack(net.times)[:, 0], expected, rtol=1e-13)


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.rises is None])
def test_record_x_holds_the_state_of_every_level(name):
    grid = grids.make_grid("time", COSINE, 5, sigma_max=20.0)
    model, options = mixture_2d(COSINE), dict(seeds=[1, 2, 3])
    sol = ddim_ode.sample(model, X, name, grid=grid, record="x", **options)
    assert len(sol.trajectory) == len(sol.sigmas)
    assert torch.equal(sol.trajectory[0], X)
    for i in (1, 3, 5):
        if METHODS[name].corrector and i < 5:  # which the last step of a solve goes without
            part = ddim_ode.sample(model, X, name, grid=grid[: i + 2], record="x", **options)
            state = part.trajectory[i]
        else:
            state = ddim_ode.sample(model, X, name, grid=grid[: i + 1], **options).x
        torch.testing.assert_close(sol.trajectory[i], state, rtol=1e-12, atol=1e-13)


def test_record_x0_of_a_corrector_is_the_prediction_that_corrected():
    exact, given = mixture_2d(COSINE, "x0"), []

    def net(x, t):
        given.append(exact.net(x, torch.as_tensor(COSINE.sigma(t.numpy()))))
        return given[-1]

    model = ddim_ode.Denoiser(net, COSINE, "x0")
    sol = ddim_ode.sample(model, X, "unipc3", steps=5, sigma_max=20.0, record="x0")
    torch.testing.assert_close(sol.trajectory[:-1], torch.stack(given))


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        (name, ("eps", "x0", "v")[i % 3])
        for i, name in enumerate(n for n, m in METHODS.items() if not (m.corrector or m.rises))
    ],
)
def test_record_x0_holds_the_prediction_of_every_level(name, prediction):
    model = mixture_2d(COSINE, prediction)
    options = dict(steps=5, sigma_max=20.0, seeds=[1, 2, 3])
    sol = ddim_ode.sample(model, X, name, record="x0", **options)
    states = ddim_ode.sample(model, X, name, record="x", **options).trajectory
    for x0, x, sigma in zip(sol.trajectory, states, sol.sigmas[:-1]):
        torch.testing.assert_close(x0, model(x, sigma)[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(sol.trajectory[-1], sol.x)


def test_record_x0_from_infinite_sigma_starts_with_the_mean():
    model = gaussian_2d(zero_snr(), "v")
    sol = ddim_ode.sample(model, X, "heun", steps=4, record="x0")
    mean = torch.tensor([[0.7, -0.4]], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(sol.trajectory[0], mean)


def test_callback_sees_each_step_and_changes_nothing():
    seen = []
    options = dict(method="rk4", steps=4, record="x")
    sol = ddim_ode.sample(mixture_2d(COSINE), X, callback=seen.append, **options)
    assert [p.step for p in seen] == [1, 2, 3, 4]
    assert [p.sigma for p in seen] == sol.sigmas[1:].tolist()
    assert all(torch.equal(p.x, x) for p, x in zip(seen, sol.trajectory[1:]))
    assert torch.equal(sol.x, ddim_ode.sample(mixture_2d(COSINE), X, "rk4", steps=4).x)


def test_the_start_is_not_changed():
    for method in METHODS:
        x = X.clone()
        ddim_ode.sample(mixture_2d(COSINE), x, method, steps=3)
        assert torch.equal(x, X)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.order is not None])
def test_sampling_is_differentiable_on_request(name):
    model = mixture_2d(COSINE)

    def end(x):
        return ddim_ode.sample(model, x, name, steps=3, sigma_max=8.0, differentiable=True).x

    assert torch.autograd.gradcheck(end, (X.clone().requires_grad_(),))
    assert not ddim_ode.sample(model, X.clone().requires_grad_(), name, steps=3).x.requires_grad


ADAPTIVE = ["torchdiffeq:dopri5", "torchdiffeq:bosh3", "scipy:RK45", "scipy:DOP853", "scipy:LSODA"]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_solve_follows_the_exact_flow_and_lands(name):
    exact = gaussian_2d(EXPONENTIAL)
    net = Counting(exact.net)
    model = Denoiser(net, EXPONENTIAL, time=exact.time)
    options = dict(rtol=1e-5, atol=1e-6, max_nfe=10_000, sigma_min=0.02)
    stopped = ddim_ode.sample(model, X, name, final="sigma_min", seeds=[1, 2, 3], **options)
    assert (stopped.nfe, stopped.net_evals) == (net.calls, net.rows)
    assert stopped.sample_nfe.tolist() == [net.calls] * 3
    assert stopped.seeds == [1, 2, 3]
    np.testing.assert_allclose(stopped.sigmas, [EXPONENTIAL.sigma_max, 0.02])
    end = exact.flow(X, EXPONENTIAL.sigma_max, 0.02)
    torch.testing.assert_close(stopped.x, end, rtol=0, atol=2e-3)
    landed = ddim_ode.sample(model, X, name, **options)
    assert landed.status.tolist() == ["success"] * 3
    torch.testing.assert_close(landed.x, model(stopped.x, 0.02)[0])


def test_a_fixed_external_solve_steps_on_the_grid_it_is_given():
    model, x, errors = mixture_1d(EXPONENTIAL), points(5), []
    for steps in (40, 80):
        sol = ddim_ode.sample(
            model, x, "torchdiffeq:midpoint", steps=steps, final="sigma_min", sigma_max=2.0, sigma_min=0.2
        )  # fmt: skip
        assert sol.nfe == 2 * steps
        errors.append(float((sol.x - model.flow(x, 2.0, 0.2)).abs().max()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("name", ["torchdiffeq:dopri5", "scipy:RK45"])
def test_an_external_solve_starts_at_infinite_sigma(name):
    schedule = ddim_ode.schedules.flow()
    model = gaussian_2d(schedule, "flow")
    sol = ddim_ode.sample(model, X, name, rtol=1e-5, atol=1e-6, final="sigma_min", max_nfe=10_000)
    near = ddim_ode.sample(model, X, "rk4", steps=100, final="sigma_min")
    torch.testing.assert_close(sol.x, near.x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["torchdiffeq:dopri5", "torchdiffeq:rk4"])
def test_an_external_solve_is_differentiable_on_request(name):
    tight = dict(rtol=1e-6, atol=1e-7, max_nfe=10_000)
    where = dict(steps=100, grid="log_snr") if name.endswith("rk4") else tight
    ends = dict(sigma_max=4.0, sigma_min=0.3, final="sigma_min")
    model, x = gaussian_2d(COSINE), X.clone().requires_grad_()
    sol = ddim_ode.sample(model, x, name, differentiable=True, **where, **ends)
    (gradient,) = torch.autograd.grad(sol.x[0].sum(), x)
    # The flow of a Gaussian is affine, so differences of it are derivatives.
    zero, unit = torch.zeros(2, 2).double(), torch.eye(2).double()
    expected = (model.flow(unit, 4.0, 0.3) - model.flow(zero, 4.0, 0.3)).sum(1)
    torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-4)
    assert not gradient[1:].any()  # nothing leaks between samples through the step sizes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_guidance_of_a_half_precision_network_is_combined_in_single(dtype):
    def net(x, t, y):
        return torch.where(y[:, None] == 0, 0.9, 1.0).to(x.dtype).expand(len(x), 2).contiguous()

    model = Denoiser(net, COSINE, guidance=Guidance(7.3, {"y": 0}), dtype=dtype)
    _, eps = model(torch.zeros(1, 2), 1.0, cond={"y": torch.tensor([1])})
    null = float(torch.tensor(0.9, dtype=dtype))
    expected = torch.full((1, 2), null + 7.3 * (1 - null))
    torch.testing.assert_close(eps, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["heun", "rk45", "scipy:RK45"])
def test_a_solution_becomes_a_manifest_and_is_shown_with_its_failures(name):
    where = dict(steps=4) if name == "heun" else {}
    sol = ddim_ode.sample(mixture_2d(COSINE), X, name, seeds=range(3), **where)
    manifest = json.loads(json.dumps(sol.to_dict()))
    levels = [s.tolist() for s in sol.sigmas] if name == "rk45" else sol.sigmas.tolist()
    assert (manifest["method"], manifest["sigmas"]) == (name, levels)
    assert manifest["status"] == ["success"] * 3
    assert manifest["sample_nfe"] == sol.sample_nfe.tolist()
    net = lambda x, t: torch.where(x[:, :1] > 0, torch.nan, x)  # noqa: E731
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    assert repr(ddim_ode.sample(Denoiser(net, COSINE), x, steps=2)) == (
        "Solution(ddim, x (3, 2), nfe 2, 2 of 3 non_finite)"
    )
