"""Gradients of the end point, by finite differences and closed forms; what they keep in memory."""

import pytest
import torch
from problems import COSINE, Counting, points

import ddim_ode
from ddim_ode import Denoiser, Guidance

X = points(3, 2)
LABELS = torch.tensor([1, 2, 1])
MEANS = torch.tensor([[0.2, -0.1], [1.0, 0.5], [-0.8, 0.3]]).double()
VARIANCE = 0.36
WEIGHTS = points(3, 2, seed=5)
ENDS = dict(sigma_max=8.0, sigma_min=0.2, final="sigma_min")


def of_sigma(x, sigma, y):
    """ε̂ of a mixture of N(MEANS[y], VARIANCE) and a fixed second mode: nonlinear in x and σ."""
    alpha, beta = (torch.as_tensor(s)[:, None] for s in COSINE.scales(sigma.detach().numpy()))
    variance = alpha**2 * VARIANCE + beta**2
    centred = torch.stack([x - alpha * MEANS[y], x + 1.5 * alpha])
    share = torch.softmax(-(centred**2).sum(-1, keepdim=True) / (2 * variance), dim=0)
    return beta * (share * centred).sum(0) / variance


def guided(scale, net=of_sigma):
    return Denoiser(net, COSINE, time=lambda t, sigma: sigma, guidance=Guidance(scale, {"y": 0}))


def loss(x, scale, **options):
    sol = ddim_ode.sample(guided(scale), x, cond={"y": LABELS}, **ENDS, **options)
    return (WEIGHTS * sol.x).sum()


def differences(h, **options):
    """Central differences of the loss along one direction of x, and in the scale."""
    along, scale = points(3, 2, seed=7), torch.tensor(2.5).double()

    def slope(dx, ds):
        ahead, back = (loss(X + k * h * dx * along, scale + k * h * ds, **options) for k in (1, -1))
        return float(ahead - back) / (2 * h)

    return along, slope(1, 0), slope(0, 1)


def gradients(differentiable, **options):
    x, scale = X.clone().requires_grad_(), torch.tensor(2.5).double().requires_grad_()
    return torch.autograd.grad(loss(x, scale, differentiable=differentiable, **options), (x, scale))


ONE_STEP, MULTISTEP = ["ddim", "heun", "rk4", "dpm3"], ["ab3", "ipndm", "dpmpp3m", "unipc2"]
TIGHT = dict(rtol=1e-7, atol=1e-7, max_nfe=5000)
FIXED = [dict(method=name, steps=6) for name in (*ONE_STEP, *MULTISTEP)]
ADAPTIVE = [dict(method=name, **TIGHT) for name in ("rk45", "torchdiffeq:dopri5")]


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        *((options, True) for options in FIXED),
        *((options, "checkpoint") for options in FIXED[1::4]),
        (ADAPTIVE[0], True),
        (ADAPTIVE[1], "adjoint"),
        (dict(method="torchdiffeq:rk4", steps=40, grid="log_snr"), "adjoint"),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else str(value),
)
def test_the_end_point_s_gradients_are_those_of_finite_differences(options, mode):
    fixed = "steps" in options and mode != "adjoint"
    along, by_x, by_scale = differences(1e-5 if fixed else 1e-3, **options)
    x, scale = gradients(mode, **options)
    tolerance = dict(rel=1e-7, abs=1e-8) if fixed else dict(rel=5e-4, abs=5e-4)
    assert float((x * along).sum()) == pytest.approx(by_x, **tolerance)
    assert float(scale) == pytest.approx(by_scale, **tolerance)
    assert min(abs(by_x), abs(by_scale)) > 1e-3  # or nothing was shown


@pytest.mark.parametrize(("mode", "method"), [(True, "rk45"), ("adjoint", "torchdiffeq:dopri5")])
def test_the_gradient_in_the_scale_is_that_of_the_guided_gaussian(mode, method):
    # Guided Gaussians of one variance are the Gaussian of mean μ_∅ + s (μ_c − μ_∅), so that
    # x' = ᾱ'μ + g (x − ᾱμ) and dx'/ds = (ᾱ' − g ᾱ)(μ_c − μ_∅).
    def net(x, sigma, y):
        alpha, beta = (torch.as_tensor(s)[:, None] for s in COSINE.scales(sigma.numpy()))
        return beta * (x - alpha * MEANS[y]) / (alpha**2 * VARIANCE + beta**2)

    scale = torch.tensor(1.0).double().requires_grad_()  # a tensor at 1 has a gradient, too
    model = Denoiser(net, COSINE, time=lambda t, s: s, guidance=Guidance(scale, {"y": 0}))
    sol = ddim_ode.sample(
        model, X, method, cond={"y": LABELS}, differentiable=mode, **TIGHT, **ENDS
    )
    (found,) = torch.autograd.grad((WEIGHTS * sol.x).sum(), scale)
    (a, b), (a_end, b_end) = COSINE.scales(8.0), COSINE.scales(0.2)
    gain = ((a_end**2 * VARIANCE + b_end**2) / (a**2 * VARIANCE + b**2)) ** 0.5
    expected = (WEIGHTS * (a_end - gain * a) * (MEANS[LABELS] - MEANS[0])).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


