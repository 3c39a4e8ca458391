"""What a solve returns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import gammaincinv
from torch import Tensor

from .._base import notebook
from .._base.warn import warn
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import plain
from ..schedules.schedule import Array
from ..solvers.controller import NON_FINITE, SUCCESS
from ..solvers.fit import ode_text
from ..solvers.plan import Plan

if TYPE_CHECKING:
    from typing_extensions import Self

    from .dense import Path

_FAR = 3.0  # times σ of the first level
# Of a state's RMS to its noise's, seen in as many entries: noised data do not lie below; nor above, where
# the model starts, if from such a level at least.
_SMALL, _LARGE, _ENTRIES, _HIGH = 0.3, 5.0, 32, 10.0
_LEAST, _CHANCE = 8, 1e-6  # entries that are looked at; how seldom fewer than _ENTRIES may mislead


@dataclass(repr=False)
class RoundTrip:
    """What ``encode(..., certify=True)`` measured by decoding again, with the same method and grid.

    Attributes:
        error: (B,) RMS over a sample's entries of decode(encode(x)) − x.
        order: How that error falls with the number of steps, log(E'/E)/log(N/N') between N steps and every
            other level, E over all finite samples. On a smooth field it is the method's own, or one more
            where that is even: then the leading errors of the two directions cancel. None for an adaptive
            solve, a single step or a reversible method, and where the error is rounding.
        latent_gap: (B,) RMS distance of the latent to that of half the steps: about its own error for a
            method of first order, and an upper estimate above. None for an adaptive solve or a single step.
        unguided: (B,) the error without guidance, for a guided model.
        nfe: Network calls beside the encode itself: N + N/2 + N/2 steps, and 2N with guidance.
        net_evals: Rows that the network processed in them.
    """

    error: Tensor
    order: float | None
    latent_gap: Tensor | None
    unguided: Tensor | None
    nfe: int
    net_evals: int

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts() if value)
        return f"RoundTrip({facts})"

    def _repr_html_(self) -> str:
        return notebook.card("Round trip", self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        def rms(values: Tensor | None) -> str:
            return "" if values is None else f"{mean_square(values) ** 0.5:.1e}"

        return [
            ("error", rms(self.error)),
            ("order", "–" if self.order is None else f"{self.order:.2f}"),
            # coming back says nothing of where one has been
            ("latent off by some", rms(self.latent_gap)),
            ("unguided error", rms(self.unguided)),
            ("nfe", str(self.nfe)),
        ]


def mean_square(error: Tensor) -> float:
    """The mean square over the finite samples of RMS errors (B,); NaN if there are none."""
    return float(error[error.isfinite()].double().square().mean())


@dataclass(repr=False)
class Solution:
    """The end state of every sample, and what it cost.

    Attributes:
        x: (B, *) in network space, at ``sigmas[-1]``. For failed samples: the last accepted state, or NaN.
        method: The method's name.
        grid: The name of the grid of a fixed plan that was compiled for the call, "profile" for one of a
            :class:`ddim_ode.Profile`; None where the levels were given.
        sigmas: The levels passed (steps+1,). Adaptive: a list, for each sample those it accepted (n+1,).
        nfe: Sequential network calls, counted.
        sample_nfe: (B,) the calls each sample took part in.
        net_evals: Rows the network processed, guidance included.
        accepted, rejected: (B,) steps, the last jump included.
        plan: The plan that ran, if any.
        error: (B,) an estimate of the global error, RMS over the entries of x, or None. Adaptive: at the
            end; of unipc2 and unipc3 without what the flow amplifies on the way. Multistep: at the last
            positive level (without the last jump), the sum of what each step would differ by with one
            velocity more; on 1-D mixtures 0.2 to 3 times the true error, more where σ_max is in the
            thousands, or with a corrector. All suppose a field that is smooth over a step: a network that
            is rough in t errs more than they say.
        trajectory: (steps+1, B, *) at ``sigmas``, if recorded. Adaptive: a list, (n+1, *) for each sample.
        seeds: Of the step noise.
        outcome, finite: (B,) each, see ``status``; ``finite`` is on the state's device.
        path: What ``at(sigma)`` reads, the state of an adaptive solve anywhere between its ends.
        alterations: What makes the ODE that was solved differ from the network's own
            (:attr:`ddim_ode.Denoiser.alterations`).
        partner: The second state (B, *) of the method "reversible".
        schedule: The schedule's fingerprint, where no plan has it.
        round_trip: Of ``encode(..., certify=True)``.

    A sample with status "max_nfe" is at its own ``sigmas[i][-1]``: on the way if the budget was
    ``max_nfe=``, at the end but above tolerance if it was ``nfe=``.

    >>> import ddim_ode
    >>> model = ddim_ode.exact.gaussian([0.0], [[0.25]], ddim_ode.schedules.cosine())
    >>> x_T = ddim_ode.noise((1,), model.schedule, seeds=range(3))
    >>> sol = ddim_ode.sample(model, x_T, "heun", nfe=9)
    >>> tuple(sol.x.shape), sol.nfe, sol.net_evals, sol.status.tolist()
    ((3, 1), 9, 27, ['success', 'success', 'success'])
    """

    x: Tensor
    method: str
    sigmas: Array | list[Array]
    nfe: int
    sample_nfe: npt.NDArray[np.int64]
    net_evals: int
    accepted: npt.NDArray[np.int64]
    rejected: npt.NDArray[np.int64]
    outcome: npt.NDArray[np.str_]
    finite: Tensor | None = None
    plan: Plan | None = None
    error: Tensor | None = None
    trajectory: Tensor | list[Tensor] | None = None
    seeds: list[int] | None = None
    path: Path | None = None
    alterations: dict[str, Any] = field(default_factory=dict)
    partner: Tensor | None = None
    grid: str | None = None
    schedule: str | None = None
    round_trip: RoundTrip | None = None

    @classmethod
    def of(
        cls,
        x: Tensor,
        nfe: int,
        *,
        accepted: npt.ArrayLike,
        rejected: npt.ArrayLike = 0,
        sample_nfe: npt.ArrayLike | None = None,
        outcome: npt.ArrayLike = SUCCESS,
        **fields: Any,
    ) -> Self:
        """The solution of a solve; counts and an outcome that are one value hold for every sample."""
        batch = x.shape[0]
        return cls(
            x=x,
            nfe=nfe if batch else 0,
            sample_nfe=np.full(batch, nfe if sample_nfe is None else sample_nfe),
            accepted=np.full(batch, accepted),
            rejected=np.full(batch, rejected),
            outcome=np.full(batch, outcome),
            **fields,
        )

    def __repr__(self) -> str:
        bad = Counter(word for word in self.status.tolist() if word != SUCCESS)
        failed = "".join(f", {n} of {len(self.x)} {word}" for word, n in bad.items())
        return f"Solution({self.method}, x {tuple(self.x.shape)}, nfe {self.nfe}{failed})"

    def _repr_html_(self) -> str:
        levels = [self.sigmas] if isinstance(self.sigmas, np.ndarray) else self.sigmas
        ends = notebook.span(float(sigmas[-1]) for sigmas in levels)
        facts = [
            ("x", tuple(self.x.shape)),
            ("network calls", notebook.span(self.sample_nfe.tolist())),
            ("network evaluations", f"{self.net_evals:,}"),
            ("steps", notebook.span(self.accepted.tolist())),
            ("σ", f"{levels[0][0]:.3g} to {ends}" if levels else None),
            ("status", ", ".join(f"{n} {s}" for s, n in Counter(self.status.tolist()).items())),
            (
                "error, estimated",
                None if self.error is None else f"{float(self.error.nanmean()):.2g}",
            ),
            ("altered by", ode_text(self.alterations) if self.alterations else None),
        ]
        return notebook.card(f"Solution, {self.method}", facts)

    @property
    def status(self) -> npt.NDArray[np.str_]:
        """(B,) of "success", "max_nfe", "non_finite" or "step_underflow" (waits for the device).

        It is the ``outcome``, but "non_finite" for the samples that are not ``finite``.
        """
        if self.finite is None:
            return self.outcome
        return np.where(self.finite.cpu().numpy(), self.outcome, NON_FINITE)

    def at(self, sigma: npt.ArrayLike) -> Tensor:
        """x (B, *) of an adaptive solve at a noise level between its ends.

        By the method's free interpolant: local error O(h⁵) for rk45, O(h⁴) for bosh3 and heun, h the
        step in ``ddim_ode.solvers.clock``'s u.

        Args:
            sigma: One level for all samples, or (B,).

        Returns:
            The states; NaN for a sample that stopped before it came there.

        Raises:
            ValueError: A level outside [σ_min, σ_max], a solve with ``dense=False``, or a fixed plan.
        """
        if self.path is None:
            raise ValueError(
                "this solution has no dense output: solve adaptively (rk45, bosh3, or heun with rtol=) "
                "and without dense=False; a fixed plan has record='x' at its own levels"
            )
        return self.path.at(sigma)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as plain data for a manifest."""
        return dict(
            method=self.method,
            sigmas=[_plain(s) for s in self.sigmas],
            nfe=self.nfe,
            sample_nfe=self.sample_nfe.tolist(),
            net_evals=self.net_evals,
            accepted=self.accepted.tolist(),
            rejected=self.rejected.tolist(),
            status=self.status.tolist(),
            error=None if self.error is None else [_plain(e) for e in self.error.tolist()],
            seeds=self.seeds,
            alterations={k: plain(v) for k, v in self.alterations.items()},
            plan=None if self.plan is None else self.plan.to_dict(),
        )


