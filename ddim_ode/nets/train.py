"""Train an ε_θ: ε-loss, Adam, EMA, label dropout, resumable.

A run lives in one directory: ``checkpoint.safetensors`` (everything needed to go on),
``model.safetensors`` (the EMA weights in half precision, what :func:`ddim_ode.load` reads)
and ``loss.csv``. Step k draws its batch, labels to drop, times and noise from a generator
seeded with (seed, k), so a killed run that resumes does what the unbroken run would have done.
"""

from __future__ import annotations

import csv
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._base import files
from .._base.bars import progress_bar
from ..denoising.seeding import torch_seed
from ..denoising.training import eps_loss
from ..schedules.schedule import Schedule
from . import weights
from .config import TrainConfig
from .data import Images, to_unit
from .pretrained import load
from .unet import UNet


def train(
    data: Images,
    schedule: Schedule,
    out: str | Path,
    config: TrainConfig,
    *,
    init: str | Path | None = None,
    device: str = "cpu",
    checkpoint_every: int = 200,
    progress: bool = True,
) -> Path:
    """Train to ``config.steps``, going on from what ``out`` holds.

    Ctrl-C leaves the last whole step in ``checkpoint.safetensors``; its KeyboardInterrupt says which.

    Args:
        data: Pixels (N, C, H, W) uint8, and labels or None. Labels make the network class-conditional, with
            the last embedding row as the null label of guidance.
        schedule: Of the model.
        out: The folder of the run.
        config: What the run is.
        init: A model to start from, as :func:`ddim_ode.load` takes it; None starts from random weights.
        device: Where it trains.
        checkpoint_every: Steps.
        progress: A bar.

    Returns:
        The path of the model file.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    pixels, labels, classes = data
    if not len(pixels):
        raise ValueError("the data set holds no images")
    multiple = 2 ** (len(config.channels) - 1)
    if any(side % multiple for side in pixels.shape[2:]):
        raise ValueError(
            f"images are {pixels.shape[2]}×{pixels.shape[3]}, and {len(config.channels)} levels of "
            f"channels need multiples of {multiple}: resize them, or give fewer levels"
        )
    if labels is not None and len(labels) != len(pixels):
        raise ValueError(f"{len(labels)} labels for {len(pixels)} images; they must be as many")
    num_classes = int(labels.max()) + 1 if labels is not None else 0
    if classes is not None and len(classes) != num_classes:
        raise ValueError(f"{len(classes)} class names for {num_classes} classes: {classes}")
    torch.manual_seed(torch_seed(config.seed, 3))
    net = UNet(
        pixels.shape[1], config.channels, config.blocks, num_classes, dropout=config.dropout
    ).to(device)
    start = None if init is None else load(init)
    if start is not None:
        _adopt(net, start.net, init)
    ema = {k: v.detach().clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr, betas=(0.9, 0.99))

    checkpoint = out / "checkpoint.safetensors"
    identity = dict(
        train=asdict(config),
        schedule=f"{schedule!r} {schedule.fingerprint}",
        images=[*pixels.shape],
        num_classes=num_classes,
        init=start and start.sha256,
    )
    step = _resume(checkpoint, net, ema, optimizer, identity) if checkpoint.exists() else 0
    saved = step
    rows = _read_losses(out / "loss.csv", before=step)

    def save() -> None:
        nonlocal saved
        state = {f"net.{k}": v for k, v in net.state_dict().items()}
        state |= {f"ema.{k}": v for k, v in ema.items()}
        for i, parameter in enumerate(net.parameters()):
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"adam.{i}.{key}"] = optimizer.state[parameter][key]
        weights.write(checkpoint, state, dict(step=step, **identity))
        half = {k: v.half() for k, v in ema.items()}
        weights.write(out / "model.safetensors", half, model_config(net, data, schedule))
        files.write_csv(out / "loss.csv", rows)
        saved = step

    net.train()
    bar = progress_bar(progress, total=config.steps, initial=step, unit="step", leave=True)
    window: list[Tensor] = []
    whole = True  # weights, optimiser and EMA all belong to ``step``
    seen = 0
    clock = time.perf_counter()
    try:
        while step < config.steps:
            generator = torch.Generator().manual_seed(torch_seed(config.seed, 1, step))
            torch.manual_seed(torch_seed(config.seed, 2, step))  # dropout inside the network
            index = _batch(config, step, len(pixels))
            cond: dict[str, Any] = {}
            if labels is not None:
                drop = torch.rand(len(index), generator=generator) < config.label_dropout
                cond["y"] = torch.where(drop, num_classes, labels[index]).to(device)
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(step)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.bf16):
                x0 = to_unit(pixels[index]).to(device)
                loss = eps_loss(net, schedule, x0, generator=generator, **cond)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            whole = False
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step += 1
            decay = min(config.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for key, value in net.state_dict().items():
                    ema[key].lerp_(value, 1 - decay)
            whole = True
            window.append(loss.detach())
            seen += len(index)
            bar.update()
            if step % 50 == 0 or step == config.steps:
                now, mean = time.perf_counter(), torch.stack(window).mean().item()
                if not math.isfinite(mean):
                    raise FloatingPointError(
                        f"the loss is {mean} at step {step}; lower --lr (the last checkpoint is kept)"
                    )
                speed = f"{seen / (now - clock):.0f}"
                rows.append(dict(step=step, loss=f"{mean:.5f}", images_per_second=speed))
                bar.set_postfix(loss=f"{mean:.4f}")
                window, seen, clock = [], 0, now
            if step % checkpoint_every == 0 or step == config.steps:
                save()
    except KeyboardInterrupt:
        if whole and step > saved:  # else in the middle of an update: the last checkpoint stands
            save()
        kept = f"{checkpoint}, of step {saved}, is kept, and the same command goes on from there"
        raise KeyboardInterrupt(
            f"stopped at step {step}; {kept if saved else 'nothing is kept'}"
        ) from None
    finally:
        bar.close()
    return out / "model.safetensors"


def model_config(net: UNet, data: Images, schedule: Schedule) -> dict[str, Any]:
    """What :func:`ddim_ode.load` needs to rebuild the denoiser."""
    return dict(
        kind="unet",
        net=net.config,
        shape=list(data.pixels.shape[1:]),
        classes=data.classes,
        schedule=dict(name=schedule.name, params=schedule.params),
        prediction="eps",
        time_offset=0.0,
    )


def _adopt(net: UNet, start: Any, init: object) -> None:
    """The weights of ``start``, a network of the same form."""
    differ = [
        f"{key}={start.config[key]!r} (now {value!r})"
        for key, value in net.config.items()
        if key != "dropout" and start.config[key] != value
    ]
    if differ:
        raise ValueError(
            f"init={init}: that network has {', '.join(differ)}; give the same, or start from nothing"
        )
    net.load_state_dict(start.state_dict())


def _batch(config: TrainConfig, step: int, n: int) -> Tensor:
    """Indices of batch ``step``: an epoch is a permutation seeded with (seed, epoch)."""
    per_epoch = max(1, n // config.batch)
    epoch, i = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(torch_seed(config.seed, 0, epoch))
    return torch.randperm(n, generator=generator)[i * config.batch : (i + 1) * config.batch]


def _resume(
    path: Path,
    net: UNet,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
) -> int:
    tensors, meta = weights.read(path)
    if "step" not in meta or "train" not in meta:
        raise ValueError(f"{path}: not a checkpoint of ddim-ode train; give another --out")
    then = {**meta, **meta["train"]}
    now: dict[str, Any] = {**identity, **identity["train"]}
    same = {"steps", "train"}  # a run may go on for longer
    differ = [k for k in now if k not in same and _plain(then.get(k)) != _plain(now[k])]
    if differ:
        raise ValueError(
            f"{path} was made with "
            + ", ".join(f"{k}={then.get(k)!r} (now {now[k]!r})" for k in differ)
            + "; give the same values to resume, or another --out"
        )
    net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
    for key in ema:
        ema[key].copy_(tensors[f"ema.{key}"])
    for i, parameter in enumerate(net.parameters()):
        optimizer.state[parameter] = {
            "step": torch.tensor(float(meta["step"])),
            **{k: tensors[f"adam.{i}.{k}"].to(parameter) for k in ("exp_avg", "exp_avg_sq")},
        }
    return int(meta["step"])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _read_losses(path: Path, before: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= before]
