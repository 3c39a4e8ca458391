"""``--model``, or in its place ``--pipeline``: a diffusers pipeline, its prompts and further arguments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import find_device, limits
from .models import HELP, Loaded, load_model
from .parser import Parser

if TYPE_CHECKING:
    from ..denoising.denoiser import Denoiser

_DEFAULT = "fashion-mnist"


def add_model(parser: Parser, *names: str, **how: Any) -> None:
    """Add the model by those names of an argument, and --pipeline, --prompts and --call."""
    add = parser.add_argument
    add(*names, help=f"{HELP} (default: {_DEFAULT})", **how)
    parser.set_defaults(named=names[-1])
    add(
        "--pipeline",
        type=Path,
        metavar="DIR",
        help="the directory of a diffusers pipeline in place of a model: its own guidance, prompts, inputs",
    )
    add("--prompts", type=Path, metavar="FILE", help="for --pipeline: a prompt a line")
    add(
        "--call",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for --pipeline, again for each: an argument of its call, as JSON or text: guidance_scale=5",
    )


def open_model(args: argparse.Namespace) -> Loaded:
    """What --model or --pipeline names; ValueError or OSError that say what is wrong with it."""
    device = find_device(args.device)
    if args.pipeline is None:
        said = dict(prompts=args.prompts, call=" ".join(args.call) or None)
        _refuse("goes with a --pipeline; give its directory, or drop it", said)
        args.model = _DEFAULT if args.model is None else args.model
        return load_model(args.model, args.guidance, device, limits(args))
    classes = getattr(args, "classes", "all")
    said = dict(
        guidance=args.guidance,
        classes=None if classes == "all" else classes,
    )
    reason = "a --pipeline is in place of a model, and guides as --prompts and --call say; drop it"
    if args.model is not None:
        raise ValueError(f"{args.named} {args.model}: {reason}")
    _refuse(reason, {**said, **limits(args)})
    call = dict(_argument(text) for text in args.call)
    if len(call) < len(args.call):
        raise ValueError(f"--call gives an argument twice: {' '.join(args.call)}; drop one")
    if args.prompts is not None:
        if "prompt" in call:
            raise ValueError("--call prompt=: --prompts has them; drop one")
        call["prompt"] = _lines(args.prompts)
    return _opened(args.pipeline, call, device)


def name_of(args: argparse.Namespace) -> str | None:
    """A name for a pipeline's network, another one whenever its files, its prompts or its call change; None
    for a model, which is known by its weights."""
    if args.pipeline is None:
        return None
    from .._base.digests import digest

    parts = [path for path in sorted(args.pipeline.rglob("*")) if path.is_file()]
    seen = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in parts]
    prompts = None if args.prompts is None else _lines(args.prompts)
    return digest(seen, prompts, list(args.call))


def _refuse(reason: str, options: Mapping[str, Any]) -> None:
    """ValueError naming the first of the options that is given at all."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name} {value}: {reason}")


def how_to_run(plan: str, model: Denoiser) -> str:
    """The lines that run a plan's file in the pipeline."""
    kind = "DDIMODEFlowScheduler" if model.schedule.family == "flow" else "DDIMODEScheduler"
    return (
        f"in the pipeline: from ddim_ode import Plan, Profile\n"
        f"from ddim_ode.interop.diffusers import {kind}\n"
        f"pipe.scheduler = {kind}.{plan}"
    )


def _opened(path: Path, call: dict[str, Any], device: Any) -> Loaded:
    from ..interop.diffusers import from_pipeline

    pipe = _pipeline(path).to(device)
    pipe.set_progress_bar_config(disable=True)
    try:
        model = from_pipeline(pipe, **call)
    except (ValueError, OSError):
        raise
    except Exception as error:  # the pipeline's own, of any kind, of its arguments
        raise ValueError(
            f"--pipeline {path}: {type(pipe).__name__} fails ({type(error).__name__}: {error}); --prompts "
            "and --call give the arguments of its call"
        ) from error
    named = {key: value for key, value in call.items() if key != "prompt"}
    facts = dict(
        model=f"{path}, {type(pipe).__name__} with {type(pipe.scheduler).__name__}",
        prediction=model.prediction,
        schedule=repr(model.schedule),
        call=", ".join(f"{key}={json.dumps(value)}" for key, value in named.items())
        or "by default",
        batch=f"{model.batch}, prompts times images",
    )
    assert model.shape is not None
    return Loaded(model, tuple(model.shape), path.resolve().name, facts)


def _pipeline(path: Path) -> Any:
    from ..interop.reading import check_installed

    check_installed()
    if not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"--pipeline {path}: holds no model_index.json; give the directory of a whole pipeline, as "
            "save_pretrained writes it (--model takes that of a network)"
        )
    import diffusers
    from diffusers.utils import logging

    how: dict[str, Any] = dict(local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
    logging.disable_progress_bar()
    try:
        return diffusers.DiffusionPipeline.from_pretrained(str(path), **how)
    except Exception as error:  # of many kinds, by which part is wrong
        raise ValueError(f"--pipeline {path}: cannot be loaded ({error})") from error
    finally:
        logging.enable_progress_bar()


def _argument(text: str) -> tuple[str, Any]:
    """The name and value of a KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ValueError(f"--call {text}: write KEY=VALUE, such as guidance_scale=5")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def _lines(path: Path) -> list[str]:
    """The prompts of a file, one a line; empty lines are none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path}: is no text in UTF-8 ({error})") from None
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts {path}: holds no prompt; write one a line")
    return prompts
