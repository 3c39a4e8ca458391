"""diffusers' models as denoisers, against diffusers' own samplers on the same networks."""

import warnings

import numpy as np
import pytest
import torch
from peers import load as peer
from peers import quiet
from refusals import expect
from tiny_pipelines import (
    BETAS,
    alive,
    ddim,
    dit,
    ends,
    images,
    off,
    save,
    start,
    text_unet,
    trained,
    unet,
)

import ddim_ode
from ddim_ode import Guidance
from ddim_ode.interop.config import InteropWarning, schedule_of
from ddim_ode.interop.diffusers import is_model_folder, load


def theirs(folder, steps):
    """Where their DDIM takes ``start()`` in their pipeline."""
    with quiet():
        pipe = peer("diffusers").DDPMPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    return ends(pipe, batch_size=3, generator=generator, num_inference_steps=steps)[-1]


# -- the schedule -----------------------------------------------------------------------------
ZERO_SNR = dict(rescale_betas_zero_snr=True)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *(("DDIM", dict(beta_schedule=name, **betas)) for name, betas in BETAS.items()),
        *(("DDIM", dict(beta_schedule=n, **b, **ZERO_SNR)) for n, b in BETAS.items()),
        ("DDPM", dict(beta_schedule="sigmoid")),
        ("DDIM", dict(trained_betas=np.geomspace(1e-4, 0.1, 50).tolist(), num_train_timesteps=50)),
        ("DPMSolverMultistep", dict(num_train_timesteps=400, beta_end=0.05)),
    ],
)
def test_the_schedule_is_theirs_in_float64(name, config):
    scheduler = getattr(peer("diffusers"), f"{name}Scheduler")(**config)
    schedule = schedule_of({**scheduler.config, "_class_name": f"{name}Scheduler"})
    squares = scheduler.alphas_cumprod.double().numpy()
    ours = schedule.alpha_bar(np.arange(1, len(squares) + 1)) ** 2
    np.testing.assert_allclose(ours, squares, rtol=2e-4, atol=3e-7)  # of their float32 products
    assert (ours[-1] == 0) == bool(config.get("rescale_betas_zero_snr"))


# -- the network ------------------------------------------------------------------------------
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddim_is_their_ddim(betas, prediction, tmp_path):
    expected = theirs(save(tmp_path, alive(unet()), ddim(betas, prediction)), 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InteropWarning)
        model = load(tmp_path)
    assert model.shape == (1, 8, 8)
    # They start at σ(T), whatever the network can tell there.
    how = dict(steps=10, grid="trailing", sigma_max=model.schedule.sigma_max)
    assert off(ddim_ode.sample(model, start(), "ddim", **how).x, expected) < 1e-4
    # One time step off is seen: the agreement is not of networks that do nothing.
    model.time_offset = 0.0
    assert off(ddim_ode.sample(model, start(), "ddim", **how).x, expected) > 1e-3


@pytest.mark.parametrize(
    ("betas", "kind"), [("squaredcos_cap_v2", "epsilon"), ("scaled_linear", "sample")]
)
def test_the_doctor_tells_what_a_network_predicts(betas, kind):
    """Of trained networks, from data; that of v is among the doctor's own tests."""
    model = load(*trained(betas, kind))
    true, data = model.prediction, images(8, torch.Generator().manual_seed(3))
    for declared in ("eps", "x0"):
        model.prediction = declared
        fixes = [f.fix for f in ddim_ode.diagnose(model, data=data) if f.check == "prediction"]
        told = [fix.startswith(f"prediction={true!r}") for fix in fixes]
        assert told == [True] * (declared != true)


def test_grid_gives_their_levels(tmp_path):
    net, config = alive(unet()), dict(timestep_spacing="leading", steps_offset=1)
    scheduler = peer("diffusers").DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **config)
    model = load(net, scheduler)
    ours = ddim_ode.sample(model, start(), "ddim", grid=model.grid(20)).x
    assert off(ours, theirs(save(tmp_path, net, scheduler), 20)) < 1e-4


def test_flow_matching_is_their_euler():
    diffusers = peer("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    net = unet()
    model = load(net, scheduler)
    scheduler.set_timesteps(6)
    x, t = start(), scheduler.sigmas.double().numpy()
    with np.errstate(divide="ignore"):
        sigmas = t / (1 - t)
    ours = ddim_ode.sample(model, x, "ddim", grid=sigmas).x
    with torch.no_grad():
        for time in scheduler.timesteps:
            x = scheduler.step(net(x, time).sample, time, x).prev_sample
    assert off(ours, x) < 1e-5


def test_conditions_and_guidance_reach_a_text_network(tmp_path):
    scheduler = peer("diffusers").DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    save(tmp_path / "unused", unet(), scheduler)
    text_unet().save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    words = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(5))
    empty = torch.full((3, 8), 0.3)
    model = load(tmp_path, guidance=Guidance(3.0, {"encoder_hidden_states": empty}))
    cond = {"encoder_hidden_states": words}
    ours = ddim_ode.sample(model, start(channels=2), steps=5, grid="trailing", cond=cond).x
    x, net = start(channels=2), text_unet().eval()
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            null = net(x, t, encoder_hidden_states=empty.expand(3, -1, -1)).sample
            told = net(x, t, encoder_hidden_states=words).sample
            x = scheduler.step(null + 3.0 * (told - null), t, x).prev_sample
    assert off(ours, x) < 1e-4


