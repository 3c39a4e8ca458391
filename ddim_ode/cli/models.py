"""What ``--model`` names: a shipped model, one of ``ddim-ode train``, diffusers', or an exact mixture."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._base.checks import one_of

if TYPE_CHECKING:
    from ..denoising.denoiser import Denoiser
    from ..interop.diffusers import DiffusersModel
    from ..nets.pretrained import PretrainedModel
    from ..schedules.schedule import Schedule

    Trained = PretrainedModel | DiffusersModel

MIXTURE = "mixture"
HELP_TRAINED = "a shipped name, a model.safetensors, or a directory of diffusers"
HELP = (
    "a shipped name, a model.safetensors, a directory of diffusers, an exact mixture (.json or .npz with "
    f"weights, means, covs and schedule), or {MIXTURE}, a small one to try"
)
# What json, zipfile, zlib and numpy's header parser raise for bytes that are not theirs.
_UNREADABLE = (ValueError, EOFError, RuntimeError, SyntaxError, zlib.error, zipfile.BadZipFile)
_NEEDS = ("weights", "means", "covs")
# Three components of different width and direction: enough to tell solvers apart, and seen at a glance.
_DEMO: dict[str, Any] = dict(
    weights=[0.4, 0.35, 0.25],
    means=[[-1.2, 0.4], [1.0, 0.9], [0.3, -1.1]],
    covs=[[[0.15, 0.08], [0.08, 0.1]], [[0.05, -0.03], [-0.03, 0.12]], [[0.3, 0.0], [0.0, 0.02]]],
    schedule="ddpm",
)


class Loaded(NamedTuple):
    """A denoiser ready to sample, the shape of one sample, and what a report says of it."""

    denoiser: Denoiser
    shape: tuple[int, ...]
    title: str
    facts: dict[str, str]

    def starting_at(self, sigma_max: float | None) -> Loaded:
        """The same, sampled from another level by default; None: as it is."""
        return self._replace(denoiser=self.denoiser.starting_at(sigma_max))


def load_model(
    name: str,
    guidance: float | None = None,
    device: Any = "cpu",
    limits: Mapping[str, Any] | None = None,
) -> Loaded:
    """The model of that name or file; ValueError or FileNotFoundError that say what is wrong with it.

    limits: clip= and threshold= of :func:`ddim_ode.interop.diffusers.load`, for any kind of model.
    """
    loaded = _load(name, guidance, device, limits or {})
    if not (limit := loaded.denoiser.limit):
        return loaded
    facts = {**loaded.facts, "limit on x̂₀": str(limit)}
    return loaded._replace(title=f"{loaded.title}, {limit}", facts=facts)


def _check_is_there(name: str, known: Sequence[str], kinds: str) -> None:
    """ValueError or FileNotFoundError for a name that is neither ``known`` nor a model on disk."""
    path = Path(name)
    if name in known or path.is_file():
        return
    if path.is_dir():
        from ..interop.diffusers import is_model_folder

        if not is_model_folder(name) and not (path / "model.safetensors").exists():
            raise FileNotFoundError(
                f"--model {name}: the folder holds no model.safetensors, as ddim-ode train writes it, and "
                "no model_index.json or config.json of diffusers; give a folder that does"
            )
        return
    if path.parent != Path() or path.suffix or name.startswith("."):
        raise FileNotFoundError(f"--model {name}: no such file or directory; give {kinds}")
    one_of("model", name, known)


def _load(name: str, guidance: float | None, device: Any, limits: Mapping[str, Any]) -> Loaded:
    from ..interop.config import limit_of
    from ..nets.pretrained import MODELS

    _check_is_there(name, (*MODELS, MIXTURE), HELP)
    if name != MIXTURE and Path(name).is_dir():
        from ..interop.diffusers import is_model_folder

        if is_model_folder(name):
            return _of_diffusers(name, guidance, device, limits)
    if name == MIXTURE:
        loaded = _mixture(_DEMO, MIXTURE, guidance, "built in")
    elif Path(name).suffix in (".json", ".npz"):
        loaded = _mixture(_read(Path(name)), Path(name).stem, guidance, name)
    else:
        loaded = _trained(name, guidance, device)
    loaded.denoiser.limit = limit_of({}, **limits)
    return loaded


def load_trained(
    name: str, device: Any = "cpu", limits: Mapping[str, Any] | None = None
) -> Trained:
    """A trained network, for commands that draw what it makes and write its sha256 down.

    limits: as for :func:`load_model`.
    """
    from ..interop.config import limit_of
    from ..interop.diffusers import is_model_folder
    from ..nets.pretrained import MODELS, load

    if name == MIXTURE or Path(name).suffix in (".json", ".npz"):
        raise ValueError(
            f"--model {name}: this command draws what a trained network makes; ddim-ode generate, compare, "
            "calibrate and doctor take a mixture as well"
        )
    _check_is_there(name, MODELS, HELP_TRAINED)
    if not (Path(name).is_dir() and is_model_folder(name)):
        trained = load(name, device=device)
        trained.limit = limit_of({}, **(limits or {}))
        return trained
    model = _diffusers_model(name, None, device, limits or {})
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        raise ValueError(
            f"--model {name}: makes latents of {model.channels} channels, and this command draws pictures "
            f"of 1 or 3; ddim-ode generate --model {name} keeps latents"
        )
    return model


def _diffusers_model(
    name: str, guidance: float | None, device: Any, limits: Mapping[str, Any]
) -> DiffusersModel:
    """Of a directory; ValueError where it needs what a command line cannot say."""
    from ..interop.diffusers import load

    model = load(name, guidance=guidance, device=device, **limits)
    if model.shape is None:
        raise ValueError(
            f"{name}: the network's configuration does not say the shape of a sample; load it in Python, "
            "and give shape="
        )
    other = model.needs - ({"class_labels"} if model.num_classes else set())
    if other:
        raise ValueError(
            f"{name}: the network needs {', '.join(sorted(other))}, which a command line cannot say; in "
            "Python ddim_ode.interop.diffusers.load and cond= do"
        )
    return model


def _of_diffusers(
    name: str, guidance: float | None, device: Any, limits: Mapping[str, Any]
) -> Loaded:
    model = _diffusers_model(name, guidance, device, limits)
    facts = dict(
        model=f"{name}, {type(model.scheduler).__name__}",
        prediction=model.prediction,
        schedule=repr(model.schedule),
    )
    return Loaded(model, model.shape, Path(name).resolve().name, facts)


def _trained(name: str, guidance: float | None, device: Any) -> Loaded:
    from ..nets.pretrained import load

    scale = 1.0 if guidance is None else guidance
    model = load(name, guidance=scale, device=device)
    guided = f"{scale:g}" + (", off: the conditional network alone" if scale == 1 else "")
    facts = dict(model=f"{name}, sha256 {model.sha256[:12]}…", prediction=model.prediction)
    if model.num_classes:
        facts["guidance"] = guided
    path = Path(name)
    title = path.parent.name if path.stem == "model" and path.parent.name else path.stem
    return Loaded(model, model.shape, title, facts)


def _mixture(data: dict[str, Any], title: str, guidance: float | None, source: str) -> Loaded:
    from ..exact import gaussian_mixture

    if guidance not in (None, 1.0):
        raise ValueError(f"--guidance {guidance:g}: an exact mixture has no classes; drop it")
    try:
        schedule = _schedule(data)
        model = gaussian_mixture(data["weights"], data["means"], data["covs"], schedule)
    except (KeyError, TypeError, ValueError) as error:
        missing = [key for key in (*_NEEDS, "schedule") if key not in data]
        if missing == ["schedule"] and "alphas_cumprod" in data:
            missing = []
        reason = f"it has no {missing[0]!r}" if missing else str(error)
        raise ValueError(
            f"{source}: not a mixture ({reason}); it needs weights (K,), means (K, D), covs (K, D, D) or "
            'variances (K, D), and schedule: a name, {"name": ..., "params": {...}}, or alphas_cumprod'
        ) from None
    k, d = model.means.shape
    facts = dict(
        model=f"Gaussian mixture, {k} components in {d} dimensions, closed-form ε ({source})"
    )
    return Loaded(model, (d,), title, facts)


def _schedule(data: dict[str, Any]) -> Schedule:
    from .. import schedules

    if "alphas_cumprod" in data:
        return schedules.from_alphas_cumprod(data["alphas_cumprod"])
    schedule = data["schedule"]
    if isinstance(schedule, str):
        return schedules.build(schedule, {})
    return schedules.build(schedule["name"], schedule.get("params", {}))


def _read(path: Path) -> dict[str, Any]:
    """The fields of a mixture's file; nothing is unpickled."""
    import numpy as np

    try:
        if path.suffix == ".json":
            data = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows begins it so
        else:
            with np.load(path, allow_pickle=False) as file:
                data = {key: file[key] for key in file.files}
            if "schedule" in data:
                data["schedule"] = str(data["schedule"])
    except _UNREADABLE as error:
        raise ValueError(f"{path}: truncated, or not {path.suffix[1:]} ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, not weights, means and covs")
    return data
