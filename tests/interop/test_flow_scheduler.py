"""Our plans inside unmodified flow-matching pipelines, and the scheduler that runs them there."""

import copy
import dataclasses
import functools
import inspect
import warnings

import numpy as np
import pytest
import torch
from peers import load as peer
from peers import quiet
from refusals import expect
from short_search import short_search
from tiny_pipelines import TINY, TINY_FLOW, off, picture, run_pipeline

import ddim_ode
from ddim_ode import exact, schedules
from ddim_ode.solvers.methods import METHODS as REGISTRY

pytest.importorskip("diffusers")

from ddim_ode.interop.diffusers import DDIMODEFlowScheduler, DDIMODEScheduler

FLOW = schedules.flow()
NET = ddim_ode.Denoiser(lambda x, t: velocity(x, t), FLOW, "flow")
# Whose σ are those of x₀ + σε there, and exceed 1.
KARRAS = dict(
    _class_name="DPMSolverMultistepScheduler",
    use_flow_sigmas=True,
    prediction_type="flow_prediction",
    use_karras_sigmas=True,
)
FALLING = [name for name, method in REGISTRY.items() if method.rises is None]
CONFIGS = [
    *({}, dict(shift=3.0), dict(shift=0.5), dict(shift_terminal=0.1), dict(invert_sigmas=True)),
    *(dict(use_dynamic_shifting=True, time_shift_type=kind) for kind in ("exponential", "linear")),
    *(
        dict(shift=2.0, **{f"use_{name}_sigmas": True})
        for name in ("karras", "exponential", "beta")
    ),
    dict(use_dynamic_shifting=True, shift_terminal=0.05, use_karras_sigmas=True),
]


def velocity(x, t):
    """Of a network, by time in [0, 1]."""
    t = torch.as_tensor(t, dtype=torch.float32).reshape(-1, *(1,) * (x.ndim - 1))
    return torch.tanh(x * (1 + t)) - 0.3 * t


def field(x, t):
    """The exact velocity of a mixture (the least share of data that it can tell is 1e-9)."""
    t = np.minimum(np.asarray(t, dtype=np.float64), 1 - 1e-9)
    x0, eps = MIXTURE(x.double(), torch.as_tensor(t / (1 - t)).expand(len(x)))
    return (eps - x0).to(x)


MIXTURE = exact.gaussian_mixture(
    [0.6, 0.4], [[-1.5, 0.5], [1.2, -0.8]], [[0.16, 0.09], [0.0625, 0.25]], FLOW
)
MODEL = ddim_ode.Denoiser(field, FLOW, "flow", shape=(2,))


def start(*shape, seed=0):
    return torch.randn(shape or (2, 3, 4, 4), generator=torch.Generator().manual_seed(seed))


def ours(method=None, **config):
    return DDIMODEFlowScheduler(method=method, **config)


def theirs(**config):
    return peer("diffusers").FlowMatchEulerDiscreteScheduler(**config)


def walk(scheduler, x, begin=0, end=None, sign=1.0, **step):
    for t in scheduler.timesteps[begin:end]:
        answer = sign * velocity(x.float(), float(t) / 1000 if sign > 0 else 1 - float(t) / 1000)
        x = scheduler.step(answer.to(x.dtype), t, x, return_dict=False, **step)[0]
    return x


