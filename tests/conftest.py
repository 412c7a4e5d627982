"""One thread per test process (several run side by side; CONVSMITH_TEST_THREADS sets more), repeatable, no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

torch.set_num_threads(int(os.environ.get("CONVSMITH_TEST_THREADS", "1")))
hypothesis.settings.register_profile("convsmith", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("convsmith")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
