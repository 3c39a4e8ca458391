"""Noise by seed: another for every seed and stream, and the same numbers in every dtype."""

import itertools

import numpy as np
import pytest
import torch
from refusals import expect, sample

import ddim_ode
from ddim_ode import schedules
from ddim_ode.denoising.seeding import StepNoise, generator, torch_seed
from ddim_ode.latents.divergence import draw_probes

COSINE = schedules.cosine()
MODEL = ddim_ode.exact.gaussian([1.0, 0.0], [[0.25, 0.0], [0.0, 1.0]], COSINE)
TOP = 2**64 - 1


def philox(key, counter, rounds=10):
    """Philox4x64 of Salmon et al. 2011, in whole numbers."""
    c, (k0, k1) = counter, key
    for _ in range(rounds):
        high0, low0 = divmod(c[0] * 0xD2E7470EE14C6C93, 2**64)
        high2, low2 = divmod(c[2] * 0xCA5A826395121157, 2**64)
        c = [high2 ^ c[1] ^ k0, low2, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % 2**64, (k1 + 0xBB67AE8584CAA73B) % 2**64
    return c


@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (12379, 1), (TOP, 3)])
def test_seed_and_stream_are_the_words_of_a_philox_key(seed, stream):
    assert philox([0, 0], [0] * 4)[0] == 0x16554D9ECA36314C  # the authors' own test vector
    raw = generator(seed, stream).bit_generator.random_raw(4).tolist()
    assert raw == philox([seed, stream], [1, 0, 0, 0])


def test_as_many_seeds_have_as_many_noises():
    """Also those that are equal in 32 bits, and a pair that once met there."""
    seeds = [*range(50_000), 2**32, 2**32 + 1, 2**63, 2**63 + 5, TOP]
    drawn = ddim_ode.noise((2,), COSINE, seeds, dtype=torch.float64)
    assert len(np.unique(drawn.numpy(), axis=0)) == len(seeds)
    assert not torch.equal(drawn[12379], drawn[19544])


def test_neighbouring_seeds_and_streams_are_independent():
    seeds, n = [0, 1, 2, 2**32, 2**32 + 1], 4000
    rows = np.stack([generator(s, k).standard_normal(n) for s in seeds for k in range(4)])
    np.testing.assert_allclose(np.corrcoef(rows), np.eye(len(rows)), atol=4.5 / n**0.5)
    np.testing.assert_allclose(rows.mean(1), 0, atol=4.5 / n**0.5)
    np.testing.assert_allclose(rows.var(1), 1, atol=6.5 / n**0.5)
    x = torch.zeros(1, 8, dtype=torch.float64)  # and each use is of a stream of its own
    drawn = (ddim_ode.noise((8,), COSINE, [0], dtype=x.dtype), StepNoise([0], x)())
    for stream, made in enumerate(drawn):
        np.testing.assert_array_equal(made[0], rows[stream, :8])


def test_the_noise_of_a_seed_is_what_it_was():
    """A change of these numbers is a change of every seed, and of ``seeding.GENERATOR``."""
    found = ddim_ode.noise((2,), COSINE, [0, 7], dtype=torch.float64).flatten()
    kept = [0.15929546600623282, -1.7741885208017214, -1.7496944402112695, 0.5745441092559128]
    np.testing.assert_allclose(found, kept, rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("schedule", [COSINE, schedules.ve(80.0), schedules.ve(380.7)])
def test_narrower_noise_is_the_wide_noise_rounded(dtype, schedule):
    wide, narrow = (
        ddim_ode.noise((3, 4), schedule, range(40), sigma=7.3, dtype=d)
        for d in (torch.float64, dtype)
    )
    assert torch.equal(narrow, wide.to(dtype))


def test_all_other_draws_too_are_the_wide_ones_rounded():
    x = torch.zeros(3, 2, 5)
    wide, narrow = (StepNoise([3, 1, 4], like) for like in (x.double(), x))
    for _ in range(3):
        assert torch.equal(narrow(), wide().float())
    wide, narrow = (draw_probes([3, 1, 4], 2, like) for like in (x.double(), x))
    assert torch.equal(narrow, wide.float())
    assert set(narrow.flatten().tolist()) == {-1.0, 1.0}
    wide, narrow = (ddim_ode.dequantized(like, [3, 1, 4]) for like in (x.double(), x))
    assert torch.equal(narrow, wide.float())


def test_seeds_drawn_for_the_caller_are_wide():
    seeds = ddim_ode.sample(MODEL, torch.zeros(64, 2), "ddpm", steps=2).seeds
    assert max(seeds) > 2**60


def test_the_uses_of_torchs_own_generators_are_distinct():
    """A training step's, of which a run has many."""
    found = {torch_seed(0, 1, k) for k in range(20_000)}
    assert len(found) == 20_000
    assert max(found) < 2**32


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([-1], "seed=-1 must be a whole number >= 0"),
        ([2**64], f"seed={2**64} must be .* <= {TOP}"),
        (np.array([1.0]), "must be a whole number"),
        ([True], "seed=True must"),
        (torch.tensor([True]), r"seed=tensor\(True\) must"),
        (["1"], "seed='1' must"),
        ("12", "seeds='12' must be a sequence"),
        (5, "seeds=5 must be a sequence"),
        (itertools.count(), "must be a sequence"),
        (range(10**20), "are too many; take a part"),
        (range(10**18), "does not fit into memory; draw it for fewer seeds at a time"),
        (range(2**64 - 1, 2**64 + 1), f"seed={2**64} must be"),
    ],
)
def test_what_is_no_seed_is_refused(seeds, message):
    expect(lambda: ddim_ode.noise((2,), COSINE, seeds), message)
    x = torch.zeros(1, 2)
    expect(sample(MODEL, x, steps=2, seeds=seeds), f"{message}|batch of 1; give one")


def test_whole_numbers_of_any_kind_are_seeds():
    kinds = (np.arange(3), torch.arange(3), range(3), (np.uint64(0), np.int8(1), 2))
    first = ddim_ode.noise((2,), COSINE, [0, 1, 2])
    for seeds in kinds:
        assert torch.equal(ddim_ode.noise((2,), COSINE, seeds), first)
    assert ddim_ode.noise((2,), COSINE, []).shape == (0, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda seed: ddim_ode.compare(MODEL, "ddim", 2, n=3, seed=seed, progress=False),
        lambda seed: ddim_ode.calibrate(MODEL, 2, n=3, seed=seed, progress=False),
        lambda seed: ddim_ode.generate(MODEL, 3, "never made", steps=2, seed=seed),
        lambda seed: ddim_ode.diagnose(MODEL, n=3, seed=seed),
    ],
)
def test_the_last_of_a_row_of_seeds_is_one_too(call):
    expect(lambda: call(TOP - 1), f"seed={TOP - 1} must be a whole number >= 0 and <= ")
