"""Shared by all tests: one thread, reproducible randomness, and the rule for tests that need a
GPU."""

from __future__ import annotations

import importlib.metadata
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

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


def pytest_sessionstart() -> None:
    """Experts are found by the entry points of the installed package: these must be the ones of
    this checkout."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())[
        "project"
    ]
    for group, wanted in project["entry-points"].items():
        found = {e.name: e.value for e in importlib.metadata.entry_points(group=group)}
        if stale := {name for name, value in wanted.items() if found.get(name) != value}:
            pytest.exit(
                f"the installed entry points of {group} are older than pyproject.toml "
                f"({', '.join(sorted(stale))}): run `pip install -e .`; where the checkout is only "
                "on PYTHONPATH, run in it `python -c 'import setuptools; setuptools.setup()' -q "
                "egg_info`",
                returncode=4,
            )


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
