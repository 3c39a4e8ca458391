"""Calls of every public name with valid and invalid arguments mixed, and a judge of what comes.

A call either returns something that keeps its promises, or raises an error of ours that names the argument.
"""

# ruff: noqa: E501 (tables)
from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import re
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import odd_values
import torch
from problems import COSINE, mixture_2d, points

import ddim_ode
from ddim_ode import Denoiser, Guidance, Known, Method, exact, grids, schedules
from ddim_ode.comparison import statistics
from ddim_ode.evaluate import metrics
from ddim_ode.nets import weights
from ddim_ode.nets.unet import UNet
from ddim_ode.solvers.controller import STATUSES
from ddim_ode.solvers.plan import Node, Op, Plan

OURS = str(Path(ddim_ode.__file__).parent)
ASSET = Path(OURS) / "assets/fashion-mnist-guidance-1-solution-nfe-6.json"


# -- what the calls start from -------------------------------------------------------------------
X = points(3, 2).float()
MODEL = mixture_2d(COSINE)
FREE = Denoiser(lambda x, t, **told: torch.tanh(x), COSINE, shape=(2,))
SNAPPED = Denoiser(lambda x, t, **told: torch.tanh(x), schedules.ddpm(), "v", snap=True, shape=(2,))
GUIDED = Denoiser(
    lambda x, t, y: x * torch.tanh(y.float())[:, None],
    COSINE,
    "x0",
    guidance=Guidance(2.0, {"y": 0}),
)
START = ddim_ode.plan("ddim", COSINE, [5.0, 1.0, 0.0])
CALL = Node(5.0, float(COSINE.time(5.0)), "eps")
LAND = Op(0.5, (0.1,), None, True, 0.0)
SOLUTION = ddim_ode.sample(MODEL, X, "heun", steps=2, final="sigma_min")
ODD = [*odd_values.ODD, *(lambda v=v: v for v in (COSINE, START, MODEL, GUIDED, SOLUTION))]
QUIET = dict(progress=False)
ROWS = np.random.default_rng(0).standard_normal((6, 2))
FEATURES = metrics.Features("f", "0" * 64, lambda x: x.flatten(1))
STATISTICS = metrics.FeatureStatistics.of(torch.from_numpy(ROWS).float(), FEATURES)
CUMPROD = np.linspace(0.99, 0.01, 20)


class Entry(NamedTuple):
    """call(**options); base: options of a call that works; valid: more of what an argument takes."""

    call: object
    base: dict
    valid: dict


def entry(call, valid="", **base):
    """``valid`` names the arguments that are no part of the base."""
    known = {name: VALID.get(name, []) for name in (*valid.split(), *base)}
    return Entry(call, base, known)


VALID = dict(
    method=["ddim", "heun", "dpmpp2m", "unipc2", "rk45", "bosh3", "ddpm", "ipndm", "midpoint", "torchdiffeq:rk4", "scipy:RK45",
            "reversible", ddim_ode.solvers.methods.get_method("ab2")],
    steps=[1, 2, 5], nfe=[1, 4, 9], grid=["time", "log_snr", "karras", [5.0, 1.0, 0.1], [5.0, 1.0, 0.0]], timesteps=[[900, 100], [3]],
    plan=[START], variant=["half", "bh1"], start=["rk", "ramp"], chart=["eps", "data", "flow", "trig", "log", "exp"], final=["zero", "sigma_min"],
    sigma_max=[5.0, 20], sigma_min=[0.1], eta=[0.0, 1.0, 0.5], noise_std=[[0.1, 0.0]], rtol=[0.1, 0.0], atol=[0.1], max_nfe=[20],
    error_norm=["sample", "batch"], dense=[True, False], seeds=[[0, 1, 2], range(3), np.arange(3)], cond=[{}, {"y": torch.arange(3)}],
    shared={}, progress=[False], callback=[lambda p: None], record=["none", "x", "x0"], on_nan=["report", "hold"],
    differentiable=[False, True, "checkpoint", "adjoint"], known=[Known(X, torch.ones(2) > 0, [0, 1, 2])], certify=[True, False],
    model=[MODEL, FREE, SNAPPED, GUIDED], x=[X, X.double(), X[:0]], prediction=["eps", "x0", "v", "score", "flow"], schedule=[COSINE, schedules.flow(), schedules.ve(10.0)],
    dtype=[torch.float32, torch.float64], device=["cpu"], shape=[(2,), [2]], n=[2, 3], seed=[0, 5], batch=[1, 2], snap=[True, False],
    time=[lambda t, sigma: t], guidance=[Guidance(2.0, {"y": 0})], learned_variance=["split"], clip=[1.0], threshold=[0.9], divergence=["exact", "hutchinson"],
    probes=[1, 3], chunk=[1, 4], cell=[0.1], prior=["normal", MODEL.log_prob],
    budget=["fast"], features=[lambda x: x], key=["k"], confidence=[0.9], keep=[1], reference=[torch.zeros(2, 2), 1e-2], interval=[(0.1, 5.0), None], rescale=[0.5],
    vector=["eps", "x0", "v"], rising=[True, False], variable=["s", "t", "sigma", "log_sigma"], state=["x", "x/alpha_bar"], strength=[0.5, 1.0], sigma=[1.0, 5.0],
    divisor=[1],
)  # fmt: skip
SOLVE = (
    "method steps nfe grid timesteps plan variant start chart final sigma_max sigma_min eta noise_std rtol atol max_nfe "
    "error_norm dense cond shared progress callback record on_nan differentiable"
)


