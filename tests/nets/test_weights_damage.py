"""Weights files that were damaged or altered: named, and none believed."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from refusals import expect
from safetensors.torch import load, save

import ddim_ode
from ddim_ode.nets import weights
from ddim_ode.nets.unet import UNet

DAMAGES = int(os.environ.get("FUZZ", "300"))

CONFIG = dict(
    kind="unet", net=dict(in_channels=1, channels=[4, 8], blocks=1, num_classes=3),
    schedule=dict(name="cosine", params={}), prediction="eps", time_offset=0.0, shape=[1, 8, 8],
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    weights.write(path, UNet(**CONFIG["net"]).state_dict(), CONFIG)
    return path


def refused_or_whole(path, content, known):
    path.write_bytes(content)
    try:
        tensors, config = weights.read(path)
    except ValueError as error:
        sound = str(path) in str(error)
    else:
        before, settings = known
        sound = config == settings and tensors.keys() == before.keys()
        sound = sound and all(torch.equal(tensors[name], before[name]) for name in before)
    assert sound


def test_damaged_files_are_named_and_none_is_believed(whole, tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
    path, rng = tmp_path / "some.safetensors", np.random.default_rng(0)
    weights.write(path, tensors, CONFIG)
    content, known = path.read_bytes(), weights.read(path)
    for trial in range(DAMAGES):
        damaged = bytearray(content)
        where = int(rng.integers(len(content)))
        if trial % 5:
            damaged[where] = rng.integers(256)
        else:  # a part is missing, or comes twice
            part = damaged[where : where + rng.integers(1, 40)]
            damaged[where : where + len(part)] = part * int(rng.integers(0, 3))
        refused_or_whole(path, bytes(damaged), known)


class Trap:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return open, (self.witness, "w")


def test_a_damaged_model_is_not_loaded(whole, tmp_path):
    content, rng = whole.read_bytes(), np.random.default_rng(1)
    path, witness = tmp_path / "model.safetensors", tmp_path / "ran"
    for size in (0, 5, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors: truncated"):
            ddim_ode.load(path)
    path.write_bytes(pickle.dumps(Trap(str(witness))))
    expect(lambda: ddim_ode.load(path), "not a safetensors file")
    assert not witness.exists()
    for _ in range(40):
        damaged = bytearray(content)
        damaged[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            ddim_ode.load(path)
    path.write_bytes(content)
    x = torch.ones(1, 1, 8, 8)
    one, two = (ddim_ode.load(p)(x, 1.0)[0] for p in (whole, path))
    assert torch.equal(one, two)


@pytest.mark.parametrize("field", list(CONFIG))
@pytest.mark.parametrize("value", [10**400, None, {"channels": [1]}, -1])
def test_a_configuration_that_was_altered_is_named(whole, tmp_path, field, value):
    tensors = load(whole.read_bytes())
    path = tmp_path / "altered.safetensors"
    stored = weights._metadata(tensors, json.dumps(CONFIG))
    altered = json.dumps({**CONFIG, field: value})
    path.write_bytes(save(tensors, {**stored, "config": altered}))
    expect(lambda: ddim_ode.load(path), r"altered\.safetensors: .* of its checksum")


def test_files_without_a_checksum_are_read_and_other_fields_are_not(whole, tmp_path):
    tensors = load(whole.read_bytes())
    path = tmp_path / "old.safetensors"
    path.write_bytes(save(tensors, {"config": json.dumps(CONFIG)}))
    assert weights.read(path)[1] == CONFIG
    path.write_bytes(save(tensors, {"config": json.dumps(CONFIG), "sha255": "0"}))
    expect(lambda: weights.read(path), "unknown field 'sha255'")
