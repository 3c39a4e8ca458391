"""Round trips on the trained model that ships: test images encoded and decoded again.

    python benchmarks/round_trip.py --quick --data DIR      # DIR: Fashion-MNIST's IDX files
    python benchmarks/round_trip.py --full --data DIR
    python benchmarks/round_trip.py --full --redraw

Both ends are at the schedule's σ_min. ``round_trip`` (left) is the RMS of decode(encode(x)) − x over images
and pixels, ``latent`` (right) that of encode(x) to the latents of ``CONVERGED``. ``reversible`` comes in
float64, network included, and in float32. diffusers' inversion asks the network at the time of a step's
upper level with the state of the lower one, and its latent is not at σ(T): there is nothing to compare that
with. Without --data, samples of the model take the place of the images; the record says which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import Row, Run, arguments, installed, noises, pick, rms, told
from drawing import DOTS, curve, label, legend_below, log_scales, panels
from matplotlib.figure import Figure
from torch import Tensor

import ddim_ode
from ddim_ode.nets.data import load_images, to_unit
from ddim_ode.nets.pretrained import PretrainedModel

GRID = "log_snr"
REVERSIBLE = {
    "reversible, float32": dict(color="#117733", marker="^", linestyle="-"),
    "reversible, float64": dict(color="#117733", marker="v", linestyle=DOTS),
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
        x, cond = noises(model, range(n))
        x = ddim_ode.sample(model, x, "ipndm", steps=20, cond=cond).x
        return Images(x, cond, "samples of the model")
    test = load_images(data, "test")
    assert test.labels is not None, f"{data} has no labels"
    return Images(to_unit(test.pixels[:n]), {"y": test.labels[:n]}, "Fashion-MNIST test images")


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
    """Its DDIMInverseScheduler up and its DDIMScheduler down at their "leading" timesteps (our t − 1), from
    the first trained level (``set_alpha_to_one=False``) and that of its last timestep."""
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    alpha = model.schedule.alpha_bar(range(1001))
    options: dict[str, Any] = dict(clip_sample=False, set_alpha_to_one=False)
    options |= dict(num_train_timesteps=1000, trained_betas=1 - (alpha[1:] / alpha[:-1]) ** 2)
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
    how = dict(steps=size.converged, grid=GRID, cond=given.cond, progress=True)
    converged = ddim_ode.encode(model, given.x, CONVERGED, **how).x
    peer = installed("diffusers")
    rows: list[Row] = []
    for nfe in size.calls:
        here = [ours(model, given, method, nfe, converged) for method in (*METHODS, "reversible")]
        here.append(ours(exact, given._replace(x=given.x.double()), "reversible", nfe, converged))
        here += [diffusers_trip(model, given, nfe)] if peer else []
        rows += told(here)
    return rows, given.source


def draw(rows: list[Row], calls: tuple[int, ...]) -> Figure:
    figure, (left, right) = panels(2)
    for method, precision in dict.fromkeys((row["method"], row["precision"]) for row in rows):
        shown = pick(rows, method=method, precision=precision)
        name = f"{method}, {precision}" if method == "reversible" else method
        x, style = [row["nfe"] for row in shown], REVERSIBLE.get(name, {})
        curve(left, name, x, [row["round_trip"] for row in shown], **style)
        if method != "diffusers" and precision != "float64":
            curve(right, name, x, [row["latent"] for row in shown], **style)
    each = "network calls each way"
    label(left, "There and back", each, "RMS of decode(encode(x)) − x")
    label(right, "The latent itself", each, "RMS distance to the converged latents")
    log_scales(left, calls, fine=False)
    log_scales(right, calls)
    legend_below(figure, (left, right), 4)
    return figure


def main() -> None:
    sizes = ("2 images, 10 calls", "8 images, 10, 30 and 100 calls")
    args = arguments(__doc__, *sizes, redraw=True, data=True).parse_args()
    run = Run("round_trip", args, ["diffusers"])
    size = FULL if args.full else QUICK
    if args.redraw:
        run.draw(draw(run.rows(), size.calls))
        return
    rows, source = measure(size, args.data)
    settings = dict(grid=GRID, images=size.images, source=source)
    settings["converged"] = f"{CONVERGED}, {size.converged} steps"
    run.save(rows, draw(rows, size.calls), **settings)


if __name__ == "__main__":
    main()
