"""A model's profile: its own grids for any solver and any number of calls, as plain numbers.

:func:`ddim_ode.profile` makes one. It holds a surrogate of the model, by which grids are made without a
network call, and the screens: for each number of calls that was asked for, how the best methods and grids
did on the model itself. On disk it is JSON of bounded size with a checksum, and nothing in it is run.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._base import files, json_file, notebook
from .._base.checks import count, number, one_of, path_of, shown
from ..grids import FINALS
from ..schedules.schedule import Array, Schedule
from . import profile_json
from .design import Design, designed, expected, named
from .fit import ode_text
from .methods import METHODS, Method, get_method
from .screens import TRIED, Recommendation, Screen, Tried, calls_of, steps_within
from .surrogate import Surrogate

MOST_CALLS = 1_000
_SAME = 1e-5  # relative: as near as six digits say
_MOST_SCREENED = 100  # calls beyond which plans are made, and not tried

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self


@dataclass(eq=False, repr=False)
class Profile:
    """A model's own clock: where to start, where to step and where to end.

    surrogate: what one look at the model has seen. about: of which model it is and how it was made, plain
    data. screens: by network calls. A profile that :func:`ddim_ode.profile` has just made holds the model,
    too: grids of a number of calls that it has not screened yet are screened when they are asked for.

    >>> import ddim_ode
    >>> model = ddim_ode.exact.gaussian_mixture([0.5, 0.5], [-1, 1], [0.3, 0.3], ddim_ode.schedules.ddpm())
    >>> prof = ddim_ode.profile(model, progress=False)
    >>> prof.grid(5).shape, bool(prof.grid(5)[0] == model.sigma_max)
    ((6,), True)
    """

    surrogate: Surrogate
    about: dict[str, Any]
    screens: dict[int, Screen] = field(default_factory=dict)
    screener: Callable[[int], Screen | None] | None = None
    _made: dict[Any, Design] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        """The model's schedule."""
        return self.surrogate.schedule

    @property
    def sigma_max(self) -> float:
        """The highest level that its grids start from."""
        return float(self.surrogate.levels[0])

    @property
    def net_evals(self) -> int:
        """Rows the network has processed for it, the screens included."""
        return int(self.about["net_evals"]) + sum(s.net_evals for s in self.screens.values())

    def reaches(self, sigma: float) -> bool:
        """Whether its grids start from a level so high, or the same as messages write it, in six digits."""
        return sigma <= self.sigma_max * (1 + _SAME)

    def check(self, schedule: Schedule) -> None:
        """ValueError for another schedule than that of its model."""
        if schedule.fingerprint != self.schedule.fingerprint:
            raise ValueError(
                f"the profile is of {self.schedule!r} and the model has {schedule!r}; make one of this "
                "model (ddim_ode.profile)"
            )

    def screen(self, nfe: int) -> Screen | None:
        """What was tried with so many calls; up to 100 they are tried now, if this profile holds its model.

        None where they are not tried: on a profile from a file, or of a pipeline that is closed.
        """
        nfe = count("nfe", nfe, most=MOST_CALLS)
        if nfe in self.screens or self.screener is None or nfe > _MOST_SCREENED:
            return self.screens.get(nfe)
        screened = self.screener(nfe)
        if screened is not None:
            self.screens[nfe] = screened
        return screened

    def __getstate__(self) -> dict[str, Any]:
        """Its numbers: copies, and what goes to other processes, leave the model behind."""
        return {**self.__dict__, "screener": None, "_made": {}}

    def recommend(self, nfe: int) -> Recommendation:
        """The method and grid that err least on this model with ``nfe`` calls, or the most below it.

        Args:
            nfe: Network calls. What has not been tried with so many is tried now, see :meth:`screen`, or
                where that cannot be, the surrogate says what to expect.

        >>> import ddim_ode
        >>> model = ddim_ode.exact.gaussian([0.0], [[0.25]], ddim_ode.schedules.cosine())
        >>> best = ddim_ode.profile(model, progress=False).recommend(6)
        >>> best.measured, len(best.levels) - 1
        (True, 6)
        """
        if screened := self.screen(nfe):
            best = screened.tried[0]
            return Recommendation(best.method, best.levels, best.error, True)
        found = []
        for name in TRIED:
            steps, _ = steps_within(METHODS[name], self.schedule, nfe)
            if steps:
                design = self.design(METHODS[name], steps)
                found.append(
                    Recommendation(name, tuple(design.levels.tolist()), design.error, False)
                )
        return min(found, key=lambda r: r.error)

    def grid(
        self,
        steps: int,
        order: int = 2,
        *,
        method: str | Method | None = None,
        final: str = "zero",
        sigma_max: float | None = None,
        sigma_min: float | None = None,
        nfe: int | None = None,
        measure: bool = True,
    ) -> Array:
        """The levels of so many steps: strictly falling σ and then 0.

        Args:
            steps: Intervals of the grid.
            order: Of the method, where it is not named: 1 for ``ddim``, 2 (the default) and above for
                the best of the multistep methods of at least that order.
            method: A name of :func:`ddim_ode.methods` or a :class:`ddim_ode.Method`.
            final: ``"zero"`` lands on x̂₀, ``"sigma_min"`` stops at the last level above 0.
            sigma_max: Another start, below the profile's own.
            sigma_min: The last level above 0 (default: where the method errs least, or for
                final="sigma_min" the lowest that the profile has seen).
            nfe: The calls of the plan, where a method can take the steps with several numbers of them.
            measure: Whether what has not been tried with so many calls is tried now, which takes some 100
                network rows a call. Other ends than the profile's own are never tried: their grids are
                what the surrogate expects to be best.

        Raises:
            ValueError: A start above the profile's, or no room between the ends.
        """
        steps, order = count("steps", steps, most=MOST_CALLS), count("order", order, most=4)
        nfe = None if nfe is None else count("nfe", nfe)
        one_of("final", final, FINALS)
        top = self._top(sigma_max)
        plain = final == "zero" and sigma_min is None and top == self.sigma_max
        if method is None:
            if plain and order > 1:
                names = [name for name, known in METHODS.items() if (known.order or 0) >= order]
                if tried := self._best(names, steps, steps, measure):
                    return np.array(tried.levels)
            method = "ddim" if order == 1 else "dpmpp2m" if order == 2 else "unipc3"
        spec = get_method(method)
        if plain and METHODS.get(spec.name) == spec and spec.name in TRIED:
            nfe = nfe or calls_of(spec, self.schedule, steps)
            if tried := self._best([spec.name], nfe, steps, measure):
                return np.array(tried.levels)
        return self.design(spec, steps, top, final, sigma_min).levels.copy()

    def design(
        self,
        method: Method,
        steps: int,
        sigma_max: float | None = None,
        final: str = "zero",
        sigma_min: float | None = None,
    ) -> Design:
        """The grid on which the surrogate expects the method to err least; no network is called."""
        top = self._top(sigma_max)
        last = None
        if final == "sigma_min" or sigma_min is not None:
            last = (
                self.surrogate.levels[-1] if sigma_min is None else number("sigma_min", sigma_min)
            )
            if not 0 < last < top:
                raise ValueError(f"sigma_min={last:g} must lie in (0, {top:g}), below the start")
        key = (method, steps, top, final, last)
        if key not in self._made:
            designs = self.designs(method, steps, top=top, lands=final == "zero", last=last)
            self._made[key] = min(designs, key=lambda design: design.error)
        return self._made[key]

    def designs(
        self,
        method: Method,
        steps: int,
        *,
        top: float | None = None,
        lands: bool = True,
        last: float | None = None,
        begin: str | None = None,
    ) -> list[Design]:
        """The best named grid, and one made from it. begin: as of :func:`expected`."""
        found = [
            Design(levels, expected(self.surrogate, method, levels, begin=begin), source)
            for source, levels in named(self.surrogate, steps, top, last, lands)
        ]
        if not found:
            raise ValueError(f"no grid has {steps} steps between those ends; give fewer steps")
        best = min(found, key=lambda design: design.error)
        free = lands and last is None
        return [
            best,
            designed(self.surrogate, method, best.levels, free=free, begin=begin),
        ]

    def _top(self, sigma_max: float | None) -> float:
        top = self.sigma_max if sigma_max is None else self.schedule.level(sigma_max, "sigma_max")
        if not top > self.surrogate.levels[-1]:
            raise ValueError(
                f"sigma_max={top:g} must be above σ={self.surrogate.levels[-1]:g}, the lowest level that "
                "the profile has seen"
            )
        if not self.reaches(top):
            raise ValueError(
                f"sigma_max={top:g} is above σ={self.sigma_max:g}, from where the profile was made; give "
                f"sigma_max={self.sigma_max:g}, or make another (ddim_ode.profile(model, sigma_max=))"
            )
        return min(top, self.sigma_max)

    def _best(self, names: list[str], nfe: int, steps: int, measure: bool) -> Tried | None:
        """Of these methods, what did best with so many calls, in so many steps."""
        screened = self.screen(nfe) if measure else self.screens.get(nfe)
        tried = screened.tried if screened else ()
        return next((one for one in tried if one.steps == steps and one.method in names), None)

    def plot(self, nfe: int = 10) -> Figure:
        """A picture: its grid beside the named ones, and what did best, see
        :func:`ddim_ode.plots.profile_plot`."""
        # found when it is called: numbers do not know pictures
        plots = importlib.import_module("ddim_ode.plots")
        return plots.profile_plot(self, nfe)

    # -- what is seen of it -----------------------------------------------------------------------
    def __repr__(self) -> str:
        screened = ", ".join(map(str, sorted(self.screens))) or "none yet"
        return f"Profile({self.about['model']}, σ_max {self.sigma_max:.4g}, screened at {screened} calls)"

    def describe(self) -> str:
        """What it is of, what it cost, and for each number of calls what did best."""
        about = self.about
        altered = ode_text(about["alterations"])
        lines = [
            f"profile of {about['model']}" + (f", {altered}" if altered else ""),
            f"  from σ={self.sigma_max:.4g}, {about['n']} noises from seed {about['seed']}",
            f"  their converged ends: {about['solver']}, off by about {about['reference_error']:.2g}",
            f"  network rows: {about['net_evals']:,} for the look, {self.net_evals:,} in all",
        ]
        for nfe, screened in sorted(self.screens.items()):
            lines.append(f"  {nfe} calls")
            seen: set[str] = set()
            for tried in screened.tried:
                if tried.method not in seen:
                    seen.add(tried.method)
                    end = [sigma for sigma in tried.levels if sigma > 0][-1]
                    lines.append(
                        f"    {tried.method:<8} error {tried.error:.3g} on {tried.n} noises, last level "
                        f"σ={end:.3g} ({tried.source})"
                    )
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """What did best with each number of calls, for tables."""
        return [
            dict(
                nfe=nfe,
                method=best.method,
                error=f"{best.error:.3g}",
                noises=best.n,
                grid=best.source,
                last_level=f"{[sigma for sigma in best.levels if sigma > 0][-1]:.3g}",
            )
            for nfe, best in ((nfe, self.screens[nfe].tried[0]) for nfe in sorted(self.screens))
        ]

    def _repr_html_(self) -> str:
        rows = [(r["nfe"], r["method"], r["error"], r["grid"]) for r in self.rows()]
        facts = [
            ("model", self.about["model"]),
            ("starts at σ", f"{self.sigma_max:.4g}"),
            ("noises", self.about["n"]),
            ("network rows", f"{self.net_evals:,}"),
        ]
        head = ("calls", "method", "error", "grid")
        return notebook.card("Profile", facts, notebook.table(head, rows, left=(1, 3)))

    # -- on disk ------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """Its text on disk."""
        return profile_json.dumps(self)

    def save(self, path: str | Path) -> None:
        """Write it, whole or not at all."""
        path = path_of("path", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, self.to_json())

    def keep(self, path: str | Path) -> None:
        """Write it now, and again after each screen that follows."""
        self.save(path)
        if (screener := self.screener) is not None:

            def screened(nfe: int) -> Screen | None:
                if (made := screener(nfe)) is not None:
                    self.screens[nfe] = made
                    with contextlib.suppress(OSError):  # what cannot be kept is used all the same
                        self.save(path)
                return made

            self.screener = screened

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A file that is no profile, or was altered. It names the field.
        """
        return cls.from_json(json_file.content(path, "profile", profile_json.SIZE_LIMIT), str(path))

    @classmethod
    def from_json(cls, data: str | bytes, source: str = "profile") -> Self:
        """The profile of such a text; ValueError, beginning with ``source``, for any other."""
        if not isinstance(data, (str, bytes)):
            raise ValueError(f"{source}: must be a profile's text, got {shown(data)}")
        raw = data.encode() if isinstance(data, str) else data
        return cls(*profile_json.fields(raw, source))


def checked_profile(profile: Any, schedule: Schedule, top: float | None = None) -> Profile | None:
    """The profile, or None for none; ValueError for anything else, for one of another schedule, and for one
    that starts below ``top``, where its model would."""
    if profile is None:
        return None
    if not isinstance(profile, Profile):
        raise ValueError(f"profile must be a ddim_ode.Profile, got {shown(profile)}")
    profile.check(schedule)
    if top is not None and not profile.reaches(top):
        raise ValueError(
            f"the profile starts at σ={profile.sigma_max:g} and the model at {top:g}; give the model "
            f"sigma_max={profile.sigma_max:g}, or make a profile from there"
        )
    return profile
