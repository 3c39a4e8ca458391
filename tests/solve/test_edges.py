"""What comes of NaN, of nothing and of a budget that is spent: a status per sample."""

import numpy as np
import pytest
import torch
from problems import COSINE, EXPONENTIAL, Counting, gaussian_2d, points

import ddim_ode
from ddim_ode import Denoiser, grids
from ddim_ode.solvers.methods import METHODS

X = points(3, 2)
MODEL = Denoiser(Counting(), COSINE)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((m, (0, 2)) for m in (*METHODS, "scipy:RK45", "torchdiffeq:dopri5", "torchdiffeq:rk4")),
        *((m, shape) for m in ("rk45", "bosh3") for shape in ((0,), (3, 0))),
    ],
)
def test_nothing_to_solve_costs_nothing(name, shape):
    net = Counting()
    where = {} if name in ("rk45", "bosh3", "scipy:RK45", "torchdiffeq:dopri5") else dict(steps=4)
    sol = ddim_ode.sample(Denoiser(net, COSINE), torch.empty(shape), name, **where)
    assert sol.x.shape == shape
    assert (net.calls, sol.nfe, sol.net_evals, len(sol.status)) == (0, 0, 0, shape[0])


def nan_below(t_bad, row=1):
    def net(x, t):
        out = torch.tanh(x)
        bad = (torch.arange(len(x)) == row) & (t < t_bad)
        return torch.where(bad[:, None], torch.nan, out)

    return Denoiser(net, EXPONENTIAL)


@pytest.mark.parametrize("name", [*METHODS, "torchdiffeq:rk4"])
def test_a_nan_stays_with_its_sample(name):
    options = dict(steps=8, seeds=[1, 2, 3])
    sol = ddim_ode.sample(nan_below(400.0), X, name, **options)
    clean = ddim_ode.sample(nan_below(0.0), X, name, **options)
    assert sol.status.tolist() == ["success", "non_finite", "success"]
    assert torch.equal(sol.x[[0, 2]], clean.x[[0, 2]])
    assert sol.nfe == clean.nfe


@pytest.mark.parametrize("name", METHODS)
def test_hold_keeps_the_last_finite_state(name):
    options = dict(steps=8, seeds=[1, 2, 3])
    sol = ddim_ode.sample(nan_below(400.0), X, name, on_nan="hold", **options)
    clean = ddim_ode.sample(nan_below(0.0), X, name, record="x", **options)
    level = EXPONENTIAL.time(clean.sigmas)
    first = int(np.argmax(level < 400.0))  # the step to this level may use later calls
    candidates = [first - 1, first]
    assert sol.status.tolist() == ["success", "non_finite", "success"]
    assert torch.equal(sol.x[[0, 2]], clean.x[[0, 2]])
    assert any(torch.equal(sol.x[1], clean.trajectory[i][1]) for i in candidates)


EXTERNAL = ["torchdiffeq:dopri5", "torchdiffeq:bosh3", "scipy:RK45", "scipy:LSODA", "scipy:BDF"]


@pytest.mark.parametrize("name", EXTERNAL)
@pytest.mark.parametrize("t_bad", [400.0, 2000.0], ids=["later", "from_the_first_call"])
def test_an_external_solve_on_nan_ends_with_a_status_at_its_last_accepted_state(name, t_bad):
    sol = ddim_ode.sample(nan_below(t_bad), X, name)
    assert set(sol.status) <= {"non_finite", "step_underflow"}
    assert sol.nfe < 500
    if t_bad == 400.0 and name != "scipy:BDF":
        assert sol.x.isfinite().all()
        assert (sol.accepted > 0).all()
        assert not torch.equal(sol.x, X)


@pytest.mark.parametrize(("final", "calls"), [("zero", 24), ("sigma_min", 25)])  # one for landing
@pytest.mark.parametrize("name", EXTERNAL)
def test_max_nfe_ends_an_external_solve_on_the_way(name, final, calls):
    # ε = 0: x/ᾱ stays, so |x| grows steadily and a partial state lies between the ends.
    net = Counting(lambda x, t: torch.zeros_like(x))
    model = Denoiser(net, EXPONENTIAL)
    sol = ddim_ode.sample(model, X, name, max_nfe=25, rtol=1e-7, atol=1e-7, final=final)
    assert sol.status.tolist() == ["max_nfe"] * 3
    assert sol.nfe == net.calls == calls
    assert torch.all(sol.x.abs() >= X.abs())
    ends = np.array([EXPONENTIAL.sigma_max, 0.0 if final == "zero" else EXPONENTIAL.sigma_min])
    top, low = EXPONENTIAL.scales(ends)[0]
    assert torch.all(sol.x.abs() < X.abs() * float(low / top))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_start_is_integrated_in_single(dtype):
    model, x = gaussian_2d(COSINE), X.to(dtype)
    sol = ddim_ode.sample(model, x, "heun", steps=6)
    assert torch.equal(sol.x, ddim_ode.sample(model, x.float(), "heun", steps=6).x)
    assert sol.x.dtype == torch.float32


def test_a_fixed_grid_is_not_altered():
    grid = grids.make_grid("karras", COSINE, 5, sigma_max=9.0)
    before = grid.copy()
    sol = ddim_ode.sample(MODEL, X, grid=grid)
    np.testing.assert_array_equal(grid, before)
    np.testing.assert_array_equal(sol.sigmas, before)


def test_a_fixed_external_solve_of_many_steps_is_finished():
    sol = ddim_ode.sample(gaussian_2d(COSINE), X, "torchdiffeq:euler", steps=520)
    assert sol.status.tolist() == ["success"] * 3
    assert sol.accepted.tolist() == [520] * 3  # more than max_nfe's 500
