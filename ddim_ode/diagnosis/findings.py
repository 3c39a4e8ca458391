"""What a finding is, and the noised samples that the checks share."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._checks import count, named, seed_of
from ..asking import has_rows
from ..denoiser import Denoiser
from ..guidance import Limit
from ..inputs import conditions, device_of, sample_shape
from ..notebook import note, table
from ..sampling import sample
from ..schedule import Array
from ..seeding import noise

_LEVELS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)  # of T
_WILD = 3.0  # RMS of samples, in units of the noise at the start, that no sound model makes
_SHARE = 0.05  # of entries out of range that are more than the tail of a network's errors
_BEYOND_DATA = 1.1  # times the data's largest entry, from where one is out of range
_BEYOND_OWN = (
    1.2  # times the range that samples keep to when held in it; sound models stay in by 2 %
)
_TRIES = 3  # to find that range
WILD_SAMPLES = "what the model makes by itself is not on the scale of its noise; give data"


@dataclass(frozen=True)
class Finding:
    """One thing that will go wrong: ``check`` its name, ``message`` what and how much, ``fix`` what to do.

    severity: ``"error"`` (samples are wrong) or ``"warning"`` (they are worse than they could be).
    evidence: the number that was measured on the model, in the unit that the message gives.
    """

    check: str
    severity: str
    evidence: float
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.check}: {self.message}\n    fix: {self.fix}"


class Diagnosis(list[Finding]):
    """The findings. not_checked: {check: why it could not be made}; what does not concern a model is not
    among them."""

    def __init__(self, findings: Iterable[Finding], not_checked: Mapping[str, str]) -> None:
        super().__init__(findings)
        self.not_checked = dict(not_checked)

    def __str__(self) -> str:
        found = [str(finding) for finding in self] or ["nothing found"]
        return "\n".join([*found, *(f"not checked: {k}: {v}" for k, v in self.not_checked.items())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(f.severity, f.check, f.message, f.fix) for f in self] or [
            ("", "nothing found", "", "")
        ]
        left = range(4)
        missing = "".join(note(f"not checked: {k}: {v}") for k, v in self.not_checked.items())
        return table(("severity", "check", "what", "fix"), rows, left) + missing


class Probe:
    """A model with clean samples x0 (n, *), noise and conditions to ask it with.

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
        self.steps, n = count("steps", steps), count("n", n, least=2)
        self.device = device_of(model, device)
        if data is not None:
            if not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim < 1:
                raise ValueError("data must be a floating tensor (N, *) of clean samples")
            if len(data) < 2:
                raise ValueError(f"data must be at least 2 clean samples, got {len(data)}")
            n, shape = min(n, len(data)), data.shape[1:]
            if not float(data[:n].std()) > 0:  # of NaN as well
                raise ValueError(f"the first {n} samples of data are constant, or not all numbers")
        self.shape = sample_shape(model, shape)
        self.model, self.n, self.seed, self.shared = model, n, seed_of(seed, 2 * n), shared
        self.limit, self.model = model.limit, self.variant(limit=Limit())
        self.data = None if data is None else data[:n].to(self.device, torch.float32)
        classes = getattr(model, "num_classes", 0)
        if cond is None and classes:
            cond = {"y": torch.arange(n) % classes}
        rows = {} if cond is None else named("cond", cond)
        rows = {k: v[:n] if has_rows(v) else v for k, v in rows.items()}
        self.cond = conditions(rows or None, n, self.device)
        like = model.schedule
        self.noise = noise(self.shape, like, range(seed, seed + n), device=self.device)
        self._top = top = float(like.scales(like.sigma_max)[1]) if like.family != "vp" else 1.0
        self.eps = noise(self.shape, like, range(seed + n, seed + 2 * n), device=self.device) / top

    def skip(self, reason: str, *checks: str) -> None:
        """Say why these checks are not made; the first reason of each stays."""
        for check in checks:
            self.not_checked.setdefault(check, reason)

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

        A network whose ε̂ errs by e sees x̂₀ err by σe, beyond all data at the first levels. Most recover on
        the way down.
        """
        if not self.free.isfinite().all():
            return True
        if self.data is None:
            return float(self.free.abs().max()) > _BEYOND_OWN * self.reach
        # A mean of data lies within the data: where x̂₀ of noised data does not, the network errs.
        sigma = float(self.sigmas[-1])
        guess = self.ask(self.variant(limit=Limit()), self.noised(self.data, sigma), sigma)[0]
        return all(self.beyond(x) > _SHARE for x in (self.free, guess))

    def beyond(self, x: Tensor) -> float:
        """The share of entries beyond :attr:`reach`."""
        return float((~(x.abs() <= _BEYOND_DATA * self.reach)).float().mean())

    def wild(self, x0: Tensor) -> bool:
        """Whether samples that the model makes are none: larger than its noise, or not finite."""
        return x0 is not self.data and not rms(x0) < _WILD * self._top

    @functools.cached_property
    def lifeless(self) -> str | None:
        """Why nothing can be measured on the model's own samples, None if it can."""
        if not self.made.isfinite().all():
            return "what the model makes is NaN or inf in places"
        return None if float(self.made.std()) > 0 else "what the model makes is constant"

    @functools.cached_property
    def sigmas(self) -> Array:
        """A few levels from almost clean to almost noise."""
        return self.model.schedule.sigma(np.array(_LEVELS) * self.model.schedule.T)

    def generate(self, model: Denoiser, limit: Limit | None = None) -> Tensor:
        """n samples of a variant of the model, by a few DDIM steps from a finite level.

        limit: on x̂₀; by default the model's own, if it relies on that.
        """
        if limit is None:
            limit = self.limit if self.limit and self.relies else Limit()
        model = copy.copy(model)
        model.limit = limit
        top = float(model.schedule.sigma(0.99 * model.schedule.T))
        x = self.noise
        if model.schedule.family == "ve":
            x = x * (top / model.schedule.sigma_max)
        options: dict[str, Any] = dict(cond=self.cond, shared=self.shared)
        return sample(
            model, x, steps=15, grid="quadratic", sigma_max=top, sigma_min=None, **options
        ).x

    def noised(self, x0: Tensor, sigma: float) -> Tensor:
        alpha, beta = (float(v) for v in self.model.schedule.scales(sigma))
        return alpha * x0 + beta * self.eps

    def ask(self, model: Denoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """(x̂₀, ε̂) of a variant of the model."""
        with torch.no_grad():
            return model(x, sigma, self.cond, self.shared)

    def loss(self, model: Denoiser, x0: Tensor, sigmas: Array | None = None) -> float:
        """How far a variant's answers are from what its reading wants, the mean over levels.

        ‖answer − target‖ / ‖target‖, the target that of training: ε, x0, ᾱε − β̄x0 or ε − x0. 0 is
        truth, 1 no answer. Measured on the answer and not on x̂₀ or ε̂, where an ε-network's error counts σ
        times and an x0-network's 1/σ times. inf for what is not finite.
        """
        total, levels = 0.0, self.sigmas if sigmas is None else sigmas
        for sigma in levels.tolist():
            clean, eps = self.ask(model, self.noised(x0, sigma), sigma)
            error = self.wanted(model.prediction, clean - x0, eps - self.eps, sigma)
            total += rms(error) / rms(self.wanted(model.prediction, x0, self.eps, sigma))
        return total / len(levels) if np.isfinite(total) else float("inf")

    @functools.cached_property
    def own(self) -> float:
        """The :meth:`loss` of the model as it is, on :attr:`x0`."""
        return self.loss(self.model, self.x0)

    def linear(self, x0: Tensor) -> float:
        """The :meth:`loss` of the best a·x + c, numbers of each level fitted to these very samples."""
        total = 0.0
        for sigma in self.sigmas.tolist():
            x = self.noised(x0, sigma).double().flatten()
            target = self.wanted(self.model.prediction, x0, self.eps, sigma).double().flatten()
            a = float((x - x.mean()) @ (target - target.mean()) / (x - x.mean()).square().sum())
            total += rms(target - target.mean() - a * (x - x.mean())) / rms(target)
        entries = x0.numel()
        return total / len(self.sigmas) * (entries / max(1, entries - 2)) ** 0.5

    def wanted(self, reading: str, x0: Tensor, eps: Tensor, sigma: float) -> Tensor:
        """What a network of that prediction type returns for a pair (its scale aside, for scores)."""
        alpha, beta = (float(v) for v in self.model.schedule.scales(sigma))
        if reading == "flow":
            return eps - x0
        return {"x0": x0, "v": alpha * eps - beta * x0}.get(reading, eps)

    def variant(self, **changes: Any) -> Denoiser:
        """The model with some attributes replaced."""
        other = copy.copy(self.model)
        for name, value in changes.items():
            setattr(other, name, value)
        return other


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
