"""The U-Net, its training loop, files of weights, data sets, and the shipped model."""

import dataclasses
import gzip
import os
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import ddim_ode
from ddim_ode.nets import weights
from ddim_ode.nets.classifier import run_in_batches, train_classifier
from ddim_ode.nets.config import TrainConfig
from ddim_ode.nets.data import Images, load_images, to_pixels, to_unit
from ddim_ode.nets.pretrained import ASSETS, load_classifier
from ddim_ode.nets.train import train
from ddim_ode.nets.unet import UNet
from ddim_ode.solve.model_key import model_key

SCHEDULE = ddim_ode.schedules.exponential()
TINY = TrainConfig(steps=12, batch=4, channels=(8, 8), warmup=2, dropout=0.1)

CONFIG = dict(
    shape=[1, 8, 8],
    schedule=dict(name="exponential", params={}),
    prediction="eps",
    time_offset=0.0,
)


@pytest.fixture
def toy_data() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(10) % 3, None)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("death", "kept"), [(Killed, 4), (KeyboardInterrupt, 6)])
def test_a_stopped_run_resumes_to_the_weights_of_the_unbroken_one(
    tmp_path, toy_data, monkeypatch, death, kept
):
    whole = train(toy_data, SCHEDULE, tmp_path / "whole", TINY, progress=False)
    module = __import__("ddim_ode.nets.train", fromlist=["eps_loss"])
    calls, loss = [], module.eps_loss

    def dies_at_seven(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise death
        return loss(*args, **kwargs)

    monkeypatch.setattr(module, "eps_loss", dies_at_seven)
    arguments = (toy_data, SCHEDULE, tmp_path / "broken", TINY)
    with pytest.raises(death) as stop:
        train(*arguments, progress=False, checkpoint_every=4)
    if death is KeyboardInterrupt:  # which leaves time for a last checkpoint, and a word
        assert "stopped at step 6; " in str(stop.value)
        assert "checkpoint.safetensors, of step 6, is kept" in str(stop.value)
    resumed = train(*arguments, progress=False, checkpoint_every=4)
    assert len(calls) == 7 + (12 - kept)  # it went on from the checkpoint, not from 0
    for key, value in weights.read(whole)[0].items():
        torch.testing.assert_close(value, weights.read(resumed)[0][key], rtol=0, atol=0)


def test_training_lowers_the_loss(tmp_path, toy_data):
    config = dataclasses.replace(TINY, steps=300, batch=10, lr=3e-3, dropout=0.0)
    path = train(toy_data, SCHEDULE, tmp_path, config, progress=False, checkpoint_every=300)
    rows = (tmp_path / "loss.csv").read_text().split()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    assert losses[-1] < 0.6 * losses[0]
    assert ddim_ode.load(path).num_classes == 3


def test_resuming_with_other_settings_is_refused_by_name(tmp_path, toy_data):
    train(toy_data, SCHEDULE, tmp_path, TINY, progress=False)
    other = dataclasses.replace(TINY, lr=0.5)
    with pytest.raises(ValueError, match=r"lr=0\.001 \(now 0\.5\)"):
        train(toy_data, SCHEDULE, tmp_path, other, progress=False)
    cosine = ddim_ode.schedules.cosine()
    with pytest.raises(
        ValueError, match=r"schedule='ddim_ode\.schedules\.exponential.*now 'ddim_o"
    ):
        train(toy_data, cosine, tmp_path, TINY, progress=False)


def test_data_that_cannot_be_trained_on_is_refused(tmp_path, toy_data):
    for data, message in (
        (toy_data._replace(labels=toy_data.labels[:4]), "4 labels for 10 images"),
        (toy_data._replace(pixels=toy_data.pixels[:0]), "holds no images"),
        (toy_data._replace(classes=["a"]), "1 class names for 3 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            train(data, SCHEDULE, tmp_path, TINY, progress=False)


def test_labels_are_dropped_at_the_asked_rate(tmp_path, toy_data, monkeypatch):
    seen: list[Tensor] = []
    module = __import__("ddim_ode.nets.train", fromlist=["eps_loss"])
    loss = module.eps_loss
    monkeypatch.setattr(
        module, "eps_loss", lambda *a, y, **k: (seen.append(y), loss(*a, y=y, **k))[1]
    )
    config = dataclasses.replace(TINY, steps=60, batch=10, label_dropout=0.3)
    train(toy_data, SCHEDULE, tmp_path, config, progress=False)
    share = (torch.cat(seen) == 3).double().mean()  # 3 classes, so 3 is the null label
    assert 0.24 < share < 0.36


def test_a_classifier_learns_what_it_is_shown_and_loads_again(tmp_path):
    labels = torch.arange(96) % 3
    generator = torch.Generator().manual_seed(0)
    spread = torch.randint(-20, 20, (96, 1, 8, 8), generator=generator)
    pixels = (40 + 80 * labels[:, None, None, None] + spread).to(torch.uint8)
    path = train_classifier(Images(pixels, labels, None), tmp_path / "c.safetensors", batch=16)
    features, seen = run_in_batches(load_classifier(path), to_unit(pixels))
    assert features.shape == (96, 128)
    assert features.dtype == torch.float64
    assert (seen == labels).float().mean() > 0.9
    with pytest.raises(ValueError, match="needs labels"):
        train_classifier(Images(pixels, None, None), tmp_path / "none.safetensors")


def test_unet_without_labels_is_the_null_label():
    net = UNet(1, (8, 8), blocks=1, num_classes=3).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 500.0])
    torch.testing.assert_close(net(x, t), net(x, t, y=torch.tensor([3, 3])))
    with pytest.raises(ValueError, match="takes no labels"):
        UNet(1, (8, 8))(x, t, y=torch.tensor([0, 0]))


# -- files ------------------------------------------------------------------------------------


def test_truncated_weights_are_named(tmp_path):
    whole = (ddim_ode.nets.pretrained.ASSETS / "fashion-mnist.safetensors").read_bytes()
    for size in (0, 5, 1000, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.safetensors: truncated"):
            ddim_ode.load(path)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    witness = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        ddim_ode.load(path)
    assert not witness.exists()


def test_weights_that_do_not_fit_their_configuration_are_named(tmp_path):
    net = UNet(1, (8, 8), num_classes=3)
    config = dict(CONFIG, kind="unet", net=net.config)
    path = tmp_path / "model.safetensors"
    weights.write(path, dict(list(net.state_dict().items())[1:]), config)
    with pytest.raises(ValueError, match="do not fit"):
        ddim_ode.load(path)
    weights.write(path, net.state_dict(), dict(kind="unet", net=net.config))
    with pytest.raises(
        ValueError, match=r"its configuration is not one of ddim_ode's \('schedule'\)"
    ):
        ddim_ode.load(path)
    with pytest.raises(ValueError, match="holds a 'unet', not a 'classifier'"):
        load_classifier(path)


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    weights.write(path, {"a": torch.ones(2)}, {"n": 1})
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        weights.write(path, {"a": torch.zeros(2)}, {"n": 2})
    assert weights.read(path)[1] == {"n": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["w.safetensors"]


def test_unknown_model_name_lists_the_names():
    with pytest.raises(ValueError, match=r"unknown model 'fashion_mnist'.*fashion-mnist"):
        ddim_ode.load("fashion_mnist")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ddim_ode.load("nowhere.safetensors")


# -- data -------------------------------------------------------------------------------------


def write_idx(path, array: np.ndarray, compress: bool) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if compress else raw)


@pytest.mark.parametrize("kind", ["idx", "idx.gz", "npz", "folder"])
def test_every_kind_of_data_set_reads_to_the_same_pixels(tmp_path, kind):
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    labels = np.array([0, 0, 1, 1, 2, 2])
    source = tmp_path
    if kind.startswith("idx"):
        gz = kind.endswith("gz")
        write_idx(tmp_path / f"train-images-idx3-ubyte{'.gz' * gz}", pictures, gz)
        write_idx(tmp_path / f"train-labels-idx1-ubyte{'.gz' * gz}", labels, gz)
    elif kind == "npz":
        source = tmp_path / "set.npz"
        np.savez(source, images=pictures, labels=labels)
    else:
        for i, (picture, label) in enumerate(zip(pictures, labels)):
            (tmp_path / f"class{label}").mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / f"class{label}" / f"{i}.png")
    data = load_images(source)
    if kind == "idx":  # the images file itself also names the pair
        again = load_images(tmp_path / "train-images-idx3-ubyte")
        assert torch.equal(again.pixels, data.pixels)
        with pytest.raises(FileNotFoundError, match="none for 'test'"):
            load_images(tmp_path, "test")
    assert np.array_equal(data.pixels[:, 0].numpy(), pictures)
    assert np.array_equal(data.labels, labels)
    assert data.classes == (["class0", "class1", "class2"] if kind == "folder" else None)


def test_bad_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither an IDX pair nor pictures"):
        load_images(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\0\0\0\x02" * 3 + b"xx")
    with pytest.raises(ValueError, match="2 bytes of data, but the header says"):
        load_images(tmp_path)
    np.savez(tmp_path / "f.npz", images=np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="must be uint8"):
        load_images(tmp_path / "f.npz")


def test_pixels_survive_the_network_scale():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(to_unit(pixels)), pixels)


# -- the shipped model ------------------------------------------------------------------------


def test_shipped_model_makes_what_it_is_asked_for():
    model = ddim_ode.load("fashion-mnist", guidance=2.0)
    x = ddim_ode.noise(model.shape, model.schedule, seeds=range(20))
    asked = torch.arange(20) % 10
    sol = ddim_ode.sample(model, x, "midpoint", nfe=15, cond={"y": asked})
    _, seen = run_in_batches(load_classifier(), sol.x.clamp(-1, 1))
    assert (seen == asked).sum() >= 16
    assert sol.net_evals == 2 * 20 * sol.nfe


def test_shipped_weights_fit_the_promised_size():
    path = ddim_ode.nets.pretrained.ASSETS / "fashion-mnist.safetensors"
    assert path.stat().st_size <= 8e6


def test_guidance_one_is_the_conditional_network_alone():
    model = ddim_ode.load("fashion-mnist")
    assert model.rows_per_sample == 1
    unconditional = UNet(1, (8, 8))
    with pytest.raises(ValueError, match="unconditional"):
        ddim_ode.nets.pretrained.PretrainedModel(unconditional, CONFIG, "", 2.0)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gone/model.safetensors", "no such weights file"),
        (
            "someone/sd-v1.5",
            "no such file or directory; a directory or hub id of diffusers goes to",
        ),
        ("MODEL.PT", "are pickled"),
        ("model.pt", "are pickled, which can run code, and are not read; save the tensors with"),
        ("plan.json", r"is no model; ddim_ode\.Plan\.load reads plans"),
        ("empty", r"holds no model\.safetensors; a directory or hub id of diffusers goes to"),
        ("someone/model", "no such file or directory; a directory or hub id of diffusers goes to"),
    ],
)
def test_what_is_no_model_of_ours_is_told_where_to_go(tmp_path, monkeypatch, name, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        ddim_ode.load(name)


def test_classifiers_are_not_looked_for_in_diffusers(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors$"):
        load_classifier(tmp_path)
    with pytest.raises(ValueError, match="are pickled"):
        load_classifier(tmp_path / "a.pt")


def test_one_label_may_be_shared():
    model, x = ddim_ode.load("fashion-mnist"), torch.randn(2, 1, 28, 28)
    one = ddim_ode.sample(model, x, steps=2, shared=dict(y=torch.tensor(3))).x
    each = ddim_ode.sample(model, x, steps=2, cond=dict(y=torch.tensor([3, 3]))).x
    torch.testing.assert_close(one, each, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="class labels 33 to 33"):
        ddim_ode.sample(model, x, steps=2, shared=dict(y=torch.tensor(33)))


@pytest.mark.parametrize(
    ("shape", "cond", "match"),
    [
        (
            (2, 3, 28, 28),
            dict(y=torch.tensor([0, 1])),
            r"x has 3 channels \(B, C, \*\), .* takes 1",
        ),
        (
            (2, 1, 28, 28),
            dict(y=torch.tensor([0, 11])),
            "class labels 0 to 11: the network knows 0 to 10",
        ),
        ((2, 1, 28, 28), dict(y=torch.tensor([0.0, 1.0])), "class labels must be whole numbers"),
        ((2, 1, 28, 28), dict(labels=torch.tensor([0, 1])), "unknown condition 'labels'; .* y$"),
        (
            (2, 1, 28, 28),
            dict(y=torch.tensor([1])),
            r"per sample \(2\), got 1; give y\.expand\(2, ",
        ),
    ],
)
def test_inputs_that_the_shipped_network_cannot_take(shape, cond, match):
    with pytest.raises(ValueError, match=match):
        ddim_ode.sample(ddim_ode.load("fashion-mnist"), torch.zeros(shape), steps=1, cond=cond)


@pytest.mark.parametrize("file", sorted(ASSETS.glob("*-nfe-*.json")), ids=lambda file: file.stem)
def test_shipped_plans_are_the_models_own(file):
    scale, nfe = (float(part) for part in re.findall(r"guidance-([\d.]+)-nfe-(\d+)", file.stem)[0])
    model = ddim_ode.load("fashion-mnist", guidance=scale)
    plan = model.calibrated(int(nfe))
    assert plan.nfe == nfe
    assert plan.schedule == model.schedule.fingerprint
    assert plan.fit["model_key"] == model_key(model)
    assert plan.fit["calibrated"]
    assert plan.fit["held_out"]["high"] < 0


def test_a_plan_of_another_guidance_is_warned_of():
    model, cond = ddim_ode.load("fashion-mnist", guidance=2.0), {"y": torch.tensor([3])}
    x, plan = ddim_ode.noise(model.shape, model.schedule, seeds=[0]), model.calibrated(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ddim_ode.sample(model, x, plan=plan, cond=cond)
    model.guide(3.0, interval=(0.5, 20.0))
    said = "for guidance 2, and runs with guidance 3, guidance_interval [0.5, 20.0], for which its gain"
    with pytest.warns(UserWarning, match=re.escape(said)):
        ddim_ode.sample(model, x, plan=plan, cond=cond)


def test_what_does_not_ship_is_said_with_what_does():
    model = ddim_ode.load("fashion-mnist")
    with pytest.raises(ValueError, match=r"nfe=7 .*4, 5, 6, 8, 10.*calibrate"):
        model.calibrated(7)
    model.guide(3.0)
    with pytest.raises(ValueError, match=r"guidance 3 .*\(there are for guidance 1, 2\)"):
        model.calibrated(6)
    model.shipped = None
    with pytest.raises(ValueError, match="there are none"):
        model.calibrated(6)
