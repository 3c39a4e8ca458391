"""``ddim-ode generate`` and ``evaluate``: what the terminal says, and what the files hold."""

import csv
import errno
import json
import math
import os
import warnings

import numpy as np
import pytest
import torch

import ddim_ode
from ddim_ode._base import bars
from ddim_ode.cli import main
from ddim_ode.cli.common import parse_classes
from ddim_ode.evaluate.features import IDENTITY, Features, content_sha256
from ddim_ode.evaluate.metrics import measure
from ddim_ode.evaluate.statistics import FeatureStatistics
from ddim_ode.evaluate.streaming import Kept, Moments, summarise
from ddim_ode.generation.generation import generate
from ddim_ode.generation.indexed import IndexedSolver
from ddim_ode.generation.shards import Shards

SMALL = ["generate", "--model", "mixture", "--n", "40", "--shard", "8", "--nfe", "6"]


def run(*words):
    return main([str(word) for word in words])


def test_generate_makes_what_sample_makes(tmp_path, capsys, monkeypatch):
    """The shipped model: its seeds, its classes in turn over them, its guidance."""
    options = ["--nfe", "2", "--classes", "bag,3", "--guidance", "1.5", "--seed", "3"]
    monkeypatch.setattr(bars, "_watched", lambda: True)
    assert run("generate", "-n", "5", *options, "--out", tmp_path, "--batch", "2") == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].split()[:4] == ["samples", "method", "nfe", "made_here"]
    assert shown.out.splitlines()[1].split()[:6] == ["5", "ddim", "2", "5", "3", "0"]
    assert "0/5" in shown.err  # the bar
    model = ddim_ode.load("fashion-mnist", guidance=1.5)
    x = ddim_ode.noise(model.shape, model.schedule, seeds=range(3, 8))
    labels = torch.tensor([3, 8, 3, 8, 3])  # of the seeds 3, 4, ...
    end = ddim_ode.sample(model, x, nfe=2, cond=dict(y=labels)).x
    found = list(Shards.open(tmp_path))
    torch.testing.assert_close(torch.cat([s.x for s in found]), end, rtol=0, atol=1e-4)
    assert torch.equal(torch.cat([s.cond["y"] for s in found]), labels)
    about = json.loads((tmp_path / "manifest.json").read_text())["about"]
    assert (about["sha256"], about["guidance"]) == (model.sha256, 1.5)


def test_a_plan_from_a_file(tmp_path):
    model = ddim_ode.cli.models.load_model("mixture").denoiser
    plan = ddim_ode.plan("unipc2", model.schedule, [100.0, 8.0, 1.0, 0.2, 0.0])
    plan.save(tmp_path / "plan.json")
    call = ["generate", "--model", "mixture", "-n", "10", "--plan", tmp_path / "plan.json"]
    assert run(*call, "--out", tmp_path / "run") == 0
    x = ddim_ode.noise((2,), model.schedule, seeds=range(10))
    found = torch.cat([shard.x for shard in Shards.open(tmp_path / "run")])
    torch.testing.assert_close(found, ddim_ode.sample(model, x, plan=plan).x, rtol=0, atol=1e-5)
    assert run(*call, "--steps", "3", "--out", tmp_path / "other") == 2


@pytest.mark.parametrize(
    ("words", "decides"),
    [
        ([], dict(method="ddim", nfe=20)),
        (["--method", "heun"], dict(method="heun", nfe=19)),
        (["--method", "rk45"], dict(method="rk45")),
        (["--method", "heun", "--rtol", "0.01"], dict(method="heun", rtol=0.01)),
    ],
)
def test_a_method_gets_the_calls_or_the_tolerance_it_needs(tmp_path, words, decides):
    assert run("generate", "--model", "mixture", "-n", "3", *words, "--out", tmp_path) == 0
    solver = json.loads((tmp_path / "manifest.json").read_text())["decides"]["solver"]
    assert decides.items() <= solver.items()
    assert ("nfe" in solver) == ("nfe" in decides)


def test_interrupted_and_full_then_resumed(tmp_path, capsys, monkeypatch):
    write, fsync = Shards.write, os.fsync

    def interrupted(self, k, *rest):
        if k == 2:
            raise KeyboardInterrupt
        write(self, k, *rest)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    call = [*SMALL, "--out", tmp_path, "--batch", "8"]
    monkeypatch.setattr(Shards, "write", interrupted)
    assert run(*call) == 130
    assert "the same command makes the rest" in capsys.readouterr().err
    monkeypatch.setattr(Shards, "write", write)
    monkeypatch.setattr(os, "fsync", full)
    assert run(*call) == 2
    assert "the disk is full: 16 of 40 samples are kept" in capsys.readouterr().err
    monkeypatch.setattr(os, "fsync", fsync)
    assert run(*call) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:6] == [
        "40",
        "ddim",
        "6",
        "24",
        "5",
        "0",
    ]


