"""Large runs: damaged shards, full disks, folders of something else and manifests that lie."""

import contextlib
import dataclasses
import json
import random
import re
import sys
import warnings

import pytest
import torch
from problems import COSINE, mixture_2d
from small_runs import N, expected, make, samples

import ddim_ode
from ddim_ode.evaluate.streaming import summarise
from ddim_ode.generation.shards import Run, Shards
from ddim_ode.nets import weights

TWICE = json.dumps(dict(kind="samples", n=1, seed=0, shard=1, shape=[1], decides=dict(n=2)))


# -- damage ---------------------------------------------------------------------------------------
def test_any_changed_byte_is_found(tmp_path):
    """Or says the same, as a blank for another in JSON does; never other samples, never another error."""
    shards = make(tmp_path, n=6, shard=3).shards
    path, rng = shards.path(1), random.Random(0)
    good = path.read_bytes()
    found = 0
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with contextlib.suppress(ValueError):
            torch.testing.assert_close(shards.read(1).x, expected()[3:6], rtol=0, atol=1e-5)
            found += 1
    assert found < 5
    for length in (0, 7, 8, 100, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match="shard-00001"):
            shards.read(1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "of another index", "no shard", "link"])
def test_a_damaged_shard_is_made_again(tmp_path, damage):
    shards = make(tmp_path).shards
    whole, path = samples(tmp_path), shards.path(5)
    good = path.read_bytes()
    path.unlink()
    if damage == "link":
        path.symlink_to(tmp_path / "gone")
    else:
        path.write_bytes(
            {
                "cut": good[:-3],
                "flipped": good[:-3] + bytes([good[-3] ^ 16]) + good[-2:],
                "of another index": shards.path(4).read_bytes(),
                "no shard": b"",
            }[damage]
        )
    with pytest.raises(ValueError, match="shard-00005"):
        samples(tmp_path)
    run = make(tmp_path)
    assert (run.made, run.remade) == (4, 1)
    assert not path.is_symlink()
    torch.testing.assert_close(samples(tmp_path), whole, rtol=0, atol=1e-5)


def test_a_manifest_of_more_samples_than_there_can_be_costs_no_memory(tmp_path):
    shards = make(tmp_path).shards
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace(f'"n": {N}', f'"n": {10**12}'))
    damaged = Shards.open(tmp_path)
    assert len(damaged.present()) == len(shards)
    with pytest.raises(ValueError, match="damaged, or of another run"):
        summarise(damaged)


def test_a_status_that_is_none_is_no_status(tmp_path):
    shards = make(tmp_path, n=8).shards
    tensors, config = weights.read(shards.path(1))
    tensors["status"][:] = 99
    weights.write(shards.path(1), tensors, config)
    assert shards.statuses() == {"success": 4}
    with pytest.raises(ValueError, match="shard-00001"):
        shards.read(1)
    assert make(tmp_path, n=8).remade == 1


def test_a_shard_that_is_missing_is_named(tmp_path):
    shards = make(tmp_path).shards
    shards.path(7).unlink()
    shards.path(9).unlink()
    with pytest.raises(ValueError, match=r"shard-00007\S+: missing, one of 2 shards that are"):
        list(shards)
    assert (make(tmp_path).made, make(tmp_path).made) == (8, 0)


def test_what_a_killed_writer_left_is_removed(tmp_path):
    for name in (".manifest.json.1.partial", ".shard-00003.safetensors.1.partial"):
        (tmp_path / name).write_text("half a file")
    make(tmp_path)
    assert not list(tmp_path.glob(".*.partial"))


# -- folders of something else --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(n=51), "n is 50 there, and 51 here"),
        (dict(seed=1), "seed is 0 there, and 1 here"),
        (dict(shard=5), "shard is 4 there, and 5 here"),
        (dict(steps=5), "nfe is 7 there, and 9 here"),
        (dict(method="rk45", steps=None), 'method is "heun" there, and "rk45" here'),
        (dict(grid="karras"), "grid is "),
        (dict(variant=None, chart="data"), "chart is "),
        (dict(model=mixture_2d(ddim_ode.schedules.vp())), "model is "),
        (dict(dtype=torch.float64), 'network_dtype is null there, and "torch.float64" here'),
        (dict(cond=lambda index: dict(y=index)), "conditions is null there"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, changed, message):
    def written():  # but the lock, which older versions of filelock touch as they take it
        return {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != ".claims"}

    make(tmp_path)
    before = written()
    with pytest.raises(ValueError, match=f"{tmp_path}.* holds another run") as refusal:
        make(tmp_path, **changed)
    assert message in str(refusal.value)
    assert before == written()


