"""Large runs: sample i is the same however the run is divided, stopped, damaged or shared."""

import contextlib
import errno
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from problems import COSINE, mixture_2d

import ddim_ode
from ddim_ode import claims as claims_module
from ddim_ode.claims import Claims
from ddim_ode.generation import generate
from ddim_ode.nets import weights
from ddim_ode.shards import Run, Shards

MODEL = mixture_2d(COSINE)
N = 50


class Labelled(torch.nn.Module):
    """ε that depends on x, t and a label; NaN for label 3."""

    def forward(self, x, t, y):
        shift = torch.where(y == 3, torch.nan, y.float())
        return torch.tanh(x + 1e-3 * t[:, None] + shift[:, None])


LABELLED = ddim_ode.Denoiser(Labelled(), COSINE)


def make(folder, **options):
    given = dict(model=MODEL, n=N, method="heun", steps=4, shard=4) | options
    return generate(out=folder, **given)


def samples(folder):
    """x (n, *), verified, and every index there exactly once."""
    found = list(Shards.open(folder))
    n = Shards.open(folder).run.n
    assert [i for shard in found for i in shard.samples] == list(range(n))
    return torch.cat([shard.x for shard in found])


@functools.cache
def expected(seed=0):
    x = ddim_ode.noise((2,), COSINE, seeds=range(seed, seed + N))
    return ddim_ode.sample(MODEL, x, "heun", steps=4).x


