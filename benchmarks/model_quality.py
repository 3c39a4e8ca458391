"""How good the shipped model is: classes as asked, and Fréchet distance to the real test set.

    python benchmarks/model_quality.py --quick --data DIR       # 20 samples
    python benchmarks/model_quality.py --full --data DIR        # 5,000

DDIM with 50 steps, grid ``time``, classes in turn. The distance is taken in the shipped classifier's
features; real training images against the real test set are what a perfect model of that size would get.
Finished batches are kept under --cache, so an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from common import INK, Row, Run, arguments, end_states, label, look, panels
from matplotlib.figure import Figure

import ddim_ode
from ddim_ode.evaluate.frechet import frechet_distance
from ddim_ode.nets.classifier import run_in_batches
from ddim_ode.nets.data import load_images, to_unit
from ddim_ode.nets.pretrained import load_classifier

BATCH = 100


def main() -> None:
    parser = arguments(__doc__, "20 samples", "5,000 samples")
    parser.add_argument("--data", type=Path, required=True, help="folder with the IDX files")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--cache", type=Path, default=Path("out/model_quality"))
    args = parser.parse_args()
    run = Run("model_quality", args)
    n = 5000 if args.full else 20

    classifier = load_classifier()
    test, train = load_images(args.data, "test"), load_images(args.data, "train")
    features, predicted = run_in_batches(classifier, to_unit(test.pixels))
    accuracy = float((predicted == test.labels).double().mean())
    print(f"classifier on the real test set: {accuracy:.2%}")
    floor_features, _ = run_in_batches(classifier, to_unit(train.pixels[:n]))
    rows: list[Row] = [
        dict(what=f"{n} real training images", frechet=frechet_distance(floor_features, features))
    ]
    for guidance in args.guidance:
        model = ddim_ode.load("fashion-mnist", guidance=guidance)
        images = end_states(model, "ddim", range(n), args.cache, BATCH, steps=50, grid="time")
        made, classes = run_in_batches(classifier, images.clamp(-1, 1))
        asked = torch.arange(n) % 10
        agreement = (classes == asked).double()
        rows.append(
            dict(
                what=f"guidance {guidance:g}, DDIM 50 steps, {n} samples",
                as_asked_first_500=float(agreement[:500].mean()),
                as_asked=float(agreement.mean()),
                frechet=frechet_distance(made, features),
            )
        )
    for row in rows:
        print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else str(v) for k, v in row.items()))
    run.save(rows, draw(rows), n=n, classifier_accuracy=accuracy)


def draw(rows: Sequence[Row]) -> Figure:
    """Fréchet distances as bars, and beside them how many samples are what was asked for."""
    figure, (axis,) = panels(1, width=8.5, height=0.5 * len(rows) + 1.2)
    for i, row in enumerate(reversed(rows)):
        asked = f", {row['as_asked']:.1%} as asked" if "as_asked" in row else ""
        axis.barh(i, row["frechet"], height=0.6, color=look("ddim_ode")["color"])
        text = f" {row['frechet']:.2f}{asked}"
        axis.text(row["frechet"], i, text, va="center", fontsize=9.5, color=INK)
    axis.set_yticks(range(len(rows)), [str(row["what"]) for row in reversed(rows)])
    axis.set_xlim(right=1.5 * max(row["frechet"] for row in rows))
    axis.grid(False, axis="y")
    label(axis, "", "Fréchet distance to the real test images, in the classifier's features", "")
    return figure


if __name__ == "__main__":
    main()
