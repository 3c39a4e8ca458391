"""The U-Net, its training loop, files of weights, data sets, and the shipped model."""

import dataclasses
import gzip
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from refusals import expect, sample
from torch import Tensor

import ddim_ode
from ddim_ode.denoising.guidance import Limit
from ddim_ode.nets import train as training
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
    shape=[1, 8, 8], schedule=dict(name="exponential", params={}), prediction="eps", time_offset=0.0
)


@pytest.fixture(scope="module")
def toy_data() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(10) % 3, None)


@pytest.fixture(scope="module")
def unbroken(toy_data, tmp_path_factory):
    return train(toy_data, SCHEDULE, tmp_path_factory.mktemp("whole"), TINY, progress=False)


@pytest.mark.parametrize(("death", "kept"), [(OSError, 4), (KeyboardInterrupt, 6)])
def test_a_stopped_run_resumes_to_the_weights_of_the_unbroken_one(
    unbroken, tmp_path, toy_data, monkeypatch, death, kept
):
    calls, loss = [], training.eps_loss

    def dies_at_seven(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise death
        return loss(*args, **kwargs)

    monkeypatch.setattr(training, "eps_loss", dies_at_seven)
    arguments = (toy_data, SCHEDULE, tmp_path / "broken", TINY)
    with pytest.raises(death) as stop:
        train(*arguments, progress=False, checkpoint_every=4)
    if death is KeyboardInterrupt:  # which leaves time for a last checkpoint, and a word
        assert "stopped at step 6; " in str(stop.value)
        assert "checkpoint.safetensors, of step 6, is kept" in str(stop.value)
    resumed = train(*arguments, progress=False, checkpoint_every=4)
    assert len(calls) == 7 + (12 - kept)  # it went on from the checkpoint, not from 0
    for key, value in weights.read(unbroken)[0].items():
        torch.testing.assert_close(value, weights.read(resumed)[0][key], rtol=0, atol=0)


def test_training_lowers_the_loss(tmp_path, toy_data):
    config = dataclasses.replace(TINY, steps=120, batch=10, lr=3e-3, dropout=0.0)
    path = train(toy_data, SCHEDULE, tmp_path, config, progress=False, checkpoint_every=120)
    rows = (tmp_path / "loss.csv").read_text().split()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    assert losses[-1] < 0.8 * losses[0]
    assert ddim_ode.load(path).num_classes == 3


def test_a_run_starts_from_the_weights_of_another(unbroken, tmp_path, toy_data):
    still = dataclasses.replace(TINY, steps=1, lr=1e-30, dropout=0.0)
    path = train(toy_data, SCHEDULE, tmp_path, still, init=unbroken, progress=False)
    for key, value in weights.read(unbroken)[0].items():
        torch.testing.assert_close(weights.read(path)[0][key], value, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"init='\w{64}' \(now None\)"):
        train(toy_data, SCHEDULE, tmp_path, still, progress=False)
    wider = dataclasses.replace(still, channels=(16, 32))
    with pytest.raises(ValueError, match=r"that network has channels=\[.*\] \(now \[16, 32\]\)"):
        train(toy_data, SCHEDULE, tmp_path / "wider", wider, init=unbroken, progress=False)


def test_resuming_with_other_settings_is_refused_by_name(unbroken, toy_data):
    other = dataclasses.replace(TINY, lr=0.5)
    for schedule, config, message in (
        (SCHEDULE, other, r"lr=0\.001 \(now 0\.5\)"),
        (ddim_ode.schedules.cosine(), TINY, r"schedule='.*exponential.*now '.*cosine"),
    ):
        with pytest.raises(ValueError, match=message):
            train(toy_data, schedule, unbroken.parent, config, progress=False)


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

    def loss(net, *args, y, **options):
        seen.append(y)
        return sum(p.sum() for p in net.parameters())

    monkeypatch.setattr(training, "eps_loss", loss)
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
    expect(lambda: UNet(1, (8, 8))(x, t, y=torch.tensor([0, 0])), "takes no labels")


# -- files ------------------------------------------------------------------------------------


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
    expect(lambda: load_images(tmp_path), "2 bytes of data, but the header says")
    np.savez(tmp_path / "f.npz", images=np.zeros((2, 4, 4)))
    expect(lambda: load_images(tmp_path / "f.npz"), "must be uint8")


def test_pixels_survive_the_network_scale():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(to_unit(pixels)), pixels)


# -- the shipped model ------------------------------------------------------------------------


def test_shipped_model_makes_what_it_is_asked_for():
    assert (ASSETS / "fashion-mnist.safetensors").stat().st_size <= 8e6
    model = ddim_ode.load("fashion-mnist", guidance=2.0)
    x = ddim_ode.noise(model.shape, model.schedule, seeds=range(10))
    asked = torch.arange(10)
    sol = ddim_ode.sample(model, x, "dpmpp2m", nfe=12, cond={"y": asked})
    _, seen = run_in_batches(load_classifier(), sol.x.clamp(-1, 1))
    assert (seen == asked).sum() >= 8
    assert sol.net_evals == 2 * 10 * sol.nfe


