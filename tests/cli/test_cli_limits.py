"""--clip and --threshold of the commands: what is configured by default, what is told instead, and none."""

import json

import numpy as np
import pytest
import torch
from commands import arrays, run, tree
from peers import load as peer
from tiny_pipelines import SIDE, save, unet

import ddim_ode
from ddim_ode.generation.shards import Shards
from ddim_ode.interop.diffusers import load

BOUND = 0.05


def clipping(**options):
    config = dict(clip_sample=True, clip_sample_range=BOUND, prediction_type="sample")
    return peer("diffusers").DDIMScheduler(**config | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Whose scheduler clips to half of what its network makes."""
    return save(tmp_path_factory.mktemp("clipping"), unet(), clipping())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE), dtype=np.uint8)
    np.savez(path, images=pixels)
    return path


SAMPLE = ["--methods", "ddim", "--steps", "2", "--seeds", "0-4", "--npz"]
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
    assert run("sample", "--model", folder, *told, *SAMPLE, "--out", tmp_path / "a") == 0
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
    assert run("sample", "--model", model, *SAMPLE, *out) == 0
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
