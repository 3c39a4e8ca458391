"""CogVideoX's ``snr_shift_scale``, read by load, from_pipeline and our scheduler, against its own DDIM."""

import numpy as np
import pytest
from flow_recipes import end_of, recipe
from peers import load as peer
from refusals import expect
from tiny_pipelines import TINY, off, run_pipeline, unet

import ddim_ode

pytest.importorskip("diffusers")

from ddim_ode.interop.diffusers import DDIMODEScheduler, from_pipeline, load

COG = "CogVideoXPipeline"


@pytest.mark.parametrize(
    "config",
    [
        dict(snr_shift_scale=3.0),
        dict(snr_shift_scale=1.0),
        dict(snr_shift_scale=2.0, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
        dict(beta_schedule="squaredcos_cap_v2"),
    ],
)
@pytest.mark.parametrize("name", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
def test_the_levels_are_theirs(name, config, tmp_path):
    theirs = getattr(peer("diffusers"), name)(clip_sample=False, **config)
    theirs.save_pretrained(tmp_path)
    squares = theirs.alphas_cumprod.double().numpy()
    for ours in (
        DDIMODEScheduler.from_config(theirs.config),
        DDIMODEScheduler.from_pretrained(tmp_path),
        load(unet(), theirs),
    ):
        schedule = getattr(ours, "_denoiser", ours).schedule
        np.testing.assert_allclose(
            schedule.alpha_bar(np.arange(1.0, 1001)) ** 2, squares, rtol=2e-5, atol=1e-9
        )


def test_the_pipelines_own_run():
    pipe, call = TINY[COG]()
    theirs = pipe.scheduler
    visited, told, _ = recipe(pipe, call | dict(guidance_scale=1.0), steps=4)
    model = load(pipe)
    assert off(end_of(model, visited, told, model.grid(4)), visited.end) < 1e-5
    own = run_pipeline(pipe, call, 4).end
    with from_pipeline(pipe, **call, num_inference_steps=4) as asked:
        plan = ddim_ode.plan_for(asked, "unipc2", nfe=3)
        assert asked.schedule.fingerprint == model.schedule.fingerprint
    pipe.scheduler = DDIMODEScheduler.from_config(theirs.config, method="ddim")
    assert off(run_pipeline(pipe, call, 4).end, own) < 1e-5
    pipe.scheduler = DDIMODEScheduler.from_plans(plan, theirs.config)
    assert len(run_pipeline(pipe, call, 3)) == 3


def test_a_class_that_does_not_shift_is_refused_the_key():
    d = peer("diffusers")
    carried = d.DDIMScheduler.from_config(d.CogVideoXDDIMScheduler(snr_shift_scale=2.0).config)
    assert carried.config.snr_shift_scale == 2.0
    for read in (
        lambda: DDIMODEScheduler.from_config(carried.config),
        lambda: load(unet(), carried),
    ):
        expect(read, "snr_shift_scale=2 .*DDIMScheduler .*does not shift.*snr_shift_scale=1")
    assert (
        DDIMODEScheduler.from_config(carried.config, snr_shift_scale=1.0).config.snr_shift_scale
        == 1
    )
    expect(lambda: DDIMODEScheduler(snr_shift_scale=-2.0), "snr_shift_scale=-2 must be above 0")
