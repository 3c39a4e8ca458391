"""``ddim-ode encode``, ``interpolate`` and ``edit``, in this process on the shipped model, few steps."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import ddim_ode
from ddim_ode.cli import main
from ddim_ode.nets import weights
from ddim_ode.nets.data import to_unit

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = [3, 7, 1, 9, 0, 2]
FAST = ["--method", "ddim", "--steps", "2"]


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "set.npz", images=PIXELS, labels=np.array(LABELS))
    return ["--data", str(tmp_path / "set.npz"), "--indices", "0-2"]


def run(tmp_path, command, *arguments):
    """The manifest of a run that must succeed, and whether its picture has shades."""
    assert main([command, *FAST, *arguments, "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / f"out/{command}.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 50
    return json.loads((tmp_path / f"out/{command}.json").read_text())


def test_encode_writes_latents_that_decode_to_what_it_says(tmp_path, data, capsys):
    manifest = run(tmp_path, "encode", *data)
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
    manifest = run(tmp_path, "interpolate", *arguments)
    assert [r["what"] for r in manifest["runs"]] == [
        f"{pair}, {way}"
        for pair in ("0 to 1", "2 to 3")
        for way in ("great circle", "straight line")
    ]
    assert [r["net_evals"] for r in manifest["runs"]] == [3 * 2] * 4
    assert manifest["command"][:2] == ["ddim-ode", "interpolate"]


def test_interpolate_encodes_pictures_first(tmp_path, data):
    manifest = run(tmp_path, "interpolate", *data[:2], "--indices", "0,3", "--points", "2")
    assert [r["what"] for r in manifest["runs"]] == [
        "encode",
        "0 to 3, great circle",
        "0 to 3, straight line",
    ]


def test_edit_to_classes_encodes_without_guidance_and_decodes_with_it(tmp_path, data):
    manifest = run(tmp_path, "edit", *data, "--to", "coat,bag", "--guidance", "2.5")
    assert [r["what"] for r in manifest["runs"]] == [
        "encode",
        "decode, to coat",
        "decode, to bag",
    ]
    altered = [r["alterations"] for r in manifest["runs"]]
    assert altered == [{}, {"guidance": 2.5}, {"guidance": 2.5}]


def test_edit_from_some_strength_starts_at_its_level(tmp_path, data):
    manifest = run(tmp_path, "edit", *data, "--strength", "0.2", "0.65", "--clip", "1")
    for row, strength in zip(manifest["runs"], (0.2, 0.65)):
        assert row["sigmas"][0] == pytest.approx(strength / (1 - strength))
        assert row["alterations"] == {"clip": 1.0}  # and no guidance, which nobody gave


@pytest.mark.parametrize("mask", ["left", "bottom", "file"])
def test_edit_inside_a_mask_keeps_the_rest(tmp_path, data, mask, monkeypatch):
    drawn = []
    pictures = __import__("ddim_ode.plots.pictures", fromlist=["sample_grid"])
    grid = pictures.sample_grid
    monkeypatch.setattr(pictures, "sample_grid", lambda s, c: drawn.extend(s) or grid(s, c))
    new = np.zeros((28, 28), dtype=bool)
    where = dict(left=np.s_[:, :14], bottom=np.s_[14:], file=np.s_[3:9, 5:20])
    new[where[mask]] = True
    if mask == "file":
        mask = str(tmp_path / "mask.png")
        Image.fromarray((255 * new).astype(np.uint8)).save(mask)
    manifest = run(tmp_path, "edit", *data, "--mask", mask, "--variants", "2")
    assert [r["alterations"]["known"] for r in manifest["runs"]] == [True, True]
    given, _, *made = [x for _, x in drawn]
    new = torch.from_numpy(new)
    for x in made:
        assert torch.equal(x[..., ~new], given[..., ~new])
        assert not torch.equal(x[..., new], given[..., new])
    assert not torch.equal(made[0], made[1])


def test_interrupting_keeps_what_is_finished(tmp_path, data, monkeypatch, capsys):
    sampling = __import__("ddim_ode.solve.sampling", fromlist=["sample"])
    sample = sampling.sample

    def interrupted(model, x, **options):
        if options["sigma_max"] > 2:
            raise KeyboardInterrupt
        return sample(model, x, **options)

    monkeypatch.setattr(sampling, "sample", interrupted)
    call = ["edit", *FAST, *data, "--strength", "0.2", "0.8", "--out", str(tmp_path / "out")]
    assert main(call) == 130
    assert "1 solves are kept in" in capsys.readouterr().err
    runs = json.loads((tmp_path / "out/edit.json").read_text())["runs"]
    assert [r["strength"] for r in runs] == [0.2]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("encode", [], "--data is missing"),
        ("encode", ["DATA", "--indices", "4-9"], "has 6 pictures, 0 to 5"),
        ("encode", ["DATA", "--indices", "x"], "--indices 'x': write 0-9"),
        ("encode", ["DATA", "--guidance-interval", "1", "2"], "does nothing without guidance"),
        (
            "encode",
            ["BARE", "--guidance", "2"],
            "guidance needs classes, and none are known: give --data",
        ),
        ("edit", ["BARE", "--mask", "left", "--guidance", "2"], "give --to, --data with labels"),
        ("interpolate", ["--guidance", "2"], "none are known: give --classes or --guidance 1"),
        ("interpolate", ["--seeds", "0-2"], "--seeds names 3, and they are taken in pairs"),
        ("interpolate", ["--points", "1"], "--points=1 must be a whole number >= 2"),
        ("interpolate", ["--classes", "hat"], "unknown class 'hat'"),
        ("edit", ["DATA"], "--to, --strength or --mask is missing"),
        ("edit", ["DATA", "--to", "hat"], "unknown class 'hat'"),
        ("edit", ["DATA", "--strength", "1.5"], "strength=1.5 must be a number in (0, 1]"),
        ("edit", ["DATA", "--mask", "middle"], "no such file, and not one of left, right"),
        ("edit", ["DATA", "--mask", "SET"], "not a picture that can be read"),
        ("edit", ["DATA", "--mask", "left", "--variants", "0"], "--variants=0"),
        ("edit", ["DATA", "--strength", "0.5", "--method", "rk45x"], "unknown method 'rk45x'"),
    ],
)
def test_mistakes_are_explained_on_stderr(tmp_path, data, capsys, command, arguments, message):
    given = data if "DATA" in arguments else []
    np.savez(tmp_path / "bare.npz", images=PIXELS)  # without classes
    words = {
        "SET": [data[1]],
        "BARE": ["--data", str(tmp_path / "bare.npz"), "--indices", "0-2"],
        "DATA": [],
    }
    rest = [word for a in arguments for word in words.get(a, [a])]
    assert main([command, *FAST, *given, *rest, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_pictures_of_another_size_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "small.npz", images=PIXELS[:, :14, :14])
    call = ["encode", *FAST, "--data", str(tmp_path / "small.npz"), "--indices", "0"]
    assert main([*call, "--out", str(tmp_path)]) == 2
    assert "are (1, 14, 14), and the model makes (1, 28, 28)" in capsys.readouterr().err
