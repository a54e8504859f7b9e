"""One V2 request over gRPC. The messages are declared here, as the Open Inference Protocol has
them: KServe's own module would import its server.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from predictors.cli.endpoint import plain
from predictors.cli.outcomes import FAILED, NO_SERVER, VerbFailed

PACKAGE = "inference"
STRING, BYTES, INT64, BOOL = 9, 12, 3, 8  # types of fields, as descriptor.proto numbers them
ONE, MANY, MESSAGE = 1, 3, 11
FIELDS: Mapping[str, tuple[tuple[str, int, int, int, str], ...]] = {
    "InferParameter": (
        ("bool_param", 1, ONE, BOOL, ""),
        ("int64_param", 2, ONE, INT64, ""),
        ("string_param", 3, ONE, STRING, ""),
    ),
    "Tensor": (
        ("name", 1, ONE, STRING, ""),
        ("datatype", 2, ONE, STRING, ""),
        ("shape", 3, MANY, INT64, ""),
    ),
    "Parameter": (
        ("key", 1, ONE, STRING, ""),
        ("value", 2, ONE, MESSAGE, "InferParameter"),
    ),
    "ModelInferRequest": (
        ("model_name", 1, ONE, STRING, ""),
        ("parameters", 4, MANY, MESSAGE, "Parameter"),
        ("inputs", 5, MANY, MESSAGE, "Tensor"),
        ("raw_input_contents", 7, MANY, BYTES, ""),
    ),
    "ModelInferResponse": (
        ("model_name", 1, ONE, STRING, ""),
        ("outputs", 5, MANY, MESSAGE, "Tensor"),
        ("raw_output_contents", 6, MANY, BYTES, ""),
    ),
}
"""Name, number, label, type and message of each field that is used; a map travels as a list of
entries."""
METHOD = f"/{PACKAGE}.GRPCInferenceService/ModelInfer"


@cache
def message_class(name: str) -> Any:
    """The class of one message of `FIELDS`."""
    file = descriptor_pb2.FileDescriptorProto(name="smoke.proto", package=PACKAGE, syntax="proto3")
    for message, fields in FIELDS.items():
        made = file.message_type.add(name=message)
        for field, number, label, kind, of in fields:
            one = made.field.add(name=field, number=number, label=label, type=kind)
            if of:
                one.type_name = f".{PACKAGE}.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def grpc_infer(
    target: str, model: str, row: Mapping[str, bytes], parameters: Mapping[str, int],
    *, key: str, timeout_s: float, is_secure: bool,
) -> list[str]:  # fmt: skip
    """The names of the outputs of one row of BYTES inputs. Raises `VerbFailed`."""
    request = message_class("ModelInferRequest")(model_name=model)
    for name, value in row.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        request.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    for name, number in parameters.items():
        request.parameters.add(key=name).value.int64_param = number
    unbounded = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    secrets = grpc.ssl_channel_credentials() if is_secure else None
    channel = (
        grpc.secure_channel(target, secrets, unbounded)
        if secrets is not None
        else grpc.insecure_channel(target, unbounded)
    )
    metadata = [("authorization", f"Bearer {key}")] if key else []
    with channel:
        call = channel.unary_unary(METHOD, lambda sent: sent.SerializeToString(), bytes)
        try:
            answer = call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            code, words = error.code().name, plain(str(error.details()))[:300]
            if code == "UNAVAILABLE" and "connect" in words.lower():
                raise VerbFailed(f"nothing speaks gRPC at {target}", NO_SERVER) from error
            raise VerbFailed(f"gRPC answers {code}: {words}", FAILED) from error
    found = message_class("ModelInferResponse").FromString(answer)
    return [output.name for output in found.outputs]
