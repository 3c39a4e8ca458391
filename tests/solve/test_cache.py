"""compare's cache: what is in it is believed only if it says itself that it is what is looked for."""

import errno
import functools
import json
import os
import random
import struct
import warnings

import numpy as np
import pytest
import torch
from problems import COSINE, Counting, mixture_2d

import ddim_ode
from ddim_ode.nets import weights
from ddim_ode.solve.cache import Store
from ddim_ode.solve.near import Near, of_rows

NEAR = Near.of([1.0, 2.0], 1e-6)

DAMAGES = int(os.environ.get("FUZZ", "300"))


def errors(folder, model=None, **options):
    given = dict(nfe=[5], n=4, reference=1e-2, cache=folder, progress=False) | options
    made = ddim_ode.compare(model or mixture_2d(COSINE), ["ddim", "heun"], **given)
    return [row["error"] for row in made.rows]


PLAIN = functools.cache(errors)  # of None: without a cache


def swapped(folder):
    a, b = sorted(folder.glob("cell-*"))
    content = a.read_bytes(), b.read_bytes()
    a.write_bytes(content[1]), b.write_bytes(content[0])
    return 2


def bit(folder):
    path = next(folder.glob("solution-*"))
    path.write_bytes(path.read_bytes()[:-2] + bytes([path.read_bytes()[-2] ^ 1]) + b"\0")
    return 1


def header(key, value):
    def change(folder):
        path = next(folder.glob("cell-*"))
        data = path.read_bytes()
        (n,) = struct.unpack("<Q", data[:8])
        head = json.loads(data[8 : 8 + n])
        config = json.loads(head["__metadata__"]["config"])
        config["content"][key] = value
        head["__metadata__"]["config"] = json.dumps(config)
        text = json.dumps(head).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + n :])
        return 1

    return change


def no_record(folder):
    weights.write(next(folder.glob("cell-*")), {"errors": torch.zeros(4)}, {"kind": "unet"})
    return 1


@pytest.mark.parametrize(
    "damage",
    [swapped, bit, no_record, header("later", 1), header("status", 5), header("net_evals", "many")],
    ids=["swapped", "bit", "no record", "another key", "status", "net_evals"],
)
def test_what_is_not_a_record_is_warned_of_and_computed_again(tmp_path, damage):
    true = errors(tmp_path)
    damaged = damage(tmp_path)
    with pytest.warns(UserWarning, match="computed and written again") as said:
        assert errors(tmp_path) == true
    assert len(said) == damaged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert errors(tmp_path) == true


def test_no_damaged_record_is_believed(tmp_path):
    """Nor is any a foreign error: bytes changed, lost and added anywhere."""
    store, rng = Store(tmp_path), random.Random(0)
    tensors, config = {"x": torch.arange(6.0)}, dict(status=["success"], seconds=0.5, steps=None)
    store.put("cell", ["a"], NEAR, tensors, config)
    (path,) = tmp_path.iterdir()
    good, believed = path.read_bytes(), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(DAMAGES):
            bad = bytearray(good)
            for _ in range(rng.choice([1, 1, 1, 5, 50])):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            bad = bad[: rng.randrange(len(bad))] if rng.random() < 0.2 else bad
            bad = bad + rng.randbytes(9) if rng.random() < 0.1 else bad
            path.write_bytes(bad)
            if found := store.get("cell", ["a"], NEAR):
                believed += 1  # as where a blank of the header became another one
                torch.testing.assert_close(found[0]["x"], tensors["x"], rtol=0, atol=0)
                assert found[1] == config
    assert believed < DAMAGES / 30


def test_a_record_is_found_by_numbers_that_are_the_same_up_to_rounding(tmp_path):
    store = Store(tmp_path)
    for k, values in enumerate(([1.0, 2.0], [1.0, 2.1], [1.0, np.inf], [1.0, np.nan])):
        store.put("cell", ["a"], Near.of(values, 1e-6), {}, dict(k=k))
    store.put("cell", ["b"], NEAR, {}, dict(k=9))

    def found(*values):
        record = store.get("cell", ["a"], Near.of(values, 1e-6))
        return record and record[1]["k"]

    assert [found(1.0, 2.0), found(1 + 1e-7, 2.0), found(1.0, 2.1 - 1e-7)] == [0, 0, 1]
    assert [found(1.0, np.inf), found(1.0, np.nan)] == [2, 3]
    assert [found(1.0, 2.2), found(1.0), found(1.0, -np.inf)] == [None] * 3


class Hidden(torch.nn.Module):
    """A gain that no hash sees."""

    def forward(self, x, t):
        return torch.tanh(GAIN["gain"] * x)


GAIN = dict(gain=1.0)


def test_another_model_of_the_same_key_is_not_taken_for_the_first(tmp_path, monkeypatch):
    model = ddim_ode.Denoiser(Hidden(), COSINE, "x0", shape=(2,))
    first = errors(tmp_path, model)
    monkeypatch.setitem(GAIN, "gain", 3.0)
    other = errors(tmp_path, model)
    assert other == errors(None, model) != first
    monkeypatch.setitem(GAIN, "gain", 1.0)
    assert errors(tmp_path, model) == first


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_takes_nothing_costs_no_row(tmp_path, monkeypatch, error):

    def full(*args):
        raise OSError(error, "no")

    monkeypatch.setattr(weights, "write", full)
    with pytest.warns(UserWarning, match="no more results are kept there") as said:
        assert errors(tmp_path) == PLAIN(None)
    assert len(said) == 1


def test_a_folder_that_cannot_be_made_costs_no_row(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="no more results are kept there"):
        assert errors(tmp_path / "file" / "cache") == PLAIN(None)


def test_conditions_from_a_function_are_known_by_all_their_rows(tmp_path):
    labels = torch.zeros(4)
    net = Counting(lambda x, t, y: torch.tanh(x) + y[:, None])
    model = ddim_ode.Denoiser(net, COSINE, "x0", shape=(2,))

    def made():
        before = net.calls
        errors(tmp_path, model, cond=lambda i: dict(y=labels[i]), key="labelled")
        return net.calls - before

    assert made() > 0
    assert made() == 0
    labels[2] = 1.0
    assert made() > 0


def test_rows_are_exact_where_they_are_whole_and_near_where_they_are_computed():
    ids, emb = torch.tensor([[3, 5, 8], [1, 2, 3]]), torch.randn(2, 3, 4)
    near = of_rows(dict(ids=ids, emb=emb))
    assert near.agrees(of_rows(dict(emb=emb * (1 + 1e-6), ids=ids)).values)
    changed = emb.clone()
    changed[1, 2, 3] += 0.1
    swapped = ids[:, [1, 0, 2]]
    for other in (dict(ids=swapped, emb=emb), dict(ids=ids, emb=changed), dict(ids=ids), None):
        assert not near.agrees(of_rows(other).values)
    assert not near.agrees(of_rows(dict(ids=ids, emb=emb.half())).values)