def _plain(sigma: Any) -> Any:
    """A number as JSON has it, or a list of them; None for NaN."""
    if np.ndim(sigma):
        return [_plain(s) for s in sigma]
    if np.isnan(sigma):
        return None
    return float(sigma) if np.isfinite(sigma) else "inf"


def warn_of_scale(x: Tensor, first: float) -> None:
    """Warn if end states (B, *) are far larger than the level ``first`` that their solve started from.

    Sampling starts from noise alone, so data must be small beside σ of the first level. Larger ends come of
    a solve that blew up, or of a network that was trained for another schedule. Only states on the CPU are
    looked at, so as not to wait for a device.
    """
    if x.device.type != "cpu" or not x.numel() or not np.isfinite(first):
        return
    size = norm_per_sample(x.detach().double()).numpy()
    far = np.isfinite(size) & (size > _FAR * first)
    if far.any():
        warn(
            f"{far.sum()} of {len(size)} samples end at an RMS of up to {size[far].max():.3g}, "
            f"far above σ={first:.4g}, which sampling starts from: no data is of that size. Give a "
            "lower sigma_max or more steps; ddim_ode.diagnose(model) says if the network is read rightly"
        )


def warn_of_start(x: Tensor, first: float, model: Denoiser) -> None:
    """Warn if states (B, *) are not on the scale of noised data of level ``first``, that they start from.

    Their RMS is that of the noise at least, and where the model starts, hardly more. Only states on the CPU
    are looked at, so as not to wait for a device.
    """
    n = x.numel()
    if x.device.type != "cpu" or n < _LEAST:
        return
    noise = float(model.schedule.scales(first)[1])
    size = float(x.detach().double().square().mean().sqrt())
    # not what few entries are by chance
    small = min(_SMALL, (2 * gammaincinv(n / 2, _CHANCE) / n) ** 0.5)
    starts = n >= _ENTRIES and first >= max(model.sigma_max, _HIGH)
    if size < small * noise or (starts and _LARGE * noise < size < np.inf):
        warn(
            f"x has RMS {size:.3g}, and at σ={first:.4g}, which the solve starts from, the noise alone has "
            f"{noise:.4g}: this is no state of that level. ddim_ode.noise(shape, model.schedule, seeds, "
            "sigma=) draws one"
        )


def finite_samples(x: Tensor) -> Tensor:
    """(B,) whether all entries of a sample are finite; stays on x's device."""
    return torch.isfinite(x).flatten(1).all(dim=1) if x.ndim > 1 else torch.isfinite(x)


def norm_per_sample(x: Tensor) -> Tensor:
    """(B,) the RMS of each sample's entries; stays on x's device."""
    return x.square().flatten(1).mean(dim=1).sqrt() if x.ndim > 1 else x.abs()