# -- the same samples, whatever the division -----------------------------------------------------
@pytest.mark.parametrize(("batch", "shard"), [(1, 1), (3, 7), (7, 3), (16, 4), ("auto", None)])
def test_batch_and_shard_do_not_matter(tmp_path, batch, shard):
    run = make(tmp_path, batch=batch, shard=shard, seed=5)
    assert (run.made, run.missing, run.status) == (N, 0, {"success": N})
    torch.testing.assert_close(samples(tmp_path), expected(5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("world", [2, 3, 20])
def test_without_locks_ranks_divide_the_shards(tmp_path, monkeypatch, world):
    """No overlap and no gap: each makes its own, and says what is missing until the last is done."""
    monkeypatch.setattr(claims_module, "fcntl", None)
    runs = [make(tmp_path, rank=rank, world_size=world) for rank in range(world)]
    own = [sum(min(4, N - 4 * k) for k in range(13) if k % world == r) for r in range(world)]
    assert [run.made for run in runs] == own
    assert [run.missing for run in runs] == [N - sum(own[: r + 1]) for r in range(world)]
    torch.testing.assert_close(samples(tmp_path), expected(), rtol=0, atol=1e-6)


def test_with_locks_whoever_is_there_makes_the_rest(tmp_path):
    assert make(tmp_path, rank=1, world_size=3).made == N


def test_what_another_made_between_our_look_and_our_claim_is_left_alone(tmp_path, monkeypatch):
    there, take = make(tmp_path / "other").shards, Claims.take

    def late(self, k, wait=False):
        if k == 4:
            shutil.copy(there.path(3), tmp_path / "mine")
        return take(self, k, wait)

    monkeypatch.setattr(Claims, "take", late)
    assert make(tmp_path / "mine").made == N - 4


def test_torchrun_is_read_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "fcntl", None)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert make(tmp_path).made == 24  # the odd ones of 13 shards
    with pytest.raises(ValueError, match="rank=2 must be below world_size=2"):
        make(tmp_path, rank=2)


@pytest.mark.parametrize("stopped", range(0, 14, 3))
def test_resuming_with_other_batches_and_processes(tmp_path, monkeypatch, stopped):
    write, written = Shards.write, []

    def interrupted(self, k, *rest):
        if len(written) == stopped:
            raise KeyboardInterrupt
        written.append(k)
        write(self, k, *rest)

    monkeypatch.setattr(Shards, "write", interrupted)
    with pytest.raises(KeyboardInterrupt) if stopped < 13 else pytest.MonkeyPatch.context():
        make(tmp_path, batch=9)
    monkeypatch.setattr(Shards, "write", write)
    ages = {k: Shards.open(tmp_path).path(k).stat().st_mtime_ns for k in written}
    run = make(tmp_path, batch=20, shard=None, rank=2, world_size=4)  # the folder's own shard
    assert run.made == N - sum(min(4, N - 4 * k) for k in written)
    assert ages == {k: run.shards.path(k).stat().st_mtime_ns for k in written}
    torch.testing.assert_close(samples(tmp_path), expected(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "atol"),
    [
        (dict(method="ddim", steps=6, eta=0.7), 1e-6),  # step noise, by seed
        (dict(method="ddpm", nfe=5), 1e-6),
        (dict(method="rk45", rtol=1e-4), 1e-3),
        (dict(method="torchdiffeq:rk4", steps=6), 1e-5),
    ],
)
def test_every_kind_of_solver(tmp_path, options, atol):
    options = dict(steps=None) | options
    for name, batch in (("a", 2), ("b", 8)):
        make(tmp_path / name, n=16, batch=batch, shard=2, **options)
    torch.testing.assert_close(samples(tmp_path / "a"), samples(tmp_path / "b"), rtol=0, atol=atol)


@pytest.mark.parametrize(
    "options", [dict(method="scipy:RK45"), dict(method="rk45", error_norm="batch")]
)
def test_a_solver_that_couples_samples_has_each_of_them_alone(tmp_path, options):
    """Its steps are those of the batch, so that sample i would depend on who shares it."""
    with pytest.raises(ValueError, match="its company: give batch=1"):
        make(tmp_path, steps=None, **options)
    make(tmp_path, n=3, steps=None, batch=1, **options)
    x = ddim_ode.noise((2,), COSINE, seeds=[1])
    alone = ddim_ode.sample(MODEL, x, **options).x
    torch.testing.assert_close(samples(tmp_path)[1:2], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["rows", "function"])
def test_conditions_go_by_index_and_failures_are_recorded(tmp_path, kind):
    labels = torch.arange(N) % 5
    cond = dict(y=labels) if kind == "rows" else lambda index: dict(y=index % 5)
    options = dict(model=LABELLED, shape=(2,), cond=cond, batch=6)
    run = make(tmp_path, **options)
    assert run.status == {"success": N - 10, "non_finite": 10}
    found = list(run.shards)
    assert torch.equal(torch.cat([shard.cond["y"] for shard in found]), labels)
    status = [word for shard in found for word in shard.status]
    assert [word != "success" for word in status] == (labels == 3).tolist()
    x = ddim_ode.noise((2,), COSINE, seeds=range(N))
    whole = ddim_ode.sample(LABELLED, x, "heun", steps=4, cond=dict(y=labels)).x
    torch.testing.assert_close(
        torch.cat([shard.x for shard in found]), whole, rtol=0, atol=1e-6, equal_nan=True
    )
    assert make(tmp_path, **options).made == 0  # a failed sample is a result


@pytest.mark.parametrize("family", ["ve", "flow"])
def test_noise_starts_at_the_level_of_the_plan(tmp_path, family):
    schedule = ddim_ode.schedules.ve(80.0) if family == "ve" else ddim_ode.schedules.flow()
    model = mixture_2d(schedule, "v" if family == "ve" else "flow")
    make(tmp_path, model=model, n=8, sigma_max=20.0)
    x = ddim_ode.noise((2,), schedule, seeds=range(8), sigma=20.0)
    end = ddim_ode.sample(model, x, "heun", steps=4, sigma_max=20.0).x
    torch.testing.assert_close(samples(tmp_path), end, rtol=0, atol=1e-5)


# -- processes that die ---------------------------------------------------------------------------
PROGRAM = """
import sys, time, torch, ddim_ode
torch.set_num_threads(1)
def net(x, t):
    time.sleep(0.01)
    return torch.tanh(x + 1e-3 * t[:, None])
model = ddim_ode.Denoiser(net, ddim_ode.schedules.cosine())
run = ddim_ode.generate(model, 240, sys.argv[1], "ddim", steps=3, shape=(2,), key="slow", batch=4, shard=2)
print(run.made, run.remade)
"""


def test_sigkill_loses_the_batch_in_flight_and_nobody_makes_a_sample_twice(tmp_path):
    """One process killed; then two at once, one of them killed with a claim: the other takes over."""
    alive = []

    def start():
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        alive.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return alive[-1]

    def kill_after(process, shards):
        while len(there()) < shards:
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(random.Random(shards).uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        return there()

    def there():
        return {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*.safetensors")}

    try:
        before = kill_after(start(), 8)
        assert 8 <= len(before) < 120
        first, second = start(), start()
        between = kill_after(first, 50)
        assert len(between) < 120
        out, _ = second.communicate(timeout=600)
    finally:
        for process in alive:
            process.kill()
    assert second.returncode == 0
    made, remade = map(int, out.split())
    assert remade == 0
    # What the killed one finished is the only work that this one did not do.
    assert 240 - 2 * len(between) <= made <= 240 - 2 * len(before)
    after = there()
    assert before.items() <= between.items() <= after.items()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".claims",
        "manifest.json",
        *sorted(after),
    ]
    x = samples(tmp_path)
    assert len({row.numpy().tobytes() for row in x}) == 240
    model = ddim_ode.Denoiser(lambda x, t: torch.tanh(x + 1e-3 * t[:, None]), COSINE)
    start_noise = ddim_ode.noise((2,), COSINE, seeds=range(240))
    torch.testing.assert_close(x, ddim_ode.sample(model, start_noise, steps=3).x, rtol=0, atol=1e-6)


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
            torch.testing.assert_close(shards.read(1).x, expected()[3:6], rtol=0, atol=1e-6)
            found += 1
    assert found < 5
    for length in (0, 7, 8, 100, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match="shard-00001"):
            shards.read(1)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "of another index", "no shard"])
