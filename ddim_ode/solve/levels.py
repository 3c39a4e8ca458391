"""Where a solve steps, as its caller asked for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .._base.checks import count, exclusive, one_of, refuse, several
from ..denoising.denoiser import Denoiser
from ..grids import FINALS, check_grid, default_spacing, from_timesteps, make_grid, upward
from ..schedules.schedule import Array
from ..solvers.methods import Method
from ..solvers.profile import Profile, checked_profile

MOST = 1_000_000  # steps or calls: beyond, a slip of the pen


@dataclass(frozen=True)
class Levels:
    """The arguments of :func:`ddim_ode.sample` that place its steps, checked against each other.

    rising: the levels are passed upwards, as :func:`ddim_ode.encode` does; ``sigmas`` falls all the same.
    """

    model: Denoiser
    steps: int | None = None
    nfe: int | None = None
    grid: str | npt.ArrayLike | Profile | None = None
    timesteps: npt.ArrayLike | None = None
    final: str | None = None
    sigma_max: float | None = None
    sigma_min: float | None = None
    rising: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "nfe"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, count(name, getattr(self, name), most=MOST))
        if self.final is not None:
            one_of("final", self.final, FINALS)
        exclusive(steps=self.steps, nfe=self.nfe, timesteps=self.timesteps)
        exclusive(timesteps=self.timesteps, grid=self.grid)
        if self.sigma_max is not None:
            self.model.start("sigma_max", self.sigma_max)
        if isinstance(self.grid, str) and self.grid.endswith(".json"):
            raise ValueError(
                f"grid={self.grid!r} is a file; give what it holds, ddim_ode.Profile.load({self.grid!r})"
            )
        if isinstance(self.grid, Profile):
            self.grid.check(self.model.schedule)
        if self.given:
            source = "timesteps" if self.timesteps is not None else "grid"
            final = None if source == "timesteps" else self.final
            refuse(
                f"{source}= already fixes the levels",
                steps=self.steps,
                nfe=self.nfe,
                sigma_max=self.sigma_max,
                sigma_min=self.sigma_min,
                final=final,
            )

    @property
    def given(self) -> bool:
        """Whether the caller gave the levels themselves, and not how many."""
        named = self.grid is None or isinstance(self.grid, (str, Profile))
        return self.timesteps is not None or not named

    @property
    def profile(self) -> Profile | None:
        """What places the steps, if a profile does: the caller's, or the model's own as far as it goes."""
        if isinstance(self.grid, Profile):
            return self.grid
        own = self.model.profile if self.grid is None and self.timesteps is None else None
        own = checked_profile(own, self.model.schedule)
        return own if own is not None and own.reaches(self.first) else None

    def counting(self) -> Levels:
        """The same without a profile, whose plans have as many calls and cost nothing to make."""
        grid = None if isinstance(self.grid, Profile) else self.grid
        return replace(self, grid=grid, model=self.model.replace(profile=None))

    @property
    def placed(self) -> bool:
        """Whether the caller said where to step, and not only how far."""
        return self.given or self.steps is not None or self.grid is not None

    @property
    def first(self) -> float:
        """Where a named grid starts: as the caller said, or as the model does by itself."""
        return self.model.sigma_max if self.sigma_max is None else self.sigma_max

    def sigmas(self, steps: int, calls: int = 1, method: Method | None = None) -> Array:
        """The grid of that many steps (or the caller's own), on trained levels if the model snaps.

        calls: of the method, in each step. method: for which a profile places them.
        """
        if (profile := self.profile) is not None:
            ends: dict[str, Any] = dict(sigma_max=self.first, sigma_min=self.sigma_min)
            ends |= dict(nfe=self.nfe, measure=isinstance(self.grid, Profile))
            own = profile.grid(steps, method=method, final=self.final or "zero", **ends)
            return on_trained_levels(own, self.model) if self.model.snap else own
        if not self.given:
            name, cut = self.spacing(steps, calls)
            return self._named(name, steps, cut)
        if self.timesteps is not None:
            own = from_timesteps(self.model.schedule, self.timesteps, self.final or "zero")
        else:
            own = check_grid(cast("npt.ArrayLike", self.grid), self.model.schedule)
        self.model.start("the first level", own[0])
        return self._snapped(own)

    def _named(self, name: str, steps: int, cut: float | None) -> Array:
        final = self.final or "zero"
        ends: dict[str, Any] = dict(sigma_max=self.first, sigma_min=cut)
        sigmas = make_grid(name, self.model.schedule, steps, final=final, **ends)
        if self.grid is None and self.model.snap and name == "quadratic":  # the default, to σ = 0
            return on_trained_levels(sigmas, self.model)
        return self._snapped(sigmas)

    def spacing(self, steps: int, calls: int = 1) -> tuple[str, float | None]:
        """The name of the grid, and its last positive level where it is told."""
        if self.profile is not None:
            return "profile", self.sigma_min
        if isinstance(self.grid, str):
            return self.grid, self.sigma_min
        return default_spacing(
            self.model.schedule,
            steps,
            calls,
            final=self.final or "zero",
            sigma_max=self.first,
            sigma_min=self.sigma_min,
            snap=self.model.snap,
        )

    def label(self, steps: int, calls: int = 1) -> str | None:
        """What the grid is called; None where the caller gave the levels."""
        return None if self.given else self.spacing(steps, calls)[0]

    def ends(self, calls: int | None = None) -> Array:
        """Where a solver that chooses its own steps begins and stops: σ_max, σ_min, and 0 if it lands
        there; rising, σ_min and σ_max.

        calls: Of one of its steps. A budget of one step and the landing ends where a plan of these would.
        """
        cut = self.sigma_min
        if calls is not None and self.nfe is not None and self.nfe <= 2 * calls:
            cut = self.counting().spacing(2, calls)[1]
        return self.passed(self._named("time", 1 if self.final == "sigma_min" else 2, cut))

    def passed(self, sigmas: Array) -> Array:
        """The levels of a (falling) grid in the order they are passed."""
        return upward(sigmas) if self.rising else sigmas

    def required(
        self,
        who: str,
        remedy: str = "give steps=",
        calls: int = 1,
        method: Method | None = None,
    ) -> Array:
        """The grid of ``steps`` steps, or the caller's own; ValueError if neither was given."""
        if self.steps is None and not self.given:
            raise ValueError(f"{who} needs to know where to step: {remedy}")
        return self.sigmas(self.steps or 0, calls, method)

    def _snapped(self, sigmas: Array) -> Array:
        if not self.model.snap:
            return sigmas
        positive = self.model.snapped(sigmas[sigmas > 0])
        distinct = len(np.unique(positive))
        if distinct < len(positive):
            raise ValueError(
                f"snap=True: {len(positive)} levels of the grid fall on only {distinct} distinct "
                f"trained levels (of {self.model.schedule.T:g}); take fewer steps or another grid, or "
                "use snap=False"
            )
        return np.append(positive, 0.0) if sigmas[-1] == 0 else positive


def on_trained_levels(sigmas: Array, model: Denoiser) -> Array:
    """The nearest trained level to each of a falling grid, none twice; ValueError if there are too few."""
    trained = model.schedule.levels
    positive = sigmas[sigmas > 0]
    n = len(positive)
    times = np.rint(model.schedule.time(positive)).astype(int)
    if n > times[0]:
        raise ValueError(
            f"snap=True: {n} levels would fall on only {times[0]} distinct trained levels (σ="
            f"{positive[0]:.4g} and below); take fewer steps, or use snap=False"
        )
    rank = np.arange(n)
    times = np.minimum.accumulate(times + rank) - rank  # strictly falling
    times = np.maximum(times, n - rank)  # and room for those that follow
    found = trained[times - 1]
    return np.append(found, 0.0) if sigmas[-1] == 0 else found


def budgets(nfe: Any) -> list[int]:
    """The budgets, rising; ValueError if there is none or one is no whole number."""
    wanted = several(nfe)
    if not wanted:
        raise ValueError("nfe is empty; give budgets of network calls such as nfe=[5, 10, 20]")
    return sorted({count("nfe", n) for n in wanted})
