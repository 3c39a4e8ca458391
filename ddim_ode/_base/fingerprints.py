"""A schedule's name in plans and manifests: a hash of its curve that is the same on every processor.

Libraries of logarithms and exponentials differ between processors in the last bits, and a value rounded to
any number of digits may fall to either side for it. So the curve is computed here in decimal arithmetic,
which is exact to the digit everywhere, from the parameters alone.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Context, Decimal, localcontext
from typing import Any

_CONTEXT = Context(prec=50)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582")


def fingerprint(name: str, family: str, T: float, n: int, params: Mapping[str, Any]) -> str:
    """A short hash of σ at the times T/n, 2T/n, ..., T, equal for curves that agree to 9 digits."""
    digits = " ".join(f"{sigma:.9g}" for sigma in sigmas(name, T, n, params))
    return hashlib.sha256(f"{family} {T:.9g} {digits}".encode()).hexdigest()[:16]


def sigmas(name: str, T: float, n: int, params: Mapping[str, Any]) -> list[float]:
    """σ at those times, correctly rounded."""
    with localcontext(_CONTEXT):
        times = [Decimal(T) * k / n for k in range(1, n + 1)]
        return [float(sigma) for sigma in _CURVES[name](times, Decimal(T), params)]


def _of_alphas(squares: Iterable[Decimal]) -> Iterator[Decimal]:
    """σ from ᾱ²."""
    return (((1 - a) / a).sqrt() if a else Decimal("inf") for a in squares)


def _ddpm(times: list[Decimal], T: Decimal, params: Mapping[str, Any]) -> Iterator[Decimal]:
    start, end = Decimal(params["beta_start"]), Decimal(params["beta_end"])
    kept = (1 - (start + (end - start) * (t - 1) / (T - 1)) for t in times)
    return _of_alphas(itertools.accumulate(kept, Decimal.__mul__))


def _cosine(times: list[Decimal], T: Decimal, params: Mapping[str, Any]) -> Iterator[Decimal]:
    s = Decimal(params["s"])
    step = _PI / 2 / T / (1 + s)
    cosines, twice = [_cos(T * s * step), _cos((T * s + 1) * step)], 2 * _cos(step)
    for _ in times[1:]:  # cos(a + 2δ) = 2 cos δ cos(a + δ) − cos a
        cosines.append(twice * cosines[-1] - cosines[-2])
    least = 1 - Decimal(params["max_beta"])
    # A last cosine of zero, or below it by rounding, is clipped as well.
    kept = (max((b / a) ** 2 if b > 0 else least, least) for a, b in itertools.pairwise(cosines))
    return _of_alphas(itertools.accumulate(kept, Decimal.__mul__))


def _cos(x: Decimal) -> Decimal:
    """By its series, for x of the order of 1."""
    total = term = Decimal(1)
    for k in itertools.count(1, 2):
        term *= -x * x / (k * (k + 1))
        if total + term == total:
            return total
        total += term
    raise AssertionError


def _of_logs(logs: Iterable[Decimal]) -> Iterator[Decimal]:
    """σ from −2 ln ᾱ."""
    return ((log.exp() - 1).sqrt() for log in logs)


def _exponential(times: list[Decimal], T: Decimal, params: Mapping[str, Any]) -> Iterator[Decimal]:
    rate = Decimal(params["rate"])
    return _of_logs(2 * rate * (t / T) ** 2 for t in times)


def _vp(times: list[Decimal], T: Decimal, params: Mapping[str, Any]) -> Iterator[Decimal]:
    low, high = Decimal(params["beta_min"]), Decimal(params["beta_max"])
    return _of_logs(t * t * (high - low) / 2 + t * low for t in times)


_CURVES: dict[str, Callable[[list[Decimal], Decimal, Mapping[str, Any]], Iterable[Decimal]]] = {
    "ddpm": _ddpm,
    "cosine": _cosine,
    "exponential": _exponential,
    "vp": _vp,
    "ve": lambda times, T, params: times,
    "flow": lambda times, T, params: (t / (T - t) if t < T else Decimal("inf") for t in times),
    "from_alphas_cumprod": lambda times, T, params: _of_alphas(map(Decimal, params["array"])),
}
