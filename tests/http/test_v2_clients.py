"""Unmodified clients: tritonclient over HTTP and gRPC, KServe's REST and gRPC clients."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from tests.http.echo import PATIENCE_S, Running, png

HERE = Path(__file__).parent


@pytest.fixture
def client(running: Running) -> Iterator[Any]:
    """tritonclient's HTTP client."""
    with triton.InferenceServerClient(f"127.0.0.1:{running.server.http_port}") as http:
        yield http


def bytes_input(name: str, *rows: bytes, binary: bool) -> Any:
    tensor = triton.InferInput(name, [len(rows)], "BYTES")
    return tensor.set_data_from_numpy(np.array(rows, dtype=np.object_), binary_data=binary)


def run_script(script: str, *arguments: str) -> Any:
    """The JSON that a script printed in its own process."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 3,
        check=False,
        cwd=HERE.parents[1],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True, None])
def test_tritonclient_http_with_every_mix_of_json_and_binary(
    client: Any, binary_in: bool, binary_out: bool | None
) -> None:
    wanted = None
    if binary_out is not None:
        names = ("seed", "echo")
        wanted = [triton.InferRequestedOutput(x, binary_data=binary_out) for x in names]
    result = client.infer(
        "echo",
        [bytes_input("prompt", b"a", b"b", binary=binary_in)],
        outputs=wanted,
        request_id="r1",
        parameters={"scale": 3.5},
        timeout=60_000_000,
    )
    assert result.get_response()["id"] == "r1"
    assert [x if isinstance(x, str) else x.decode() for x in result.as_numpy("echo")] == ["a", "b"]
    assert result.as_numpy("seed").tolist() == [0, 1]


def test_tritonclient_http_receives_the_bytes_that_it_sent(client: Any) -> None:
    picture = png((3, 2, 1))
    inputs = [
        bytes_input("prompt", b"a", binary=True),
        bytes_input("image", picture, binary=True),
    ]
    assert client.infer("echo", inputs).as_numpy("image")[0] == picture


def test_tritonclient_http_reads_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "vision-predictors"
    assert client.get_model_metadata("echo")["versions"] == ["1"]
    assert client.get_model_repository_index()[0]["state"] == "READY"


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.get_model_config("echo"),
        lambda client: client.get_inference_statistics("echo"),
        lambda client: client.load_model("echo"),
        lambda client: client.infer("nobody", [bytes_input("prompt", b"a", binary=True)]),
        lambda client: client.infer("echo", [bytes_input("nope", b"a", binary=True)]),
    ],
    ids=["config", "statistics", "load", "model", "input"],
)
def test_tritonclient_http_shows_the_servers_error_message(client: Any, ask: Any) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        ask(client)
    assert caught.value.message()
    assert client.is_server_live()


def test_tritonclient_grpc_sends_bytes_and_doubles(running: Running) -> None:
    picture = png((7, 7, 7)).hex()
    answer = run_script("ask_triton_grpc.py", running.grpc_target, picture)
    assert (answer["live"], answer["ready"], answer["model_ready"]) == (True, True, True)
    assert answer["metadata"]["versions"] == ["1"]
    assert answer["metadata"]["inputs"][0] == {
        "name": "prompt",
        "datatype": "BYTES",
        "shape": ["-1"],
    }
    assert answer["server"]["name"] == "vision-predictors"
    assert (answer["id"], answer["rows"]) == ("r1", 2)
    assert answer["echo"] == ["a", "b"]
    assert answer["image"] == [picture, picture]
    assert answer["seed"] == [7, 8]
    assert answer["scale"] == [3.5, 3.5]
    assert answer["refusals"] == {
        "unknown": ["StatusCode.INVALID_ARGUMENT", "unknown parameter 'nope'"],
        "fraction": ["StatusCode.INVALID_ARGUMENT", "steps must be a whole number, not '1.5'"],
    }


def test_kserves_clients_over_rest_and_grpc(running: Running) -> None:
    picture = png((5, 6, 7)).hex()
    answer = run_script("ask_kserve.py", running.url, running.grpc_target, picture)
    for transport in ("rest", "grpc"):
        found = answer[transport]
        assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
        assert found["id"] == "r1"
        assert found["echo"] == ["hello"]
        assert found["image"] == picture
    assert answer["grpc"]["rows"] == 1
