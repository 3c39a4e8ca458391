"""A model, and the noised samples that the checks ask it with."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._base.checks import count, named, seed_of
from .._base.tensors import check_floating
from .._base.warn import Caution
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import Limit
from ..denoising.inputs import conditions, device_of, sample_shape
from ..denoising.network import has_rows
from ..denoising.seeding import noise
from ..schedules.schedule import Array
from ..solve.sampling import sample
from .readings import Reading

_LEVELS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)  # of T; of σ_min..σ_max in Karras' spacing where t is σ
_ENTRIES = 64  # numbers, at least, in an average: small states are asked for more often
_FEW = 4  # samples, at least, that tell how far they are apart
_FAR_OFF = 3.0  # RMS of samples, in units of the noise at the start, that no sound model makes
# Little networks overshoot: of those of benchmarks/doctor.py, a quarter of the entries, by half. What
# relies on a limit makes nothing in range without.
_SHARE = 0.5  # of entries out of range
BEYOND = 1.5  # times the data's largest entry, from where one is
_SHRUNK = 3.0  # times; those networks shrink to half, one that relies on a limit to a fifth
_TRIES = 3  # to find that range
_PER_E_FOLD = 2.5  # DDIM steps that leave no sample between two kinds of data, over decades of σ
OUT_OF_SCALE = "what the model makes by itself is not on the scale of its noise; give data"


class Probe:
    """A model with clean samples x0 (rows, *), noise and conditions to ask it with.

    different: how many of the clean samples are. rows: at least as many, and so many that they have 64
    entries together: data and conditions are then repeated, each time with other noise. few: of these, so
    many as have 64 entries, and four.
    model: without its limit on x̂₀, which would hide what the network answers. limit: that limit, which its
    samples have if it relies on one. not_checked: see :class:`Diagnosis`; checks add to it by :meth:`skip`.
    """

    def __init__(
        self,
        model: Denoiser,
        data: Tensor | None,
        cond: Mapping[str, Tensor] | None,
        shared: Mapping[str, Any] | None,
        shape: Sequence[int] | None,
        steps: int,
        n: int,
        seed: int,
        device: str | torch.device | None,
    ) -> None:
        if not isinstance(model, Denoiser):
            raise ValueError(
                f"model must be a Denoiser, got {type(model).__name__}: ddim_ode.load, "
                "ddim_ode.interop.diffusers.load or ddim_ode.Denoiser(net, schedule) make one"
            )
        self.not_checked: dict[str, str] = {}
        self.steps, n = count("steps", steps), count("n", n)
        self.device = device_of(model, device)
        if data is not None:
            check_floating(data, "data")
            if not len(data):
                raise ValueError("data must be at least one clean sample, got 0")
            n, shape = min(n, len(data)), data.shape[1:]
            if not float(data[:n].std()) > 0:  # of NaN as well
                raise ValueError(
                    f"the first {n} samples of data are constant, or not all numbers; give clean samples"
                )
        self.shape = sample_shape(model, shape)
        self.few = max(_FEW, -(-_ENTRIES // math.prod(self.shape)))
        self.rows = rows = max(n, self.few)
        self.different = rows if data is None else n
        repeated = torch.arange(rows) % n
        self.shared, self.limit, self.model = shared, model.limit, model.replace(limit=Limit())
        self.data = None if data is None else data[repeated].to(self.device, torch.float32)
        classes = getattr(model, "num_classes", 0)
        if cond is None and classes:
            cond = {"y": torch.arange(n) % classes}
        given = {} if cond is None else named("cond", cond)
        first = {k: v[:n] if has_rows(v) else v for k, v in given.items()}
        rows_of = conditions(first or None, n, self.device)
        self.cond = None if rows_of is None else {k: v[repeated] for k, v in rows_of.items()}
        self.model = self.model.of_samples(repeated, n, rows_of)
        like, seed = model.schedule, seed_of(seed, 2 * rows)
        self.noise = noise(self.shape, like, range(seed, seed + rows), device=self.device)
        self.top = float(like.scales(like.sigma_max)[1]) if like.family != "vp" else 1.0
        second = range(seed + rows, seed + 2 * rows)
        self.eps = noise(self.shape, like, second, device=self.device) / self.top

    def skip(self, reason: str, *checks: str) -> None:
        """Say why these checks are not made; the first reason of each stays."""
        for check in checks:
            self.not_checked.setdefault(check, reason)

    def conditions(self, rows: int) -> dict[str, Tensor] | None:
        """Those of the first so many rows."""
        return None if self.cond is None else {name: v[:rows] for name, v in self.cond.items()}

    @functools.cached_property
    def x0(self) -> Tensor:
        """Clean samples: the data, or what the model makes."""
        return self.made if self.data is None else self.data

    @functools.cached_property
    def made(self) -> Tensor:
        """What the model makes of ``noise``."""
        return self.generate(self.model)

    @functools.cached_property
    def free(self) -> Tensor:
        """What the model makes without a limit on x̂₀."""
        return self.generate(self.model, Limit())

    @functools.cached_property
    def reach(self) -> float:
        """The largest |x| of the data; without, of what the model makes when held to its own range."""
        if self.data is not None:
            return float(self.data.abs().max())
        most = float(self.free.abs().max())
        for _ in range(_TRIES):
            most = float(self.generate(self.model, Limit(clip=most or 1.0)).abs().max())
        return most

    @functools.cached_property
    def relies(self) -> bool:
        """Whether the model needs a limit on x̂₀: without one, the network's errors drive x out of reach.

        A network whose ε̂ errs by e sees x̂₀ err by σe, beyond all data at the first levels. Most recover
        on the way down.
        """
        if not self.free.isfinite().all():
            return True
        if self.data is None:
            return self._shrinks()
        # A mean of data lies within the data: where x̂₀ of noised data does not, the network errs.
        sigma = float(self.sigmas[-1])
        guess = self.ask(self.model.replace(limit=Limit()), self.noised(self.data, sigma), sigma)[0]
        return all(self.beyond(x) > _SHARE for x in (self.free, guess))

    def _shrinks(self) -> bool:
        """Whether samples that are held in the range of the middle one come out much smaller.

        The largest of them may stay where it is, as far out as its own bound lets it. Most of them do, and
        not only the one in the middle: of two kinds of data a bound takes some of one for the other.
        """
        held = free = _largest(self.free)
        for _ in range(_TRIES):
            bound = float(held.median()) or 1.0
            held = _largest(self.generate(self.model, Limit(clip=bound)))
        most = (free > _SHRUNK * held).float().mean()
        return bool(free.median() > _SHRUNK * held.median()) and float(most) > 0.5

    def beyond(self, x: Tensor) -> float:
        """The share of entries far beyond :attr:`reach`."""
        return float((~(x.abs() <= BEYOND * self.reach)).float().mean())

    def out_of_scale(self, x0: Tensor) -> bool:
        """Whether samples that the model makes are none: larger than its noise, or not finite."""
        return x0 is not self.data and not rms(x0) < _FAR_OFF * self.top

    @functools.cached_property
    def clean(self) -> Tensor:
        """The data, or what the network makes without guidance and limits."""
        if self.data is not None:
            return self.data
        alone = self.read(Reading(self.model.prediction))
        return self.generate(alone) if self.model.alterations else self.made

    @functools.cached_property
    def degenerate(self) -> str | None:
        """Why nothing can be measured on the model's own samples, None if it can."""
        if not self.made.isfinite().all():
            return "what the model makes is NaN or inf in places"
        return None if float(self.made.std()) > 0 else "what the model makes is constant"

    @functools.cached_property
    def sigmas(self) -> Array:
        """A few levels from almost clean to almost noise."""
        schedule, share = self.model.schedule, np.array(_LEVELS)
        if schedule.family != "ve":
            return schedule.sigma(share * schedule.T)
        low, high = (sigma ** (1 / 7) for sigma in (schedule.sigma_min, schedule.sigma_max))
        return np.asarray((low + share * (high - low)) ** 7)

    def generate(
        self, model: Denoiser, limit: Limit | None = None, steps: int = 15, rows: int | None = None
    ) -> Tensor:
        """Samples of a variant of the model, by a few DDIM steps from a finite level.

        limit: on x̂₀; by default the model's own, if it relies on that.
        """
        if limit is None:
            limit = self.limit if self.limit and self.relies else Limit()
        model = model.replace(limit=limit).of_samples(slice(rows), self.rows, self.cond)
        schedule = self.model.schedule
        top = min(float(schedule.sigma(0.99 * schedule.T)), self.model.sigma_max)
        x = self.noise[:rows]
        if schedule.family == "ve":
            x = x * (top / schedule.sigma_max)
        grid, low = "quadratic", None
        if schedule.family == "ve":
            grid, low = "log_snr", 15 * schedule.sigma_min
            steps = max(steps, round(_PER_E_FOLD * math.log(top / low)))
        if model.snap:
            grid, low, steps = "time", None, min(steps, int(schedule.T))
        options: dict[str, Any] = dict(cond=self.conditions(len(x)), shared=self.shared)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Caution)  # of samples that a wrong reading makes
            return sample(
                model, x, steps=steps, grid=grid, sigma_max=top, sigma_min=low, **options
            ).x

    def noised(self, x0: Tensor, sigma: float) -> Tensor:
        alpha, beta = (float(v) for v in self.model.schedule.scales(sigma))
        return alpha * x0 + beta * self.eps

    def ask(self, model: Denoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """(x̂₀, ε̂) of a variant of the model."""
        with torch.no_grad():
            return model(x, sigma, self.cond, self.shared)

    def answer(self, reading: Reading, x: Tensor, k: int) -> Tensor | None:
        """What the network returns at x and level k, in double, whatever it means; None where it fails on
        a foreign clock."""
        model = self.read(reading)
        level = model.snapped(self.sigmas[k : k + 1])
        times = torch.full((len(x),), float(model.network_time(level)[0]), device=x.device)
        own = reading.clock is None
        with torch.no_grad(), contextlib.nullcontext() if own else contextlib.suppress(Exception):
            out: Tensor = model.network(x, self.conditions(len(x)), self.shared)(x, times)
            return out.double()
        return None

    def read(self, reading: Reading) -> Denoiser:
        """The network alone, without guidance, read so."""
        net, sign, scale, clock = self.model.net, *reading[1:]
        changes: dict[str, Any] = dict(prediction=reading.prediction, guidance=None)
        if sign != 1:
            changes["net"] = lambda x, t, **cond: sign * net(x, t, **cond)
        if scale != 1:
            changes["net"] = lambda x, t, **cond: net(scale * x, t, **cond)
        if clock is not None:
            changes |= dict(time=clock.of, time_offset=0.0)
        return self.model.replace(**changes)


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _largest(x: Tensor) -> Tensor:
    """(B,) the largest |entry| of each sample."""
    return x.abs().reshape(len(x), -1).amax(dim=1)
