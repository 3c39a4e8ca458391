"""EDM-type pipelines (Stable Audio, SVD, Cosmos 1) with our scheduler in the place of theirs."""

import copy

import numpy as np
import pytest
import torch
from peers import load as peer
from refusals import expect
from short_search import short_search
from test_edm_configurations import CASES, made, theirs
from tiny_pipelines import (
    TINY,
    alive,
    cosmos,
    off,
    run_pipeline,
    seeded,
    start,
    unet,
)

import ddim_ode

pytest.importorskip("diffusers")

from ddim_ode.interop.diffusers import DDIMODEScheduler, from_pipeline, load


@pytest.mark.parametrize(("name", "config"), CASES)
def test_euler_is_theirs(name, config, tmp_path):
    """From the configuration in memory, which names no class, and from its file."""
    net, scheduler, steps = alive(unet()), made(name, config), 5
    scheduler.set_timesteps(steps)
    x = start() * float(scheduler.init_noise_sigma)
    expected = theirs(copy.deepcopy(scheduler), net, x, steps)
    scheduler.save_pretrained(tmp_path)
    for ours in (
        DDIMODEScheduler.from_config(scheduler.config, method="ddim"),
        DDIMODEScheduler.from_pretrained(tmp_path),
    ):
        assert off(theirs(ours, net, x, steps), expected) < 1e-5
        np.testing.assert_allclose(ours.init_noise_sigma, scheduler.init_noise_sigma, rtol=1e-6)
        np.testing.assert_allclose(
            np.unique(ours.sigmas.numpy()), np.unique(scheduler.sigmas.numpy()), rtol=1e-5
        )
    np.testing.assert_allclose(
        load(net, ours).grid(steps), load(net, scheduler).grid(steps), rtol=1e-5
    )
    ours.save_pretrained(tmp_path)
    again = DDIMODEScheduler.from_pretrained(tmp_path)
    assert torch.equal(theirs(again, net, x, steps), theirs(ours, net, x, steps))


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("StableAudioPipeline", ("heun", "unipc2", "dpmpp2m", "rk4")),
        ("StableVideoDiffusionPipeline", ("heun", "unipc2")),
    ],
)
@short_search()
def test_every_plan_is_that_of_sample(name, methods):
    """Methods of stages and of several levels, a profile and a fitted plan, and data with noise."""
    pipe, call = TINY[name]()
    scheduler = pipe.scheduler
    with from_pipeline(pipe, **call, num_inference_steps=6, generator=seeded()) as model:
        how = dict(grid=model.grid(), start=None)
        ends = [ddim_ode.sample(model, model.latents, m, **how).x for m in methods]
        profile = ddim_ode.profile(model, n=1, progress=False)
        placed = ddim_ode.sample(model, model.latents, "unipc2", nfe=4, grid=profile).x
        plan = ddim_ode.plan_for(model, "dpmpp3m", nfe=4)
        planned = ddim_ode.sample(model, model.latents, plan=plan).x
    for method, end in zip(methods, ends):
        pipe.scheduler = DDIMODEScheduler.from_config(scheduler.config, method=method)
        visited = run_pipeline(pipe, call, 6)
        assert len(visited) == len(pipe.scheduler.timesteps)
        assert off(visited.end, end) < 1e-5, method
    profiled = DDIMODEScheduler.from_config(scheduler.config, method="unipc2", profile=profile)
    of_plan = DDIMODEScheduler.from_plans(plan, scheduler.config)
    again = DDIMODEScheduler.from_plans(plan, profiled.config, profile=None)
    for ours, end in ((profiled, placed), (of_plan, planned), (again, planned)):
        pipe.scheduler = ours
        assert off(run_pipeline(pipe, call, 4).end, end) < 1e-5
    with from_pipeline(pipe, **call, num_inference_steps=4, generator=seeded()) as model:
        # Ours in their place is read, too.
        again = ddim_ode.sample(model, model.latents, plan=plan).x
    assert off(again, planned) < 1e-5


@pytest.mark.parametrize(
    ("method", "sigma_data"),
    [("ddim", 1.0), ("ddim", 0.5), ("unipc2", 1.0), ("unipc2", 0.5), ("heun", 1.0)],
)
def test_cosmos_takes_each_step_twice(method, sigma_data):
    """Its pipeline guides x̂₀ of both branches, and steps by that."""
    pipe, call = cosmos(sigma_data)
    own = pipe.scheduler
    goal = run_pipeline(pipe, call, 4).end
    pipe.scheduler = DDIMODEScheduler.from_config(own.config, method=method)
    end = run_pipeline(pipe, call, 4).end
    assert (off(end, goal) < 1e-5) == (method == "ddim")
    raw = load(pipe.transformer, own)
    shared = dict(padding_mask=torch.zeros(1, 1, 32, 32), fps=30)

    def guided(x, t):
        yes, no = (
            raw(x, float(t[0]), shared=dict(shared, encoder_hidden_states=call[name]))[0]
            for name in ("prompt_embeds", "negative_prompt_embeds")
        )
        return yes + call["guidance_scale"] * (yes - no)

    model = ddim_ode.Denoiser(guided, raw.schedule, "x0")
    plan, noise = pipe.scheduler.plan, torch.randn((1, 4, 2, 4, 4), generator=seeded())
    grid = np.array(plan.grid) * sigma_data
    expected = ddim_ode.sample(model, 80.0 * noise, method, grid=grid, chart=plan.chart).x
    assert off(end, expected) < 1e-4