# -- the pipelines ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(TINY_FLOW))
def test_in_each_pipeline_our_euler_is_theirs(name):
    """On the pipeline's own levels, in its own loop; and a multistep method runs there on them, too."""
    pipe, call = TINY[name]()
    expected = run_pipeline(pipe, call, 5)
    config = pipe.scheduler.config
    levels, kept = pipe.scheduler.sigmas, {}
    for method in ("ddim", "unipc2"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe.scheduler = DDIMODEFlowScheduler.from_config(config, method=method)
        kept[method] = run_pipeline(pipe, call, 5)
        assert kept[method].times == expected.times
        assert torch.equal(pipe.scheduler.sigmas, levels)
        assert kept[method].end.dtype == expected.end.dtype
    assert off(kept["ddim"].end, expected.end) < 1e-5
    assert off(kept["unipc2"].end, expected.end) > 1e-4


@pytest.mark.parametrize("name", ["StableDiffusion3Img2ImgPipeline", "FluxImg2ImgPipeline"])
def test_image_to_image_begins_where_theirs_does(name):
    """At any strength, with any number of calls a step: from the same level and the same noised picture."""
    pipe, call = TINY[name]()
    config = pipe.scheduler.config
    for strength in (0.2, 0.35, 1.0):
        pipe.scheduler = theirs(**{k: v for k, v in config.items() if k[0] != "_"})
        expected = run_pipeline(pipe, call | dict(strength=strength), 10)
        for method in ("ddim", "heun", "dpm2", "rk4", "unipc2"):
            pipe.scheduler = DDIMODEFlowScheduler.from_config(config, method=method)
            changed = call | dict(strength=strength)
            made = run_pipeline(pipe, changed, 10)
            assert len(made) <= len(expected)
            if method in ("ddim", "unipc2"):
                assert made.times == expected.times
                assert off(made[0], expected[0]) < 1e-6
            if method == "ddim":
                assert off(made.end, expected.end) < 1e-5
            assert torch.isfinite(made.end).all()


def test_inpainting_keeps_the_picture():
    """The pipeline mixes the noised picture into the state after each step."""
    pipe, call = TINY["FluxImg2ImgPipeline"]()
    with quiet():
        pipe = peer("diffusers").FluxInpaintPipeline.from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    call |= dict(image=picture(), mask_image=mask, height=16, width=16)
    config = pipe.scheduler.config
    for strength in (0.3, 0.6, 1.0):
        pipe.scheduler = theirs(**{k: v for k, v in config.items() if k[0] != "_"})
        expected = run_pipeline(pipe, call | dict(strength=strength), 6)
        for method in ("ddim", "heun", "unipc2"):
            pipe.scheduler = DDIMODEFlowScheduler.from_config(config, method=method)
            made = run_pipeline(pipe, call | dict(strength=strength), 6)
            if method == "ddim":
                assert len(made) == len(expected)
                assert all(off(a, b) < 1e-5 for a, b in zip(made, expected))
            assert torch.isfinite(made.end).all()


def test_it_travels_with_the_pipeline(tmp_path):
    """Through files, other pipelines of the same parts, and back to their own class."""
    diffusers = peer("diffusers")
    pipe, call = TINY["StableDiffusion3Pipeline"]()
    own = pipe.scheduler.config
    pipe.scheduler = DDIMODEFlowScheduler.from_config(own, method="unipc2")
    expected = run_pipeline(pipe, call, 4).end
    with quiet():
        other = diffusers.StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
        pipe.scheduler.save_pretrained(tmp_path)
        pipe.scheduler = DDIMODEFlowScheduler.from_pretrained(tmp_path)
    assert isinstance(other.scheduler, DDIMODEFlowScheduler)
    assert torch.equal(run_pipeline(pipe, call, 4).end, expected)
    pipe.scheduler = DDIMODEFlowScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(run_pipeline(pipe, call, 4).end, expected)
    with quiet():
        back = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert {k: back.config[k] for k in own if k[0] != "_"} == {
        k: own[k] for k in own if k[0] != "_"
    }


# -- levels -------------------------------------------------------------------------------------
@pytest.mark.parametrize("config", CONFIGS)
def test_the_levels_are_theirs_and_euler_is_too(config):
    sign = -1.0 if config.get("invert_sigmas") else 1.0
    N, mu = 7, 0.8
    for call in (
        dict(num_inference_steps=N),
        dict(sigmas=np.linspace(1, 1 / N, N)),
        dict(num_inference_steps=N, sigmas=np.linspace(0.9, 0.2, N).tolist()),
        dict(num_inference_steps=1 if "shift_terminal" not in config else 2),
    ):
        one, other = theirs(**config), ours(**config)
        for scheduler in (one, other):
            scheduler.set_timesteps(**call, mu=mu)
        assert torch.equal(one.timesteps, other.timesteps)
        assert torch.equal(one.sigmas, other.sigmas)
        assert other.timesteps.dtype == other.sigmas.dtype == torch.float32
        assert off(walk(other, start(), sign=sign), walk(one, start(), sign=sign)) < 1e-6
        assert isinstance(other, type(one))


@pytest.mark.parametrize("method", FALLING)
def test_any_method_is_ours_on_those_levels(method):
    """As sample() makes them, in no more calls than asked for, each at a time of the list."""
    scheduler = ours(method, shift=3.0)
    for calls in (6, 9):
        scheduler.set_timesteps(calls)
        plan = scheduler.plan
        assert len(scheduler.timesteps) == plan.nfe <= calls
        assert plan.nfe >= calls - REGISTRY[method].nfe_per_step
        own = theirs(shift=3.0)
        own.set_timesteps(calls)
        begins = plan.level_calls()
        assert torch.equal(scheduler.timesteps[begins], own.timesteps[begins])
        assert scheduler.order == 1
        if plan.is_stochastic:
            continue
        sol = ddim_ode.sample(NET, start(), plan=plan)
        assert off(walk(scheduler, start()), sol.x) < 2e-6


@functools.cache
def ended():
    x = start(64, 2)
    return x, ddim_ode.sample(MODEL, x, "rk4", steps=100, grid="time").x


@pytest.mark.parametrize(
    "method", ["ab3", "ipndm", "deis2", "dpmpp2m", "dpmpp3m", "unipc2", "unipc3"]
)
def test_a_last_level_near_zero_costs_no_digits(method):
    """SD3's own levels end at 1/1000, whatever their number."""
    x, exact_end = ended()
    for calls in (6, 10):
        errors = {}
        for name in (method, "ddim"):
            scheduler = ours(name)
            scheduler.set_timesteps(calls)
            assert float(scheduler.timesteps[-1]) == 1.0
            errors[name] = float((through(scheduler, x) - exact_end).square().mean().sqrt())
        assert errors[method] < 0.9 * errors["ddim"]


def test_levels_and_places_are_told():
    scheduler = ours("heun", shift=3.0)
    assert {"sigmas", "mu", "timesteps"} <= inspect.signature(
        scheduler.set_timesteps
    ).parameters.keys()
    assert (scheduler.begin_index, scheduler.step_index) == (None, None)
    scheduler.set_timesteps(8)
    np.testing.assert_allclose(scheduler.sigmas[:-1] * 1000, scheduler.timesteps, rtol=1e-6)
    assert scheduler.sigmas.shape == (len(scheduler.timesteps) + 1,)
    assert float(scheduler.sigmas[-1]) == 0.0
    assert (scheduler.begin_index, scheduler.step_index) == (0, None)
    out = scheduler.step(start(), scheduler.timesteps[0], start(seed=1))
    assert scheduler.step_index == 1
    torch.testing.assert_close(out.pred_original_sample, start(seed=1) - start(), rtol=0, atol=1e-6)
    out.prev_sample += 1  # it is the pipeline's
    assert (len(scheduler), scheduler.shift, scheduler.init_noise_sigma) == (1000, 3.0, 1.0)
    one, other = theirs(shift=3.0), ours("unipc2", shift=3.0)
    for scheduler in (one, other):
        scheduler.set_shift(5.0)
        scheduler.set_timesteps(8)
    assert torch.equal(one.sigmas, other.sigmas)


@pytest.mark.parametrize(
    "name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DEISMultistepScheduler"]
)
@pytest.mark.filterwarnings("error::ddim_ode.interop.diffusers.InteropWarning")
def test_solvers_of_flow_models_are_taken_with_their_levels(name, tmp_path):
    """Sana's and Wan's; theirs tell the network whole times, ours 1000σ."""
    for options in (dict(flow_shift=3.0), dict(flow_shift=1.0, use_karras_sigmas=True)):
        options |= dict(use_flow_sigmas=True, prediction_type="flow_prediction")
        if name != "UniPCMultistepScheduler" and options.get("use_karras_sigmas"):
            continue  # theirs exceed 1
        with quiet():
            own = getattr(peer("diffusers"), name)(**options)
            own.set_timesteps(6)
        made = DDIMODEFlowScheduler.from_config(own.config, method="unipc2")
        made.save_pretrained(tmp_path)
        for scheduler in (
            made,
            DDIMODEFlowScheduler.from_pretrained(tmp_path),
            DDIMODEFlowScheduler.from_config(made.config),
            copy.deepcopy(made),
        ):
            scheduler.set_timesteps(6)
            torch.testing.assert_close(scheduler.sigmas[:-1], own.sigmas[:-1])
            assert float(scheduler.sigmas[-1]) == 0.0
            assert (scheduler.timesteps - own.timesteps).abs().max() <= 1
        assert made.shift == options["flow_shift"]
        assert made.config.use_flow_sigmas
        with quiet():
            again = type(own).from_config(made.config)
        assert again.config.flow_shift == options["flow_shift"]
    expect(lambda: made.set_timesteps(timesteps=[900.0, 500.0]), "timesteps=|cannot place")


