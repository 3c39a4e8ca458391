"""Adaptive solves: each sample by itself, honest about its error, and never without an end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import COSINE, DDPM, Counting, gaussian_2d, mixture_1d, mixture_2d, points
from refusals import expect

import ddim_ode
from ddim_ode import Denoiser, exact, schedules
from ddim_ode.solvers.clock import clock, level
from ddim_ode.solvers.embedded import scheme_of
from ddim_ode.solvers.tableau import Tableau

METHODS = {"rk45": 6, "bosh3": 3, "heun": 2, "unipc2": 1, "unipc3": 1}  # calls per step
PAIRS = ("rk45", "bosh3", "heun")  # the others see no two velocities at one level
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
    model, x = eight_components(), points(12, 2, seed=1)
    together = solve(model, x, method, 1e-2)
    for k in (0, 5, 11):
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
        assert torch.equal(x.sign(), c.sign()[:, None].expand_as(x))  # each row has its own
        return torch.sin(3 * c[:, None].abs() * x) * 0.1 + 0 * shift

    net = Counting(field)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    x = (5 * signs)[:, None].expand(4, 3).contiguous()
    conditions = dict(cond=dict(c=signs * scale), shared=dict(shift=0.0))
    tol = 1e-2 if method == "heun" else 1e-3
    sol = solve(Denoiser(net, COSINE), x, method, tol, **conditions, **SPAN)
    assert net.calls == sol.nfe == max(sol.sample_nfe)
    assert net.rows == sol.net_evals == sum(sol.sample_nfe)
    assert sum(sol.sample_nfe) < 4 * max(sol.sample_nfe)
    expected = 1 + METHODS[method] * (sol.accepted + sol.rejected)
    assert sol.sample_nfe.tolist() == expected.tolist()
    assert sol.rejected.sum() > 0


@pytest.mark.parametrize("method", PAIRS)
def test_the_last_jump_costs_no_call(method):
    stopped, landed = (
        solve(method=method, tol=1e-2, **end) for end in (dict(final="sigma_min"), {})
    )
    assert landed.sample_nfe.tolist() == stopped.sample_nfe.tolist()
    assert landed.accepted.tolist() == (stopped.accepted + 1).tolist()
    expected = MIXTURE(stopped.x, COSINE.sigma_min)[0]
    torch.testing.assert_close(landed.x, expected, rtol=0, atol=1e-10)


# -- accuracy ---------------------------------------------------------------------------------------


VE, FLOW = schedules.ve(80.0), schedules.flow()


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        *((method, COSINE) for method in METHODS),
        *(("rk45", VE), ("unipc3", VE), ("bosh3", FLOW), ("unipc2", FLOW)),
    ],
    ids=lambda value: getattr(value, "family", None),
)
def test_the_error_falls_with_the_tolerance(method, schedule):
    """Local error of the pair's order: error per step ∝ tol, so the end error ∝ tol^((p+1)/p) or better."""
    model, x = mixture_1d(schedule), points(5)
    x = x * float(np.hypot(*schedule.scales(20.0)))
    truth = model.flow(x, 20.0, 0.01)
    tolerances = dict(rk45=(1e-5, 1e-8), heun=(1e-2, 1e-3)).get(method, (1e-4, 1e-6))
    errors = [float((solve(model, x, method, t, **SPAN).x - truth).abs().max()) for t in tolerances]
    decades = np.log10(tolerances[0] / tolerances[1])
    assert errors[0] < 10 * tolerances[0]
    assert np.log10(errors[0] / errors[1]) / decades > 0.8


def test_an_adaptive_solve_starts_at_infinite_sigma():
    model = mixture_1d(schedules.flow(), "flow")
    sol = solve(model, tol=1e-6, final="sigma_min")
    truth = model.flow(X, np.inf, model.schedule.sigma_min)
    torch.testing.assert_close(sol.x, truth, rtol=0, atol=1e-5)
    blind = mixture_1d(schedules.flow())
    expect(lambda: solve(blind), "says nothing of x0 at σ=inf")


