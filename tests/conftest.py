"""Shared by all tests: one thread, reproducible randomness, and the rule for tests that need a
GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

collect_ignore = ["benchmarks"]  # scripts, run by `make bench`

torch.set_num_threads(1)
settings.register_profile("fast", deadline=None, derandomize=True, max_examples=50)
settings.register_profile(
    "thorough", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    """Each test starts from the same global seed and leaves torch's default dtype as it found
    it."""
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of randomness of the test's own."""
    return torch.Generator().manual_seed(0)
