"""Where Prometheus is not installed, what needs it is skipped with a word; and our rules with the
durations of a test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.observe.alertmanager import BINARY
from tools import alerts

WriteRules = Callable[[Mapping[str, Mapping[str, Any]]], list[Path]]


@pytest.fixture(scope="module")
def needs_prometheus() -> None:
    """Skips the test without the binary."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian package prometheus)")


@pytest.fixture(scope="module")
def needs_alertmanager() -> None:
    """Skips the test without the binary."""
    if shutil.which(BINARY) is None:
        pytest.skip(f"{BINARY} is not installed (Debian package of the same name)")


@pytest.fixture(scope="module")
def write_rules(tmp_path_factory: pytest.TempPathFactory) -> WriteRules:
    """`write_rules({"QueueSaturated": {"for": "1s"}})`: the files that `make docs` would write with
    these values laid over those of charts/predictors/alerts/values.yaml."""
    shipped = alerts.shipped_values()

    def write(chosen: Mapping[str, Mapping[str, Any]]) -> list[Path]:
        changed = {name: {**was, **chosen.get(name, {})} for name, was in shipped["alerts"].items()}
        assert set(chosen) <= set(changed), "an alert that does not exist"
        folder = tmp_path_factory.mktemp("rules")
        for name, text in alerts.rules({**shipped, "alerts": changed}).items():
            (folder / name).write_text(text)
        return [folder / "recording.yaml", folder / "alerts.yaml"]

    return write
