"""The doctor: each seeded fault is found on the model, by name; a healthy model has nothing."""

import json
import re

import pytest
import torch
from mixture_net import SIDE, MixtureNet
from peers import load as peer
from peers import quiet
from problems import DDPM, Timeless, gaussian_2d
from refusals import expect
from tiny_pipelines import BETAS, images, save, trained, unet

import ddim_ode
from ddim_ode import schedules
from ddim_ode.cli import main
from ddim_ode.denoising.guidance import Limit
from ddim_ode.interop.config import schedule_of
from ddim_ode.interop.diffusers import load

SHAPE = (1, SIDE, SIDE)
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def with_scheduler(name="DDIM", prediction="eps", net=None, **config):
    """A perfect ε-network (or another) as loaded beside a scheduler of diffusers."""
    cls = getattr(peer("diffusers"), f"{name}Scheduler")
    config = dict(clip_sample=False) | config if name in ("DDIM", "DDPM") else config
    with quiet():
        scheduler = cls(**config)
        schedule = schedule_of({**scheduler.config, "_class_name": cls.__name__})
        return load(net or MixtureNet(schedule, prediction), scheduler)


class Behind(torch.nn.Module):
    """A network behind a change of its answers."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x, t):
        return self.change(self.inner(x, t))


def bare(prediction="eps", declared=None, told=None, change=lambda out: out, **options):
    """The same as a plain Denoiser, on DDPM's schedule unless told otherwise."""
    net = Behind(MixtureNet(schedules.ddpm(), prediction, **options), lambda out: change(out[0]))
    schedule = told or schedules.ddpm()
    return ddim_ode.Denoiser(net, schedule, declared or prediction, time_offset=-1.0)


def data(n=16):
    return MixtureNet(schedules.ddpm(), "eps").draw(n)


# Every fault of a network is looked for in what it makes, and in data.
SEEN = pytest.mark.parametrize("seen", ["its own samples", "data"])


def small(seen):
    return dict(data=data()) if seen == "data" else {}


def diagnosis(model, **options):
    options = dict(shape=None if options.get("data") is not None else SHAPE) | options
    return ddim_ode.diagnose(model, **options)


def found(model, **options):
    return {finding.check: finding for finding in diagnosis(model, **options)}


KARRAS = dict(use_karras_sigmas=True)
SCALED = dict(beta_schedule="scaled_linear", **BETAS["scaled_linear"])
FAULTS = {
    "terminal-snr": (lambda: with_scheduler(rescale_betas_zero_snr=True), {}),
    "clipping": (lambda: with_scheduler(clip_sample=True, clip_sample_range=0.7), {}),
    "stride": (lambda: with_scheduler(timestep_spacing="trailing"), dict(steps=30)),
    "duplicate-timesteps": (lambda: with_scheduler("DPMSolverMultistep", **KARRAS), dict(steps=80)),
    "rounded-timesteps": (lambda: with_scheduler("DPMSolverMultistep", **KARRAS), dict(steps=20)),
    "last-alpha": (lambda: with_scheduler(**SCALED, set_alpha_to_one=False, steps_offset=1), {}),
    "prediction": (lambda: with_scheduler(prediction="x0", prediction_type="v_prediction"), {}),
    "learned-variance": (lambda: bare(variance=True), {}),
    "input-scale": (lambda: bare(), dict(data=127.5 * (data() + 1))),
    "half-precision": (lambda: bare(gain=1e6), {}),
}
# Other faces of the same.
FACES = [
    *((fault, *FAULTS[fault]) for fault in FAULTS),
    ("input-scale", lambda: bare(scale=4.0), dict(data=data())),
    ("input-scale", lambda: bare(scale=0.25), dict(data=data())),
    ("network-time", lambda: bare(told=schedules.cosine()), dict(data=data())),
    ("stride", lambda: with_scheduler(timestep_spacing="linspace"), dict(steps=20)),
]


@pytest.mark.parametrize(("fault", "make", "options"), FACES)
def test_each_fault_is_found_and_no_other_is_an_error(fault, make, options):
    findings = found(make(), **options)
    assert findings[fault].evidence > 0
    assert {c for c, f in findings.items() if f.severity == "error"} <= {fault}


def test_the_stride_of_one_n_is_not_that_of_another():
    assert "stride" not in found(with_scheduler(timestep_spacing="trailing"), steps=25)


