"""Fixtures of every test: a clean environment, warnings as errors, a time limit, markers."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Generator

import hypothesis
import pytest

from predictors.operators.garbage import collections_paused
from predictors.settings import ALIASES, PREFIX

# Triton reads it when a kernel is declared: without a GPU its kernels run in the interpreter
if not shutil.which("nvidia-smi"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# a shell without job control has its background jobs ignore Ctrl-C, and every child inherits that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEST_TIMEOUT_S = 600.0  # a last resort: no machine is that busy

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


MARKERS = {
    "gpu": "needs a CUDA device; skipped with a word elsewhere",
    "compiler": "needs a C++ compiler (Inductor on the CPU); skipped with a word elsewhere",
}


def pytest_configure(config: pytest.Config) -> None:
    """pyproject.toml says the same; this holds when a test file is run with another one."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    filters = config.getini("filterwarnings")
    if "error" not in filters:
        filters.insert(0, "error")  # first, so that named exceptions still win


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Excludes the objects of imports and collection from garbage collections: they stay to the
    end, and a full one visits each of them, a third of a second in all."""
    with collections_paused():
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lacks = {"gpu": lambda: not _has_gpu(), "compiler": lambda: not _has_compiler()}
    for name, is_missing in lacks.items():
        marked = [item for item in items if item.get_closest_marker(name) is not None]
        if marked and is_missing():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=MARKERS[name].partition(";")[0]))
    if config.getini("timeout") in (None, "", 0):
        for item in items:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's shell reaches a test."""
    for name in list(os.environ):
        if name.startswith(f"{PREFIX}_") or name in ALIASES.values():
            monkeypatch.delenv(name)
