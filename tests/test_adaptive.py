"""Adaptive solves: each sample by itself, honest about its error, and never without an end."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    COSINE,
    DDPM,
    EXPONENTIAL,
    Counting,
    gaussian_2d,
    mixture_1d,
    mixture_2d,
    points,
)

import ddim_ode
from ddim_ode import Denoiser, Guidance, exact, schedules
from ddim_ode.solvers.clock import clock, level

METHODS = {"rk45": 6, "bosh3": 3, "heun": 2}  # calls per step
X = points(5)
MIXTURE = mixture_1d(COSINE)
SPAN = dict(sigma_max=20.0, sigma_min=0.01, final="sigma_min")


def solve(model=MIXTURE, x=X, method="rk45", tol=1e-4, **options):
    return ddim_ode.sample(
        model, x, method, rtol=tol, atol=tol, **{**dict(max_nfe=10**5), **options}
    )


def eight_components(schedule=COSINE):
    means = np.random.default_rng(3).uniform(-3, 3, (8, 2))
    return exact.gaussian_mixture(np.ones(8) / 8, means, np.full((8, 2), 0.05**2), schedule)


def two_modes(std, schedule):
    return exact.gaussian_mixture([0.5, 0.5], [[-2.0], [2.0]], [[std**2], [std**2]], schedule)


# -- one initial value problem per sample ----------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_in_a_batch_is_that_sample_alone(method):
    model, x = eight_components(), points(24, 2, seed=1)
    together = solve(model, x, method, 1e-2)
    for k in range(0, 24, 2):
        alone = solve(model, x[k : k + 1], method, 1e-2)
        torch.testing.assert_close(together.x[k], alone.x[0], rtol=0, atol=1e-10)
        assert together.sample_nfe[k] == alone.sample_nfe[0]
        np.testing.assert_allclose(together.sigmas[k], alone.sigmas[0], rtol=1e-9)
    assert len(set(together.sample_nfe)) > 1


def test_a_joint_error_norm_couples_the_samples():
    model, x = eight_components(), points(24, 2, seed=1)
    joint = solve(model, x, tol=1e-2, error_norm="batch")
    alone = solve(model, x[:1], tol=1e-2, error_norm="batch")
    assert len(set(joint.sample_nfe)) == 1
    assert all(np.array_equal(s, joint.sigmas[0]) for s in joint.sigmas)
    assert float((joint.x[0] - alone.x[0]).abs().max()) > 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_finished_samples_leave_the_network_and_take_their_conditions_along(method):
    scale = torch.tensor([0.1, 1.0, 4.0, 16.0], dtype=torch.float64)

    def field(x, t, c, shift):
        assert torch.equal(
            x.sign(), c.sign()[:, None].expand_as(x)
        )  # each row has its own condition
        return torch.sin(3 * c[:, None].abs() * x) * 0.1 + 0 * shift

    net = Counting(field)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    x = (5 * signs)[:, None].expand(4, 3).contiguous()
    sol = solve(
        Denoiser(net, COSINE),
        x,
        method,
        1e-3,
        cond=dict(c=signs * scale),
        shared=dict(shift=0.0),
        **SPAN,
    )
    assert net.calls == sol.nfe == max(sol.sample_nfe)
    assert net.rows == sol.net_evals == sum(sol.sample_nfe)
    assert sum(sol.sample_nfe) < 4 * max(sol.sample_nfe)
    expected = 1 + METHODS[method] * (sol.accepted + sol.rejected)
    assert sol.sample_nfe.tolist() == expected.tolist()
    assert sol.rejected.sum() > 0


def test_guidance_counts_both_rows():
    net = Counting(lambda x, t, y: torch.tanh(x + y[:, None]))
    model = Denoiser(net, COSINE, guidance=Guidance(2.0, null=dict(y=0.0)))
    sol = solve(model, points(3, 2), cond=dict(y=torch.tensor([0.5, 1.0, 2.0]).double()))
    assert net.rows == sol.net_evals == 2 * sum(sol.sample_nfe)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_jump_costs_no_call(method):
    stopped = solve(method=method, tol=1e-3, final="sigma_min")
    landed = solve(method=method, tol=1e-3)
    assert landed.sample_nfe.tolist() == stopped.sample_nfe.tolist()
    assert landed.accepted.tolist() == (stopped.accepted + 1).tolist()
    expected = MIXTURE(stopped.x, COSINE.sigma_min)[0]
    torch.testing.assert_close(landed.x, expected, rtol=0, atol=1e-10)


# -- accuracy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "schedule", [COSINE, schedules.ve(80.0), schedules.flow()], ids=lambda s: s.family
)
def test_the_error_falls_with_the_tolerance(method, schedule):
    """Local error of the pair's order: error per step ∝ tol, so the end error ∝ tol^((p+1)/p) or better."""
    model, x = mixture_1d(schedule), points(5)
    x = x * float(np.hypot(*schedule.scales(20.0)))
    truth = model.flow(x, 20.0, 0.01)
    tolerances = dict(rk45=(1e-5, 1e-8), bosh3=(1e-4, 1e-6), heun=(1e-2, 1e-4))[method]
    errors = [float((solve(model, x, method, t, **SPAN).x - truth).abs().max()) for t in tolerances]
    decades = np.log10(tolerances[0] / tolerances[1])
    assert errors[0] < 10 * tolerances[0]
    assert np.log10(errors[0] / errors[1]) / decades > 0.8


