"""``ddim-ode generate`` and ``evaluate``: what the terminal says, and what the files hold."""

import errno
import math
import os

import numpy as np
import pytest
import torch
from commands import run, stop_at, table, tree
from small_runs import reference, some_failing

import ddim_ode
from ddim_ode._base import bars
from ddim_ode.cli.common import parse_classes
from ddim_ode.cli.models import load_model
from ddim_ode.generation.shards import Shards

SMALL = ["generate", "--model", "mixture", "--n", "40", "--shard", "8", "--nfe", "6"]


def made(folder):
    """x of the samples of a run, and all its shards."""
    shards = list(Shards.open(folder))
    return torch.cat([shard.x for shard in shards]), shards


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
    samples, shards = made(tmp_path)
    torch.testing.assert_close(samples, end, rtol=0, atol=1e-4)
    assert torch.equal(torch.cat([shard.cond["y"] for shard in shards]), labels)
    about = tree(tmp_path / "manifest.json")["about"]
    assert (about["sha256"], about["guidance"]) == (model.sha256, 1.5)


def test_a_plan_from_a_file(tmp_path):
    model = load_model("mixture").denoiser
    plan = ddim_ode.plan("unipc2", model.schedule, [100.0, 8.0, 1.0, 0.2, 0.0])
    plan.save(tmp_path / "plan.json")
    call = ["generate", "--model", "mixture", "-n", "10", "--plan", tmp_path / "plan.json"]
    assert run(*call, "--out", tmp_path / "run") == 0
    x = ddim_ode.noise((2,), model.schedule, seeds=range(10))
    end = ddim_ode.sample(model, x, plan=plan).x
    torch.testing.assert_close(made(tmp_path / "run")[0], end, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "decides"),
    [
        ([], dict(method="ddim", nfe=20)),
        (["--method", "rk45"], dict(method="rk45")),
        (["--method", "heun", "--rtol", "0.01"], dict(method="heun", rtol=0.01)),
    ],
)
def test_a_method_gets_the_calls_or_the_tolerance_it_needs(tmp_path, words, decides):
    assert run("generate", "--model", "mixture", "-n", "3", *words, "--out", tmp_path) == 0
    solver = tree(tmp_path / "manifest.json")["decides"]["solver"]
    assert decides.items() <= solver.items()
    assert ("nfe" in solver) == ("nfe" in decides)


def test_interrupted_and_full_then_resumed(tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    call = [*SMALL, "--out", tmp_path, "--batch", "8"]
    with monkeypatch.context() as patch:
        stop_at(patch, Shards, "write", 3)
        assert run(*call) == 130
    assert "the same command makes the rest" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run(*call) == 2
    assert "the disk is full: 16 of 40 samples are kept" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*.partial"))
    assert run(*call) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split()[:6] == ["40", "ddim", "6", "24", "5", "0"]


def test_each_rank_under_torchrun_gets_its_own_gpu(monkeypatch):
    from ddim_ode.cli import generation

    monkeypatch.setattr(generation, "find_device", lambda name: name)
    assert generation._device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [generation._device(n) for n in ("cuda", "cpu", "cuda:1")] == ["cuda:3", "cpu", "cuda:1"]


def test_a_class_goes_by_its_index_however_large():
    model = ddim_ode.load("fashion-mnist")
    far = range(10**15 + 7, 10**15 + 10)
    assert parse_classes("all", model, far) == [7, 8, 9]
    assert parse_classes("bag,coat", model, far) == [4, 8, 4]


# -- evaluate -------------------------------------------------------------------------------------
def test_evaluate_verifies_and_writes(tmp_path, capsys):
    reference().save(tmp_path / "real.safetensors")
    some_failing(tmp_path / "run", failing=[5])
    call = ["evaluate", tmp_path / "run", "--data", tmp_path / "real.safetensors"]
    assert run(*call, "--metrics", "frechet_distance", "energy_distance") == 0
    shown = capsys.readouterr().out
    assert "59 of 60 samples: success" in shown
    assert "1 of 60 samples: non_finite" in shown
    (row,) = table(tmp_path / "run/evaluation.csv")
    record = tree(tmp_path / "run/evaluation.json")
    assert {k: str(v) for k, v in record["row"].items()} == row
    assert (row["seeds"], row["n"], row["failed"]) == ("0-59", "60", "1")
    assert row["reference"] == reference().sha256[:12]
    assert math.isfinite(float(row["frechet_distance"]))
    assert "kernel_distance" not in row
    shard = Shards.open(tmp_path / "run").path(3)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run(*call) == 2
    assert "shard-00003.safetensors: truncated" in capsys.readouterr().err


def test_evaluate_without_data_counts_different_samples(tmp_path):
    """Two equal samples count once: a run that repeats itself is seen."""
    shards = some_failing(tmp_path, shard=10)
    assert run("evaluate", tmp_path) == 0
    row = tree(tmp_path / "evaluation.json")["row"]
    assert (row["n"], row["distinct"], row["failed"]) == (60, 60, 0)
    assert "frechet_distance" not in row
    first = shards.read(0)
    shards.write(1, first.x, first.status, first.cond)
    assert run("evaluate", tmp_path, "--out", tmp_path / "again") == 0
    again = tree(tmp_path / "again/evaluation.json")
    assert again["row"]["distinct"] == 50
    assert again["samples_sha256"][:12] == again["row"]["samples"] != row["samples"]


def test_images_against_images(tmp_path, capsys):
    """The shipped model's run finds its classifier's features; images of another size are refused."""
    run("generate", "-n", "6", "--nfe", "1", "--guidance", "1", "--out", tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", images=pixels)
    np.savez(tmp_path / "small.npz", images=pixels[:, :8, :8])
    assert run("evaluate", tmp_path / "run", "--data", tmp_path / "real.npz") == 0
    assert "fashion-mnist classifier" in capsys.readouterr().out
    assert run("evaluate", tmp_path / "run", "--data", tmp_path / "small.npz") == 2
    assert "images are (1, 8, 8), and the samples (1, 28, 28)" in capsys.readouterr().err
