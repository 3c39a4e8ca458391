"""``ddim-ode sample``, ``train`` and ``methods``, in this process on the shipped model with few steps."""

import json

import numpy as np
import pytest
from commands import arrays, run, shades, stop_at, tree

from ddim_ode.solve import sampling
from ddim_ode.solvers.methods import METHODS

FAST = ["--methods", "ddim", "--steps", "2", "--seeds", "0-2", "--guidance", "1"]


def runs(folder, *words):
    """What the manifest says of a call that must succeed."""
    assert run("sample", *words, "--out", folder) == 0
    return tree(folder / "manifest.json")["runs"]


def again(manifest, folder, *words):
    return runs(folder, "--manifest", manifest, *words)


def test_sample_writes_a_picture_a_table_and_a_manifest(tmp_path, capsys):
    call = ["--methods", "ddim", "heun", "scipy:RK23", "--nfe", "3", "--seeds", "4,7-8"]
    rows = runs(tmp_path, *call, "--rtol", "0.5", "--atol", "0.5")
    nfe = {row["method"]: row["nfe"] for row in rows}
    assert (nfe["ddim"], nfe["heun"]) == (3, 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["method", "steps", "nfe", "net_evals", "seconds", "status"]
    assert lines[3].split()[:3] == ["scipy:RK23", "own", str(nfe["scipy:RK23"])]
    assert shades(tmp_path / "samples.png") > 50


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of noisy samples of chosen classes."""
    folder = tmp_path_factory.mktemp("made")
    runs(folder, *FAST, "--eta", "0.5", "--classes", "bag,3", "--npz", "--png")
    return folder


def test_a_manifest_makes_the_same_samples_again(made, tmp_path):
    again(made / "manifest.json", tmp_path, "--npz")
    first, second = (arrays(folder / "ddim.npz") for folder in (made, tmp_path))
    assert np.array_equal(first["x"], second["x"])
    assert first["labels"].tolist() == second["labels"].tolist() == [8, 3, 8]
    assert sorted(f.name for f in (made / "ddim").iterdir()) == [f"{i:06d}.png" for i in range(3)]


def test_a_manifest_says_what_altered_the_ode_and_does_it_again(tmp_path):
    altered = ["--guidance-interval", "0.5", "20", "--guidance-rescale", "0.7", "--clip", "1"]
    (row,) = runs(tmp_path / "a", *FAST[:-1], "3", *altered, "--npz")
    assert row["alterations"] == dict(
        guidance=3.0, guidance_interval=[0.5, 20.0], guidance_rescale=0.7, clip=1.0
    )
    assert row["net_evals"] < 2 * 2 * 3  # two calls, three samples, not all of them guided
    again(tmp_path / "a/manifest.json", tmp_path / "b", "--npz")
    first, second = (arrays(tmp_path / f"{name}/ddim.npz") for name in "ab")
    assert np.array_equal(first["x"], second["x"])
    manifest = tree(tmp_path / "a/manifest.json")
    for name in ("guidance_interval", "guidance_rescale", "clip", "threshold", "plan"):
        del manifest["options"][name]  # as the manifests of before have it
    del manifest["plans"]
    (tmp_path / "old.json").write_text(json.dumps(manifest))
    (old,) = again(tmp_path / "old.json", tmp_path / "b")
    assert old["alterations"] == {"guidance": 3.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(("{", "not a manifest"), ("[]", "not a manifest"), ("{}", "not a manifest")),
        (dict(seeds=5), "'seeds' is 5"),
        (dict(seeds=None), "'seeds' is None"),
        (dict(methods="ddim"), "'methods' is 'ddim'"),
        (dict(nfe=2.5), "'nfe' is 2.5"),
        (dict(batch=True), "'batch' is True"),
        (dict(rtol="x"), "'rtol' is 'x'"),
        (dict(sha256="0" * 64), "made with weights 000000000000"),
    ],
)
def test_what_is_no_manifest_or_of_another_model_is_named(made, tmp_path, capsys, change, said):
    path = tmp_path / "m.json"
    if isinstance(change, dict):
        manifest = tree(made / "manifest.json")
        manifest["model" if "sha256" in change else "options"] |= change
        change = json.dumps(manifest)
    path.write_text(change)
    assert run("sample", "--manifest", path, "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "m.json" in error


def test_a_sample_does_not_depend_on_the_batch(tmp_path):
    for batch in ("1", "3"):
        runs(tmp_path / batch, *FAST, "--classes", "dress", "--npz", "--batch", batch)
    one, three = (arrays(tmp_path / batch / "ddim.npz")["x"] for batch in "13")
    np.testing.assert_allclose(one, three, atol=1e-4)


def test_heun_takes_the_tolerance_it_is_given(tmp_path):
    call = ["--methods", "heun,ddim", "--rtol", "1", "--atol", "1", "--seeds", "0"]
    heun, ddim = runs(tmp_path, *call)
    assert (heun["steps"], ddim["steps"], ddim["nfe"]) == (None, 20, 20)
    remade = again(tmp_path / "manifest.json", tmp_path / "again")
    assert [row["nfe"] for row in remade] == [heun["nfe"], 20]


def test_nfe_is_a_limit_of_adaptive_solves_too(tmp_path):
    rows = runs(tmp_path, "--methods", "ddim", "rk45", "scipy:RK45", "--nfe", "15", "--seeds", "0")
    assert all(row["nfe"] <= 15 for row in rows)
    assert [row["status"] for row in rows[1:]] == [{"max_nfe": 1}] * 2


def test_interrupting_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, sampling, "sample", 2)
    assert run("sample", *FAST, "--methods", "ddim", "heun", "--out", tmp_path) == 130
    assert "1 of 2 methods are kept" in capsys.readouterr().err
    assert [row["method"] for row in tree(tmp_path / "manifest.json")["runs"]] == ["ddim"]


def test_train_then_sample(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pixels)
    small = ["--steps", "2", "--batch-size", "4", "--channels", "8,8", "--out", tmp_path / "run"]
    assert run("train", "--data", tmp_path / "set.npz", *small) == 0
    call = ["sample", "--model", tmp_path / "run/model.safetensors", *FAST, "--out", tmp_path / "o"]
    assert run(*call) == 0
    assert run(*call, "--guidance", "2") == 2
    assert "unconditional" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--references"]])
def test_methods_lists_the_registry(capsys, words):
    assert run("methods", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(METHODS) <= {line.split()[0] for line in lines if line}
    assert words or max(map(len, lines)) <= 120
