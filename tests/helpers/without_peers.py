"""A pytest plugin: the packages that only the extras bring are not there.

    PYTHONPATH=tests/helpers pytest -p without_peers

So an environment that has them shows what the tests do in one of the extra ``test`` alone.
"""

import sys

HIDDEN = ("diffusers", "k_diffusion", "skrample", "torchode", "transformers")


class _Hiding:
    """A finder, but of those packages."""

    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, *args):
        return None if name.partition(".")[0] in HIDDEN else self._finder.find_spec(name, *args)


sys.meta_path[:] = [_Hiding(finder) for finder in sys.meta_path]
