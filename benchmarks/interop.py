"""Our calibrated plan inside an unmodified diffusers pipeline, beside diffusers' own schedulers.

    python benchmarks/interop.py --quick        # 4 noises
    python benchmarks/interop.py --full         # 40 noises

The shipped network is wrapped as a diffusers transformer (times 0..T−1, class labels) and goes, with an
identity for a VAE, into a DiTPipeline, which passes labels and asks nothing of ``step`` that only some
schedulers have. Every scheduler runs in that pipeline, guidance 1, one class after another, from the
noises the pipeline draws of one seed. The error is the mean over the noises of the RMS error of a sample's
pixels against a converged solution, as everywhere in these benchmarks; the RMS over all of them, which
a few noises decide, is in the table beside it.

Theirs get the network's own β_t, default settings and each timestep spacing they know, Karras levels
where they have them, and no clipping. Where one calls more than once a step, it takes the most steps that
fit. The Euler, Heun, KDPM2 and LMS families keep x/ᾱ, which this pipeline does not; the script does that
for them. Ours are the defaults of ``ddim_ode``, and the calibrated plans that ship with the model, saved
with the scheduler and loaded again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import torch
from common import Row, Run, arguments, label, labels, panels, quiet, rms
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from matplotlib.figure import Figure
from torch import Tensor

import ddim_ode
from ddim_ode.interop.diffusers import DDIMODEScheduler
from ddim_ode.nets.pretrained import PretrainedModel

BUDGETS = (5, 8, 10)
CLASSES = 10
SPACINGS = ("leading", "trailing", "linspace")
UNCLIPPED = dict(clip_sample=False)
KARRAS = dict(use_karras_sigmas=True)
# Name, settings beside the default ones.
THEIRS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDIM", UNCLIPPED),
    ("EulerDiscrete", {}),
    ("EulerDiscrete", KARRAS),
    ("HeunDiscrete", {}),
    ("KDPM2Discrete", {}),
    ("LMSDiscrete", {}),
    ("LMSDiscrete", KARRAS),
    ("PNDM", {}),
    ("PNDM", dict(skip_prk_steps=True)),
    ("DEISMultistep", {}),
    ("DPMSolverSinglestep", {}),
    ("DPMSolverMultistep", {}),
    ("DPMSolverMultistep", dict(solver_order=3)),
    ("DPMSolverMultistep", KARRAS),
    ("UniPCMultistep", {}),
    ("UniPCMultistep", dict(solver_order=3)),
    ("UniPCMultistep", KARRAS),
)


class Wrapped(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The shipped U-Net as diffusers calls a DiT: times 0..T−1, ``.sample``."""

    @register_to_config
    def __init__(self, sample_size: int = 28, in_channels: int = 1, out_channels: int = 1) -> None:
        super().__init__()
        self.net = ddim_ode.load("fashion-mnist").net
        self.calls = 0

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> UNet2DOutput:
        self.calls += 1
        return UNet2DOutput(sample=self.net(x, timestep.float() + 1, y=class_labels))


class Identity(ModelMixin, ConfigMixin):  # type: ignore[misc]
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


def run(pipe: Any, scheduler: Any, steps: int, n: int) -> tuple[Tensor, int]:
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
    return listening.last, pipe.transformer.calls


def theirs(pipe: Any, betas: list[float], nfe: int, n: int) -> Iterator[Row]:
    for name, options in THEIRS:
        cls = getattr(diffusers, f"{name}Scheduler")
        default = None
        for spacing in (None, *SPACINGS):
            config = dict(trained_betas=betas, **options)
            if spacing is not None:
                config["timestep_spacing"] = spacing
            found, reason = None, "it takes more calls at any number of steps"
            for steps in range(nfe, 0, -1):  # some call more than once a step
                try:
                    scheduler = cls(**config)
                    scheduler.set_timesteps(steps)
                    if len(scheduler.timesteps) <= nfe:
                        found = run(pipe, cls(**config), steps, n)
                        break
                except (ValueError, IndexError, KeyError, TypeError) as error:
                    reason = f"{type(error).__name__}: {error}"
            default = scheduler.config.get("timestep_spacing") if spacing is None else default
            if spacing is not None and spacing == default:
                continue  # measured as the default; some know no spacing at all
            settings = ", ".join(f"{k}={v}" for k, v in options.items())
            if found is not None and not found[0].isfinite().all():
                found, reason = None, "its samples are not finite"
            if found is None:
                where = f"{name} {settings} {spacing or 'default'}, {nfe} calls"
                print(f"left out: {where}: {reason}", file=sys.stderr)
                continue
            yield dict(
                package="diffusers",
                scheduler=name,
                settings=settings,
                spacing=spacing or f"{default or 'its own'} (default)",
                nfe=found[1],
                end=found[0],
            )


