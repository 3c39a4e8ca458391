"""The best of ours against the best of diffusers and of k-diffusion, at the same number of calls.

    python benchmarks/peers.py [--problem digits|fashion-mnist] [--nfe 5 8 10 15 20] [--csv PATH]

Every sampler runs as its own package runs it by default, on that package's own levels, from the same
noises; ours are every registered fixed-step method. RMS error of the end point against a converged
solution of the ODE, which ends by the jump from σ(1) to x̂₀.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import Problem, load_problem, rms, write_csv
from torch import Tensor

import ddim_ode

Run = Callable[[int], Tensor | None]  # the end state within so many calls; None: no such number


class Counted:
    """The problem's network as its packages call it: ε at (x, t), t the network's own time 0..T−1."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.calls = problem, 0

    def __call__(self, x: Tensor, t: Any) -> Tensor:
        self.calls += 1
        level = float(self.problem.model.schedule.sigma(float(torch.as_tensor(t).flatten()[0]) + 1))
        return self.problem.model(x, level, self.problem.cond)[1]


def ours(problem: Problem) -> Iterator[tuple[str, Run]]:
    for row in ddim_ode.methods():
        method = str(row["name"])
        if row["order"] is None or method in ("rk45", "bosh3"):  # stochastic, adaptive
            continue

        def run(nfe: int, method: str = method) -> Tensor | None:
            try:
                return ddim_ode.sample(
                    problem.model, problem.x, method, nfe=nfe, cond=problem.cond
                ).x
            except ValueError:  # fewer calls than one step takes
                return None

        yield method, run


def diffusers_samplers(problem: Problem) -> Iterator[tuple[str, Run]]:
    import diffusers

    betas = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    unclipped = dict(clip_sample=False)
    choices: list[tuple[str, dict[str, Any]]] = [
        ("DDIMScheduler", unclipped),
        ("EulerDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("KDPM2DiscreteScheduler", {}),
        ("LMSDiscreteScheduler", {}),
        ("PNDMScheduler", {}),
        ("PNDMScheduler", dict(skip_prk_steps=True)),
        ("DEISMultistepScheduler", {}),
        ("DPMSolverSinglestepScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", dict(solver_order=3)),
        ("DPMSolverMultistepScheduler", dict(use_karras_sigmas=True)),
        ("UniPCMultistepScheduler", {}),
        ("UniPCMultistepScheduler", dict(solver_order=3)),
    ]
    for name, options in choices:
        scheduler_class = getattr(diffusers, name)

        def run(nfe: int, cls: Any = scheduler_class, options: Any = options) -> Tensor | None:
            for steps in range(nfe, 0, -1):  # some call more than once a step
                scheduler = cls(**betas, **options)
                try:
                    scheduler.set_timesteps(steps)
                    if len(scheduler.timesteps) > nfe:
                        continue
                    net, x = Counted(problem), problem.x * scheduler.init_noise_sigma
                    for t in scheduler.timesteps:
                        out = net(scheduler.scale_model_input(x, t).to(problem.x.dtype), t)
                        x = scheduler.step(out.to(x.dtype), t, x).prev_sample
                except (ValueError, IndexError):  # some cannot take so few steps
                    return None
                return x.to(problem.x.dtype) if net.calls <= nfe else None
            return None

        yield " ".join([name.removesuffix("Scheduler"), *map(str, options)]), run


def k_diffusion_samplers(problem: Problem) -> Iterator[tuple[str, Run]]:
    sampling = load_k_diffusion_sampling()
    schedule = problem.model.schedule
    first, last = schedule.sigma_max, schedule.sigma_min

    def denoise(y: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        denoise.calls += 1  # type: ignore[attr-defined]
        level = float(sigma.flatten()[0])
        alpha, _ = schedule.scales(min(level, first))
        return problem.model(y * float(alpha), level, problem.cond)[0]

    def levels(kind: str, n: int) -> Tensor:
        if kind == "karras":
            return sampling.get_sigmas_karras(n, last, first)
        t = torch.linspace(schedule.T, 1, n).double()  # DiscreteSchedule.get_sigmas
        return torch.tensor([*schedule.sigma(t.numpy()), 0.0])

    names = ("euler", "heun", "dpm_2", "lms", "dpmpp_2s_ancestral", "dpmpp_2m", "dpmpp_3m_sde")
    for name in names:
        sampler = getattr(sampling, f"sample_{name}")
        quiet = dict(eta=0.0) if name.endswith(("ancestral", "sde")) else {}
        if name.endswith("sde"):
            quiet["noise_sampler"] = lambda *args: 0.0
        for kind in ("karras", "linear"):

            def run(nfe: int, sampler=sampler, quiet=quiet, kind=kind) -> Tensor | None:
                for steps in range(nfe, 0, -1):
                    if steps == 1:
                        return None
                    sigmas = levels(kind, steps).to(problem.x.dtype)
                    sigmas[0] = min(float(sigmas[0]), first)
                    denoise.calls = 0  # type: ignore[attr-defined]
                    x = sampler(denoise, problem.x * sigmas.max(), sigmas, disable=True, **quiet)
                    if denoise.calls <= nfe:  # type: ignore[attr-defined]
                        return x
                return None

            yield f"{name} {kind}", run


def load_k_diffusion_sampling() -> types.ModuleType:
    """Its sampling module alone: the package's own __init__ imports a training stack."""
    import importlib

    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        raise ImportError("k_diffusion")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or [])
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    return importlib.import_module("k_diffusion.sampling")


PACKAGES = {"ours": ours, "diffusers": diffusers_samplers, "k-diffusion": k_diffusion_samplers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", default="digits")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8, 10, 15, 20])
    parser.add_argument("--n", type=int, help="samples")
    parser.add_argument("--top", type=int, default=3, help="how many of each package to print")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()

    problem = load_problem(args.problem, args.n or (256 if args.problem == "digits" else 20))
    rows: list[dict[str, object]] = []
    for package, samplers in PACKAGES.items():
        try:
            version = (
                ddim_ode.__version__ if package == "ours" else importlib.metadata.version(package)
            )
        except ImportError:
            print(f"{package} is not installed: left out")
            continue
        for name, run in samplers(problem):
            for nfe in args.nfe:
                with torch.no_grad():
                    end = run(nfe)
                if end is not None:
                    error = rms(end - problem.reference)
                    rows.append(
                        dict(
                            package=package,
                            version=version,
                            sampler=name,
                            nfe=nfe,
                            error=f"{error:.5g}",
                        )
                    )
    for nfe in args.nfe:
        print(f"\n{nfe} calls")
        for package in PACKAGES:
            found = [row for row in rows if (row["package"], row["nfe"]) == (package, nfe)]
            found.sort(key=lambda row: float(str(row["error"])))
            for row in found[: args.top]:
                print(f"  {package:12} {row['sampler']:40} {float(str(row['error'])):.5f}")
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
