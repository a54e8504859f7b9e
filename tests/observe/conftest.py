"""Where Prometheus is not installed, what needs it is skipped with a word; and our rules with the
durations of a test."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.observe.alertmanager import BINARY

ROOT = Path(__file__).resolve().parents[2]

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
    spec = importlib.util.spec_from_file_location("alert_rules", ROOT / "tools/alerts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped = module.values()

    def write(chosen: Mapping[str, Mapping[str, Any]]) -> list[Path]:
        alerts = {name: {**was, **chosen.get(name, {})} for name, was in shipped["alerts"].items()}
        assert set(chosen) <= set(alerts), "an alert that does not exist"
        module.values = lambda: {**shipped, "alerts": alerts}  # type: ignore[attr-defined]
        folder = tmp_path_factory.mktemp("rules")
        texts = module.files()
        for name in ("recording.yaml", "alerts.yaml"):
            (folder / name).write_text(texts[name])
        return [folder / "recording.yaml", folder / "alerts.yaml"]

    return write