def _flow(tau=0.5, state=None, **options):
    ode = ddim_ode.ProbabilityFlow(**options)
    return ode(tau, X if state is None else state), ode.span()


def _flow_method(name):
    ode = ddim_ode.ProbabilityFlow(MODEL, variable="t")
    return lambda **options: getattr(ode, name)(**options)


def _generate(**options):
    with tempfile.TemporaryDirectory() as folder:
        return ddim_ode.generate(**{"out": folder, **options})


def _compare(**options):
    return ddim_ode.compare(**options)


def _saved(path=None):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.json" if path is None else path
        START.save(path)
        return Plan.load(path)


FOLDER = tempfile.TemporaryDirectory()
WEIGHTS = Path(FOLDER.name) / "model.safetensors"
_NET = dict(in_channels=1, channels=[4], blocks=1, num_classes=3, attention=False)
weights.write(
    WEIGHTS,
    UNet(**_NET).state_dict(),
    dict(kind="unet", net=_NET, schedule=dict(name="cosine", params={}), prediction="eps", time_offset=0.0, shape=[1, 2, 2]),
)  # fmt: skip


def _scheduler(**options):
    from ddim_ode.interop.diffusers import DDIMODEScheduler

    return DDIMODEScheduler(**options)


def _stepped(count=3, device=None, timesteps=None, **options):
    made = _scheduler()
    made.set_timesteps(count, device, timesteps)
    return made.step(**{"model_output": X, "timestep": made.timesteps[0], "sample": X, **options})[
        0
    ]


def _of_scheduler(name):
    def call(**options):
        made = _scheduler()
        made.set_timesteps(3)
        return getattr(made, name)(**options)

    return call


def _solution(name):
    solved = ddim_ode.sample(MODEL, X, "rk45", rtol=0.1)
    return lambda **options: getattr(solved, name)(**options)


