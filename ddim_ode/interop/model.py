"""A diffusers network as a denoiser: how it is called, and what its conditions are called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._base.checks import count, flag, named, one_of, shown
from .._base.digests import digest
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import Guidance
from ..denoising.network import check_channels, check_labels
from ..grids import check_grid
from ..schedules.schedule import Array, ArrayLike
from . import families
from .config import (
    Note,
    Threshold,
    edm_of,
    kind_of,
    learns_variance,
    limit_of,
    notes_of,
    placing_of,
    prediction_of,
    schedule_of,
)
from .edm import Preconditioned
from .families import FROM_PIPELINE, Family
from .network import (
    ADDED,
    BESIDE,
    channels_of,
    config_of,
    needs_of,
    null_label_of,
    num_classes_of,
    row_of,
    shape_of,
    takes_of,
)
from .placement import Placement, placement


class _Network(nn.Module):
    """A diffusers model called as ``net(x, t, **cond)``, its answer of our sign."""

    def __init__(self, model: nn.Module, row: Family) -> None:
        super().__init__()
        self.model, self.row = model, row
        self.axis = 1 + (row.axes or "C").index("C")

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        left_out = sorted((takes_of(self.model, self.row) or frozenset()) - cond.keys())
        among = ADDED - inspect.signature(self.model.forward).parameters.keys()
        added = {name: cond.pop(name) for name in among if name in cond}
        if added:
            cond["added_cond_kwargs"] = added
        if (more := cond.pop(BESIDE, None)) is not None:
            x = torch.cat([x, more.to(x)], self.axis)
        shown: Any = x
        if self.row.listed:
            shown = list(x.unsqueeze(2))
            cond = {name: _listed(value, len(x)) for name, value in cond.items()}
        cond[self.row.argument] = t
        try:
            out = self.model(shown, return_dict=False, **cond)[0]
        except (AttributeError, TypeError) as error:  # of a None where it counts on a tensor
            if not left_out:
                raise
            raise ValueError(
                f"{type(self.model).__name__} fails without a condition ({error}); of those that it takes, "
                f"{', '.join(left_out)} are left out: give what it needs as cond={{name: tensor (B, ...)}}"
            ) from error
        answer: Tensor = torch.stack(out).squeeze(2) if self.row.listed else out
        return -answer if self.row.negated else answer


def _listed(value: Any, n: int) -> Any:
    """A condition with a row for each of n samples as a list of rows."""
    return list(value) if isinstance(value, Tensor) and value.ndim and len(value) == n else value


class DiffusersModel(Denoiser):
    """A diffusers network as a :class:`ddim_ode.Denoiser`.

    Conditions go by the network's own names, ``cond={"class_labels": (B,)}`` or ``{"encoder_hidden_states":
    (B, L, D)}``; ``"y"`` is taken for class labels, as in the rest of this package.

    Attributes:
        shape: Of ONE sample, or None where the network's configuration does not say it.
        axes: Their names, such as ``"CHW"``, ``"CFHW"`` (F frames) or ``"LC"`` (L packed tokens), or None.
        channels: Of the state, or None where the network's configuration does not say it. What a network
            is shown beside it (a mask, a small picture) is ``cond={"concat": (B, more, *)}``.
        notes: What became of each key of the scheduler's configuration; ``report`` is the same as text.
        scheduler: The diffusers scheduler it came with.
        config: That scheduler's settings, defaults filled in.
        num_classes: Labels the network knows, 0 for none.
        null_label: What guidance shows in their place, None where the network does not say.
        needs: The conditions without which it cannot be called.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: Any,
        guidance: float | Guidance | None,
        snap: bool | None,
        dtype: torch.dtype | None,
        clip: float | str | None,
        threshold: Threshold | str | None,
    ) -> None:
        # The scheduler's own numbers come from here on; its state is never used.
        self.scheduler, self.config = scheduler, dict(scheduler.config)
        self.config["_class_name"] = type(scheduler).__name__
        if not hasattr(model, "config"):
            raise ValueError(
                f"{type(model).__name__} has no config, as diffusers' networks have; "
                "ddim_ode.Denoiser(net, schedule) takes any other"
            )
        kind, edm = kind_of(self.config), edm_of(self.config)
        row = row_of(model, kind)
        if kind == families.FLOW and self.config.get("invert_sigmas") and not row.rising:
            raise ValueError(
                f"invert_sigmas=True: the networks of such a scheduler are told a time that rises, and "
                f"{type(model).__name__} is known as one whose time falls; {FROM_PIPELINE}"
            )
        channels = channels_of(model, learns_variance(self.config), row.axes)
        T = int(self.config["num_train_timesteps"])
        offset = 0.0 if kind == families.FLOW else float(self.config.get("time_offset", -1.0))
        told = kind == families.VP and row.plain
        net: nn.Module = _Network(model, row)
        if edm is not None:
            if snap:
                raise ValueError(
                    "snap=True: an EDM-type network is trained at all σ, none of them whole; drop snap"
                )
            if channels.variance:
                raise ValueError(
                    f"{type(model).__name__} returns a variance, which is not known of EDM-type networks; "
                    + FROM_PIPELINE
                )
            net = Preconditioned(net, edm.sigma_data, edm.clock, not edm.negated, dtype)
            dtype = None  # x̂₀ is put together in full precision
        super().__init__(
            net,
            schedule_of(self.config),
            prediction_of(self.config),
            time_offset=offset if told else 0.0,
            time=None
            if told or edm is not None
            else functools.partial(_time, row, config_of(model), T, offset, kind),
            snap=bool(self.config.get("snap")) if snap is None else flag("snap", snap),
            learned_variance="split" if channels.variance else None,
            dtype=dtype,
            sigma_max=self.config.get("sigma_max") if "plans" in self.config else None,
        )
        self._row = row
        self.limit = limit_of(self.config, clip, threshold)
        self.notes = notes_of(self.config, self.limit)
        if learns_variance(self.config) and not channels.variance:
            text = f"the network returns {channels.out} channels, a prediction and no variance"
            self.notes.insert(
                0, Note("variance_type", self.config["variance_type"], "left out", text)
            )
        self.channels, self._beside, self.axes = channels.state, channels.beside, row.axes
        self.shape = shape_of(model, row.axes, channels.state)
        self.num_classes = num_classes_of(model)
        self.classes = [str(i) for i in range(self.num_classes)]
        self.null_label = null_label_of(model)
        self.needs, self._takes = needs_of(model, row), takes_of(model, row)
        if self._beside:
            self.needs |= {BESIDE}
            self._takes = None if self._takes is None else self._takes | {BESIDE}
        self.guide(guidance)

    @property
    def report(self) -> str:
        """A line for each key of the scheduler's configuration: honoured, replaced, or left out."""
        return "\n".join(map(str, self.notes))

    @functools.cached_property
    def sha256(self) -> str:
        """Of the network's weights."""
        return digest(dict(self.net.state_dict()))  # type: ignore[attr-defined]

    def guide(
        self,
        guidance: float | Tensor | Guidance | None,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        """Set classifier-free guidance.

        Args:
            guidance: A scale, for networks whose null label is known (DiT), or a whole
                :class:`ddim_ode.Guidance`; None or 1 for none.
            interval, rescale: Of a scale, as of ``Guidance``.

        Raises:
            ValueError: A scale alone where no null label is known.
        """
        if isinstance(guidance, Guidance):
            if interval is not None or rescale:
                raise ValueError("a Guidance has its own interval and rescale; drop the others")
            null = _plain(guidance.null)
            if "class_labels" in null and self.num_classes:
                labels = torch.as_tensor(null["class_labels"]).reshape(-1)
                check_labels(labels, self.num_classes + (self.null_label is not None))
            guidance = replace(guidance, null=null)
        else:
            scale = 1.0 if guidance is None else guidance
            guidance = Guidance(scale, {"class_labels": self.null_label}, interval, rescale)
            if not guidance.is_off and self.null_label is None:
                raise ValueError(
                    f"guidance={shown(scale)}: what the null branch of this network sees is not in its "
                    "configuration; guidance=1 is the network alone, ddim_ode.Guidance(scale, "
                    "null={name: value}) says what its null branch sees"
                )
        self.guidance = None if guidance.is_off else guidance

    def placement(
        self, steps: int, mu: float | None = None, sigmas: ArrayLike | None = None
    ) -> Placement:
        """Where the model's own scheduler steps; see :func:`ddim_ode.interop.placement.placement`."""
        return placement(self.scheduler, self.schedule, steps, mu, sigmas, self._row.ramp)

    @property
    def placing(self) -> dict[str, float] | None:
        """How a flow model's levels are shifted, for plans to remember; None where the size says how."""
        return placing_of(self.config) if self.schedule.family == "flow" else None

    def grid(self, steps: int, mu: float | None = None, sigmas: ArrayLike | None = None) -> Array:
        """σ of the levels that the model's own scheduler visits in so many steps, to hand to ``grid=``.

        Its spacing, offset, shift and final ᾱ, whatever it does between them.

        Args:
            steps: Its ``num_inference_steps``, also where it calls the network twice a step.
            mu: The shift by the picture's size, as the pipeline computes it, where ``use_dynamic_shifting``
                asks for one.
            sigmas: What the pipeline hands to a flow scheduler, in its unit and before its shift, (steps,).
                Default: what the pipelines of the network's class hand over.

        Returns:
            (steps + 1,), as ``sample(..., grid=)`` takes it; (steps,) where an EDM scheduler's last step
            stays at its level (``final_sigmas_type="sigma_min"``).

        Raises:
            ValueError: The scheduler's levels rise or stay, or are none of the model's schedule.
        """
        placed = self.placement(count("steps", steps), mu, sigmas)
        stays = self.schedule.family == "ve" and placed.reached[-1] == placed.asked[-1]
        levels = placed.asked if stays else np.append(placed.asked, placed.reached[-1])
        try:
            return check_grid(levels, self.schedule)
        except ValueError as error:
            name = type(self.scheduler).__name__
            raise ValueError(
                f"{name} does not go down at each of {steps} steps ({error}); give grid= a name or σ's"
            ) from error

    def network(
        self,
        like: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> Any:
        """As of a :class:`ddim_ode.Denoiser`; ``"y"`` becomes the network's ``class_labels``."""
        if cond is not None:
            cond = _plain(named("cond", cond))
        if shared is not None:
            shared = _plain(named("shared", shared))
        if self.channels is not None:
            check_channels(like, self.channels, self.axes)
        self._check_beside({**(shared or {}), **(cond or {})}.get(BESIDE), like)
        labels = {**(shared or {}), **(cond or {})}.get("class_labels")
        if labels is not None and self.num_classes:
            known = self.num_classes + (self.null_label is not None)
            check_labels(labels, known, "class_labels" in (shared or {}))
        names = {*(cond or ()), *(shared or ())}
        if self._takes is not None:
            for name in sorted(names):
                one_of("condition", name, sorted(self._takes))
        missing = self.needs - names
        if missing:
            raise ValueError(
                f"the network needs {', '.join(sorted(missing))}: give cond={{name: tensor (B, ...)}}, one "
                "row a sample (on the command line --classes says the class labels)"
            )
        return super().network(like, cond, shared)

    def _check_beside(self, more: Any, like: Tensor) -> None:
        """ValueError unless what goes in behind the state has the axes of x, and the channels it lacks."""
        if more is None or not self._beside:
            return
        expected = list(like.shape)
        axis = 1 + (self.axes or "C").index("C")
        expected[axis] = self._beside
        if not isinstance(more, Tensor) or list(more.shape) != expected:
            got = tuple(more.shape) if isinstance(more, Tensor) else type(more).__name__
            raise ValueError(
                f"cond[{BESIDE!r}] has {got}, and beside x of {tuple(like.shape)} the network is shown "
                f"{self._beside} more channels: give a tensor {tuple(expected)}"
            )


def _plain(cond: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions by the network's own names; ValueError for two of one thing."""
    if {"y", "class_labels"} <= set(cond):
        raise ValueError("'y' and 'class_labels' are given, which are one thing; drop 'y'")
    return {"class_labels" if name == "y" else name: value for name, value in cond.items()}


def _time(
    row: Family,
    config: Mapping[str, Any],
    T: int,
    offset: float,
    kind: str,
    t: Array,
    sigma: Array,
) -> Array:
    """What the network is told at times of the schedule; its scheduler would say T·t, or t − 1."""
    return row.time(t * T if kind == families.FLOW else t + offset, T, config)
