"""The commands on directories of diffusers draw what the library makes of the same network and limits."""

import json

import numpy as np
import pytest
import torch
from commands import arrays, run, tree
from peers import load as peer
from tiny_pipelines import SIDE, dit, save, text_unet, unet

import ddim_ode
from ddim_ode.generation.shards import Shards
from ddim_ode.interop.diffusers import load
from ddim_ode.nets import weights
from ddim_ode.nets.data import to_unit


def scheduler(**options):
    config = dict(clip_sample=False, prediction_type="sample")
    return peer("diffusers").DDIMScheduler(**config | options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save(tmp_path_factory.mktemp("plain"), unet(), scheduler())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Class-conditional, with no null label that anybody could know."""
    return save(tmp_path_factory.mktemp("labelled"), unet(num_class_embeds=4), scheduler())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.array([3, 1, 0, 2]))
    return path


SAMPLE = ["--methods", "ddim,heun", "--steps", "2", "--seeds", "0-4", "--npz"]
DDIM = ["--methods", "ddim", *SAMPLE[2:]]


def test_sample_draws_what_the_library_makes(plain, tmp_path):
    assert run("sample", "--model", plain, *SAMPLE, "--out", tmp_path) == 0
    model = load(plain)
    x = ddim_ode.noise(model.shape, model.schedule, range(5))
    for method in ("ddim", "heun"):
        made = arrays(tmp_path / f"{method}.npz")["x"]
        np.testing.assert_allclose(made, ddim_ode.sample(model, x, method, steps=2).x, atol=1e-5)


def test_a_manifest_is_of_these_weights_and_no_others(plain, tmp_path, capsys):
    again = ["sample", "--manifest", tmp_path / "out/manifest.json", "--out", tmp_path / "again"]
    folder = save(tmp_path / "model", unet(), scheduler())
    assert run("sample", "--model", folder, *SAMPLE[:-1], "--out", tmp_path / "out") == 0
    assert run(*again) == 0
    net = unet()
    with torch.no_grad():
        next(net.parameters())[0] += 1e-3
    save(folder, net, scheduler())
    assert run(*again) == 2
    assert "was made with weights" in capsys.readouterr().err


def test_classes_without_a_null_label_are_sampled_unguided(labelled, tmp_path):
    """By default, and as a guidance of 1 would; generate and sample agree."""
    model, labels = load(labelled), torch.tensor([2, 0, 2, 0, 2])
    x = ddim_ode.noise(model.shape, model.schedule, range(5))
    end = ddim_ode.sample(model, x, "ddim", steps=2, cond=dict(y=labels)).x
    other = ddim_ode.sample(model, x, "ddim", steps=2, cond=dict(y=labels.flip(0) * 0 + 1)).x
    assert not torch.allclose(end, other, atol=1e-2)
    call = ["--model", labelled, "--classes", "2,0", "--steps", "2"]
    assert run("sample", *call, "--methods", "ddim", *SAMPLE[4:], "--out", tmp_path / "s") == 0
    np.testing.assert_allclose(arrays(tmp_path / "s/ddim.npz")["x"], end, atol=1e-5)
    assert run("generate", *call, "-n", "5", "--method", "ddim", "--out", tmp_path / "g") == 0
    made = torch.cat([shard.x for shard in Shards.open(tmp_path / "g")])
    torch.testing.assert_close(made, end, rtol=0, atol=1e-5)


def test_a_plan_is_fitted_without_the_guidance_that_nobody_gave(labelled, tmp_path):
    fast = ["--classes", "1", "--nfe", "1", "--n", "2", "--out", tmp_path]
    assert run("calibrate", "--model", labelled, *fast) == 0
    fit = ddim_ode.Plan.load(tmp_path / "nfe-1.json").fit
    assert (fit["guidance"], fit["alterations"]) == (None, {})


def test_encode_goes_up_and_down_under_the_pictures_classes(labelled, pictures, tmp_path):
    call = ["encode", "--model", labelled, "--data", pictures, "--indices", "0-2"]
    assert run(*call, "--method", "ddim", "--steps", "3", "--out", tmp_path) == 0
    tensors, config = weights.read(tmp_path / "latents.safetensors")
    model = load(labelled)
    assert config["sha256"] == model.sha256
    x0 = to_unit(torch.from_numpy(np.load(pictures)["images"][:3, None]))
    cond = dict(class_labels=torch.tensor([3, 1, 0]))
    expected = ddim_ode.encode(model, x0, "ddim", steps=3, cond=cond).x
    torch.testing.assert_close(tensors["latents"], expected)


def test_interpolate_and_edit_take_them(plain, labelled, pictures, tmp_path):
    fast = ["--method", "ddim", "--steps", "2", "--out", tmp_path]
    points = ["--seeds", "0-1", "--points", "3"]
    assert run("interpolate", "--model", plain, *points, *fast) == 0
    manifest = tree(tmp_path / "interpolate.json")
    assert manifest["model"]["sha256"] == load(plain).sha256
    assert [r["net_evals"] for r in manifest["runs"]] == [3 * 2] * 2
    data = ["--data", pictures, "--indices", "0-1"]
    assert run("edit", "--model", labelled, *data, "--to", "2", *fast) == 0
    runs = tree(tmp_path / "edit.json")["runs"]
    assert [r["what"] for r in runs] == ["encode", "decode, to 2"]
    assert all(r["alterations"] == {} for r in runs)


@pytest.fixture(scope="module")
def unfit(tmp_path_factory):
    """Folders whose networks need what no command line says, or make no pictures."""
    made = {}
    for make, part in ((text_unet, "unet"), (dit, "transformer")):
        folder = made[make.__name__] = tmp_path_factory.mktemp("unfit")
        make().save_pretrained(folder / part)
        scheduler().save_pretrained(folder / "scheduler")
    return made


@pytest.mark.parametrize(
    ("model", "line", "said"),
    [
        ("labelled", "sample --guidance 3", "guidance=1 is the network alone"),
        ("labelled", "generate -n 2 --guidance 3", "guidance=1 is the network alone"),
        ("labelled", "sample --classes 9", "unknown class '9'"),
        ("labelled", "interpolate", "--classes"),
        ("text_unet", "sample", "needs encoder_hidden_states, which"),
        ("text_unet", "generate -n 1", "needs encoder_hidden_states, which"),
        ("text_unet", "doctor", "needs encoder_hidden_states, which"),
        ("dit", "sample", "latents of 2 channels"),
    ],
)
def test_what_the_commands_cannot_take(labelled, unfit, model, line, said, tmp_path, capsys):
    command, *words = line.split()
    folder = labelled if model == "labelled" else unfit[model]
    out = tmp_path / "out"
    call = [folder] if command == "doctor" else ["--model", folder, *words, "--out", out]
    assert run(command, *call) == 2
    assert said in capsys.readouterr().err
    assert model == "labelled" or not out.exists()


# -- --clip and --threshold: what is configured by default, what is told instead, and none -------
BOUND = 0.05


def clipping(clip_sample=True):
    return scheduler(clip_sample=clip_sample, clip_sample_range=BOUND)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Whose scheduler clips to half of what its network makes."""
    return save(tmp_path_factory.mktemp("clipping"), unet(), clipping())


TOLD = [
    ([], {"clip": BOUND}),
    (["--clip", "none"], {}),
    (["--clip", "0.02"], {"clip": 0.02}),
    (["--threshold", "0.9"], {"threshold": 0.9}),
    (["--threshold", "0.9,1.5"], {"threshold": [0.9, 1.5]}),
    (["--threshold", "none"], {"clip": BOUND}),
]


@pytest.mark.parametrize(("told", "named"), TOLD)
def test_sample_limits_as_configured_or_told_and_again(folder, told, named, tmp_path):
    assert run("sample", "--model", folder, *told, *DDIM, "--out", tmp_path / "a") == 0
    model = load(folder, **dict(clip=None, threshold=None) | named)
    x = ddim_ode.noise(model.shape, model.schedule, range(5))
    expected = ddim_ode.sample(model, x, "ddim", steps=2)
    made = arrays(tmp_path / "a/ddim.npz")["x"]
    np.testing.assert_allclose(made, expected.x, atol=1e-6)
    manifest = tmp_path / "a/manifest.json"
    assert tree(manifest)["runs"][0]["alterations"] == named
    assert run("sample", "--manifest", manifest, "--npz", "--out", tmp_path / "b") == 0
    assert np.array_equal(arrays(tmp_path / "b/ddim.npz")["x"], made)


def test_a_manifest_is_not_of_another_configuration(tmp_path):
    """Of a limit that is gone from the folder, or has come to it (first manifests: numbers or nothing)."""
    model = save(tmp_path / "model", unet(), clipping())
    out = ["--out", tmp_path / "a"]
    assert run("sample", "--model", model, *DDIM, *out) == 0
    save(model, unet(), clipping(clip_sample=False))
    manifest = tmp_path / "a/manifest.json"
    said = tree(manifest)

    def again():
        assert run("sample", "--manifest", manifest, "--out", tmp_path / "b") == 0
        return tree(tmp_path / "b/manifest.json")["runs"][0]["alterations"]

    assert again() == {"clip": BOUND}
    save(model, unet(), clipping())
    for clip, named in ((None, {}), (0.03, {"clip": 0.03})):
        said["options"] |= dict(clip=clip, threshold=None)
        manifest.write_text(json.dumps(said))
        assert again() == named


@pytest.mark.parametrize(("told", "named"), TOLD[:2])
def test_generate_and_compare_run_on_the_limited_ode(folder, told, named, tmp_path, capsys):
    call = ["-n", "3", "--method", "ddim", "--steps", "2", "--out", tmp_path / "g"]
    assert run("generate", "--model", folder, *told, *call) == 0
    made = torch.cat([shard.x for shard in Shards.open(tmp_path / "g")])
    assert (float(made.abs().max()) <= BOUND * (1 + 1e-6)) == bool(named)
    call = ["--methods", "ddim", "--nfe", "2", "--n", "2", "--reference", "0.1"]
    assert run("compare", "--model", folder, *told, *call, "--out", tmp_path / "c") == 0
    shown = capsys.readouterr().out
    result = tree(tmp_path / "c/compare.json")
    (page,) = (tmp_path / "c").glob("*.html")
    for text in (shown, result["model"], page.read_text()):
        assert ("clip 0.05" in text) == bool(named)


def test_calibrate_keeps_the_limit_in_its_plan(tmp_path, capsys):
    call = ["--model", "mixture", "--nfe", "2", "--n", "4", "--clip", "0.5", "--out", tmp_path]
    assert run("calibrate", *call) == 0
    assert ddim_ode.Plan.load(tmp_path / "nfe-2.json").fit["alterations"] == {"clip": 0.5}


def test_pictures_are_made_limited_and_encoded_without(folder, pictures, tmp_path, capsys):
    fast = ["--model", folder, "--method", "ddim", "--steps", "2", "--out", tmp_path]
    data = ["--data", pictures, "--indices", "0-1"]

    def runs(command, *words):
        assert run(command, *fast, *words) == 0
        return [row["alterations"] for row in tree(tmp_path / f"{command}.json")["runs"]]

    assert runs("interpolate", "--seeds", "0-1", "--points", "2") == [{"clip": BOUND}] * 2
    assert runs("edit", *data, "--strength", "0.5") == [{"clip": BOUND}]
    assert runs("edit", *data, "--strength", "0.5", "--clip", "none") == [{}]
    assert run("encode", *fast, *data) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert (
        "(clip 0.05), which cannot be undone: entries at the limit are the same for many" in error
    )
    assert "--clip none" in error
    assert runs("encode", *data, "--clip", "none") == [{}, {}]


@pytest.mark.parametrize("model", ["mixture", "fashion-mnist"])
def test_models_without_a_configuration_are_limited_as_told(model, tmp_path):
    words = ["--model", model, "-n", "2", "--method", "ddim", "--steps", "1"]
    assert run("generate", *words, "--clip", "0.1", "--out", tmp_path / "a") == 0
    assert run("generate", *words, "--clip", "none", "--out", tmp_path / "b") == 0
    made = [next(iter(Shards.open(tmp_path / name))).x.abs().max() for name in ("a", "b")]
    assert float(made[0]) <= 0.1 * (1 + 1e-6) < float(made[1])
