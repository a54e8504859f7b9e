"""One Helm release of a chart in one namespace: install, upgrade, rollback, test, uninstall.

Values are given as files, then as one mapping on top.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.image.places import SERVER
from tests.e2e.kube import run

CHART = Path(__file__).resolve().parents[2] / "charts" / "predictors"
WAIT_S = 240
LAPTOP = Path("values-laptop.yaml")
QUICK_PROBE = {"periodSeconds": 1, "timeoutSeconds": 5}


class Release:
    """`helm` for one release name. A command that fails raises `CommandFailed`."""

    def __init__(self, name: str, namespace: str, chart: Path = CHART) -> None:
        self.name = name
        self.namespace = namespace
        self.chart = chart

    def __call__(self, verb: str, *words: str, stdin: str = "") -> str:
        """The output of `helm VERB RELEASE WORDS...`."""
        named = ("helm", "-n", self.namespace, verb, self.name, *words)
        return run(*named, stdin=stdin, timeout_s=WAIT_S + 60)

    def install(self, files: Sequence[Path], values: Mapping[str, Any], *words: str) -> str:
        """Install the chart; `files` are names within it or paths. Returns the notes."""
        return self._put("install", files, values, *words)

    def upgrade(self, files: Sequence[Path], values: Mapping[str, Any], *words: str) -> str:
        """Change the release to these values, none of the earlier ones."""
        return self._put("upgrade", files, values, *words)

    def _put(self, verb: str, files: Sequence[Path], values: Mapping[str, Any], *words: str) -> str:
        chosen = [word for file in files for word in ("-f", str(self.chart / file))]
        # JSON is YAML; standard input is the last of the files, so it wins
        given = (str(self.chart), *chosen, "-f", "-", *words)
        return self(verb, *given, stdin=json.dumps(values))

    def rollback(self, revision: int) -> None:
        """Go back to the values of an earlier revision."""
        self("rollback", str(revision))

    def test(self) -> str:
        """Run the test hooks, which print their logs to stderr; returns what helm said of them."""
        return self("test", "--timeout", f"{WAIT_S}s")

    def history(self) -> list[dict[str, Any]]:
        """Every revision, oldest first."""
        found: list[dict[str, Any]] = json.loads(self("history", "-o", "json"))
        return found

    def uninstall(self, *, wait: bool = True) -> None:
        """Remove it; with `wait` return when its objects are gone."""
        self("uninstall", *(("--wait", "--timeout", f"{WAIT_S}s") if wait else ()))


def image_values(reference: str) -> dict[str, str]:
    """`image` of the chart for a reference that the nodes have already."""
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "Never"}


def server_image() -> str:
    """The product's image: E2E_IMAGE, else what `python -m tests.e2e.image build` builds."""
    return os.environ.get("E2E_IMAGE", SERVER)


def small(image: str = "", **defaults: Any) -> dict[str, Any]:
    """Values for two cores that many pods share; `defaults` wins over what is here.

    Probes look every second and drains are short, so that tests are; what is proved stays the same.
    """
    base: dict[str, Any] = {
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "3Gi"}},
        "probes": {
            "startup": {**QUICK_PROBE, "budgetSeconds": 180},
            "readiness": {**QUICK_PROBE, "failureThreshold": 1},
            "liveness": {**QUICK_PROBE, "failureThreshold": 3, "graceSeconds": 3},
        },
        "drain": {"preStopSeconds": 2, "lingerSeconds": 2, "graceSeconds": 60},
        "timeoutSeconds": 60,
        "shm": {"size": "64Mi"},
    }
    return {
        "image": image_values(image or server_image()),
        "defaults": {**base, **defaults},
    }
