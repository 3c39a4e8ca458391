import pytest
import torch
from hypothesis import settings

# The tensors here are tiny: threads only make them slower, and the more so on a busy computer.
torch.set_num_threads(1)

settings.register_profile("suite", deadline=None, max_examples=40, derandomize=True, database=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _same_global_random_state():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """The notebooks first, which take longest, or a worker may be left alone with them at the end."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