class Network(torch.nn.Module):
    """Wide inside, so that its activations outweigh the state."""

    def __init__(self, p=0.0):
        super().__init__()
        torch.manual_seed(1)
        inside = [torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()]
        self.layers = torch.nn.Sequential(*inside, torch.nn.Dropout(p), torch.nn.Linear(64, 2))
        self.double()

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None].log() / 5], dim=1))


def solved(net, mode, x=None, **options):
    model = Denoiser(net, COSINE)
    x = X.clone().requires_grad_() if x is None else x
    return x, ddim_ode.sample(model, x, differentiable=mode, **ENDS, **options).x


class Saved:
    """Bytes that autograd keeps while it is entered."""

    def __enter__(self):
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda x: x)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def pack(self, x):
        self.bytes += x.numel() * x.element_size()
        return x


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp3m"])
def test_checkpoints_keep_the_states_alone_and_call_the_network_twice(name):
    state = X.numel() * X.element_size()
    for steps in (4, 8):
        net = Counting(Network())
        with Saved() as everything:
            solved(net.net, True, method=name, steps=steps)
        with Saved() as states:
            _, end = solved(net, "checkpoint", method=name, steps=steps)
        calls = net.calls
        assert states.bytes <= calls * (state + 64)  # 64: a few numbers a call
        assert everything.bytes > 15 * states.bytes
        end.sum().backward()
        assert net.calls == 2 * calls


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("name", ["ddim", "rk4", "unipc2"])
def test_checkpoints_change_no_gradient(name, p):
    found = []
    for mode in (True, "checkpoint"):
        net = Network(p)
        torch.manual_seed(3)  # of the dropout, which a second call repeats
        x, end = solved(net, mode, method=name, steps=5)
        found.append(torch.autograd.grad((WEIGHTS * end).sum(), (x, *net.parameters())))
    for plain, again in zip(*found):
        torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-14)


def test_an_adjoint_has_the_gradient_of_every_parameter_and_keeps_one_state():
    found, kept = [], []
    for mode in (True, "adjoint"):
        net = Network()
        with Saved() as saved:
            x, end = solved(net, mode, method="torchdiffeq:dopri5", **TIGHT)
        weights = sum(p.numel() * p.element_size() for p in net.parameters())
        kept.append((saved.bytes - weights) / (X.numel() * X.element_size()))
        found.append(torch.autograd.grad((WEIGHTS * end).sum(), (x, *net.parameters())))
    for through_steps, adjoint in zip(*found):
        torch.testing.assert_close(adjoint, through_steps, rtol=1e-3, atol=1e-5)
    assert kept[1] < 5 < 500 < kept[0]


def test_an_adjoint_reaches_conditions_and_a_network_that_is_a_method():
    net, shift = Network(), points(3, 2, seed=9).requires_grad_()

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def answer(self, x, t, shift):
            return self.net(x, t) + 0.1 * shift

    found = []
    for mode in (True, "adjoint"):
        model = Denoiser(Holder().answer, COSINE)
        sol = ddim_ode.sample(
            model, X, "torchdiffeq:dopri5", cond={"shift": shift}, differentiable=mode, **TIGHT, **ENDS
        )  # fmt: skip
        wanted = (shift, *net.parameters())
        found.append(torch.autograd.grad((WEIGHTS * sol.x).sum(), wanted))
    for through_steps, adjoint in zip(*found):
        torch.testing.assert_close(adjoint, through_steps, rtol=1e-3, atol=1e-5)


def test_the_way_back_of_an_adjoint_has_the_budget_of_the_way_there():
    model = Denoiser(Network(), COSINE)
    where = dict(method="torchdiffeq:dopri5", rtol=1e-6, atol=1e-6)
    enough = ddim_ode.sample(model, X, **where, **ENDS).nfe
    _, end = solved(model.net, "adjoint", max_nfe=enough, **where)
    with pytest.raises(RuntimeError, match="max_nfe"):
        end.sum().backward()


def test_no_gradient_under_inference_mode():
    model = guided(2.0)
    calls = (
        lambda **how: ddim_ode.sample(model, X, steps=2, cond={"y": LABELS}, **how),
        lambda **how: ddim_ode.encode(model, X, steps=2, cond={"y": LABELS}, **how),
        lambda **how: ddim_ode.decode(model, X, steps=2, cond={"y": LABELS}, **how),
    )
    with torch.inference_mode():
        for call in calls:
            with pytest.raises(ValueError, match=r"inference_mode\(\) keeps no gradients"):
                call(differentiable=True)
            call(differentiable=False)