def test_labels_are_y_or_class_labels():
    scheduler = peer("diffusers").DDIMScheduler(clip_sample=False)
    model = load(unet(num_class_embeds=4), scheduler)
    labels = torch.tensor([0, 1, 3])
    named, short = (
        ddim_ode.sample(model, start(), steps=3, cond={name: labels}).x
        for name in ("class_labels", "y")
    )
    other = ddim_ode.sample(model, start(), steps=3, cond={"y": labels.flip(0)}).x
    assert torch.equal(named, short)
    assert not torch.equal(named[0], other[0])
    assert model.num_classes == 4
    expect(lambda: model.guide(2.0), "Guidance")


def test_a_learned_variance_is_split_off():
    net = dit()
    scheduler = peer("diffusers").DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    model = load(net, scheduler)
    assert model.learned_variance == "split"
    x, labels = start(channels=2), torch.tensor([4, 5, 6])
    ours = ddim_ode.sample(model, x, steps=5, grid="trailing", cond={"y": labels}).x
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = net(x, t.expand(3), class_labels=labels).sample[:, :2]
            x = scheduler.step(out, t, x).prev_sample
    assert off(ours, x) < 1e-4


# -- layouts, and what is refused --------------------------------------------------------------
def test_a_bare_model_beside_its_scheduler(tmp_path):
    scheduler = peer("diffusers").DDPMScheduler(clip_sample=False)
    unet().save_pretrained(tmp_path)
    assert is_model_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="scheduler"):
        load(tmp_path)
    scheduler.save_pretrained(tmp_path)
    a = load(tmp_path)
    b = load(unet(), scheduler)
    assert torch.equal(a(start(), 2.0)[0], b(start(), 2.0)[0])


@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("ScoreSdeVe", {}, "unknown scheduler"),
        ("EDMEuler", dict(sigma_data=0.0), "sigma_data=0 must be above 0"),
        ("EDMEuler", dict(prediction_type="sample"), "prediction_type 'sample'"),
        ("DDIM", dict(beta_schedule="exp"), "exp"),
        ("DDIM", dict(prediction_type="noise"), "noise"),
        ("DDIM", dict(trained_betas=[0.1, 0.2]), "must agree"),
        ("DDIM", dict(prediction_type="flow_prediction"), "with use_flow_sigmas=False"),
        ("DDPM", dict(variance_type="foo"), "variance_type 'foo'"),
        ("EulerDiscrete", dict(timestep_type="continuously"), "timestep_type 'continuously'"),
    ],
)
def test_configurations_that_cannot_be_honoured(name, config, match):
    peer("diffusers")
    with pytest.raises((ValueError, NotImplementedError), match=match):
        load(unet(), dict(_class_name=f"{name}Scheduler", **config))


def test_what_is_left_out_is_warned_of_and_settings_of_what_is_off_are_no_matter():
    peer("diffusers")
    config = dict(_class_name="EulerDiscreteScheduler", invert_sigmas=True)
    with pytest.warns(InteropWarning, match="invert_sigmas=True: left out, .* no levels that rise"):
        load(unet(), config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InteropWarning)
        model = load(unet(), dict(_class_name="DDIMScheduler", clip_sample=False))
    assert model.schedule.fingerprint == ddim_ode.schedules.ddpm().fingerprint  # plans fit
    assert "clip_sample=False: honoured, off" in model.report
    assert "clip_sample_range" not in model.report


def test_eps_at_zero_terminal_snr_is_refused_where_it_is_blind():
    scheduler = peer("diffusers").DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True)
    model = load(unet(), scheduler)
    expect(lambda: ddim_ode.sample(model, start(), steps=5), "rescale_betas_zero_snr")
    config = {**scheduler.config, "prediction_type": "v_prediction", "_class_name": "DDIMScheduler"}
    sol = ddim_ode.sample(load(unet(), config), start(), steps=5)
    assert sol.sigmas[0] == np.inf
    assert torch.isfinite(sol.x).all()


def test_fewer_input_than_output_channels_is_no_denoiser():
    scheduler = peer("diffusers").DDIMScheduler(clip_sample=False)
    expect(lambda: load(unet(in_channels=4, out_channels=9), scheduler), "4 channels into 9")


def test_a_condition_that_is_left_out_is_named():
    """Of a forward whose arguments have None for a default, and which counts on tensors."""
    sizes = dict.fromkeys(("sample_size", "joint_attention_dim", "caption_projection_dim"), 8)
    net = peer("diffusers").SD3Transformer2DModel(
        **sizes, patch_size=2, in_channels=2, out_channels=2, num_layers=1, attention_head_dim=4,
        num_attention_heads=2, pooled_projection_dim=8, pos_embed_max_size=8,
    )  # fmt: skip
    model = load(net, peer("diffusers").FlowMatchEulerDiscreteScheduler())
    cond = dict(encoder_hidden_states=torch.randn(2, 3, 8))
    x = torch.randn(2, *model.shape)
    for call in (
        lambda: ddim_ode.diagnose(model, n=2, cond=cond),
        lambda: ddim_ode.sample(model, x, steps=2, cond=cond),
    ):
        with pytest.raises(ValueError, match="pooled_projections"):
            call()
