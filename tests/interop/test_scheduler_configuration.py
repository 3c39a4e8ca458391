"""What a DDIMODEScheduler is made of: configurations of its own and of others, plans, settings."""

import json

import pytest
import torch
from peers import load as peer
from peers import quiet
from refusals import expect
from tiny_pipelines import EXPONENTIAL, calibrated, ours, save, unet, with_plans

import ddim_ode
from ddim_ode.interop.config import InteropWarning
from ddim_ode.interop.diffusers import load


def test_a_tampered_plan_is_refused(tmp_path):
    with_plans(calibrated()).save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    config = json.loads(file.read_text())
    scheduler = type(ours())
    for change, match in [
        (lambda plan: plan["ops"][1].update(scale="1"), r"ops\[1\].scale"),
        (lambda plan: plan.update(schedule="0" * 16), "schedule"),
        (lambda plan: plan.update(nfe=7), "nfe"),
    ]:
        bad = json.loads(json.dumps(config))
        change(bad["plans"][0])
        file.write_text(json.dumps(bad))
        with quiet(), pytest.raises(ValueError, match=match):
            scheduler.from_pretrained(tmp_path)


COSINE = dict(name="cosine", params=dict(T=1000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_train_timesteps=500, schedule=COSINE), "num_train_timesteps=500, and .* T=1000"),
        (dict(schedule={"name": "vp"}), "must be .*params"),
        (dict(schedule={"name": "vp", "params": {"beta": 1}}), "parameter of 'vp' 'beta'"),
        (dict(variance_type="foo"), "variance_type 'foo'"),
        (dict(use_flow_sigmas=True), "not with flow matching"),
        (dict(use_flow_sigmas=1), "use_flow_sigmas=1 must be True or False"),
        (dict(prediction_type="flow_prediction"), "does not go with use_flow_sigmas=False"),
        (dict(method="heun", plans=True, schedule=EXPONENTIAL), "both plans and method"),
        (dict(grid="shift:3"), "unknown grid 'shift:3'"),
        (dict(grid="shifted:a"), "shift='a' must be a number"),
        (dict(plans=[float("nan")]), "plans must be .*a mapping .*got nan; .*from_plans"),
        (dict(plans=["a"]), "plans must be .*got 'a'; .*from_plans"),
        (dict(profile=float("nan")), "profile must be .*got nan; .*from_config"),
    ],
)
def test_settings_of_the_wrong_kind_are_named(options, message):
    if options.get("plans") is True:
        options = dict(options, plans=with_plans(calibrated()).config["plans"])
    expect(lambda: ours(**options), message)


def test_a_schedulers_snap_is_its_denoisers_unless_told():
    assert load(unet(), ours(snap=True)).snap
    assert not load(unet(), ours(snap=True), snap=False).snap


@pytest.mark.parametrize("grid", ["shifted:3", "beta:0.5,0.7", "sgm_uniform", "karras", "trailing"])
def test_every_grid_that_sample_takes(grid):
    scheduler = ours(method="unipc2", grid=grid)
    scheduler.set_timesteps(5)
    model = load(unet(), scheduler)
    assert scheduler.plan == ddim_ode.plan_for(model, "unipc2", steps=5, grid=grid)


def test_defaults_of_another_class_come_along():
    """diffusers replaces what a scheduler has by default with the new class's own default."""
    heun = peer("diffusers").HeunDiscreteScheduler()
    scheduler = type(ours()).from_config(heun.config)
    assert scheduler.config.beta_start == heun.config.beta_start != ours().config.beta_start
    torch.testing.assert_close(
        scheduler.alphas_cumprod.float(), heun.alphas_cumprod, rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("FlowMatchEulerDiscreteScheduler", "not with flow matching"),
        ("CMStochasticIterativeScheduler", "unknown scheduler"),
    ],
)
def test_a_scheduler_of_another_kind_does_not_become_ours(name, match, tmp_path):
    theirs = getattr(peer("diffusers"), name)()
    with pytest.raises(ValueError, match=r"no beta_schedule|not with flow"):
        type(ours()).from_config(theirs.config)  # which in memory does not say its class
    theirs.save_pretrained(tmp_path)
    expect(lambda: type(ours()).from_pretrained(tmp_path), match)


