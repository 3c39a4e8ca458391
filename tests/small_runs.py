"""A small run of many samples, for the tests that stop, divide and damage it."""

import functools

import torch
from problems import COSINE, mixture_2d

import ddim_ode
from ddim_ode.generation import generate
from ddim_ode.shards import Shards

MODEL = mixture_2d(COSINE)
N = 50


def make(folder, **options):
    """A run of N samples of MODEL in that folder, or the rest of it."""
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
