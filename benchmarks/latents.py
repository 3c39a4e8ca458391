"""Latents of real images against the noise that sampling starts from: norm, mean and covariance.

    python benchmarks/latents.py --quick --data DIR      # DIR: Fashion-MNIST's IDX files
    python benchmarks/latents.py --full --data DIR

Test images are encoded on the shipped model, their class given and guidance off. If the model's density at
σ_min were that of the images, their latents would be N(0, I), of which as many draws are beside them. An
image is put at σ_min as it is, which is how inversion is used, or with the noise of that level, ᾱ x₀ + β̄ ε,
which is where the model was trained. A covariance estimated from n samples is not flat for N(0, I): its
eigenvalues are to be compared with the law of Marčenko and Pastur. Finished batches are kept under --cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from common import Run, arguments, told
from drawing import INK, label, legend_below, note, panels, plain
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import ddim_ode
from ddim_ode.nets.data import load_images, to_unit
from ddim_ode.solve.cache import Store
from ddim_ode.solve.near import of_rows

METHOD, GRID = "dpmpp2m", "log_snr"
BATCH = 20
LOOKS = {
    "images as they are": dict(color="#CC6677", ls="--"),
    "with the noise of σ_min": dict(color="#332288", ls="-"),
    "N(0, I)": dict(color="#6b6b6b", ls=":"),
}
Array = npt.NDArray[np.float64]


class Size(NamedTuple):
    images: int
    calls: int


FULL = Size(1000, 12)
QUICK = Size(16, 4)


def marchenko_pastur(d: int, n: int) -> Array:
    """The d eigenvalues, falling, that n samples of N(0, I) in d dimensions are expected to show (1967):
    quantiles of √((b − λ)(λ − a))/(2π c λ) on [a, b] = (1 ∓ √c)², c = d/n, with d − n of them at zero."""
    c = d / n
    low, high = (1 - np.sqrt(c)) ** 2, (1 + np.sqrt(c)) ** 2
    # λ by angle: the density vanishes like a root at the ends
    angle = np.linspace(0.0, np.pi, 20_001)
    value = 0.5 * (low + high) - 0.5 * (high - low) * np.cos(angle)
    half = 0.5 * (high - low) * np.sin(angle)
    with np.errstate(invalid="ignore"):
        rate = np.nan_to_num(half * half / value)
    share = np.concatenate([[0.0], np.cumsum(0.5 * (rate[1:] + rate[:-1]))])
    positive = min(d, n)
    ranks = (np.arange(positive) + 0.5) / positive
    quantiles = np.interp(ranks, share / share[-1], value)
    return np.concatenate([quantiles[::-1], np.zeros(d - positive)])


def encoded(size: Size, data: Path, cache: Path) -> dict[str, Tensor]:
    """Latents (n, D) float64 of both kinds, and draws of N(0, I)."""
    model = ddim_ode.load("fashion-mnist")
    found = load_images(data, "test")
    assert found.labels is not None, f"{data} has no labels"
    x0, y = to_unit(found.pixels[: size.images]), found.labels[: size.images]
    alpha, beta = map(float, model.schedule.scales(model.schedule.sigma_min))
    noise = ddim_ode.noise(model.shape, model.schedule, range(len(x0)))
    kinds = {"images as they are": x0, "with the noise of σ_min": alpha * x0 + beta * noise}
    out, store = {}, Store(cache)
    for name, x in kinds.items():
        parts = []
        for i in tqdm(range(0, len(x), BATCH), desc=name):
            batch, cond = x[i : i + BATCH], {"y": y[i : i + BATCH]}
            how = [model.sha256, METHOD, GRID, size.calls, name, i]
            origin = ("latents", how, of_rows(dict(batch=batch, **cond)))
            if (kept := store.get(*origin)) is None:
                latent = ddim_ode.encode(model, batch, METHOD, nfe=size.calls, grid=GRID, cond=cond)
                store.put(*origin, *(kept := ({"x": latent.x}, {})))
            parts.append(kept[0]["x"])
        out[name] = torch.cat(parts).flatten(1).double()
    seeds = range(len(x0), 2 * len(x0))
    out["N(0, I)"] = ddim_ode.noise(model.shape, model.schedule, seeds).flatten(1).double()
    return out


def spectrum(z: Array) -> Array:
    """Eigenvalues of the sample covariance about the sample mean, falling."""
    return np.linalg.svd(z - z.mean(axis=0), compute_uv=False) ** 2 / (len(z) - 1)


def row(name: str, z: Array) -> dict[str, Any]:
    norms, mean, values = np.linalg.norm(z, axis=1), z.mean(axis=0), spectrum(z)
    expected = marchenko_pastur(z.shape[1], len(z) - 1)
    return dict(
        latents=name,
        n=len(z),
        norm_mean=norms.mean(),
        norm_std=norms.std(ddof=1),
        mean_rms=np.sqrt(np.mean(mean**2)),
        mean_rms_expected=1 / np.sqrt(len(z)),
        variance=z.var(axis=0, ddof=1).mean(),
        eigenvalue_largest=values[0],
        eigenvalue_median=np.median(values[: z.shape[1]]),
        expected_largest=expected[0],
        expected_median=np.median(expected),
    )


def draw(latents: dict[str, Array]) -> Figure:
    figure, axes = panels(3, width=12.0, height=4.4)
    norm, mean, covariance = axes
    n, d = next(iter(latents.values())).shape
    for name, z in latents.items():
        style = dict(lw=1.8, label=name, **LOOKS[name])
        norm.plot(*density(np.linalg.norm(z, axis=1)), **style)
        mean.plot(*density(np.sqrt(n) * z.mean(axis=0)), **style)
        values = spectrum(z)[: min(n - 1, d)]  # the others are 0
        covariance.plot(np.arange(1, len(values) + 1), values, **style)
    norm.axvline(np.sqrt(d - 0.5), color=INK, lw=0.9, zorder=1)
    note(norm, "√D", (np.sqrt(d - 0.5), 0.97), xycoords=("data", "axes fraction"))
    expected = marchenko_pastur(d, n - 1)
    expected = expected[expected > 0]
    style = dict(label="Marčenko–Pastur, N(0, I)", color=INK, lw=0.9)
    covariance.plot(np.arange(1, len(expected) + 1), expected, **style)
    label(norm, "Norm of a latent", "‖z‖", "density")
    label(mean, "Mean of a pixel's latents", "√n · mean, 1 is its standard error", "density")
    label(covariance, f"Covariance, {n} latents", "rank", "eigenvalue")
    covariance.set(xscale="log", yscale="log")
    for axis in (covariance.xaxis, covariance.yaxis):
        axis.set_major_formatter(plain)
    covariance.set_ylim(bottom=0.3 * float(expected.min()))
    legend_below(figure, axes, 4)
    return figure


def density(values: Array) -> tuple[Array, Array]:
    """A kernel density estimate, by Scott's rule, where there is any."""
    from scipy.stats import gaussian_kde

    margin = 0.15 * np.ptp(values)
    at = np.linspace(values.min() - margin, values.max() + margin, 400)
    return at, gaussian_kde(values)(at)


def main() -> None:
    sizes = ("16 images, 4 calls", "1,000 images, 12 calls")
    parser = arguments(__doc__, *sizes, data=True, cache="out/cache")
    args = parser.parse_args()
    if args.data is None:
        parser.error("latents of real images need --data")
    run = Run("latents", args)
    size = FULL if args.full else QUICK
    latents = {name: z.numpy() for name, z in encoded(size, args.data, args.cache).items()}
    rows = told(row(name, z) for name, z in latents.items())
    run.save(rows, draw(latents), method=METHOD, grid=GRID, calls=size.calls, images=size.images)


if __name__ == "__main__":
    main()
