"""Methods: what a solver is, before a grid is known. A method is data.

A one-step method is a chart and a tableau. A multistep method is a chart, a ruler and the number
of past velocities it interpolates (quadrature.py). The registry below is the whole list.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._checks import one_of
from .chart import CHARTS
from .tableau import DOPRI5, HEUN, MIDPOINT, RK4, Tableau


@dataclass(frozen=True)
class Method:
    """A fixed-step solver as data; usable everywhere a method name is.

    name: shown in tables. order: with exact starting values (None: stochastic). chart: ``"eps" |
    "data" | "flow" | "log" | "trig" | "exp"``. tableau: Runge–Kutta stages within a step, for a
    one-step method. past: how many velocities, the current one included, a multistep method
    interpolates. ruler: the scale it interpolates in, ``"sigma" | "log_sigma" | "t"`` or another key of
    ``ddim_ode.solvers.chart.SCALES`` (None: the chart's clock). eta: 0.0 if the caller may add step
    noise (``eta=``, ``noise_std=``), another value if it always has that much, None if it has none.
    reference: where it comes from.
    """

    name: str
    order: int | None
    chart: str = "eps"
    tableau: Tableau | None = None
    past: int = 1
    ruler: str | None = None
    eta: float | None = None
    reference: str = ""

    def __post_init__(self) -> None:
        one_of("chart", self.chart, CHARTS)
        if self.tableau is not None and self.past != 1:
            raise ValueError(
                f"method {self.name!r}: give a tableau or past={self.past} velocities, not both"
            )

    @property
    def nfe_per_step(self) -> int:
        """Network calls in a full step."""
        return self.tableau.stages if self.tableau is not None else 1

    @property
    def order_as_run(self) -> int | None:
        """Global order from rising-order starting steps: at most 2 for a multistep method."""
        return self.order if self.past == 1 or self.order is None else min(self.order, 2)


# Runge–Kutta methods without a published chart of their own run in "flow". On the shipped model, 11 to
# 41 calls on four grids (benchmarks/charts.py), it stayed within 1.4 × (midpoint) and 1.9 × (rk4) of
# the best chart everywhere, where "eps" was off by up to 3.4 × and 92 × and "log" by over 1,000 ×. It
# is also finite at σ = inf.
_ADAMS = "Adams–Bashforth with exact variable-step weights; Hairer, Nørsett, Wanner I, III.5"

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("ddim", 1, eta=0.0, reference="Song, Meng, Ermon 2021, arXiv:2010.02502"),
        Method("ddpm", None, eta=1.0, reference="Ho, Jain, Abbeel 2020, arXiv:2006.11239"),
        Method("heun", 2, tableau=HEUN, reference="Karras et al. 2022, arXiv:2206.00364, alg. 1"),
        Method("midpoint", 2, "flow", MIDPOINT, reference="Runge 1895"),
        Method("rk4", 4, "flow", RK4, reference="Kutta 1901"),
        Method("rk45", 5, "flow", DOPRI5, reference="Dormand & Prince 1980"),
        Method("ab2", 2, past=2, ruler="sigma", reference=_ADAMS),
        Method("ab3", 3, past=3, ruler="sigma", reference=_ADAMS),
        Method("ab4", 4, past=4, ruler="sigma", reference=_ADAMS),
    )
}


def get_method(method: str | Method) -> Method:
    """The method itself, or the registered one of that name; ValueError listing the names."""
    return method if isinstance(method, Method) else METHODS[one_of("method", method, METHODS)]


def methods() -> list[dict[str, object]]:
    """The registry as rows: name, order with exact starts, order as run, nfe per step, chart,
    past velocities, reference.

    >>> import ddim_ode
    >>> [row["name"] for row in ddim_ode.methods() if row["order"] == 2]
    ['heun', 'midpoint', 'ab2']
    """
    return [
        dict(
            name=m.name,
            order=m.order,
            order_as_run=m.order_as_run,
            nfe_per_step=m.nfe_per_step,
            chart=m.chart,
            past=m.past,
            reference=m.reference,
        )
        for m in METHODS.values()
    ]
