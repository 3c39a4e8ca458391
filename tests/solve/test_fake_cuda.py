"""The fixed path on a device it cannot reach: from the first network call on, no number comes back from
the device, nothing is copied to or from it, and no op mixes it with the CPU."""

import inspect
import re
import textwrap
from unittest import mock

import pytest
import torch
from problems import COSINE
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ddim_ode
from ddim_ode.solve import fixed
from ddim_ode.solve import loop as integration
from ddim_ode.solvers.chart import CHARTS
from ddim_ode.solvers.methods import METHODS

DETERMINISTIC = [name for name, m in METHODS.items() if m.order is not None]


class DeviceTraffic(Exception):
    """The host waited for the device, or data crossed between them."""


class Guard(TorchDispatchMode):
    """Fails on a read-back and on an op whose tensors, in and out, live on more than one device.

    Fake tensors alone let through copies and 0-d CPU operands.
    """

    armed = False
    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.armed and func is torch.ops.aten._local_scalar_dense.default:
            raise DeviceTraffic(f"read back: {func}")
        out = func(*args, **(kwargs or {}))
        if self.armed:
            self.seen += 1
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            devices = {x.device.type for x in tensors}
            if len(devices) > 1:
                raise DeviceTraffic(f"{func} on {sorted(devices)}")
        return out


def run(
    prediction="eps",
    denoiser=None,
    cond=False,
    channels=1,
    known=False,
    loop=integration.integrate,
    **options,
):
    """``sample`` on fake CUDA tensors, guarded from the first network call until it returns."""
    with FakeTensorMode(), Guard() as guard:

        def net(x, t, **labels):
            guard.armed = True
            return torch.tanh(x * t.reshape(-1, 1, 1, 1).to(x.dtype)).repeat(1, channels, 1, 1)

        x = torch.empty(3, 2, 4, 4, device="cuda")
        denoiser = denoiser() if callable(denoiser) else denoiser or {}
        model = ddim_ode.Denoiser(net, COSINE, prediction, **denoiser)
        labels = dict(y=torch.zeros(3, dtype=torch.long, device="cuda")) if cond else None
        if known:
            mask = torch.ones(4, 4, dtype=torch.bool)
            options["known"] = ddim_ode.Known(torch.zeros(3, 2, 4, 4), mask, seeds=[0, 1, 2])
        where = {} if "nfe" in options else {"steps": 7}
        with mock.patch.object(fixed, "integrate", loop):
            sol = ddim_ode.sample(model, x, cond=labels, **where, **options)
        guard.armed = False
    assert sol.x.device.type == "cuda"
    assert guard.seen > 3 * sol.nfe
    return sol


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_method_leaves_the_device_alone(name):
    run(method=name)


@pytest.mark.parametrize("noise", ["step", "path"])
@pytest.mark.parametrize("name", ["ddpm", "dpmpp2m_sde", "sa3", "seeds3"])
def test_step_noise_is_drawn_ahead(name, noise):
    run(method=name, noise=noise, seeds=[0, 1, 2])


@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "score"])
@pytest.mark.parametrize("name", ["ddim", "rk45", "ab3", "unipc2"])
def test_prediction_is_converted_on_the_device(name, prediction):
    run(prediction, method=name, final="sigma_min")


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("name", ["ddim", "rk4"])
def test_chart_is_solved_on_the_device(name, chart):
    run(method=name, chart=chart)


def guided(scale, **options):
    return ddim_ode.Guidance(scale, null=dict(y=10), **options)


def tensor_scale():
    guidance = guided(2.0)
    scale = torch.empty((), device="cuda")
    object.__setattr__(guidance, "scale", scale)  # past the check of its value
    return dict(guidance=guidance)


def named(options):
    """A test's name without addresses, which are others in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(options))


@pytest.mark.parametrize(
    "options",
    [
        dict(nfe=9),
        dict(on_nan="hold"),
        dict(record="x"),
        dict(record="x0"),
        dict(callback=lambda progress: None),
        dict(grid="karras", sigma_max=20.0),
        dict(denoiser=dict(dtype=torch.float16)),
        dict(denoiser=dict(snap=True)),
        dict(denoiser=dict(time=lambda t, sigma: 0.25 * sigma)),
        dict(denoiser=dict(learned_variance="split"), channels=2),
        dict(denoiser=dict(guidance=guided(2.0)), cond=True),
        dict(denoiser=dict(guidance=guided(2.0, interval=(0.5, 5.0))), cond=True),
        dict(denoiser=dict(guidance=guided(2.0, rescale=0.7)), cond=True),
        dict(denoiser=tensor_scale, cond=True),
        dict(denoiser=dict(clip=1.0)),
        dict(known=True),
        dict(differentiable="checkpoint"),
        dict(denoiser=dict(threshold=0.9)),
        dict(denoiser=dict(guidance=guided(2.0, interval=(0.5, 5.0)), clip=1.0), cond=True),
    ],
    ids=named,
)
def test_option_leaves_the_device_alone(options):
    run(method="heun", **options)


def mutated(line):
    """``integrate`` by a ``Run`` with a line put in front of every commit after the first network call."""
    source = textwrap.dedent(inspect.getsource(integration.Run.advance))
    anchor = re.compile(r"^( +)if commit:\n", re.MULTILINE)
    assert len(anchor.findall(source)) == 1
    namespace = dict(vars(integration))
    exec(anchor.sub(rf"\g<1>if self.calls: {line}\n\g<0>", source), namespace)
    namespace["Run"] = type("Run", (integration.Run,), {"advance": namespace["advance"]})
    exec(inspect.getsource(integration.integrate), namespace)
    return namespace["integrate"]


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("y = y * y.sum().item()", "read back"),
        ("y = y if bool(y.isfinite().all()) else x", "read back"),
        ("y.sum().tolist()", "read back"),
        ("y.cpu()", "_to_copy.* on .'cpu', 'cuda'"),
        ("y.to('cpu', non_blocking=True)", "_to_copy.* on .'cpu', 'cuda'"),
        ("y = y * torch.tensor(2.0)", "mul.* on .'cpu', 'cuda'"),
        ("y = y + torch.tensor(2.0, device=y.device)", "_to_copy.* on .'cpu', 'cuda'"),
        ("y = y + torch.tensor(2.0).to(y.device)", "_to_copy.* on .'cpu', 'cuda'"),
    ],
)
def test_the_guard_catches_a_loop_that_touches_the_host(line, caught):
    with pytest.raises(DeviceTraffic, match=caught):
        run(method="ddim", loop=mutated(line))


def test_the_guard_passes_a_copy_of_the_loop_that_does_not():
    run(method="ddim", loop=mutated("y = y * 1.0"))