def test_times_beside_the_levels():
    """CogView4's pipelines tell the network times that are not those of the shifted levels."""
    N = 6
    times = np.linspace(1000, 1, N)
    call = dict(num_inference_steps=N, timesteps=times, sigmas=times / 1000, mu=0.7)
    one, other = (kind(use_dynamic_shifting=True) for kind in (theirs, ours))
    for scheduler in (one, other):
        scheduler.set_timesteps(**call)
    assert torch.equal(one.timesteps, other.timesteps)
    assert torch.equal(one.sigmas, other.sigmas)
    assert off(walk(other, start()), walk(one, start())) < 1e-6
    one.set_timesteps(**call)
    one.set_begin_index(2)
    t = one.timesteps[2:3]
    noised = [s.scale_noise(start(), t, start(seed=1)) for s in (one, other)]
    assert off(*noised) < 1e-6
    heun, midpoint = (ours(m, use_dynamic_shifting=True) for m in ("heun", "midpoint"))
    heun.set_timesteps(**call)
    expect(lambda: midpoint.set_timesteps(**call), "between the levels, at σ=")


# -- states -------------------------------------------------------------------------------------
def test_scale_noise_is_theirs_and_needs_no_place():
    x, noise = start(), start(seed=1)
    own, scheduler = theirs(shift=3.0), ours("unipc2", shift=3.0)
    for one in (own, scheduler):
        one.set_timesteps(8)
    for k in (0, 3, 7):
        own.set_begin_index(k)
        t = own.timesteps[k : k + 1]
        made = scheduler.scale_noise(x, t.repeat(2), noise)
        assert off(made, own.scale_noise(x, t, noise)) < 1e-6
        assert torch.equal(made, scheduler.scale_noise(x, t, noise))
    half = scheduler.scale_noise(x.bfloat16(), t, noise.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(
        ours(invert_sigmas=True).scale_noise(x, torch.tensor([0.0]), noise), noise
    )
    for t, eps, message in (
        (torch.tensor([1001.0]), noise, r"1001 must be in \[0, 1000\]"),
        (torch.tensor([float("nan")]), noise, "must be in|must be real"),
        (torch.tensor([1.0, 2.0, 3.0]), noise, "shape"),
        (torch.tensor([5.0]), noise[:1], "noise must have the shape of sample,"),
        (torch.tensor([5.0]), None, "noise must be a floating tensor"),
    ):
        expect(lambda t=t, eps=eps: scheduler.scale_noise(x, t, eps), message)


@pytest.mark.parametrize("method", FALLING)
def test_a_later_begin(method):
    """From any call: where steps begin, as on the rest of the levels; inside a step of several calls, by
    Euler's method through its stages to its end."""
    scheduler, N = ours(method, shift=2.0), 13
    x0, eps = start(64, 2), start(64, 2, seed=1)
    for begin in (0, 1, 2, 3, 5, 7, 10):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / N, N))
        if begin >= len(scheduler.timesteps):
            break
        plan, times = scheduler.plan, scheduler.timesteps[begin:]
        x = noised = scheduler.scale_noise(x0, times[:1], eps)
        if begin % 3:  # else by the place of the first time in the list
            scheduler.set_begin_index(begin)
        for t in times:
            answer = field(x, float(t) / 1000)
            x = scheduler.step(answer, t, x, generator=torch.Generator()).prev_sample
        assert scheduler.begin_index == begin
        if plan.is_stochastic:
            continue
        calls, ramp = plan.level_calls(), "ramp" if REGISTRY[method].rk_steps else None
        after = next(i for i, call in enumerate(calls) if call >= begin)
        if begin != calls[after]:  # inside a step: its stages' levels, without repeats
            inside = {node.sigma for node in plan.nodes[begin : calls[after] + 1]}
            if len(inside) > 1:
                noised = ddim_ode.sample(MODEL, noised, "ddim", grid=sorted(inside)[::-1]).x
        sol = ddim_ode.sample(MODEL, noised, scheduler._later, grid=plan.grid[after:], start=ramp)
        assert off(x, sol.x) < 1e-5
    expect(lambda: scheduler.set_begin_index(99), "begin_index=99: there are")