def test_a_call_that_cannot_make_a_sample_leaves_the_folder_to_another(
    tmp_path, capsys, monkeypatch
):
    def fails(self, index):
        raise ValueError("not today")

    call = [*SMALL, "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(IndexedSolver, "__call__", fails)
        assert run(*call, "--seed", "1") == 2
    assert "not today" in capsys.readouterr().err
    assert run(*call) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", "0"], "n=0 must be a whole number"),
        (["--batch", "some"], "batch='some'"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--cuda-graph"], "this is cpu; drop it"),
        (["--device", "warp"], "--device warp"),
        (["--out", __file__], "is a file; give a folder"),
        (["--classes", "hat"], "this model has no classes"),
        (["--method", "hun"], "unknown method 'hun'; valid, nearest first: heun"),
        (["--channels-last"], "channels_last=True"),
        (["--nfe", "7"], "holds another run: nfe is 6 there, and 7 here"),
    ],
)
def test_mistakes_are_explained_on_stderr(tmp_path, capsys, words, message):
    assert run(*SMALL, "--out", tmp_path) == 0
    assert run(*SMALL, "--out", tmp_path, *words) == 2
    assert message in capsys.readouterr().err


def test_each_rank_under_torchrun_gets_its_own_gpu(monkeypatch):
    from ddim_ode.cli import generation

    monkeypatch.setattr(generation, "find_device", lambda name: name)
    assert generation._device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [generation._device(n) for n in ("cuda", "cpu", "cuda:1")] == ["cuda:3", "cpu", "cuda:1"]


# -- evaluate -------------------------------------------------------------------------------------
def made(folder, n=60, shard=7, failing=()):
    """Samples of a mixture, NaN at some indices."""
    model = ddim_ode.cli.models.load_model("mixture").denoiser

    class Net(torch.nn.Module):
        def forward(self, x, t, bad):
            eps = model.net(x, t)
            return torch.where(bad[:, None], torch.nan, eps)

    broken = ddim_ode.Denoiser(Net(), model.schedule, time_offset=model.time_offset)

    def cond(index):
        return dict(bad=torch.isin(index, torch.tensor(list(failing) or [-1])))

    return generate(broken, n, folder, steps=4, shape=(2,), shard=shard, cond=cond).shards


def reference(keep=10_000):
    rows = np.random.default_rng(1).standard_normal((500, 2))
    return FeatureStatistics.of(rows, IDENTITY, keep=keep)


def test_a_distance_that_is_mostly_bias_is_warned_of(tmp_path):
    powers = Features(
        "powers", content_sha256({}, "powers"), lambda x: torch.cat([x, x**2, x**3], 1)
    )
    real = FeatureStatistics.of(np.random.default_rng(1).standard_normal((50, 2)), powers)
    shards = made(tmp_path, n=6)
    with pytest.warns(
        UserWarning, match="Fréchet distance of 6 samples in 6 features is mostly bias"
    ):
        summarise(shards, powers, real)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summarise(shards, powers, real, metrics=["energy_distance"])


@pytest.mark.parametrize("shard", [1, 7, 60])
def test_streamed_metrics_are_those_of_all_at_once(tmp_path, shard):
    failing = [0, 13, 14, 15, 16, 17, 18, 19, 20, 59]  # a whole shard of 7 among them
    shards = made(tmp_path, shard=shard, failing=failing)
    good = torch.tensor([i not in failing for i in range(60)])
    x = torch.cat([s.x for s in shards])
    found = summarise(shards, IDENTITY, reference(), keep=60, seed=3)
    whole = measure(x[good], reference(), IDENTITY, seed=3)
    for name, value in whole.items():
        if name != "n":
            assert found.row[name] == (pytest.approx(value) if isinstance(value, float) else value)
    assert (found.row["n"], found.row["failed"], found.row["rows"]) == (60, 10, 50)
    assert found.status == dict(success=50, non_finite=10)
    assert found.row["mean"] == pytest.approx(float(x[good].double().mean()))
    assert found.row["std"] == pytest.approx(float(x[good].double().std()))


@pytest.mark.parametrize(
    ("options", "failed"),
    [
        (dict(method="rk45", nfe=15), 0),  # all are brought to the end, and judged
        (dict(method="rk45", max_nfe=15), 5),  # all stop on the way
        (dict(method="scipy:RK45", nfe=15, batch=1), 5),
    ],
)
def test_samples_that_arrive_are_judged(tmp_path, options, failed):
    model = ddim_ode.cli.models.load_model("mixture").denoiser
    shards = generate(model, 5, tmp_path, **options).shards
    found = summarise(shards)
    assert found.status == dict(max_nfe=5)
    assert found.row["failed"] == failed


def test_which_rows_are_kept_does_not_depend_on_the_shards(tmp_path):
    rows = [
        summarise(made(tmp_path / str(s), 80, s), IDENTITY, reference(), keep=30, seed=3).row
        for s in (5, 80)
    ]
    other = summarise(Shards.open(tmp_path / "5"), IDENTITY, reference(), keep=30, seed=4).row
    for name in ("kernel_distance", "energy_distance", "frechet_distance"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4), name
    assert other["energy_distance"] != pytest.approx(rows[0]["energy_distance"], rel=1e-4)
    assert other["frechet_distance"] == pytest.approx(rows[0]["frechet_distance"])
    assert rows[0]["rows"] == 30


