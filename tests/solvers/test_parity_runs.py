"""The samplers of test_parity's table at work: their errors against ours, and theirs run by our loop."""

import functools
import sys

import numpy as np
import pytest
import torch
from peers import ANY_SIGMA, load
from problems import mixture_2d, points
from test_parity import DEPARTURES, EQUAL

import ddim_ode
from ddim_ode import Plan
from ddim_ode.grids import make_grid
from ddim_ode.solve.loop import integrate

MIXTURE, STARTS = mixture_2d(ANY_SIGMA), points(12, 2)
# That of equal coefficients is test_parity's: here one row for each of their samplers, and of each cause.
SAMPLERS = list({(row.peer, row.sampler): row for row in reversed(EQUAL)}.values())[::-1]
CAUSES = {row.cause: row for row in DEPARTURES if row.off < np.inf}.values()


@functools.cache
def reference(first: float, last: float) -> torch.Tensor:
    """Where the ODE takes the start states: to the last level, or to σ = 0.01 and then to x̂₀."""
    low = last or 0.01
    grid = make_grid("karras", ANY_SIGMA, 150, final="sigma_min", sigma_max=first, sigma_min=low)
    grid = grid if last else [*grid, 0.0]
    return ddim_ode.sample(MIXTURE, STARTS, "rk4", grid=grid).x


@pytest.mark.parametrize("row", SAMPLERS, ids=lambda row: row.name)
def test_our_error_is_no_larger_than_theirs(row):
    """At the same calls, grid and last level, on an exact mixture, each asked at the state's own σ."""
    theirs = row.theirs()

    def net(x, sigma):
        x0, eps = MIXTURE(x, float(sigma))
        alpha, beta = (float(c) for c in ANY_SIGMA.scales(float(sigma)))
        return alpha * eps - beta * x0 if row.sampler == "IPNDM" else eps

    end = reference(float(theirs.grid[0]), float(theirs.grid[-1]))
    plan = row.plan(theirs)
    of_ours = integrate(plan, MIXTURE.bind(plan.nodes, STARTS), STARTS)
    assert of_ours.calls == len(theirs.asked)
    error = float((of_ours.x - end).norm())
    assert error <= 1.001 * float((theirs.by_sigma(net, STARTS) - end).norm())
    assert error > 1e-4  # or the ratio would be of rounding errors


# -- any of them through our loop ---------------------------------------------------------------
def small_net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Nonlinear in x, and dependent on t."""
    phase = torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)) / 1000
    return torch.tanh(x + 0.3 * x.roll(1, -1)) * (1 - 0.4 * phase) + 0.2 * torch.cos(7 * phase)


@pytest.mark.parametrize(
    "row",
    [row for row in [*SAMPLERS, *CAUSES] if row.sampler != "IPNDM"],
    ids=lambda row: f"{row.peer} {row.name}",
)
def test_any_of_them_runs_through_our_loop(row):
    """Departures too: the traced plan is what they do, at the t and σ they tell their network."""
    theirs = row.theirs()
    told = dict(time_offset=-1.0) if row.peer == "diffusers" else dict(time="sigma")
    options = dict(time=lambda t, sigma: sigma) if "time" in told else told
    plan = Plan.trace(theirs.loop, theirs.schedule, sigma_end=theirs.grid[-1], **told)
    model = ddim_ode.Denoiser(small_net, theirs.schedule, **options)
    x = points(3, 4, dtype=torch.float32)
    sol = ddim_ode.sample(model, x, plan=plan)
    assert sol.nfe == len(theirs.asked)
    expected = theirs.loop(small_net, x).to(x.dtype)
    torch.testing.assert_close(sol.x, expected, rtol=1e-5, atol=1e-5)


def test_loading_a_peer_leaves_no_stand_ins():
    assert load("k_diffusion.sampling").sample_euler
    stand_ins = [sys.modules.get(name) for name in ("k_diffusion", "k_diffusion.utils", "torchsde")]
    assert all(module is None or hasattr(module, "__file__") for module in stand_ins)