def test_half_precision_keeps_a_wide_state():
    """bfloat16 answers and states: ours rounds what it shows, theirs what it keeps."""
    errors = {}
    for kind in (theirs, ours):
        scheduler = kind(shift=3.0)
        scheduler.set_timesteps(200)
        x = start().bfloat16()
        for t in scheduler.timesteps:
            x = scheduler.step(torch.ones_like(x) * 0.5, t, x, return_dict=False)[0]
        assert x.dtype == torch.bfloat16
        errors[kind] = float((x.float() - (start().bfloat16().float() - 0.5)).abs().max())
    assert errors[ours] < 0.02 < errors[theirs]
    # An answer of another precision than the state: theirs hands out the answer's.
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[0]
    out = scheduler.step(start(), t, start().bfloat16())
    assert (out.prev_sample.dtype, out.pred_original_sample.dtype) == (torch.float32,) * 2


def test_slices_and_packed_states_are_states():
    for shape in ((1, 6, 16), (1, 4, 3, 2, 2)):
        x = start(*shape)
        one, other = theirs(), ours()
        for scheduler in (one, other):
            scheduler.set_timesteps(4)
        assert off(walk(other, x[:, :, 1:]), walk(one, x[:, :, 1:])) < 1e-6


def test_new_noise_at_each_level_is_theirs():
    """stochastic_sampling, and the few-step scheduler that does the same."""
    ends = []
    for kind in (theirs, ours):
        scheduler = kind(shift=3.0, stochastic_sampling=True)
        scheduler.set_timesteps(5)
        generator = torch.Generator().manual_seed(5)
        ends.append(walk(scheduler, start(), generator=generator))
    assert off(*ends) < 1e-6
    lcm = peer("diffusers").FlowMatchLCMScheduler(shift=3.0)
    assert DDIMODEFlowScheduler.from_config(lcm.config)._renoises
    expect(lambda: ours("unipc2", stochastic_sampling=True), "stochastic_sampling=True draws")
    noisy = ours(eta=1.0)
    noisy.set_timesteps(5)
    several = [torch.Generator().manual_seed(k) for k in range(2)]
    assert torch.isfinite(walk(noisy, start(), generator=several)).all()


