"""A weights file whose configuration asks for what its tensors do not hold is refused before it costs."""

import json

import pytest
import torch
from refusals import expect
from safetensors.torch import save_file

import ddim_ode
from ddim_ode.nets import weights
from ddim_ode.nets.classifier import Classifier
from ddim_ode.nets.pretrained import load_classifier
from ddim_ode.nets.unet import UNet

CONFIG = dict(
    kind="unet", shape=[1, 8, 8], schedule=dict(name="exponential", params={}), prediction="eps",
    time_offset=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return UNet(1, (8, 8), blocks=1, num_classes=3)


@pytest.fixture
def no_memory(monkeypatch):
    """Makes a network on a real device an error."""

    def refused(self, *args, **kwargs):
        assert torch.get_default_device().type == "meta", "the network is made"
        return made(self, *args, **kwargs)

    made = torch.nn.Module.__init__
    monkeypatch.setattr(torch.nn.Module, "__init__", refused)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(blocks=10**9), "2000000000 blocks, of the .* tensors that are there"),
        (dict(channels=[8] * 10**6), "1000000 blocks, of the"),
        (dict(blocks=-1), "blocks=-1 must be a whole number >= 1"),
        (dict(blocks=1.5), "blocks=1.5 must be a whole number"),
        (dict(channels=[10**5, 8]), "tensors do not fit"),  # 400 GB
        (dict(channels=[10**9, 8]), "not one of ddim_ode's"),  # more bytes than 64 bits count
        (dict(channels=[8, -8]), "channels=-8 must be a whole number"),
        (dict(channels=[]), "has no level"),
        (dict(channels=8), "not one of ddim_ode's"),
        (dict(in_channels=10**9), "tensors do not fit"),
        (dict(num_classes=10**9), "tensors do not fit"),
        (dict(num_classes=-1), "num_classes=-1 must be a whole number >= 0"),
        (dict(in_channels=0), "in_channels=0 must be"),
        (dict(attention="no"), "attention='no' must be True or False"),
        (dict(dropout=float("nan")), r"dropout=nan must lie in \[0, 1\)"),
        (dict(depth=3), "unexpected keyword argument 'depth'"),
    ],
)
def test_networks_that_the_tensors_are_not(net, tmp_path, no_memory, change, match):
    path = tmp_path / "model.safetensors"
    weights.write(path, net.state_dict(), dict(CONFIG, net=net.config | change))
    expect(lambda: ddim_ode.load(path), f"model.safetensors: .*{match}")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(shape=[3, 8, 8]), r"shape=\(3, 8, 8\) and 3 classes are not those of a network of 1"),
        (dict(shape=[1, 8]), r"shape=\(1, 8\) and"),
        (dict(shape="118"), "shape='118' must be that of ONE sample"),
        (dict(shape=[1, -8, 8]), "shape=-8 must be a whole number"),
        (dict(classes=["a", "b"]), "and 2 classes are not those"),
        (dict(time_offset=float("nan")), "time_offset=nan must be finite"),
        (dict(prediction="noise"), "prediction 'noise'"),
        (dict(schedule=dict(name="ddpm", params=dict(T=10**12))), "T=1000000000000 must be"),
        (dict(schedule="exponential"), "not one of ddim_ode's"),
        (dict(schedule=None), r"not one of ddim_ode's"),
    ],
)
def test_models_that_the_network_is_not(net, tmp_path, change, match):
    path = tmp_path / "model.safetensors"
    weights.write(path, net.state_dict(), dict(CONFIG, net=net.config) | change)
    expect(lambda: ddim_ode.load(path), f"model.safetensors: its configuration .*{match}")
    weights.write(path, dict([*net.state_dict().items()][1:]), dict(CONFIG, net=net.config))
    expect(lambda: ddim_ode.load(path), "do not fit")


@pytest.mark.parametrize("change", [dict(size=10**6), dict(in_channels=10**9), dict(size="28")])
def test_classifiers_that_the_tensors_are_not(net, tmp_path, no_memory, change):
    with torch.device("meta"):
        own = Classifier(1, 8, 3).to_empty(device="cpu")
    path = tmp_path / "c.safetensors"
    weights.write(path, own.state_dict(), dict(kind="classifier", net=own.config | change))
    expect(lambda: load_classifier(path), r"c\.safetensors: its (tensors do not fit|configuration)")
    weights.write(path, net.state_dict(), dict(CONFIG, net=net.config))
    expect(lambda: load_classifier(path), "holds a 'unet', not a 'classifier'")


def test_what_fits_is_loaded_to_the_last_bit(net, tmp_path):
    path = tmp_path / "model.safetensors"
    doubles = {name: value.double() for name, value in net.state_dict().items()}
    weights.write(path, doubles, dict(CONFIG, net=net.config))
    model = ddim_ode.load(path)
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 900.0]), torch.tensor([0, 2])
    assert torch.equal(model.net(x, t, y), net.eval()(x, t, y))
    plain = UNet(1, (8, 8), blocks=1)
    weights.write(path, plain.state_dict(), dict(CONFIG, net=plain.config))
    expect(lambda: ddim_ode.load(path, guidance=2.0), r"guidance=2\.0: this model is unconditional")


def test_weights_of_others_are_told_where_to_go(tmp_path):
    for metadata in (None, dict(format="pt"), dict(config="{"), dict(config=json.dumps(5))):
        save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match=r"not one of ddim_ode's.*interop|holds a None, not"):
            ddim_ode.load(tmp_path)