def test_guidance_one_is_the_conditional_network_alone():
    model = ddim_ode.load("fashion-mnist")
    assert model.rows_per_sample == 1
    unconditional = UNet(1, (8, 8))
    with pytest.raises(ValueError, match="unconditional"):
        ddim_ode.nets.pretrained.PretrainedModel(unconditional, CONFIG, "", 2.0)


def test_one_label_may_be_shared_and_what_the_network_cannot_take_is_named():
    model, x = ddim_ode.load("fashion-mnist"), torch.randn(2, 1, 28, 28)
    one = ddim_ode.sample(model, x, steps=2, shared=dict(y=torch.tensor(3))).x
    each = ddim_ode.sample(model, x, steps=2, cond=dict(y=torch.tensor([3, 3]))).x
    torch.testing.assert_close(one, each, rtol=0, atol=1e-4)
    expect(sample(model, x, steps=2, shared=dict(y=torch.tensor(33))), "class labels 33 to 33")
    three = torch.zeros(2, 3, 28, 28)
    expect(sample(model, three, steps=1), r"x has 3 channels \(B, C, \*\), .* takes 1")


@pytest.mark.parametrize("file", sorted(ASSETS.glob("*-nfe-*.json")), ids=lambda file: file.stem)
def test_shipped_plans_are_the_models_own(file):
    scale, objective, nfe = re.findall(r"guidance-([\d.]+)-(\w+)-nfe-(\d+)", file.stem)[0]
    model = ddim_ode.load("fashion-mnist", guidance=float(scale))
    plan = model.calibrated(int(nfe), objective)
    assert plan.nfe == int(nfe)
    assert plan.schedule == model.schedule.fingerprint
    assert plan.fit["model_key"] == model_key(model)
    assert plan.fit["calibrated"]
    near = plan.fit["data"] if objective == "data" else plan.fit
    assert near["held_out"]["high"] < 0
    assert near.get("matched", True)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_it_steps_on_the_profile_that_ships_for_its_ode(scale):
    model = ddim_ode.load("fashion-mnist", guidance=scale)
    profile = model.profile
    assert profile.about["alterations"] == model.alterations
    assert profile.about["model_key"] == model_key(model)
    best = profile.recommend(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ddim_ode.plan_for(model, best.method, nfe=5).grid == best.levels
    assert pickle.loads(pickle.dumps(model)).profile.to_json() == profile.to_json()
    half = ddim_ode.load("fashion-mnist", guidance=scale, dtype=torch.bfloat16)
    for other in (half, model.replace(limit=Limit(clip=1.0)), model.replace(snap=True)):
        assert other.profile is None
    for elsewhere in (3.0, torch.tensor([scale, 3.0])):
        model.guide(elsewhere)
        assert model.profile is None
    model.guide(scale)
    model.profile = None
    assert model.replace(guidance=None).profile is model.profile is None


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
    expect(lambda: model.calibrated(7), "nfe=7 .*3, 4, 5, 6, 8, 10.*calibrate")
    expect(
        lambda: model.calibrated(10, "data"),
        "nfe=10 .*fitted to the data.*there are: 3, 4, 5, 6, 8.*calibrate",
    )
    expect(lambda: model.calibrated(6, "dat"), "unknown objective 'dat'.*first: data, solution")
    model.guide(2.0)
    expect(lambda: model.calibrated(6, "data"), r"guidance 2, .*\(there are for guidance 1\)")
    model.guide(3.0)
    expect(lambda: model.calibrated(6), r"guidance 3, .*\(there are for guidance 1, 2\)")
    model.guide(2.0, interval=(0.3, 8.0))
    expect(lambda: model.calibrated(6), "plain ODE.*guidance_interval")
    model.guide(torch.tensor([2.0, 1.0]))
    expect(lambda: model.calibrated(6), "plain ODE.*tensor")
    model.guide(2.0)
    model.shipped = None
    expect(lambda: model.calibrated(6), "there are none")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("fashion_mnist", "unknown model 'fashion_mnist'.*fashion-mnist"),
        ("gone/model.safetensors", "no such weights file"),
        (
            "someone/sd-v1.5",
            "no such file or directory; a directory or hub id of diffusers goes to",
        ),
        ("someone/model", "no such file or directory; a directory or hub id of diffusers goes to"),
        ("MODEL.PT", "are pickled"),
        ("model.pt", "are pickled, which can run code, and are not read; save the tensors with"),
        ("plan.json", r"is no model; ddim_ode\.Plan\.load reads plans"),
        ("empty", r"holds no model\.safetensors; a directory or hub id of diffusers goes to"),
    ],
)
def test_what_is_no_model_of_ours_is_told_where_to_go(tmp_path, monkeypatch, name, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        ddim_ode.load(name)
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors$"):
        load_classifier(tmp_path / "empty")  # which are not looked for in diffusers
    expect(lambda: load_classifier(tmp_path / "a.pt"), "are pickled")
