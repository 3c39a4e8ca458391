"""``ddim-ode encode``, ``interpolate`` and ``edit``, in this process on the shipped model, few steps."""

import numpy as np
import pytest
import torch
from commands import run, shades, stop_at, tree
from PIL import Image

import ddim_ode
from ddim_ode.nets import weights
from ddim_ode.nets.data import to_unit
from ddim_ode.plots import pictures
from ddim_ode.solve import sampling

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = [3, 7, 1, 9, 0, 2]
FAST = ["--method", "ddim", "--steps", "2"]


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "set.npz", images=PIXELS, labels=np.array(LABELS))
    return ["--data", tmp_path / "set.npz", "--indices", "0-2"]


def manifest_of(tmp_path, command, *arguments):
    """The manifest of a run that must succeed, and draw something."""
    assert run(command, *FAST, *arguments, "--out", tmp_path / "out") == 0
    assert shades(tmp_path / f"out/{command}.png") > 50
    return tree(tmp_path / f"out/{command}.json")


def whats(manifest):
    return [row["what"] for row in manifest["runs"]]


def test_encode_writes_latents_that_decode_to_what_it_says(tmp_path, data, capsys):
    manifest = manifest_of(tmp_path, "encode", *data)
    there, back = manifest["runs"]
    assert (there["what"], back["what"]) == ("encode", "decode")
    tensors, config = weights.read(tmp_path / "out/latents.safetensors")
    assert config["kind"] == "latents"
    assert tensors["labels"].tolist() == LABELS[:3]
    model = ddim_ode.load("fashion-mnist")
    x0, cond = to_unit(torch.from_numpy(PIXELS[:3, None])), {"y": torch.tensor(LABELS[:3])}
    latents = ddim_ode.encode(model, x0, "ddim", steps=2, cond=cond).x
    torch.testing.assert_close(tensors["latents"], latents)
    again = ddim_ode.decode(model, latents, "ddim", steps=2, cond=cond).x
    errors = (again - x0).flatten(1).square().mean(1).sqrt()
    np.testing.assert_allclose(back["rms"], errors, rtol=1e-3)
    assert f"{float(errors.max()):.1e}" in capsys.readouterr().out


def test_interpolate_goes_both_ways_between_seeds(tmp_path):
    arguments = ["--seeds", "0-3", "--points", "3", "--classes", "bag,3"]
    manifest = manifest_of(tmp_path, "interpolate", *arguments)
    ways = ("great circle", "straight line")
    assert whats(manifest) == [f"{pair}, {way}" for pair in ("0 to 1", "2 to 3") for way in ways]
    assert [r["net_evals"] for r in manifest["runs"]] == [3 * 2] * 4
    assert manifest["command"][:2] == ["ddim-ode", "interpolate"]


def test_interpolate_encodes_pictures_first(tmp_path, data):
    manifest = manifest_of(tmp_path, "interpolate", *data[:2], "--indices", "0,3", "--points", "2")
    assert whats(manifest) == ["encode", "0 to 3, great circle", "0 to 3, straight line"]


def test_edit_to_classes_encodes_without_guidance_and_decodes_with_it(tmp_path, data):
    manifest = manifest_of(tmp_path, "edit", *data, "--to", "coat,bag", "--guidance", "2.5")
    assert whats(manifest) == ["encode", "decode, to coat", "decode, to bag"]
    altered = [r["alterations"] for r in manifest["runs"]]
    assert altered == [{}, {"guidance": 2.5}, {"guidance": 2.5}]


def test_edit_from_some_strength_starts_at_its_level(tmp_path, data):
    manifest = manifest_of(tmp_path, "edit", *data, "--strength", "0.2", "0.65", "--clip", "1")
    for row, strength in zip(manifest["runs"], (0.2, 0.65)):
        assert row["sigmas"][0] == pytest.approx(strength / (1 - strength))
        assert row["alterations"] == {"clip": 1.0}  # and no guidance, which nobody gave


@pytest.mark.parametrize("mask", ["left", "bottom", "file"])
def test_edit_inside_a_mask_keeps_the_rest(tmp_path, data, mask, monkeypatch):
    drawn = []
    grid = pictures.sample_grid
    monkeypatch.setattr(pictures, "sample_grid", lambda s, c: drawn.extend(s) or grid(s, c))
    new = np.zeros((28, 28), dtype=bool)
    where = dict(left=np.s_[:, :14], bottom=np.s_[14:], file=np.s_[3:9, 5:20])
    new[where[mask]] = True
    if mask == "file":
        mask = str(tmp_path / "mask.png")
        Image.fromarray((255 * new).astype(np.uint8)).save(mask)
    manifest = manifest_of(tmp_path, "edit", *data, "--mask", mask, "--variants", "2")
    assert [r["alterations"]["known"] for r in manifest["runs"]] == [True, True]
    given, _, *made = [x for _, x in drawn]
    new = torch.from_numpy(new)
    for x in made:
        assert torch.equal(x[..., ~new], given[..., ~new])
        assert not torch.equal(x[..., new], given[..., new])
    assert not torch.equal(made[0], made[1])


def test_interrupting_keeps_what_is_finished(tmp_path, data, monkeypatch, capsys):
    stop_at(monkeypatch, sampling, "sample", 2)
    call = ["edit", *FAST, *data, "--strength", "0.2", "0.8", "--out", tmp_path]
    assert run(*call) == 130
    assert "1 solves are kept in" in capsys.readouterr().err
    assert [row["strength"] for row in tree(tmp_path / "edit.json")["runs"]] == [0.2]
