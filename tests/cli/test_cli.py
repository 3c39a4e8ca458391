"""The command line, run in this process on the shipped model with few steps."""

import json

import numpy as np
import pytest
from PIL import Image

from ddim_ode.cli import main
from ddim_ode.solvers.methods import METHODS

FAST = ["--methods", "ddim", "--steps", "2", "--seeds", "0-2", "--guidance", "1"]


def test_sample_writes_a_picture_a_table_and_a_manifest(tmp_path, capsys):
    call = ["sample", "--methods", "ddim", "heun", "scipy:RK23", "--nfe", "3", "--seeds", "4,7-8"]
    assert main([*call, "--rtol", "0.5", "--atol", "0.5", "--out", str(tmp_path)]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    nfe = {run["method"]: run["nfe"] for run in manifest["runs"]}
    assert (nfe["ddim"], nfe["heun"]) == (3, 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["method", "steps", "nfe", "net_evals", "seconds", "status"]
    assert lines[3].split()[:3] == ["scipy:RK23", "own", str(nfe["scipy:RK23"])]
    with Image.open(tmp_path / "samples.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 50  # shades, not a blank page


def test_a_manifest_makes_the_same_samples_again(tmp_path):
    out, again = tmp_path / "a", tmp_path / "b"
    noisy = ["--eta", "0.5", "--classes", "bag,3"]
    assert main(["sample", *FAST, *noisy, "--npz", "--png", "--out", str(out)]) == 0
    manifest = str(out / "manifest.json")
    assert main(["sample", "--manifest", manifest, "--npz", "--out", str(again)]) == 0
    with np.load(out / "ddim.npz") as first, np.load(again / "ddim.npz") as second:
        assert np.array_equal(first["x"], second["x"])
        assert first["labels"].tolist() == second["labels"].tolist() == [8, 3, 8]
    assert sorted(f.name for f in (out / "ddim").iterdir()) == [f"{i:06d}.png" for i in range(3)]


def test_a_manifest_says_what_altered_the_ode_and_does_it_again(tmp_path):
    out, again = tmp_path / "a", tmp_path / "b"
    altered = ["--guidance-interval", "0.5", "20", "--guidance-rescale", "0.7", "--clip", "1"]
    call = ["sample", *FAST[:-1], "3", *altered, "--npz", "--out", str(out)]
    assert main(call) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    (row,) = manifest["runs"]
    assert row["alterations"] == dict(
        guidance=3.0, guidance_interval=[0.5, 20.0], guidance_rescale=0.7, clip=1.0
    )
    assert row["net_evals"] < 2 * 2 * 3  # two calls, three samples, not all of them guided
    remake = ["--manifest", str(out / "manifest.json"), "--npz", "--out", str(again)]
    assert main(["sample", *remake]) == 0
    with np.load(out / "ddim.npz") as first, np.load(again / "ddim.npz") as second:
        assert np.array_equal(first["x"], second["x"])
    for name in ("guidance_interval", "guidance_rescale", "clip", "threshold"):
        del manifest["options"][name]  # as the manifests of before have it
    (tmp_path / "old.json").write_text(json.dumps(manifest))
    assert main(["sample", "--manifest", str(tmp_path / "old.json"), "--out", str(again)]) == 0
    old = json.loads((again / "manifest.json").read_text())["runs"][0]
    assert old["alterations"] == {"guidance": 3.0}


def test_a_sample_does_not_depend_on_the_batch(tmp_path):
    for batch in ("1", "3"):
        out = ["--npz", "--out", str(tmp_path / batch), "--batch", batch]
        assert main(["sample", *FAST, "--classes", "dress", *out]) == 0
    with np.load(tmp_path / "1/ddim.npz") as one, np.load(tmp_path / "3/ddim.npz") as three:
        np.testing.assert_allclose(one["x"], three["x"], atol=1e-4)


def test_a_manifest_of_other_weights_is_refused(tmp_path, capsys):
    assert main(["sample", *FAST, "--out", str(tmp_path)]) == 0
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert main(["sample", "--manifest", str(path), "--out", str(tmp_path)]) == 2
    assert "was made with weights 000000000000" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"options": {"model": 1}}'])
def test_a_file_that_is_no_manifest_is_named(tmp_path, capsys, text):
    path = tmp_path / "m.json"
    path.write_text(text)
    assert main(["sample", "--manifest", str(path), "--out", str(tmp_path)]) == 2
    assert "m.json: not a manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seeds", 5),
        ("seeds", None),
        ("batch", None),
        ("model", None),
        ("classes", 3),
        ("methods", "ddim"),
        ("nfe", 2.5),
        ("batch", True),
        ("rtol", "x"),
    ],
)
def test_an_option_of_a_manifest_that_is_no_such_option_is_named(tmp_path, capsys, name, value):
    assert main(["sample", *FAST, "--out", str(tmp_path)]) == 0
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["options"][name] = value
    path.write_text(json.dumps(manifest))
    assert main(["sample", "--manifest", str(path), "--out", str(tmp_path)]) == 2
    assert f"its option '{name}' is {value!r}" in capsys.readouterr().err


