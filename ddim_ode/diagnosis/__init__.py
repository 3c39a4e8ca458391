"""What will go wrong when a model is sampled, measured on the model itself.

The checks run the model on a few noised samples; a configuration only says where to look. Of the network:
what it returns (network.py), what it predicts, at which scale and time (interpretation.py), whether it
answers alike twice, and in half precision (precision.py). Of the levels (levels.py): where a scheduler or a
grid steps, and what its departures cost. Of limits on x̂₀: limits.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..denoising.denoiser import Denoiser
from .._base.interrupted import Interrupted
from .findings import Diagnosis as Diagnosis
from .findings import Finding as Finding


def diagnose(
    model: Denoiser,
    *,
    data: Tensor | None = None,
    cond: Mapping[str, Tensor] | None = None,
    shared: Mapping[str, Any] | None = None,
    shape: Sequence[int] | None = None,
    steps: int = 50,
    n: int = 8,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Diagnosis:
    """Measure what is wrong with a model, and with the scheduler it came with.

    It costs about 100 network calls of n samples with data, 220 without, and up to four times as many where
    the answers leave a doubt of how they are to be read.

    Args:
        model: What is to be sampled.
        data: Clean samples (N, *) in the network's space, of which n are used. With them prediction type,
            input scale and network time are measured against truth; without, against samples that the model
            makes itself, which finds less.
        cond: Conditions of n samples (default: classes in turn, where the model knows their number).
        shared: Passed to the network as it is.
        shape: Of ONE sample (default: the data's, or the model's own).
        steps: The number of steps you mean to take; strides and levels depend on it.
        n: Samples to ask the model with.
        seed: Of the first noise.
        device: Default: the network's own.

    Returns:
        The findings, the worst first. An empty list means that the checks that were made found nothing, at
        these noises and this number of steps; ``not_checked`` names the others, each with its reason.

    Raises:
        ValueError: The model cannot be asked at all (no shape, conditions missing).
        Interrupted: On Ctrl-C; its ``partial`` holds what was found until then.

    >>> import ddim_ode
    >>> schedule = ddim_ode.schedules.ddpm()
    >>> model = ddim_ode.exact.gaussian_mixture(
    ...     [0.5, 0.5], [[-1.0, 1.0] * 8, [1.0, 1.0] * 8], [[0.1] * 16] * 2, schedule
    ... )
    >>> ddim_ode.diagnose(model)
    nothing found
    not checked: half-precision: the network is no torch.nn.Module with weights to convert
    >>> misread = ddim_ode.Denoiser(model.net, schedule, "x0", time=lambda t, sigma: sigma)
    >>> [finding.check for finding in ddim_ode.diagnose(misread, data=model.draw(64).float(), n=64)]
    ['prediction']
    >>> ddim_ode.diagnose(model).not_checked
    {'half-precision': 'the network is no torch.nn.Module with weights to convert'}
    """
    from . import levels, limits, network
    from .probe import Probe

    probe = Probe(model, data, cond, shared, shape, steps, n, seed, device)
    findings: list[Finding] = []
    try:
        findings.extend(network.checks(probe))
        probe.model = probe.model.replace(limit=probe.limit)
        findings.extend(levels.checks(probe))
        findings.extend(limits.checks(probe, [finding.check for finding in findings]))
    except KeyboardInterrupt:
        partial = Diagnosis(findings, probe.not_checked)
        raise Interrupted("stopped: these are not all of the checks", partial) from None
    findings.sort(key=lambda finding: finding.severity != "error")
    return Diagnosis(findings, probe.not_checked)
