"""What every test stands on: a clean environment, warnings as errors, a time limit, the `gpu` marker. No test data."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from predictors.settings import ALIASES, PREFIX

TEST_TIMEOUT_S = 60.0

hypothesis.settings.register_profile(
    "suite",
    deadline=None,  # two shared cores: time says nothing about the code
    derandomize=True,  # the same examples on every machine; `thorough` looks further
    database=None,
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("thorough", deadline=None, database=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "gpu: needs a CUDA device; runs with `-m gpu`, and is skipped where there is none",
        "timeout: seconds after which the test fails",
    ):
        config.addinivalue_line("markers", marker)
    # first of all filters, so that exceptions in pyproject.toml still win
    filters = config.getini("filterwarnings")
    if "error" not in filters:
        filters.insert(0, "error")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wants_gpu = "gpu" in (config.option.markexpr or "")
    for item in items:
        if item.get_closest_marker("timeout") is None and config.pluginmanager.hasplugin("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
        if item.get_closest_marker("gpu") is not None and not (wants_gpu and _has_gpu()):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and `-m gpu`"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of the developer's shell reaches a test."""
    for name in list(os.environ):
        if name.startswith(f"{PREFIX}_") or name in ALIASES.values():
            monkeypatch.delenv(name)
    yield