def test_memory_is_bounded_by_what_is_kept():
    kept, rng, most = Kept(10), np.random.default_rng(0), 0
    keys = rng.random((300, 50))
    for i, k in enumerate(keys):
        kept.add(np.full((50, 1), i), k)
        most = max(most, kept._held)
    assert most < 5000
    smallest = np.sort(np.argsort(keys.ravel())[:10])
    assert kept.rows.ravel().tolist() == (smallest // 50).tolist()


def test_moments_survive_a_large_mean():
    """The textbook E x² − (E x)² has no digit left here."""
    rows = 1e8 + np.random.default_rng(0).standard_normal((1000, 3))
    found = Moments()
    for part in np.array_split(rows, 13):
        found.add(part)
    np.testing.assert_allclose(found.cov, np.cov(rows, rowvar=False), atol=1e-6)
    with pytest.raises(ValueError, match="0 good samples have no covariance"):
        _ = Moments().cov


def test_evaluate_verifies_and_writes(tmp_path, capsys):
    reference().save(tmp_path / "real.safetensors")
    made(tmp_path / "run", failing=[5])
    call = ["evaluate", tmp_path / "run", "--data", tmp_path / "real.safetensors"]
    assert run(*call, "--metrics", "frechet_distance", "energy_distance") == 0
    shown = capsys.readouterr().out
    assert "59 of 60 samples: success" in shown
    assert "1 of 60 samples: non_finite" in shown
    record = json.loads((tmp_path / "run/evaluation.json").read_text())
    with open(tmp_path / "run/evaluation.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert {k: str(v) for k, v in record["row"].items()} == row
    assert (row["seeds"], row["n"], row["failed"]) == ("0-59", "60", "1")
    assert row["reference"] == reference().sha256[:12]
    assert math.isfinite(float(row["frechet_distance"]))
    assert "kernel_distance" not in row
    shard = Shards.open(tmp_path / "run").path(3)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run(*call) == 2
    assert "shard-00003.safetensors: truncated" in capsys.readouterr().err


def test_evaluate_without_data_counts_different_samples(tmp_path, capsys):
    """Two equal samples count once: a run that repeats itself is seen."""
    shards = made(tmp_path, shard=10)
    assert run("evaluate", tmp_path) == 0
    row = json.loads((tmp_path / "evaluation.json").read_text())["row"]
    assert (row["n"], row["distinct"], row["failed"]) == (60, 60, 0)
    assert "frechet_distance" not in row
    first = shards.read(0)
    shards.write(1, first.x, first.status, first.cond)
    assert run("evaluate", tmp_path, "--out", tmp_path / "again") == 0
    again = json.loads((tmp_path / "again/evaluation.json").read_text())
    assert again["row"]["distinct"] == 50
    assert again["samples_sha256"][:12] == again["row"]["samples"] != row["samples"]


def test_images_against_images(tmp_path, capsys):
    """The shipped model's run finds its classifier's features; images of another size are refused."""
    run("generate", "-n", "6", "--nfe", "1", "--guidance", "1", "--out", tmp_path / "run")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "real.npz", images=rng.integers(0, 256, (30, 28, 28), dtype=np.uint8))
    np.savez(tmp_path / "small.npz", images=np.zeros((9, 8, 8), np.uint8))
    assert run("evaluate", tmp_path / "run", "--data", tmp_path / "real.npz") == 0
    assert "fashion-mnist classifier" in capsys.readouterr().out
    assert run("evaluate", tmp_path / "run", "--data", tmp_path / "small.npz") == 2
    assert "images are (1, 8, 8), and the samples (1, 28, 28)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--features", "identity"],
            "without --data nothing is compared; drop --features='identity'",
        ),
        (["--metrics", "mmd"], "without --data nothing is compared; drop --metrics=['mmd']"),
        (["--data", "none", "--metrics", "fid"], "unknown metric 'fid'"),
        (["--data", "none"], "none: no such directory"),
    ],
)
def test_mistakes_in_evaluate_are_explained(tmp_path, capsys, words, message):
    made(tmp_path, n=4)
    assert run("evaluate", tmp_path, *words) == 2
    assert message in capsys.readouterr().err


def test_evaluate_of_a_folder_without_a_run(tmp_path, capsys):
    assert run("evaluate", tmp_path) == 2
    assert "holds no manifest.json, so no run of ddim-ode generate" in capsys.readouterr().err


def test_features_unlike_the_reference_s_are_refused(tmp_path):
    other = Features("sum", content_sha256({}, "sum"), lambda x: x.sum(1, keepdim=True))
    shards = made(tmp_path, n=4)
    with pytest.raises(ValueError, match="distances across the two mean nothing"):
        summarise(shards, other, reference())
    with pytest.raises(ValueError, match="features and reference belong together"):
        summarise(shards, other)


def test_a_class_goes_by_its_index_however_large():
    model = ddim_ode.load("fashion-mnist")
    far = range(10**15 + 7, 10**15 + 10)
    assert parse_classes("all", model, far) == [7, 8, 9]
    assert parse_classes("bag,coat", model, far) == [4, 8, 4]
