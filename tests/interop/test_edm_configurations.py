"""EDM-type configurations through ``load``, against diffusers' own schedulers on the same networks."""

import functools
import inspect

import numpy as np
import pytest
import torch
from flow_recipes import recipe
from peers import load as peer
from refusals import expect
from tiny_pipelines import SVD, TINY, alive, off, seeded, start, unet

import ddim_ode
from ddim_ode.interop.config import edm_of, schedule_of
from ddim_ode.interop.diffusers import load
from ddim_ode.interop.edm import Preconditioned

ORDER_1 = dict(solver_order=1)
CASES = [
    ("EDMEuler", {}),
    ("EDMEuler", dict(prediction_type="v_prediction", sigma_data=1.0, sigma_max=500.0)),
    ("EDMEuler", dict(sigma_schedule="exponential", sigma_min=0.01)),
    ("EDMEuler", dict(final_sigmas_type="sigma_min")),
    ("EDMDPMSolverMultistep", ORDER_1),
    ("EDMDPMSolverMultistep", dict(prediction_type="v_prediction", sigma_data=1.0) | ORDER_1),
    ("EulerDiscrete", SVD),
    ("EulerDiscrete", dict(SVD, use_karras_sigmas=False, sigma_min=None, sigma_max=None)),
]


def made(name, config):
    return getattr(peer("diffusers"), f"{name}Scheduler")(**config)


def theirs(scheduler, net, x, steps, **cond):
    """Their loop, as their pipelines write it."""
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            shown = scheduler.scale_model_input(x, t)
            x = scheduler.step(net(shown, t, return_dict=False, **cond)[0], t, x).prev_sample
    return x


@pytest.mark.parametrize(("name", "config"), CASES)
def test_euler_is_theirs(name, config):
    net, scheduler, steps = alive(unet()), made(name, config), 6
    model = load(net, scheduler)
    assert (model.schedule.family, model.prediction) == ("ve", "x0")
    scheduler.set_timesteps(steps)
    x = start() * float(scheduler.sigmas[0])
    grid = model.grid(steps)
    levels = np.unique(scheduler.sigmas.double())[::-1]  # some stay where they are in the last step
    np.testing.assert_allclose(grid, levels, rtol=3e-5)
    ours = ddim_ode.sample(model, x, "ddim", grid=grid).x
    assert off(ours, theirs(scheduler, net, x, steps)) < 1e-5


def test_stable_audios_scheduler_is_read():
    """By its configuration alone: the class itself needs another package."""

    class CosineDPMSolverMultistepScheduler:
        def __init__(self):
            self.config = dict(sigma_min=0.3, sigma_max=500.0, sigma_data=1.0)
            self.config |= dict(num_train_timesteps=1000, prediction_type="v_prediction")

    net, sigma = alive(unet()), torch.tensor([500.0, 30.0, 0.4])
    model = load(net, CosineDPMSolverMultistepScheduler())
    x = start() * sigma.reshape(3, 1, 1, 1)
    s = sigma.reshape(3, 1, 1, 1)
    with torch.no_grad():
        out = net(x / (s**2 + 1).sqrt(), sigma.atan() * 2 / np.pi).sample
    expected = x / (s**2 + 1) - s / (s**2 + 1).sqrt() * out
    assert off(model(x, sigma)[0], expected) < 1e-5
    assert (model.schedule.sigma_max, model.schedule.sigma_min) == (500.0, 0.3)


def test_other_predictions_of_a_continuous_configuration_are_told_whole_times():
    config = {**made("EulerDiscrete", dict(timestep_type="continuous")).config}
    assert edm_of({**config, "_class_name": "EulerDiscreteScheduler"}) is None
    net, scheduler = alive(unet()), made("EulerDiscrete", dict(timestep_type="continuous"))
    model = load(net, scheduler)
    scheduler.set_timesteps(5)
    top = float(scheduler.sigmas[0])
    ours = ddim_ode.sample(model, start(), "ddim", grid=model.grid(5)).x
    x = theirs(scheduler, net, start() * np.hypot(1, top), 5)
    assert off(ours, x) < 1e-4


def test_stable_audio_is_its_pipelines():
    pipe, call = TINY["StableAudioPipeline"]()
    visited, told, _ = recipe(pipe, call | dict(guidance_scale=1.0), steps=4)
    model = load(pipe)
    assert (model.axes, model.shape, model.channels) == ("CL", (4, 8), 4)
    grid = model.grid(4)
    assert off(visited[0], visited.end) > 0.1
    inner = model.replace(net=model.net.net)  # whose forward says the names
    told = {name: value for name, value in told.items() if name != "timestep"}
    first = next(iter(inspect.signature(inner.net.model.forward).parameters))
    shared = {n: v for n, v in told.items() if n not in (first, "return_dict") and v is not None}
    ours = ddim_ode.sample(model, visited[0], "ddim", grid=grid, shared=shared).x
    assert off(ours, visited.end) < 1e-5