def ours(pipe: Any, model: PretrainedModel, nfe: int, n: int) -> Iterator[Row]:
    schedule = dict(name=model.schedule.name, params=model.schedule.params)
    for name in ("ddim", "dpmpp2m", "unipc3", "ipndm"):
        scheduler = DDIMODEScheduler(method=name, schedule=schedule)
        end, calls = run(pipe, scheduler, nfe, n)
        yield dict(package="ddim_ode", scheduler=name, spacing="default", nfe=calls, end=end)
    plan = model.calibrated(nfe)
    scheduler = DDIMODEScheduler.from_plans(plan, {}, schedule=schedule)
    with tempfile.TemporaryDirectory() as folder:  # as a user has it: saved and loaded
        scheduler.save_pretrained(folder)
        scheduler = DDIMODEScheduler.from_pretrained(folder)
    end, calls = run(pipe, scheduler, nfe, n)
    yield dict(package="ddim_ode", scheduler="calibrated", spacing="its own", nfe=calls, end=end)


def reference(model: PretrainedModel, x: Tensor) -> Tensor:
    cond = labels(model, range(len(x)))
    ends = [
        ddim_ode.sample(model, x, "rk4", steps=steps, grid="karras", cond=cond).x
        for steps in (120, 60)
    ]
    print(f"reference: rk4, 120 karras steps; with 60 it moves by {rms(ends[0] - ends[1]):.1e}\n")
    return ends[0]


def draw(rows: list[dict[str, Any]], nfe: int) -> Figure:
    """The schedulers at that budget, best first: bars from zero, ours in colour."""
    best: dict[str, dict[str, Any]] = {}
    for row in sorted((r for r in rows if r["budget"] == nfe), key=lambda r: r["error"]):
        name = " ".join(filter(None, [row["scheduler"], row.get("settings", "")]))
        best.setdefault(f"{row['package']}: {name}", row)
    figure, (axis,) = panels(1, width=10, height=0.5 + 0.3 * len(best))
    names = list(best)
    colors = ["#332288" if name.startswith("ddim_ode") else "#9a9a9a" for name in names]
    axis.barh(names, [best[name]["error"] for name in names], color=colors)
    for i, name in enumerate(names):
        row = best[name]
        axis.text(
            row["error"], i, f"  {row['error']:.3f}  {row['spacing']}", va="center", fontsize=9
        )
    axis.invert_yaxis()
    axis.set_xlim(0, 1.35 * max(row["error"] for row in best.values()))
    axis.grid(False)
    x = "mean RMS error per pixel to the converged end,\nin each scheduler's best spacing"
    label(axis, f"{nfe} network calls in a DiTPipeline", x, "")
    return figure


def main() -> None:
    args = arguments(__doc__, "4 noises", "40 noises").parse_args()
    record = Run("interop", args, ["diffusers"])
    torch.set_grad_enabled(False)
    n = 40 if args.full else 4
    budgets = BUDGETS if args.full else (8,)
    model = ddim_ode.load("fashion-mnist")
    alphas = model.schedule.alpha_bar(np.arange(model.schedule.T + 1)) ** 2
    betas = (1 - alphas[1:] / alphas[:-1]).tolist()
    with quiet():
        pipe = diffusers.DiTPipeline(Wrapped(), Identity(), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn((n, *model.shape), generator=torch.Generator().manual_seed(0))
    truth = reference(model, x)
    rows: list[dict[str, Any]] = []
    for nfe in budgets:
        with quiet():
            found = [*theirs(pipe, betas, nfe, n), *ours(pipe, model, nfe, n)]
        for row in found:
            off = row.pop("end") - truth
            error = float(np.mean([rms(one) for one in off]))
            rows.append(dict(budget=nfe, **row, error=error, error_of_all=rms(off)))
        here = sorted((r for r in rows if r["budget"] == nfe), key=lambda r: r["error"])
        print(
            f"| {nfe} calls: scheduler | settings | spacing | calls | RMS error |\n|---|---|---|---:|---:|"
        )
        for row in here:
            cells = (row["scheduler"], row.get("settings", ""), row["spacing"], row["nfe"])
            mark = "**" if row["package"] == "ddim_ode" else ""
            print(
                f"| {mark}{cells[0]}{mark} | {cells[1]} | {cells[2]} | {cells[3]} | {row['error']:.4f} |"
            )
        peer = next(r for r in here if r["package"] == "diffusers")
        calibrated = next(r for r in here if r["scheduler"] == "calibrated")
        ratio = calibrated["error"] / peer["error"]
        print(
            f"\ncalibrated / best of diffusers ({peer['scheduler']}, {peer['spacing']}): {ratio:.3f}\n"
        )
    record.save(rows, draw(rows, 8), n=n, nfe=budgets)


if __name__ == "__main__":
    main()
