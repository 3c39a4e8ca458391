"""A call that is to be refused, and how."""

import pytest

import ddim_ode


def sample(*args, **kwargs):
    """``ddim_ode.sample`` of these, to be called later."""
    return lambda: ddim_ode.sample(*args, **kwargs)


def expect(call, message):
    with pytest.raises(ValueError, match=message):
        call()
