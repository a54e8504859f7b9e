"""A real Alertmanager for a block, to which a Prometheus sends what fires. Knows no alert of ours.

Debian's binary, on a free port of 127.0.0.1, alone (no cluster), with its one receiver silent.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from predictors.cli.child import free_ports
from tests.observe.prometheus import PATIENCE_S, wait_until

BINARY = "prometheus-alertmanager"
SILENT = {"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}


class Alertmanager:
    """A context manager. Methods block; the test's thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = f"127.0.0.1:{free_ports(1)[0]}"

    def __enter__(self) -> Alertmanager:
        binary = shutil.which(BINARY)
        assert binary is not None, "look for it before"
        config = self._folder / "alertmanager.yml"
        config.write_text(json.dumps(SILENT))  # JSON is YAML
        with (self._folder / "alertmanager.log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={config}",
                    f"--storage.path={self._folder / 'alertmanager'}",
                    f"--web.listen-address={self.address}",
                    "--cluster.listen-address=",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._http = httpx.Client(base_url=f"http://{self.address}", timeout=30.0)
        wait_until(self._is_ready, lambda: f"Alertmanager does not start\n{self.log()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def alerts(self) -> dict[str, Mapping[str, Any]]:
        """What it was told and is not over, by the alert's name: `labels`, `annotations`, ..."""
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

    def log(self) -> str:
        """What Alertmanager complained of."""
        return (self._folder / "alertmanager.log").read_text()

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, f"Alertmanager ended\n{self.log()}"
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False
