"""The command line's server beside the test, as an operator starts it, with an admin port.

`Live(..., module="tests.observe.faulty")` is the same server with faults that the test switches on.
"""

from __future__ import annotations

import queue
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from predictors.cli.child import ServerProcess, held_ports
from tests.observe.daemon import PATIENCE_S, wait_until

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
MODELS = {"flux": CHECKPOINTS / "shapes-flux", "qwen-vl": CHECKPOINTS / "shapes-qwen-vl"}
START_S = 120.0
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PREDICTORS_FLUX_MAX_SEQUENCE_LENGTH": "32",
    "PREDICTORS_FLUX_DEFAULT_STEPS": "2",
    "PREDICTORS_FLUX_MAX_SIDE": "256",
}


class Live(ServerProcess):
    """Both embedded models. `settings` are environment variables on top of `SETTINGS`."""

    def __init__(
        self, log: Path, settings: Mapping[str, str] | None = None, module: str = "predictors"
    ) -> None:
        super().__init__(MODELS, log)
        self._module = module
        self._admin_port = 0  # until it is entered
        self._settings = {**SETTINGS, **(settings or {})}

    def __enter__(self) -> Live:
        (self._admin_port,) = self._held.enter_context(held_ports(1))
        self._settings["PREDICTORS_SERVER_ADMIN_PORT"] = str(self._admin_port)
        self.admin = httpx.Client(base_url=f"http://{self.admin_address}", timeout=300.0)
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.admin.close()
        super().__exit__(kind, error, trace)

    @property
    def address(self) -> str:
        """The address that Prometheus scrapes."""
        return f"127.0.0.1:{self.port}"

    @property
    def admin_address(self) -> str:
        """The same metrics, also during a drain."""
        return f"127.0.0.1:{self._admin_port}"

    @property
    def grpc_target(self) -> str:
        """Where gRPC is."""
        return f"127.0.0.1:{self.grpc_port}"

    def command(self) -> Sequence[str]:
        """The command line with the settings before it."""
        python, _, _, *rest = super().command()
        settings = [f"{name}={value}" for name, value in self._settings.items()]
        return ["env", *settings, python, "-m", self._module, *rest]

    def wait_listening(self) -> None:
        """Return once the admin port answers; the models may still load."""
        wait_until(self._answers, lambda: f"no admin port\n{self.tail()}", START_S)

    def wait_warm(self) -> None:
        """Return once both models are ready."""
        self.wait_ready(START_S, lambda progress: None)

    def terminate(self) -> None:
        """SIGTERM; returns once the server says that it drains."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        wait_until(lambda: bool(self.view()["draining"]), lambda: f"no drain\n{self.tail()}")

    def wait_ended(self) -> int:
        """The exit code, once the process is over."""
        assert self._process is not None
        return self._process.wait(PATIENCE_S)

    def start_again(self) -> None:
        """The same command at the same addresses, after the process has ended; once it listens."""
        self._stack.close()
        self._lines = queue.SimpleQueue()
        self._launch()
        self.wait_listening()

    def view(self) -> Any:
        """`/debug/engine`."""
        return self.admin.get("/debug/engine").json()

    def running(self, model: str) -> int:
        """How many jobs of `model` hold a slot."""
        return len(self.view()["models"][model]["running"])

    def wait_view(self, model: str, *, running: int, queued: int = 0) -> None:
        """Return once so many jobs of `model` run and wait."""

        def seen() -> tuple[int, int]:
            shown = self.view()["models"][model]
            return len(shown["running"]), shown["queued"]

        wait_until(lambda: seen() == (running, queued), lambda: f"{model}: {seen()}")

    def wait_idle(self) -> None:
        """Return once no request is in flight and no job runs or waits. A request whose answer is
        not waited for may not have been read yet."""
        wait_until(self._is_idle, lambda: f"still busy: {self.view()}")

    def wait_answered(self) -> None:
        """Return once no request is in flight; jobs of those who left may still hold a slot."""
        wait_until(lambda: self.view()["in_flight"] == 0, lambda: f"still asked: {self.view()}")

    def samples(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """The samples of one series on /metrics, by their labels."""
        text = self.admin.get("/metrics").text
        return {
            frozenset(sample.labels.items()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }

    def _answers(self) -> bool:
        try:
            return self.admin.get("/debug/engine").status_code == 200
        except httpx.TransportError:
            return False

    def _is_idle(self) -> bool:
        view = self.view()
        models = view["models"].values()
        return view["in_flight"] == 0 and not any(m["running"] or m["queued"] for m in models)
