"""A small run of many samples, for the tests that stop, divide and damage it."""

import ctypes
import errno
import functools
import os
import time

import filelock
import numpy as np
import torch
from problems import COSINE, mixture_2d

import ddim_ode
from ddim_ode.cli.models import load_model
from ddim_ode.evaluate.features import IDENTITY
from ddim_ode.evaluate.statistics import FeatureStatistics
from ddim_ode.generation.generation import generate
from ddim_ode.generation.shards import Shards

MODEL = mixture_2d(COSINE)
N = 50
# From where rounding, which depends on the batch on some processors, is not magnified (by σ).
SOLVER = dict(method="heun", steps=4, sigma_max=20.0)


def make(folder, **options):
    """A run of N samples of MODEL in that folder, or the rest of it."""
    given = dict(model=MODEL, n=N, shard=4, **SOLVER) | options
    return generate(out=folder, **given)


def samples(folder):
    """x (n, *), verified, and every index there exactly once."""
    found = list(Shards.open(folder))
    n = Shards.open(folder).run.n
    assert [i for shard in found for i in shard.samples] == list(range(n))
    return torch.cat([shard.x for shard in found])


@functools.cache
def expected(seed=0):
    x = ddim_ode.noise((2,), COSINE, seeds=range(seed, seed + N), sigma=20.0)
    return ddim_ode.sample(MODEL, x, **SOLVER).x


def without_locks(monkeypatch):
    """A file system that has none."""

    def acquire(self):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)


def together(*works):
    """What each returns, or its error, as text: each in a process of its own, all begun at once."""
    waiting, begin = os.pipe()
    started = []
    for work in works:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(begin)
            os.read(waiting, 1)
            os.write(write, _said(work).encode())
            os._exit(0)
        os.close(write)
        started.append((pid, read))
    os.close(begin)
    os.close(waiting)
    said = []
    for pid, read in started:
        with open(read) as file:
            said.append(file.read())
        os.waitpid(pid, 0)
    return said


def _said(work):
    try:
        return str(work())
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def after(seconds, work):
    """The same, later."""

    def later():
        time.sleep(seconds)
        return work()

    return later


def numbered_one(work):
    """The same in a process whose number is 1, as in a container: in a namespace of its own where we may
    make one, else by what os.getpid says."""

    def inside():
        new_pid_namespace = 0x20000000
        libc = ctypes.CDLL(None)
        if not hasattr(libc, "unshare") or libc.unshare(new_pid_namespace):
            os.getpid = lambda: 1
            return f"{os.getpid()} {work()}"
        return together(lambda: f"{os.getpid()} {work()}")[0]

    return inside


def some_failing(folder, n=60, shard=7, failing=()):
    """Shards of samples of the mixture of the command line, NaN at these indices."""
    model = load_model("mixture").denoiser

    class Net(torch.nn.Module):
        def forward(self, x, t, bad):
            return torch.where(bad[:, None], torch.nan, model.net(x, t))

    def cond(index):
        return dict(bad=torch.isin(index, torch.tensor(list(failing) or [-1])))

    broken = ddim_ode.Denoiser(Net(), model.schedule, time_offset=model.time_offset)
    return generate(broken, n, folder, steps=4, shape=(2,), shard=shard, cond=cond).shards


def reference(keep=10_000):
    """What such samples are compared with."""
    rows = np.random.default_rng(1).standard_normal((500, 2))
    return FeatureStatistics.of(rows, IDENTITY, keep=keep)
