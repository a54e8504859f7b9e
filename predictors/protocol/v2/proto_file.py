"""The gRPC protocol of the inference service as a file descriptor and as the text of a `.proto`.

Both are written from KServe's messages, which the server speaks, and what it takes of Triton's
beside them: `ModelStreamInfer`, and numbers as parameters that KServe's messages lack.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

from predictors.protocol.kserve_sdk import pb
from predictors.protocol.v2.stream_responses import ERROR, METHOD, RESPONSE

_Field = FieldDescriptorProto
_EXTRA_PARAMETERS = (
    ("double_param", 4, _Field.TYPE_DOUBLE),
    ("uint64_param", 5, _Field.TYPE_UINT64),
)
"""Fields of Triton's `InferParameter` that the server reads and KServe's lacks."""
_HEAD = "// The Open Inference Protocol (KServe V2) as this server speaks it."


@cache
def inference_file() -> FileDescriptorProto:
    """The caller must not change it."""
    found = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(found)
    parameter = next(each for each in found.message_type if each.name == "InferParameter")
    for name, number, kind in _EXTRA_PARAMETERS:
        parameter.field.add(
            name=name, number=number, type=kind, label=_Field.LABEL_OPTIONAL, oneof_index=0
        )
    own = f".{found.package}."
    streamed = found.message_type.add(name="ModelStreamInferResponse")
    streamed.field.add(
        name="error_message", number=ERROR, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL
    )
    streamed.field.add(
        name="infer_response",
        number=RESPONSE,
        type=_Field.TYPE_MESSAGE,
        type_name=f"{own}ModelInferResponse",
        label=_Field.LABEL_OPTIONAL,
    )
    found.service[0].method.add(
        name=METHOD,
        input_type=f"{own}ModelInferRequest",
        output_type=f"{own}ModelStreamInferResponse",
        client_streaming=True,
        server_streaming=True,
    )
    return found


@cache
def proto_text() -> str:
    """The file as `protoc` reads it."""
    file = inference_file()
    lines = [_HEAD, f'syntax = "{file.syntax}";', "", f"package {file.package};"]
    for service in file.service:
        lines += ["", *_service_lines(service, file.package)]
    for message in file.message_type:
        lines += ["", *_message_lines(message, file.package)]
    return "\n".join(lines) + "\n"


def _service_lines(service: ServiceDescriptorProto, package: str) -> Iterator[str]:
    yield f"service {service.name} {{"
    for method in service.method:
        taken, given = (
            ("stream " if streams else "") + kind.removeprefix(f".{package}.")
            for kind, streams in (
                (method.input_type, method.client_streaming),
                (method.output_type, method.server_streaming),
            )
        )
        yield f"  rpc {method.name}({taken}) returns ({given}) {{}}"
    yield "}"


def _message_lines(message: DescriptorProto, package: str) -> Iterator[str]:
    """A message with those inside it. Maps are written as maps."""
    maps = {each.name: each for each in message.nested_type if each.options.map_entry}
    yield f"message {message.name} {{"
    for nested in message.nested_type:
        if nested.name not in maps:
            yield from (f"  {line}" for line in _message_lines(nested, package))
    choices: dict[int, list[str]] = {}
    for field in message.field:
        entry = maps.get(field.type_name.rpartition(".")[2])
        if entry is not None:
            key, value = (_kind(each, package) for each in entry.field)
            yield f"  map<{key}, {value}> {field.name} = {field.number};"
        elif field.HasField("oneof_index"):
            line = f"    {_kind(field, package)} {field.name} = {field.number};"
            choices.setdefault(field.oneof_index, []).append(line)
        else:
            many = "repeated " if field.label == _Field.LABEL_REPEATED else ""
            yield f"  {many}{_kind(field, package)} {field.name} = {field.number};"
    for index, lines in choices.items():
        yield f"  oneof {message.oneof_decl[index].name} {{"
        yield from lines
        yield "  }"
    yield "}"


def _kind(field: FieldDescriptorProto, package: str) -> str:
    name: str = field.type_name.removeprefix(f".{package}.")
    return name or str(_Field.Type.Name(field.type)).removeprefix("TYPE_").lower()
