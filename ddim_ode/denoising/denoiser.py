"""The border: a user's network becomes a denoiser once, and nothing behind it cares which kind it was.

A denoiser answers at (x, σ) with the pair (x̂₀, ε̂), x = ᾱ x̂₀ + β̄ ε̂, whatever the network predicts:

    eps    ε̂                     v      ᾱε̂ − β̄x̂₀
    x0     x̂₀                    score  −ε̂/β̄
    flow   ε̂ − x̂₀

The loop does not form the pair. It asks for the one vector its plan stores, so that a network that
predicts that vector is called and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import (
    flag,
    floating,
    function,
    host_numbers,
    number,
    one_of,
    shown,
)
from .._base.notebook import card
from .._base.tensors import check_state, column, wide
from .._base.warn import warn
from ..grids import LOWERED, default_start, trusted
from ..schedules.schedule import Array, Schedule, check_schedule
from ..solvers.chart import PREDICTIONS as PREDICTIONS
from ..solvers.chart import convert
from ..solvers.fit import ode_text
from ..solvers.plan import Node
from ..solvers.profile import Profile
from .guidance import Branches, Call, Guidance, Level, Limit, taken
from .network import Net, check_cond, check_names, check_output, guarded, halved
from .seeding import sizes

if TYPE_CHECKING:
    from .micro_batches import MicroBatches


class Denoiser:
    """A network with all that is needed to call it: schedule, prediction, network time, guidance.

    net: any callable ``net(x (b, *), t (b,), **cond) -> (b, *)``; b may be smaller than the batch. It
    must leave its inputs as they are (noticed, but under ``torch.inference_mode``), and return a new tensor
    at each call (multistep methods keep it). A module in training mode whose answers that changes (dropout,
    batch norm) gets a warning.
    t arrives as float32 (or wider) and need not be whole: a network that knows only integer times wants
    ``snap=True`` and its own ``t.round().long()``.
    prediction: what it returns, ``"eps" | "x0" | "v" | "score" | "flow"``.
    time_offset: added to the schedule time t before the call: −1 for a network trained on 0..T−1.
    time: ``callable(t, sigma) -> network time`` (numpy arrays) for anything else.
    snap: move σ and t together to the nearest trained level, an integer t in 1..T. Grids are snapped
    before a method is compiled on them; the inner stages of a Runge–Kutta method are evaluated at the
    nearest level too, which limits midpoint, rk4 and rk45 to an error of a few 1e-4 of x at T = 1000.
    guidance: a :class:`Guidance`. learned_variance: ``"split"`` for a network that returns 2C channels, on
    whichever axis, the prediction first. dtype: what x is cast to for the network (the state stays as it
    is, float32 or wider, and t is never narrower than float32).
    clip: keep x̂₀ in [−clip, clip]; threshold: dynamic thresholding at that quantile of |x̂₀|, or
    (quantile, most) (see :class:`ddim_ode.denoising.guidance.Limit`). ε̂ follows the limited x̂₀, after
    guidance. Either makes the ODE another one, as guidance does; a solution's ``alterations`` say so.
    shape: of ONE sample, for the calls that make noises themselves (``compare``, ``calibrate``,
    ``generate``) and would otherwise have to be told.
    sigma_max: the level that sampling starts from where a call does not say (default:
    :func:`ddim_ode.grids.default_start`, which is σ(T) but for ε- and score-networks of schedules that
    end in next to no signal). A level that such a network says nothing of x̂₀ at warns.

    profile: a :class:`ddim_ode.Profile` of this model, whose grids are then those that a solve takes where it
    names none.

    ``model(x, sigma)`` gives ``(x0, eps)``. ValueError for an unknown prediction, an output of
    another shape than x, or ε- and score-networks asked for x̂₀ at ᾱ = 0.

    >>> import torch, ddim_ode
    >>> net = lambda x, t: torch.zeros_like(x)  # a network of no noise, on times 0..999
    >>> model = ddim_ode.Denoiser(net, ddim_ode.schedules.ddpm(), "eps", time_offset=-1.0)
    >>> x0, eps = model(torch.ones(2, 3), 1.0)
    >>> x0.shape, float(eps.abs().max())
    (torch.Size([2, 3]), 0.0)
    """

    def __init__(
        self,
        net: Net,
        schedule: Schedule,
        prediction: str = "eps",
        time_offset: float = 0.0,
        time: Callable[[Array, Array], Array] | None = None,
        snap: bool = False,
        guidance: Guidance | None = None,
        learned_variance: str | None = None,
        dtype: torch.dtype | None = None,
        clip: float | None = None,
        threshold: float | tuple[float, float] | None = None,
        shape: Sequence[int] | None = None,
        sigma_max: float | None = None,
        profile: Profile | None = None,
    ) -> None:
        if not callable(net):
            raise ValueError(f"net must be callable as net(x, t, **cond), got {type(net).__name__}")
        check_schedule(schedule)
        if learned_variance is not None:
            one_of("learned_variance", learned_variance, ["split"])
        if guidance is not None and not isinstance(guidance, Guidance):
            raise ValueError(
                f"guidance={shown(guidance)}: give ddim_ode.Guidance(scale, null={{name: value}})"
            )
        time_offset = number("time_offset", time_offset)
        if not np.isfinite(time_offset):
            raise ValueError(f"time_offset={time_offset!r} must be finite")
        if time is not None:
            function("time", time)
        if time is not None and time_offset:
            raise ValueError("both time and time_offset are given; let time() add the offset")
        self.net = net
        self.schedule = schedule
        self.prediction = one_of("prediction", prediction, PREDICTIONS)
        self.time_offset, self.time, self.snap = time_offset, time, flag("snap", snap)
        self.guidance = None if guidance is None or guidance.is_off else guidance
        self.limit = Limit(clip, threshold)
        self.learned_variance = learned_variance
        self.shape: Any = None if shape is None else sizes(shape)
        self.dtype = None if dtype is None else floating(dtype)
        self.sigma_max = default_start(schedule, self.prediction)
        if sigma_max is not None:
            self.sigma_max = self.start("sigma_max", sigma_max)
        self.profile = profile
        if profile is not None and not isinstance(profile, Profile):
            raise ValueError(
                f"profile={shown(profile)} must be a ddim_ode.Profile, as ddim_ode.profile makes it"
            )
        if profile is not None and profile.schedule.fingerprint != schedule.fingerprint:
            raise ValueError(
                f"the profile is of {profile.schedule!r} and the model has {schedule!r}; make one of this "
                "model (ddim_ode.profile)"
            )
        self.micro_batches: MicroBatches | None = None  # ddim_ode.accelerate(batch=)
        self._levels = schedule.levels if snap else None

    def start(self, name: str, sigma: float) -> float:
        """``sigma`` as a level to start from; a warning where the prediction says nothing of x̂₀ there.

        ValueError for σ outside the schedule's range, or 0. name: whose value it is.
        """
        level = self.schedule.level(sigma, name)
        if level == 0:
            raise ValueError(f"{name}=0 is no level to start from: there is no noise to predict")
        most = trusted(self.schedule, self.prediction)
        if most < level < np.inf and not level <= self.sigma_max < np.inf:
            warn(
                f"{name}={level:.6g}: x̂₀ of a network with prediction={self.prediction!r} errs by σ times "
                f"what its ε̂ does, and above σ={most:g} it is lost; start from sigma_max={LOWERED:g}"
            )
        return level

    def starting_at(self, sigma_max: float | None) -> Denoiser:
        """The same denoiser, with another level to start from by default; None: as it is."""
        if sigma_max is None:
            return self
        return self.replace(sigma_max=self.start("sigma_max", sigma_max))

    def replace(self, **changes: Any) -> Denoiser:
        """The same denoiser with other attributes, such as ``guidance=None``. The network is not copied.

        Raises:
            AttributeError: A name that it has not.

        >>> import ddim_ode
        >>> model = ddim_ode.exact.gaussian([0.0], [[1.0]], ddim_ode.schedules.cosine())
        >>> model.replace(snap=True).snap, model.snap
        (True, False)
        """
        other = copy.copy(self)
        for name, value in changes.items():
            getattr(self, name)  # which says what it has not
            setattr(other, name, value)
        return other

    @property
    def rows_per_sample(self) -> int:
        """Rows the network processes for one sample at most: 2 under guidance."""
        return 2 if self.guidance is not None else 1

    def rows(self, sigma: npt.ArrayLike) -> int:
        """Rows the network processes for one sample at each of these levels."""
        levels = np.atleast_1d(np.asarray(sigma, dtype=np.float64))
        guided = 0 if self.guidance is None else self.guidance.covers(self.snapped(levels)).sum()
        return levels.size + int(guided)

    @property
    def alterations(self) -> dict[str, Any]:
        """What makes its ODE another than the network's own: guidance, clip, threshold; {} if nothing."""
        return {**(self.guidance.to_dict() if self.guidance else {}), **self.limit.to_dict()}

    @property
    def answers(self) -> str:
        """The vector that a call is answered with: what the network predicts, or x̂₀ if that is limited."""
        return "x0" if self.limit else self.prediction

    def snapped(self, sigma: Array) -> Array:
        """σ as the network will see it: the nearest trained level (in t) if ``snap``, else itself."""
        if self._levels is None:
            return sigma
        index = np.rint(self.schedule.time(sigma)).astype(int).clip(1, self._levels.size) - 1
        return self._levels[index]

    def network_time(self, sigma: Array, t: Array | None = None) -> Array:
        """What the network receives as t at (already snapped) levels σ."""
        if self._levels is not None:
            t = np.rint(self.schedule.time(sigma))
        elif t is None:
            t = self.schedule.time(sigma)
        if self.time is None:
            return t + self.time_offset
        found = self.time(t, sigma)
        try:
            told = np.broadcast_to(host_numbers("time", found), sigma.shape)
        except ValueError:
            told = np.full(sigma.shape, np.nan)
        if np.isnan(told).any():
            raise ValueError(
                f"time(t, σ) must return a number for each of {sigma.size} levels, got {shown(found)}"
            )
        return told

    def _time_dtype(self, x: Tensor) -> torch.dtype:
        """The network's own precision, but never half: bfloat16 cannot tell t = 999 from 1000."""
        return wide(self.dtype or x.dtype)

    def __repr__(self) -> str:
        altered = f", {ode_text(self.alterations)}" if self.alterations else ""
        return f"{type(self).__name__}({self.prediction}-network, {self.schedule!r}{altered})"

    def _repr_html_(self) -> str:
        offset = f"t {self.time_offset:+g}" if self.time_offset else "t"
        facts = [
            ("network", getattr(self.net, "__qualname__", type(self.net).__qualname__)),
            ("predicts", self.prediction),
            ("schedule", self.schedule),
            ("sample", self.shape),
            ("guidance", self.guidance),
            ("limits of x̂₀", self.limit.to_dict() or None),
            ("network time", "a function of t and σ" if self.time else offset),
            ("trained levels alone", "yes" if self.snap else None),
            ("computes in", self.dtype),
        ]
        return card(type(self).__name__, facts)

    def __call__(
        self,
        x: Tensor,
        sigma: float | Array | Tensor,
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(x̂₀, ε̂) at x (B, *) and noise level σ, a number or one per sample (B,).

        cond: tensors (B, ...), one row a sample. shared: passed to the network as it is.
        """
        x = check_state(x)
        host = host_numbers("sigma", sigma)
        if host.size not in (1, x.shape[0]):
            raise ValueError(
                f"sigma has {host.size} entries for a batch of {x.shape[0]}; give 1 or B"
            )
        levels = np.resize(host, x.shape[0])
        if not (levels > 0).all():
            raise ValueError("sigma must be positive: at σ=0 there is no noise to predict")
        levels = self.snapped(self.schedule.check_sigma(levels))
        call = self.network(x, cond, shared)
        t = torch.tensor(self.network_time(levels), device=x.device, dtype=self._time_dtype(x))
        answer = call(x, t, self.at(levels, x))
        return (
            self._convert(answer, x, "x0", levels),
            self._convert(answer, x, "eps", levels),
        )

    def _convert(self, answer: Tensor, x: Tensor, vector: str, levels: Array) -> Tensor:
        if self.answers == vector:
            return answer
        a, b = (column(c, x) for c in self._coefficients(self.answers, vector, levels))
        return a * x + b * answer

    def _coefficients(self, source: str, vector: str, levels: Array) -> tuple[Array, Array]:
        """(a, b) with vector = a·x + b·source; ValueError where the source is blind."""
        a, b = convert(source, vector, *self.schedule.scales(levels))
        if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
            raise ValueError(
                f"prediction={source!r} says nothing of x0 at σ=inf (ᾱ=0: zero terminal SNR, "
                "rescale_betas_zero_snr in a scheduler's configuration); start from a finite "
                "sigma_max, or use a network with prediction='v' or 'x0'"
            )
        return a, b

    def at(self, levels: Array, like: Tensor) -> Level | None:
        """What a call needs to know of its (snapped) levels (B,), or of all samples' one (1,), if anything.

        One level is told in plain numbers; per sample, tensors go to the device of ``like``.
        """
        guidance = self.guidance
        if not self.limit and (guidance is None or guidance.interval is None):
            return None
        level = Level()
        if guidance is not None:
            mask = guidance.covers(levels)
            guided: bool | Tensor = bool(mask.all())
            if mask.any() and not guided:
                guided = torch.as_tensor(np.flatnonzero(mask), device=like.device)
            level = level._replace(guided=guided)
        if self.limit:
            one = levels.size == 1
            pair = self._coefficients(self.prediction, "x0", levels)
            a, b = (float(c[0]) if one else column(c, like) for c in pair)
            level = level._replace(to_x0=(a, b))
        return level

    def at_each(self, levels: Array, like: Tensor) -> list[Level | None]:
        """:meth:`at` of calls, each with one of the levels for all samples."""
        return [self.at(levels[k : k + 1], like) for k in range(levels.size)]

    def bind(
        self,
        nodes: Sequence[Node],
        like: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> Callable[[Tensor, int], Tensor]:
        """``evaluate(y, k)``: the vector that node k stores, at y (B, *).

        All that depends on the nodes (network times, conversions) is computed here, on the host, and
        moved once to the device of ``like``; evaluating neither synchronises nor copies.
        """
        call = self.network(like, cond, shared)
        levels = self.snapped(np.array([node.sigma for node in nodes]))
        host = self.network_time(levels, np.array([node.t for node in nodes]))
        table = torch.tensor(host[:, None]).to(like.device, self._time_dtype(like))
        times = table.expand(-1, like.shape[0]).unbind(0)  # one number a node, whatever the batch
        at = self.at_each(levels, like)
        conversions = self.conversions(nodes)
        if conversions is None:
            return lambda y, k: call(y, times[k], at[k])

        def evaluate(y: Tensor, k: int) -> Tensor:
            of_x, of_answer = conversions[k]
            return torch.add(call(y, times[k], at[k]) * of_answer, y, alpha=of_x)

        return evaluate

    def conversions(self, nodes: Sequence[Node]) -> list[tuple[float, float]] | None:
        """For each node (a, b) with a·x + b·answer the vector that it stores; None where each is the
        answer itself (see :attr:`answers`)."""
        converted = {node.vector for node in nodes} - {self.answers}
        if not converted:
            return None
        levels = self.snapped(np.array([node.sigma for node in nodes]))
        a, b = np.zeros(len(nodes)), np.ones(len(nodes))
        for vector in converted:
            rows = [k for k, node in enumerate(nodes) if node.vector == vector]
            a[rows], b[rows] = self._coefficients(self.answers, vector, levels[rows])
        return list(zip(a.tolist(), b.tolist()))

    def network(
        self,
        like: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> Call:
        """``call(x, t, at)``: the prediction, guided, checked, in x's dtype; limited, its x̂₀ instead.

        cond rows follow ``like``. at: of the levels, by :meth:`at`.
        """
        rows = check_cond(cond, len(like))
        if self.micro_batches is None:
            return self._network(like, rows, shared)

        def network(index: slice) -> Call:
            model, part = self.part(index, rows)
            return model._network(like[index], part, shared)

        return self.micro_batches.over(network, len(like))

    def part(
        self, index: slice | Tensor, cond: Mapping[str, Tensor] | None
    ) -> tuple[Denoiser, dict[str, Tensor]]:
        """The denoiser and the conditions of some of the samples that ``cond`` has a row for."""
        if not cond:
            return self, {}
        rows = {name: taken(value, index) for name, value in cond.items()}
        return self.of_samples(index, len(next(iter(cond.values()))), cond), rows

    def of_samples(
        self, index: slice | Tensor, n: int, cond: Mapping[str, Tensor] | None
    ) -> Denoiser:
        """The denoiser of some of n samples, whose conditions are like ``cond``: null values of a row for
        each sample follow them."""
        if self.guidance is None or not cond:
            return self
        return self.replace(guidance=self.guidance.part(index, n, cond))

    def _network(
        self, like: Tensor, rows: dict[str, Tensor], shared: Mapping[str, Any] | None
    ) -> Call:
        if shared is not None:
            check_names("shared", shared)
        both = set(rows) & set(shared or {})
        if both:
            raise ValueError(f"{min(both)!r} is in cond and in shared; drop one of them")
        extra, common = {**rows, **(shared or {})}, shared or {}
        net, dtype, split, prediction = self.net, self.dtype, self.learned_variance, self.prediction
        asked = guarded(net, dtype, like, extra)

        def plain(x: Tensor, t: Tensor, at: Level | None = None) -> Tensor:
            out = asked(x, t, **extra)
            if type(out) is not Tensor or out.shape != x.shape or out.dtype != x.dtype:
                check_output(out, x, x.shape, prediction)
            return out if out.dtype == x.dtype else out.to(x.dtype)

        def ask(x: Tensor, t: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
            inside = x if dtype is None else x.to(dtype)
            out = asked(inside, t, **rows, **common)
            if split is not None:
                out = halved(out, inside, prediction)
            check_output(out, inside, inside.shape, prediction)
            return out if out.dtype == x.dtype else out.to(x.dtype)

        limit = self.limit
        if dtype is None and self.guidance is None and split is None and not limit:
            return plain
        branches = None if self.guidance is None else Branches(self.guidance, rows, like)

        def call(x: Tensor, t: Tensor, at: Level | None = None) -> Tensor:
            if branches is None:
                out = ask(x, t, rows)
            else:
                out = branches(ask, x, t, True if at is None else at.guided)
            if limit:
                assert at is not None, "a limited x̂₀ needs the call's levels"
                out = limit(out, x, at)
            return out

        return call
