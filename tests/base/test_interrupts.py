"""Ctrl-C at any moment of a long run: what is finished is kept and named, and the same call goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from commands import run, stop_at
from problems import COSINE, Counting, mixture_1d

import ddim_ode
from ddim_ode._base.interrupted import Interrupted
from ddim_ode.calibration.run import Run
from ddim_ode.comparison import comparison
from ddim_ode.diagnosis import levels
from ddim_ode.evaluate import streaming
from ddim_ode.nets import train, weights
from ddim_ode.solve import reference

STEPS = (4, 6, 8, 11)


@pytest.fixture
def _coarse(monkeypatch):
    monkeypatch.setattr(reference, "STEPS", STEPS)
    monkeypatch.setattr(comparison, "STEPS", STEPS)


class Stopping(Counting):
    """A network that is interrupted at its call ``at`` (None: never)."""

    at = None

    def __call__(self, *args, **kwargs):
        if self.calls == self.at:
            raise KeyboardInterrupt
        return super().__call__(*args, **kwargs)


def stopping(at=None):
    exact = mixture_1d(COSINE)
    net = Stopping(exact.net)
    net.at = at
    return net, ddim_ode.Denoiser(net, COSINE, time=exact.time, dtype=torch.float64, shape=(1,))


@pytest.mark.usefixtures("_coarse")
def test_a_comparison_loses_no_more_than_the_solve_it_is_stopped_in(tmp_path):
    """Wherever that is: in the reference, in its refinements, in a row."""
    options = dict(nfe=[4, 5], n=4, batch=2, key="mixture", progress=False)
    whole_net, model = stopping()
    whole = ddim_ode.compare(model, ["ddim", "unipc2"], **options)
    longest = 2 * (STEPS[-1] + 4)  # rows of a solve of a batch, its starting steps included
    for at in range(0, whole_net.calls, 5):
        net, model = stopping(at)
        cache = tmp_path / str(at)
        with pytest.raises(Interrupted, match=f"kept in {cache}") as stop:
            ddim_ode.compare(model, ["ddim", "unipc2"], cache=cache, **options)
        assert "the same call goes on from there" in str(stop.value)
        assert f"{len(stop.value.partial.rows)} of 4 rows are finished" in str(stop.value)
        net.at = None
        again = ddim_ode.compare(model, ["ddim", "unipc2"], cache=cache, **options)
        assert whole_net.rows <= net.rows <= whole_net.rows + longest
        for first, second in zip(whole.errors, again.errors):
            assert second == pytest.approx(first, rel=1e-9)
        assert again.reference_net_evals + again.net_evals == whole_net.rows


@pytest.mark.usefixtures("_coarse")
def test_without_a_cache_it_says_that_the_reference_is_lost():
    _, model = stopping(3)
    with pytest.raises(Interrupted, match=r"the reference is not \(give cache=\).*starts again"):
        ddim_ode.compare(model, ["ddim"], nfe=[4], n=2, progress=False)


def test_a_calibration_keeps_the_plans_that_are_fitted():
    options = dict(n=16, progress=False)
    net, model = stopping()
    alone = ddim_ode.calibrate(model, [3], **options)
    calls = net.calls
    net, model = stopping(calls + 1)
    with pytest.raises(Interrupted, match="1 of 2 plans are fitted") as stop:
        ddim_ode.calibrate(model, [3, 4], **options)
    assert stop.value.partial == alone
    assert stop.value.partial[3].fit["held_out"] == alone[3].fit["held_out"]


def test_a_diagnosis_keeps_what_is_found():
    exact = mixture_1d(COSINE)
    net = Stopping(lambda x, t: exact.net(x, t).repeat(1, 2))  # with a variance beside it

    def model():
        return ddim_ode.Denoiser(net, COSINE, time=exact.time, dtype=torch.float64, shape=(1,))

    checks = [finding.check for finding in ddim_ode.diagnose(model())]
    assert checks[0] == "learned-variance"
    net.calls, net.at = 0, net.calls - 1
    with pytest.raises(Interrupted, match="not all of the checks") as stop:
        ddim_ode.diagnose(model())
    assert [finding.check for finding in stop.value.partial] == checks[:1]


# -- the command line, really interrupted ---------------------------------------------------------


def test_sigint_in_the_reference_of_compare(tmp_path):
    cache = tmp_path / "cache"
    call = "compare --model mixture --methods ddim --nfe 5 --n 5000 --batch 10 --out"
    started = subprocess.Popen(
        [sys.executable, "-m", "ddim_ode", *call.split(), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # one begun in the background, as the tests may be, would ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while len(list(cache.glob("*.safetensors"))) < 3 and time.monotonic() < end:
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130
    finished = "0 of 1 rows are finished, the reference is not (whose finished solves are kept in "
    assert f"{finished}{cache}" in said
    assert "the same command goes on from there" in said
    assert "noises × 604 to 4,709 calls for the reference" in said  # what it will cost
    kept = [weights.read(path)[0] for path in cache.iterdir()]
    assert len(kept) > 2
    assert all(tensors["x"].shape == (10, 2) for tensors in kept)


def test_calibrate_names_the_plans_and_what_is_missing(tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, Run, "plan", 2)
    call = ["calibrate", "--model", "mixture", "--nfe", "3", "4", "--n", "16", "--quiet"]
    assert run(*call, "--out", tmp_path) == 130
    path = tmp_path / "nfe-3.json"
    said = f"ddim-ode calibrate: stopped: {path} kept; missing are --nfe 4\n"
    assert capsys.readouterr().err == said
    assert ddim_ode.Plan.load(path).nfe == 3
    stop_at(monkeypatch, Run, "prepare", 1)
    assert run(*call, "--out", tmp_path) == 130
    assert "nothing is finished; missing are --nfe 3 4" in capsys.readouterr().err


def test_doctor_prints_what_is_found_until_then(monkeypatch, capsys):
    for words in (["--json"], []):
        with monkeypatch.context() as patch:
            stop_at(patch, levels, "checks", 1)
            assert run("doctor", "mixture", *words) == 130
        said = capsys.readouterr()
        assert "these are not all of the checks" in said.err
        assert "nothing found" not in said.out  # which is more than is known
        assert not words or json.loads(said.out)["findings"] == []


def test_evaluate_and_train_say_what_is_kept(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert run("generate", "--model", "mixture", "-n", "4", "--nfe", "1", "--out", folder) == 0
    stop_at(monkeypatch, streaming, "progress_bar", 1)
    assert run("evaluate", folder) == 130
    assert "nothing is measured before all shards are read" in capsys.readouterr().err
    assert not (folder / "evaluation.json").exists()

    np.savez(tmp_path / "set.npz", images=np.zeros((8, 8, 8), np.uint8))
    call = ["train", "--data", tmp_path / "set.npz", "--steps", "4", "--channels", "8"]
    call += ["--batch-size", "4", "--out", tmp_path / "net"]
    checkpoint = tmp_path / "net/checkpoint.safetensors"
    for stop, said in (
        (1, "stopped at step 0; nothing is kept"),
        (3, f"stopped at step 2; {checkpoint}, of step 2, is kept"),
    ):
        with monkeypatch.context() as patch:
            stop_at(patch, train, "eps_loss", stop)
            assert run(*call) == 130
        assert said in capsys.readouterr().err
    assert weights.read(checkpoint)[1]["step"] == 2
    assert run(*call) == 0
