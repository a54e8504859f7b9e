"""One of Prometheus' family of programs for a block: a binary with a JSON configuration, a log in a
folder of the test, and `/-/ready`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from predictors.cli.child import held_ports

LOOK_EVERY_S = 0.2
PATIENCE_S = 60.0


class Daemon:
    """A context manager; `flags` are added to its command. Methods block; the test's thread."""

    def __init__(self, binary: str, folder: Path, config: Mapping[str, Any], *flags: str) -> None:
        self._binary, self._folder, self._flags = binary, folder, flags
        self._config = config
        self._held = ExitStack()
        self.address = ""  # until it is entered

    def __enter__(self) -> Self:
        binary = shutil.which(self._binary)
        assert binary is not None, "look for it before"
        self._folder.mkdir(parents=True, exist_ok=True)
        (port,) = self._held.enter_context(held_ports(1))
        self.address = f"127.0.0.1:{port}"
        config = self._folder / f"{self._binary}.yml"
        config.write_text(json.dumps(self._config))  # JSON is YAML
        command = [binary, f"--config.file={config}", f"--web.listen-address={self.address}"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, *self._flags, "--log.level=warn"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._http = httpx.Client(base_url=f"http://{self.address}", timeout=300.0)
        self.wait_until(self._is_ready, f"{self._binary} does not start")
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
        self._held.close()

    def wait_until(self, holds: Callable[[], bool], otherwise: str) -> None:
        """Return as soon as `holds()`; AssertionError with `otherwise` and the log when it never
        does."""
        wait_until(holds, lambda: f"{otherwise}\n{self.log()}")

    def log(self) -> str:
        """Its log so far, all in one text."""
        return self._log.read_text()

    @property
    def _log(self) -> Path:
        return self._folder / f"{self._binary}.log"

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, f"{self._binary} ended\n{self.log()}"
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False


def wait_until(
    holds: Callable[[], bool], otherwise: Callable[[], str], timeout_s: float = PATIENCE_S
) -> None:
    """Return as soon as `holds()`; AssertionError with `otherwise()` after `timeout_s`."""
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < end, otherwise()
        pause.wait(LOOK_EVERY_S)