TABLE = dict(
    sample=entry(ddim_ode.sample, f"{SOLVE} seeds known", model=MODEL, x=X, steps=2),
    sample_free=entry(ddim_ode.sample, f"{SOLVE} seeds known", model=FREE, x=X, nfe=3),
    sample_adaptive=entry(ddim_ode.sample, f"{SOLVE} seeds", model=MODEL, x=X, method="rk45", rtol=0.1),
    sample_guided=entry(ddim_ode.sample, SOLVE, model=GUIDED, x=X, steps=2, cond={"y": torch.arange(3)}),
    sample_snapped=entry(ddim_ode.sample, SOLVE, model=SNAPPED, x=X, steps=2),
    encode=entry(ddim_ode.encode, f"{SOLVE} partner certify", model=FREE, x0=X, steps=2),
    encode_adaptive=entry(ddim_ode.encode, f"{SOLVE} certify", model=MODEL, x0=X, rtol=0.1, method="rk45"),
    decode=entry(ddim_ode.decode, f"{SOLVE} partner", model=FREE, z=X, steps=2),
    decode_solution=entry(ddim_ode.decode, "rtol record callback", model=MODEL, z=SOLUTION),
    transfer=entry(ddim_ode.transfer, "method steps nfe grid sigma_max shared", model=FREE, x0=X, source={}, target={}, steps=2),
    plan=entry(ddim_ode.plan, "variant start chart vector eta noise_std rising", method="ddim", schedule=COSINE, grid=[5.0, 1.0, 0.1]),
    Denoiser=entry(Denoiser, "prediction time_offset time snap guidance learned_variance dtype clip threshold shape sigma_max",
                   net=lambda x, t, **told: torch.tanh(x), schedule=COSINE),
    denoiser_call=entry(lambda **o: FREE(**o), "cond shared", x=X, sigma=1.0),
    Guidance=entry(Guidance, "interval rescale", scale=2.0, null={"y": 1}),
    Known=entry(Known, "", x0=X, mask=torch.ones(3, 2, dtype=torch.bool), seeds=[0, 1, 2]),
    Method=entry(Method, "chart stages past ruler corrector rules final eta reference", name="mine", order=1),
    Plan=entry(Plan, "start error_weights fit", method="m", ops=(Op(1.0, (), CALL, False, 0.0), LAND), vector="eps", chart="eps",
               grid=(5.0, 0.0), schedule=COSINE.fingerprint),
    Op=entry(lambda **o: Plan("m", (Op(1.0, (), CALL, False, 0.0), Op(**o)), "eps", "eps", (5.0, 0.0), "s"), "",
             scale=1.0, weights=(0.5,), node=None, commit=True, noise=0.0),
    Node=entry(lambda **o: Plan("m", (Op(1.0, (), Node(**o), False, 0.0), LAND), "eps", "eps", (5.0, 0.0), "s"), "",
               sigma=5.0, t=3.0, vector="eps"),
    plan_save=entry(_saved, "path"),
    plan_load=entry(lambda path=ASSET: Plan.load(path), "path"),
    plan_trace=entry(Plan.trace, "name prediction time_offset sigma_end", loop=lambda f, x: x + f(x, 5.0), schedule=COSINE),
    plan_describe=entry(START.describe),
    ProbabilityFlow=entry(_flow, "variable state shape dtype device cond shared", model=FREE),
    flow_call=entry(lambda **o: _flow(model=FREE, **o), "state", tau=0.5),
    flow_span=entry(_flow_method("span"), "sigma_max sigma_min"),
    flow_tau=entry(_flow_method("tau"), "", sigma=1.0),
    flow_to_state=entry(_flow_method("to_state"), "", x=X, sigma=1.0),
    flow_to_x=entry(_flow_method("to_x"), "", state=X, tau=500.0),
    accelerate=entry(ddim_ode.accelerate, "channels_last dtype batch", model=FREE),
    calibrate=entry(ddim_ode.calibrate, "shape seed budget cond shared features sigma_max batch device",
                    model=FREE, nfe=2, n=2, start=START, **QUIET),
    compare=entry(_compare, "shape seed cond shared grid sigma_max sigma_min batch cache key keep confidence device",
                  model=FREE, methods="ddim", nfe=2, n=2, reference=torch.zeros(2, 2), **QUIET),
    generate=entry(_generate, "plan shape seed cond shared batch shard device channels_last dtype cuda_graph rank world_size "
                   "about steps grid eta final sigma_max out", model=FREE, n=2, method="ddim", steps=2, key="k", **QUIET),
    diagnose=entry(ddim_ode.diagnose, "data cond shared shape steps seed device", model=FREE, n=2),
    log_likelihood=entry(ddim_ode.log_likelihood, "divergence probes seeds sigma_min sigma_max prior method rtol atol max_nfe "
                         "steps grid cond shared dtype chunk progress", model=FREE, x=X, rtol=0.5),
    dequantized=entry(ddim_ode.dequantized, "cell", x=X, seeds=[0, 1, 2]),
    noise=entry(ddim_ode.noise, "sigma device dtype", shape=(2,), schedule=COSINE, seeds=[0, 1]),
    renoise=entry(ddim_ode.renoise, "sigma", x0=X, schedule=COSINE, seeds=[0, 1, 2], strength=0.5),
    slerp=entry(ddim_ode.slerp, "", a=X, b=-X + 1, weights=0.5),
    eps_loss=entry(ddim_ode.eps_loss, "generator time_offset", net=lambda x, t, **told: torch.tanh(x), schedule=COSINE, x0=X),
    load=entry(ddim_ode.load, "device dtype guidance", name_or_path=WEIGHTS),
    methods=entry(ddim_ode.methods),
    solution_at=entry(_solution("at"), "", sigma=1.0),
    solution_to_dict=entry(_solution("to_dict")),
    gaussian=entry(exact.gaussian, "prediction snap dtype", mean=[0.0, 1.0], cov=[[1.0, 0.0], [0.0, 1.0]], schedule=COSINE),
    gaussian_mixture=entry(exact.gaussian_mixture, "prediction snap dtype clip", weights=[0.5, 0.5], means=[[0.0], [1.0]],
                           covs=[[1.0], [1.0]], schedule=COSINE),
    mixture_log_prob=entry(MODEL.log_prob, "", x=X, sigma=1.0),
    mixture_draw=entry(MODEL.draw, "seed", n=3),
    mixture_flow=entry(exact.gaussian([0.0], [[1.0]], COSINE).flow, "", x=X[:, :1], sigma_from=1.0, sigma_to=0.5),
    make_grid=entry(grids.make_grid, "final sigma_max sigma_min", name="time", schedule=COSINE, steps=3),
    check_grid=entry(grids.check_grid, "", grid=[5.0, 1.0, 0.0], schedule=COSINE),
    from_timesteps=entry(grids.from_timesteps, "final", schedule=COSINE, timesteps=[900, 100]),
    default_name=entry(grids.default_name, "final sigma_min snap", schedule=COSINE, steps=3),
    ddpm=entry(schedules.ddpm, "", T=100, beta_start=1e-4, beta_end=0.02),
    exponential=entry(schedules.exponential, "", rate=5.0, T=1000),
    cosine=entry(schedules.cosine, "", T=100, s=0.008, max_beta=0.999),
    vp=entry(schedules.vp, "", beta_min=0.1, beta_max=20.0),
    ve=entry(schedules.ve, "sigma_min", sigma_max=80.0),
    from_alphas_cumprod=entry(schedules.from_alphas_cumprod, "", array=CUMPROD),
    build=entry(schedules.build, "", name="cosine", params={}),
    **{f"schedule_{name}": entry(getattr(COSINE, name), "", **{argument: value}) for name, argument, value in (
        ("alpha_bar", "t", 500.0), ("beta_bar", "t", [1, 2]), ("sigma", "t", 500), ("time", "sigma", 1.0), ("scales", "sigma", 1.0),
        ("rates", "t", 3.0), ("time_rate", "sigma", 1.0), ("scale_rates", "sigma", 1.0), ("level", "sigma", 1.0))},
    **{name: entry(getattr(metrics, name), "", a=ROWS, b=ROWS + 1) for name in ("frechet_distance", "energy_distance")},
    sliced_wasserstein=entry(metrics.sliced_wasserstein, "projections seed", a=ROWS, b=ROWS + 1),
    kernel_distance=entry(metrics.kernel_distance, "subsets subset_size seed", a=ROWS, b=ROWS + 1),
    mmd=entry(metrics.mmd, "bandwidth", a=ROWS, b=ROWS + 1),
    median_bandwidth=entry(metrics.median_bandwidth, "seed rows", x=ROWS),
    frechet_from_moments=entry(metrics.frechet_from_moments, "", mean_a=[0.0, 1.0], cov_a=np.eye(2), mean_b=[1.0, 1.0], cov_b=np.eye(2)),
    measure=entry(metrics.measure, "metrics seed projections subsets subset_size", samples=torch.from_numpy(ROWS).float(),
                  reference=STATISTICS, features=FEATURES),
    statistics=entry(metrics.FeatureStatistics.of, "keep seed", images=torch.from_numpy(ROWS).float(), features=FEATURES),
    Features=entry(metrics.Features, "batch", name="f", sha256="0" * 64, function=lambda x: x),
    mean_interval=entry(statistics.mean_interval, "confidence seed", values=[1.0, 2.0]),
    geometric_mean=entry(statistics.geometric_mean, "", values=[1.0, 2.0]),
    DDIMODEScheduler=entry(_scheduler, "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type "
                           "rescale_betas_zero_snr clip_sample clip_sample_range thresholding variance_type method grid final eta start plans snap "
                           "time_offset schedule"),
    set_timesteps=entry(_stepped, "device timesteps eta generator return_dict", count=3),
    scheduler_step=entry(_stepped, "eta generator return_dict use_clipped_model_output", model_output=X, sample=X),
    add_noise=entry(_of_scheduler("add_noise"), "", original_samples=X, noise=X, timesteps=torch.tensor([1, 2, 3])),
    scale_model_input=entry(_of_scheduler("scale_model_input"), "timestep", sample=X),
)  # fmt: skip
if importlib.util.find_spec("diffusers") is None:  # whose classes the scheduler is one of
    for _name in (
        "DDIMODEScheduler",
        "set_timesteps",
        "scheduler_step",
        "add_noise",
        "scale_model_input",
    ):
        del TABLE[_name]