def test_frames_are_shown_beside_the_state():
    """SVD's network: (B, F, C, H, W), four channels of a picture behind the four of the state."""
    pipe, _ = TINY["StableVideoDiffusionPipeline"]()
    net, scheduler = pipe.unet, pipe.scheduler
    model = load(net, scheduler)
    assert (model.axes, model.shape, model.channels) == ("FCHW", (2, 4, 8, 8), 4)
    generator = seeded()
    x, more = (torch.randn(1, 2, 4, 8, 8, generator=generator) for _ in range(2))
    cond = dict(encoder_hidden_states=torch.randn(1, 1, 8), added_time_ids=torch.ones(1, 3))
    scheduler.set_timesteps(4)
    x = x * float(scheduler.sigmas[0])

    def beside(shown, t, **rest):
        return net(torch.cat([shown, more], 2), t, **rest)

    expected = theirs(scheduler, beside, x, 4, **cond)
    ours = ddim_ode.sample(model, x, "ddim", grid=model.grid(4), cond=dict(cond, concat=more)).x
    assert off(ours, expected) < 1e-5


def test_half_precision_keeps_the_state_wide():
    net = alive(unet())
    full, half = (load(net, made("EDMEuler", {}), dtype=d) for d in (None, torch.bfloat16))
    x = start()
    # At σ = 0.01, c_out is 0.01: bfloat16's own rounding of x would be 4e-3.
    assert off(half(x, 0.01)[0], full(x, 0.01)[0]) < 2e-4


def test_all_of_our_methods_run():
    """A raw network of zeros has x̂₀ = c_skip·x, which is a normal distribution's: its ODE is known."""
    net = unet()
    torch.nn.init.zeros_(net.conv_out.weight)
    torch.nn.init.zeros_(net.conv_out.bias)
    model = load(net, made("EDMEuler", {}))
    x, error = start() * 80.0, {}
    for method in ("ddim", "heun", "dpmpp2m", "unipc2"):
        end = ddim_ode.sample(model, x, method, grid=model.grid(20)).x
        error[method] = off(end, x * 0.5 / np.hypot(80.0, 0.5))
    assert error["ddim"] < 0.2
    assert max(error["heun"], error["dpmpp2m"], error["unipc2"]) < 0.5 * error["ddim"]
    checks = {finding.check for finding in ddim_ode.diagnose(model, data=0.5 * start())}
    assert "rounded-timesteps" not in checks


def test_a_network_of_ones_own():
    """k-diffusion's kind: wrapped it is a network of x̂₀ that is told σ, raw it goes into Preconditioned."""

    def raw(x, t, scale):
        return torch.tanh(x * scale + t.reshape(-1, 1))

    def wrapped(x, sigma, scale):
        s = sigma.reshape(-1, 1)
        total = s**2 + 0.25
        told = 0.25 * sigma.log()
        return x * 0.25 / total + s * 0.5 / total.sqrt() * raw(x / total.sqrt(), told, scale)

    schedule = ddim_ode.schedules.ve(80.0)
    x = 80 * torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pair = [ddim_ode.Denoiser(net, schedule, "x0") for net in (wrapped, Preconditioned(raw))]
    ends = [ddim_ode.sample(m, x, "heun", steps=6, shared=dict(scale=2.0)).x for m in pair]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    for options, match in (
        (dict(sigma_data=0.0), "sigma_data=0.0 must be above 0"),
        (dict(sigma_data="a"), "sigma_data='a'"),
        (dict(noise="cosine"), "unknown noise 'cosine'"),
        (dict(noise=3), "noise=3 must be callable"),
    ):
        expect(functools.partial(Preconditioned, raw, **options), match)
    expect(lambda: Preconditioned(None), "net=None must be callable")


def test_what_does_not_go_together_is_refused():
    d = peer("diffusers")
    expect(lambda: load(unet(), d.EDMEulerScheduler(), snap=True), "snap=True: .*drop snap")
    twice = unet(out_channels=2)
    expect(lambda: load(twice, d.EDMEulerScheduler()), "returns a variance")
    low = dict(_class_name="EDMEulerScheduler", sigma_min=5.0, sigma_max=2.0)
    expect(lambda: load(unet(), low), "sigma_min=5 must lie below sigma_max=2")
    svd = made("EulerDiscrete", dict(SVD, sigma_max=-1.0))
    expect(lambda: load(unet(), svd), "sigma_max=-1 must")


def test_the_schedule_of_a_configuration_reaches_its_levels():
    named = dict(num_train_timesteps=1000, _class_name="EulerDiscreteScheduler")
    schedule = schedule_of(SVD | named)
    assert (schedule.family, schedule.sigma_max, schedule.sigma_min) == ("ve", 700.0, 0.002)
