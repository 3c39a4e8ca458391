"""Our calibrated plan inside an unmodified diffusers pipeline, beside diffusers' own schedulers.

    python benchmarks/interop.py --quick        # 4 noises
    python benchmarks/interop.py --full         # 40 noises

The shipped network goes as a diffusers transformer (times 0..T−1, class labels), with an identity for a
VAE, into a DiTPipeline; every scheduler runs there from the same noises, guidance 1. Figure: the mean over
the noises of the RMS error per pixel to a converged solution, each scheduler in its best timestep spacing.
Theirs get the network's own β_t, default settings, each spacing they know and no clipping, and the most
steps that fit the calls; the Euler, Heun, KDPM2 and LMS families keep x/ᾱ, which the script does for them.
Ours are defaults, and the calibrated plans that ship with the model, saved with the scheduler and loaded.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import torch
from common import Row, Run, arguments, converged, labels, pick, quiet, rms
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers_schedulers import SCHEDULERS, make, takes_at_most
from drawing import bars, label, panels
from matplotlib.figure import Figure
from torch import Tensor

import ddim_ode
from ddim_ode.interop.diffusers import DDIMODEScheduler
from ddim_ode.nets.pretrained import PretrainedModel

BUDGETS = (5, 8, 10)
CLASSES = 10
SPACINGS = ("leading", "trailing", "linspace")


class Wrapped(ModelMixin, ConfigMixin):
    """The shipped U-Net as diffusers calls a DiT: times 0..T−1, ``.sample``."""

    @register_to_config
    def __init__(self, sample_size: int = 28, in_channels: int = 1, out_channels: int = 1) -> None:
        super().__init__()
        self.net = ddim_ode.load("fashion-mnist").net
        self.calls = 0

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> UNet2DOutput:
        self.calls += 1
        return UNet2DOutput(sample=self.net(x, timestep.float() + 1, y=class_labels))


class Identity(ModelMixin, ConfigMixin):
    """A VAE whose latents are pictures."""

    @register_to_config
    def __init__(self, scaling_factor: float = 1.0) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))  # a pipeline asks its parts for their dtype

    def decode(self, latents: Tensor) -> UNet2DOutput:
        return UNet2DOutput(sample=latents)


class Listening:
    """Keeps a scheduler's last latent, as the pipeline clamps what it returns.

    For schedulers whose state is x/ᾱ it also scales the first noise, and hands ``step`` the state where
    this pipeline hands it the scaled input. For the others, ours among them, both are the same.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scale, self.step = scheduler.scale_model_input, scheduler.step
        self.state = self.last = torch.empty(0)
        self.factor = scheduler.init_noise_sigma
        scheduler.scale_model_input, scheduler.step = self.scaled, self.stepped

    def scaled(self, sample: Tensor, timestep: Any) -> Tensor:
        self.state, self.factor = sample * self.factor, 1.0
        return self.scale(self.state, timestep)

    def stepped(self, output: Tensor, timestep: Any, sample: Tensor) -> Any:
        made = self.step(output, timestep, self.state)
        self.last = made.prev_sample
        return made


def run(pipe: Any, scheduler: Any, steps: int, n: int) -> dict[str, Any]:
    """The end states and the network calls of one run of the pipeline."""
    scheduler.set_timesteps(steps)  # some know their first scale only then
    listening = Listening(scheduler)
    pipe.scheduler, pipe.transformer.calls = scheduler, 0
    pipe(
        class_labels=[i % CLASSES for i in range(n)],
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=steps,
        output_type="pt",
    )
    return dict(nfe=pipe.transformer.calls, end=listening.last)


def theirs(pipe: Any, betas: list[float], nfe: int, n: int) -> Iterator[Row]:
    for name, options in SCHEDULERS:
        default = make(name, trained_betas=betas, **options).config.get("timestep_spacing")
        settings = ", ".join(f"{k}={v}" for k, v in options.items())
        # some know no spacing at all
        for spacing in (None, *(one for one in SPACINGS if one != default)):
            config = dict(trained_betas=betas, **options)
            config |= {} if spacing is None else dict(timestep_spacing=spacing)
            found, reason = None, "it takes more calls at any number of steps"
            for steps in range(nfe, 0, -1):
                try:
                    if takes_at_most(nfe, make(name, **config), steps):
                        found = run(pipe, make(name, **config), steps, n)
                        break
                except (ValueError, IndexError, KeyError, TypeError) as error:
                    reason = f"{type(error).__name__}: {error}"
            if found is None or not found["end"].isfinite().all():
                where = f"{name} {settings} {spacing or 'default'}, {nfe} calls"
                reason = reason if found is None else "its samples are not finite"
                print(f"left out: {where}: {reason}", file=sys.stderr)
                continue
            spacing = spacing or f"{default or 'its own'} (default)"
            about = dict(scheduler=name, settings=settings, spacing=spacing)
            yield dict(package="diffusers", **about, **found)


