"""Our schedulers inside an unmodified flow-matching pipeline, beside diffusers' own.

    python benchmarks/flow_pipeline.py --quick        # trains two minutes, 24 noises
    python benchmarks/flow_pipeline.py --full         # trains 40 minutes, 64 noises

A class-conditional SD3 transformer is trained here on scikit-learn's 8 × 8 digits, and goes into a
StableDiffusion3Pipeline (no encoders, no VAE, guidance 1), in which every scheduler runs from the same
noises. Figure: the RMS error per pixel, over all noises, to a converged solution. Each scheduler of
diffusers gets the better of the shifts 1 and 3, for each number of calls, and as many steps as fit them,
and so does each sampler of skrample, by its wrapper for diffusers (Python 3.12 and later); a profile or a
plan of ours has no shift. A second table is of bfloat16: the error of Euler's method to its own float32
run, of the parent class, which rounds the state after each step, and of ours, which keeps it in float32. A
training that is interrupted goes on where it was (``--cache``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from common import Row, Run, arguments, installed, pick, quiet, rms
from drawing import GREY, label, legend_below, look, panels
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import ddim_ode
from ddim_ode.interop.diffusers import DDIMODEFlowScheduler
from ddim_ode.plots.style import STAGES

BUDGETS = (6, 8, 10)
OURS = {
    "unipc2, profile": dict(color=STAGES["default"], marker="D"),
    "calibrated": dict(color=STAGES["calibrated"], marker="s"),
}
SHIFTS = (1.0, 3.0)
WORDS = 16  # entries of a class's embedding
EULER = "FlowMatchEulerDiscreteScheduler"
FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
THEIRS = (
    (EULER, {}),
    *((EULER, {f"use_{name}_sigmas": True}) for name in ("karras", "exponential", "beta")),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("UniPCMultistepScheduler", dict(solver_order=2)),
    ("UniPCMultistepScheduler", dict(solver_order=3)),
    ("DPMSolverMultistepScheduler", dict(solver_order=2)),
    ("DPMSolverMultistepScheduler", dict(solver_order=3)),
    ("DPMSolverMultistepScheduler", dict(solver_order=2, euler_at_final=True)),
    ("DPMSolverSinglestepScheduler", dict(solver_order=2)),
    ("DEISMultistepScheduler", dict(solver_order=2)),
)


OF_SKRAMPLE = (
    *(("Euler", {}), ("SPC", {})),
    *((name, dict(order=order)) for name in ("DPM", "Adams", "UniP", "UniPC") for order in (2, 3)),
)


class Classes:
    """What a text encoder would say of each class: fixed random numbers."""

    def __init__(self) -> None:
        self.table = torch.randn(10, WORDS, generator=torch.Generator().manual_seed(1))

    def __call__(self, y: Tensor) -> dict[str, Tensor]:
        words = self.table[y]
        return dict(encoder_hidden_states=words[:, None], pooled_projections=words)


def network(width: int, layers: int) -> Any:
    """The transformer, before training."""
    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=width // 16,
        joint_attention_dim=WORDS,
        caption_projection_dim=width,
        pooled_projection_dim=WORDS,
        pos_embed_max_size=4,
    )


def trained(seconds: float, width: int, layers: int, cache: Path | None = None) -> Any:
    """The transformer after so many seconds of Adam on (ε − x₀ − v)², t uniform.

    cache: A folder in which a checkpoint is kept, from which another call of the same network goes on.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    targets, classes = torch.tensor(data.target), Classes()
    net = network(width, layers)
    averaged = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimizer, generator = (
        torch.optim.Adam(net.parameters(), 2e-3),
        torch.Generator().manual_seed(0),
    )
    kept = None if cache is None else cache / f"{width}-{layers}-{seconds:g}.pt"
    spent, steps, saved = 0.0, 0, 0.0
    parts = dict(net=net, averaged=averaged, optimizer=optimizer)
    if kept is not None and kept.exists():
        state = torch.load(kept, weights_only=True)
        spent, steps = state["spent"], state["steps"]
        generator.set_state(state["generator"])
        for name, part in parts.items():
            part.load_state_dict(state[name])
        saved = spent
    began = time.perf_counter() - spent
    with torch.enable_grad(), tqdm(total=int(seconds), unit="s", leave=False) as bar:
        while (spent := time.perf_counter() - began) < seconds:
            bar.update(int(spent) - bar.n)
            for group in optimizer.param_groups:  # to zero along a quarter of a cosine
                group["lr"] = 2e-3 * math.cos(math.pi / 2 * spent / seconds)
            rows = torch.randint(0, len(pixels), (64,), generator=generator)
            x0, t = pixels[rows], torch.rand(64, generator=generator)
            eps = torch.randn(x0.shape, generator=generator)
            share = t[:, None, None, None]
            v = net((1 - share) * x0 + share * eps, timestep=1000 * t, **classes(targets[rows]))
            loss = (v.sample - eps + x0).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update_parameters(net)
            steps += 1
            if kept is not None and spent > saved + 60:
                saved = spent
                _keep(kept, parts, spent=spent, steps=steps, generator=generator.get_state())
    if kept is not None:
        _keep(kept, parts, spent=seconds, steps=steps, generator=generator.get_state())
    return averaged.module.eval().requires_grad_(False), steps


