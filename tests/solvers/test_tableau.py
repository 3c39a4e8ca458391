import dataclasses

import numpy as np
import pytest
from refusals import expect

from ddim_ode.solvers import tableau as t
from ddim_ode.solvers.methods import METHODS

TABLEAUX = {m.name: m.stages for m in METHODS.values() if isinstance(m.stages, t.Tableau)}
NONZERO = [
    (name, part, i, j)
    for name, table in TABLEAUX.items()
    for part, rows in (("a", table.a), ("b", (table.b,)))
    for i, row in enumerate(rows)
    for j, entry in enumerate(row)
    if entry != 0
]


def replaced(row, j, by):
    return tuple(entry + by if k == j else entry for k, entry in enumerate(row))


def perturbed(table, part, i, j, by):
    if part == "b":
        return dataclasses.replace(table, b=replaced(table.b, j, by))
    rows = tuple(replaced(row, j, by) if k == i else row for k, row in enumerate(table.a))
    return dataclasses.replace(table, a=rows)


def used(table, i):
    """Whether stage i enters b, directly or through a later stage."""
    reaches = np.linalg.inv(np.eye(len(table.c)) - table.matrix())
    return (np.array(table.b) @ abs(reaches))[i] != 0


@pytest.mark.parametrize("name", TABLEAUX)
def test_tableau_satisfies_the_conditions_of_its_order_and_of_no_higher_one(name):
    table = TABLEAUX[name]
    assert (METHODS[name].order or METHODS[name].weak) == table.order
    assert abs(t.order_residuals(table, table.order)).max() < 2e-15
    if table.order < 5:
        assert abs(t.order_residuals(table, table.order + 1)).max() > 1e-3
    assert not any(table.b[table.stages :])  # stages are the velocities that b uses
    assert table.b[table.stages - 1] != 0


def test_order_conditions_count_the_rooted_trees():
    assert [len(t.order_residuals(t.DOPRI5, p)) for p in range(1, 6)] == [1, 2, 4, 8, 17]


@pytest.mark.parametrize("name", ["HEUN", "BOSH3", "DOPRI5"])
def test_embedded_weights_are_of_one_order_less(name):
    table = getattr(t, name)
    embedded = tuple(b - e for b, e in zip(table.b, table.b_error))
    assert abs(t.order_residuals(table, table.order - 1, embedded)).max() < 2e-15
    assert abs(t.order_residuals(table, table.order, embedded)).max() > 1e-4


@pytest.mark.parametrize(("name", "part", "i", "j"), NONZERO)
def test_one_wrong_coefficient_is_refused_by_its_sum(name, part, i, j):
    with pytest.raises(ValueError, match=f"row {i} of a sums to" if part == "a" else "b must sum"):
        perturbed(TABLEAUX[name], part, i, j, 1e-6)


@pytest.mark.parametrize(
    ("name", "part", "i", "j"),
    [case for case in NONZERO if case[1] == "b" or used(TABLEAUX[case[0]], case[2])],
)
def test_one_wrong_coefficient_with_its_sum_mended_breaks_an_order_condition(name, part, i, j):
    """The sum is mended through c where it is a row of a, and in another weight where it is b."""
    table, by = TABLEAUX[name], 1e-6
    if part == "a":
        rows = tuple(replaced(row, j, by) if k == i else row for k, row in enumerate(table.a))
        wrong = dataclasses.replace(table, a=rows, c=replaced(table.c, i, by))
    else:
        partner = next(k for k in range(len(table.c)) if table.c[k] != table.c[j])
        b = replaced(replaced(table.b, j, by), partner, -by)
        wrong = dataclasses.replace(table, b=b)
    assert abs(t.order_residuals(wrong, table.order)).max() > 1e-8


def test_wrong_shape_and_wrong_error_weights_are_refused():
    expect(lambda: t.Tableau(1, (0, 1), ((), ()), (0, 1)), "row i of a needs i entries")
    expect(lambda: dataclasses.replace(t.HEUN, b_error=(0.5, 0.5)), "b_error to 0")
