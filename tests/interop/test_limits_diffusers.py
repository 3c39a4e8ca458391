"""Limits on x̂₀ of diffusers' configurations: as their schedulers have them, on a network that needs one."""

import dataclasses
import functools
import inspect
import json
import warnings

import pytest
import torch
from peers import load as peer
from peers import quiet
from refusals import expect
from tiny_pipelines import EXPONENTIAL, alive, calibrated, off, ours, save, start, unet

import ddim_ode
from ddim_ode.interop.config import DISCRETE, LIMITING, InteropWarning
from ddim_ode.interop.diffusers import load

CLIP = dict(clip_sample=True)
OWN = dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5)
LIMITS = [
    (CLIP, {"clip": 1.0}),
    (CLIP | dict(clip_sample_range=0.7), {"clip": 0.7}),
    (CLIP | dict(thresholding=True), {"threshold": [0.995, 1.0]}),
    (OWN, {"threshold": [0.9, 1.5]}),
]


@functools.cache
def needy():
    """An untrained network: without a limit most of its ends are out of range."""
    return alive(unet())


def theirs(name="DDIM", **config):
    diffusers = peer("diffusers")
    return getattr(diffusers, f"{name}Scheduler")(**dict(clip_sample=False) | config)


def loop(scheduler, steps, net=None, **step):
    """Where a scheduler takes ``start()``."""
    x, net = start(), net or needy()
    scheduler.set_timesteps(**steps) if isinstance(steps, dict) else scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, **step).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize(("config", "named"), LIMITS)
def test_a_configured_limit_is_their_ddim_of_the_clipped_output(config, named, steps):
    scheduler = theirs(**config)
    expected = loop(scheduler, steps, use_clipped_model_output=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InteropWarning)
        model = load(needy(), scheduler)
    sol = ddim_ode.sample(model, start(), "ddim", grid=model.grid(steps))
    assert sol.alterations == named == json.loads(json.dumps(sol.to_dict()))["alterations"]
    assert off(sol.x, expected) < 1e-4
    assert float(sol.x.abs().max()) <= named.get("clip", 1.0) * (1 + 1e-6)
    plain = load(needy(), scheduler, clip=None, threshold=None)
    free = ddim_ode.sample(plain, start(), steps=steps)
    assert free.alterations == {}
    assert float((free.x.abs() > 2).float().mean()) > 0.5
    mine = type(ours()).from_config(scheduler.config, method="ddim")  # and so does our scheduler
    assert mine.limit.to_dict() == named
    told = dict(timesteps=scheduler.timesteps.tolist())
    assert off(loop(mine, told, use_clipped_model_output=True), expected) < 1e-4


@pytest.mark.parametrize(
    ("method", "limit"), [("heun", 0), ("rk4", 3), ("dpmpp2m", 0), ("unipc2", 3), ("ab4", 0)]
)
def test_in_a_pipeline_the_samples_are_those_of_sample(method, limit):
    config, named = LIMITS[limit]
    net = needy()
    mine = ours(method=method, prediction_type="v_prediction", **config)
    sol = ddim_ode.sample(load(net, mine), start(), method, steps=5)
    assert sol.alterations == named
    assert off(loop(mine, 5, net), sol.x) < 1e-6


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("config", "named"), LIMITS[::3])
def test_a_step_of_ddpm_is_theirs(config, named, prediction):
    """Mean and noise: of the same generator both draw the same."""
    scheduler = theirs("DDPM", prediction_type=prediction, timestep_spacing="trailing", **config)
    mine = type(ours()).from_config(scheduler.config, method="ddpm")
    for made in (scheduler, mine):
        made.set_timesteps(timesteps=[900, 600, 300])
    for i, t in enumerate((900, 600)):
        x, answer = 2 * start(seed=t), 3 * start(seed=t + 1)
        one, other = (
            made.step(answer, made.timesteps[i], x, generator=torch.Generator().manual_seed(4))
            for made in (scheduler, mine)
        )
        torch.testing.assert_close(other.prev_sample, one.prev_sample, rtol=1e-4, atol=1e-4)


def test_which_classes_limit_x0_is_what_they_take():
    diffusers = peer("diffusers")
    for name in DISCRETE:
        cls = type(ours()) if name == "DDIMODEScheduler" else getattr(diffusers, name, None)
        if cls is None:  # needs another package
            continue
        takes = inspect.signature(cls.__init__).parameters
        for switch, classes in LIMITING.items():
            if "CogVideoX" in name and switch in takes:  # which has it, and does not use it
                on, off = (step_by(cls(**{switch: on})) for on in (True, False))
                assert torch.equal(on, off)
                continue
            assert (switch in takes) == (name in classes), (name, switch)


def step_by(scheduler):
    scheduler.set_timesteps(4)
    x, answer = torch.full((1, 2, 1, 4, 4), 3.0), torch.full((1, 2, 1, 4, 4), -2.0)
    timestep = scheduler.timesteps[1]
    if "old_pred_original_sample" not in inspect.signature(scheduler.step).parameters:
        return scheduler.step(answer, timestep, x, return_dict=False)[0]
    generator = torch.Generator().manual_seed(0)
    back = scheduler.timesteps[0]
    return scheduler.step(answer, None, timestep, back, x, generator=generator, return_dict=False)[
        0
    ]


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "LCM", "TCD", "HeunDiscrete", "UniPCMultistep"])
def test_a_file_that_is_silent_has_the_defaults_of_its_class(name, tmp_path):
    clips = name in ("DDIM", "DDPM")
    config = dict(_class_name=f"{name}Scheduler")
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with quiet():
        model = load(unet(), tmp_path / "scheduler_config.json")
        mine = type(ours()).from_pretrained(tmp_path)
    assert model.alterations == mine.limit.to_dict() == ({"clip": 1.0} if clips else {})


