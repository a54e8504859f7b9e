"""The mark of the last response to a request of `ModelStreamInfer`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from predictors.protocol.grpc.methods import bytes_field
from predictors.protocol.kserve_sdk import pb
from predictors.protocol.v2.grpc import SERVICE
from predictors.protocol.v2.stream_responses import (
    ERROR,
    FINAL,
    METHOD,
    PATH,
    RESPONSE,
    ends_request,
)


def response(error: str = "", **parameters: Any) -> bytes:
    """A response with a tensor and these parameters."""
    inner = pb.ModelInferResponse(model_name="m", id="7")
    inner.outputs.add(name="image", datatype="BYTES", shape=[1])
    inner.raw_output_contents.append(bytes(range(256)) * 100)
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(inner.parameters[name], kind, value)
    raw = bytes_field(RESPONSE, inner.SerializeToString())
    return bytes_field(ERROR, error.encode()) + raw if error else raw


@pytest.mark.parametrize(
    ("raw", "is_last"),
    [
        (response(triton_final_response=True), True),
        (response(step=3, triton_final_response=True, seed=1), True),
        (response("it failed"), True),
        (response("it failed", triton_final_response=False), True),
        (response(triton_final_response=False), False),
        (response(), False),
        (response(final=True, step=1), False),
        (response(triton_final_response="true"), False),
        (bytes_field(ERROR, b"") + response(triton_final_response=True), True),
        (b"", False),
        (b"\xff\xff\xff", False),
        (response(triton_final_response=True)[:-1], False),
        (b"\x18\x01" * 10_000 + response(triton_final_response=True), False),
    ],
    ids=[
        "marked", "marked among others", "an error", "an error that is not marked", "a part",
        "no mark", "other parameters", "a text", "an empty error", "nothing", "no message",
        "cut short", "too many fields",
    ],
)  # fmt: skip
def test_the_last_response_is_known_by_its_mark_or_its_error(raw: bytes, is_last: bool) -> None:
    assert ends_request(raw) is is_last


def test_the_path_is_that_of_the_service() -> None:
    assert f"/{SERVICE}/{METHOD}" == PATH
    assert FINAL == "triton_final_response"


def test_reading_the_mark_loads_neither_kserve_nor_numpy() -> None:
    code = "import sys; import predictors.protocol.v2.stream_responses\n"
    code += "print(sorted({'kserve', 'numpy', 'grpc', 'google.protobuf'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
