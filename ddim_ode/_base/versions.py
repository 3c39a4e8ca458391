"""What a record of a run names, so that it can be made again."""

from __future__ import annotations

import platform


def versions() -> dict[str, str]:
    """Of this package, of Python, and of the packages that the numbers depend on."""
    import numpy
    import torch

    from .version import __version__

    return dict(
        ddim_ode=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=numpy.__version__,
    )