def test_what_a_class_only_carries_along_is_left_out_by_name():
    """As a DPM-Solver made of a DDPM configuration does: it does not clip."""
    config = dict(_class_name="DPMSolverMultistepScheduler", **CLIP)
    peer("diffusers")
    said = "clip_sample=True: left out, DPMSolverMultistepScheduler has no such setting"
    with pytest.warns(InteropWarning, match=said):
        model = load(unet(), config)
    assert model.alterations == {}
    with pytest.warns(InteropWarning, match=said):
        mine = type(ours()).from_config(config)
    assert not mine.limit
    with warnings.catch_warnings():
        warnings.simplefilter("error", InteropWarning)
        told = type(ours()).from_config(config, clip_sample=True)
    assert told.limit.to_dict() == {"clip": 1.0}


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({}, {"threshold": [0.995, 1.0]}),  # before clipping, as in their step
        (dict(threshold=None), {"clip": 1.0}),
        (dict(clip=None), {"threshold": [0.995, 1.0]}),
        (dict(clip=None, threshold=None), {}),
        (dict(clip=0.8), {"clip": 0.8}),
        (dict(clip=0.8, threshold=None), {"clip": 0.8}),
        (dict(threshold=0.9), {"threshold": 0.9}),
        (dict(threshold=(0.9, 2.0)), {"threshold": [0.9, 2.0]}),
    ],
)
def test_what_is_told_takes_the_place_of_what_is_configured(told, named):
    model = load(unet(), theirs(clip_sample=True, thresholding=True), **told)
    assert model.alterations == named
    (note,) = (note for note in model.notes if note.key == "thresholding")
    assert note.outcome == (
        "honoured" if "threshold" in named and told in ({}, dict(clip=None)) else "replaced"
    )
    assert ", at most 1, and ε̂ follows x̂₀" in note.text or "clip= and threshold= say: " in note.text


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (CLIP | dict(clip_sample_range=-1.0), "clip_sample_range=-1 must be above 0"),
        (dict(thresholding=True, dynamic_thresholding_ratio=1.5), "_thresholding_ratio=1.5 must"),
        (dict(thresholding=True, sample_max_value=0), "sample_max_value=0 must be above 0"),
    ],
)
def test_a_configuration_of_no_limit_is_refused_by_its_key(config, match):
    for make in (lambda: load(unet(), theirs(**config)), lambda: ours(**config)):
        expect(make, match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(clip=1.0, threshold=0.9), "both clip and threshold are given"),
        (dict(clip=0.0), r"clip=0\.0 must be a number in"),
        (dict(clip="yes"), "clip 'yes'; valid, nearest first: configured"),
        (dict(threshold="on"), "threshold 'on'"),
        (dict(threshold=2.0), r"threshold=2\.0 must be a number in"),
    ],
)
def test_what_is_no_limit_is_refused(options, match):
    expect(lambda: load(unet(), theirs(), **options), match)


@pytest.mark.parametrize(
    ("config", "asked"), [(CLIP, False), (CLIP, True), ({}, None), ({}, True), ({}, False)]
)
def test_the_old_eps_beside_the_new_x0_is_refused(config, asked):
    scheduler = ours(method="ddim", **config)
    scheduler.set_timesteps(3)
    step = lambda: scheduler.step(  # noqa: E731
        start(), scheduler.timesteps[0], start(), use_clipped_model_output=asked
    )
    if config and asked is False:
        expect(step, r"use_clipped_model_output=False: x̂₀ is limited \(clip 1\)")
    else:  # where nothing is clipped both are one
        step()


def test_a_plan_of_another_limit_is_warned_of_in_a_pipeline():
    plan = calibrated()
    clipped = dataclasses.replace(plan, fit={**plan.fit, "alterations": {"clip": 1.0}})
    options = dict(schedule=EXPONENTIAL)
    for one, config, said in (
        (plan, CLIP, "for no limit on x̂₀, and runs with clip 1, for which"),
        (clipped, {}, "for clip 1, and runs with no limit on x̂₀, for which"),
        (clipped, CLIP | dict(clip_sample_range=0.5), "for clip 1, and runs with clip 0.5"),
    ):
        with pytest.warns(UserWarning, match=said):
            type(ours()).from_plans(one, ours(**options, **config).config)
    for one, config in ((plan, {}), (clipped, CLIP)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = type(ours()).from_plans(one, ours(**options, **config).config)
        assert made.limit.to_dict() == ({"clip": 1.0} if config else {})


def test_a_saved_scheduler_keeps_its_limit(tmp_path):
    save(tmp_path, unet(), ours(method="heun", **OWN))
    assert load(tmp_path).alterations == {"threshold": [0.9, 1.5]}
    back = peer("diffusers").DDIMScheduler.from_config(load(tmp_path).scheduler.config)
    assert {key: back.config[key] for key in OWN} == OWN


def test_half_precision_is_limited_in_the_wide_state():
    """bfloat16 keeps two digits: of x̂₀ as it would form it, not one is left at the first level."""
    scheduler = ours(method="ddim", **CLIP)
    scheduler.set_timesteps(4)
    x, answer = start().bfloat16(), (0.99 * start()).bfloat16()
    made = scheduler.step(answer, scheduler.timesteps[0], x).prev_sample
    wide = ours(method="ddim", **CLIP)
    wide.set_timesteps(4)
    expected = wide.step(answer.double(), wide.timesteps[0], x.double()).prev_sample
    torch.testing.assert_close(made.double(), expected, rtol=2**-7, atol=2**-7)
