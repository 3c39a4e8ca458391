"""Pictures come out as they were laid out, also cropped (in a notebook) and under a reader's own style."""

import io
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from problems import DDPM, mixture_2d

import ddim_ode
from ddim_ode.grids import make_grid
from ddim_ode.plots import plan_plot
from ddim_ode.plots.comparisons import ends_plot
from ddim_ode.plots.pictures import sample_grid, solver_grid


def compared():
    return ddim_ode.compare(mixture_2d(DDPM), nfe=[5, 8], n=4, progress=False).plot()


def ends():
    x = ddim_ode.noise((2,), DDPM, seeds=range(8))
    return ends_plot([("ddim", [x, None])], ["5 calls", "8 calls"], x)


def planned():
    return plan_plot(ddim_ode.plan("heun", DDPM, make_grid("trailing", DDPM, 4)), DDPM)


def pictures():
    return sample_grid([("ddim\n5 calls", ddim_ode.noise((1, 8, 8), DDPM, seeds=range(3)))])


def solvers():
    images = ddim_ode.noise((1, 8, 8), DDPM, seeds=range(3))
    return solver_grid([("ddim", "C0", [images, None])], ["5 calls", "8 calls"])


def drawn(figure, **options):
    """What is inked, as pixels without the margin."""
    figure.savefig(file := io.BytesIO(), **options)
    file.seek(0)
    pixels = imread(file)[..., :3]
    rows, columns = np.nonzero(pixels.min(axis=2) < 0.99)
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


@pytest.mark.parametrize("make", [compared, ends, planned, pictures, solvers])
def test_a_crop_takes_the_margin_and_nothing_else(make):
    figure = make()
    whole, cropped = (drawn(figure, bbox_inches=box).shape[:2] for box in (None, "tight"))
    assert np.abs(np.subtract(whole, cropped)).max() <= 2  # pixels are not halved alike


@pytest.mark.parametrize("make", [compared, ends, planned, pictures, solvers])
def test_the_reader_s_own_style_moves_nothing_and_draws_no_grid_on_it(make):
    usual = drawn(make())
    style = {"figure.constrained_layout.use": True, "axes.grid": True}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(drawn(make()), usual)


@pytest.mark.parametrize("make", [compared, ends, planned, pictures, solvers])
def test_a_notebook_can_draw_them_without_pyplot(make):
    figure = make()
    figure.savefig(file := io.BytesIO(), bbox_inches="tight")
    np.testing.assert_array_equal(
        imread(io.BytesIO(figure._repr_png_())), imread(io.BytesIO(file.getvalue()))
    )
