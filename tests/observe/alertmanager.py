"""A real Alertmanager for a block, to which a Prometheus sends what fires.

Debian's binary, on a free port of 127.0.0.1, alone (no cluster), with its one receiver silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.observe.daemon import Daemon, wait_until

BINARY = "prometheus-alertmanager"
SILENT = {"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}


class Alertmanager(Daemon):
    """A context manager. Methods block; the test's thread."""

    def __init__(self, folder: Path) -> None:
        storage = f"--storage.path={folder / 'alertmanager'}"
        super().__init__(BINARY, folder, SILENT, storage, "--cluster.listen-address=")

    def alerts(self) -> dict[str, Mapping[str, Any]]:
        """The unresolved alerts that it was sent, by name: `labels`, `annotations`, ..."""
        reply = self._http.get("/api/v2/alerts")
        assert reply.status_code == 200, reply.text
        return {alert["labels"]["alertname"]: alert for alert in reply.json()}

    def wait_told(self, name: str) -> Mapping[str, Any]:
        """The alert of this name, once it is here."""
        wait_until(
            lambda: name in self.alerts(),
            lambda: f"{name} does not arrive, but {set(self.alerts())}\n{self.log()}",
        )
        return self.alerts()[name]