def test_a_manifest_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["sample", "--manifest", str(tmp_path / "none.json")]) == 2
    assert "none.json: no such file; ddim-ode sample writes one" in capsys.readouterr().err


def test_heun_takes_the_tolerance_it_is_given(tmp_path):
    call = ["--seeds", "0", "--guidance", "1", "--out", str(tmp_path)]
    assert main(["sample", "--methods", "heun,ddim", "--rtol", "1", "--atol", "1", *call]) == 0
    heun, ddim = json.loads((tmp_path / "manifest.json").read_text())["runs"]
    assert (heun["steps"], ddim["steps"], ddim["nfe"]) == (None, 20, 20)
    again = ["--manifest", str(tmp_path / "manifest.json"), "--out", str(tmp_path / "again")]
    assert main(["sample", *again]) == 0
    remade = json.loads((tmp_path / "again/manifest.json").read_text())["runs"]
    assert [run["nfe"] for run in remade] == [heun["nfe"], 20]


def test_options_beside_a_manifest_are_refused(tmp_path, capsys):
    for option, value in (("--sigma-min", "3"), ("--seeds", "0-9"), ("--guidance-rescale", "0")):
        call = ["sample", "--manifest", str(tmp_path / "m.json"), option, value]
        assert main(call) == 2  # also one that says the default
        assert f"already says {option}; drop it" in capsys.readouterr().err


def test_nfe_is_a_limit_of_adaptive_solves_too(tmp_path):
    call = ["--seeds", "0", "--guidance", "1", "--out", str(tmp_path)]
    assert main(["sample", "--methods", "ddim", "rk45", "scipy:RK45", "--nfe", "15", *call]) == 0
    rows = json.loads((tmp_path / "manifest.json").read_text())["runs"]
    assert [row["nfe"] <= 15 for row in rows] == [True] * 3
    assert [row["status"] for row in rows[1:]] == [{"max_nfe": 1}] * 2


