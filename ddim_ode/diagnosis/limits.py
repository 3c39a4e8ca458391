"""Checks of limits on x̂₀: whether the model needs one, and whether the one it has cuts into its data."""

from __future__ import annotations

from collections.abc import Collection

from ..denoising.guidance import Level
from .findings import Finding
from .interpretation import OF_MEANING
from .probe import BEYOND, Probe, rms

_HIDING = {*OF_MEANING, "non-finite"} - {"terminal-snr"}
_CUT = 0.1  # what a limit may move, of the data's RMS: less is overshoot, of networks and of data


def checks(probe: Probe, found: Collection[str]) -> list[Finding]:
    """found: the checks that have found something already."""
    hiding = next((check for check in found if check in _HIDING), None)
    if hiding or probe.degenerate:
        reason = f"set {hiding!r} right first: it hides this" if hiding else probe.degenerate
        probe.skip(str(reason), "clipping")
        return []
    finding = cut(probe) if probe.limit else missing(probe)
    return [] if finding is None else [finding]


def missing(probe: Probe) -> Finding | None:
    """A network that was meant to be sampled with x̂₀ kept in range, and is not."""
    if not probe.relies:
        return None
    if probe.data is None:
        most = float(probe.free.abs().max())
        evidence, bound = most / probe.reach, "clip=1 for pixels in [−1, 1]"
        seen = f"reaches {most:.3g}, and {probe.reach:.3g} where x̂₀ is kept to its own range"
    else:
        evidence, bound = probe.beyond(probe.free), f"clip={probe.reach:.3g}"
        far = f"{BEYOND:g} times the data's largest, {probe.reach:.3g}"
        seen = f"lies beyond {far}, in {evidence:.1%} of the entries"
    return Finding(
        "clipping",
        "error",
        evidence,
        f"the network relies on a limit on x̂₀, and there is none: what it makes {seen}",
        f"{bound}, of Denoiser or load (on the command line --clip; clip_sample and clip_sample_range in a "
        "scheduler's configuration)",
    )


def cut(probe: Probe) -> Finding | None:
    """A limit that moves what belongs to the data."""
    if probe.data is not None:
        x0, whose = probe.data, "the data"
    elif not probe.relies:
        x0, whose = probe.free, "what the model makes without it"
    else:
        return None  # what belongs to the data is not known
    limited = probe.limit(x0, x0, Level())
    moved, most = rms(limited - x0) / rms(x0), float(x0.abs().max())
    if not moved > _CUT:
        return None
    share = float((limited != x0).float().mean())
    off = "" if probe.relies else ", or clip=None and threshold=None: it relies on neither"
    return Finding(
        "clipping",
        "error",
        moved,
        f"{probe.limit} moves {share:.1%} of the entries of {whose}, by {moved:.2g} of its RMS; it reaches "
        f"{most:.3g}",
        f"clip={most:.3g}{off}",
    )
