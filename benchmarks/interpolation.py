"""Does the way between two latents stay on the manifold? Great circles against straight lines.

    python benchmarks/interpolation.py --quick      # 4 pairs of noises
    python benchmarks/interpolation.py --full       # 100

Pairs of noises, each pair under one class, guidance off; both ways between them are cut in eight, and all
points solved with dpmpp2m, 12 calls. The figure has the shipped classifier's probability for the class that
was asked for, and, as it likes dull pictures, their contrast, the standard deviation of the pixels. Bands
are 95 % bootstrap intervals over the pairs; gain is the great circle's probability less the straight
line's, of the same pairs. The pictures of three pairs are in interpolation_pictures.png.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import Row, Run, arguments, in_batches, labels, pick, tell
from drawing import DASHES, GREY, INK, curve, label, legend_below, note, panels
from matplotlib.figure import Figure
from torch import Tensor

import ddim_ode
from ddim_ode.comparison.statistics import mean_interval
from ddim_ode.nets.pretrained import load_classifier
from ddim_ode.plots.pictures import sample_grid, save_figure

WEIGHTS = np.linspace(0, 1, 9)
METHOD, CALLS, BATCH = "dpmpp2m", 12, 90
LOOKS = {
    "great circle": dict(color="#332288", marker="o", linestyle="-"),
    "straight line": dict(color="#CC6677", marker="s", linestyle=DASHES),
}


def main() -> None:
    args = arguments(__doc__, "4 pairs", "100 pairs").parse_args()
    run = Run("interpolation", args)
    n = 100 if args.full else 4
    model, classifier = ddim_ode.load("fashion-mnist"), load_classifier()
    a, b = (
        ddim_ode.noise(model.shape, model.schedule, range(first, first + n)) for first in (0, n)
    )
    y = labels(model, range(n))["y"]
    weights = torch.tensor(WEIGHTS, dtype=a.dtype).reshape(-1, 1, 1, 1, 1)
    ways = {
        "great circle": ddim_ode.slerp(a, b, WEIGHTS),
        "straight line": torch.lerp(a, b, weights),
    }
    rows: list[Row] = []
    pictures: dict[str, Tensor] = {}
    asked: dict[str, np.ndarray] = {}
    for way, latents in ways.items():
        pictures[way] = images = solved(model, latents, y)
        chances = judged(classifier, images)
        asked[way] = chances[:, torch.arange(n), y].numpy()
        best = chances.max(dim=-1).values.numpy()
        contrast = images.flatten(2).std(dim=-1).double().numpy()
        size = latents.flatten(2).square().mean(-1).sqrt().numpy()
        for k, weight in enumerate(WEIGHTS.tolist()):
            row = dict(way=way, weight=weight, pairs=n, latent_rms=float(size[k].mean()))
            row |= summary("asked", asked[way][k])
            row |= summary("best", best[k])
            rows.append(row | summary("contrast", contrast[k]))
    for k, gain in enumerate(asked["great circle"] - asked["straight line"]):
        rows[k] |= summary("gain", gain)
    for row in rows:
        tell({key: value for key, value in row.items() if not key.endswith(("_low", "_high"))})
    run.out.mkdir(parents=True, exist_ok=True)
    shown = [i for i in (9, 7, 2) if i < n]
    strips = [(f"{model.classes[y[i]]}\n{way}", pictures[way][:, i]) for i in shown for way in ways]
    headings = [f"{weight:g}" for weight in WEIGHTS]
    save_figure(run.path("_pictures.png"), sample_grid(strips, headings))
    run.save(rows, drawn(rows, n), method=METHOD, calls=CALLS, pairs=n)


def solved(model: ddim_ode.Denoiser, latents: Tensor, y: Tensor) -> Tensor:
    """The pictures (K, n, *) of latents (K, n, *), those of a pair under its class."""

    def solve(x: Tensor, cond: Any) -> Tensor:
        return ddim_ode.sample(model, x, METHOD, nfe=CALLS, cond=cond).x

    cond = {"y": y.repeat(len(latents))}
    return in_batches(solve, latents.flatten(0, 1), cond, BATCH).reshape(latents.shape)


@torch.no_grad()
def judged(classifier: torch.nn.Module, images: Tensor) -> Tensor:
    """The classifier's probabilities (K, n, classes), float64."""
    parts = images.flatten(0, 1).clamp(-1, 1).split(500)
    chances = torch.cat([classifier(x).double().softmax(dim=1) for x in parts])
    return chances.reshape(*images.shape[:2], -1)


def summary(name: str, values: np.ndarray) -> dict[str, float | None]:
    low, high = mean_interval(values)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def drawn(rows: list[Row], n: int) -> Figure:
    figure, axes = panels(3, width=12.0, height=4.2)
    for way, style in LOOKS.items():
        mine = pick(rows, way=way)
        x = [row["weight"] for row in mine]
        for axis, name in zip(axes, ("asked", "contrast", "latent_rms")):
            y, band = [row[name] for row in mine], None
            if f"{name}_low" in mine[0]:
                band = tuple([row[f"{name}_{end}"] for row in mine] for end in ("low", "high"))
            curve(axis, way, x, y, band, **style)
    chance, contrast, size = axes
    size.axhline(1, color=GREY, lw=0.8, zorder=1)
    note(size, "what the network was trained on", (0.5, 1), (0, -15), ha="center", color=INK)
    size.set_ylim(0.68, 1.04)
    chance.set_ylim(top=1.005)
    across = "weight of the second noise"
    asked = "probability of the class asked for"
    label(chance, f"Classifier's confidence, {n} pairs", across, asked)
    label(contrast, "Contrast of the pictures", across, "standard deviation over the pixels")
    label(size, "Size of the latents", across, "RMS per pixel")
    legend_below(figure, axes, 2)
    return figure


if __name__ == "__main__":
    main()