def test_a_run_of_other_noise_is_not_gone_on_with(tmp_path, monkeypatch):
    with monkeypatch.context() as then:
        then.setattr("ddim_ode.generation.indexed.GENERATOR", "mersenne")
        make(tmp_path)
    with pytest.raises(ValueError, match='generator is "mersenne" there, and "philox" here'):
        make(tmp_path)


def test_a_plan_of_another_model_is_warned_of(tmp_path):
    plan = ddim_ode.plan("ddim", COSINE, [9.0, 1.0, 0.0])
    fitted = dataclasses.replace(plan, fit=dict(model_key="another's"))
    options = dict(plan=fitted, method=None, steps=None, sigma_max=None)
    with pytest.warns(UserWarning, match="ddim was calibrated on another model"):
        make(tmp_path / "a", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(tmp_path / "b", **options, key="mine")
        make(tmp_path / "c", **dict(options, plan=plan))


def test_a_key_stands_for_the_network_alone(tmp_path):
    def model(**options):
        return ddim_ode.Denoiser(lambda x, t: torch.tanh(x), COSINE, "x0", **options)

    given = dict(shape=(2,), key="tanh")
    make(tmp_path, model=model(), **given)
    assert make(tmp_path, model=model(), **given).made == 0
    with pytest.raises(ValueError, match="model is "):
        make(tmp_path, model=model(clip=0.1), **given)


def test_runs_that_differ_in_speed_alone_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net: net)
    make(tmp_path)
    assert make(tmp_path, batch=3, compile=True, progress=True).made == 0


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"is not empty \(thesis.txt\) and holds no manifest.json"):
        make(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        Shards.open(tmp_path)
    for folder in (tmp_path / "thesis.txt", *(["/proc/new"] if sys.platform == "linux" else [])):
        with pytest.raises(OSError, match=str(folder)):
            make(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kind": "samples"}', '{"kind": "x", "n": 1}', TWICE]
)
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json: damaged, or not of ddim-ode generate"):
        make(tmp_path)


KEYLESS = ddim_ode.Denoiser(lambda x, t: x, COSINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n=0), "n=0 must be a whole number >= 1"),
        (dict(seed=-1), "seed=-1"),
        (dict(batch=0), "batch=0"),
        (dict(batch="big"), "batch='big' must be a whole number >= 1, or 'auto'"),
        (dict(shard=0), "shard=0"),
        (dict(world_size=0), "world_size=0"),
        (dict(step=3), "unknown option 'step'; valid, nearest first: steps"),
        (dict(method="hun"), "unknown method 'hun'"),
        (dict(steps=None), "needs to know where to step"),
        (dict(model=lambda x, t: x), "model must be a Denoiser, got function"),
        (dict(model=KEYLESS, shape=(2,)), "give key="),
        (dict(model=KEYLESS), "give shape="),
        (dict(shared=dict(f=print)), "shared= cannot be told from another"),
        (dict(cond=dict(y=torch.zeros(3))), "one row per noise (50)"),
        (dict(compile=3), "compile=3"),
        (dict(cuda_graph=True), "cuda_graph=True records what a CUDA device does, and this is cpu"),
        (dict(plan=ddim_ode.plan("ddim", COSINE, [9.0, 0.0])), "both plan and method are given"),
    ],
)
def test_mistakes_are_explained_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_what_is_remembered_is_no_part_of_the_identity():
    a, b = (Run(3, 0, 2, (1,), dict(model="m"), about=dict(note=i)) for i in range(2))
    assert a.sha256 == b.sha256
    assert a.difference(b) is None
