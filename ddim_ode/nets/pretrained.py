"""The models that ship with the package, and any other that ``ddim-ode train`` made."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from .. import schedules
from .._base.checks import count, device_of, one_of, path_of, several, shown
from ..denoising.denoiser import Denoiser
from ..denoising.guidance import Guidance
from ..denoising.network import by_name, check_channels, check_cond, check_labels
from ..denoising.seeding import sizes
from ..solvers.plan import Plan
from ..solvers.profile import Profile
from . import weights
from .classifier import Classifier
from .unet import UNet

Network = TypeVar("Network", UNet, Classifier)
ASSETS = Path(__file__).parent.parent / "assets"
MODELS = ("fashion-mnist",)
_OBJECTIVES = ("solution", "data")  # of plans that ship
_PICKLED = (
    "files of this kind are pickled, which can run code, and are not read; save the tensors with "
    "safetensors, or build the network yourself and give it to ddim_ode.Denoiser(net, schedule)"
)
_OF_DIFFUSERS = "a directory or hub id of diffusers goes to ddim_ode.interop.diffusers.load"
_FOREIGN = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".pkl"), _PICKLED),
    ".json": "is no model; ddim_ode.Plan.load reads plans",
}


class PretrainedModel(Denoiser):
    """A :class:`Denoiser` that knows what it makes: ``shape`` of one sample, ``classes``, ``sha256``."""

    def __init__(
        self,
        net: UNet,
        config: dict[str, Any],
        sha256: str,
        guidance: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            net,
            schedules.build(config["schedule"]["name"], config["schedule"]["params"]),
            config["prediction"],
            time_offset=config["time_offset"],
            dtype=dtype,
        )
        self.shape = sizes(config["shape"])
        self.num_classes = net.num_classes
        self.classes: list[str] = config.get("classes") or [str(i) for i in range(net.num_classes)]
        channels = net.config["in_channels"]
        if (
            len(self.shape) != 3
            or self.shape[0] != channels
            or len(self.classes) != self.num_classes
        ):
            raise ValueError(
                f"shape={self.shape} and {len(self.classes)} classes are not those of a network of "
                f"{channels} channels and {self.num_classes} classes"
            )
        self.null_label = net.num_classes or None
        self.sha256 = sha256
        self.shipped: str | None = None  # its name, where the package brings it
        self._profile: tuple[Profile | None] | None = None  # what was set, if anything was
        self.guide(guidance)

    @property
    def profile(self) -> Profile | None:
        """What its solves step on by default: the profile that ships for its ODE, or what is set here."""
        if self._profile is not None:
            return self._profile[0]
        if self.shipped is None or self.dtype is not None or self.snap or self._otherwise_altered:
            return None  # it was measured on the model as it ships
        return _shipped_profile(f"{self.shipped}-guidance-{self._scale:g}-profile.json")

    @profile.setter
    def profile(self, profile: Profile | None) -> None:
        self._profile = (profile,)

    def guide(
        self,
        scale: float | torch.Tensor,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        """Set classifier-free guidance (see :class:`ddim_ode.Guidance`).

        Raises:
            ValueError: The model is unconditional, and the scale is not 1.
        """
        guidance = Guidance(scale, {"y": self.num_classes}, interval, rescale)
        if not guidance.is_off and not self.num_classes:
            raise ValueError(
                f"guidance={shown(scale)}: this model is unconditional; use guidance=1"
            )
        self.guidance = None if guidance.is_off else guidance

    def network(
        self,
        like: torch.Tensor,
        cond: Mapping[str, torch.Tensor] | None = None,
        shared: Mapping[str, Any] | None = None,
    ) -> Any:
        """As of a :class:`Denoiser`, of x of its channels and, as ``"y"``, labels that it knows."""
        check_channels(like, self.shape[0])
        conditions = by_name(check_cond(cond, len(like)), shared)
        for name in conditions:
            one_of("condition", name, ["y"] if self.num_classes else [])
        if "y" in conditions:  # the last label is the null one
            check_labels(conditions["y"], self.num_classes + 1, "y" in (shared or {}))
        return super().network(like, cond, shared)

    def calibrated(self, nfe: int, objective: str = "solution") -> Plan:
        """The plan of ``nfe`` network calls that ships with this model, fitted to it at its guidance.

        Args:
            nfe: Network calls.
            objective: ``"solution"`` for ends near the model's own solution, ``"data"`` for better pictures
                (see :func:`ddim_ode.calibrate`); the model card has both beside the best textbook sampler.

        Raises:
            ValueError: There is none; the message names those there are. :func:`ddim_ode.calibrate` makes
                more.

        >>> import ddim_ode
        >>> plan = ddim_ode.load("fashion-mnist").calibrated(6)
        >>> plan.nfe, plan.fit["held_out"]["after"] < plan.fit["held_out"]["before"]
        (6, True)
        """
        nfe = count("nfe", nfe)
        files = self._plan_files(one_of("objective", objective, _OBJECTIVES))
        if nfe not in files:
            raise self._no_plan(f"nfe={nfe!r}", files, objective)
        return Plan.load(files[nfe])

    def calibrated_within(self, budgets: Sequence[int]) -> dict[int, Plan]:
        """{budget: plan}, as ``compare(model, {"calibrated": plans})`` takes it: the most calls that fit.

        Of the plans that ship, each once, at the smallest budget it serves.

        Raises:
            ValueError: None fits.

        >>> import ddim_ode
        >>> plans = ddim_ode.load("fashion-mnist").calibrated_within([5, 7, 20, 30])
        >>> {budget: plan.nfe for budget, plan in plans.items()}
        {5: 5, 7: 6, 20: 10}
        """
        files, served = self._plan_files(), dict[int, int]()
        budgets = [count("budgets", budget) for budget in several(budgets)]
        for budget in sorted(budgets):
            most = max((nfe for nfe in files if nfe <= budget), default=None)
            if most is not None:
                served.setdefault(most, budget)
        if not served:
            raise self._no_plan(f"nfe <= {max(budgets, default=0)}", files)
        return {budget: Plan.load(files[nfe]) for nfe, budget in served.items()}

    def _plan_files(self, objective: str = "solution") -> dict[int, Path]:
        """By their calls. ValueError for a model whose ODE is not the plain or the plainly guided one."""
        if others := self._otherwise_altered:
            raise ValueError(
                f"the plans that ship with this model are for its plain ODE, and it has {others}; "
                "ddim_ode.calibrate(model, nfe=...) makes one for that"
            )
        stem = f"{self.shipped}-guidance-{self._scale:g}-{objective}-nfe-"
        return {int(file.stem.removeprefix(stem)): file for file in ASSETS.glob(f"{stem}*.json")}

    @property
    def _otherwise_altered(self) -> dict[str, Any]:
        """What makes its ODE neither the plain one nor one guided by the same scale for all samples."""
        altered = self.alterations
        if isinstance(altered.get("guidance"), float):
            del altered["guidance"]
        return altered

    @property
    def _scale(self) -> float:
        return float(self.alterations.get("guidance", 1.0))

    def _no_plan(
        self, wanted: str, budgets: Iterable[int], objective: str = "solution"
    ) -> ValueError:
        others = f"there are: {', '.join(map(str, sorted(budgets)))}"
        if not budgets:
            files = ASSETS.glob(f"{self.shipped}-guidance-*-{objective}-nfe-*.json")
            scales = sorted({file.stem.split("-guidance-")[1].split("-")[0] for file in files})
            others = f"there are for guidance {', '.join(scales)}" if scales else "there are none"
        return ValueError(
            f"no plan of {wanted} at guidance {self._scale:g}, fitted to the {objective}, ships with this "
            f"model ({others}); ddim_ode.calibrate(model, nfe=...) makes one"
        )


def load(
    name_or_path: str | Path,
    *,
    guidance: float = 1.0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> PretrainedModel:
    """A trained ε_θ as a denoiser, ready to sample.

    Labels go in as ``cond={"y": labels (B,)}``; without them (guidance 1 only) the network is
    unconditional.

    Args:
        name_or_path: A shipped name, or a ``model.safetensors`` or its directory.
        guidance: The scale of classifier-free guidance; 1 is the conditional network alone.
        device: Of the network.
        dtype: Half precision for the network's weights and inputs; the state stays float32.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated or not safetensors; the message names it.

    >>> import ddim_ode
    >>> model = ddim_ode.load("fashion-mnist")
    >>> model.shape, model.classes[9]
    ((1, 28, 28), 'ankle boot')
    """
    path = _locate(name_or_path, ".safetensors", f"; {_OF_DIFFUSERS}")
    tensors, config = weights.read(path)
    _check_kind(config, "unet", path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with _configured(path):
        blocks = count("blocks", config["net"]["blocks"]) * len(config["net"]["channels"])
        if blocks > len(tensors):
            raise ValueError(f"{blocks} blocks, of the {len(tensors)} tensors that are there")
    net = _filled(UNet, config, tensors, path)
    with _configured(path):
        model = PretrainedModel(net, config, sha256, dtype=dtype)
    model.guide(guidance)
    net.to(device=device_of(device), dtype=dtype)
    if path.parent == ASSETS:
        model.shipped = path.stem
    return model


@functools.cache
def _shipped_profile(name: str) -> Profile | None:
    """One for all that ask: what it works out for a number of calls, it keeps."""
    return Profile.load(ASSETS / name) if (ASSETS / name).exists() else None


def load_classifier(
    name_or_path: str | Path = "fashion-mnist", device: str | torch.device = "cpu"
) -> Classifier:
    """The classifier whose features the distribution metrics use."""
    path = _locate(name_or_path, "-classifier.safetensors")
    tensors, config = weights.read(path)
    _check_kind(config, "classifier", path)
    return _filled(Classifier, config, tensors, path).to(device_of(device))


def _locate(name_or_path: str | Path, suffix: str, elsewhere: str = "") -> Path:
    """The weights file; elsewhere: what else may have been meant by a path where there is none."""
    path = path_of("name_or_path", name_or_path)
    if path.is_dir():
        if not (path / "model.safetensors").exists():
            raise FileNotFoundError(f"{path}: holds no model.safetensors{elsewhere}")
        return path / "model.safetensors"
    if reason := _FOREIGN.get(path.suffix.lower()):
        raise ValueError(f"{path}: {reason}")
    if path.parent != Path() and path.suffix != ".safetensors" and not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory{elsewhere}")
    if path.suffix or path.exists():
        return path
    return ASSETS / f"{one_of('model', str(name_or_path), MODELS)}{suffix}"


@contextlib.contextmanager
def _configured(path: Path) -> Iterator[None]:
    """Errors inside become a ValueError that blames the configuration of the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: its configuration is not one of ddim_ode's ({error})") from error


def _filled(
    cls: type[Network], config: dict[str, Any], tensors: dict[str, torch.Tensor], path: Path
) -> Network:
    """The network that a configuration describes, with the tensors of its file.

    It takes no memory before these are known to be the network's own: a configuration may ask for more
    than any computer has.
    """
    with _configured(path), torch.device("meta"):
        net = cls(**config["net"])
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != {name: tensor.shape for name, tensor in net.state_dict().items()}:
        raise ValueError(f"{path}: its tensors do not fit its own configuration")
    net.to_empty(device="cpu").load_state_dict(tensors)
    return net.eval().requires_grad_(False)


def _check_kind(config: Any, kind: str, path: Path) -> None:
    own = config.get("kind") if isinstance(config, dict) else None
    if own != kind:
        raise ValueError(f"{path}: holds a {own!r}, not a {kind!r}")
