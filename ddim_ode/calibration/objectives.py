"""What a calibration can aim at beside the model's own solution: real data, and what features see.

The distance between what a plan makes and the data is the energy distance of their features, squared and
without bias: D² = 2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖. Features that decide never report: a fit is judged in
two measures more, the samples as they are and random features of another seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.nn import functional as F

from .._base.checks import count, tensor_of
from ..evaluate.energy import euclidean
from ..evaluate.features import Features, classifier_features
from ..evaluate.pairs import Floats, mean_across, mean_within
from .family import Linear
from .fitting import Fitting, checked

OBJECTIVES = ("solution", "features", "data")
NOISES = {"solution": 128, "features": 128, "data": 768}
_LEAST = {"solution": 2, "features": 2, "data": 48}
LEAST_DATA = 64  # samples
SETS = 3  # of noises, and of data, that report
_MOST_DATA, _MOST_NUMBERS = 12_288, 2**27  # samples, and what they hold together
_MOST_FEATURES = 8192
# Of RMS, refused and told; and of means, in standard deviations.
_OTHER_SCALE, _OTHER_SIZE, _FAR = 10.0, 2.0, 0.5
_WIDTH = 256  # of random features
_DECIDES, _REPORT = 0, (1, 2)  # seeds of random features


def noises_of(objective: str, n: Any, name: str = "n") -> int:
    """How many noises an objective takes: n, or where that is None its own number."""
    return count(name, NOISES[objective] if n is None else n, least=_LEAST[objective])


class Seen(NamedTuple):
    """Features f(x (b, *)) -> (b, ...) and what the record calls them."""

    name: str
    function: Callable[[Tensor], Tensor]

    def rows(self, x: Tensor, batch: int) -> Floats:
        """(n, D) of samples (n, *), NaN and inf left as they are."""
        parts = [self.function(part)[..., None].flatten(1).cpu() for part in x.split(batch)]
        return torch.cat(parts).double().numpy()


def features_of(features: Any) -> Callable[[Tensor], Tensor]:
    """The caller's, as a function whose results are checked."""
    return checked(features.function if isinstance(features, Features) else features)


def deciding(features: Any, like: Tensor) -> Seen:
    """The features that decide: the caller's, or the default ones for samples such as ``like`` (n, *)."""
    if features is not None:
        return Seen(getattr(features, "name", "given"), features_of(features))
    if tuple(like.shape[1:]) == (1, 28, 28):
        shipped = classifier_features(device=like.device)
        return Seen(shipped.name, shipped.function)
    return random_features(like, _DECIDES)


def reporting(like: Tensor, decides: Callable[[Tensor], Tensor] | None) -> list[Seen]:
    """Two kinds of features that no fit sees: the samples themselves and random features, or where these
    decide (None: the samples do), others."""
    some = like[:8]
    seen = (some if decides is None else decides(some))[..., None].flatten(1).to(some)

    def decide(other: Seen) -> bool:
        own = other.function(some)[..., None].flatten(1).to(some)
        return own.shape == seen.shape and torch.allclose(own, seen)

    others = [random_features(like, seed) for seed in _REPORT]
    return [one for one in (Seen("samples", lambda x: x), *others) if not decide(one)][:2]


def random_features(like: Tensor, seed: int) -> Seen:
    """Of images (n, C, H, W), three random convolutions with ReLU, averaged to 4 × 4; of others, one random
    layer with ReLU. Samples enter with the mean and standard deviation of ``like`` taken off."""
    mean, std = float(like.double().mean()), float(like.double().std()) or 1.0
    draw = torch.Generator().manual_seed(seed)

    def layer(*shape: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(shape, generator=draw) * math.sqrt(2 / math.prod(shape[1:]))
        return weight.to(like.device), (0.3 * torch.randn(shape[0], generator=draw)).to(like.device)

    if like.ndim == 4:
        widths = (like.shape[1], 32, 32, 32)
        layers = [layer(out, into, 3, 3) for into, out in pairwise(widths)]

        def convolutions(x: Tensor) -> Tensor:
            y = (x.float() - mean) / std
            for weight, bias in layers:
                y = F.relu(F.conv2d(y, weight, bias, stride=2, padding=1))
            return F.adaptive_avg_pool2d(y, (min(4, y.shape[2]), min(4, y.shape[3]))).flatten(1)

        return Seen(f"random convolutions, seed {seed}", convolutions)
    weight, bias = layer(_WIDTH, like[0].numel())
    return Seen(
        f"random layer, seed {seed}",
        lambda x: F.relu(F.linear((x.float().reshape(len(x), -1) - mean) / std, weight, bias)),
    )


def checked_data(data: Any, like: Tensor, seed: int) -> Tensor:
    """Real samples (N, *), some thousand at most, in an order drawn with the seed; ValueError for what are
    none."""
    if data is None:
        raise ValueError(
            'objective="data" needs real samples; pass data=x0, a tensor (N, *shape of one sample) in the '
            "model's scale"
        )
    x, shape = tensor_of("data", data), tuple(like.shape[1:])
    if tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"data has shape {tuple(x.shape)}, but must be (N, {', '.join(map(str, shape))}), as the "
            "model's samples; reshape or resize it"
        )
    if len(x) < LEAST_DATA:
        raise ValueError(
            f"data has {len(x)} samples, but must have at least {LEAST_DATA} (some thousand are better); "
            "give more"
        )
    if not x.is_floating_point():
        raise ValueError(
            f"data is of {x.dtype}, but must be floating, in the model's scale; bytes of images are "
            "data.float() / 127.5 - 1"
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    most = min(_MOST_DATA, max(LEAST_DATA, _MOST_NUMBERS // max(1, math.prod(shape))))
    x = x.detach()[order[:most].to(x.device)].to(like)
    bad = int((~x[..., None].flatten(1).isfinite().all(1)).sum())
    if bad:
        raise ValueError(
            f"data has NaN or inf in {bad} of {len(x)} samples; all must be finite: leave these out"
        )
    if bool((x == x[:1]).all()):
        raise ValueError(f"data are {len(x)} times the same sample; give different ones")
    return x


def scale_notes(data: Tensor, made: Tensor) -> list[str]:
    """What to say where real samples are hardly in the scale of those that the model makes; ValueError
    where they are in another."""
    of_data, of_model = (
        (float(x.double().mean()), float(x.double().square().mean().sqrt())) for x in (data, made)
    )
    ratio = of_data[1] / max(of_model[1], 1e-300)
    both = "data has mean {:.3g} and RMS {:.3g}, what the model makes {:.3g} and {:.3g}"
    said = both.format(*of_data, *of_model)
    if not 1 / _OTHER_SCALE < ratio < _OTHER_SCALE:
        raise ValueError(
            f"{said}: data must be in the model's scale (bytes of images often are in data / 127.5 - 1)"
        )
    away = abs(of_data[0] - of_model[0]) > _FAR * float(made.double().std())
    if away or not 1 / _OTHER_SIZE < ratio < _OTHER_SIZE:
        return [f"{said}: if that is another scale, bring it to the model's"]
    return []


def checked_rows(rows: Floats, name: str) -> Floats:
    """Rows of features of the data; ValueError for too many features, NaN or inf."""
    if rows.shape[1] > _MOST_FEATURES:
        raise ValueError(
            f"features has {rows.shape[1]} numbers for each sample, but may have at most "
            f"{_MOST_FEATURES}; average or project them"
        )
    if bad := int((~np.isfinite(rows).all(1)).sum()):
        raise ValueError(
            f"features {name!r} are NaN or inf for {bad} of {len(rows)} finite samples of the data; "
            "they must be finite"
        )
    return rows


def errors_unseen(
    problem: Fitting, rows: Tensor, points: Sequence[Linear]
) -> dict[str, dict[str, float]]:
    """Of two samplers the errors on some noises, in features that no fit has seen, with the mean of
    ln(after/before) over three sets of the noises; nothing for fewer noises."""
    target = problem.target[rows]
    ends = [
        torch.cat([problem.run([p], part) for part in rows.split(problem.batch)]) for p in points
    ]
    finite = torch.stack([x[..., None].flatten(1).isfinite().all(1) for x in (target, *ends)]).all(
        0
    )
    if int(finite.sum()) < SETS:
        return {}
    out = {}
    for seen in reporting(target[finite], problem.features):
        goal, *made = (seen.rows(x[finite], problem.batch) for x in (target, *ends))
        before, after = (np.sqrt(np.mean((x - goal) ** 2, 1)).clip(1e-300) for x in made)
        ratios = [float(np.mean(r)) for r in np.array_split(np.log(after / before), SETS)]
        out[seen.name] = dict(
            before=float(before.mean()), after=float(after.mean()), **over_sets(ratios)
        )
    return out


# -- the distance --------------------------------------------------------------------------------
def squared_energy(x: Floats, y: Floats) -> float:
    """D² of rows (n, D) and (m, D), without bias: around 0, and as often below, on equal distributions."""
    centre = y.mean(0)
    x, y = x - centre, y - centre
    within = mean_within(euclidean, x) + mean_within(euclidean, y)
    return float(2 * mean_across(euclidean, x, y) - within)


def pull(x: Floats, y: Floats) -> tuple[float, Floats]:
    """D² but for E‖y − y'‖, which no x changes, and its derivative (n, D) in the rows x (n, D)."""
    n, m = len(x), len(y)
    across, within = euclidean(x, y), euclidean(x, x)
    np.fill_diagonal(within, 0.0)
    value = 2 * across.mean() - within.sum() / (n * (n - 1))
    near, own = (np.divide(1.0, d, out=np.zeros_like(d), where=d > 0) for d in (across, within))
    towards = (near.sum(1)[:, None] * x - near @ y) / m
    apart = (own.sum(1)[:, None] * x - own @ x) / (n - 1)
    return float(value), 2 * (towards - apart) / n


def change(before: Floats, after: Floats, y: Floats) -> tuple[float, float]:
    """By how much D² to y (m, D) changes from rows ``before`` to rows ``after`` (n, D) of the same noises,
    and half of its 95 % interval, from what each noise and each datum contributes."""
    n, m = len(before), len(y)
    by_noise, by_datum, value = np.zeros(n), np.zeros(m), 0.0
    for sign, x in ((-1.0, before), (1.0, after)):
        across, within = euclidean(x, y), euclidean(x, x)
        np.fill_diagonal(within, 0.0)
        inner = within.sum(1) / (n - 1)
        by_noise += sign * 2 * (across.mean(1) - inner)
        by_datum += sign * 2 * across.mean(0)
        value += sign * float(2 * across.mean() - inner.mean())
    variance = np.var(by_noise, ddof=1) / n + np.var(by_datum, ddof=1) / m
    return value, 1.96 * float(np.sqrt(variance))


def over_sets(values: Sequence[float] | Floats) -> dict[str, float]:
    """The mean change over disjoint sets, and its 95 % interval by Student's t."""
    mean, half = float(np.mean(values)), spread(values)
    return dict(change=mean, low=mean - half, high=mean + half)


def spread(values: Sequence[float] | Floats) -> float:
    """Half the 95 % interval of the mean; inf where a single value says nothing of it."""
    n = len(values)
    if n < 2:
        return math.inf
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))
