"""How good the shipped model is: classes as asked, and Fréchet distance to the real test set.

    python benchmarks/model_quality.py --quick --data DIR       # 20 samples
    python benchmarks/model_quality.py --full --data DIR        # 5,000

DDIM with 50 steps, grid ``time``, classes in turn. The distance is taken in the shipped classifier's
features; real training images against the real test set are what a perfect model of that size would get.
The figure has the distances as bars, with how many samples are what was asked for. Finished batches are
kept under --cache, so an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import Row, Run, arguments, end_states, told
from drawing import bars, label, look, panels
from matplotlib.figure import Figure

import ddim_ode
from ddim_ode.evaluate.frechet import frechet_distance
from ddim_ode.nets.classifier import run_in_batches
from ddim_ode.nets.data import load_images, to_unit
from ddim_ode.nets.pretrained import load_classifier

BATCH = 100


def main() -> None:
    parser = arguments(__doc__, "20 samples", "5,000 samples", data=True, cache="out/model_quality")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    args = parser.parse_args()
    if args.data is None:
        parser.error("a distance to real images needs --data")
    run = Run("model_quality", args)
    n = 5000 if args.full else 20

    classifier = load_classifier()
    test, train = load_images(args.data, "test"), load_images(args.data, "train")
    features, predicted = run_in_batches(classifier, to_unit(test.pixels))
    accuracy = float((predicted == test.labels).double().mean())
    print(f"classifier on the real test set: {accuracy:.2%}")
    floor, _ = run_in_batches(classifier, to_unit(train.pixels[:n]))
    rows: list[Row] = [
        dict(what=f"{n} real training images", frechet=frechet_distance(floor, features))
    ]
    for guidance in args.guidance:
        model = ddim_ode.load("fashion-mnist", guidance=guidance)
        images = end_states(model, "ddim", range(n), args.cache, BATCH, steps=50, grid="time")
        made, classes = run_in_batches(classifier, images.clamp(-1, 1))
        agreement = (classes == torch.arange(n) % 10).double()
        row = dict(what=f"guidance {guidance:g}, DDIM 50 steps, {n} samples")
        row |= dict(as_asked_first_500=float(agreement[:500].mean()))
        row |= dict(as_asked=float(agreement.mean()), frechet=frechet_distance(made, features))
        rows.append(row)
    run.save(told(rows), draw(rows), n=n, classifier_accuracy=accuracy)


def draw(rows: Sequence[Row]) -> Figure:
    figure, (axis,) = panels(1, width=8.5, height=0.5 * len(rows) + 1.2)
    shown = list(reversed(rows))
    asked = [f", {row['as_asked']:.1%} as asked" if "as_asked" in row else "" for row in shown]
    texts = [f"{row['frechet']:.2f}{text}" for row, text in zip(shown, asked)]
    names, values = [row["what"] for row in shown], [row["frechet"] for row in shown]
    bars(axis, names, values, texts, look("ddim_ode")["color"], height=0.6)
    axis.set_xlim(right=1.5 * max(values))
    label(axis, "", "Fréchet distance to the real test images, in the classifier's features")
    return figure


if __name__ == "__main__":
    main()
