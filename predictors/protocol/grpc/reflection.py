"""gRPC server reflection, of both versions: clients such as grpcurl learn the services by it.

It answers from files made at the start, and reads a message's size before the message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2 as messages

from predictors.protocol.grpc.arriving import StreamMessages
from predictors.protocol.grpc.methods import (
    RawMessage,
    parse_small,
    start_stream,
)
from predictors.protocol.grpc.reading import MessageReader, Write, add_service

OLDER, NEWER = "grpc.reflection.v1alpha", "grpc.reflection.v1"
"""Packages of the service. Their messages are the same to the byte."""
_MISSING = grpc.StatusCode.NOT_FOUND.value[0]
_REFUSED = grpc.StatusCode.INVALID_ARGUMENT.value[0]


def add_reflection(
    server: grpc.aio.Server, reader: MessageReader, inference: FileDescriptorProto
) -> None:
    """Serve reflection of the inference service, health, and reflection itself."""
    files = [inference, _file_of(health_pb2), _file_of(messages), _newer(_file_of(messages))]
    method = ReflectionMethod(files)
    for package in (OLDER, NEWER):
        duplex = {"ServerReflectionInfo": method.server_reflection_info}
        add_service(server, reader, f"{package}.ServerReflection", duplex=duplex)


class ReflectionMethod:
    """The method of the service over `files`, none of which imports another."""

    def __init__(self, files: Sequence[FileDescriptorProto]) -> None:
        self._by_name = {file.name: file.SerializeToString() for file in files}
        self._by_symbol = {
            symbol: self._by_name[file.name] for file in files for symbol in _symbols(file)
        }
        self._services = [f"{file.package}.{each.name}" for file in files for each in file.service]

    async def server_reflection_info(
        self, requests: StreamMessages, context: Any, write: Write
    ) -> None:
        """One response per request, in order."""
        start_stream(context)
        async for message in requests:
            await write(self._answer(message).SerializeToString())
            requests.answered()

    def _answer(self, message: RawMessage) -> Any:
        request = parse_small(messages.ServerReflectionRequest, message)
        found = messages.ServerReflectionResponse(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            for name in self._services:
                found.list_services_response.service.add(name=name)
        elif kind in ("file_by_filename", "file_containing_symbol"):
            table: Mapping[str, bytes] = (
                self._by_name if kind == "file_by_filename" else self._by_symbol
            )
            file = table.get(getattr(request, kind))
            if file is None:
                _set_error(found, _MISSING, "there is no such file or symbol")
            else:
                found.file_descriptor_response.file_descriptor_proto.append(file)
        elif kind == "all_extension_numbers_of_type":
            name = request.all_extension_numbers_of_type
            if name in self._by_symbol:
                found.all_extension_numbers_response.base_type_name = name  # none has extensions
            else:
                _set_error(found, _MISSING, "there is no such message")
        elif kind == "file_containing_extension":
            _set_error(found, _MISSING, "no message here has extensions")
        else:
            _set_error(found, _REFUSED, "the request asks for nothing")
        return found


def _set_error(response: Any, code: int, message: str) -> None:
    response.error_response.error_code = code
    response.error_response.error_message = message


def _file_of(module: Any) -> FileDescriptorProto:
    found = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(found)
    return found


def _newer(older: FileDescriptorProto) -> FileDescriptorProto:
    """The file of `NEWER`, which differs in the package's name alone."""
    found = FileDescriptorProto()
    found.CopyFrom(older)
    found.name, found.package = older.name.replace("v1alpha", "v1"), NEWER
    for message in found.message_type:
        for field in (each for each in message.field if each.type_name):
            field.type_name = field.type_name.replace(f".{OLDER}.", f".{NEWER}.")
    for method in found.service[0].method:
        method.input_type = method.input_type.replace(f".{OLDER}.", f".{NEWER}.")
        method.output_type = method.output_type.replace(f".{OLDER}.", f".{NEWER}.")
    return found


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Full names of the services, methods, messages, fields and enums of a file."""
    for service in file.service:
        yield (name := f"{file.package}.{service.name}")
        yield from (f"{name}.{method.name}" for method in service.method)
    for message in file.message_type:
        yield from _message_symbols(message, file.package)
    for enum in file.enum_type:
        yield f"{file.package}.{enum.name}"


def _message_symbols(message: DescriptorProto, parent: str) -> Iterator[str]:
    yield (name := f"{parent}.{message.name}")
    yield from (f"{name}.{field.name}" for field in message.field)
    yield from (f"{name}.{enum.name}" for enum in message.enum_type)
    for nested in message.nested_type:
        yield from _message_symbols(nested, name)
