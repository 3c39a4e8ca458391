"""Adaptive solves on a budget, and networks that fail: always a status, never a hang."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import COSINE, EXPONENTIAL, Counting, points
from test_adaptive import METHODS, MIXTURE, SPAN, X, eight_components, solve

import ddim_ode
from ddim_ode import Denoiser

# -- budgets and failures ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("nfe", [1, 2, 7, 12, 31])
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


# -- traffic --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_one_small_table_comes_back_per_trial(method, monkeypatch):
    model, x = eight_components(), points(6, 2)
    read = []

    def counted(self, *args, _cpu=torch.Tensor.cpu, **kwargs):
        read.append(self.numel())
        return _cpu(self, *args, **kwargs)

    def refused(self, *args):
        raise AssertionError("a number was read from a tensor")

    # looks at the start, on the CPU alone
    monkeypatch.setattr("ddim_ode.solve.adaptive.warn_of_start", lambda *state: None)
    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    for name in ("item", "tolist", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, refused)
    sol = solve(model, x, method, tol=1e-2)
    trials = (sol.nfe - 1) / METHODS[method]
    assert len(read) == trials + 1  # and once whether the start is finite
    assert max(read) <= 4 * len(x)


def test_a_rejected_trial_leaves_no_trace_in_a_gradient():
    """The fourth call is NaN, value and slope, for the first sample, which is rejected and goes on."""

    def end(x):
        calls = 0

        def net(y, sigma):
            nonlocal calls
            calls += 1
            bad = torch.zeros_like(y)
            bad[0] = float(calls == 4)
            return MIXTURE.net(y, sigma) + 0 * torch.sqrt(1 - 2 * bad * (1 + y * y))

        model = Denoiser(net, COSINE, time=lambda t, sigma: sigma)
        return ddim_ode.sample(model, x, "rk45", rtol=1e-2, atol=1e-2, differentiable=True)

    joint, alone = X.clone().requires_grad_(), X[:1].clone().requires_grad_()
    together, solo = end(joint), end(alone)
    assert set(together.status) == {"success"}
    assert solo.rejected[0] == together.rejected[0] > 0
    (gradient,) = torch.autograd.grad(together.x[0].sum(), joint)
    (expected,) = torch.autograd.grad(solo.x.sum(), alone)
    torch.testing.assert_close(gradient[:1], expected)
    assert not gradient[1:].any()
