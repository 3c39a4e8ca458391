"""Large runs: threads, processes and failures on one folder at once; nothing of another's is touched."""

import errno
import os
import random
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from problems import COSINE
from small_runs import after, expected, make, numbered_one, samples, together

import ddim_ode
from ddim_ode.generation.shards import Shards


def slow(x, t):
    time.sleep(0.002)
    return torch.tanh(x + 1e-3 * t[:, None])


SLOW = ddim_ode.Denoiser(slow, COSINE, shape=(2,))


def interfering(at, act):
    """The same, which does that at its call of that number; and its calls."""
    calls = []

    def net(x, t):
        calls.append(1)
        if len(calls) == at:
            act()
        return slow(x, t)

    return ddim_ode.Denoiser(net, COSINE, shape=(2,)), calls


def make_slow(folder, model=SLOW, **options):
    given = dict(n=60, steps=3, key="slow", batch=5, shard=5)
    return ddim_ode.generate(model, out=folder, method="ddim", **(given | options))


def check(folder, n=60):
    x = samples(folder)
    noise = ddim_ode.noise((2,), COSINE, seeds=range(n))
    torch.testing.assert_close(x, ddim_ode.sample(SLOW, noise, steps=3).x, rtol=0, atol=1e-5)
    assert len({row.numpy().tobytes() for row in x}) == n
    assert not list(folder.glob(".*.partial"))


# -- together -------------------------------------------------------------------------------------
def test_threads_share_a_folder(tmp_path):
    """One thread a device is a usual launcher; each sample is made once."""
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(make_slow, [tmp_path] * 4))
    assert sum(run.made for run in runs) == 60
    assert {(run.missing, run.remade) for run in runs} == {(0, 0)}
    check(tmp_path)


def test_processes_of_one_number_share_a_folder(tmp_path):
    """As those of two containers on one disk may have."""
    work = numbered_one(lambda: make_slow(tmp_path).made)
    (one, first), (other, second) = (said.split() for said in together(work, work))
    assert (one, other) == ("1", "1")
    assert int(first) + int(second) == 60
    check(tmp_path)


def fails(x, t):
    raise ValueError("not today")


FAILING = ddim_ode.Denoiser(fails, COSINE, shape=(2,))


def test_one_that_fails_takes_nothing_from_the_other(tmp_path):
    """Started together, as torchrun does: one dies at its first call, the other makes all."""
    draw = random.Random(0)
    for i in range(20):
        folder, delay = tmp_path / str(i), draw.uniform(-0.012, 0.012)
        bad = after(max(0, delay), lambda: make_slow(folder, FAILING, n=10).made)  # noqa: B023
        good = after(max(0, -delay), lambda: make_slow(folder, n=10).made)  # noqa: B023
        failed, made = together(bad, good)
        assert made == "10"
        assert failed in ("ValueError: not today", "0")  # it may come when all is made
        check(folder, n=10)


def test_one_that_fails_while_the_other_has_only_read_the_manifest(tmp_path, monkeypatch):
    """The moment between: the run is there, and not yet a claim on any of it."""

    present, others = Shards.present, []

    def late(self):
        if not others:
            others.append(1)
            with pytest.raises(ValueError, match="not today"):
                make_slow(tmp_path, FAILING)
        return present(self)

    monkeypatch.setattr(Shards, "present", late)
    assert make_slow(tmp_path).made == 60
    check(tmp_path)


# -- whose folder it is ---------------------------------------------------------------------------
def test_a_run_without_samples_gives_way_once_nobody_is_at_it(tmp_path):
    def other_run(x, t):
        with pytest.raises(ValueError, match="holds another run: seed is 0 there, and 1 here"):
            make_slow(tmp_path, seed=1)
        raise RuntimeError("not today")

    with pytest.raises(RuntimeError, match="not today"):
        make_slow(tmp_path, ddim_ode.Denoiser(other_run, COSINE, shape=(2,)))
    assert make_slow(tmp_path, seed=1).made == 60
    with pytest.raises(ValueError, match="holds another run: seed is 1 there, and 0 here"):
        make_slow(tmp_path)