def _keep(path: Path, parts: dict[str, Any], **more: Any) -> None:
    """A checkpoint, in place of the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save({**{name: part.state_dict() for name, part in parts.items()}, **more}, fresh)
    fresh.replace(path)


def run(pipe: Any, scheduler: Any, steps: int, x: Tensor, y: Tensor) -> tuple[int, Tensor]:
    """Network calls, and the end states, of one run of the pipeline."""
    calls = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    pipe.scheduler = scheduler
    kind = pipe.transformer.dtype
    words = {name: part.to(kind) for name, part in Classes()(y).items()}
    end = pipe(
        prompt_embeds=words["encoder_hidden_states"],
        pooled_prompt_embeds=words["pooled_projections"],
        guidance_scale=1.0,
        height=64,
        width=64,
        num_inference_steps=steps,
        latents=x.to(kind),
        output_type="latent",
    ).images
    hook.remove()
    return len(calls), end.float()


def theirs(pipe: Any, nfe: int, x: Tensor, y: Tensor) -> Iterator[Row]:
    for name, options in THEIRS:
        of_flow = name.startswith("FlowMatch")
        for shift in SHIFTS:
            config = (
                dict(options, shift=shift) if of_flow else dict(FLOW, **options, flow_shift=shift)
            )
            for steps in range(nfe, 0, -1):
                calls, end = run(pipe, getattr(diffusers, name)(**config), steps, x, y)
                if calls <= nfe:
                    break
            settings = ", ".join(f"{key}={value}" for key, value in options.items())
            yield dict(
                package="diffusers",
                scheduler=name,
                settings=settings,
                shift=shift,
                nfe=calls,
                end=end,
            )


def of_skrample(pipe: Any, nfe: int, x: Tensor, y: Tensor) -> Iterator[Row]:
    """One call a step, so that they take as many steps as calls."""
    from skrample.diffusers import SkrampleWrapperScheduler
    from skrample.sampling import structured

    for name, options in OF_SKRAMPLE:
        for shift in SHIFTS:
            scheduler = SkrampleWrapperScheduler.from_diffusers_config(
                diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
                sampler=getattr(structured, name),
                sampler_props=options,
            )
            calls, end = run(pipe, scheduler, nfe, x, y)
            yield dict(
                package="skrample",
                scheduler=name,
                settings=", ".join(f"{key}={value}" for key, value in options.items()),
                shift=shift,
                nfe=calls,
                end=end,
            )


def ours(
    pipe: Any,
    model: ddim_ode.Denoiser,
    profile: ddim_ode.Profile,
    plans: Any,
    nfe: int,
    x: Tensor,
    y: Tensor,
) -> Iterator[Row]:
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    for shift in SHIFTS:
        own = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).config
        for method in ("ddim", "unipc2", "dpmpp2m"):
            scheduler = DDIMODEFlowScheduler.from_config(own, method=method)
            calls, end = run(pipe, scheduler, nfe, x, y)
            yield dict(
                package="ddim_ode", scheduler=method, settings="", shift=shift, nfe=calls, end=end
            )
    placed = DDIMODEFlowScheduler.from_config(config, method="unipc2", profile=profile)
    fitted = DDIMODEFlowScheduler.from_plans(plans[nfe], config)
    for name, scheduler in (("unipc2, profile", placed), ("calibrated", fitted)):
        calls, end = run(pipe, scheduler, nfe, x, y)
        yield dict(
            package="ddim_ode", scheduler=name, settings="", shift="none", nfe=calls, end=end
        )


def denoiser(net: Any) -> ddim_ode.Denoiser:
    """The same network as ours."""
    classes = Classes()

    def velocity(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        answer: Tensor = net(x, timestep=1000 * t, **classes(y)).sample
        return answer

    return ddim_ode.Denoiser(velocity, ddim_ode.schedules.flow(), "flow", shape=(1, 8, 8))


def report(rows: list[Row], nfe: int) -> dict[str, float]:
    """A Markdown table, best first, and how far ours are ahead of Euler and of the best of the others."""
    print(f"| {nfe} calls: scheduler | settings | shift | calls | RMS error | of Euler's |")
    print("|---|---|---:|---:|---:|---:|")
    best: dict[Any, Row] = {}
    for row in rows:
        best.setdefault((row["package"], row["scheduler"], row["settings"]), row)
    euler = best["diffusers", EULER, ""]["error"]
    for row in best.values():
        mark = "**" if row["package"] == "ddim_ode" else ""
        name = "skrample " * (row["package"] == "skrample") + row["scheduler"]
        cells = (
            row["settings"],
            row["shift"],
            row["nfe"],
            f"{row['error']:.4f}",
            f"{row['error'] / euler:.2f}",
        )
        print(f"| {mark}{name}{mark} | {' | '.join(map(str, cells))} |")
    peer = next(row for row in best.values() if row["package"] != "ddim_ode")["error"]
    ratios = {}
    for name in ("unipc2, profile", "calibrated"):
        error = best["ddim_ode", name, ""]["error"]
        ratios[name] = error / euler
        print(
            f"\n{name}: {error / euler:.2f} of Euler's error, {error / peer:.2f} of the best of the others"
        )
    print()
    return ratios


def half(pipe: Any, x: Tensor, y: Tensor, counts: tuple[int, ...]) -> list[Row]:
    """bfloat16: the RMS error to the float32 run of the same steps."""
    kinds = {"parent": diffusers.FlowMatchEulerDiscreteScheduler, "ours": DDIMODEFlowScheduler}
    rows = []
    print("| bfloat16, steps | parent, rounds each state | ours, float32 state | ratio |")
    print("|---:|---:|---:|---:|")
    for steps in counts:
        wide = run(pipe, kinds["parent"](shift=3.0), steps, x, y)[1]
        pipe.transformer.to(torch.bfloat16)
        errors = {k: rms(run(pipe, s(shift=3.0), steps, x, y)[1] - wide) for k, s in kinds.items()}
        pipe.transformer.to(torch.float32)
        rows.append(dict(package="bfloat16", nfe=steps, **errors))
        own, other = errors["ours"], errors["parent"]
        print(f"| {steps} | {other:.5f} | {own:.5f} | {own / other:.2f} |")
    print()
    return rows


def draw(rows: list[Row]) -> Figure:
    """Error against calls: each of theirs thin, in one colour for a package, ours thick."""
    figure, (axis,) = panels(1, width=7, height=4.5)
    curves: dict[Any, dict[int, float]] = {}
    for row in rows:
        if "scheduler" not in row:
            continue  # in half precision: the table has these
        curve = curves.setdefault((row["package"], row["scheduler"], row.get("settings")), {})
        curve[row["budget"]] = min(row["error"], curve.get(row["budget"], np.inf))
    for (package, name, _), curve in curves.items():
        own = package == "ddim_ode"
        theirs = dict(lw=1, color=GREY, ls="-" if package == "diffusers" else ":")
        style: dict[str, Any] = dict(lw=2, **OURS.get(name) or look(name)) if own else theirs
        known = {line.get_label() for line in axis.lines}
        text = name if own else package if package not in known else None
        axis.plot(list(curve), list(curve.values()), label=text, **style)
    axis.set_yscale("log")
    axis.set_xticks(BUDGETS, BUDGETS)
    legend_below(figure, [axis], 4)
    label(axis, "StableDiffusion3Pipeline", "network calls", "RMS error to the converged end")
    return figure


def main() -> None:
    sizes = "trains 2 minutes, 24 noises", "40 minutes, 64 noises"
    parser = arguments(__doc__, *sizes, redraw=True, cache="out/flow_pipeline")
    parser.add_argument("--note", default="", help="of the machine, kept in the record")
    args = parser.parse_args()
    record = Run("flow_pipeline", args, ["diffusers", "skrample"])
    if args.redraw:
        record.draw(draw(record.rows()))
        return
    peers = [theirs, *([of_skrample] if installed("skrample") else [])]
    torch.set_grad_enabled(False)
    seconds, width, layers, n, fitted = (2400, 96, 6, 64, 96) if args.full else (120, 64, 3, 24, 96)
    with quiet():
        net, steps = trained(seconds, width, layers, args.cache)
        pipe = diffusers.StableDiffusion3Pipeline(net, None, *[None] * 7)
    pipe.set_progress_bar_config(disable=True)
    print(f"trained {seconds} s, {steps} steps of 64\n")
    model = denoiser(net)
    labels = lambda seeds: {"y": torch.tensor([int(seed) % 10 for seed in seeds])}  # noqa: E731
    seeds = range(10_000, 10_000 + n)  # none that a fit has seen
    x, y = ddim_ode.noise((1, 8, 8), model.schedule, seeds), labels(seeds)["y"]
    truth, coarse = (
        ddim_ode.sample(model, x, "rk4", steps=steps, grid="time", cond={"y": y}).x
        for steps in (80, 40)
    )
    print(f"reference: rk4, 80 steps in t; 40 move it by {rms(truth - coarse):.1e}\n")
    profile = ddim_ode.profile(model, n=8, cond=labels(range(8)), progress=False)
    plans = ddim_ode.calibrate(model, nfe=BUDGETS, n=fitted, cond=labels, progress=False)
    rows: list[Row] = []
    ratios = {}
    for nfe in BUDGETS:
        with quiet():
            made = [row for rows_of in peers for row in rows_of(pipe, nfe, x, y)]
            made += ours(pipe, model, profile, plans, nfe, x, y)
        for row in made:
            error = rms(row.pop("end") - truth)
            rows.append(dict(budget=nfe, **row, error=error))
        ratios[nfe] = report(sorted(pick(rows, budget=nfe), key=lambda r: r["error"]), nfe)
    halves = half(pipe, x, y, (10, 30, 100))
    record.save(
        [*rows, *halves],
        draw(rows),
        n=n,
        nfe=BUDGETS,
        seconds=seconds,
        training_steps=steps,
        note=args.note,
        of_euler=ratios,
    )


if __name__ == "__main__":
    main()
