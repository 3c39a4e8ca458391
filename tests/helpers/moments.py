"""Moments of plans on Gaussian data without sampling: there a plan is linear in its start and its draws,
and every state a row over these independent sources."""

import numpy as np


def states(plan, answer, start, draws):
    """The end state of a plan as a row, where states are rows over sources.

    answer(sigma, vector, y): What a call stores. start: The row of the start. draws: One row for each draw.
    """
    x, history, made, count = start, [], [], 0
    for op in plan.ops:
        y = op.scale * x
        for weight, vector in zip(op.weights, reversed(history)):
            y = y + weight * vector
        noise = op.noise if isinstance(op.noise, tuple) else (op.noise,)
        for weight, z in zip(noise[1:], reversed(made)):
            y = y + weight * z
        if op.draws:
            made.append(draws[count])
            y, count = y + noise[0] * made[-1], count + 1
        if op.commit:
            x = y
        if op.node is not None:
            history.append(answer(op.node, y))
    assert count == len(draws)
    return x


def gaussian(schedule, mean, variance):
    """``answer`` for data N(mean, variance), the last source being the number 1."""

    def answer(node, y):
        alpha, beta = map(float, schedule.scales(node.sigma))
        one = np.zeros_like(y)
        one[-1] = mean
        x0 = one + variance * alpha / (alpha**2 * variance + beta**2) * (y - alpha * one)
        assert node.vector in ("x0", "eps")
        return x0 if node.vector == "x0" else (y - alpha * x0) / beta

    return answer


def end(plan, schedule, mean, variance):
    """The mean and variance of the end state, from the exact marginal at the start."""
    spans = plan.draws()
    alpha, beta = map(float, schedule.scales(plan.grid[0]))
    rows = np.eye(len(spans) + 2)
    start = rows[0] * np.sqrt(alpha**2 * variance + beta**2) + rows[-1] * alpha * mean
    row = states(plan, gaussian(schedule, mean, variance), start, rows[1:-1])
    return row[-1], (row[:-1] ** 2).sum()


def exact(sigma, schedule, mean, variance):
    """What these are."""
    alpha, beta = map(float, schedule.scales(sigma))
    return alpha * mean, alpha**2 * variance + beta**2


def on_path(plan, levels, schedule, mean, variance):
    """The end state as a row over the start, the increments of one path between ``levels``, and 1."""
    q = np.asarray(levels) ** -2.0
    parts = np.sqrt(np.diff(q))
    where = {round(float(np.log(s)), 8): i for i, s in enumerate(levels)}
    size = len(parts) + 2
    draws = []
    for high, low in plan.draws():
        i, j = where[round(np.log(high), 8)], where[round(np.log(low), 8)]
        row = np.zeros(size)
        row[1 + i : 1 + j] = parts[i:j] / np.sqrt(q[j] - q[i])
        draws.append(row)
    alpha, beta = map(float, schedule.scales(plan.grid[0]))
    start = np.zeros(size)
    start[0], start[-1] = np.sqrt(alpha**2 * variance + beta**2), alpha * mean
    return states(plan, gaussian(schedule, mean, variance), start, draws)


def slope(steps, errors):
    """The order of errors: minus the slope of ln error over ln steps."""
    return -np.polyfit(np.log(steps), np.log(np.abs(errors)), 1)[0]
