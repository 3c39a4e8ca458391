"""Methods, plans and sampler loops that cannot be: the argument is named, and what to do instead."""

import pytest
import torch
from problems import COSINE
from refusals import expect

import ddim_ode
from ddim_ode import Method, Plan, schedules
from ddim_ode.solvers.methods import METHODS
from ddim_ode.solvers.tableau import Singlestep

GRID = [20.0, 5.0, 1.0, 0.2, 0.05, 0.0]


def plan(method, schedule=COSINE, grid=GRID, **options):
    return lambda: ddim_ode.plan(method, schedule, grid, **options)


def method(*args, **options):
    return lambda: Method("m", *args, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (plan("huen"), "method 'huen'.*first: heun,"),
        (plan("heun", chart="logs"), "chart 'logs'.*: log,"),
        (plan("ab2", vector="x0"), "stores 'eps'.*vector='x0'"),
        (plan("ddim", schedules.ve(80.0), [3.0, 1.0], chart="exp"), "preserving.*'ve'"),
        (plan("ddim", chart="log", eta=0.5), "'eps', 'data' or 'flow'"),
        (lambda: Method("m", 2, past=2, ruler="tau"), "ruler 'tau'"),
        (plan("dpmpp3m:haf"), "variant.*'haf'.*: half,"),
        (plan("heun", variant="half"), "no variants.*drop"),
        (plan("ab2", variant="t"), "variant of 'ab2' 't'"),
        (plan(Method("m", 1), variant="t"), "for registered methods"),
        (plan("ab3:lower_order_final+full_order_final"), "change 'final'"),
        (plan("dpmpp3m:half", variant="midpoint"), "both .dpmpp3m:half"),
        (plan("ab3:full_order_final", chart="data"), "needs chart 'eps'"),
        (plan("ab2", start="rk"), "start='rk'.*drop start="),
        (plan("ab3", start="rx"), "start 'rx'.*first: rk, ramp"),
        (plan(Method("m", 8, past=8), start="rk"), "no Runge–Kutta start"),
        (plan(Method("m", 1, eta=5.0)), "eta=5.0 makes noise_std.*allowed"),
        (plan(Method("m", 1, eta=-0.5)), "eta=-0.5 must be .*>= 0"),
        (method(2, stages=METHODS["heun"].stages, past=2), "stages or past=2"),
        (method(2, stages="heun"), "stages='heun' must be a Tableau or Singlestep"),
        (method(4, stages=METHODS["rk4"].stages, ruler="t"), "ruler='t'.*drop ruler"),
        (method(2, past=2, rules=["half"]), "rules.*tuple"),
        (method(2, past=4, rules=("adams", "half")), "exclude each other"),
        (method(2, "data", past=2, final="full_order"), "needs chart 'eps'"),
        (method(1, final="lower_order"), "reads no final='lower_order'"),
        *(
            (lambda at=at, reads=reads: Singlestep(at, reads), "singlestep: ")
            for at, reads in (
                ((0.1, 0.5), ((), (0,), (1,))),
                ((0, 0.5), ((), (0,))),
                ((0, 0.5), ((), (1,), (1,))),
                ((0, 0.5), ((), (), (1,))),
                ((0, 0.5), ((), (0,), (0, 0))),
            )
        ),
    ],
)
def test_a_plan_or_method_that_cannot_be_says_why(call, message):
    expect(call, message)


# -- sampler loops ------------------------------------------------------------------------------
def by_hand(net, x, edit=lambda x0: x0):
    """DDIM with a chance to edit x̂₀; asks at σ."""
    for here, there in ((10.0, 3.0), (3.0, 0.5), (0.5, 0.0)):
        (a, b), (a_to, b_to) = COSINE.scales(here), COSINE.scales(there)
        eps = net(x, here)
        x = float(a_to) * edit((x - float(b) * eps) / float(a)) + float(b_to) * eps
    return x


def edited(edit):
    return lambda net, x: by_hand(net, x, edit)


def thresholded(x0):
    bound = x0.abs().flatten(1).quantile(0.9, dim=1).clamp_min(1.0)
    return x0 / bound.reshape(-1, *[1] * (x0.ndim - 1))


def call_until_small(net, x):
    for sigma in (10.0, 5.0, 2.0, 1.0, 0.5):
        if x.abs().max() < 0.3:
            break
        x = 0.5 * x - 0.1 * net(x, sigma)
    return x


def step_by_error(net, x):
    sigma = 10.0
    while sigma > 0.5:
        eps = net(x, sigma)
        sigma *= 0.9 if eps.abs().max() > 0.5 else 0.5
        x = x - eps
    return x


def restarting(net, x):
    z = net(x, 5.0)
    z = x + net(z, 1.0)
    return z - net(z, 0.5)


def one_call(t):
    return lambda net, x: x - net(x, t)


@pytest.mark.parametrize(
    ("loop", "options", "message"),
    [
        (edited(lambda x0: x0.clamp(-1, 1)), {}, "not linear.*switch off clipping"),
        (edited(thresholded), {}, "not linear.*thresholding"),
        (edited(torch.square), {}, "not linear"),
        (lambda net, x: by_hand(net, x) + 0.1 * torch.randn_like(x), {}, "deterministic.*noise"),
        (call_until_small, {}, "adaptive.*no one plan"),
        (step_by_error, {}, "adaptive.*no one plan"),
        (restarting, {}, "comes back to its start x after call 1"),
        (lambda net, x: 2 * x, {}, "never called net"),
        (lambda net, x: (net(x, 1.0),), {}, "returned a tuple"),
        (lambda net, x: net(torch.cat([x, x]), 1.0)[:1], {}, "showed the network a tensor"),
        (one_call(float("nan")), {}, "time NaN in its call 0"),
        (one_call(1e6), {}, "sigma=1e.06 is outside"),
        (one_call(1.0), dict(sigma_end=-1.0), "sigma_end=-1.0 must be >= 0"),
        (one_call(1.0), dict(time_offset=-1.0), "drop time_offset=-1"),
        (None, {}, "takes a callable"),
        (one_call(1.0), dict(time="lambda"), "time"),
        (one_call(1000.0), dict(time="t", prediction="noise"), "prediction"),
        (one_call(1000.0), dict(time="t", time_offset=-1.0), "t=1001 is outside"),
        (one_call(0.0), dict(time="t", time_offset=1.0), "t=-1 is outside"),
        (one_call(1000.0), dict(time="t", sigma_end=1e5), "sigma_end=100000 must be below"),
    ],
)
def test_a_loop_that_has_no_plan_is_refused(loop, options, message):
    expect(lambda: Plan.trace(loop, COSINE, **{"time": "sigma", **options}), message)
