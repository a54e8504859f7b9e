"""Transcripts of the V2 wire format: any changed byte shows up as a diff.

Delete a file and run the test to write it again.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import text_format

from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.http.echo import PATIENCE_S, PIXEL, Running, infer_body
from tests.http.error_checks import tensor

GOLDEN = Path(__file__).parents[1] / "golden" / "v2"
INFER = "/v2/models/echo/infer"
NAMED = {"x-request-id": "r1"}


def same_as_golden(name: str, found: bytes) -> None:
    path = GOLDEN / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(found)
        pytest.fail(f"{path} was written; read it and run again")
    assert found == path.read_bytes()


def transcript(reply: httpx.Response) -> bytes:
    """Status, headers except the date, and body."""
    heads = sorted((k, v) for k, v in reply.headers.items() if k != "date")
    head = "".join(f"{key}: {value}\n" for key, value in heads)
    return f"{reply.status_code}\n{head}\n".encode() + reply.content + b"\n"


def with_picture(**more: Any) -> dict[str, Any]:
    body = infer_body("a red circle", "Zürich 🦊", id="call-7", **more)
    pictures = [base64.b64encode(PIXEL).decode()] * 2
    body["inputs"].append(tensor("image", shape=[2], data=pictures))
    body["inputs"].append(tensor("seed", "INT64", shape=[2], data=[7, 2**53 - 1]))
    return body


def test_a_json_response(client: httpx.Client) -> None:
    reply = client.post(INFER, json=with_picture(parameters={"scale": 3.5}), headers=NAMED)
    same_as_golden("infer_json.http", transcript(reply))


def test_a_response_with_the_binary_extension(client: httpx.Client) -> None:
    prompt = struct.pack("<I", 1) + b"x"
    binary = {"drop": ("data",), "parameters": {"binary_data_size": len(prompt)}}
    body = {"inputs": [tensor(**binary)], "parameters": {"binary_data_output": True}}
    head = json.dumps(body).encode()
    headers = NAMED | {"inference-header-content-length": str(len(head))}
    reply = client.post(INFER, content=head + prompt, headers=headers)
    same_as_golden("infer_binary.http", transcript(reply))


@pytest.mark.parametrize(
    ("name", "method", "path", "body"),
    [
        ("bad_input", "POST", INFER, {"inputs": [tensor("promt")]}),
        ("bad_row", "POST", INFER, {"inputs": [tensor(shape=[2], data=["a", 7])]}),
        ("no_such_model", "POST", "/v2/models/nobody/infer", infer_body()),
        ("no_such_version", "GET", "/v2/models/echo/versions/2", None),
        ("wrong_method", "DELETE", INFER, None),
        ("v1", "POST", "/v1/models/echo:predict", {"instances": []}),
        ("unload", "POST", "/v2/repository/models/echo/unload", None),
        ("metadata", "GET", "/v2/models/echo", None),
        ("ready", "GET", "/v2/models/echo/ready", None),
        ("index", "POST", "/v2/repository/index", None),
    ],
)
def test_other_responses(
    client: httpx.Client, name: str, method: str, path: str, body: Any
) -> None:
    reply = client.request(method, path, json=body, headers=NAMED)
    same_as_golden(f"{name}.http", transcript(reply))


def test_a_grpc_response(running: Running) -> None:
    request = pb.ModelInferRequest(model_name="echo", id="call-7")
    entry = request.inputs.add(name="prompt", datatype="BYTES", shape=[2, 1])
    entry.contents.bytes_contents.extend([b"a red circle", "Zürich".encode()])
    with grpc.insecure_channel(running.grpc_target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request, timeout=PATIENCE_S)
        model = stub.ModelMetadata(pb.ModelMetadataRequest(name="echo"))
    found = text_format.MessageToString(answer) + text_format.MessageToString(model)
    same_as_golden("infer_grpc.txt", found.encode())