def test_dropout_left_on_is_told_from_half_precision():
    net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Dropout(0.2))
    model = ddim_ode.Denoiser(Timeless(net), ddim_ode.schedules.ddpm())
    report = ddim_ode.diagnose(model, shape=(16,))
    assert "net.eval()" in {f.check: f.fix for f in report}["repeatable"]
    assert "half-precision" in report.not_checked
    text = str(report)
    assert text.startswith("error: repeatable: asked the same twice")
    assert "not checked: half-precision: the network answers one question in two ways" in text
    net.eval()
    assert "repeatable" not in {f.check for f in ddim_ode.diagnose(model, shape=(16,))}
    calls = []
    model.net = lambda x, t: calls.append(1) or x / len(calls)
    fixes = {f.check: f.fix for f in ddim_ode.diagnose(model, shape=(16,))}
    assert "an earlier call left behind" in fixes["repeatable"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@SEEN
def test_a_healthy_model_has_nothing(prediction, seen):
    configs = (
        {},
        dict(timestep_spacing="trailing", beta_schedule="scaled_linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
    )
    config = configs[[*PREDICTIONS].index(prediction) - (seen == "data")]  # each is seen both ways
    config |= dict(prediction=prediction, prediction_type=PREDICTIONS[prediction])
    for model in (bare(prediction), with_scheduler(**config)):
        report = diagnosis(model, **small(seen))
        assert (report, report.not_checked) == ([], {})


@pytest.mark.parametrize("prediction", PREDICTIONS)
@SEEN
def test_a_wrong_sign_is_told(prediction, seen):
    (finding,) = diagnosis(bare(prediction, change=torch.neg), **small(seen))
    assert finding.check == "sign"
    assert finding.evidence > 1.5
    assert finding.fix == "net=lambda x, t, **cond: -net(x, t, **cond)"


@SEEN
@pytest.mark.parametrize(
    "change", [torch.zeros_like, lambda out: torch.full_like(out, 0.3)], ids=["zero", "constant"]
)
def test_a_network_that_does_not_look_at_x(change, seen):
    report = diagnosis(bare(change=change), **small(seen))
    (finding,) = report
    assert finding.check == "untrained"
    assert "move by 0.0e+00 of their size at most, less than 0.001" in finding.message
    if change is torch.zeros_like:
        assert report.not_checked["half-precision"] == "the network answers 0"


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_network_that_knows_nothing(prediction):
    torch.manual_seed(0)
    model = ddim_ode.Denoiser(unet(), schedules.ddpm(), prediction, time_offset=-1.0)
    net, model.net = model.net, lambda x, t: net(x, t).sample
    seen = images(16, torch.Generator().manual_seed(0))
    given = [dict(data=seen), dict(shape=(1, 8, 8))]
    for options in given if prediction == "eps" else given[:1]:
        (finding,) = diagnosis(model, **options)
        assert finding.check == "untrained"
        assert finding.evidence > 0.7


def test_a_network_of_little_training_is_not_called_another():
    """Nor is one of ε behind a limit, which it needs, nor one of v on samples of its own: see below."""
    data = dict(data=images(16, torch.Generator().manual_seed(1)), n=16)
    for kind, options in (
        ("v_prediction", data),
        ("sample", data),
        ("sample", dict(shape=(1, 8, 8))),
    ):
        assert diagnosis(load(*trained("linear", kind), clip=1.0), **options) == []


def test_a_configuration_of_too_few_training_steps_is_told():
    """The network counts to 1000, and its configuration to 100."""
    net = bare().net
    short = ddim_ode.Denoiser(net, schedules.ddpm(T=100), "eps", time_offset=-1.0)
    for options in ({}, dict(data=data())):
        assert {f.check for f in diagnosis(short, **options)} == {"network-time"}


@pytest.mark.parametrize("true", PREDICTIONS)
@pytest.mark.parametrize("declared", PREDICTIONS)
@SEEN
def test_the_prediction_type_is_told_from_the_answers(true, declared, seen):
    model = bare(true, declared)
    clipped = [*PREDICTIONS].index(true) + [*PREDICTIONS].index(declared) + (seen == "data")
    model.limit = Limit(clip=1.0 if clipped % 2 else None)  # each pair with and without
    findings = found(model, seed=20, **small(seen))
    assert ("prediction" in findings) == (true != declared)
    if true != declared:
        assert findings["prediction"].fix.startswith(f"prediction={true!r}")


def test_a_half_precision_that_rounds_is_no_overflow():
    assert found(bare(gain=1e4)) == {}


def test_a_trained_pipeline_is_healthy_and_its_faults_are_not(tmp_path, capsys):
    diffusers = peer("diffusers")
    net, scheduler = trained("linear", "v_prediction")
    save(tmp_path / "good", net, scheduler)
    assert main(["doctor", str(tmp_path / "good")]) == 0
    assert "nothing found" in capsys.readouterr().out
    bad = diffusers.DDIMScheduler.from_config(
        scheduler.config, clip_sample=True, prediction_type="epsilon", set_alpha_to_one=False
    )
    save(tmp_path / "bad", net, bad)
    assert main(["doctor", str(tmp_path / "bad"), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert {"prediction"} == {row["check"] for row in said["findings"]} - {"last-alpha"}
    assert said["not_checked"]["clipping"] == "set 'prediction' right first: it hides this"
    pictures = images(8, torch.Generator().manual_seed(3))
    with quiet():
        model = load(tmp_path / "bad")
    by_name = {f.check: f for f in ddim_ode.diagnose(model, data=pictures)}
    assert by_name["prediction"].fix.startswith("prediction='v'")
    assert "last-alpha" in by_name


LEVELS = {"stride", "duplicate-timesteps", "rounded-timesteps", "last-alpha"}


@pytest.mark.parametrize("name", ["DDIMInverse", "DPMSolverMultistepInverse"])
def test_a_scheduler_without_levels_that_fall_is_named(name):
    options = dict(clip_sample=False) if name == "DDIMInverse" else {}
    report = diagnosis(with_scheduler(name, **options))
    assert report == []
    assert report.not_checked.keys() == LEVELS
    assert all(f"{name}Scheduler goes up" in why for why in report.not_checked.values())


@pytest.mark.parametrize(
    ("name", "checks"),
    [
        ("PNDM", ["last-alpha"]),  # which leaves the noise of σ(1), by default
        *(("TCD", ["last-alpha"]), ("LCM", []), ("HeunDiscrete", []), ("KDPM2Discrete", [])),
    ],
)
def test_steps_of_two_calls_and_lists_of_times_are_checked(name, checks):
    report = diagnosis(with_scheduler(name))
    assert [finding.check for finding in report] == checks
    assert not report.not_checked


def test_nan_answers_end_the_examination():
    """Everything else would be measured in NaN, which no threshold sees."""
    model = with_scheduler(clip_sample=True, clip_sample_range=0.3)
    model.net.model.register_forward_hook(lambda module, given, out: (out[0] * torch.nan,))
    for options in ({}, dict(data=data())):
        report = diagnosis(model, **options)
        assert [finding.check for finding in report] == ["non-finite"]
        assert LEVELS | {"prediction", "half-precision", "clipping"} <= report.not_checked.keys()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.0, 20.0, r"answers are NaN or inf, those at σ=0.01$"),
        (300.0, 395.0, "few steps is NaN or inf"),
    ],
)
def test_a_network_that_fails_at_some_levels_alone(low, high, said):
    exact = gaussian_2d(DDPM)

    def net(x, t):
        level = torch.as_tensor(DDPM.sigma(t.double().numpy()))
        return torch.where(((t > low) & (t < high))[:, None], torch.nan, exact.net(x, level))

    model = ddim_ode.Denoiser(net, DDPM, shape=(2,), dtype=torch.float64)
    finding = ddim_ode.diagnose(model)[0]
    assert finding.check == "non-finite"
    assert re.search(said, finding.message)


@pytest.mark.parametrize("refused", [torch.float16, torch.bfloat16])
def test_a_precision_that_does_not_run_is_named(refused):
    def no_kernel(module, given):
        if given[0].dtype == refused:
            raise RuntimeError("not implemented for 'Half'")

    model = bare()
    model.net.inner.identity.register_forward_pre_hook(no_kernel)
    report = diagnosis(model)
    name = str(refused).removeprefix("torch.")
    assert report == []
    assert report.not_checked.keys() == {f"half-precision, {name}"}
    assert "not implemented for 'Half'" in report.not_checked[f"half-precision, {name}"]


def test_a_scheduler_is_left_as_it_was_given():
    """Someone may be in the middle of a run with it."""
    scheduler = peer("diffusers").DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(7)
    model = load(MixtureNet(schedules.ddpm(), "eps"), scheduler)
    before = scheduler.timesteps.clone()
    model.grid(20)
    diagnosis(model)
    assert scheduler.num_inference_steps == 7
    assert torch.equal(scheduler.timesteps, before)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ddim_ode.diagnose(lambda x, t: x), "Denoiser"),
        (lambda: ddim_ode.diagnose(bare()), "shape"),
        (lambda: ddim_ode.diagnose(bare(), data=torch.zeros(4, dtype=torch.long)), "data"),
    ],
)
def test_what_cannot_be_asked(call, said):
    expect(call, said)


def test_a_scale_for_each_sample_goes_with_its_sample():
    exact = gaussian_2d(DDPM)

    def net(x, t, y):
        level = torch.as_tensor(DDPM.sigma(t.double().numpy()))
        return exact.net(x, level) + 0.01 * y[:, None]

    guidance = ddim_ode.Guidance(torch.linspace(1, 5, 6), null={"y": 0.0})
    options = dict(shape=(2,), dtype=torch.float64, guidance=guidance)
    model = ddim_ode.Denoiser(net, DDPM, **options)
    assert not list(ddim_ode.diagnose(model, cond={"y": torch.ones(6)}, n=6))
    message = "has 6 entries for 8 samples"
    expect(lambda: ddim_ode.diagnose(model, cond={"y": torch.ones(8)}, n=8), message)