# -- plans and profiles -------------------------------------------------------------------------
def through(scheduler, x):
    for t in scheduler.timesteps:
        x = scheduler.step(field(x, float(t) / 1000), t, x, return_dict=False)[0]
    return x


def test_a_plan_runs_as_it_does_on_the_network(tmp_path):
    """Textbook and calibrated ones, whatever levels the pipeline gives."""
    calibrated = ddim_ode.calibrate(MODEL, nfe=4, n=16, progress=False)
    textbook = ddim_ode.plan_for(MODEL, "heun", nfe=7)
    config = theirs(use_dynamic_shifting=True).config
    scheduler = DDIMODEFlowScheduler.from_plans([calibrated, textbook], config)
    scheduler.save_pretrained(tmp_path)
    for made in (scheduler, DDIMODEFlowScheduler.from_pretrained(tmp_path)):
        for plan in (calibrated, textbook):
            made.set_timesteps(sigmas=np.linspace(1, 1 / plan.nfe, plan.nfe), mu=0.9)
            assert made.plan == plan
            sol = ddim_ode.sample(MODEL, start(16, 2), plan=plan)
            assert off(through(made, start(16, 2)), sol.x) < 2e-6
    expect(lambda: scheduler.set_timesteps(9, mu=1.0), f"plans of 4, {textbook.nfe} network calls")
    expect(lambda: scheduler.set_begin_index(2), "a compiled plan runs whole")


def test_a_plan_runs_in_a_pipeline_as_it_does_on_its_network():
    pipe, call = TINY["StableDiffusion3Pipeline"]()
    x = start(1, 4, 8, 8)
    call |= dict(guidance_scale=1.0, latents=x)
    shared = dict(
        encoder_hidden_states=call["prompt_embeds"],
        pooled_projections=call["pooled_prompt_embeds"],
    )
    net = pipe.transformer
    model = ddim_ode.Denoiser(
        lambda x, t: net(x, timestep=1000 * t.expand(len(x)), **shared).sample, FLOW, "flow"
    )
    config = pipe.scheduler.config
    for method in ("unipc3", "heun", "rk4"):
        plan = ddim_ode.plan_for(model, method, nfe=7)
        pipe.scheduler = DDIMODEFlowScheduler.from_plans(plan, config)
        made = run_pipeline(pipe, call, plan.nfe)
        assert len(made) == plan.nfe
        assert off(made.end, ddim_ode.sample(model, x, plan=plan).x) < 1e-5


