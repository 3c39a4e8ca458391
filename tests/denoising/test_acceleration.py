"""Faster network calls make the same samples: to rounding, and to that of the network's precision."""

import dataclasses
import functools

import pytest
import torch
from problems import COSINE, Counting, Timeless, mixture_2d, points
from refusals import expect

import ddim_ode
from ddim_ode.denoising.micro_batches import MicroBatches
from ddim_ode.solve import cuda_graph, fixed
from ddim_ode.solve.cuda_graph import GraphedPlan, Uploads
from ddim_ode.solve.request import Request

LABELS = {"y": torch.arange(6)}


@functools.cache
def shipped():
    return ddim_ode.load("fashion-mnist")


@functools.cache
def difference(method="unipc2", **options):
    """RMS over the pixels of 6 samples on the same levels, to those of the network as it is."""
    model = shipped()
    x = ddim_ode.noise(model.shape, model.schedule, seeds=range(6))
    a, b = (
        ddim_ode.sample(m, x, method, nfe=6, grid="trailing", cond=LABELS)
        for m in (model, ddim_ode.accelerate(model, **dict(options)))
    )
    assert a.x.dtype == b.x.dtype == torch.float32
    assert (a.nfe, a.net_evals) == (b.nfe, b.net_evals)
    return float((a.x - b.x).square().mean().sqrt())


# -- accuracy against float32 ---------------------------------------------------------------------


def test_faster_calls_make_samples_as_near_as_their_precision():
    assert 0 < difference(channels_last=True) < 1e-5
    assert 1e-4 < difference(dtype=torch.bfloat16) < 0.03


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x, t):
        return torch.tanh(self.conv(x) + 1e-3 * t[:, None, None, None])


def test_a_compiled_network_is_the_same(monkeypatch):
    """Traced and decomposed, without inductor's code, which takes minutes to make."""
    model = ddim_ode.Denoiser(Small(), COSINE)
    fast = ddim_ode.accelerate(model, compile=dict(backend="aot_eager"))
    for batch in (3, 2):
        x = ddim_ode.noise((2, 4, 4), COSINE, seeds=range(batch))
        a, b = (ddim_ode.sample(m, x, "dpmpp2m", steps=4).x for m in (model, fast))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    seen = []
    monkeypatch.setattr(torch, "compile", lambda net, **options: seen.append(options) or net)
    for options in (dict(compile=True), dict(compile=dict(dynamic=True)), {}):
        ddim_ode.accelerate(model, **options)
    assert seen == [{}, dict(dynamic=True)]


