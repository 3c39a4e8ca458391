"""Large runs: sample i is the same however the run is divided, stopped, damaged or shared."""

import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
from problems import COSINE, mixture_2d
from small_runs import MODEL, SOLVER, N, expected, make, samples, without_locks

import ddim_ode
from ddim_ode.generation.locks import Claims
from ddim_ode.generation.shards import Shards


class Labelled(torch.nn.Module):
    """ε that depends on x, t and a label; NaN for label 3."""

    def forward(self, x, t, y):
        shift = torch.where(y == 3, torch.nan, y.float())
        return torch.tanh(x + 1e-3 * t[:, None] + shift[:, None])


LABELLED = ddim_ode.Denoiser(Labelled(), COSINE)


# -- the same samples, whatever the division -----------------------------------------------------
@pytest.mark.parametrize(("batch", "shard"), [(1, 1), (3, 7), (7, 3), (16, 4), ("auto", None)])
def test_batch_and_shard_do_not_matter(tmp_path, batch, shard):
    run = make(tmp_path, batch=batch, shard=shard, seed=5)
    assert (run.made, run.missing, run.status) == (N, 0, {"success": N})
    torch.testing.assert_close(samples(tmp_path), expected(5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("world", [2, 3, 20])
def test_without_locks_ranks_divide_the_shards(tmp_path, monkeypatch, world):
    """No overlap and no gap: each makes its own, and says what is missing until the last is done."""
    without_locks(monkeypatch)
    runs = [make(tmp_path, rank=rank, world_size=world) for rank in range(world)]
    own = [sum(min(4, N - 4 * k) for k in range(13) if k % world == r) for r in range(world)]
    assert [run.made for run in runs] == own
    assert [run.missing for run in runs] == [N - sum(own[: r + 1]) for r in range(world)]
    torch.testing.assert_close(samples(tmp_path), expected(), rtol=0, atol=1e-5)


def test_what_another_made_between_our_look_and_our_claim_is_left_alone(tmp_path, monkeypatch):
    there, take = make(tmp_path / "other").shards, Claims.take

    def late(self, k):
        if k == 3:
            shutil.copy(there.path(3), tmp_path / "mine")
        return take(self, k)

    monkeypatch.setattr(Claims, "take", late)
    assert make(tmp_path / "mine").made == N - 4


def test_torchrun_is_read_from_the_environment(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert make(tmp_path).made == 24  # the odd ones of 13 shards
    with pytest.raises(ValueError, match="rank=2 must be below world_size=2"):
        make(tmp_path, rank=2)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="RANK='first' in the environment must be a whole number"):
        make(tmp_path)


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
    torch.testing.assert_close(samples(tmp_path), expected(), rtol=0, atol=1e-5)


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
    x = ddim_ode.noise((2,), COSINE, seeds=[1], sigma=20.0)
    alone = ddim_ode.sample(MODEL, x, sigma_max=20.0, **options).x
    torch.testing.assert_close(samples(tmp_path)[1:2], alone, rtol=0, atol=1e-5)


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
    x = ddim_ode.noise((2,), COSINE, seeds=range(N), sigma=20.0)
    whole = ddim_ode.sample(LABELLED, x, **SOLVER, cond=dict(y=labels)).x
    torch.testing.assert_close(
        torch.cat([shard.x for shard in found]), whole, rtol=0, atol=1e-5, equal_nan=True
    )
    assert make(tmp_path, **options).made == 0  # a failed sample is a result


@pytest.mark.parametrize("family", ["ve", "flow"])
def test_noise_starts_at_the_level_of_the_plan(tmp_path, family):
    schedule = ddim_ode.schedules.ve(80.0) if family == "ve" else ddim_ode.schedules.flow()
    model = mixture_2d(schedule, "v" if family == "ve" else "flow")
    make(tmp_path, model=model, n=8, sigma_max=20.0)
    x = ddim_ode.noise((2,), schedule, seeds=range(8), sigma=20.0)
    end = ddim_ode.sample(model, x, **SOLVER).x
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

    def there():
        return {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*.safetensors")}

    def kill_after(process, shards):
        while len(there()) < shards:
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(random.Random(shards).uniform(0, 0.05))
        process.kill()
        process.wait()
        return there()

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
    left = {p.name for p in tmp_path.iterdir() if not p.name.startswith(".claims")}
    assert left == {"manifest.json", *after}
    x = samples(tmp_path)
    assert len({row.numpy().tobytes() for row in x}) == 240
    model = ddim_ode.Denoiser(lambda x, t: torch.tanh(x + 1e-3 * t[:, None]), COSINE)
    start_noise = ddim_ode.noise((2,), COSINE, seeds=range(240))
    torch.testing.assert_close(x, ddim_ode.sample(model, start_noise, steps=3).x, rtol=0, atol=1e-5)