def test_a_run_that_another_replaced_stops(tmp_path):
    """Started at the same moment with another seed: one of the two has the folder."""

    def replace():
        (tmp_path / "manifest.json").unlink()
        make_slow(tmp_path / "other", seed=1)
        shutil.copy(tmp_path / "other/manifest.json", tmp_path)

    model, calls = interfering(1, replace)
    with pytest.raises(ValueError, match="holds another run: seed is 1 there, and 0 here"):
        make_slow(tmp_path, model)
    assert len(calls) == 3  # the shard in flight


def test_a_whole_shard_of_another_run_is_not_removed(tmp_path):
    mine, other = (make(tmp_path / name, seed=seed).shards for name, seed in (("a", 0), ("b", 1)))
    shutil.copy(other.path(3), mine.path(3))
    with pytest.raises(
        ValueError, match=r"shard-00003\S+: is whole, and manifest.json damaged, or of"
    ):
        make(tmp_path / "a")
    assert mine.path(3).read_bytes() == other.path(3).read_bytes()


# -- what vanishes --------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [7, 36])  # the last
def test_a_manifest_that_vanishes_is_written_again(tmp_path, at):
    model, _ = interfering(at, (tmp_path / "manifest.json").unlink)
    assert make_slow(tmp_path, model).made == 60
    check(tmp_path)
    assert make_slow(tmp_path).made == 0


def test_a_manifest_that_is_lost_afterwards_is_written_again(tmp_path):
    make(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="holds no manifest"):
        make(tmp_path, seed=1)
    with pytest.raises(ValueError, match="with its shard="):
        make(tmp_path, shard=5)
    assert make(tmp_path).made == 0
    torch.testing.assert_close(samples(tmp_path), expected(), rtol=0, atol=1e-5)


def test_a_folder_that_vanishes_stops_the_run(tmp_path):
    folder = tmp_path / "run"
    model, calls = interfering(7, lambda: shutil.rmtree(folder))
    with pytest.raises(FileNotFoundError, match=r"the folder was removed.*/run'$"):
        make_slow(folder, model)
    assert not folder.exists()
    assert len(calls) == 9


def test_shards_that_vanish_are_made_again(tmp_path):
    def remove():
        for path in tmp_path.glob("shard-0000[0-4].safetensors"):
            path.unlink()

    assert make_slow(tmp_path, interfering(30, remove)[0]).made == 85
    check(tmp_path)


# -- what cannot be read --------------------------------------------------------------------------
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("name", ["shard-00005.safetensors", "manifest.json"])
def test_what_cannot_be_read_is_named_and_left_alone(tmp_path, monkeypatch, name, number):
    """Not at this moment: of another user, or on a disk that fails. Root reads all, so open says it."""
    make(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real = open

    def unreadable(path, *args, **options):
        if os.path.basename(str(path)) == name:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **options)

    monkeypatch.setattr("builtins.open", unreadable)
    for call in (lambda: make(tmp_path), lambda: list(Shards.open(tmp_path))):
        with pytest.raises(OSError, match=f"cannot be read: .*{name}'") as refusal:
            call()
        assert refusal.value.errno == number
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert make(tmp_path).made == 0


@pytest.mark.parametrize("kind", ["folder", "link to itself"])
def test_what_is_no_file_is_named_and_left_alone(tmp_path, kind):
    path = make(tmp_path).shards.path(5)
    path.unlink()
    path.mkdir() if kind == "folder" else path.symlink_to(path.name)
    with pytest.raises(OSError, match=r"cannot be read: .*shard-00005.safetensors'"):
        make(tmp_path)
    assert os.path.lexists(path)


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="to be somebody else needs root"
)
def test_shards_of_another_user_are_left_alone(tmp_path):
    shards = make(tmp_path).shards
    before = {k: shards.path(k).stat().st_mtime_ns for k in range(len(shards))}
    ours = [p for p in tmp_path.parents if p.is_relative_to(tempfile.gettempdir())][:-1]
    for path in (*tmp_path.iterdir(), tmp_path, *ours):
        path.chmod(0o600 if path.name.startswith("shard") else 0o777)

    def as_nobody():
        os.setegid(65534)
        os.seteuid(65534)
        make(tmp_path)

    (said,) = together(as_nobody)
    assert said == (
        f"PermissionError: [Errno 13] cannot be read: Permission denied: '{shards.path(0)}'"
    )
    assert before == {k: shards.path(k).stat().st_mtime_ns for k in range(len(shards))}
