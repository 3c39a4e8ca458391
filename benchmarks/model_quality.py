"""How good the shipped model is: classes as asked, and Fréchet distance to the real test set.

    python benchmarks/model_quality.py --data DIR [--quick]

DDIM with 50 steps. The distance is taken in the shipped classifier's features; the real training
set against the real test set, at the same sample size, is printed as what a perfect model would get.
Finished batches are kept under --cache, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import ddim_ode
from ddim_ode.evaluate.frechet import frechet_distance
from ddim_ode.nets.classifier import run_in_batches
from ddim_ode.nets.data import load_images, to_unit
from ddim_ode.nets.pretrained import load_classifier

BATCH = 100


def samples(model_name: str, guidance: float, n: int, cache: Path) -> torch.Tensor:
    """n samples, seeds 0..n−1, classes in turn."""
    model = ddim_ode.load(model_name, guidance=guidance)
    cache.mkdir(parents=True, exist_ok=True)
    parts = []
    for first in tqdm(range(0, n, BATCH), desc=f"guidance {guidance:g}", unit="batch"):
        file = cache / f"{model.sha256[:12]}-{guidance:g}-{first}.npy"
        if not file.exists():
            seeds = range(first, first + BATCH)
            x = ddim_ode.noise(model.shape, model.schedule, seeds)
            labels = torch.arange(first, first + BATCH) % model.num_classes
            x = ddim_ode.sample(model, x, "ddim", steps=50, cond={"y": labels}).x
            np.save(file, x.numpy())
        parts.append(torch.from_numpy(np.load(file)))
    return torch.cat(parts)[:n].clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with the IDX files")
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--quick", action="store_true", help="500 samples: classes only")
    parser.add_argument("--cache", type=Path, default=Path("out/model_quality"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    n = 500 if args.quick else args.n

    classifier = load_classifier()
    test, train = load_images(args.data, "test"), load_images(args.data, "train")
    features, predicted = run_in_batches(classifier, to_unit(test.pixels))
    accuracy = float((predicted == test.labels).double().mean())
    print(f"classifier on the real test set: {accuracy:.2%}")
    floor_features, _ = run_in_batches(classifier, to_unit(train.pixels[:n]))
    rows = [
        dict(what=f"{n} real training images", frechet=frechet_distance(floor_features, features))
    ]
    for guidance in args.guidance:
        made, classes = run_in_batches(classifier, samples(args.model, guidance, n, args.cache))
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
    if args.json:
        args.json.write_text(json.dumps(dict(classifier_accuracy=accuracy, rows=rows), indent=1))


if __name__ == "__main__":
    main()
