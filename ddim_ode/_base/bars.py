"""Progress bars, on a terminal or in a notebook only."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(shown: bool, **options: Any) -> Any:
    """``tqdm(**options)`` that disappears when it is done.

    It is silent unless ``shown``, in a file, pipe or log, and where TQDM_DISABLE is set.
    """
    options = {"leave": False, **options}
    if not (shown and _watched()):
        return tqdm(disable=True, **options)
    return tqdm(**options)  # not disable=False, which would overrule TQDM_DISABLE


def _watched() -> bool:
    """Whether what goes to stderr is seen as it comes: not in a file, a pipe or a log."""
    # The kernel's own stream, and not that ipykernel is imported, as more than notebooks do.
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    return notebook or (sys.stderr is not None and sys.stderr.isatty())
