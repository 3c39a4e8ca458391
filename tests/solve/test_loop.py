"""The loop alone: hand-written plans and stub networks, no numerics."""

import weakref
from dataclasses import replace

import pytest
import torch

from ddim_ode.solve.loop import integrate
from ddim_ode.solvers.plan import Node, Op, Plan

NODE = Node(1.0, 1.0, "eps")


def call(scale=1.0, weights=(), *, commit=False, noise=0.0):
    return Op(scale, tuple(weights), NODE, commit, noise)


def land(scale=1.0, weights=(), *, noise=0.0):
    return Op(scale, tuple(weights), None, True, noise)


def plan_of(*ops):
    commits = sum(op.commit for op in ops)
    grid = tuple(float(commits - i) for i in range(commits + 1))
    return Plan("hand", ops, "eps", "eps", grid, "none")


class Stub:
    """Answers call k with the constant answers[k] and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def __call__(self, y, k):
        self.asked.append((k, y.flatten().tolist()))
        return torch.full_like(y, self.answers[k])


def ones(batch=1):
    return torch.ones(batch, 1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ops", "answers", "asked", "end"),
    [
        ([call(), call(2.0, [0.0]), call(3.0, [0.0]), land()], [0.0] * 3, [1.0, 2.0, 3.0], 1.0),
        (  # a stage leaves the state, and a commit moves it
            [call(), call(5.0, [0.0]), call(2.0, [0.0], commit=True), land(10.0, [0.0])],
            *([0.0] * 3, [1.0, 5.0, 2.0], 20.0),
        ),
        (  # weights read the history newest first
            [call(), call(1.0, [0.0]), call(1.0, [0.0]), land(0.0, [1.0, 2.0, 3.0])],
            *([1.0, 10.0, 100.0], [1.0] * 3, 123.0),
        ),
        ([call(), land(1.0, [1.0]), land(0.0, [1.0])], [7.0], [1.0], 7.0),  # no node: no answer
        ([call(), land(0.5)], [0.0], [1.0], 0.5),  # no weights: the state is scaled still
        (  # what has weight zero is not read
            [call(), call(1.0, [0.0], commit=True), land(1.0, [2.0, 0.0])],
            *([float("nan"), 1.0], [1.0, 1.0], 3.0),
        ),
    ],
)
def test_ops_are_what_they_say_and_calls_are_numbered_in_their_order(ops, answers, asked, end):
    for watched in ({}, dict(after_call=lambda *a: None, after_step=lambda p: None)):
        stub = Stub(*answers)
        found, _, calls, _ = integrate(plan_of(*ops), stub, ones(), **watched)
        assert stub.asked == [(k, [y]) for k, y in enumerate(asked)]
        assert (found.item(), calls) == (end, len(asked))


@pytest.mark.parametrize("memory", [1, 2, 3])
def test_vectors_that_no_op_will_read_are_released(memory):
    alive, most = [], 0

    def evaluate(y, k):
        nonlocal most
        vector = torch.zeros_like(y)
        alive.append(weakref.ref(vector))
        most = max(most, sum(ref() is not None for ref in alive))
        return vector

    steps = [call(1.0, [0.0] * min(memory, i), commit=True) for i in range(1, 8)]
    integrate(plan_of(call(), *steps, land(1.0, [0.0])), evaluate, ones())
    assert most == memory + 1  # those kept, and the new one before the oldest is dropped


def test_noise_is_drawn_only_where_the_plan_asks():
    draws = []

    def draw():
        draws.append(len(draws))
        return torch.full((1, 1), 10.0, dtype=torch.float64)

    plan = plan_of(
        call(),
        call(1.0, [0.0], commit=True, noise=0.5),
        call(1.0, [0.0], commit=True),
        land(1.0, [0.0], noise=0.25),
    )
    end, *_ = integrate(plan, Stub(0.0, 0.0, 0.0), ones(), draw=draw)
    assert draws == [0, 1]
    assert end.item() == 1 + 5 + 2.5


def test_a_plan_with_noise_without_a_source_is_refused():
    with pytest.raises(AssertionError, match="needs draw"):
        integrate(plan_of(call(), land(1.0, [0.0], noise=1.0)), Stub(0.0), ones())


@pytest.mark.parametrize("hold", [False, True])
def test_hold_keeps_the_last_finite_state_of_a_failed_sample_only(hold):
    def evaluate(y, k):
        return torch.tensor([[1.0], [float("nan") if k == 1 else 1.0]]).double()

    plan = plan_of(call(), *[call(1.0, [1.0], commit=True) for _ in range(2)], land(1.0, [1.0]))
    end, finite, calls, _ = integrate(plan, evaluate, ones(2), hold=hold)
    assert end[0].item() == 4.0
    assert end[1].item() == 2.0 if hold else end[1].isnan()
    assert finite.tolist() == [True, False]
    assert calls == 3


def test_a_sample_that_starts_non_finite_is_held_there():
    start = torch.tensor([[1.0], [float("inf")]], dtype=torch.float64)
    end, finite, *_ = integrate(plan_of(call(), land(0.0, [1.0])), Stub(2.0), start, hold=True)
    assert end.flatten().tolist() == [2.0, float("inf")]
    assert finite.tolist() == [True, False]


def test_observers_see_every_call_and_every_step_in_order():
    events = []
    plan = plan_of(
        call(),
        call(3.0, [0.0]),  # a stage
        call(2.0, [0.0], commit=True),
        land(5.0, [0.0]),
    )
    integrate(
        *(plan, Stub(7.0, 8.0, 9.0), ones()),
        after_call=lambda k, y, v: events.append((k, y, v)),
        after_step=lambda p: events.append((p.step, p.sigma, p.x)),
    )
    # Read only now: what was handed out is not overwritten later.
    assert [tuple(float(v) for v in event) for event in events] == [
        *((0, 1.0, 7.0), (1, 3.0, 8.0), (1, 1.0, 2.0), (2, 2.0, 9.0), (2, 0.0, 10.0))
    ]


def test_the_error_is_the_plan_s_combination_of_what_was_stored():
    plan = replace(
        plan_of(call(), call(1.0, [0.0], commit=True), land()), error_weights=(2.0, -0.5)
    )
    outcome = integrate(plan, Stub(3.0, 4.0), ones())
    assert outcome.error.item() == 2 * 3 - 0.5 * 4
    assert integrate(plan_of(call(), land()), Stub(3.0), ones()).error is None
