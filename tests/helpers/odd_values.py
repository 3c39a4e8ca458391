"""Values that are not what an argument takes, or not what they seem."""

# ruff: noqa: E501 (tables)
from __future__ import annotations

import copy
import enum
import math
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch


# -- values that are not what they seem ----------------------------------------------------------
class Number:
    """As a float by ``__float__`` alone."""

    def __float__(self):
        return 0.5


class Whole:
    def __index__(self):
        return 2


class Array:
    """As an array by ``__array__`` alone."""

    def __array__(self, dtype=None, copy=None):
        return np.array([0.5, 0.25])


class Angry:
    """Whose conversions fail in ways of their own."""

    def __float__(self):
        raise KeyError("float")

    def __index__(self):
        raise ZeroDivisionError

    def __array__(self, dtype=None, copy=None):
        raise LookupError("array")

    def __len__(self):
        raise AttributeError("len")

    def __iter__(self):
        raise OSError("iter")


class TensorLike:
    shape, ndim, dtype = (3, 2), 2, torch.float32

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("not a tensor")

    def __len__(self):
        return 3


class Sub(torch.Tensor):
    pass


class Text(str):
    __slots__ = ()


class Level(enum.IntEnum):
    TWO = 2


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8)


# Makers, since generators are used up and tensors may be changed.
ODD = [
    *(lambda v=v: v for v in (
        None, True, False, -1, 0, 1, 2, 3, 7, 2**63, -(2**63), 10**30, 10**400, -(10**400), 10**5000,
        0.0, -0.0, 0.3, 1.5, -2.5, 1e-320, 1e-8, 1e18, 1e308, math.nan, math.inf, -math.inf, 1j, 0j,
        "", "x", "3", "0.5", "nan", "eps", "a\nb\x1b[2J", "\x00", "é" * 300, "{}", "%s", b"x", b"", "cpu", "none",
        Fraction(1, 3), Fraction(10**400), Fraction(2), Decimal("0.5"), Decimal("NaN"), Decimal("sNaN"), Decimal("1e999"),
        Text("ddim"), Level.TWO, Ellipsis, NotImplemented, int, len, lambda: 1, lambda *a, **k: None, torch.float32,
        torch.int64, torch.device("cpu"), Path("x"), Path("a/\x00"), slice(2), (), (1,), (1, 2), (2, 0.5), (math.nan,), (None,), ((1,), (2,)),
        frozenset({1}), range(0), range(3), range(3, 0, -1), np.float64(0.5), np.float32(0.5), np.float16(2), np.int64(3),
        np.uint8(3), np.bool_(True), np.str_("ddim"), np.complex128(1), np.datetime64("2020-01-01"), Number(), Whole(), Array(), Angry(), TensorLike(),
    )),
    *(lambda v=v: copy.copy(v) for v in (
        [], [0], [1], [1, 2, 3], [3.0, 1.0], [5.0, 1.0, 0.0], [[]], [[1.0]], [[1.0], [2.0, 3.0]], ["a"], [None],
        [True], [math.nan], [10**400], [Fraction(1, 2)], [Angry()], [1j], [{}], {}, {"y": 1}, {1: 2}, {"y": None},
        {"x": 1}, {"": 1}, {None: None}, set(), {1.0, 2.0}, {"y": torch.ones(3)}, {"y": [1, 2, 3]}, {"y": "abc"},
        [torch.tensor(1.0)], [np.array(1.0)], [[[1]]], {"c": torch.ones(3), "t": 0}, bytearray(b"ab"),
    )),
    lambda: (k for k in (3.0, 1.0)), lambda: iter([1, 2, 3]), lambda: map(float, "12"), lambda: memoryview(b"ab"), object,
    lambda: np.array(0.5), lambda: np.array(3), lambda: np.array([]), lambda: np.array([1.0, 2.0]),
    lambda: np.array([3.0, 2.0, 1.0]), lambda: np.ones((3, 2)), lambda: np.array(["a", "b"]), lambda: np.array([None, 1]),
    lambda: np.array([1 + 1j]), lambda: np.array([True, False]), lambda: np.array(None), lambda: np.array("x"),
    lambda: np.array([np.nan, np.inf]), lambda: np.ma.masked_array([1.0, 2.0], [0, 1]), lambda: np.zeros((0, 2)),
    lambda: np.zeros(3, dtype=[("a", float)]), lambda: np.array([2**63], dtype=np.uint64), lambda: np.longdouble(0.5),
    lambda: torch.tensor(0.5), lambda: torch.tensor(3), lambda: torch.tensor(True), lambda: torch.tensor([]),
    lambda: torch.tensor([0.5]), lambda: torch.tensor(math.nan), lambda: torch.ones(3), lambda: torch.ones(3, 2),
    lambda: torch.ones(2, 2), lambda: torch.arange(3), lambda: torch.ones(3, 2, dtype=torch.float16),
    lambda: torch.ones(3, 2, dtype=torch.bfloat16), lambda: torch.ones(3, 2, dtype=torch.complex64),
    lambda: torch.ones(3, 2, dtype=torch.bool), lambda: torch.ones(3, 2, dtype=torch.int32), lambda: torch.zeros(0, 2),
    lambda: torch.zeros(3, 0), lambda: torch.ones(3, 2, requires_grad=True), lambda: torch.nn.Parameter(torch.ones(3, 2)),
    lambda: torch.ones(1, 2).expand(3, 2), lambda: torch.ones(2, 3).T, lambda: torch.ones(6, 2)[::2],
    lambda: torch.full((3, 2), math.nan), lambda: torch.full((3, 2), math.inf), lambda: torch.full((3, 2), 1e38),
    lambda: torch.ones(3, 2).to_sparse(), lambda: torch.ones(3).to_sparse(), lambda: torch.ones(3, 2, device="meta"),
    lambda: torch.tensor(0.5, device="meta"), quantised, nested, lambda: torch.ones(3, 2).as_subclass(Sub),
    lambda: torch.tensor(0.5).as_subclass(Sub), lambda: torch.ones(3, 2, dtype=torch.float8_e4m3fn),
    lambda: torch.tensor(0.5, requires_grad=True), lambda: torch.tensor(1j), torch.Generator, lambda: torch.nn.Linear(2, 2),
    lambda: torch.ones(3, 2, 2, 2), lambda: torch.ones(2, 3, 2)
]  # fmt: skip
