"""A shorter search for grids: profiles cost a fraction of the time, and are not quite as good."""

import contextlib
from unittest import mock

from ddim_ode.solvers import design

FULL = dict(tries=design.designed.__kwdefaults__["tries"], cuts=design.CUTS)


@contextlib.contextmanager
def short_search(tries=8, cuts=design.CUTS[:1]):
    """A context, or a decorator, in which a search costs so many tries, after so many last levels."""
    with (
        mock.patch.dict(design.designed.__kwdefaults__, tries=tries),
        mock.patch.object(design, "CUTS", cuts),
    ):
        yield
