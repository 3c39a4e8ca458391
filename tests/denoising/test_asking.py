"""A network call that would spoil the samples is named: inputs, answers, precision and mode."""

import functools
import warnings

import pytest
import torch
from problems import COSINE, Timeless, points
from refusals import expect, sample

import ddim_ode
from ddim_ode import Denoiser, Guidance

X = points(3, 2)


def raising(x, t, y):
    y += 1  # the class of the next call
    return 0.5 * x


def hurrying(x, t, y):
    t /= 1000  # which a checkpointed solve would do twice
    return 0.5 * x


@pytest.mark.parametrize("guidance", [None, Guidance(2.0, {"y": 0})], ids=["plain", "guided"])
@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda x, t, y: x.mul_(0.5), r"x in place; use x \* c, not x.mul_"),
        (raising, "y in place"),
        (hurrying, "t in place"),
    ],
)
def test_a_network_that_changes_what_it_is_given_is_refused(net, message, guidance):
    model = Denoiser(net, COSINE, guidance=guidance)
    cond = {"y": torch.ones(3, dtype=torch.long)}
    how = dict(differentiable="checkpoint") if net is hurrying else {}
    expect(sample(model, X.clone(), "ab2", steps=3, cond=cond, **how), f"changes its {message}")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.mul_(2),
        lambda t: t[:, None].add_(1),
        lambda t: t.__setitem__(slice(0, 1), 3.0),
        lambda t: torch.clamp(t, 0, 1, out=t),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_times_of_a_plan_cannot_be_changed(change, rows):
    """They are one number for a whole batch."""
    net = lambda x, t: (change(t), 0.5 * x)[1]  # noqa: E731
    expect(sample(Denoiser(net, COSINE), X[:rows], steps=3), "changes its t in place; use x . c")


def test_a_plan_holds_one_time_a_node_whatever_the_batch():
    told = []
    net = Denoiser(lambda x, t: (told.append(t), 0.5 * x)[1], COSINE, time_offset=-1.0)
    sol = ddim_ode.sample(net, X[:1].expand(1000, 2), "heun", steps=20)
    assert all(t.shape == (1000,) and (t == t[0]).all() for t in told)
    times = [node.t - 1.0 for node in sol.plan.nodes]
    assert [float(t[0]) for t in told] == pytest.approx(times, abs=1e-12)
    assert told[0].untyped_storage().nbytes() == 8 * sol.nfe


@pytest.mark.parametrize("argument", ["cond", "shared"])
@pytest.mark.parametrize("name", ["x", "t"])
def test_a_condition_cannot_take_the_place_of_x_or_t(argument, name):
    model = Denoiser(lambda x, t: 0.5 * x, COSINE)
    expect(sample(model, X, steps=2, **{argument: {name: X}}), f"{argument} has '{name}', which")


def test_a_network_that_returns_one_buffer_is_refused():
    buffer = torch.empty_like(X)
    expect(
        sample(Denoiser(lambda x, t: buffer.copy_(x), COSINE), X, "ab2", steps=3),
        r"buffer.clone\(\)",
    )
    part = Denoiser(lambda x, t: buffer[: len(x)].copy_(x)[:, :], COSINE)  # another view each time
    expect(sample(part, X, "ab2", steps=3), r"buffer.clone\(\)")
    one = torch.ones(1, 1, dtype=X.dtype)  # seen as many, and never written to
    ddim_ode.sample(Denoiser(lambda x, t: one.expand_as(x), COSINE), X, "ab2", steps=3)
    copied = Denoiser(lambda x, t: buffer.copy_(x).clone(), COSINE)
    plain = Denoiser(lambda x, t: x, COSINE)  # whose answer is the state itself
    ends = (ddim_ode.sample(model, X, "ab2", steps=3).x for model in (copied, plain))
    assert torch.equal(*ends)


class Constant(torch.nn.Module):
    """A network of buffers alone."""

    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", torch.eye(2).bfloat16())

    def forward(self, x, t):
        return x @ self.matrix