# -- a call, and what comes of it ----------------------------------------------------------------
_CALLED = ("eta", "net", "cond", "time", "features", "function", "prior", "callback", "loop", "source", "target")  # fmt: skip


class Call(NamedTuple):
    name: str
    changed: dict

    def __str__(self):
        return f"{self.name}({', '.join(f'{k}={_shown(v)}' for k, v in self.changed.items())})"


def odd(argument: str, source: random.Random) -> object:
    """Any value, but no function where those are called: its errors are its own."""
    while True:
        value = source.choice(ODD)()
        if argument not in _CALLED or not callable(value):
            return value


def draw(source: random.Random) -> Call:
    """A call whose arguments are those of one that works, but for one to three."""
    name = source.choice(list(TABLE))
    given = TABLE[name]
    count = min(source.choice([1, 1, 1, 2, 2, 3]), len(given.valid))
    changed = {}
    for argument in source.sample(list(given.valid), count):
        values = given.valid[argument]
        if values and source.random() < 0.35:
            changed[argument] = source.choice(list(values))
        else:
            changed[argument] = odd(argument, source)
    return Call(name, changed)


def outcome(call: Call) -> str | None:
    """None where all is well, else what is wrong."""
    given = TABLE[call.name]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            found = given.call(**{**given.base, **call.changed})
        except (ValueError, TypeError) as error:
            return _complaint(error, call)
        except OSError as error:
            if any(isinstance(value, (str, Path)) for value in call.changed.values()):
                return None  # the disk's own answer to a path
            return f"foreign {type(error).__name__} {_where(error)}: {_first(error)}"
        except Exception as error:
            return f"foreign {type(error).__name__} {_where(error)}: {_first(error)}"
    try:
        return broken(found)
    except Exception as error:
        return f"a {type(found).__name__} that fails: {type(error).__name__} {_where(error)}: {_first(error)}"


