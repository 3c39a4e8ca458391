"""What is wrong with a directory, a call or a network ends in an error that says so, before any sample."""

import json
import shutil

import pytest
import torch
from peers import load as peer
from tiny_pipelines import dit, save, start, text_unet, unet

import ddim_ode
from ddim_ode import Guidance
from ddim_ode.interop.diffusers import load

PART = dict(net="unet/config.json", scheduler="scheduler/scheduler_config.json")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save(tmp_path_factory.mktemp("good"), unet(), scheduler())


def scheduler(**options):
    return peer("diffusers").DDIMScheduler(clip_sample=False, prediction_type="sample", **options)


@pytest.mark.parametrize(
    ("part", "change", "match"),
    [
        # diffusers itself fills in random numbers for weights that a file lacks
        ("net", dict(layers_per_block=2), "do not fit its config.json: .* missing keys"),
        ("net", dict(num_class_embeds=3), "do not fit its config.json: 1 missing keys"),
        ("net", dict(sample_size=0), "sample_size .*=0"),
        ("net", dict(sample_size=[8, -8]), "sample_size .*=-8"),
        ("net", dict(sample_size=8.5), "sample_size .*=8.5"),
        ("net", dict(sample_size=[8, 8, 8]), "give 2 sizes, or one"),
        ("scheduler", dict(_class_name=None), "unknown scheduler None; valid"),
        ("scheduler", dict(num_train_timesteps="many"), "DDIMScheduler cannot be made"),
        ("scheduler", dict(num_train_timesteps=10.5), "DDIMScheduler cannot be made"),
        ("scheduler", dict(beta_start=None), "DDIMScheduler cannot be made"),
        ("scheduler", dict(beta_schedule="foo"), "DDIMScheduler cannot be made"),
        ("scheduler", dict(trained_betas=5), "trained_betas|cannot be made"),
    ],
)
def test_configurations_gone_wrong(good, tmp_path, part, change, match):
    folder = shutil.copytree(good, tmp_path / "copy")
    file = folder / PART[part]
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=match):
        load(folder)


def test_of_the_hub_only_configurations_and_safetensors_are_fetched(good, monkeypatch):
    hub, asked = peer("huggingface_hub"), []

    def snapshot(name, *, revision, allow_patterns):
        asked.append((name, revision))
        assert all(pattern.endswith((".json", ".safetensors")) for pattern in allow_patterns)
        return str(good)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    here, fetched = load(good), load("someone/a-model", revision="abc")
    assert asked == [("someone/a-model", "abc")]
    x = start()
    torch.testing.assert_close(fetched(x, 1.0)[0], here(x, 1.0)[0])

    def offline(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"someone/a-model: no such directory.*no network"):
        load("someone/a-model")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(dtype="fp16"), "dtype='fp16'"),
        (dict(dtype=torch.int8), "dtype=torch.int8"),
        (dict(device="warp"), "device='warp' cannot be used"),
    ],
)
def test_options_gone_wrong(good, options, match):
    with pytest.raises(ValueError, match=match):
        load(good, **options)


def test_a_network_without_a_configuration():
    with pytest.raises(ValueError, match=r"Linear has no config.*ddim_ode\.Denoiser"):
        load(torch.nn.Linear(2, 2), scheduler())


@pytest.mark.parametrize("steps", [0, 1.5, None])
def test_grid_takes_a_number_of_steps(good, steps):
    with pytest.raises(ValueError, match="steps="):
        load(good).grid(steps)


@pytest.mark.parametrize(
    ("cond", "match"),
    [
        (None, "needs class_labels"),
        ([1], r"cond=\[1\] must be"),
        (dict(y=torch.tensor([0, 1, 4])), "0 to 4: the network knows 0 to 3"),
        (dict(y=torch.tensor([0.0, 1.0, 2.0])), "whole numbers .*got torch.float32"),
        (dict(y=torch.tensor([True, False, True])), "whole numbers .*got torch.bool"),
        (dict(y=torch.tensor([[0], [1], [2]])), r"whole numbers \(B,\).* \(3, 1\)"),
        (dict(y=torch.arange(3), class_labels=torch.arange(3)), "one thing; drop 'y'"),
        (dict(y=torch.tensor([0, 1, 2]), word=torch.zeros(3)), "unknown condition 'word'; valid"),
    ],
)
def test_conditions_gone_wrong(cond, match):
    model = load(unet(num_class_embeds=4), scheduler())
    with pytest.raises(ValueError, match=match):
        ddim_ode.sample(model, start(), steps=2, cond=cond)


