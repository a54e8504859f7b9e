"""The text of the protocol is the protocol that the server speaks."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from predictors.protocol.grpc.refused_calls import RefusedCalls
from predictors.protocol.kserve_sdk import pb
from predictors.protocol.registry import Registry
from predictors.protocol.v2.grpc import InferenceMethods
from predictors.protocol.v2.proto_file import inference_file, proto_text
from predictors.protocol.v2.stream_responses import METHOD
from predictors.settings import Settings


def compiled(text: str, folder: Path) -> FileDescriptorProto:
    """The descriptor that protoc makes of `text`."""
    name = inference_file().name
    (folder / name).write_text(text)
    out = folder / "set.bin"
    known = importlib.resources.files("grpc_tools") / "_proto"
    command = ["protoc", f"-I{folder}", f"-I{known}", f"--descriptor_set_out={out}", name]
    assert protoc.main(command) == 0
    (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    return file


def without_json_names(file: FileDescriptorProto) -> FileDescriptorProto:
    found = FileDescriptorProto.FromString(file.SerializeToString())
    messages = list(found.message_type)
    while messages:
        message = messages.pop()
        messages += message.nested_type
        for field in message.field:
            field.ClearField("json_name")
        message.nested_type.sort(key=lambda each: each.name)
    for service in found.service:
        for method in service.method:
            method.ClearField("options")
    return found


def test_protoc_reads_the_text_as_the_descriptor(tmp_path: Path) -> None:
    read = compiled(proto_text(), tmp_path)
    assert without_json_names(read) == without_json_names(inference_file())


def test_a_changed_text_is_not_the_descriptor(tmp_path: Path) -> None:
    read = compiled(proto_text().replace("bool live = 1", "bool live = 2"), tmp_path)
    assert without_json_names(read) != without_json_names(inference_file())


def test_it_has_each_method_that_is_served_and_all_of_kserves_messages() -> None:
    registry = Registry([], Settings())
    cheap = InferenceMethods(registry, RefusedCalls(registry)).cheap()
    served = {*cheap, "ModelInfer", METHOD}
    (service,) = inference_file().service
    assert {method.name for method in service.method} == served
    ours = {message.name for message in inference_file().message_type}
    assert set(pb.DESCRIPTOR.message_types_by_name) | {"ModelStreamInferResponse"} == ours