# What an argument may be called beside its own name, where one is checked inside another.
_ALSO = dict(
    x0=["x", "seeds"], start=["plan"], time_offset=["t="], x=["seeds", "batch", "rows", "cond"], z=["x", "latent", "steps"], model=["guidance", "cond", "x", "shape"], name=["schedule", "method", "grid"], seeds=["seed"], method=["rtol", "steps", "nfe"], net=["network"], a=["latent"], b=["latent"], null=["guidance", "null"], methods=["method", "metric"],
    nfe=["budget", "calls"], images=["data", "samples", "rows"], samples=["rows", "data", "images", "a has"], params=["parameter"], name_or_path=["no such", "model"], path=["file", "plan"],
    plans=["plan"], steps=["grid", "levels", "nfe"], timesteps=["grid", "timestep", "t="], sigma=["σ"], t=["t="], tau=["σ", "variable", "t="], state=["x", "shape"],
    shape=["x is"], sigma_max=["sigma="], seed=["seed"], covs=["cov"], cov=["covs"], mean=["covs"], means=["covs"], weights=["means"], known=["mask"], source=["cond"], target=["cond"], sample=["step", "x"],
    model_output=["network", "returned"], count=["num_inference_steps"], scale=["guidance"], ops=["op"], metrics=["metric"], array=["alphas"],
    loop=["sampler"], original_samples=["x0", "sample"], noise=["noise"], schedule=["schedule"], out=["folder", "path", "directory"], time=["time"],
)  # fmt: skip
_REMEDY = re.compile(
    r"must|give|drop|use |take|valid|allowed|needs?\b|raise|lower|call |only|no such|there is none|instead|compile|choose|at least|outside|"
    r"strictly|becomes|leave |returned|cannot|truncated|has no|knows|build|fetch|start|none of"
)