@pytest.mark.parametrize(
    ("make", "cond", "match"),
    [
        (unet, dict(y=torch.zeros(3, dtype=torch.long)), "'class_labels': there is none here"),
        (text_unet, dict(y=torch.zeros(3, dtype=torch.long)), "unknown condition 'class_labels'"),
        (text_unet, dict(time_ids=torch.zeros(3, 6)), "unknown condition 'time_ids'; valid"),
        (
            text_unet,
            dict(added_cond_kwargs=torch.zeros(3)),
            "unknown condition 'added_cond_kwargs'",
        ),
        (text_unet, dict(timestep_cond=torch.zeros(3, 6)), "unknown condition 'timestep_cond'"),
        (text_unet, dict(x=torch.zeros(3, 6)), "unknown condition 'x'; valid"),
    ],
)
def test_conditions_that_would_change_nothing_are_refused(make, cond, match):
    model = load(make(), scheduler())
    if make is text_unet:
        cond = dict(cond, encoder_hidden_states=torch.zeros(3, 3, 8))
    with pytest.raises(ValueError, match=match):
        ddim_ode.sample(model, start(channels=model.channels), steps=2, cond=cond)


def test_what_an_adapter_adds_is_taken():
    """``load_ip_adapter`` sets an attribute of the configuration, and the forward reads that."""
    net = text_unet()
    words = dict(encoder_hidden_states=torch.zeros(3, 3, 8))
    with pytest.raises(ValueError, match="unknown condition 'image_embeds'"):
        load(net, scheduler()).network(
            start(channels=2), dict(words, image_embeds=torch.zeros(3, 1, 8))
        )
    net.config.encoder_hid_dim_type = "ip_image_proj"
    load(net, scheduler()).network(
        start(channels=2), dict(words, image_embeds=torch.zeros(3, 1, 8))
    )


def test_labels_are_checked_wherever_they_come_from():
    model = load(unet(num_class_embeds=4), scheduler())
    shared = dict(y=torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match="0 to 4: the network knows 0 to 3"):
        ddim_ode.sample(model, start(), steps=2, shared=shared)
    labels = torch.tensor([0, 1, 3])
    ends = [
        ddim_ode.sample(model, start(), steps=2, **{k: dict(y=labels)}).x
        for k in ("cond", "shared")
    ]
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match=r"class labels must be a tensor .* got 3"):
        ddim_ode.sample(model, start(), steps=2, shared=dict(y=3))
    for null in (9, 0.5, torch.tensor(4)):
        with pytest.raises(ValueError, match="class labels"):
            load(unet(num_class_embeds=4), scheduler(), guidance=Guidance(2.0, {"y": null}))


def test_classes_of_a_dit_in_memory_are_known_as_those_of_a_saved_one(tmp_path):
    theirs = peer("diffusers").DDIMScheduler(clip_sample=False)
    theirs.save_pretrained(tmp_path / "scheduler")
    dit().save_pretrained(tmp_path / "transformer")
    here, saved = load(dit(), theirs), load(tmp_path)
    assert here.num_classes == saved.num_classes == here.null_label == 1000
    compiled = load(torch.compile(dit()), theirs)
    assert compiled.num_classes == compiled.null_label == 1000


def test_channels_gone_wrong(good):
    with pytest.raises(ValueError, match=r"x has 3 channels .* takes 1"):
        ddim_ode.sample(load(good), start(channels=3), steps=2)


def test_a_guidance_keeps_its_interval_and_rescale():
    guidance = Guidance(3.0, {"y": 0}, interval=(0.3, 5.0), rescale=0.7)
    model = load(unet(num_class_embeds=4), scheduler(), guidance=guidance)
    assert model.alterations == guidance.to_dict()
    cond = dict(y=torch.tensor([1, 2, 3]))
    plain = ddim_ode.Denoiser(model.net, model.schedule, "x0", -1.0)
    plain.guidance = Guidance(3.0, {"class_labels": 0}, interval=(0.3, 5.0), rescale=0.7)
    expected = ddim_ode.sample(plain, start(), steps=6, cond=dict(class_labels=cond["y"])).x
    assert torch.equal(ddim_ode.sample(model, start(), steps=6, cond=cond).x, expected)


def test_a_model_in_memory_is_not_converted_behind_its_owner():
    net = unet()
    half = load(net, scheduler(), dtype=torch.bfloat16)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in net.parameters())
    assert {p.dtype for p in half.net.parameters()} == {torch.bfloat16}
    # One that is in half precision already is asked in it.
    again = load(half.net.model, scheduler())
    x = ddim_ode.sample(again, start(), steps=2).x
    assert x.dtype == torch.float32
    assert torch.equal(x, ddim_ode.sample(half, start(), steps=2).x)


@pytest.mark.parametrize("value", [0.0, 1.0, torch.nan])
def test_the_doctor_wants_data_that_differ(good, value):
    with pytest.raises(ValueError, match="constant"):
        ddim_ode.diagnose(load(good), data=torch.full((4, 1, 8, 8), value))


def test_the_doctor_says_when_a_model_makes_nothing(good):
    model = load(good)
    model.net.model.conv_out.register_forward_hook(lambda module, given, out: out * 0)
    report = ddim_ode.diagnose(model)
    assert "what the model makes is constant; give data" in report.not_checked.values()
    assert {"prediction", "stride"} <= report.not_checked.keys()


def test_a_configuration_nested_without_end_is_named(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "copy")
    (folder / PART["scheduler"]).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(ValueError, match=r"scheduler_config\.json: truncated, or not JSON"):
        load(folder)
