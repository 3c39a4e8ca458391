"""A plan of weak order three, which no registered method is: a step's noise coupled with the change of x̂₀.

With noise W along a step (Brownian, of length h), what x̂₀ feels of it enters the step by I = ∫ W dλ. A
quadrature of the third order over stages that see W itself has Cov(I, W_h) right and Var(I) too large,
which leaves weak order two. Here the stages see p(c) = E[W_c | W_h, I] = c W_h + √3 c (1 − c) √h ξ, of
which the quadrature makes I exactly. For a network that is not linear the variance that the last stage lost
by that comes back in two looks at the same level, with ± a third draw, of which the mean is taken: four
calls a step.
"""

from dataclasses import replace

import moments
import numpy as np
import pytest
from problems import COSINE
from test_stochastic_mixture import exact, grid, means

import ddim_ode
from ddim_ode.solvers.methods import Method
from ddim_ode.solvers.tableau import Singlestep

# Heun's third-order rule in exponential form
STAGES = Singlestep((0, 1 / 3, 2 / 3), ((), (0,), (0, 1), (0, 2)))
BASE = Method("third", None, "data", STAGES, ruler="log_sigma", eta=1.0)
KEPT = 2 / 3  # 3 c (1 − c), the share of a bridge's variance at c = 1/3 and at 2/3


def third(levels, kept=KEPT):
    """kept=1 sees W itself, with two looks that are the same."""
    plan = ddim_ode.plan(BASE, COSINE, levels)
    ops, rest = [plan.ops[0]], iter(plan.ops[1:])
    for early in rest:
        late, end = next(rest), next(rest)
        felt = np.zeros((3, 3))
        for row, op in zip(felt, (early, late, end)):
            noise = op.noise if isinstance(op.noise, tuple) else (op.noise,)
            row[: len(noise)] = noise[::-1]
        size = np.linalg.norm(felt[2])
        along = felt[:2] @ felt[2] / size
        apart = np.sqrt((felt[:2] ** 2).sum(1) - along**2)
        root, lost = np.sqrt(kept), np.sqrt(1 - kept)
        a, b = (np.array([x, root * r, 0]) for x, r in zip(along, apart))
        rows = [a, b + [0, 0, lost * apart[1]], b - [0, 0, lost * apart[1]], [size, 0, 0]]
        first, plus, minus, whole = drawn(rows)
        ops.append(early._replace(noise=first))
        ops.append(late._replace(noise=plus))
        ops.append(late._replace(noise=minus, weights=(0.0, *late.weights)))
        newest, *others = end.weights
        ops.append(end._replace(noise=whole, weights=(newest / 2, newest / 2, *others)))
    return replace(plan, ops=tuple(ops), error_weights=())


def drawn(rows):
    """Noises of ops, newest draw first, that feel these combinations of independent draws."""
    basis = []
    for row in rows:
        parts = [float(row @ b) for b in basis]
        rest = row - sum((part * b for part, b in zip(parts, basis)), np.zeros(3))
        own = float(np.linalg.norm(rest))
        own = own if own > 1e-12 else 0.0
        yield (own, *parts[::-1])
        if own:
            basis.append(rest / own)


def test_weak_order_three_on_gaussian_data_exactly():
    counts, truth = [160, 320], moments.exact(0.1, COSINE, 0.4, 0.3)[1]
    errors, plain = [], []
    for n in counts:
        levels = np.geomspace(10.0, 0.1, n + 1)
        errors.append(moments.end(third(levels), COSINE, 0.4, 0.3)[1] - truth)
        plain.append(moments.end(third(levels, kept=1.0), COSINE, 0.4, 0.3)[1] - truth)
    assert moments.slope(counts, errors) == pytest.approx(3, abs=0.15)
    assert moments.slope(counts, plain) == pytest.approx(2, abs=0.15)


def test_above_two_on_the_mixture():
    """2.5 from 20 to 40 steps and rising, where the errors are 1e-5; finer steps take minutes."""
    counts = [20, 40]
    errors = np.array([means(third(grid(n)), size=150, points=5) - exact() for n in counts])
    for error in errors.T[:2]:
        assert moments.slope(counts, error) > 2.35
