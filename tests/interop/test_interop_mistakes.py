"""What is wrong with a directory, a call or a network ends in an error that says so, before any sample."""

import json
import shutil

import pytest
import torch
from peers import load as peer
from refusals import expect, sample
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
    expect(lambda: load(folder), match)


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


def diagnosed(value):
    data = torch.full((4, 1, 8, 8), value)
    return lambda good: ddim_ode.diagnose(load(good), data=data)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda good: load(good, dtype="fp16"), "dtype='fp16'"),
        (lambda good: load(good, dtype=torch.int8), "dtype=torch.int8"),
        (lambda good: load(good, device="warp"), "device='warp' cannot be used"),
        (lambda good: load(torch.nn.Linear(2, 2), scheduler()), r"no config.*ddim_ode\.Denoiser"),
        (lambda good: load(good).grid(0), "steps="),
        (lambda good: load(good).grid(1.5), "steps="),
        (lambda good: ddim_ode.sample(load(good), start(3, 3), steps=2), "3 channels .* takes 1"),
        *((diagnosed(value), "const") for value in (0.0, 1.0, torch.nan)),
    ],
)
def test_calls_gone_wrong(good, call, match):
    expect(lambda: call(good), match)


ZEROS = torch.zeros(3, 6)
WHOLE = torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("make", "cond", "match"),
    [
        ("labels", None, "needs class_labels"),
        ("labels", [1], r"cond=\[1\] must be"),
        ("labels", dict(y=torch.tensor([0, 1, 4])), "0 to 4: the network knows 0 to 3"),
        ("labels", dict(y=torch.tensor([0.0, 1.0, 2.0])), "whole numbers .*got torch.float32"),
        ("labels", dict(y=torch.tensor([True, False, True])), "whole numbers .*got torch.bool"),
        ("labels", dict(y=torch.tensor([[0], [1], [2]])), r"whole numbers \(B,\).* \(3, 1\)"),
        ("labels", dict(y=WHOLE, class_labels=WHOLE), "one thing; drop 'y'"),
        ("labels", dict(y=WHOLE, word=torch.zeros(3)), "unknown condition 'word'; valid"),
        # those that would change nothing
        ("plain", dict(y=WHOLE), "'class_labels': there is none here"),
        ("text", dict(y=WHOLE), "unknown condition 'class_labels'"),
        ("text", dict(time_ids=ZEROS), "unknown condition 'time_ids'; valid"),
        ("text", dict(added_cond_kwargs=ZEROS), "unknown condition 'added_cond_kwargs'"),
        ("text", dict(timestep_cond=ZEROS), "unknown condition 'timestep_cond'"),
        ("text", dict(x=ZEROS), "unknown condition 'x'; valid"),
    ],
)
def test_conditions_gone_wrong(make, cond, match):
    nets = dict(labels=lambda: unet(num_class_embeds=4), plain=unet, text=text_unet)
    model = load(nets[make](), scheduler())
    if make == "text":
        cond = dict(cond, encoder_hidden_states=torch.zeros(3, 3, 8))
    expect(sample(model, start(channels=model.channels), steps=2, cond=cond), match)


def test_what_an_adapter_adds_is_taken():
    """``load_ip_adapter`` sets an attribute of the configuration, and the forward reads that."""
    net = text_unet()
    cond = dict(encoder_hidden_states=torch.zeros(3, 3, 8), image_embeds=torch.zeros(3, 1, 8))
    ask = lambda: load(net, scheduler()).network(start(channels=2), cond)  # noqa: E731
    expect(ask, "unknown condition 'image_embeds'")
    net.config.encoder_hid_dim_type = "ip_image_proj"
    ask()


def test_labels_are_checked_wherever_they_come_from():
    model = load(unet(num_class_embeds=4), scheduler())
    for labels, message in (
        (torch.tensor([0, 1, 4]), "0 to 4: the network knows 0 to 3"),
        (3, r"class labels must be a tensor .* got 3"),
    ):
        expect(sample(model, start(), steps=2, shared=dict(y=labels)), message)
    labels = dict(y=torch.tensor([0, 1, 3]))
    ends = [ddim_ode.sample(model, start(), steps=2, **{k: labels}).x for k in ("cond", "shared")]
    assert torch.equal(*ends)
    for null in (9, 0.5, torch.tensor(4)):
        guidance = Guidance(2.0, {"y": null})
        net = unet(num_class_embeds=4)
        expect(lambda g=guidance, net=net: load(net, scheduler(), guidance=g), "class labels")


def test_classes_of_a_dit_in_memory_are_known_as_those_of_a_saved_one(tmp_path):
    theirs = peer("diffusers").DDIMScheduler(clip_sample=False)
    theirs.save_pretrained(tmp_path / "scheduler")
    dit().save_pretrained(tmp_path / "transformer")
    here, saved = load(dit(), theirs), load(tmp_path)
    assert here.num_classes == saved.num_classes == here.null_label == 1000
    compiled = load(torch.compile(dit()), theirs)
    assert compiled.num_classes == compiled.null_label == 1000


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


def test_the_doctor_says_when_a_model_makes_nothing(good):
    model = load(good)
    model.net.model.conv_out.register_forward_hook(lambda module, given, out: out * 0)
    report = ddim_ode.diagnose(model)
    assert "what the model makes is constant; give data" in report.not_checked.values()
    assert {"prediction", "stride"} <= report.not_checked.keys()


def test_a_configuration_nested_without_end_is_named(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "copy")
    (folder / PART["scheduler"]).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    expect(lambda: load(folder), r"scheduler_config\.json: truncated, or not JSON")
