"""Round trips on the trained model that ships: test images encoded and decoded again.

    python benchmarks/round_trip.py --quick --data DIR      # DIR: Fashion-MNIST's IDX files
    python benchmarks/round_trip.py --full --data DIR
    python benchmarks/round_trip.py --full --redraw

Both ends are at the schedule's σ_min and the methods are fixed, with 10, 30 and 100 network calls each way.
A row is a method and a number of calls: ``round_trip``, the RMS of decode(encode(x)) − x over images and
pixels, and ``latent``, that of encode(x) to the latents of ``CONVERGED``. ``reversible`` comes in float64,
network included, and in float32.

diffusers: its DDIMInverseScheduler up and its DDIMScheduler down at their "leading" timesteps, between the
first trained level (``set_alpha_to_one=False``) and that of its last timestep. It asks the network at the
time of a step's upper level, with the state of the lower one, and its latent is not at σ(T): there is
nothing to compare that with. Without --data, samples of the model take the place of the images; the record
says which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import (
    Row,
    Run,
    arguments,
    installed,
    label,
    labels,
    legend_below,
    log_scales,
    look,
    panels,
    read_csv,
    rms,
)
from torch import Tensor

import ddim_ode
from ddim_ode.nets.data import load_images, to_unit
from ddim_ode.nets.pretrained import PretrainedModel

GRID = "log_snr"
REVERSIBLE = {
    "reversible, float32": dict(color="#117733", marker="^", linestyle="-"),
    "reversible, float64": dict(color="#117733", marker="v", linestyle=(0, (1.5, 1.2))),
}
METHODS = ("ddim", "heun", "rk4", "dpmpp2m", "unipc2")
CONVERGED = "heun"


class Size(NamedTuple):
    images: int
    calls: tuple[int, ...]
    converged: int


FULL = Size(8, (10, 30, 100), 200)
QUICK = Size(2, (10,), 15)


class Images(NamedTuple):
    """x (n, 1, 28, 28) float32 in [-1, 1], and their labels."""

    x: Tensor
    cond: dict[str, Tensor]
    source: str


def images(model: PretrainedModel, n: int, data: Path | None) -> Images:
    if data is None:
        cond = labels(model, range(n))
        noises = ddim_ode.noise(model.shape, model.schedule, range(n))
        x = ddim_ode.sample(model, noises, "ipndm", steps=20, cond=cond).x
        return Images(x, cond, "samples of the model")
    found = load_images(data, "test")
    assert found.labels is not None, f"{data} has no labels"
    return Images(to_unit(found.pixels[:n]), {"y": found.labels[:n]}, "Fashion-MNIST test images")


def ours(model: PretrainedModel, given: Images, method: str, nfe: int, converged: Tensor) -> Row:
    latent = ddim_ode.encode(model, given.x, method, nfe=nfe, grid=GRID, cond=given.cond)
    back = ddim_ode.decode(model, latent, cond=given.cond)
    return dict(
        method=method,
        precision=str(given.x.dtype).removeprefix("torch."),
        budget=nfe,
        nfe=latent.nfe,
        nfe_back=back.nfe,
        round_trip=rms(back.x - given.x),
        latent=rms(latent.x - converged),
    )


def diffusers_trip(model: PretrainedModel, given: Images, nfe: int) -> Row:
    """Inversion as diffusers has it; its timestep t is our t + 1."""
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    betas = (
        1 - (model.schedule.alpha_bar(range(1001))[1:] / model.schedule.alpha_bar(range(1000))) ** 2
    )
    options: dict[str, Any] = dict(
        num_train_timesteps=1000, trained_betas=betas, clip_sample=False, set_alpha_to_one=False
    )
    x, calls = given.x, []
    for scheduler in (DDIMInverseScheduler(**options), DDIMScheduler(**options)):
        scheduler.set_timesteps(nfe)
        calls.append(len(scheduler.timesteps))
        for t in scheduler.timesteps.tolist():
            eps = model(x, float(model.schedule.sigma(t + 1)), given.cond)[1]
            x = scheduler.step(eps, t, x).prev_sample
    row = dict(method="diffusers", precision="float32", budget=nfe, nfe=calls[0], nfe_back=calls[1])
    return dict(row, round_trip=rms(x - given.x))


def measure(size: Size, data: Path | None) -> tuple[list[Row], str]:
    model = ddim_ode.load("fashion-mnist")
    exact = ddim_ode.load("fashion-mnist", dtype=torch.float64)
    given = images(model, size.images, data)
    encoded = ddim_ode.encode(
        model,
        given.x,
        CONVERGED,
        steps=size.converged,
        grid=GRID,
        cond=given.cond,
        progress=True,
    )
    peer = installed("diffusers")
    rows = []
    for nfe in size.calls:
        for method in (*METHODS, "reversible"):
            rows.append(ours(model, given, method, nfe, encoded.x))
        rows.append(ours(exact, given._replace(x=given.x.double()), "reversible", nfe, encoded.x))
        if peer:
            rows.append(diffusers_trip(model, given, nfe))
        for row in rows[-len(METHODS) - 3 :]:
            print(
                *(f"{value:.1e}" if isinstance(value, float) else value for value in row.values())
            )
    return rows, given.source


def draw(rows: list[Row], calls: tuple[int, ...]) -> Any:
    figure, axes = panels(2)
    titles = (
        ("round_trip", "There and back", "RMS of decode(encode(x)) − x"),
        ("latent", "The latent itself", "RMS distance to the converged latents"),
    )
    for axis, (key, title, unit) in zip(axes, titles):
        for name in dict.fromkeys((row["method"], row["precision"]) for row in rows):
            shown = [row for row in rows if (row["method"], row["precision"]) == name]
            if key == "latent" and (name[0] == "diffusers" or name[1] == "float64"):
                continue
            text = ", ".join(name) if name[0] == "reversible" else name[0]
            x, y = [row["nfe"] for row in shown], [row[key] for row in shown]
            axis.plot(x, y, **(REVERSIBLE.get(text) or look(text)), ms=5, lw=1.6, label=text)
        label(axis, title, "network calls each way", unit)
        log_scales(axis, calls, fine=key == "latent")
    legend_below(figure, axes, 4)
    return figure


def main() -> None:
    parser = arguments(__doc__, "2 images, 10 calls", "8 images, 10, 30 and 100 calls")
    parser.add_argument("--data", type=Path, help="a folder with Fashion-MNIST's IDX files")
    parser.add_argument(
        "--redraw", action="store_true", help="only the picture, from the CSV there is"
    )
    args = parser.parse_args()
    run = Run("round_trip", args, ["diffusers"])
    size = FULL if args.full else QUICK
    if args.redraw:
        run.draw(draw(read_csv(run.path(".csv")), size.calls))
        return
    rows, source = measure(size, args.data)
    run.save(
        rows,
        draw(rows, size.calls),
        grid=GRID,
        images=size.images,
        source=source,
        converged=f"{CONVERGED}, {size.converged} steps",
    )


if __name__ == "__main__":
    main()