def test_two_networks_change_at_the_same_call():
    """Wan's pipeline asks one above a share of the times, and another below."""
    pipe, call = TINY["WanPipeline"]()
    pipe.transformer_2 = copy.deepcopy(pipe.transformer)
    pipe.register_to_config(boundary_ratio=0.9)
    asked = []
    for net, name in ((pipe.transformer, "high"), (pipe.transformer_2, "low")):
        net.register_forward_pre_hook(lambda *_, name=name: asked.append(name))
    runs = []
    for scheduler in (pipe.scheduler, DDIMODEFlowScheduler.from_config(pipe.scheduler.config)):
        asked.clear()
        pipe.scheduler = scheduler
        runs.append((run_pipeline(pipe, call, 6).end, asked.copy()))
    assert runs[0][1] == runs[1][1]
    assert {"high", "low"} == set(runs[0][1])
    assert off(runs[1][0], runs[0][0]) < 1e-5


@pytest.mark.parametrize("grid", ["shifted:3", "shifted:mu=1.1", "beta:0.5,0.7", "kl_optimal"])
def test_a_named_grid_places_the_levels(grid, tmp_path):
    config = theirs(shift=7.0).config
    scheduler = DDIMODEFlowScheduler.from_config(config, method="unipc2", grid=grid)
    scheduler.save_pretrained(tmp_path)
    for made in (scheduler, DDIMODEFlowScheduler.from_pretrained(tmp_path)):
        made.set_timesteps(6)
        assert made.plan == ddim_ode.plan_for(MODEL, "unipc2", nfe=6, grid=grid)


@short_search()
def test_a_profile_places_the_levels(tmp_path):
    profile = ddim_ode.profile(MODEL, n=4, progress=False)
    placed = DDIMODEFlowScheduler.from_config(theirs().config, grid=profile)
    assert placed.config.profile is not None is placed.config.grid
    scheduler = DDIMODEFlowScheduler.from_config(theirs().config, method="unipc2", profile=profile)
    scheduler.save_pretrained(tmp_path)
    for made in (scheduler, DDIMODEFlowScheduler.from_pretrained(tmp_path)):
        made.set_timesteps(6)
        expected = ddim_ode.plan_for(MODEL.replace(profile=profile), "unipc2", nfe=6)
        assert made.plan.nfe == 6
        assert len(made.plan.grid) == len(expected.grid)
        sol = ddim_ode.sample(MODEL, start(16, 2), plan=made.plan)
        assert off(through(made, start(16, 2)), sol.x) < 2e-6


