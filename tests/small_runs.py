"""A small run of many samples, for the tests that stop, divide and damage it."""

import errno
import functools

import filelock
import torch
from problems import COSINE, mixture_2d

import ddim_ode
from ddim_ode.generation import generate
from ddim_ode.shards import Shards

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
