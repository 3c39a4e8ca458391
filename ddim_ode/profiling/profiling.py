"""``ddim_ode.profile``: one look at a model, from which its grids follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from .._base.bars import progress_bar
from .._base.checks import count, flag, seed_of
from .._base.version import __version__
from .._base.warn import warn
from ..denoising.denoiser import Denoiser
from ..denoising.inputs import Cond, check_model, conditions, device_of, sample_shape
from ..denoising.problem import Problem
from ..denoising.seeding import GENERATOR, noise, seeds_text
from ..solve.levels import budgets
from ..solve.look import COARSE, FINE, look
from ..solve.model_key import model_key
from ..solve.plan_checks import plain_alterations
from ..solvers.profile import Profile
from ..solvers.screens import Screen
from . import screening
from .ends import Ends, calls_of_check

_UNSURE = 0.5  # error of the ends, in units of the best plan's, that leaves the ranking open


def profile(
    model: Denoiser,
    nfe: int | Iterable[int] | None = None,
    *,
    n: int = 8,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    cond: Cond | None = None,
    shared: Mapping[str, Any] | None = None,
    sigma_max: float | None = None,
    batch: int = 64,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> Profile:
    """The model's own grids: where to start, where to step and where to end, for any method.

    A few noises are solved twice, with 60 calls each, and a quarter of them once more, with 88, which says
    how far the ends err. From what is seen there the error of any plan can be told without the network;
    the plans that should do best with a number of calls are then tried on the model, with 12 calls for each
    call of the plan and each noise. Where the best comes nearer to the ends than these may err, all noises
    are solved anew with 88 calls and then 176, and the plans are tried again. ``grid=prof`` takes the
    result wherever a grid is taken.

    Args:
        model: The denoiser.
        nfe: Numbers of network calls to try plans of at once. Others are tried when they are first asked
            for, and kept.
        n: Noises, of the seeds seed..seed+n−1.
        seed: The first of them.
        shape: Of ONE sample (default: the model's own, where it has one).
        cond: Conditions {name: tensor (n, ...)}, or f(indices (n,)) that gives them; the profile is an
            average over them.
        shared: Passed to the network as it is.
        sigma_max: The level to start from (default ``model.sigma_max``).
        batch: Noises solved together.
        progress: A bar.
        device: Where to solve (default: the network's own).

    Returns:
        The profile, plain numbers that :meth:`Profile.save` writes as JSON.

    Raises:
        ValueError: A network that returns NaN or inf for most of the noises, or a wrong argument.

    >>> import ddim_ode
    >>> model = ddim_ode.exact.gaussian_mixture([0.5, 0.5], [-1, 1], [0.3, 0.3], ddim_ode.schedules.ddpm())
    >>> prof = ddim_ode.profile(model, progress=False)
    >>> x_T = ddim_ode.noise((1,), model.schedule, seeds=[100, 101])
    >>> ddim_ode.sample(model, x_T, prof.recommend(6).method, nfe=6, grid=prof).nfe
    6
    """
    check_model(model)
    model = model.starting_at(sigma_max).replace(profile=None)
    n = count("n", n)
    seed = seed_of(seed, n)
    batch = count("batch", batch)
    flag("progress", progress)
    asked = [] if nfe is None else budgets(nfe)
    shape = sample_shape(model, shape)
    place = device_of(model, device)
    x = noise(shape, model.schedule, range(seed, seed + n), model.sigma_max, place)
    told = conditions(cond, n, place)
    rate = model.rows_per_sample
    total = rate * (n * (COARSE + FINE + screening.ROWS * sum(asked)) + calls_of_check(n, FINE))
    with progress_bar(progress, total=total, unit="eval", unit_scale=True, desc="profile") as bar:
        watched = True

        def observe(rows: int) -> None:
            if watched:  # what is asked for later has no bar
                bar.update(rows)

        problem = Problem(model, told, shared)
        seen = look(problem, x, batch, observe)
        examples = screening.Examples(problem, x, seen.ends, batch, observe)
        known = Ends(examples, seen)
        if lost := [seed + k for k in known.lost]:
            warn(
                f"{len(lost)} of {n} noises have no finite end ({seeds_text(lost)}) and are left out; ask "
                "ddim_ode.diagnose(model) why"
            )
        about: dict[str, Any] = dict(
            model=f"{type(model).__name__}({model.prediction}-network)",
            model_key=model_key(model),
            prediction=model.prediction,
            alterations=plain_alterations(model),
            n=n,
            seed=seed,
            generator=GENERATOR,
            shape=list(shape),
            snap=model.snap,
            solver=known.solver,
            reference_error=known.error,
            net_evals=known.net_evals,
            version=__version__,
        )
        prof = Profile(seen.surrogate, about)

        def screener(calls: int) -> Screen | None:
            if getattr(model, "closed", False):  # a pipeline's, which can be asked no more
                return None
            screened = screening.screen(prof, examples, calls)
            while (best := screened.tried[0].error) < known.error / _UNSURE and known.can_be_finer:
                twice = 2 * known.calls
                again = n * (twice + screening.ROWS * calls) + calls_of_check(n, twice)
                bar.total += rate * (again - calls_of_check(n, known.calls))
                before = known.net_evals
                known.refine()
                about.update(solver=known.solver, reference_error=known.error)
                about["net_evals"] += known.net_evals - before + screened.net_evals
                screened = screening.screen(prof, examples, calls)
            if best < known.error / _UNSURE:
                warn(
                    f"nfe={calls}: the best that was tried errs by {best:.2g}, and the ends that it is "
                    f"held against may err by {known.error:.2g}: which is best is not sure"
                )
            return screened

        prof.screener = screener
        for calls in asked:
            prof.screen(calls)
    watched = False
    return prof