def test_other_levels():
    scheduler = made("EDMEuler", dict(sigma_data=1.0, sigma_min=0.01))
    ours = DDIMODEScheduler.from_config(scheduler.config, method="unipc2", grid="karras")
    ours.set_timesteps(5)
    scheduler.set_timesteps(5)
    np.testing.assert_allclose(ours.sigmas, scheduler.sigmas, rtol=1e-5)
    plain = DDIMODEScheduler.from_config(scheduler.config)
    plain.set_timesteps(sigmas=[30.0, 2.0, 0.1, 0.0])
    np.testing.assert_allclose(plain.sigmas, [30.0, 2.0, 0.1, 0.0], rtol=1e-6)
    np.testing.assert_allclose(plain.timesteps, np.log([30.0, 2.0, 0.1]) / 4, rtol=1e-5)
    told = plain.timesteps.tolist()
    plain.set_timesteps(timesteps=told)
    np.testing.assert_allclose(plain.sigmas, [30.0, 2.0, 0.1, 0.0], rtol=1e-5, atol=1e-7)
    low = DDIMODEScheduler.from_config(scheduler.config, sigma_max=20.0)
    low.set_timesteps(3)
    assert low.sigmas[0] == 20.0
    x0, noise = start(2, 2), start(2, 2, seed=5)
    noised = plain.add_noise(x0, noise, plain.timesteps[1:])
    torch.testing.assert_close(noised[0], x0[0] + 2.0 * noise[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(noised[1], x0[1] + 0.1 * noise[1], rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_the_state_wide():
    """σ = 80 … 0.002 in bfloat16: the pipeline's copy is coarse, and the run goes on with its own."""
    net = unet()
    torch.nn.init.zeros_(net.conv_out.weight)
    torch.nn.init.zeros_(net.conv_out.bias)  # x̂₀ = c_skip·x, whose ODE is linear
    scheduler = DDIMODEScheduler.from_config(made("EDMEuler", {}).config, method="unipc2")
    noise = start().bfloat16()
    wide = theirs(scheduler, net, noise.float() * scheduler.init_noise_sigma, 12)
    x = (noise.float() * scheduler.init_noise_sigma).bfloat16()
    first = theirs(scheduler, net, x.float(), 12)
    scheduler.set_timesteps(12)
    net.bfloat16()
    with torch.no_grad():
        for t in scheduler.timesteps:
            shown = scheduler.scale_model_input(x, t)
            x = scheduler.step(net(shown, t).sample, t, x).prev_sample
    assert off(x.float(), first) < 2**-8 < off(first, wide) + 2**-8


def test_what_does_not_go_together_is_refused():
    d = peer("diffusers")
    config = d.EDMEulerScheduler().config
    make = lambda **options: DDIMODEScheduler.from_config(config, **options)  # noqa: E731
    expect(lambda: make(snap=True), "EDM-type networks .*drop snap=True")
    expect(lambda: make(sigma_data=0.0), "sigma_data=0 must be above 0")
    expect(lambda: make(sigma_max=-1.0), "sigma_max=-1 must be above 0")
    expect(lambda: make(sigma_min=100.0), "sigma_min=100 must lie below sigma_max=80")
    expect(lambda: make(prediction_type="sample"), "unknown prediction_type 'sample'")
    expect(lambda: make(final="sigma_min").set_timesteps(4), "grid=.*drop final")
    expect(lambda: make().get_velocity(start(), start(), [0.5]), "trained on x̂₀")
    scheduler = make()
    expect(lambda: setattr(scheduler, "_step_index", -1), "_step_index=-1")
    plain = DDIMODEScheduler()
    plain.set_timesteps(3)
    x = start()
    step = lambda: plain.step(x, plain.timesteps[0], x, pred_original_sample=x)  # noqa: E731
    expect(step, "pred_original_sample: only .*drop it")
    pipe, call = cosmos()
    with from_pipeline(pipe, **call) as model:
        expect(lambda: model(model.latents, 1.0), "sets scheduler._step_index")
