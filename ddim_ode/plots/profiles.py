"""A picture of a profile: its grids beside the named ones, and what did best with each number of calls."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..solvers.profile import Profile
from .plans import named_grids
from .style import GRIDS, INK, blank_figure, look, plain_numbers, rule


def profile_plot(profile: Profile, nfe: int = 10) -> Figure:
    """Left: the levels of the method it recommends for ``nfe`` calls, and of the named grids.

    Right: the error of the best of each method with each number of calls that was tried.
    """
    best = profile.recommend(nfe)
    figure = blank_figure(10.0, 4.2, dpi=130)
    left, right = (
        figure.add_axes(box) for box in ((0.08, 0.15, 0.38, 0.72), (0.57, 0.15, 0.28, 0.72))
    )
    levels = np.array(best.levels)
    positive = levels[levels > 0]
    top = 3 * positive[np.isfinite(positive)].max()  # where an infinite level is drawn
    for name, grid in named_grids(profile.schedule, len(positive), profile.sigma_max).items():
        shown = np.minimum(grid, top)
        left.plot(np.arange(1, len(shown) + 1), shown, **GRIDS[name], lw=1, label=name)
    shown = np.minimum(positive, top)
    left.plot(
        np.arange(1, len(shown) + 1), shown, color=INK, lw=2, marker="o", ms=4, label="profile"
    )
    left.set_yscale("log")
    left.set_xlabel("network call")
    left.set_ylabel("level σ")
    left.set_title(f"{best.method} with {nfe} calls")
    left.legend(fontsize=8, frameon=False)
    errors: dict[str, dict[int, float]] = {}
    for calls, screened in sorted(profile.screens.items()):
        most = max(tried.n for tried in screened.tried)
        for tried in screened.tried[::-1]:  # the best last
            if tried.n == most:
                errors.setdefault(tried.method, {})[calls] = tried.error
    for method, points in errors.items():
        right.plot([*points], [*points.values()], label=method, **look(method))
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xticks(sorted(profile.screens), [*map(str, sorted(profile.screens))])
    right.minorticks_off()
    plain_numbers(right.yaxis, (1, 2, 5))  # a range within a decade has no power of ten
    right.set_xlabel("network calls")
    right.set_ylabel("RMS error to the converged ends")
    right.set_title("tried on the model")
    for axis in (left, right):
        rule(axis)
    if errors:
        right.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure
