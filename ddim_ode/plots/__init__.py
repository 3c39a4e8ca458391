"""Pictures, of comparisons, plans and samples. They take rows and plans, and know no Comparison.

plan_plot     a plan: the levels of its calls, its weights as a heat map
profile_plot  a profile: its grid beside the named ones, what did best with each number of calls
errors_plot   error against network calls; metric_plot: any other column of a comparison's rows
ends_plot     where solvers take noises in the plane
look          the colour, marker and line of a method
sample_grid, solver_grid   pictures of samples; save_figure writes a figure, whole or not at all
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    **dict.fromkeys(("ends_plot", "errors_plot", "metric_plot"), "comparisons"),
    **dict.fromkeys(("sample_grid", "save_figure", "solver_grid"), "pictures"),
    "plan_plot": "plans",
    "profile_plot": "profiles",
    "look": "style",
}

if TYPE_CHECKING:
    from .comparisons import ends_plot as ends_plot
    from .comparisons import errors_plot as errors_plot
    from .comparisons import metric_plot as metric_plot
    from .pictures import sample_grid as sample_grid
    from .pictures import save_figure as save_figure
    from .pictures import solver_grid as solver_grid
    from .plans import plan_plot as plan_plot
    from .profiles import profile_plot as profile_plot
    from .style import look as look


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
