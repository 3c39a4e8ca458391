"""The energy distance: Euclidean distances within and between two samples.

D² = 2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖       (Székely & Rizzo 2013)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .pairs import Floats, as_pair, mean_across, mean_within, squared_distances


def energy_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """The root D, as of scipy.stats.energy_distance, between rows a (N, D) and b (M, D), in √unit.

    The means run over all pairs, a row with itself included. So D² is a distance between the two samples
    (never negative, zero for equal ones), and biased: on equal distributions it is E‖x − x'‖ (1/N + 1/M).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((200, 2))
    >>> energy_distance(x, x) < 1e-7 < energy_distance(x, x + 0.1) < energy_distance(x, x + 0.2)
    True
    """
    x, y = as_pair(a, b, least=1)
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    squared = 2 * mean_across(euclidean, x, y) - _with_itself(x) - _with_itself(y)
    return float(np.sqrt(max(0.0, squared)))


def euclidean(x: Floats, y: Floats) -> Floats:
    """‖x_i − y_j‖ (len(x), len(y))."""
    d = squared_distances(x, y)
    return np.sqrt(d, out=d)


def _with_itself(x: Floats) -> float:
    n = len(x)
    return mean_within(euclidean, x) * (n - 1) / n if n > 1 else 0.0