def test_an_output_folder_that_cannot_be_is_explained(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["sample", *FAST, "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "dddim"], "unknown method 'dddim'; valid, nearest first: ddim"),
        (["--grid", "kerras"], "unknown grid 'kerras'; valid, nearest first: karras"),
        (["--seeds", "five"], "write 0-9, or 3,5,8"),
        (["--seeds", "5-2"], "names 0 seeds; give 1 to 100,000"),
        (["--seeds", "0-99999999999"], "names 100000000000 seeds"),
        (
            ["--seeds", f"0-{10**20 - 1}"],
            f"names {10**20} seeds; give 1 to 100,000, each below 2^64",
        ),
        (["--seeds", "0-3,9-5"], "names 0 seeds"),
        (["--seeds", str(2**64)], "each below 2^64"),
        (["--seeds=-1"], "write 0-9, or 3,5,8"),
        (["--batch", "0"], "--batch=0 must be a whole number"),
        (["--device", "warp"], "--device warp"),
        (["--device", "meta"], "cannot be used here (it holds no numbers)"),
        (["--classes", "hat"], "unknown class 'hat'"),
        (["--model", "none.safetensors"], "none.safetensors: no such file or directory"),
        (["--steps", "0"], "--steps=0 must be a whole number >= 1"),
        (["--eta", "7"], "eta=7"),
        (["--guidance-interval", "1", "2"], "--guidance-interval does nothing without guidance"),
        (["--guidance-rescale", "0.5"], "--guidance-rescale does nothing without guidance"),
        (["--clip", "1", "--threshold", "0.9"], "drop threshold"),
        (["--methods", "ddim", "heun", "--eta", "1"], "method 'heun' takes no eta"),
        (["--rtol", "1e-3"], "--rtol is for adaptive solves, and ddim takes steps as given"),
        (["--methods", "rk45", "--rtol", "1e-3", "--steps", "4"], "as given; drop it, or --steps"),
        (["--methods", "scipy:RK45"], "takes its own steps, and no --steps; run it apart"),
        (["--methods", "reversible"], "method 'reversible' goes both ways"),
        (["--model", "mixture"], "draws what a trained network makes; ddim-ode generate, compare,"),
    ],
)
def test_mistakes_are_explained_on_stderr(tmp_path, capsys, arguments, message):
    assert main(["sample", *FAST, *arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_interrupting_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    sampling = __import__("ddim_ode.solve.sampling", fromlist=["sample"])
    sample = sampling.sample

    def interrupted(model, x, method, **options):
        if method == "heun":
            raise KeyboardInterrupt
        return sample(model, x, method, **options)

    monkeypatch.setattr(sampling, "sample", interrupted)
    call = ["sample", *FAST, "--out", str(tmp_path)]
    call[3:3] = ["heun"]
    assert main(call) == 130
    assert "1 of 2 methods are kept" in capsys.readouterr().err
    assert [r["method"] for r in json.loads((tmp_path / "manifest.json").read_text())["runs"]] == [
        "ddim"
    ]


def test_train_then_sample(tmp_path, capsys):
    rng = np.random.default_rng(0)
    data = tmp_path / "set.npz"
    np.savez(data, images=rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8))
    run = str(tmp_path / "run")
    small = ["--steps", "2", "--batch-size", "4", "--channels", "8,8", "--out", run]
    assert main(["train", "--data", str(data), *small]) == 0
    model = f"{run}/model.safetensors"
    assert main(["sample", "--model", model, *FAST, "--out", str(tmp_path / "o")]) == 0
    assert main(["sample", "--model", model, *FAST[:-1], "2", "--out", str(tmp_path / "o")]) == 2
    assert "unconditional" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--references"]])
def test_methods_lists_the_registry(capsys, words):
    assert main(["methods", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(METHODS) <= {line.split()[0] for line in lines if line}
    assert words or max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--channels", "8,8,8"], "images are 30×30, and 3 levels of channels need multiples of 4"),
        (["--channels", "8,x"], "--channels '8,x'"),
        (["--device", "warp"], "--device warp"),
        (["--label-dropout", "7"], "label_dropout=7"),
        (["--steps", "0"], "steps=0"),
        (["--checkpoint-every", "0"], "--checkpoint-every=0"),
    ],
)
def test_mistakes_in_training_are_explained(tmp_path, capsys, arguments, message):
    data = tmp_path / "set.npz"
    np.savez(data, images=np.zeros((8, 30, 30), np.uint8))
    small = ["--steps", "1", "--batch-size", "2", "--out", str(tmp_path / "run")]
    assert main(["train", "--data", str(data), *small, *arguments]) == 2
    assert message in capsys.readouterr().err
