"""Servers in processes of their own, for faults that reach a whole process: the command line's with
an embedded model, and one with a scripted engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.http.echo import infer_body

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 240.0  # a last resort, also on a busy machine
LOOK_EVERY_S = 0.01  # at what tells nobody of its changes
LISTENS = re.compile(r"serving .* on .*: HTTP (\d+), gRPC (-?\d+)")
SMALL = {
    "OMP_NUM_THREADS": "1",
    "PREDICTORS_OVERLOAD_LOOP_LAG_S": "0",  # a busy machine makes the event loop late
    "PREDICTORS_COMPUTE_DEVICE": "cpu",
    "PREDICTORS_FLUX_SIZES": "64x64",
    "PREDICTORS_FLUX_DEFAULT_SIZE": "64x64",
    "PREDICTORS_FLUX_DEFAULT_STEPS": "4",
    "PREDICTORS_FLUX_MAX_SEQUENCE_LENGTH": "16",
    "PREDICTORS_FLUX_TIERS": "lossless",
    "PREDICTORS_QWEN_VL_MAX_CONTEXT": "512",
}
"""Settings with which a start takes seconds."""
KEEP = ("PATH", "HOME", "LANG", "TMPDIR")


class ServerProcess:
    """A running server; `lines` are those of its log until now."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], prepare: Callable[[], None] | None
    ) -> None:
        kept = {name: os.environ[name] for name in KEEP if name in os.environ}
        self.process = subprocess.Popen(
            command,
            env={**kept, "PYTHONPATH": str(ROOT), **environ},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,
        )
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._is_over = False
        self._pool = ThreadPoolExecutor(64)
        self.port = self.grpc_port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._is_over = True
            self._more.notify_all()

    # -- log -------------------------------------------------------------------------------------
    def wait_log(self, words: str) -> str:
        """Wait for a line with these words; returns it."""

        def found() -> str | None:
            return next((line for line in self.lines if words in line), None)

        with self._more:
            self._more.wait_for(lambda: found() is not None or self._is_over, PATIENCE_S)
            line = found()
        assert line is not None, f"never logged: {words}\n" + "\n".join(self.lines[-30:])
        return line

    def wait_ready(self, *models: str) -> None:
        match = LISTENS.search(self.wait_log(" HTTP "))
        assert match is not None
        self.port, self.grpc_port = int(match[1]), int(match[2])
        for model in models:
            self.wait_log(f"{model} is ready")

    # -- requests --------------------------------------------------------------------------------
    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_S)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=PATIENCE_S)

    def draw(self, prompt: str, **parameters: Any) -> httpx.Response:
        body = infer_body(prompt, parameters={"seed": 5, **parameters})
        return self.post("/v2/models/flux/infer", body)

    def chat(self, content: Any, **more: Any) -> httpx.Response:
        body = {
            "model": "qwen-vl", "messages": [{"role": "user", "content": content}],
            "temperature": 0, "max_tokens": 8, "ignore_eos": True, **more,
        }  # fmt: skip
        return self.post("/v1/chat/completions", body)

    def later(self, ask: Callable[..., Any], *args: Any, **more: Any) -> Future[Any]:
        """Call it in the background."""
        return self._pool.submit(ask, *args, **more)

    def metric(self, line: str) -> float:
        """The value of the sample that begins with `line`."""
        for sample in self.get("/metrics").text.splitlines():
            if sample.startswith(f"{line} "):
                return float(sample.rpartition(" ")[2])
        raise AssertionError(f"no sample {line}")

    # -- the process -----------------------------------------------------------------------------
    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end; returns the exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(PATIENCE_S)
        return code

    def control(self, command: str) -> None:
        """Move a scripted engine: `steps N` or `open`."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def wait_accepted(self, times: int = 1) -> None:
        """Wait until a scripted engine's predictor has accepted so many more requests."""
        assert self.process.stdout is not None
        for _ in range(times):
            assert self.process.stdout.readline() == "accepted\n"

    def wait_asleep(self) -> None:
        """Wait until the thread of the event loop sleeps, which one that spins never does. What
        came for it before this call wakes it at once, so that it then has nothing left to do."""
        main = f"/proc/{self.process.pid}/task/{self.process.pid}/stat"
        for _ in range(round(PATIENCE_S / LOOK_EVERY_S)):
            if Path(main).read_text().rpartition(")")[2].split()[0] == "S":
                return
            threading.Event().wait(LOOK_EVERY_S)
        raise AssertionError("the event loop never slept")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self._reader.join(PATIENCE_S)
        if self.process.stderr is not None:
            self.process.stderr.close()
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def command_line(
    *models: str,
    module: str = "predictors",
    flags: Sequence[str] = (),
    around: Sequence[str] = (),
    prepare: Callable[[], None] | None = None,
    wait_ready: bool = True,
    **environ: str,
) -> Iterator[ServerProcess]:
    """`python -m predictors serve` with embedded models (`flux`, `qwen-vl`), ready. `around` are
    words before it, `prepare` runs in the new process."""
    named = [f"--model={name}={ROOT / 'checkpoints' / f'shapes-{name}'}" for name in models]
    command = [*around, sys.executable, "-m", module, "serve", *named, "--log-format=text"]
    command += ["--host=127.0.0.1", "--port=0", "--grpc-port=0", *flags]
    server = ServerProcess(command, {**SMALL, **environ}, prepare)
    try:
        if wait_ready:
            server.wait_ready(*models)
        yield server
    finally:
        server.close()


@contextmanager
def scripted(
    prepare: Callable[[], None] | None = None,
    environ: Mapping[str, str] | None = None,
    around: Sequence[str] = (),
    **settings: Any,
) -> Iterator[ServerProcess]:
    """A server with a scripted engine of one slot, ready. `settings`: see `serve_scripted`."""
    module = "tests.faults.processes.serve_scripted"
    command = [*around, sys.executable, "-m", module, json.dumps(settings)]
    server = ServerProcess(command, environ or {}, prepare)
    try:
        server.wait_ready("echo")
        yield server
    finally:
        server.close()
