"""Keys that are rotated while requests run: a valid key is never refused, an ended one always."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from predictors.protocol.key_file import ApiKey, digest_of, new_key, write_keys
from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.http.echo import PATIENCE_S, infer_body
from tests.protocol.test_keys import swap_link

ROTATIONS = 20


class Process:
    """A server process with a keys file that is mounted as Kubernetes mounts a Secret."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "keys.json"
        self.kept = new_key()
        self.rotating = [new_key()]
        self.write(self.rotating)
        environ = {
            **os.environ,
            "PREDICTORS_ACCESS_KEYS_FILE": str(self.file),
            "PREDICTORS_ACCESS_RELOAD_S": "0.05",
            "PORT": "0",
            "GRPC_PORT": "0",
        }
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.http.serve_keyed"],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._child.stdout is not None
        self.http_port, self.grpc_port = self._child.stdout.readline().split()

    def write(self, rotating: list[str]) -> None:
        """Write the key that stays and these of one other caller."""
        kept = ApiKey("kept", digest_of(self.kept))
        keys = [kept, *(ApiKey("rotated", digest_of(key)) for key in rotating)]
        swap_link(self.file, write_keys(keys))

    def status(self, http: httpx.Client, key: str) -> int:
        headers = {"x-api-key": key}
        url = f"http://127.0.0.1:{self.http_port}/v2/models/echo/infer"
        return http.post(url, json=infer_body("a"), headers=headers).status_code

    def stop(self) -> int:
        self._child.terminate()
        return self._child.wait(PATIENCE_S)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    try:
        yield process
    finally:
        process.stop()
        assert process._child.stdout is not None
        process._child.stdout.close()


class Asker(threading.Thread):
    """Sends requests with valid keys, one after the other, until it is told to stop."""

    def __init__(self, process: Process, *, is_grpc: bool) -> None:
        super().__init__()
        self._process = process
        self._is_grpc = is_grpc
        self.is_over = threading.Event()
        self.sent = 0
        self.failed: list[Any] = []

    def run(self) -> None:
        asked = pb.ModelInferRequest(model_name="echo")
        tensor = asked.inputs.add(name="prompt", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"a")
        target = f"127.0.0.1:{self._process.grpc_port}"
        with (
            httpx.Client(timeout=PATIENCE_S) as http,
            grpc.insecure_channel(target) as channel,
        ):
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            while not self.is_over.is_set():
                for key in (self._process.kept, self._process.rotating[0]):
                    if self._is_grpc:
                        metadata = (("x-api-key", key),)
                        call = stub.ModelInfer.future(asked, metadata=metadata, timeout=PATIENCE_S)
                        answer, right = call.code(), grpc.StatusCode.OK
                    else:
                        answer, right = self._process.status(http, key), 200
                    self.sent += 1
                    if answer != right:
                        self.failed.append(answer)


def test_twenty_rotations_under_load_refuse_no_valid_key(process: Process) -> None:
    askers = [Asker(process, is_grpc=is_grpc) for is_grpc in (False, True)]
    for asker in askers:
        asker.start()
    try:
        with httpx.Client(timeout=PATIENCE_S) as http:
            for _ in range(ROTATIONS):
                (old,), fresh = process.rotating, new_key()
                process.write([old, fresh])
                wait_for(process, http, fresh, 200)
                process.rotating[0] = fresh  # requests that are sent from now on use it
                sent = [asker.sent for asker in askers]
                for asker, before in zip(askers, sent, strict=True):
                    while asker.sent < before + 3 and asker.is_alive():
                        asker.join(0.01)  # those with the old key are answered
                process.write([fresh])
                wait_for(process, http, old, 401)
    finally:
        for asker in askers:
            asker.is_over.set()
            asker.join(PATIENCE_S)
    assert [asker.failed for asker in askers] == [[], []]
    assert all(asker.sent > 3 * ROTATIONS for asker in askers)
    assert process.stop() == 0


def wait_for(process: Process, http: httpx.Client, key: str, status: int) -> None:
    """Ask with the key until the server has read the file."""
    for _ in range(10_000):
        if process.status(http, key) == status:
            return
    raise AssertionError(f"the key was not answered with {status}")