def test_an_option_that_from_config_does_not_know_is_named():
    config = peer("diffusers").DDIMScheduler(clip_sample=False).config
    with pytest.raises(ValueError, match="unknown option 'mthod'; valid, nearest first: method,"):
        type(ours()).from_config(config, mthod="heun")
    with pytest.warns(InteropWarning, match="new_key=1: left out, this version does not know"):
        type(ours()).from_config({**config, "new_key": 1})
    flow = {**config, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    plain = type(ours()).from_config(flow, use_flow_sigmas=False, prediction_type="epsilon")
    assert not plain.config.use_flow_sigmas
    _, unused = type(ours()).from_config(config, return_unused_kwargs=True, mthod="heun")
    assert unused["mthod"] == "heun"


@pytest.mark.parametrize("name", ["LCMScheduler", "HeunDiscreteScheduler", "DDIMScheduler"])
def test_a_file_need_not_say_what_its_class_has_by_default(name, tmp_path):
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps(dict(_class_name=name, beta_schedule="scaled_linear")))
    made = type(ours()).from_pretrained(tmp_path)
    theirs = getattr(peer("diffusers"), name).from_pretrained(tmp_path)
    torch.testing.assert_close(
        made.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7
    )
    assert made.config.clip_sample == theirs.config.clip_sample == (name == "DDIMScheduler")


def test_what_contradicts_a_schedule_is_refused():
    cosine = ours(schedule=COSINE)
    again = lambda **o: type(cosine).from_config(cosine.config, **o)  # noqa: E731
    message = r"schedule= in place of betas .* drop beta_schedule="
    expect(lambda: again(beta_schedule="scaled_linear"), message)
    assert again(beta_schedule="scaled_linear", schedule=None).config.schedule is None


def test_a_plan_of_another_prediction_is_warned_of():
    exponential = ours(schedule=EXPONENTIAL, prediction_type="sample").config
    with pytest.warns(UserWarning, match="a network that predicts eps, and runs with one that"):
        type(ours()).from_plans(calibrated(), exponential)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda own: own.from_plans("plan.json", own.config), r"Plan\.load reads a file"),
        (lambda own: own.from_plans(calibrated(), own), r"DDIMODEScheduler; give its \.config"),
        (lambda own: own.from_plans(calibrated(), ours(beta_end=0.03).config), "schedule"),
        (lambda own: own.from_config(own), r"got DDIMODEScheduler; give its \.config"),
        (lambda own: own.from_config("a/b"), r"got str; give a scheduler's \.config"),
        (lambda own: load(unet(), own.config), "give the scheduler itself"),
        (lambda own: own.set_timesteps(4, device="nope"), "device='nope' cannot be used"),
        (lambda own: own.set_begin_index(10), "begin_index=10: .*10 calls, .* raise strength"),
    ],
)
def test_arguments_of_another_kind_are_told_apart(call, message):
    own = ours(method="ddim")
    own.set_timesteps(10)
    expect(lambda: call(own), message)


def test_a_saved_pipeline_loads_with_our_scheduler(tmp_path):
    scheduler = ours(method="heun", grid="karras", prediction_type="sample")
    save(tmp_path, unet(), scheduler)
    with quiet():
        pipe = peer("diffusers").DDPMPipeline.from_pretrained(tmp_path)
    kept = {key: v for key, v in scheduler.config.items() if not key.startswith("_")}
    assert kept == {key: pipe.scheduler.config[key] for key in kept}
    assert pipe.scheduler.timesteps.tolist() == list(range(999, -1, -1))  # before set_timesteps
