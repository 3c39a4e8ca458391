"""k-diffusion's convention: our methods against its samplers on its wrappers, and its models as ours."""

import importlib
import sys
import types
import warnings

import numpy as np
import peers
import pytest
import torch
from problems import DDPM, mixture_1d
from refusals import expect
from short_search import short_search

import ddim_ode
from ddim_ode import schedules
from ddim_ode.interop.k_diffusion import denoiser, sampler

SIGMAS = torch.tensor([14.0, 6.0, 2.5, 1.0, 0.4, 0.1, 0.0], dtype=torch.float64)
X = 14.0 * torch.linspace(-1.5, 1.5, 12, dtype=torch.float64).reshape(3, 1, 2, 2)
EXACT = mixture_1d(schedules.ve(80.0))


def mixture(x, sigma):
    """x̂₀ of a mixture, as k-diffusion's models give it."""
    flat = x.reshape(-1, 1)
    level = sigma.repeat_interleave(x[0].numel())
    return EXACT(flat.double(), level.double())[0].reshape(x.shape).to(x.dtype)


def net(x, t, shift=0.0, **extra):
    return torch.tanh(0.7 * x + 0.01 * t.to(x.dtype)[:, None, None, None]) + shift


@pytest.fixture(scope="module")
def wrappers():
    """k-diffusion's ``external`` and ``layers.Denoiser``, without its training stack."""
    sampling = peers.load("k_diffusion.sampling")
    package = types.ModuleType("k_diffusion")
    package.__path__ = [sampling.__file__.rsplit("/", 1)[0]]
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    package.sampling, package.utils = sampling, utils
    stand_ins = {
        "k_diffusion": package,
        "k_diffusion.utils": utils,
        "k_diffusion.sampling": sampling,
    }
    for name, parts in (("dctorch", ["functional"]), ("einops", ["rearrange", "repeat"])):
        stand_ins[name] = types.ModuleType(name)
        for part in parts:
            setattr(stand_ins[name], part, None)
    names = [*stand_ins, "k_diffusion.external", "k_diffusion.layers"]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(stand_ins)
    try:
        external = importlib.import_module("k_diffusion.external")
        layers = importlib.import_module("k_diffusion.layers")
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
    cumprod = torch.as_tensor(DDPM.alpha_bar(np.arange(1, 1001)) ** 2, dtype=torch.float32)
    comp_vis = types.SimpleNamespace(alphas_cumprod=cumprod, apply_model=net)
    return {
        "CompVisDenoiser": external.CompVisDenoiser(comp_vis),
        "CompVisDenoiser quantized": external.CompVisDenoiser(comp_vis, quantize=True),
        "EpsDenoiser": external.DiscreteEpsDDPMDenoiser(net, cumprod, quantize=False),
        "VDenoiser": external.VDenoiser(torch.nn.Module()),
        "layers.Denoiser": layers.Denoiser(torch.nn.Module(), sigma_data=0.5),
    }


def wrapped(wrappers, name):
    model = wrappers[name]
    if name in ("VDenoiser", "layers.Denoiser"):  # they hold a module
        model.inner_model = Net()
    return model


class Net(torch.nn.Module):
    def forward(self, x, t, **extra):
        return net(x, t, **extra)


