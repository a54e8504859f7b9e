"""V2 bodies as MLServer's clients and KServe's transformers send them."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import Any

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.kserve_sdk import InferResponse, pb
from predictors.protocol.v2.grpc import encode_proto_response, write_parameters
from predictors.protocol.v2.values import InputTensors, Tensor, V2Request, V2Response
from predictors.protocol.v2.wire_json import decode_json_request
from predictors.protocol.v2.wire_proto import decode_proto_request

FILE = b"\x89PNG\r\n\x1a\n\x00 not UTF-8: \xff"


def v2_body(*inputs: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": inputs, **fields}).encode()


def v2_input(name: str, value: Any, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]} | (
        {"parameters": parameters} if parameters else {}
    )


def v2_read(raw: bytes) -> tuple[list[str] | None, list[bytes] | None]:
    """The text and the file of a request."""
    inputs = InputTensors(decode_json_request(raw, {}, "m", files=("image",)).inputs)
    return inputs.read_text("prompt"), inputs.read_files("image")


@pytest.mark.parametrize("of_request", [{}, {"content_type": "str"}, {"content_type": "pd"}])
@pytest.mark.parametrize("of_text", [{}, {"content_type": "str"}, {"encoding": "utf-8"}])
@pytest.mark.parametrize(
    "of_file", [{}, {"content_type": "base64"}, {"content_type": "image/png", "encoding": "base64"}]
)
def test_content_types_that_agree_with_what_is_served_are_taken(
    of_request: dict[str, str], of_text: dict[str, str], of_file: dict[str, str]
) -> None:
    picture = v2_input("image", b64encode(FILE).decode(), **of_file)
    raw = v2_body(v2_input("prompt", "hi", **of_text), picture, parameters=of_request)
    assert v2_read(raw) == (["hi"], [FILE])


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (v2_body(v2_input("prompt", "hi", content_type="base64")), "prompt"),
        (v2_body(v2_input("prompt", "hi", encoding="base64")), "prompt"),
        (v2_body(v2_input("prompt", "hi", content_type=7)), "prompt"),
        (v2_body(v2_input("image", "AAAA", content_type="pd")), "image"),
        (v2_body(v2_input("image", "AAAA", encoding="hex")), "image"),
        (v2_body(v2_input("prompt", "hi"), parameters={"content_type": "base64"}), "content_type"),
        (v2_body(v2_input("prompt", "hi"), parameters={"content_type": 1}), "content_type"),
        (
            v2_body(
                v2_input("prompt", "hi"),
                outputs=[{"name": "image", "parameters": {"content_type": "hex"}}],
            ),
            "image",
        ),
        (
            v2_body(
                v2_input("prompt", "hi"),
                outputs=[
                    {"name": "image", "parameters": {"content_type": "base64", "binary_data": True}}
                ],
            ),
            "image",
        ),
    ],
)
def test_a_content_type_that_disagrees_is_refused_by_name(raw: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        v2_read(raw)
    assert refused.value.param == param


def proto(outputs: Any = (), parameters: Any = (), **file_parameters: str) -> V2Request:
    """A `ModelInferRequest` with a raw file, decoded."""
    message = pb.ModelInferRequest(model_name="m")
    image = message.inputs.add(name="image", datatype="BYTES", shape=[1])
    for name, value in file_parameters.items():
        image.parameters[name].string_param = value
    data = b64encode(FILE) if "base64" in file_parameters.values() else FILE
    message.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    write_parameters(message.parameters, dict(parameters))
    for name, given in outputs:
        write_parameters(message.outputs.add(name=name).parameters, given)
    return decode_proto_request(message.SerializeToString())


@pytest.mark.parametrize("said", [{}, {"content_type": "base64"}, {"encoding": "base64"}])
def test_a_raw_file_may_be_base64_if_it_says_so(said: dict[str, str]) -> None:
    assert InputTensors(proto(**said).inputs).read_files("image") == [FILE]


BASE64_ASKED: list[dict[str, Any]] = [
    {"parameters": {"binary_data_output": False}.items()},
    {"outputs": [("image", {"binary_data": False}), ("text", {})]},
    {"outputs": [("image", {"content_type": "base64"}), ("text", {})]},
]


@pytest.mark.parametrize("asked", [{}, *BASE64_ASKED], ids=str)
def test_a_file_comes_over_grpc_as_base64_for_who_asks_for_it(asked: dict[str, Any]) -> None:
    outputs = (
        Tensor("image", "BYTES", (1,), [FILE], {"content_type": "image/png"}),
        Tensor("text", "BYTES", (1,), [b"a red circle"]),
    )
    message = encode_proto_response(V2Response("m", "1", outputs), proto(**asked))
    found = InferResponse.from_grpc(message)
    image, text = (tensor.as_numpy().reshape(-1)[0] for tensor in found.outputs)
    assert text == b"a red circle"
    if not asked:
        assert image == FILE
        return
    assert b64decode(image) == FILE
    assert message.outputs[0].parameters["encoding"].string_param == "base64"
    # as KServe's transformer hands it on to a JSON client
    body, _ = found.to_rest()
    (told,) = [each["data"] for each in body["outputs"] if each["name"] == "image"]
    assert b64decode(told[0]) == FILE


def test_raw_files_over_grpc_are_the_default_and_may_be_asked_for() -> None:
    assert proto().binary_default
    assert proto(parameters={"binary_data_output": True}.items()).binary_default
    with pytest.raises(InvalidRequest, match="binary_data_output must be true or false"):
        proto(parameters={"binary_data_output": "no"}.items())


def test_a_null_row_of_an_optional_text_is_none_and_of_another_one_an_error() -> None:
    raw = v2_body(
        {"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
        {"name": "negative_prompt", "datatype": "BYTES", "shape": [2], "data": ["x", None]},
    )
    inputs = InputTensors(decode_json_request(raw, {}, "m").inputs)
    assert inputs.read_optional_text("negative_prompt") == ["x", None]
    assert inputs.read_optional_text("absent") is None
    with pytest.raises(InvalidRequest, match="row 1: input 'negative_prompt' holds null"):
        inputs.read_text("negative_prompt")
