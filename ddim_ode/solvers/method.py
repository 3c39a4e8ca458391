"""What a method is: data, before a grid is known."""

from __future__ import annotations

from dataclasses import dataclass

from .._base.checks import count, flag, one_of, shown, text_of
from .chart import CHARTS, SCALES
from .quadrature import RULES
from .renoising import Rises
from .stochastic import Eta, check_eta
from .tableau import Singlestep, Tableau


@dataclass(frozen=True)
class Method:
    """A fixed-step solver as data; usable everywhere a method name is.

    Args:
        name: Shown in tables.
        order: Of the ODE solve, with exact starting values; None for a stochastic method.
        chart: ``"eps" | "data" | "flow" | "log" | "trig" | "exp"``, of the fixed plan (adaptive solves have
            their own).
        stages: Those within a step of a one-step method: a :class:`Tableau` or a :class:`Singlestep`.
        past: How many velocities a multistep method interpolates, the current one included.
        ruler: The scale it interpolates in, ``"sigma" | "log_sigma" | "t"`` or another key of
            ``ddim_ode.solvers.chart.SCALES`` (default: the chart's clock).
        corrector: Take each step again, once the velocity at its end is known, through that one too
            (UniPC). This costs no further call, and is left out in the last step. ``"evaluated"`` calls the
            network once more at the corrected state (PECE).
        rules: Departures from exact integration, of ``ddim_ode.solvers.quadrature.RULES``.
        final: ``"lower_order"`` reads at most j velocities j steps before the end; ``"full_order"`` lands
            on σ = 0 by the method's own formula and not by DDIM (chart eps).
        eta: The step noise that the method has unless the caller asks for another (``eta=``,
            ``noise_std=``): η, or a function τ(σ). A caller may ask where it is 0.0, and of every
            method in chart "data".
        weak, strong: With step noise at η = 1 or at the method's own: the order in which moments of the end
            state, and the end state of one noise, converge, as measured; None where nothing was.
        reference: Where it is published.
        rises: Where noise takes it back up between its steps
            (:class:`ddim_ode.solvers.renoising.Churn`, ``Restart``). The plan's grid has these levels, too.

    Raises:
        ValueError: Parts that do not go together.

    >>> import ddim_ode
    >>> mine = ddim_ode.Method("mine", order=2, chart="data", ruler="log_sigma", past=2)
    >>> ddim_ode.plan(mine, ddim_ode.schedules.cosine(), [50.0, 5.0, 0.5, 0.0])
    Plan(mine, 3 steps, nfe 3, chart data)
    """

    name: str
    order: int | None
    chart: str = "eps"
    stages: Tableau | Singlestep | None = None
    past: int = 1
    ruler: str | None = None
    corrector: bool | str = False
    rules: tuple[str, ...] = ()
    final: str | None = None
    eta: Eta | None = None
    reference: str = ""
    weak: float | None = None
    strong: float | None = None
    rises: Rises | None = None

    def __post_init__(self) -> None:
        text_of("name", self.name)
        if not isinstance(self.reference, str):
            raise ValueError(
                f"reference={shown(self.reference)} must be a string, where it is published"
            )
        if self.corrector != "evaluated":
            flag("corrector", self.corrector)
        if self.eta is not None:
            check_eta(self.eta)
        one_of("chart", self.chart, CHARTS)
        if self.ruler is not None:
            one_of("ruler", self.ruler, [*SCALES, "t"])
        if self.order is not None:
            object.__setattr__(self, "order", count("order", self.order))
        if not isinstance(self.stages, (Tableau, Singlestep, type(None))):
            wanted = f"stages={shown(self.stages)} must be a Tableau or Singlestep"
            raise ValueError(f"method {self.name!r}: {wanted}")
        if not isinstance(self.rules, tuple):
            raise ValueError(f"method {self.name!r}: rules={shown(self.rules)} must be a tuple")
        if self.stages is not None and (self.past != 1 or self.corrector):
            raise ValueError(
                f"method {self.name!r}: give stages or past={self.past} velocities, not both"
            )
        object.__setattr__(self, "past", count("past", self.past))
        rises = self.rises
        if rises is not None and (isinstance(rises, type) or not isinstance(rises, Rises)):
            raise ValueError(
                f"method {self.name!r}: rises={shown(self.rises)} must be a Churn, a Restart or the like"
            )
        if self.rises is not None and (self.multistep or self.eta is not None):
            raise ValueError(
                f"method {self.name!r}: between rises={self.rises!r} goes a one-step method without eta"
            )
        for rule in self.rules:
            one_of("rule", rule, RULES)
        if len(self.rules) > 1 and ("adams" in self.rules or {"midpoint", "bh1"} <= {*self.rules}):
            raise ValueError(
                f"method {self.name!r}: rules={self.rules} exclude each other; drop one"
            )
        if self.final is not None:
            one_of("final", self.final, ("lower_order", "full_order"))
        unread: dict[str, object] = dict(final=self.final)
        if isinstance(self.stages, Tableau):
            unread |= dict(rules=self.rules, ruler=self.ruler)
        for name, value in unread.items() if not self.multistep else ():
            if value:
                raise ValueError(
                    f"method {self.name!r} reads no {name}={shown(value)}: only multistep methods do"
                    + ("" if name == "final" else ", and singlestep ones")
                    + f"; drop {name}"
                )
        if self.final == "full_order" and (self.chart, self.ruler or "sigma") != ("eps", "sigma"):
            raise ValueError(
                f"method {self.name!r}: final='full_order' needs chart 'eps' and ruler 'sigma', "
                "which are finite at σ=0"
            )

    @property
    def multistep(self) -> bool:
        """Whether a step reads velocities from outside itself."""
        return self.past > 1 or bool(self.corrector)

    @property
    def takes_noise(self) -> bool:
        """Whether a caller may choose its step noise."""
        return (self.chart == "data" or self.eta == 0.0) and self.rises is None

    @property
    def adds_noise(self) -> bool:
        """Whether it adds noise by itself."""
        return bool(self.eta) or self.rises is not None

    @property
    def nfe_per_step(self) -> int:
        """Network calls in a full step."""
        if self.corrector == "evaluated":
            return 2
        return self.stages.stages if self.stages is not None else 1

    @property
    def order_from_ramp(self) -> int | None:
        """Global order from rising-order starting steps: at most 2, or 3 with a corrector."""
        if not self.multistep or self.order is None:
            return self.order
        return min(self.order, 3 if self.corrector and self.final is None else 2)

    @property
    def order_as_run(self) -> int | None:
        """Global order as run by default on many steps: with the start that is the default there."""
        return self.order if self.rk_steps else self.order_from_ramp

    @property
    def rk_steps(self) -> int:
        """How many first steps ``start="rk"`` takes by Runge–Kutta; 0 where it would gain nothing."""
        if self.order is None or self.order_from_ramp == self.order or self.final == "lower_order":
            return 0
        return self.order - 2 - bool(self.corrector)