def test_a_network_in_another_precision_is_told_the_remedy():
    net = Timeless(torch.nn.Linear(2, 2).double())
    message = r"torch.float64, fails on x of torch.float32 .*Denoiser\(..., dtype=torch.float64\)"
    expect(sample(Denoiser(net, COSINE), X.float(), steps=2), message)
    told = Denoiser(net, COSINE, dtype=torch.float64)
    assert ddim_ode.sample(told, X.float(), steps=2).x.dtype == torch.float32
    matrix = torch.eye(2, dtype=torch.float64)
    wide = Denoiser(lambda x, t: x @ matrix, COSINE, dtype=torch.float16)
    expect(sample(wide, X.float(), steps=2), r"fails on x of torch.float16 \(.*; drop dtype=")
    for half in (Constant(), Words().bfloat16(), Words().bfloat16().forward):
        cond = {} if isinstance(half, Constant) else dict(text=X, y=X[:, 0].long())
        message = r"weights are torch.bfloat16, .*Denoiser\(..., dtype=torch.bfloat16\)"
        expect(sample(Denoiser(half, COSINE), X.float(), steps=2, cond=cond), message)


class InTheDtypeOfT(torch.nn.Module):
    """Its time embedding is made in the precision of t, as that of many transformers."""

    def __init__(self):
        super().__init__()
        self.of_t, self.of_x = torch.nn.Linear(8, 16), torch.nn.Linear(2, 16)
        self.norm, self.out = torch.nn.LayerNorm(16), torch.nn.Linear(16, 2)

    def forward(self, x, t):
        angles = t[:, None] * 10_000.0 ** -(torch.arange(4) / 4)
        of_t = self.of_t(torch.cat([angles.sin(), angles.cos()], 1))
        return self.out(torch.relu(self.norm(self.of_x(x) + of_t)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_whose_time_embedding_follows_t(dtype, wrapped):
    torch.manual_seed(0)
    net = InTheDtypeOfT().to(dtype).eval()
    told = []
    net.register_forward_pre_hook(lambda module, given: told.append(given[1].dtype))
    # On a schedule of 1000 times, two of which bfloat16 could not tell from their neighbours.
    schedule = ddim_ode.schedules.ddpm()
    own = (lambda x, t: net(x, t)) if wrapped else net
    model = Denoiser(own, schedule, time_offset=-1.0, dtype=dtype)
    x, t = X.float(), torch.tensor([999.0, 998.0, 301.0])
    answers = model(x, schedule.sigma(t.numpy() + 1))[1]
    assert set(told) == {torch.promote_types(dtype, torch.float32)}

    angles = t.double()[:, None] * 10_000.0 ** -(torch.arange(4).double() / 4)
    of_t = torch.cat([angles.sin(), angles.cos()], 1).to(dtype)  # rounded once, at the layer
    h = net.of_x(x.to(dtype)) + net.of_t(of_t)
    expected = net.out(torch.relu(net.norm(h))).float()
    eps = max(torch.finfo(d).eps for d in (dtype, x.dtype))
    torch.testing.assert_close(answers, expected, rtol=0, atol=4 * eps)
    assert ddim_ode.sample(model, x, "heun", steps=3).x.dtype == torch.float32
    fast = ddim_ode.accelerate(model, batch=2)
    ends = (ddim_ode.sample(m, x, steps=3).x for m in (model, fast))
    torch.testing.assert_close(*ends, rtol=0, atol=10 * eps)


class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.words = torch.nn.Linear(2, 2), torch.nn.Embedding(3, 2)

    def forward(self, x, t, text, y):
        return self.layer(x) + self.layer(text) + self.words(y)


class Wide(InTheDtypeOfT):
    def forward(self, x, t):
        return super().forward(x, t.double()) @ torch.eye(2, dtype=torch.float64)


def test_a_condition_in_another_precision_is_named():
    model = Denoiser(Words().bfloat16(), COSINE, dtype=torch.bfloat16)
    for text, y, message in (
        (
            torch.ones(3, 2),
            torch.zeros(3).long(),
            "text as torch.bfloat16 too, and not torch.float",
        ),
        (torch.ones(3, 2).bfloat16(), torch.zeros(3), "an embedding takes whole .*; give y.long()"),
    ):
        expect(sample(model, X.float(), steps=2, cond=dict(text=text, y=y)), message)
    message = r"fails on x of torch.bfloat16 .*; t is float32 or wider here: .* t\.to\(x\.dtype\)"
    expect(sample(Denoiser(Wide().bfloat16(), COSINE, dtype=torch.bfloat16), X, steps=2), message)


@pytest.mark.parametrize(
    "text", ["unknown archetype 7", "gather(): Expected dtype int64 for index"]
)
def test_another_error_keeps_its_own_words(text):
    def net(x, t, w):
        raise RuntimeError(text)

    model = Denoiser(net, COSINE, dtype=torch.float32)
    for w in (torch.ones(3).double(), torch.ones(3)):
        with pytest.raises(RuntimeError) as said:
            sample(model, X, steps=2, cond=dict(w=w))()
        assert str(said.value) == text
    text = (
        "expected scalar type Double"  # which a condition of the same precision is not blamed for
    )
    expect(sample(model, X, steps=2, cond=dict(w=torch.ones(3))), "; drop dtype=")


def test_a_network_of_whole_times_is_told_how():
    table = torch.nn.Embedding(1001, 1)
    model = Denoiser(lambda x, t: table(t) * x, ddim_ode.schedules.ddpm())
    expect(sample(model, X, steps=2), r"t is a float here.*snap=True.*t\.round\(\)\.long\(\)")
    whole = Denoiser(lambda x, t: table(t.round().long()) * x, ddim_ode.schedules.ddpm(), snap=True)
    assert ddim_ode.sample(whole, X, steps=2).x.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
@pytest.mark.parametrize("options", [{}, dict(dtype=torch.float32)], ids=["plain", "cast"])
def test_answers_that_are_no_real_numbers_are_refused(dtype, options):
    model = Denoiser(lambda x, t: x.to(dtype), COSINE, **options)
    expect(sample(model, X, steps=2), f"returned {dtype}; it must return real numbers")


def called(net):
    return lambda x, t: net(x, t)


class Attending(torch.nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.mix = torch.nn.MultiheadAttention(2, 1, dropout=dropout, batch_first=True)

    def forward(self, x, t):
        return self.mix(x[:, None], x[:, None], x[:, None])[0][:, 0]


class Recurring(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.LSTM(2, 2, num_layers=2, dropout=0.1, batch_first=True)

    def forward(self, x, t):
        return self.cell(x[:, None])[0][:, 0]


def of(*layers):
    return Timeless(torch.nn.Sequential(torch.nn.Linear(2, 2), *layers))


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (of(torch.nn.Dropout(0.5)), "Dropout"),
        (of(torch.nn.BatchNorm1d(2)), "BatchNorm1d"),
        (of(torch.nn.LayerNorm(2), torch.nn.Dropout(0.0)), None),
        (Attending(0.1), "MultiheadAttention"),
        (Attending(0.0), None),
        (Attending(0.1).forward, "MultiheadAttention"),  # a bound method
        (Recurring(), "LSTM"),
        (functools.partial(Attending(0.1)), "MultiheadAttention"),
        (called(Attending(0.1)), "MultiheadAttention"),  # by a function around it
    ],
)
def test_training_mode_is_warned_of_where_it_matters(net, named):
    model = Denoiser(net, COSINE)
    module = getattr(net, "__self__", net)
    if not isinstance(module, torch.nn.Module):
        module = (
            net.func if isinstance(net, functools.partial) else net.__closure__[0].cell_contents
        )

    def said():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            ddim_ode.sample(model, X.float(), steps=2)
        return [str(w.message) for w in told if "training mode" in str(w.message)]

    heard = said()
    assert len(heard) == (named is not None)
    assert named is None or f"{named} inside; call net.eval() first" in heard[0]
    module.eval()
    assert not said()
    if isinstance(net, Attending) and named:
        net.mix.train()  # within a parent that is not
        assert said()


def test_warnings_point_at_the_caller(recwarn):
    model = Denoiser(Timeless(torch.nn.Dropout(0.5)), COSINE)
    ddim_ode.sample(model, X.float(), steps=2)
    nameless = Denoiser(lambda x, t: x, COSINE)
    ddim_ode.compare(nameless, "ddim", nfe=2, n=2, shape=(2,), cache="unused")
    assert {w.filename for w in recwarn if issubclass(w.category, UserWarning)} == {__file__}


def test_an_index_beyond_a_table_points_to_the_time_offset():
    table = torch.nn.Embedding(1000, 2)
    net = lambda x, t: x + table(t.round().long())  # noqa: E731
    schedule = ddim_ode.schedules.ddpm()
    model = Denoiser(net, schedule, snap=True)
    expect(sample(model, X.float(), nfe=5), r"out of range.*time_offset=-1\.0")
    model = Denoiser(net, schedule, snap=True, time_offset=-1.0)
    assert ddim_ode.sample(model, X.float(), nfe=5).nfe == 5
    pictures = Denoiser(lambda x, t: x - x.mean(dim=(2, 3)), schedule)
    with pytest.raises(IndexError, match="Dimension out of range"):  # no table: torch's own words
        ddim_ode.sample(pictures, X.float(), nfe=5)
    wrapped = r"takes no time, wrap it: net = lambda x, t: own\(x\)"
    expect(sample(Denoiser(torch.nn.Identity(), schedule), X, nfe=5), wrapped)