def test_half_precision_errs_by_the_network_s_rounding_alone():
    """bfloat16 has 8 bits and float16 has 11: an error 8 times as large, if nothing else is rounded."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2)]
    net = Timeless(torch.nn.Sequential(*layers)).requires_grad_(False)
    model, x = ddim_ode.Denoiser(net, COSINE), points(400, 2, dtype=torch.float32)
    exact = ddim_ode.sample(model, x, "dpmpp2m", steps=8).x

    def error(dtype):
        fast = ddim_ode.accelerate(model, dtype=dtype)
        return (ddim_ode.sample(fast, x, "dpmpp2m", steps=8).x - exact).square().mean().sqrt()

    assert 6 < error(torch.bfloat16) / error(torch.float16) < 11


def test_state_and_time_stay_wide_and_the_given_model_as_it_is():
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            seen.append((x.dtype, t.dtype, self.weight.dtype))
            return x * self.weight

    net = Net()
    model = ddim_ode.Denoiser(net, COSINE)
    fast = ddim_ode.accelerate(model, dtype=torch.bfloat16)
    x = ddim_ode.noise((1, 2, 2), COSINE, seeds=[0])
    assert ddim_ode.sample(fast, x, steps=1).x.dtype == torch.float32
    ddim_ode.sample(model, x, steps=1)
    bf16, fp32 = torch.bfloat16, torch.float32
    assert seen == [(bf16, fp32, bf16), (fp32, fp32, fp32)]
    assert model.net is net
    assert model.dtype is model.micro_batches is None


def test_the_shipped_model_keeps_what_it_knows():
    fast = ddim_ode.accelerate(shipped(), batch="auto", channels_last=True)
    for name in ("shape", "sha256", "classes"):
        assert getattr(fast, name) == getattr(shipped(), name)
    fast.guide(2.0)
    assert shipped().guidance is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(channels_last=True), "torch.nn.Module.*the network is a method"),
        (dict(dtype=torch.int8), "dtype=torch.int8 must be a floating torch dtype"),
        (dict(batch=0), "batch=0 must be a whole number >= 1"),
        (dict(batch="all"), "batch='all' must be a whole number >= 1, or 'auto'"),
        (dict(compile="yes"), "compile='yes' must be True, False, or options"),
        (dict(compile={"a": 1}), "compile=.* is not of torch.compile"),
        (dict(compile=dict(mode="reduce-overhead")), "overwrite the outputs"),
        (dict(compile=dict(options={"triton.cudagraphs": True})), "overwrite the outputs"),
    ],
)
def test_mistakes_are_explained(options, message):
    expect(lambda: ddim_ode.accelerate(mixture_2d(COSINE), **options), message)
    expect(lambda: ddim_ode.accelerate(torch.nn.Module(), **options), "a Denoiser, got Module")


# -- micro-batches --------------------------------------------------------------------------------
class Tight(Counting):
    """A network that has memory for so many rows."""

    def __init__(self, most, **kind):
        super().__init__(**kind)
        self.most, self.failures = most, 0

    def __call__(self, x, t, **cond):
        if len(x) > self.most:
            self.failures += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().__call__(x, t, **cond)


def labelled(x, t, y, scale=1.0):
    return torch.tanh(x * scale + y[:, None] + 1e-3 * t[:, None])


@pytest.mark.parametrize("most", [1, 3, 5, 6, 12, 40])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("method", [dict(method="unipc3", steps=5), dict(method="rk45", rtol=1e-3)])
def test_auto_halves_until_it_fits_and_changes_nothing(most, guided, method):
    guidance = ddim_ode.Guidance(2.0, null=dict(y=9)) if guided else None
    if guided and most == 1:
        most = 2  # a guided sample is two rows
    x, cond = points(11, 2), dict(y=torch.arange(11) % 4)

    def solve(net, batch):
        model = ddim_ode.Denoiser(net, COSINE, guidance=guidance)
        model = ddim_ode.accelerate(model, batch=batch)
        return model, ddim_ode.sample(model, x, cond=cond, shared=dict(scale=0.5), **method)

    _, whole = solve(labelled, None)
    net = Tight(most, net=labelled)
    model, parts = solve(net, "auto")
    torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-12)
    assert (parts.nfe, parts.net_evals) == (whole.nfe, whole.net_evals)
    rows = model.rows_per_sample
    halvings, size = 0, 11
    while size * rows > most:
        size, halvings = size // 2, halvings + 1
    assert net.failures == model.micro_batches.halved == halvings  # and never again at that size
    assert model.micro_batches.rows == (size if halvings else None)


@pytest.mark.parametrize("method", [dict(method="unipc3", steps=5), dict(method="rk45", rtol=1e-3)])
@pytest.mark.parametrize("limit", [dict(), dict(clip=0.8)])
def test_a_part_knows_which_of_its_samples_are_guided_and_its_own_levels(method, limit):
    guidance = ddim_ode.Guidance(2.0, null=dict(y=9), interval=(0.3, 5.0))
    model = ddim_ode.Denoiser(labelled, COSINE, guidance=guidance, **limit)
    x, cond = points(11, 2), dict(y=torch.arange(11) % 4)
    whole, parts = (
        ddim_ode.sample(ddim_ode.accelerate(model, batch=batch), x, cond=cond, **method)
        for batch in (None, 4)
    )
    torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-12)
    assert (parts.nfe, parts.net_evals) == (whole.nfe, whole.net_evals)


@pytest.mark.parametrize(("batch", "calls"), [(1, 7), (3, 3), (7, 1), (100, 1)])
def test_a_fixed_micro_batch_is_kept(batch, calls):
    net = Tight(7)
    model = ddim_ode.accelerate(ddim_ode.Denoiser(net, COSINE), batch=batch)
    x = points(7, 2)
    a, b = (ddim_ode.sample(m, x, steps=4) for m in (model, ddim_ode.Denoiser(net.net, COSINE)))
    assert torch.equal(a.x, b.x)
    assert (net.calls, net.rows) == (4 * calls, 28)


def allocating(x, t):
    if len(x) > 2:
        torch.empty(2**60)  # the CPU's own error
    return torch.tanh(x)


def broken(x, t):
    raise RuntimeError("size mismatch")


def test_what_halving_cannot_cure_is_raised():
    def solve(net, batch="auto"):
        model = ddim_ode.accelerate(ddim_ode.Denoiser(net, COSINE), batch=batch)
        ddim_ode.sample(model, points(4, 2), steps=2)
        return model.micro_batches.rows

    for most, batch, failures in ((0, "auto", 3), (2, 4, 1)):  # at 4, 2 and 1
        with pytest.raises(torch.cuda.OutOfMemoryError):
            solve(net := Tight(most), batch)
        assert net.failures == failures
    assert solve(allocating) == 2
    with pytest.raises(RuntimeError, match="size mismatch"):
        solve(broken)


def test_a_failed_call_s_memory_is_let_go_before_the_next():
    """The error's traceback holds the frame, and with it the activations, until it is gone."""
    import weakref

    held = []

    def net(x, t, at):
        assert all(activation() is None for activation in held)
        activation = x * 2
        if len(x) > 1:
            held.append(weakref.ref(activation))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return torch.tanh(x)

    call = MicroBatches(None).over(lambda rows: net, 8)
    call(points(8, 2), torch.zeros(8))
    assert len(held) == 3


