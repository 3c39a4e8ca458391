"""The border: a user's network becomes a denoiser once, and no code behind it asks which kind it was.

A denoiser answers at (x, σ) with the pair (x̂₀, ε̂), x = ᾱ x̂₀ + β̄ ε̂, whatever the network predicts:

    eps    ε̂                     v      ᾱε̂ − β̄x̂₀
    x0     x̂₀                    score  −ε̂/β̄
    flow   ε̂ − x̂₀

The loop asks for the one vector its plan stores: a network that predicts it is called, and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._base.checks import finite, flag, floating, function, host_numbers, one_of, shown
from .._base.notebook import card
from .._base.tensors import check_state, column, wide
from .._base.warn import warn
from ..grids import LOWERED, default_start, trusted
from ..schedules.schedule import Array, Schedule, check_schedule
from ..solvers.chart import PREDICTIONS as PREDICTIONS
from ..solvers.chart import convert
from ..solvers.fit import ode_text
from ..solvers.plan import Node
from ..solvers.profile import Profile, checked_profile
from .calls import network_call
from .guidance import Call, Guidance, Level, Limit, taken
from .network import Net, check_cond
from .seeding import sizes

if TYPE_CHECKING:
    from typing_extensions import Self

    from .micro_batches import MicroBatches


class Denoiser:
    """A network with all that is needed to call it: schedule, prediction, network time, guidance.

    ``model(x, sigma)`` gives ``(x0, eps)``.

    Args:
        net: Any callable ``net(x (b, *), t (b,), **cond) -> (b, *)``; b may be smaller than the batch. It
            must not change its inputs (checked, except under ``torch.inference_mode``), and must return a
            new tensor at each call (multistep methods keep it). t arrives as float32 (or wider) and need
            not be whole: a network that knows only integer times takes ``snap=True`` and rounds,
            ``t.round().long()``. Warns if the network is in training mode and contains dropout or batch
            norm.
        schedule: One of :mod:`ddim_ode.schedules`.
        prediction: What the network returns, ``"eps" | "x0" | "v" | "score" | "flow"``.
        time_offset: Added to the schedule time t before the call: −1 for a network trained on 0..T−1.
        time: ``callable(t, sigma) -> network time`` (numpy arrays), for any other network time.
        snap: Move σ and t together to the nearest trained level, an integer t in 1..T: those of a grid
            before a method is compiled on it, and those of inner Runge–Kutta stages when they are
            evaluated, which limits midpoint, rk4 and rk45 to an error of some 1e-4 of x at T = 1000.
        guidance: A :class:`Guidance`.
        learned_variance: ``"split"`` for 2C channels, on any axis, of which the prediction is the first C.
        dtype: What x is cast to for the network. The state and t stay float32 or wider.
        clip: Keep x̂₀ in [−clip, clip]. ε̂ follows the limited x̂₀, after guidance. As guidance does, this
            changes the ODE, and ``alterations`` of a solution say so.
        threshold: Limit x̂₀ by dynamic thresholding instead: a quantile of |x̂₀|, or (quantile, most); see
            :class:`ddim_ode.denoising.guidance.Limit`.
        shape: Of ONE sample, for calls that draw noise themselves (``compare``, ``calibrate``,
            ``generate``).
        sigma_max: The level that sampling starts from by default (default:
            :func:`ddim_ode.grids.default_start`: σ(T), or 80 for ε- and score-networks of schedules that
            end in almost no signal). Warns if x̂₀ of such a network is lost at that level.
        profile: A :class:`ddim_ode.Profile` of this model: solves that name no grid step on its grids.

    Raises:
        ValueError: An argument out of range; in a call, an output of another shape than x, or an ε- or
            score-network that is asked for x̂₀ at ᾱ = 0.

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
        time_offset = finite("time_offset", time_offset)
        if time is not None:
            function("time", time)
            if time_offset:
                raise ValueError("both time and time_offset are given; let time() add the offset")
        self.net, self.schedule = net, schedule
        self.prediction = one_of("prediction", prediction, PREDICTIONS)
        self.time_offset, self.time, self.snap = time_offset, time, flag("snap", snap)
        self.guidance = None if guidance is None or guidance.is_off else guidance
        self.limit, self.learned_variance = Limit(clip, threshold), learned_variance
        self.shape: Any = None if shape is None else sizes(shape)
        self.dtype = None if dtype is None else floating(dtype)
        self.sigma_max = default_start(schedule, self.prediction)
        if sigma_max is not None:
            self.sigma_max = self.start("sigma_max", sigma_max)
        self.profile = checked_profile(profile, schedule, self.sigma_max)
        self.micro_batches: MicroBatches | None = None  # ddim_ode.accelerate(batch=)
        _ = self.snap and schedule.levels  # a ValueError where T is no whole number

    def start(self, name: str, sigma: float) -> float:
        """``sigma`` as a level to start from. Warns if x̂₀ of this prediction is lost there.

        name: The argument that holds it, for messages.

        Raises:
            ValueError: σ is 0, or outside the schedule's range.
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

    def starting_at(self, sigma_max: float | None) -> Self:
        """The same denoiser with another default level to start from; None leaves it as it is."""
        if sigma_max is None:
            return self
        return self.replace(sigma_max=self.start("sigma_max", sigma_max))

    def replace(self, **changes: Any) -> Self:
        """The same denoiser with other attributes, such as ``guidance=None``. It shares the network.

        Raises:
            AttributeError: It has no attribute of that name.

        >>> import ddim_ode
        >>> model = ddim_ode.exact.gaussian([0.0], [[1.0]], ddim_ode.schedules.cosine())
        >>> model.replace(snap=True).snap, model.snap
        (True, False)
        """
        other = copy.copy(self)
        for name, value in changes.items():
            getattr(self, name)  # an AttributeError for a name that is none
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
        """What makes its ODE differ from the network's own: guidance, clip, threshold; {} for nothing."""
        return {**(self.guidance.to_dict() if self.guidance else {}), **self.limit.to_dict()}

    @property
    def answers(self) -> str:
        """The vector that a call returns: what the network predicts, or x̂₀ if that is limited."""
        return "x0" if self.limit else self.prediction

    def snapped(self, sigma: Array) -> Array:
        """σ as the network will see it: the nearest trained level (in t) if ``snap``, else itself."""
        if not self.snap:
            return sigma
        levels = self.schedule.levels
        return levels[np.rint(self.schedule.time(sigma)).astype(int).clip(1, levels.size) - 1]

    def network_time(self, sigma: Array, t: Array | None = None) -> Array:
        """What the network receives as t at levels σ, already snapped. t: their times, if known."""
        if self.snap:
            t = np.rint(self.schedule.time(sigma))
        elif t is None:
            t = self.schedule.time(sigma)
        if self.time is None:
            return t + self.time_offset
        answer = self.time(t, sigma)
        with contextlib.suppress(ValueError):
            times = np.broadcast_to(host_numbers("time", answer), sigma.shape)
            if not np.isnan(times).any():
                return times
        raise ValueError(
            f"time(t, σ) must return a number for each of {sigma.size} levels, got {shown(answer)}"
        )

    def time_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of t beside x: the network's, but never half; bfloat16 cannot tell 999 from 1000."""
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
        """The pair (x̂₀, ε̂), two tensors (B, *), at one noise level or at one for each sample.

        Args:
            x: (B, *), in network space.
            sigma: A number, or (B,).
            cond: {name: tensor (B, ...)}, a row for each sample.
            shared: {name: value}, passed to the network as it is.
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
        t = torch.tensor(self.network_time(levels), device=x.device, dtype=self.time_dtype(x))
        answer = call(x, t, self.at(levels, x))

        def converted(vector: str) -> Tensor:
            if self.answers == vector:
                return answer
            a, b = (column(c, x) for c in self.coefficients(self.answers, vector, levels))
            return a * x + b * answer

        return converted("x0"), converted("eps")

    def coefficients(self, source: str, vector: str, levels: Array) -> tuple[Array, Array]:
        """(a, b), each like levels, with vector = a·x + b·source.

        Args:
            source: The vector that is known, such as :attr:`answers`.
            vector: The one that is wanted.
            levels: σ, already snapped.

        Raises:
            ValueError: The source says nothing of the vector: ε̂ at ᾱ = 0.
        """
        a, b = convert(source, vector, *self.schedule.scales(levels))
        if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
            raise ValueError(
                f"prediction={source!r} says nothing of x0 at σ=inf (ᾱ=0: zero terminal SNR, "
                "rescale_betas_zero_snr in a scheduler's configuration); start from a finite "
                "sigma_max, or use a network with prediction='v' or 'x0'"
            )
        return a, b

    def at(self, levels: Array, like: Tensor) -> Level | None:
        """What a call needs to know of its levels: (B,), already snapped, or (1,) for all samples.

        None for nothing. Of one level the answer holds plain numbers, of (B,) tensors beside ``like``."""
        guidance = self.guidance
        if not self.limit and (guidance is None or not guidance.reads_levels):
            return None

        def each(numbers: Array) -> Any:
            return float(numbers[0]) if levels.size == 1 else column(numbers, like)

        level = Level(sigma=each(levels))
        if guidance is not None:
            level = level._replace(guided=guidance.guided(levels, like.device))
        if self.limit or (guidance is not None and guidance.vector is not None):
            a, b = self.coefficients(self.prediction, "x0", levels)
            level = level._replace(to_x0=(each(a), each(b)))
        return level

    def at_each(self, nodes: Sequence[Node], like: Tensor) -> list[Level | None]:
        """:meth:`at` of the nodes' calls."""
        return [self.at(level, like) for level in self._levels(nodes)[:, None]]

    def _levels(self, nodes: Sequence[Node]) -> Array:
        return self.snapped(np.array([node.sigma for node in nodes]))

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
        host = self.network_time(self._levels(nodes), np.array([node.t for node in nodes]))
        table = torch.tensor(host[:, None]).to(like.device, self.time_dtype(like))
        times = table.expand(-1, like.shape[0]).unbind(0)  # one number a node, whatever the batch
        at, conversions = self.at_each(nodes, like), self.conversions(nodes)
        if conversions is None:
            return lambda y, k: call(y, times[k], at[k])

        def evaluate(y: Tensor, k: int) -> Tensor:
            of_x, of_answer = conversions[k]
            return torch.add(call(y, times[k], at[k]) * of_answer, y, alpha=of_x)

        return evaluate

    def conversions(self, nodes: Sequence[Node]) -> list[tuple[float, float]] | None:
        """For each node (a, b) such that it stores a·x + b·answer; None if all store the answer itself."""
        if not (converted := {node.vector for node in nodes} - {self.answers}):
            return None
        levels, (a, b) = self._levels(nodes), (np.zeros(len(nodes)), np.ones(len(nodes)))
        for vector in converted:
            rows = [k for k, node in enumerate(nodes) if node.vector == vector]
            a[rows], b[rows] = self.coefficients(self.answers, vector, levels[rows])
        return list(zip(a.tolist(), b.tolist()))

    def network(
        self,
        like: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> Call:
        """``call(x, t, at)`` for states like ``like`` (b, *): what the network answers, in x's dtype.

        The answer is the prediction, guided and checked; with a limit on x̂₀ it is the limited x̂₀. The
        rows of ``cond`` are those of ``like``. at: of the levels, by :meth:`at`.
        """
        rows = check_cond(cond, len(like))
        if self.micro_batches is None:
            return network_call(self, like, rows, shared)

        def network(index: slice) -> Call:
            model, part = self.part(index, rows)
            return network_call(model, like[index], part, shared)

        return self.micro_batches.over(network, len(like))

    def part(
        self, index: slice | Tensor, cond: Mapping[str, Tensor] | None
    ) -> tuple[Self, dict[str, Tensor]]:
        """The denoiser and the conditions of some of the samples that ``cond`` has a row for."""
        if not cond:
            return self, {}
        rows = {name: taken(value, index) for name, value in cond.items()}
        return self.of_samples(index, len(next(iter(cond.values()))), cond), rows

    def of_samples(self, index: slice | Tensor, n: int, cond: Mapping[str, Tensor] | None) -> Self:
        """The denoiser of some of n samples with conditions like ``cond``: null values that have a row for
        each sample follow them."""
        if self.guidance is None or not cond:
            return self
        return self.replace(guidance=self.guidance.part(index, n, cond))