@pytest.mark.parametrize("std", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("tol", [1e-2, 1e-3])
def test_errors_are_within_ten_tolerances_or_reported(std, tol):
    """The full sweep is benchmarks/honesty.py."""
    schedule = schedules.ve(80.0)
    model = two_modes(std, schedule)
    x = 80 * points(200, seed=5)
    sol = solve(model, x, tol=tol, sigma_max=80.0, sigma_min=1e-3, final="sigma_min")
    error = (sol.x - model.flow(x, 80.0, 1e-3)).abs()[:, 0]
    beyond = error > 10 * tol
    assert beyond.double().mean() <= 0.01
    reported = (sol.error >= 0.1 * error) | torch.as_tensor(sol.status != "success")
    assert reported[beyond].all()


@pytest.mark.parametrize("method", PAIRS)
def test_the_error_estimate_knows_that_a_separatrix_amplifies(method):
    """Next to the separatrix the flow stretches by 1e3; away from it, not."""
    schedule = schedules.ve(80.0)
    model = two_modes(0.3, schedule)
    x = torch.tensor([[0.005], [0.5], [60.0]], dtype=torch.float64)
    tol = 1e-3 if method == "heun" else 1e-4
    sol = solve(model, x, method, tol, sigma_max=80.0, sigma_min=1e-3, final="sigma_min")
    truth = (sol.x - model.flow(x, 80.0, 1e-3)).abs()[:, 0]
    assert (sol.error >= 0.1 * truth).all()
    assert sol.error[0] > 10 * sol.error[2]


@pytest.fixture(scope="module")
def converged():
    """A model of two dimensions, states, and where they end."""
    model, x = eight_components(), points(40, 2, seed=7)
    return model, x, solve(model, x, tol=1e-8).x


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tol", [1e-1, 1e-3])
def test_the_error_estimate_holds_in_two_dimensions(method, tol, converged):
    model, x, end = converged
    sol = solve(model, x, method, tol)
    error = (sol.x - end).square().mean(1).sqrt()
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


def test_dense_output_is_within_the_span_of_adaptive_solves_that_kept_it():
    sol = solve(**SPAN)
    for sigma in (25.0, 0.001, 0.0, -1.0, np.nan, [1.0, 2.0]):
        with pytest.raises(ValueError, match="sigma="):
            sol.at(sigma)
    for sol in (ddim_ode.sample(MIXTURE, X, "rk4", steps=3), solve(dense=False)):
        with pytest.raises(ValueError, match="no dense output"):
            sol.at(1.0)
    expect(lambda: solve().at(1e-3), r"sigma=0.001 is outside \[0.00642541, 20291")


def test_dense_output_below_where_a_sample_stopped_is_nan_for_that_sample_alone():
    stopped = solve(max_nfe=20)
    below = stopped.at(COSINE.sigma_min * 2)
    assert below.isnan().all()
    reached = np.array([levels[-1] for levels in stopped.sigmas])
    torch.testing.assert_close(stopped.at(reached), stopped.x)


# -- the front door -----------------------------------------------------------------------------------


def test_a_recorded_x0_is_what_the_model_says_there():
    sol = solve(record="x0")
    states = solve(record="x")
    for k in range(5):
        for sigma, x0, x in zip(sol.sigmas[k][:-1], sol.trajectory[k], states.trajectory[k]):
            torch.testing.assert_close(x0, MIXTURE(x[None], sigma)[0][0], rtol=0, atol=1e-8)
        assert torch.equal(sol.trajectory[k][-1], sol.x[k])


def test_a_sample_may_be_a_number_or_an_image():
    flat = solve(x=X[:, 0], model=Denoiser(lambda x, t: torch.tanh(x), COSINE))
    image = solve(x=X[:, :, None, None], model=Denoiser(lambda x, t: torch.tanh(x), COSINE))
    torch.testing.assert_close(flat.x, image.x[:, 0, 0, 0], rtol=0, atol=1e-12)


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


def test_a_single_precision_solve_stays_single_and_a_snapped_one_on_trained_levels():
    sol = solve(mixture_2d(COSINE), points(3, 2, dtype=torch.float32), tol=1e-3)
    assert (sol.x.dtype, sol.error.dtype) == (torch.float32, torch.float32)
    wide = solve(mixture_2d(COSINE), points(3, 2), tol=1e-6)
    torch.testing.assert_close(sol.x.double(), wide.x, rtol=0, atol=2e-3)
    net = Counting(lambda x, t: torch.zeros_like(x))
    ddim_ode.sample(Denoiser(net, DDPM, snap=True), points(2), "rk45", max_nfe=200)
    times = torch.cat(net.times)
    assert torch.equal(times, times.round())


FEHLBERG = Tableau(
    4,
    (0, 1 / 4, 3 / 8, 12 / 13, 1, 1 / 2),
    ((), (1 / 4,), (3 / 32, 9 / 32), (1932 / 2197, -7200 / 2197, 7296 / 2197),
     (439 / 216, -8, 3680 / 513, -845 / 4104), (-8 / 27, 2, -3544 / 2565, 1859 / 4104, -11 / 40)),
    (25 / 216, 0, 1408 / 2565, 2197 / 4104, -1 / 5, 0),
    (-1 / 360, 0, 128 / 4275, 2197 / 75240, -1 / 50, -2 / 55),
)  # fmt: skip


def test_a_pair_whose_last_stage_is_not_the_end_is_given_one():
    method = ddim_ode.Method("rkf45", 4, "flow", FEHLBERG)
    exact = MIXTURE(MIXTURE.flow(X, COSINE.sigma_max, COSINE.sigma_min), COSINE.sigma_min)[0]
    sol = solve(method=method, tol=1e-6)
    assert set(sol.status) == {"success"}
    assert float((sol.x - exact).abs().max()) < 1e-5
    assert sol.nfe < 400
    pair = replace(FEHLBERG, b_middle=(0.25, 0, 0.25, 0, 0, 0))
    table = scheme_of(pair).tableau
    assert table.b_middle == (*pair.b_middle, 0)  # it has no part in the mid-point
    assert (table.c[-1], table.a[-1]) == (1, pair.b)