def test_a_damaged_shard_is_made_again(tmp_path, damage):
    shards = make(tmp_path).shards
    whole, path = samples(tmp_path), shards.path(5)
    good = path.read_bytes()
    bad = {
        "truncated": good[:-3],
        "flipped": good[:-3] + bytes([good[-3] ^ 16]) + good[-2:],
        "of another index": shards.path(4).read_bytes(),
        "no shard": b"",
    }[damage]
    path.write_bytes(bad)
    with pytest.raises(ValueError, match="shard-00005"):
        samples(tmp_path)
    run = make(tmp_path)
    assert (run.made, run.remade) == (4, 1)
    assert torch.equal(samples(tmp_path), whole)


def test_a_shard_that_is_missing_is_named(tmp_path):
    shards = make(tmp_path).shards
    shards.path(7).unlink()
    shards.path(9).unlink()
    with pytest.raises(ValueError, match=r"shard-00007\S+: missing, one of 2 shards that are"):
        list(shards)
    assert (make(tmp_path).made, make(tmp_path).made) == (8, 0)


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"disk is full: 12 of 50 samples are kept.*same command"
    ) as stop:
        make(tmp_path)
    assert stop.value.errno == errno.ENOSPC
    assert not list(tmp_path.glob(".*.partial"))
    monkeypatch.setattr(weights.os, "fsync", fsync)
    assert make(tmp_path).made == N - 12
    torch.testing.assert_close(samples(tmp_path), expected(), rtol=0, atol=1e-6)


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
        (dict(method="midpoint"), 'method is "heun" there, and "midpoint" here'),
        (dict(grid="karras"), "grid is "),
        (dict(variant=None, chart="data"), "chart is "),
        (dict(model=mixture_2d(ddim_ode.schedules.vp())), "model is "),
        (dict(dtype=torch.float64), 'network_dtype is null there, and "torch.float64" here'),
        (dict(cond=lambda index: dict(y=index)), "conditions is null there"),
        (dict(method="rk45", steps=None), 'method is "heun" there, and "rk45" here'),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, changed, message):
    make(tmp_path)
    whole = samples(tmp_path)
    with pytest.raises(ValueError, match="holds another run") as refusal:
        make(tmp_path, **changed)
    assert message in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)
    assert torch.equal(samples(tmp_path), whole)


def test_runs_that_differ_in_speed_alone_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net: net)
    make(tmp_path)
    assert make(tmp_path, batch=3, compile=True, progress=True).made == 0


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match=r"is not empty \(thesis.txt\) and holds no manifest.json"):
        make(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"kind": "samples"}', '{"kind": "x", "n": 1}']
)
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json: damaged, or not of ddim-ode generate"):
        make(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that not even root can write to")
@pytest.mark.parametrize("folder", ["/proc/new", "/proc/self"])
def test_a_folder_that_cannot_be_written_is_named(folder):
    with pytest.raises(OSError, match=folder):
        make(folder)


def test_a_folder_that_cannot_be_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        Shards.open(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n=0), "n=0 must be a whole number >= 1"),
        (dict(n=2.5), "n=2.5"),
        (dict(seed=-1), "seed=-1"),
        (dict(batch=0), "batch=0"),
        (dict(batch="big"), "batch='big' must be a whole number >= 1, or 'auto'"),
        (dict(shard=0), "shard=0"),
        (dict(world_size=0), "world_size=0"),
        (dict(step=3), "unknown option 'step'; valid, nearest first: steps"),
        (dict(method="hun"), "unknown method 'hun'"),
        (dict(steps=None), "needs to know where to step"),
        (dict(model=lambda x, t: x), "model must be a Denoiser, got function"),
        (dict(model=ddim_ode.Denoiser(lambda x, t: x, COSINE), shape=(2,)), "give key="),
        (dict(model=ddim_ode.Denoiser(lambda x, t: x, COSINE)), "give shape="),
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


def test_the_manifest_says_what_decides_the_samples(tmp_path):
    make(tmp_path, about=dict(note="a trial"))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [manifest[k] for k in ("n", "seed", "shard", "shape")] == [N, 0, 4, [2]]
    assert manifest["decides"]["schedule"] == COSINE.fingerprint
    assert manifest["decides"]["solver"]["nfe"] == 7
    assert manifest["about"]["note"] == "a trial"


def test_what_is_remembered_is_no_part_of_the_identity():
    a, b = (Run(3, 0, 2, (1,), dict(model="m"), about=dict(note=i)) for i in range(2))
    assert a.sha256 == b.sha256
    assert a.difference(b) is None


HOLDER = """
import sys, time, pathlib
from ddim_ode.claims import Claims
with Claims(pathlib.Path(sys.argv[1])) as claims:
    print(claims.take(3), flush=True)
    time.sleep(60)
"""


def test_a_claim_is_one_process_s_until_it_dies(tmp_path):
    path = tmp_path / "claims"
    command = [sys.executable, "-c", HOLDER, str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "True\n"
        with Claims(path) as claims:
            assert claims.work
            assert [claims.take(k) for k in (2, 3, 4)] == [True, False, True]
            holder.kill()
            assert claims.take(3, wait=True)
    finally:
        holder.kill()
        holder.communicate()
