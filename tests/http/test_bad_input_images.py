"""Bad pictures over REST (base64 and raw) and gRPC: the error names the row, and the next valid
request succeeds.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.http.echo import PATIENCE_S, Running, infer_body, png
from tests.http.error_checks import check_text, tensor, timed
from tests.http.pictures import BAD_PICTURES, Bad

INFER = "/v2/models/echo/infer"

BAD_BASE64 = {
    "words": "draw me a sheep!",
    "two paddings inside": "QUJD==QUJD==",
    "a web address": "http://169.254.169.254/latest/meta-data",
    "a path": "file:///etc/passwd",
    "percent-encoded": "%89PNG",
    "not ASCII": "Zürich",
}


@pytest.fixture
def stub(running: Running) -> Iterator[Any]:
    """A stub of the inference service."""
    with grpc.insecure_channel(running.grpc_target) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def grpc_request(*files: bytes) -> Any:
    """A request with raw prompts and pictures."""
    request = pb.ModelInferRequest(model_name="echo")
    for name, rows in (("prompt", [b"x"] * len(files)), ("image", files)):
        entry = request.inputs.add(name=name, datatype="BYTES", shape=[len(files)])
        entry.contents.bytes_contents.extend(rows)
    return request


def json_request(*encoded: str) -> dict[str, Any]:
    """A request with prompts and base64 pictures."""
    body = infer_body(*["x"] * len(encoded))
    body["inputs"].append(tensor("image", shape=[len(encoded)], data=list(encoded)))
    return body


@pytest.mark.parametrize("bad", BAD_PICTURES, ids=lambda bad: bad.name)
def test_the_error_of_a_bad_picture_over_rest_names_its_row(
    client: httpx.Client, bad: Bad, record_property: Any
) -> None:
    files = [base64.b64encode(raw).decode() for raw in (png(), bad.raw)]
    with timed(record_property):
        reply = client.post(INFER, json=json_request(*files))
    assert reply.status_code == bad.status, reply.text
    check_text(reply.json()["error"], bad.words)
    assert reply.json()["error"].startswith("row 1: image ")
    assert client.post(INFER, json=json_request(files[0])).status_code == 200


@pytest.mark.parametrize("bad", BAD_PICTURES, ids=lambda bad: bad.name)
def test_the_error_of_a_bad_picture_over_grpc_names_its_row(
    stub: Any, bad: Bad, record_property: Any
) -> None:
    with timed(record_property), pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(grpc_request(png(), bad.raw), timeout=PATIENCE_S)
    too_large = bad.status == 413
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if too_large else grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.code() == code
    check_text(caught.value.details(), bad.words)
    assert caught.value.details().startswith("row 1: image ")
    answer = stub.ModelInfer(grpc_request(png()), timeout=PATIENCE_S)
    assert answer.raw_output_contents[1][4:] == png()


@pytest.mark.parametrize("text", BAD_BASE64.values(), ids=BAD_BASE64)
def test_text_that_is_not_base64_is_refused_and_never_fetched(
    client: httpx.Client, text: str
) -> None:
    reply = client.post(INFER, json=json_request(text))
    assert reply.status_code == 400
    check_text(reply.json()["error"], "row 0: image is not base64")


def test_an_empty_picture_is_not_a_missing_picture(client: httpx.Client) -> None:
    reply = client.post(INFER, json=json_request(""))
    assert (reply.status_code, reply.json()["error"]) == (400, "row 0: image is empty")


def test_base64_may_have_line_breaks_another_alphabet_and_no_padding(client: httpx.Client) -> None:
    file = png((251, 255, 254), (64, 64))
    lines = base64.encodebytes(file).decode()
    unpadded = base64.urlsafe_b64encode(file).decode().rstrip("=")
    data_url = "data:image/png;base64," + base64.b64encode(file).decode()
    for text in (lines, unpadded, data_url):
        reply = client.post(INFER, json=json_request(text))
        assert reply.status_code == 200
        assert base64.b64decode(reply.json()["outputs"][1]["data"][0]) == file