def test_an_adaptive_solve_starts_at_infinite_sigma():
    model = mixture_1d(schedules.flow(), "flow")
    sol = solve(model, tol=1e-7, final="sigma_min")
    truth = model.flow(X, np.inf, model.schedule.sigma_min)
    torch.testing.assert_close(sol.x, truth, rtol=0, atol=1e-6)
    blind = mixture_1d(schedules.flow())
    with pytest.raises(ValueError, match="says nothing of x0 at σ=inf"):
        solve(blind)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "flow"])
def test_every_prediction_gives_the_same_solution(prediction):
    sol = solve(mixture_1d(COSINE, prediction))
    torch.testing.assert_close(sol.x, solve().x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("std", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("tol", [1e-2, 1e-3])
def test_errors_are_within_ten_tolerances_or_reported(std, tol):
    """The full sweep is benchmarks/honesty.py."""
    schedule = schedules.ve(80.0)
    model = two_modes(std, schedule)
    x = 80 * points(400, seed=5)
    sol = solve(model, x, tol=tol, sigma_max=80.0, sigma_min=1e-3, final="sigma_min")
    error = (sol.x - model.flow(x, 80.0, 1e-3)).abs()[:, 0]
    beyond = error > 10 * tol
    assert beyond.double().mean() <= 0.01
    reported = (sol.error >= 0.1 * error) | torch.as_tensor(sol.status != "success")
    assert reported[beyond].all()


@pytest.mark.parametrize("method", METHODS)
def test_the_error_estimate_knows_that_a_separatrix_amplifies(method):
    """Next to the separatrix the flow stretches by 1e3; away from it, not."""
    schedule = schedules.ve(80.0)
    model = two_modes(0.3, schedule)
    x = torch.tensor([[0.005], [0.5], [60.0]], dtype=torch.float64)
    sol = solve(model, x, method, 1e-4, sigma_max=80.0, sigma_min=1e-3, final="sigma_min")
    truth = (sol.x - model.flow(x, 80.0, 1e-3)).abs()[:, 0]
    assert (sol.error >= 0.1 * truth).all()
    assert sol.error[0] > 10 * sol.error[2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_the_error_estimate_holds_in_two_dimensions(method, tol):
    model, x = eight_components(), points(60, 2, seed=7)
    converged = solve(model, x, tol=1e-10).x
    sol = solve(model, x, method, tol)
    error = (sol.x - converged).square().mean(1).sqrt()
    silent = (error > 10 * tol) & (sol.error < 0.1 * error)
    assert not silent.any()
    assert float((sol.error / error).median()) > 0.2


# -- dense output -------------------------------------------------------------------------------------


# heun's own end is off by O(h³), which its cubic of local order 4 cannot mend.
@pytest.mark.parametrize(("method", "order"), [("rk45", 5), ("bosh3", 4), ("heun", 3)])
def test_dense_output_has_its_local_order(method, order):
    """The interpolant's error inside a single step, by slope as the step is halved."""
    model = mixture_1d(schedules.flow())
    errors = []
    for size in (0.1, 0.05):
        inside, end = (float(level(clock(np.array(0.3)) - share * size)) for share in (0.31, 1.0))
        sol = solve(model, X, method, 1e9, sigma_max=0.3, sigma_min=end, final="sigma_min")
        assert sol.accepted.tolist() == [1] * 5
        errors.append(float((sol.at(inside) - model.flow(X, 0.3, inside)).abs().max()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_dense_output_passes_through_the_accepted_states(method):
    sol = solve(method=method, tol=1e-2, record="x", final="sigma_min")
    for k in range(5):
        for sigma, state in zip(sol.sigmas[k], sol.trajectory[k]):
            levels = [min(max(sigma, s[-1]), s[0]) for s in sol.sigmas]
            torch.testing.assert_close(sol.at(levels)[k], state, rtol=0, atol=1e-9)
    assert torch.equal(torch.stack([t[-1] for t in sol.trajectory]), sol.x)


def test_dense_output_between_the_steps_is_as_good_as_the_steps():
    sol = solve(tol=1e-6, **SPAN)
    for sigma in np.geomspace(0.011, 19, 15):
        exactly = MIXTURE.flow(X, 20.0, sigma)
        torch.testing.assert_close(sol.at(sigma), exactly, rtol=0, atol=3e-5)
    each = np.array([0.02, 0.1, 1.0, 5.0, 15.0])
    rows = torch.stack([sol.at(s)[k] for k, s in enumerate(each)])
    torch.testing.assert_close(sol.at(each), rows)
    torch.testing.assert_close(sol.at(torch.as_tensor(each)), rows)


@pytest.mark.parametrize("sigma", [25.0, 0.001, 0.0, -1.0, np.nan, [1.0, 2.0]])
def test_dense_output_outside_the_span_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma="):
        solve(**SPAN).at(sigma)


def test_dense_output_is_for_adaptive_solves_that_kept_it():
    for sol in (ddim_ode.sample(MIXTURE, X, "rk4", steps=3), solve(dense=False)):
        with pytest.raises(ValueError, match="no dense output"):
            sol.at(1.0)
    stopped = solve(max_nfe=20)
    with pytest.raises(ValueError, match="outside what sample 0 was solved on"):
        stopped.at(COSINE.sigma_min * 2)


# -- budgets and failures ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("nfe", [1, 2, 5, 7, 12, 13, 31])
def test_a_budget_brings_every_sample_to_the_end(method, nfe):
    net = Counting(eight_components().net)
    model = Denoiser(net, COSINE, time=lambda t, sigma: sigma)
    x = points(6, 2)
    asked = dict(rtol=1e-5) if method == "heun" else dict(rtol=1e-5, atol=1e-5)
    sol = ddim_ode.sample(model, x, method, nfe=nfe, **asked)
    assert net.calls == sol.nfe == max(sol.sample_nfe) <= nfe
    assert all(levels[-1] == 0 for levels in sol.sigmas)
    assert set(sol.status) == {"max_nfe"}
    assert (sol.error > 1e-5).all()


def test_a_budget_of_one_call_is_the_first_x0():
    sol = ddim_ode.sample(MIXTURE, X, "rk45", nfe=1)
    torch.testing.assert_close(sol.x, MIXTURE(X, COSINE.sigma_max)[0], rtol=0, atol=1e-9)
    ddim = ddim_ode.sample(MIXTURE, X, "ddim", grid=[20.0, 0.01])
    cut = ddim_ode.sample(MIXTURE, X, "rk45", nfe=1, **SPAN)
    torch.testing.assert_close(cut.x, ddim.x, rtol=0, atol=1e-9)


def test_a_larger_budget_is_no_worse_and_a_large_one_is_the_free_solve():
    truth = MIXTURE.flow(X, 20.0, 0.01)
    errors = []
    for nfe in (7, 19, 43, 97):
        sol = ddim_ode.sample(MIXTURE, X, "rk45", nfe=nfe, rtol=1e-7, atol=1e-7, **SPAN)
        errors.append(float((sol.x - truth).abs().max()))
    assert all(later < 0.5 * earlier for earlier, later in pairwise(errors))
    free, roomy = solve(), ddim_ode.sample(MIXTURE, X, "rk45", nfe=10**4, rtol=1e-4, atol=1e-4)
    assert torch.equal(free.x, roomy.x)
    assert set(roomy.status) == {"success"}


@pytest.mark.parametrize("limit", [1, 6, 7, 20, 40])
def test_max_nfe_stops_a_sample_at_its_last_accepted_state(limit):
    sol = solve(tol=1e-8, max_nfe=limit, record="x", sigma_max=20.0)
    assert set(sol.status) == {"max_nfe"}
    assert sol.sample_nfe.max() <= limit
    for k, levels in enumerate(sol.sigmas):
        assert len(levels) == sol.accepted[k] + 1
        there = MIXTURE.flow(X[k : k + 1], 20.0, float(levels[-1]))
        torch.testing.assert_close(sol.x[k], there[0], rtol=0, atol=1e-5)


def test_a_nan_is_isolated_and_keeps_the_last_accepted_state():
    def field(x, t, marked):
        bad = (marked[:, None] > 0) & (t < 500)[:, None]
        return torch.where(bad, torch.nan, 0.2 * x)

    x, marked = points(4, 2), torch.tensor([0.0, 1.0, 0.0, 2.0])
    model = Denoiser(field, COSINE)
    sol = solve(model, x, cond=dict(marked=marked), record="x")
    clean = solve(model, x, cond=dict(marked=torch.zeros(4)))
    assert sol.status.tolist() == ["success", "non_finite", "success", "non_finite"]
    assert torch.equal(sol.x[[0, 2]], clean.x[[0, 2]])
    assert sol.x.isfinite().all()
    for k in (1, 3):
        assert torch.equal(sol.x[k], sol.trajectory[k][-1])
        assert sol.sigmas[k][-1] >= COSINE.sigma(499.0)
        assert sol.accepted[k] > 0


def test_a_nan_at_the_first_call_returns_the_start():
    net = Counting(lambda x, t: torch.full_like(x, torch.nan))
    sol = solve(Denoiser(net, COSINE))
    assert set(sol.status) == {"non_finite"}
    assert net.calls == 1
    torch.testing.assert_close(sol.x, X)


def test_tolerance_zero_returns_with_a_status():
    sol = solve(tol=0.0, max_nfe=300)
    assert set(sol.status) <= {"max_nfe", "step_underflow"}
    still = Denoiser(lambda x, t: torch.zeros_like(x), schedules.ve(80.0), "score")
    assert set(solve(still, tol=0.0).status) <= {"success", "step_underflow", "max_nfe"}


FIELDS = {
    "stiff": lambda x, t: -1e6 * x,
    "sign": lambda x, t: torch.sign(x),
    "jump in time": lambda x, t: torch.where(t[:, None] > 300, 1.0, -50.0).to(x.dtype).expand_as(x),
    "nan beyond": lambda x, t: torch.where(x.abs() > 1.5, torch.nan, x),
    "nan": lambda x, t: torch.full_like(x, torch.nan),
    "inf": lambda x, t: x / 0.0,
    "constant": lambda x, t: torch.ones_like(x),
    "zero": lambda x, t: torch.zeros_like(x),
    "huge": lambda x, t: torch.full_like(x, 1e30),
    "hash": lambda x, t: torch.frac(torch.sin(1e6 * x) * 1e4),
}
TOLERANCES = st.sampled_from([0.0, 1e-300, 1e-12, 1e-6, 1e-3, 0.1, 1.0, 10.0])


@given(
    field=st.sampled_from(sorted(FIELDS)),
    method=st.sampled_from(sorted(METHODS)),
    rtol=TOLERANCES,
    atol=TOLERANCES,
    budget=st.integers(1, 60),
    stretched=st.booleans(),
    norm=st.sampled_from(["sample", "batch"]),
    final=st.sampled_from(["zero", "sigma_min"]),
    prediction=st.sampled_from(["eps", "x0", "v"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_solve_ends_within_its_budget_with_a_status(
    field, method, rtol, atol, budget, stretched, norm, final, prediction, dtype
):
    net = Counting(FIELDS[field])
    model = Denoiser(net, EXPONENTIAL, prediction)
    limit = dict(nfe=budget) if stretched else dict(max_nfe=budget)
    x = points(3, 2, dtype=dtype)
    sol = ddim_ode.sample(
        model, x, method, rtol=rtol, atol=atol, error_norm=norm, final=final, record="x", **limit
    )
    assert net.calls == sol.nfe == max(sol.sample_nfe) <= budget
    assert net.rows == sum(sol.sample_nfe)
    assert set(sol.status) <= {"success", "max_nfe", "non_finite", "step_underflow"}
    assert [len(s) for s in sol.sigmas] == [len(t) for t in sol.trajectory]
    assert [len(s) - 1 for s in sol.sigmas] == sol.accepted.tolist()
    if field != "huge":
        assert sol.x.isfinite().all()
    assert sol.x.dtype == dtype


# -- the front door -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "adaptive"),
    [
        ("rk45", {}, True),
        ("bosh3", dict(nfe=20), True),
        ("rk45", dict(steps=4), False),
        ("rk45", dict(timesteps=[1, 300, 900]), False),
        ("rk45", dict(grid=[20.0, 1.0, 0.0]), False),
        ("heun", dict(nfe=9), False),
        ("heun", dict(rtol=1e-2), True),
        ("heun", dict(max_nfe=50), True),
    ],
)
def test_when_a_method_is_adaptive(method, options, adaptive):
    sol = ddim_ode.sample(MIXTURE, X, method, **options)
    assert (sol.plan is None) == adaptive
    assert isinstance(sol.sigmas, list) == adaptive


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("rk45", dict(rtol=1e-3, steps=4), "drop steps, grid"),
        ("heun", dict(max_nfe=9, grid="karras"), "drop steps, grid"),
        ("rk4", dict(rtol=1e-3, steps=3), "adaptive are heun, bosh3, rk45.*drop rtol"),
        ("ddim", dict(max_nfe=9, steps=3), "adaptive are heun.*drop max_nfe=9"),
        ("rk45", dict(chart="log"), "drop chart='log'"),
        ("rk45", dict(eta=0.5), "drop eta=0.5"),
        ("rk45", dict(noise_std=[0.1]), "drop noise_std"),
        ("rk45", dict(callback=print), "drop callback"),
        ("rk45", dict(nfe=10, max_nfe=10), "both nfe and max_nfe"),
        ("rk45", dict(rtol=-1.0), "rtol=-1.0 must be a number >= 0"),
        ("rk45", dict(atol=np.nan), "atol=nan must be a number >= 0"),
        ("rk45", dict(max_nfe=0), "max_nfe=0 must be a whole number >= 1"),
        ("rk45", dict(error_norm="max"), "unknown error_norm 'max'.*batch, sample"),
        ("rk4", dict(steps=3, error_norm="batch"), "drop error_norm='batch'"),
        ("rk4", dict(steps=3, dense=False), "drop dense=False"),
    ],
)
def test_what_does_not_go_together_is_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        ddim_ode.sample(MIXTURE, X, method, **options)


def test_a_recorded_x0_is_what_the_model_says_there():
    sol = solve(record="x0")
    states = solve(record="x")
    for k in range(5):
        for sigma, x0, x in zip(sol.sigmas[k][:-1], sol.trajectory[k], states.trajectory[k]):
            torch.testing.assert_close(x0, MIXTURE(x[None], sigma)[0][0], rtol=0, atol=1e-8)
        assert torch.equal(sol.trajectory[k][-1], sol.x[k])


def test_an_adaptive_solution_becomes_a_manifest():
    sol = solve(seeds=range(5))
    manifest = json.loads(json.dumps(sol.to_dict()))
    assert manifest["sigmas"] == [s.tolist() for s in sol.sigmas]
    assert manifest["status"] == ["success"] * 5
    assert manifest["sample_nfe"] == sol.sample_nfe.tolist()
    assert len(manifest["error"]) == 5


@pytest.mark.parametrize("shape", [(0, 2), (0,), (3, 0)])
def test_nothing_to_solve_returns_at_once(shape):
    net = Counting()
    sol = ddim_ode.sample(Denoiser(net, COSINE), torch.zeros(shape), "rk45")
    assert (net.calls, sol.nfe, sol.net_evals) == (0, 0, 0)
    assert sol.x.shape == shape
    assert len(sol.status) == shape[0]


def test_a_sample_may_be_a_number_or_an_image():
    flat = solve(x=X[:, 0], model=Denoiser(lambda x, t: torch.tanh(x), COSINE))
    image = solve(x=X[:, :, None, None], model=Denoiser(lambda x, t: torch.tanh(x), COSINE))
    torch.testing.assert_close(flat.x, image.x[:, 0, 0, 0], rtol=0, atol=1e-12)


def test_a_snapped_model_is_asked_at_trained_levels_only():
    net = Counting(lambda x, t: torch.zeros_like(x))
    ddim_ode.sample(Denoiser(net, DDPM, snap=True), points(2), "rk45", max_nfe=200)
    times = torch.cat(net.times)
    assert torch.equal(times, times.round())


def test_gradients_run_through_the_accepted_steps():
    model, x = gaussian_2d(COSINE), points(3, 2).requires_grad_()
    ends = dict(sigma_max=4.0, sigma_min=0.3, final="sigma_min")
    sol = solve(model, x, tol=1e-8, differentiable=True, **ends)
    (gradient,) = torch.autograd.grad(sol.x[0].sum(), x)
    zero, unit = torch.zeros(2, 2).double(), torch.eye(2).double()
    expected = (model.flow(unit, 4.0, 0.3) - model.flow(zero, 4.0, 0.3)).sum(1)
    torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-5)
    assert not gradient[1:].any()
    assert not solve(model, x, **ends).x.requires_grad


def test_a_single_precision_solve_stays_single():
    sol = solve(mixture_2d(COSINE), points(3, 2, dtype=torch.float32), tol=1e-3)
    assert (sol.x.dtype, sol.error.dtype) == (torch.float32, torch.float32)
    wide = solve(mixture_2d(COSINE), points(3, 2), tol=1e-6)
    torch.testing.assert_close(sol.x.double(), wide.x, rtol=0, atol=2e-3)
