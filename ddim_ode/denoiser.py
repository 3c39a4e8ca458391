"""The border: a user's network becomes a denoiser once, and nothing behind it cares which kind it was.

A denoiser answers at (x, σ) with the pair (x̂₀, ε̂), x = ᾱ x̂₀ + β̄ ε̂, whatever the network predicts:

    eps    ε̂                     v      ᾱε̂ − β̄x̂₀
    x0     x̂₀                    score  −ε̂/β̄
    flow   ε̂ − x̂₀

The loop does not form the pair. It asks for the one vector its plan stores, so that a network that
predicts that vector is called and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._checks import floating, function, number, numbers, one_of
from .asking import Net, check_cond, check_names, check_output, guarded
from .guidance import Branches, Call, Guidance, Level, Limit
from .schedule import Array, Schedule, check_schedule
from .seeding import sizes
from .solvers.chart import convert
from .solvers.plan import Node

if TYPE_CHECKING:
    from .micro_batches import MicroBatches

PREDICTIONS = ("eps", "x0", "v", "score", "flow")


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
    guidance: a :class:`Guidance`. learned_variance: ``"split"`` for a network that returns 2C channels,
    the prediction first. dtype: what x is cast to for the network (the state stays as it is, float32 or
    wider, and t is never narrower than float32).
    clip: keep x̂₀ in [−clip, clip]; threshold: dynamic thresholding at that quantile of |x̂₀| (see
    :class:`ddim_ode.guidance.Limit`). Either makes the ODE another one, as guidance does; a solution's
    ``alterations`` say so.
    shape: of ONE sample, for the calls that make noises themselves (``compare``, ``calibrate``,
    ``generate``) and would otherwise have to be told.

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
        threshold: float | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        if not callable(net):
            raise ValueError(f"net must be callable as net(x, t, **cond), got {type(net).__name__}")
        check_schedule(schedule)
        if learned_variance not in (None, "split"):
            raise ValueError(f"learned_variance={learned_variance!r}: use 'split' or None")
        if guidance is not None and not isinstance(guidance, Guidance):
            raise ValueError(
                f"guidance={guidance!r}: give ddim_ode.Guidance(scale, null={{name: value}})"
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
        self.time_offset, self.time, self.snap = time_offset, time, snap
        self.guidance = None if guidance is None or guidance.is_off else guidance
        self.limit = Limit(clip, threshold)
        self.learned_variance = learned_variance
        self.shape: Any = None if shape is None else sizes(shape)
        self.dtype = None if dtype is None else floating(dtype)
        self.micro_batches: MicroBatches | None = None  # ddim_ode.accelerate(batch=)
        self._levels = schedule.levels if snap else None

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
            told = np.broadcast_to(np.asarray(found, dtype=np.float64), sigma.shape)
        except (TypeError, ValueError):
            told = np.full(sigma.shape, np.nan)
        if np.isnan(told).any():
            raise ValueError(
                f"time(t, σ) must return a number for each of {sigma.size} levels, got {found!r}"
            )
        return told

    def _time_dtype(self, x: Tensor) -> torch.dtype:
        """The network's own precision, but never half: bfloat16 cannot tell t = 999 from 1000."""
        return _wide(self.dtype or x.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.prediction}-network, {self.schedule!r})"

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
        host = numbers("sigma", sigma.detach().cpu() if isinstance(sigma, Tensor) else sigma)
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
        prediction = call(x, t, self.at(levels, x))
        return (
            self._convert(prediction, x, "x0", levels),
            self._convert(prediction, x, "eps", levels),
        )

    def _convert(self, prediction: Tensor, x: Tensor, vector: str, levels: Array) -> Tensor:
        if self.prediction == vector:
            return prediction
        a, b = (_column(c, x) for c in self._coefficients(vector, levels))
        return a * x + b * prediction

    def _coefficients(self, vector: str, levels: Array) -> tuple[Array, Array]:
        """(a, b) with vector = a·x + b·prediction; ValueError where the prediction is blind."""
        a, b = convert(self.prediction, vector, *self.schedule.scales(levels))
        if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
            raise ValueError(
                f"prediction={self.prediction!r} says nothing of x0 at σ=inf (ᾱ=0: zero terminal SNR, "
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

            def ready(pair: tuple[Array, Array]) -> tuple[Any, Any]:
                a, b = pair
                one = levels.size == 1
                return (float(a[0]), float(b[0])) if one else (_column(a, like), _column(b, like))

            back = convert("x0", self.prediction, *self.schedule.scales(levels))
            to_x0 = self._coefficients("x0", levels)
            level = level._replace(to_x0=ready(to_x0), back=ready(back))
        return level

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
        at = [self.at(levels[k : k + 1], like) for k in range(len(nodes))]
        conversions = self.conversions(nodes)
        if conversions is None:
            return lambda y, k: call(y, times[k], at[k])

        def evaluate(y: Tensor, k: int) -> Tensor:
            of_x, of_prediction = conversions[k]
            return torch.add(call(y, times[k], at[k]) * of_prediction, y, alpha=of_x)

        return evaluate

    def conversions(self, nodes: Sequence[Node]) -> list[tuple[float, float]] | None:
        """For each node (a, b) with a·x + b·prediction the vector that it stores; None where each is the
        prediction itself."""
        converted = {node.vector for node in nodes} - {self.prediction}
        if not converted:
            return None
        levels = self.snapped(np.array([node.sigma for node in nodes]))
        a, b = np.zeros(len(nodes)), np.ones(len(nodes))
        for vector in converted:
            rows = [k for k, node in enumerate(nodes) if node.vector == vector]
            a[rows], b[rows] = self._coefficients(vector, levels[rows])
        return list(zip(a.tolist(), b.tolist()))

    def network(
        self,
        like: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> Call:
        """``call(x, t, at)``: the prediction, guided and limited, checked, in x's dtype.

        cond rows follow ``like``. at: of the levels, by :meth:`at`.
        """
        rows = check_cond(cond, like)
        if self.micro_batches is not None:
            return self.micro_batches.over(self._network, like, rows, shared)
        return self._network(like, rows, shared)

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
            expected: Sequence[int] = inside.shape
            if split is not None:
                if inside.ndim < 2:
                    raise ValueError(
                        f"learned_variance='split' halves the channels of an answer (B, 2C, *), and x is "
                        f"{tuple(inside.shape)}"
                    )
                expected = (expected[0], 2 * expected[1], *expected[2:])
            check_output(out, inside, expected, prediction)
            if split is not None:
                out = out.chunk(2, dim=1)[0]
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


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _column(values: Array, like: Tensor) -> Tensor:
    """(n,) as (n, 1, ...) beside ``like``, in its dtype and on its device."""
    return torch.tensor(values).to(like).reshape(-1, *[1] * (like.ndim - 1))


def check_floating(x: Any, name: str = "x") -> None:
    """ValueError unless it is a floating tensor (B, *)."""
    if not isinstance(x, Tensor) or x.ndim < 1 or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a floating tensor (B, *), got {got}")


def check_state(x: Tensor) -> Tensor:
    """x as float32 or wider; ValueError unless it is a floating tensor (B, *)."""
    check_floating(x)
    return x.to(_wide(x.dtype))