# -- a plan as one CUDA graph, on a machine without CUDA -----------------------------------------
def test_a_graph_finds_what_was_uploaded_before():
    """``sample`` on another device (meta): the second run makes no copy from the host at all."""
    model = ddim_ode.Denoiser(lambda x, t: x * t.reshape(-1, 1), COSINE, "x0")
    x = torch.empty(3, 2, device="meta")

    plan = ddim_ode.plan("dpmpp2m", COSINE, [9.0, 2.0, 0.5, 0.1, 0.0])

    # ``sample`` takes no tensor without numbers
    request = dataclasses.replace(Request.of(model, torch.ones(3, 2), None, dict(plan=plan)), x=x)

    def solve():
        return fixed.run(request, plan).x

    with Uploads() as first:
        solve()
    assert len(first.kept) == 2  # network times and scales
    assert {t.device.type for t in first.kept} == {"meta"}
    with Uploads(first.kept) as second:
        assert solve().device.type == "meta"
    assert next(second.again, None) is None
    with Uploads(first.kept[:1]), pytest.raises(StopIteration):
        solve()


def test_a_graphed_plan_copies_in_replays_and_copies_out(graphs_without_cuda):
    model = ddim_ode.Denoiser(labelled, COSINE)
    plan = ddim_ode.plan("dpmpp2m", COSINE, [9.0, 2.0, 0.5, 0.0])
    batches = [(points(4, 2, seed), dict(y=torch.arange(4) + seed)) for seed in range(3)]
    graph = GraphedPlan(model, plan, *batches[0])
    made = [graph(x, cond) for x, cond in batches]  # kept while later ones replay
    for (x, cond), (end, finite) in zip(batches, made):
        assert torch.equal(end, ddim_ode.sample(model, x, plan=plan, cond=cond).x)
        assert finite.all()
    message = r"for x \(4, 2\) and conditions \['y'\], got \(3, 2\)"
    expect(lambda: graph(points(3, 2), dict(y=torch.arange(3))), message)
    expect(lambda: graph(points(4, 2)), "record another")


def test_what_a_graph_cannot_hold_is_refused():
    cuda = torch.device("cuda")
    noisy, plan = (ddim_ode.plan(name, COSINE, [9.0, 1.0, 0.0]) for name in ("ddpm", "ddim"))
    cuda_graph.check_graphable(plan, cuda)
    expect(lambda: GraphedPlan(mixture_2d(COSINE), plan, points(3, 2)), "this is cpu; drop it")
    expect(lambda: cuda_graph.check_graphable(None, cuda), "adaptive solve decides on the host")
    expect(lambda: cuda_graph.check_graphable(noisy, cuda), "step noise is drawn there")