def ours(pipe: Any, model: PretrainedModel, nfe: int, n: int) -> Iterator[Row]:
    schedule = dict(name=model.schedule.name, params=model.schedule.params)
    for name in ("ddim", "dpmpp2m", "unipc3", "ipndm"):
        scheduler = DDIMODEScheduler(method=name, schedule=schedule)
        found = run(pipe, scheduler, nfe, n)
        yield dict(package="ddim_ode", scheduler=name, spacing="default", **found)
    scheduler = DDIMODEScheduler.from_plans(model.calibrated(nfe), {}, schedule=schedule)
    with tempfile.TemporaryDirectory() as folder:  # as a user has it: saved and loaded
        scheduler.save_pretrained(folder)
        scheduler = DDIMODEScheduler.from_pretrained(folder)
    found = run(pipe, scheduler, nfe, n)
    yield dict(package="ddim_ode", scheduler="calibrated", spacing="its own", **found)


def report(rows: list[Row], nfe: int) -> None:
    """A Markdown table, best first, ours in bold, and how far the calibrated plan is ahead."""
    print(f"| {nfe} calls: scheduler | settings | spacing | calls | RMS error |")
    print("|---|---|---|---:|---:|")
    for row in rows:
        mark = "**" if row["package"] == "ddim_ode" else ""
        cells = (row.get("settings", ""), row["spacing"], row["nfe"], f"{row['error']:.4f}")
        print(f"| {mark}{row['scheduler']}{mark} | {' | '.join(map(str, cells))} |")
    peer = pick(rows, package="diffusers")[0]
    ratio = pick(rows, scheduler="calibrated")[0]["error"] / peer["error"]
    best = f"{peer['scheduler']}, {peer['spacing']}"
    print(f"\ncalibrated / best of diffusers ({best}): {ratio:.3f}\n")


def draw(rows: list[Row], nfe: int) -> Figure:
    """The schedulers at that budget, best at the top, ours in colour."""
    best: dict[str, Row] = {}
    for row in sorted(pick(rows, budget=nfe), key=lambda r: r["error"]):
        name = " ".join(filter(None, [row["scheduler"], row.get("settings", "")]))
        best.setdefault(f"{row['package']}: {name}", row)
    figure, (axis,) = panels(1, width=10, height=0.5 + 0.3 * len(best))
    colours = ["#332288" if name.startswith("ddim_ode") else "#9a9a9a" for name in best]
    values = [row["error"] for row in best.values()]
    texts = [f" {row['error']:.3f}  {row['spacing']}" for row in best.values()]
    bars(axis, list(best), values, texts, colours)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.35 * max(values))
    axis.grid(False)
    x = "mean RMS error per pixel to the converged end,\nin each scheduler's best spacing"
    label(axis, f"{nfe} network calls in a DiTPipeline", x)
    return figure


def main() -> None:
    args = arguments(__doc__, "4 noises", "40 noises").parse_args()
    record = Run("interop", args, ["diffusers"])
    torch.set_grad_enabled(False)
    n, budgets = (40, BUDGETS) if args.full else (4, (8,))
    model = ddim_ode.load("fashion-mnist")
    alphas = model.schedule.alpha_bar(np.arange(model.schedule.T + 1)) ** 2
    betas = (1 - alphas[1:] / alphas[:-1]).tolist()
    with quiet():
        pipe = diffusers.DiTPipeline(Wrapped(), Identity(), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn((n, *model.shape), generator=torch.Generator().manual_seed(0))
    truth = converged("fashion-mnist", model, x, labels(model, range(n)), 120)
    rows: list[Row] = []
    for nfe in budgets:
        with quiet():
            found = [*theirs(pipe, betas, nfe, n), *ours(pipe, model, nfe, n)]
        for row in found:
            off = row.pop("end") - truth
            error = float(np.mean([rms(one) for one in off]))
            rows.append(dict(budget=nfe, **row, error=error, error_of_all=rms(off)))
        report(sorted(pick(rows, budget=nfe), key=lambda r: r["error"]), nfe)
    record.save(rows, draw(rows, 8), n=n, nfe=budgets)


if __name__ == "__main__":
    main()
