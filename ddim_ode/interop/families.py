"""How the pipelines of diffusers call their transformers: the one table, by the network's class.

Flow-matching networks differ in what they are told of the time and in the sign of their answer, and their
configurations do not say it; a wrong reading fits in shape and is silent. So a class of transformers is
read by its row, each of which a test holds against the class's own pipeline, or not at all. U-Nets are told
the scheduler's time as it is, and have no row.

With τ the time as the scheduler counts it, 0..T, high where there is noise:

    τ         as it is
    τ/T       from 0 to 1
    1 − τ/T   from 0 at the noise to 1 at the data
    T − τ     likewise, in the scheduler's unit
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..schedules.schedule import Array

_CLOCKS: dict[str, Callable[[Array, float], Array]] = {
    "τ": lambda tau, T: tau,
    "τ/T": lambda tau, T: tau / T,
    "1 − τ/T": lambda tau, T: 1 - tau / T,
    "T − τ": lambda tau, T: T - tau,
}
FROM_PIPELINE = (
    "use ddim_ode.interop.diffusers.from_pipeline(pipe, ...), which leaves the call to it"
)
VP, FLOW, EDM = "variance preserving", "flow", "EDM"


class Family(NamedTuple):
    """A row of the table.

    Attributes:
        axes: Of one sample, such as ``"LC"``, L packed tokens; None where it is not known.
        clock: What the network is told, an expression above.
        negated: Whether the pipeline turns the sign of the answer round.
        ramp: Whether the pipeline hands the times 1, (N−1)/N, ... 1/N to its scheduler, which shifts them.
        argument: The name of the time in the network's call.
        listed: Whether a batch goes in, and comes out, as a list of samples with an axis of one frame.
        scaled: The setting of the network's configuration that multiplies its time.
        only: The kinds of noise it is read for; all if empty.
        rising: Whether its scheduler has levels that rise (``invert_sigmas``).
    """

    axes: str | None = None
    clock: str = "τ"
    negated: bool = False
    ramp: bool = False
    argument: str = "timestep"
    listed: bool = False
    scaled: str | None = None
    only: tuple[str, ...] = ()
    rising: bool = False

    def time(self, tau: Array, T: float, config: Mapping[str, Any]) -> Array:
        """What the network is told at the scheduler's times; config: the network's own."""
        factor = 1.0 if self.scaled is None else float(config.get(self.scaled, 1.0))
        return _CLOCKS[self.clock](np.asarray(tau, dtype=np.float64), T) * factor

    @property
    def plain(self) -> bool:
        """Whether it is told τ as it is."""
        return self.clock == "τ" and self.scaled is None


_PACKED = Family("LC", "τ/T", ramp=True)
FAMILIES: dict[str, Family] = {
    "SD3Transformer2DModel": Family("CHW"),
    "WanTransformer3DModel": Family("CFHW"),
    "SkyReelsV2Transformer3DModel": Family("CFHW"),
    "LTXVideoTransformer3DModel": Family("LC", ramp=True),
    "HunyuanVideoTransformer3DModel": Family("CFHW", ramp=True),
    "SanaTransformer2DModel": Family("CHW", scaled="timestep_scale"),
    "SanaVideoTransformer3DModel": Family("CFHW"),
    "FluxTransformer2DModel": _PACKED,
    "Flux2Transformer2DModel": _PACKED,
    "ChromaTransformer2DModel": _PACKED,
    "LongCatImageTransformer2DModel": _PACKED,
    "OvisImageTransformer2DModel": _PACKED,
    "Krea2Transformer2DModel": _PACKED,
    "QwenImageTransformer2DModel": _PACKED,
    "NucleusMoEImageTransformer2DModel": _PACKED._replace(negated=True),
    "AuraFlowTransformer2DModel": Family("CHW", "τ/T"),
    "LuminaNextDiT2DModel": Family("CHW", "1 − τ/T", negated=True),
    "Lumina2Transformer2DModel": Family("CHW", "1 − τ/T", negated=True, ramp=True),
    "ZImageTransformer2DModel": Family(
        "CHW", "1 − τ/T", negated=True, ramp=True, argument="t", listed=True
    ),
    "HiDreamImageTransformer2DModel": Family("CHW", negated=True, argument="timesteps"),
    "BriaTransformer2DModel": Family("LC", ramp=True),
    "PRXTransformer2DModel": Family("CHW", "τ/T"),
    "ErnieImageTransformer2DModel": Family("CHW", ramp=True),
    "HunyuanVideo15Transformer3DModel": Family("CFHW", ramp=True),
    "MochiTransformer3DModel": Family("CFHW", "T − τ", negated=True, rising=True),
    # Of other noise; a DiT that is trained with a flow scheduler is told its time, as U-Nets are.
    "DiTTransformer2DModel": Family("CHW"),
    "PixArtTransformer2DModel": Family("CHW", only=(VP,)),
    "Transformer2DModel": Family("CHW", only=(VP,)),
    "HunyuanDiT2DModel": Family("CHW", only=(VP,)),
    "CogView3PlusTransformer2DModel": Family("CHW", only=(VP,)),
    "CogVideoXTransformer3DModel": Family("FCHW", only=(VP,)),
    "ConsisIDTransformer3DModel": Family("FCHW", only=(VP,)),
    "AllegroTransformer3DModel": Family("CFHW", only=(VP,)),
    "LatteTransformer3DModel": Family("CFHW", only=(VP,)),
    "PriorTransformer": Family("C", only=(VP,)),
    "StableAudioDiTModel": Family("CL", only=(VP, EDM)),
    "CosmosTransformer3DModel": Family("CFHW", only=(EDM,)),  # Cosmos 2 has flow on scaled states
}
# The axes of one sample by a part of the class's name, for networks without a row.
_PARTS = {
    "UNet1D": "CL",
    "SpatioTemporal": "FCHW",
    **{"UNet3D": "CFHW", "UNetMotion": "CFHW", "I2VGenXL": "CFHW"},
    **{"UNet2D": "CHW", "Kandinsky3UNet": "CHW", "UViT2D": "CHW", "UNetControlNetXS": "CHW"},
}


def family_of(classes: Sequence[type], kind: str) -> Family:
    """How a network is called.

    Args:
        classes: Its own and those that it is derived from, as its method resolution has them.
        kind: Of the noise, :data:`VP`, :data:`FLOW` or :data:`EDM`.

    Raises:
        ValueError: A class of which nobody knows how it is called with such noise.
    """
    names = [cls.__name__ for cls in classes]
    row = next((FAMILIES[name] for name in names if name in FAMILIES), None)
    if row is None:
        axes = next((_PARTS[part] for name in names for part in _PARTS if part in name), None)
        theirs = any(cls.__module__.startswith("diffusers.models.transformers") for cls in classes)
        if axes is not None or not (theirs or kind == FLOW):
            return Family(axes)
    elif not row.only or kind in row.only:
        return row
    known = ", ".join(sorted(n for n, f in FAMILIES.items() if not f.only or kind in f.only))
    raise ValueError(
        f"{names[0]} with a scheduler of {kind} noise: this version does not know what time such a network "
        f"is told and what sign its answer has; {FROM_PIPELINE}. A network that you know goes into "
        f"ddim_ode.Denoiser(net, schedule, time=...). Known transformers are {known}"
    )