WRAPPERS = [
    "CompVisDenoiser",
    "CompVisDenoiser quantized",
    "EpsDenoiser",
    "VDenoiser",
    "layers.Denoiser",
]
PAIRS = [
    ("euler", "ddim", {}),
    ("heun", "heun", {}),
    ("dpmpp_2m", "dpmpp2m", {}),
    ("lms", "ab4:full_order_final", dict(start="ramp")),
    ("dpm_2", "dpm2", {}),
]


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize(("theirs", "ours", "options"), PAIRS)
def test_a_method_is_the_sampler_of_that_name(wrappers, name, theirs, ours, options):
    model = wrapped(wrappers, name)
    x, sigmas, extra = X.float(), SIGMAS.float(), dict(shift=torch.tensor(0.2))
    sampling = peers.load("k_diffusion.sampling")
    seen = [], []
    expected = getattr(sampling, f"sample_{theirs}")(
        model, x, sigmas, extra_args=extra, callback=seen[0].append, disable=True
    )
    sample = sampler(ours, **options)
    got = sample(model, x, sigmas, extra_args=extra, callback=seen[1].append, disable=True)
    # A rounding network time jumps where float32 levels differ in the last bit: none of these do.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5)
    assert [told["i"] for told in seen[1]] == [told["i"] for told in seen[0]] == list(range(6))
    for told, wanted in zip(seen[1], seen[0]):
        assert set(told) == set(wanted)
        for key in ("x", "denoised", "sigma", "sigma_hat"):
            torch.testing.assert_close(told[key], wanted[key], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", [m["name"] for m in ddim_ode.methods() if m["order"]])
def test_every_method_tells_of_each_step_once_and_ends_where_the_flow_does(method):
    sigmas = torch.tensor(np.append(np.geomspace(14.0, 0.05, 60), 0.0))
    steps = []
    x = sampler(method)(mixture, X, sigmas, callback=steps.append, disable=True)
    assert [told["i"] for told in steps] == list(range(60))
    assert [float(told["sigma"]) for told in steps] == pytest.approx(sigmas[:-1].tolist())
    flowed = EXACT.flow(X.reshape(-1, 1), 14.0, 1e-4).reshape(X.shape)
    assert float((x - flowed).abs().max()) < (0.2 if method == "ddim" else 0.03)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_is_a_denoiser(wrappers, name):
    model = wrapped(wrappers, name)
    ours = denoiser(model, sigma_max=14.0)
    assert ours.prediction == "x0"
    x, shared = X.float(), dict(shift=torch.tensor(0.2))
    level = torch.full((3,), 2.5)
    x0, eps = ours(x, 2.5, shared=shared)
    torch.testing.assert_close(x0, model(x, level, **shared))
    torch.testing.assert_close(x0 + 2.5 * eps, x, rtol=1e-5, atol=1e-5)
    grid = SIGMAS.numpy()
    got = ddim_ode.sample(ours, x, "heun", grid=grid, shared=shared).x
    expected = peers.load("k_diffusion.sampling").sample_heun(
        model, x, SIGMAS.float(), extra_args=shared, disable=True
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5)


def test_a_wrapper_says_its_range(wrappers):
    ours = denoiser(wrappers["EpsDenoiser"])
    assert ours.sigma_max == pytest.approx(float(DDPM.sigma(1000)), rel=1e-4)
    assert ours.schedule.sigma_min == pytest.approx(float(DDPM.sigma(1)), rel=1e-3)
    assert denoiser(mixture).sigma_max == 80.0


def test_there_and_back_is_the_same_model():
    ours = denoiser(mixture, sigma_max=14.0)
    plan = ddim_ode.plan_for(ours, "unipc3", steps=20)
    direct = ddim_ode.sample(ours, X, plan=plan).x
    sigmas = torch.tensor(plan.grid)
    torch.testing.assert_close(sampler("unipc3")(mixture, X, sigmas, disable=True), direct)
    torch.testing.assert_close(sampler(plan)(mixture, X, sigmas, disable=True), direct)


@pytest.mark.parametrize("steps", [6, 20])
def test_a_plan_of_a_trained_schedule_runs_in_their_scale(steps):
    """On ``schedules.ddpm`` x is ᾱ times that of k-diffusion."""
    model = mixture_1d(DDPM)
    plan = ddim_ode.plan_for(model, "unipc2", steps=steps, sigma_max=14.0)
    alpha = float(DDPM.scales(14.0)[0])
    flat = X.reshape(-1, 1)
    direct = ddim_ode.sample(model, alpha * flat, plan=plan).x
    sigmas = torch.tensor([14.0, *np.linspace(9, 1, steps - 1), 0.0])  # only the ends count
    got = sampler(plan, schedule=DDPM)(mixture, X, sigmas, disable=True)
    torch.testing.assert_close(got.reshape(-1, 1), direct, rtol=1e-9, atol=1e-9)


@short_search()
def test_a_profile_makes_the_grid():
    model = mixture_1d(schedules.ve(80.0))
    profile = ddim_ode.profile(model, n=4, progress=False)
    sigmas = torch.linspace(80.0, 0.0, 9)
    told = []
    x = (80.0 * torch.linspace(-1.5, 1.5, 12)).double().reshape(3, 1, 2, 2)
    sampler(profile, method="dpmpp2m")(mixture, x, sigmas, callback=told.append, disable=True)
    levels = [float(one["sigma"]) for one in told]
    expected = profile.grid(8, method="dpmpp2m", sigma_max=80.0)
    np.testing.assert_allclose(levels, expected[:-1], rtol=1e-6)


CONST = type("CONST", (), {})


class Flow:
    """A flow-matching model in ComfyUI's wrapping: x̂₀ at x = (1 − s) x₀ + s ε."""

    def __init__(self, model):
        sampling = type("ModelSampling", (CONST,), {})()
        self.inner_model = types.SimpleNamespace(
            inner_model=types.SimpleNamespace(model_sampling=sampling)
        )
        self.model = model

    def __call__(self, x, s, denoise_mask=None, **extra):
        assert ((s >= 0) & (s <= 1)).all()
        out = x.reshape(len(x), -1)
        level = schedules.flow().sigma(s.double().numpy())
        out = torch.stack(
            [self.model(one[:, None], float(sigma))[0][:, 0] for one, sigma in zip(out, level)]
        )
        return out.reshape(x.shape).to(x.dtype)


@pytest.mark.parametrize("method", ["ddim", "heun", "unipc2", "ab3"])
def test_a_flow_model_of_comfyui_is_solved_as_one(method):
    exact = mixture_1d(schedules.flow(), "flow")
    shares = torch.tensor([*np.linspace(1.0, 0.04, 25), 0.0])
    x = X / 14.0
    wrapped_flow = Flow(exact)
    told = []
    got = sampler(method)(wrapped_flow, x, shares, callback=told.append, disable=True)
    assert [float(one["sigma"]) for one in told] == pytest.approx(shares[:-1].tolist(), abs=1e-6)
    plan = ddim_ode.plan(method, exact.schedule, exact.schedule.sigma(shares.double().numpy()))
    direct = ddim_ode.sample(exact, x.reshape(-1, 1), plan=plan).x.reshape(x.shape)
    torch.testing.assert_close(got, direct, rtol=1e-6, atol=1e-6)
    told_so = sampler(method, schedule=schedules.flow())(
        lambda x, s: wrapped_flow(x, s), x, shares, disable=True
    )
    torch.testing.assert_close(told_so, got)
    if method == "ddim":  # sample_euler, in whose derivative (x − x̂₀)/s the scale of x cancels
        euler = peers.load("k_diffusion.sampling").sample_euler(
            wrapped_flow, x, shares.double(), disable=True
        )
        torch.testing.assert_close(got, euler, rtol=1e-6, atol=1e-6)


def test_an_inpainting_wrapper_keeps_what_it_masks():
    """As ComfyUI's: the masked part of the state is replaced before the call, of x̂₀ after it."""
    latent, noise = torch.full_like(X, 0.3), torch.ones_like(X)

    def inpainting(x, sigma, denoise_mask, **extra):
        level = sigma.reshape(-1, 1, 1, 1)
        x = x * denoise_mask + (latent + noise * level) * (1 - denoise_mask)
        return mixture(x, sigma) * denoise_mask + latent * (1 - denoise_mask)

    mask = (torch.arange(4.0).reshape(1, 1, 2, 2) > 1).double()
    args = dict(denoise_mask=mask)
    got = sampler("unipc2")(inpainting, X, SIGMAS, extra_args=args, disable=True)
    torch.testing.assert_close(got[..., 0, :], latent[..., 0, :])
    free = sampler("unipc2")(mixture, X, SIGMAS, disable=True)
    torch.testing.assert_close(got[..., 1, :], free[..., 1, :])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_models_alone(dtype):
    seen = set()

    def model(x, sigma):
        seen.add((x.dtype, sigma.dtype))
        return mixture(x, sigma)

    got = sampler("dpmpp2m")(model, X.to(dtype), SIGMAS.to(dtype), disable=True)
    assert got.dtype == dtype
    assert seen == {(dtype, torch.float32)}
    wide = sampler("dpmpp2m")(mixture, X, SIGMAS.to(dtype).double(), disable=True)
    assert float((got.double() - wide).abs().max()) < (0.01 if dtype == torch.float16 else 0.05)


def test_it_stops_where_the_sigmas_do():
    got = sampler("heun")(mixture, X, SIGMAS[:-1], disable=True)
    expected = peers.load("k_diffusion.sampling").sample_heun(mixture, X, SIGMAS[:-1], disable=True)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


PLAN = ddim_ode.plan("ddim", schedules.ve(80.0), [14.0, 1.0, 0.0])
WRONG = {
    "rising": (lambda: sampler()(mixture, X, SIGMAS.flip(0)), "grid"),
    "repeated": (lambda: sampler()(mixture, X, torch.tensor([2.0, 2.0, 0.0])), "grid"),
    "NaN": (lambda: sampler()(mixture, X, torch.tensor([2.0, float("nan")])), "sigmas|grid"),
    "infinite": (lambda: sampler()(mixture, X, torch.tensor([float("inf"), 1.0])), "sigmas"),
    "one": (lambda: sampler()(mixture, X, torch.tensor([2.0])), "sigmas"),
    "none": (lambda: sampler()(mixture, X, torch.tensor([])), "sigmas"),
    "shares": (
        lambda: sampler(schedule=schedules.flow())(mixture, X, SIGMAS),
        "outside this schedule's range",
    ),
    "noise": (lambda: sampler("ddpm"), "noise"),
    "unknown": (lambda: sampler("eulr"), "method"),
    "adaptive": (lambda: sampler("scipy:RK45"), "method"),
    "a plan's start": (lambda: sampler(PLAN)(mixture, X, torch.tensor([9.0, 1.0, 0.0])), "begin"),
    "a plan's end": (lambda: sampler(PLAN)(mixture, X, torch.tensor([14.0, 1.0, 0.1])), "end"),
    "a plan of another": (
        lambda: sampler(ddim_ode.plan("ddim", DDPM, [14.0, 1.0, 0.0]))(mixture, X, SIGMAS),
        "schedule=",
    ),
    "a plan's variant": (lambda: sampler(PLAN, start="rk"), "start"),
    "a method's method": (lambda: sampler("ddim", method="heun"), "method"),
    "not a model": (lambda: sampler()(None, X, SIGMAS), "model"),
    "not a callback": (lambda: sampler()(mixture, X, SIGMAS, callback=3), "callback"),
    "integers": (lambda: sampler()(mixture, X.long(), SIGMAS), "x"),
    "a wrong shape": (lambda: sampler()(lambda x, s: x[:1], X, SIGMAS, disable=True), "shape"),
    "schedule": (lambda: sampler(schedule="flow"), "schedule"),
    "VP": (lambda: denoiser(mixture, schedule=DDPM), "schedules.flow"),
    "no function": (lambda: denoiser(3), "wrapped"),
    "a range": (lambda: denoiser(mixture, sigma_max=-1.0), "sigma_max"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused(what):
    call, words = WRONG[what]
    expect(call, words)


def test_a_plan_warns_that_it_takes_its_own_steps():
    with pytest.warns(UserWarning, match="own 2 steps"):
        sampler(PLAN)(mixture, X, SIGMAS, disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler(PLAN)(mixture, X, torch.tensor([14.0, 3.0, 0.0]), disable=True)


def test_an_error_of_the_model_or_the_callback_comes_through():
    def interrupted(told):
        if told["i"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler("heun")(mixture, X, SIGMAS, callback=interrupted, disable=True)
    with pytest.raises(ZeroDivisionError):
        sampler()(lambda x, sigma: 1 / 0, X, SIGMAS, disable=True)