def _complaint(error: Exception, call: Call) -> str | None:
    """None for an error of ours that names an argument and says what to do."""
    message = str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if not frames[-1].filename.startswith(OURS):
        return f"foreign {type(error).__name__} {_where(error)}: {_first(error)}"
    names = [n for name in call.changed for n in (name, *_ALSO.get(name, ()))]
    named = any(re.search(rf"(?<![a-z]){re.escape(name)}", message, re.I) for name in names)
    values = [str(v) if isinstance(v, str) else _shown(v) for v in call.changed.values()]
    if not named and not any(value[:20] in message for value in values if value):
        return f"unnamed {type(error).__name__} {_where(error)}: {_first(error)}"
    if not _REMEDY.search(message):
        return f"no remedy {_where(error)}: {_first(error)}"
    if not all(ch.isprintable() or ch == "\n" for ch in message):
        return f"raw control characters {_where(error)}"
    return None


def broken(found: object) -> str | None:
    """What of a result does not keep its promises, if anything."""
    if isinstance(found, ddim_ode.Solution):
        if not set(found.status.tolist()) <= set(STATUSES):
            return f"status {found.status}"
        if len(found.sample_nfe) != len(found.x) or found.nfe < 0:
            return f"counts {found.nfe}, {found.sample_nfe}"
        good = torch.as_tensor(found.status == "success")
        if not torch.isfinite(found.x[good]).all():
            return "success, and not finite"
        found.to_dict()
        if found.plan is not None:
            return broken(found.plan)
    elif isinstance(found, Plan):
        found.describe()
        try:
            text = found.to_json()
        except ValueError as error:  # a fit need not be plain data, but then is not saved
            return None if "fit must be plain JSON data" in str(error) else str(error)
        if ddim_ode.Plan.from_json(text, "p") != found:
            return "another plan came back"
    elif isinstance(found, dict):
        return next(filter(None, map(broken, found.values())), None)
    elif isinstance(found, Denoiser) and call_works(found):
        repr(found)
    if type(found).__module__.startswith("ddim_ode"):
        repr(found)
    return None


def call_works(model: Denoiser) -> bool:
    """A denoiser that was made can be asked."""
    width = model.means.shape[1] if hasattr(model, "means") else 2
    try:
        x0, eps = model(torch.ones(1, width), min(1.0, model.schedule.sigma_max))
    except ValueError:  # a condition is missing, or time() is none
        return True
    return x0.shape == eps.shape == (1, width)


def _shown(value):
    try:
        return repr(value).replace("\n", " ")[:60]
    except Exception:
        return f"<{type(value).__name__}>"


def _first(error):
    return (str(error).strip().splitlines() or [""])[0][:150]


def _where(error):
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(OURS)]
    last = ours[-1] if ours else frames[-1]
    return f"at {Path(last.filename).name}:{last.lineno}"


def run(n: int, seed: int = 0) -> tuple[Counter, list[tuple[Call, str]]]:
    """(outcomes by kind, failures) of n random calls."""
    source, kinds, failures = random.Random(seed), Counter(), []
    for _ in range(n):
        call = draw(source)
        found = outcome(call)
        kinds["fine" if found is None else found.split()[0]] += 1
        if found is not None:
            failures.append((call, found))
    return kinds, failures
