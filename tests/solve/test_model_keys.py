"""A model is taken for itself and for no other: by what it holds, and by what it answers."""

import collections
import dataclasses
import decimal
import operator

import numpy as np
import pytest
import torch
from problems import COSINE, SCHEDULES, mixture_2d

import ddim_ode
from ddim_ode.denoising.denoiser import PREDICTIONS
from ddim_ode.denoising.problem import Problem
from ddim_ode.solve.answers import Answers, ask, levels_of
from ddim_ode.solve.model_key import model_key
from ddim_ode.solve.near import of_rows, pattern, projections

CPU = torch.device("cpu")
X = torch.tensor([[0.5, -2.0]])


def denoiser(net, **options):
    return ddim_ode.Denoiser(net, COSINE, "x0", shape=(2,), **options)


def answers(net, **options):
    return ask(Problem(denoiser(net, **options)), (2,), CPU)


class Calls(torch.nn.Module):
    """Calls what it holds."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x, t):
        return self.f(x)


class Private(torch.nn.Module):
    def __init__(self, gain):
        super().__init__()
        self._gain, self._seen, self._table = gain, 0, None

    @property
    def gain(self):
        return self._gain

    def scaled(self, x):
        return x * self.gain

    def forward(self, x, t):
        self._seen += 1
        if self._table is None:
            self._table = torch.ones(2)
        return self.scaled(x) * self._table


def written(text, **names):
    """A network that calls the f of that text."""
    space = {"torch": torch, "__name__": "written", **names}
    exec(text, space)
    return Calls(space["f"])


class Scaler:
    factor = 1.0

    def __init__(self, gain):
        self._gain = gain

    def __call__(self, x):
        return x * self._gain * self.factor

    def scale(self, x):
        return self(x)


class Derived(Private):
    def forward(self, x, t):
        return super().forward(x, t)


class Slots:
    __slots__ = ("_gain",)
    __init__, factor = Scaler.__init__, 1.0
    __call__ = Scaler.__call__


class InClass(torch.nn.Module):
    def forward(self, x, t):
        return x * self.factors[0]


def in_class(gain):
    return type("ClassLevel", (InClass,), dict(factors=(gain, 1.0), __module__=__name__))()


@dataclasses.dataclass(frozen=True)
class Frozen:
    gain: float

    def __call__(self, x):
        return x * self.gain


def in_class_of_an_object(gain):
    scaler = type("Scaler", (Scaler,), dict(factor=gain, __module__=__name__))(1.0)
    return Calls(scaler)


def in_decorator(gain):
    @torch.no_grad()
    def scaled(x):
        return x * gain

    return Calls(scaled)


def in_order(gain):
    net = Calls(None)
    net.a, net.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for value, tensor in ((1.0, net.a.weight), (0, net.a.bias), (0, net.b.weight), (0, net.b.bias)):
        torch.nn.init.constant_(tensor, value)
    layers = [net.a, net.b] if gain == 1.0 else [net.b, net.a]
    net.layers, net.f = layers, lambda x: net.layers[0](x)
    return net


# Of a gain, a network that has it somewhere.
HIDDEN = {
    "a private attribute": Private,
    "a base class's": Derived,
    "a class attribute": in_class,
    "constants of a generator": lambda gain: written(
        f"def f(x): return sum(x * c for c in ({gain}, 0.5))"
    ),
    "an inner function": lambda gain: written(
        f"def f(x):\n def g(y): return y * {gain}\n return g(x)"
    ),
    "a global": lambda gain: written("def f(x): return x * GAIN", GAIN=gain),
    "what a function calls": lambda gain: written(
        f"def g(x): return x * {gain}\ndef f(x): return g(x)"
    ),
    "an object": lambda gain: Calls(Scaler(gain)),
    "a bound method": lambda gain: Calls(Scaler(gain).scale),
    "slots": lambda gain: Calls(Slots(gain)),
    "a dataclass": lambda gain: Calls(Frozen(gain)),
    "the class of an object": in_class_of_an_object,
    "behind a decorator": in_decorator,
    "a method of C": lambda gain: Calls(torch.tensor([[gain, 0], [0, gain]]).__rmatmul__),
    "the order of layers": in_order,
}


@pytest.mark.parametrize("where", HIDDEN)
def test_two_models_that_differ_in_one_hidden_number_have_two_keys(where):
    one, again, other = (HIDDEN[where](gain) for gain in (1.0, 1.0, 3.0))
    assert not torch.equal(one(X, None), other(X, None))
    assert model_key(denoiser(one)) == model_key(denoiser(again)) is not None
    assert model_key(denoiser(one)) != model_key(denoiser(other))
    assert answers(one).differ(answers(other))
    assert not answers(one).differ(answers(again))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (decimal.Decimal(1), decimal.Decimal(2)),
        (bytearray(b"a"), bytearray(b"b")),
        (collections.deque([1]), collections.deque([2])),
        (operator.itemgetter(1), operator.itemgetter(2)),
        (slice(1), slice(2)),
        (torch.nn, torch.nn.functional),
        ([1].append, [2].append),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_of_every_kind_are_of_the_key(one, other):
    keys = [model_key(denoiser(Calls(value))) for value in (one, one, other)]
    assert keys[0] == keys[1] != keys[2]


def test_what_a_module_sets_when_it_is_called_is_not_of_its_key():
    net = Private(1.0)
    before = model_key(denoiser(net))
    net(X, None)
    assert net._seen == 1
    assert model_key(denoiser(net)) == before


@pytest.mark.parametrize(
    ("dtype", "same", "another"),
    [(torch.float32, 1e-6, 1e-3), (torch.bfloat16, 1e-2, 0.2), (torch.float64, 1e-12, 1e-5)],
)
def test_answers_agree_to_the_rounding_of_the_networks_precision(dtype, same, another):
    def scaled(gain):
        return answers(lambda x, t: torch.tanh(x) * gain, dtype=dtype)

    one = answers(lambda x, t: torch.tanh(x), dtype=dtype)
    assert not one.differ(scaled(1 + same))
    assert one.differ(scaled(1 + another))
    assert one.differ(answers(lambda x, t: -torch.tanh(x), dtype=dtype))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x, t: torch.tanh(x), lambda x, t: torch.sin(x)),
        (lambda x, t: x.clamp(-1.8, 1.8), lambda x, t: x.clamp(-3, 3)),
        (lambda x, t: x * (1 + (t[:, None] > 975)), lambda x, t: x),
        (lambda x, t: x * (1 + (t[:, None] > 900)), lambda x, t: x),
    ],
    ids=["code", "tails", "the first level", "high levels"],
)
def test_code_is_known_by_what_it_answers_and_no_part_of_a_key(one, other):
    nets = [type("Net", (torch.nn.Module,), dict(forward=staticmethod(f)))() for f in (one, other)]
    keys = {model_key(denoiser(net)) for net in nets}
    assert len(keys) == 1
    assert None not in keys
    assert answers(one).differ(answers(other))
    assert not answers(one).differ(answers(one))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_answers_know_their_conditions_also_in_half_precision_and_nan(dtype):
    labels = {"y": torch.arange(16) % 4}

    def asked(factor):
        net = lambda x, t, y: x * (1 + factor * (y[:, None] > 0))  # noqa: E731
        return ask(Problem(denoiser(net), labels), (2,), CPU)

    assert not asked(1.0).differ(asked(1.0))
    assert asked(1.0).differ(asked(3.0))

    def near(value):
        return of_rows({"c": torch.tensor([[1.0, value]], dtype=dtype)})

    for one, other in ((7.5, 7.75), (0.0, np.nan), (np.nan, np.inf), (np.inf, -np.inf)):
        assert near(one).agrees(near(one).values)
        assert not near(one).agrees(near(other).values)


def test_answers_are_of_the_question_and_come_back_from_json():
    class Labelled(torch.nn.Module):
        def forward(self, x, t, y, scale):
            return torch.tanh(x) * y[:, None] * scale

    def asked(y, scale=1.0, shape=(2,)):
        cond = dict(y=torch.tensor(y))
        return ask(Problem(denoiser(Labelled()), cond, dict(scale=scale)), shape, CPU)

    one = asked([2.0])
    assert one == asked([2.0]) == Answers.of_dict(one.to_dict())
    assert asked([2.0, 7.0, 3.0, 1.0, 5.0]) == asked([2.0, 7.0, 3.0, 1.0])  # a few
    questions = {
        asked([3.0]).question,
        asked([2.0], 2.0).question,
        asked([2.0], shape=(3,)).question,
    }
    assert len(questions | {one.question}) == 4
    for damaged in (None, 3, {}, dict(one.to_dict(), values="x"), dict(one.to_dict(), more=1)):
        assert Answers.of_dict(damaged) is None


def test_exact_mixtures_are_known_by_their_parameters_alone():
    model = mixture_2d(COSINE)
    assert ask(Problem(model), (2,), CPU) is None
    model.eigenvalues = model.eigenvalues * (1 + 1e-15)  # of another LAPACK
    assert model_key(model) == model_key(mixture_2d(COSINE))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["cosine", "ve", "flow"])
def test_the_question_is_one_of_unit_variance_and_more_at_a_few_levels(prediction, name):
    schedule = SCHEDULES[name]
    model = ddim_ode.Denoiser(lambda x, t: 2.0 * x, schedule, prediction)
    levels = levels_of(model)
    assert levels[-1] == (80.0 if np.isinf(model.sigma_max) else model.sigma_max)
    alpha, beta = schedule.scales(levels)
    sizes = np.resize([1.0, 2.0], len(levels)) * np.hypot(alpha, beta)
    x = torch.from_numpy(pattern(1, 40) * 2.0 * sizes[:, None])
    found = ask(Problem(model), (40,), CPU)
    assert np.allclose(pattern(40).var(), 1.0, atol=0.2)
    np.testing.assert_allclose(found.values, projections(x).reshape(-1), rtol=1e-5, atol=1e-6)
    limited = ddim_ode.Denoiser(lambda x, t: 2.0 * x, schedule, prediction, clip=0.1)
    assert found.differ(ask(Problem(limited), (40,), CPU))