def test_a_plan_fitted_at_another_size_is_told():
    plan = ddim_ode.plan("ddim", FLOW, [np.inf, 1.0, 0.0])
    fitted = dataclasses.replace(plan, fit=dict(placing={"shift": 3.0}, shape=[3, 4, 4]))
    for shift, shape, told in (
        (3.0, (2, 3, 4, 4), None),
        (5.0, (2, 3, 4, 4), "placing"),
        (3.0, (2, 3, 8, 8), "shape"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scheduler = DDIMODEFlowScheduler.from_plans(fitted, theirs(shift=shift).config)
            scheduler.set_timesteps(2)
            walk(scheduler, start(*shape))
        messages = [str(w.message) for w in caught if "was calibrated at" in str(w.message)]
        assert [told] * bool(told) == [m.split(" at ")[1].split()[0] for m in messages]


# -- refusals -----------------------------------------------------------------------------------
def test_what_no_plan_can_do_is_refused():
    d = peer("diffusers")
    for config, message in (
        (d.DDIMScheduler().config, "DDIMODEScheduler takes those"),
        (DDIMODEScheduler().config, "DDIMODEScheduler takes those"),
        (d.SCMScheduler().config, "sigma_data="),
        (d.EDMEulerScheduler().config, "sigma_data="),
        (d.HeliosScheduler().config, "several resolutions"),
        ({"_class_name": "FlowMapEulerDiscreteScheduler"}, "time to arrive at"),
        ({}, "of no flow scheduler"),
        (theirs(), "give its .config"),
        (None, "config must be a configuration"),
    ):
        expect(lambda config=config: DDIMODEFlowScheduler.from_config(config), message)
    for own in (theirs, ours):
        expect(lambda o=own: DDIMODEScheduler.from_config(o().config), "FlowScheduler does")
    expect(lambda: DDIMODEFlowScheduler.from_config(theirs().config, grids="time"), "option")
    expect(lambda: ours("restart"), "goes up again by noise")
    expect(lambda: ours("euler"), "method")
    expect(lambda: ours(grid="shift"), "unknown grid 'shift'")
    expect(lambda: ours(grid="shifted:x"), "shift='x' must be a number")
    expect(lambda: ours(grid=3), "unknown grid 3")
    for shift in (0.0, -1.0, np.inf, np.nan, "a"):
        expect(lambda shift=shift: ours(shift=shift), "shift")
    for other in ("a", [], {}, dict(_class_name="DDIMScheduler")):
        expect(lambda other=other: ours(levels_of=other), "levels_of|unknown")
    expect(lambda: ours(use_dynamic_shifting="yes"), "use_dynamic_shifting")
    expect(lambda: ours().set_timesteps(10**9), "num_inference_steps")
    expect(lambda: ours(plans=[]), "plans is empty")
    vp = ddim_ode.plan("ddim", schedules.cosine(), [10.0, 1.0, 0.0])
    expect(lambda: DDIMODEFlowScheduler.from_plans(vp, theirs().config), "made for schedule")


def test_calls_out_of_range_are_refused_and_leave_the_run_alone():
    scheduler = ours("unipc2", shift=3.0)
    x = start()
    expect(lambda: scheduler.step(x, 1000.0, x), "set_timesteps")
    expect(lambda: scheduler.set_begin_index(0), "set_timesteps")
    scheduler.set_timesteps(5)
    whole = walk(scheduler, x)
    scheduler.set_timesteps(5)
    first, second = scheduler.timesteps[:2]
    for call in (
        *(dict(), dict(num_inference_steps=0), dict(num_inference_steps=2.5)),
        *(dict(sigmas=[0.5, 0.9]), dict(sigmas=[0.5, 0.5]), dict(sigmas=[1.5, 0.5])),
        *(dict(sigmas=[]), dict(sigmas=[[0.5]]), dict(sigmas=[np.nan]), dict(sigmas="all")),
        *(dict(num_inference_steps=3, sigmas=[1.0, 0.5]), dict(num_inference_steps=5, mu="a")),
        dict(num_inference_steps=5, device="nowhere"),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            scheduler.set_timesteps(**call)
    for config, mu in (
        (dict(use_dynamic_shifting=True), None),
        (dict(use_dynamic_shifting=True), 1e4),
        (dict(use_dynamic_shifting=True), np.nan),
        (dict(use_dynamic_shifting=True, time_shift_type="linear"), -1.0),
        (dict(shift=1e12), None),
        (dict(shift_terminal=0.1), None),
        (dict(levels_of=KARRAS), None),
    ):
        other = ours(**config)
        steps = 1 if "shift_terminal" in config else 5
        expect(lambda other=other, mu=mu, n=steps: other.set_timesteps(n, mu=mu), "mu|shift|must")
    for output, t, options, message in (
        (x, second + 1, {}, "due at t=1000"),
        (x, float("nan"), {}, "timestep|called with t=nan"),
        (x, first, dict(per_token_timesteps=torch.ones(2, 4)), "per_token_timesteps"),
        (x, first, dict(s_churn=0.5), "s_churn=0.5"),
        (x, first, dict(s_churn=torch.tensor(500.0)), "r_timestep"),
        (x, first, dict(generator="a"), "generator must be"),
        (x[:, :2], first, {}, "the network returned shape"),
        (x.int(), first, {}, "model_output must be a floating tensor"),
        (None, first, {}, "model_output must be a floating tensor"),
    ):
        expect(lambda o=output, t=t, k=options: scheduler.step(o, t, x, **k), message)
    assert torch.equal(walk(scheduler, x), whole)
    expect(lambda: scheduler.step(x, scheduler.timesteps[-1], x), "all 5 network calls")
    scheduler.set_timesteps(5)
    y = scheduler.step(x, first, x).prev_sample
    expect(lambda: scheduler.step(x[:1], second, y[:1]), "this run began with")
    expect(lambda: scheduler.step(x, first, y), "due at t=")
