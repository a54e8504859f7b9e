"""One request of the traffic, written out: what is sent, and the part of the answer that must be
the same whenever it is asked.

HTTP requests are bytes behind a head; gRPC requests are one serialised message.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from predictors.protocol.kserve_sdk import pb

INFER = "/inference.GRPCInferenceService/ModelInfer"
JSON = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True)
class Ask:
    kind: str
    room: str
    protocol: str
    """`rest`, `openai` or `grpc`."""
    path: str
    parts: tuple[bytes, ...]
    """The body in pieces, so that a picture is not copied for each request."""
    headers: tuple[tuple[str, str], ...]
    is_stream: bool
    work: float
    """Rough cost: of a picture pixels x steps x rows / 1e6, of a chat tokens / 100."""
    key: str = ""
    """Name in the table of solo answers; empty if the answer is not compared."""

    def head(self, more: Sequence[tuple[str, str]]) -> bytes:
        lines = [f"POST {self.path} HTTP/1.1", "host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in (*self.headers, *more)]
        lines.append(f"content-length: {sum(map(len, self.parts))}\r\n\r\n")
        return "\r\n".join(lines).encode()


# -- V2 ------------------------------------------------------------------------------------------
def v2_json(kind: str, room: str, inputs: Mapping[str, Sequence[str]], work: float,
            **parameters: Any) -> Ask:  # fmt: skip
    """An infer request as JSON; pictures are base64 already."""
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [len(rows)], "data": rows}
        for name, rows in inputs.items()
    ]
    body = orjson.dumps({"inputs": tensors, "parameters": parameters})
    path = f"/v2/models/{room}/infer"
    return Ask(kind, room, "rest", path, (body,), JSON, is_stream=False, work=work)


def v2_binary(kind: str, room: str, inputs: Mapping[str, Sequence[bytes]], work: float,
              **parameters: Any) -> Ask:  # fmt: skip
    """The same with the binary extension both ways."""
    raw = {name: b"".join(map(_element, rows)) for name, rows in inputs.items()}
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [len(rows)],
         "parameters": {"binary_data_size": len(raw[name])}}
        for name, rows in inputs.items()
    ]  # fmt: skip
    parameters = {**parameters, "binary_data_output": True}
    head = orjson.dumps({"inputs": tensors, "parameters": parameters})
    headers = (
        ("content-type", "application/octet-stream"),
        ("inference-header-content-length", str(len(head))),
    )
    parts, path = (head, *raw.values()), f"/v2/models/{room}/infer"
    return Ask(kind, room, "rest", path, parts, headers, is_stream=False, work=work)


def _element(raw: bytes) -> bytes:
    return struct.pack("<I", len(raw)) + raw


def v2_grpc(kind: str, room: str, inputs: Mapping[str, Sequence[bytes]], work: float,
            **parameters: Any) -> Ask:  # fmt: skip
    message = pb.ModelInferRequest(model_name=room)
    for name, rows in inputs.items():
        tensor = message.inputs.add(name=name, datatype="BYTES", shape=[len(rows)])
        tensor.contents.bytes_contents.extend(rows)
    fields = {bool: "bool_param", int: "int64_param", str: "string_param"}
    for name, value in parameters.items():
        # KServe's proto has no double: the server reads numbers from texts
        value = str(value) if isinstance(value, float) else value
        setattr(message.parameters[name], fields[type(value)], value)
    parts = (message.SerializeToString(deterministic=True),)
    return Ask(kind, room, "grpc", INFER, parts, (), is_stream=False, work=work)


# -- OpenAI --------------------------------------------------------------------------------------
def chat(kind: str, parts: Sequence[bytes], work: float, *, is_stream: bool = False) -> Ask:
    path = "/v1/chat/completions"
    return Ask(kind, "qwen-vl", "openai", path, tuple(parts), JSON, is_stream, work)


def images(kind: str, body: Mapping[str, Any], work: float) -> Ask:
    body_bytes = orjson.dumps({"model": "flux", **body})
    path = "/v1/images/generations"
    return Ask(kind, "flux", "openai", path, (body_bytes,), JSON, is_stream=False, work=work)


# -- answers -------------------------------------------------------------------------------------
def digest(ask: Ask, body: bytes, head: bytes = b"") -> str:
    """Hash of the pictures or texts of an answer, without ids and times."""
    return hashlib.sha256(repr(answer_of(ask, body, head)).encode()).hexdigest()[:16]


def answer_of(ask: Ask, body: bytes, head: bytes) -> Any:
    if ask.protocol == "grpc":
        reply = pb.ModelInferResponse.FromString(body)
        names = [tensor.name for tensor in reply.outputs]
        return [(n, raw) for n, raw in zip(names, reply.raw_output_contents, strict=True)]
    if ask.is_stream:
        return _streamed(body)
    if ask.protocol == "rest":
        split = _binary_split(head)
        reply = orjson.loads(body[:split] if split else body)
        outputs = [(o["name"], o.get("data")) for o in reply["outputs"]]
        return outputs, body[split:] if split else b""
    reply = orjson.loads(body)
    if ask.room == "flux":
        return [picture["b64_json"] for picture in reply["data"]]
    return sorted((c["index"], c["message"]["content"], c["finish_reason"])
                  for c in reply["choices"])  # fmt: skip


def _binary_split(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"inference-header-content-length":
            return int(value)
    return 0


def _streamed(body: bytes) -> list[tuple[int, str, str | None]]:
    """Choices in the form that an answer in one piece has."""
    texts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    for event in body.split(b"\n\n"):
        if not event.startswith(b"data: {"):
            continue
        for choice in orjson.loads(event[6:]).get("choices", ()):
            index = choice["index"]
            texts[index] = texts.get(index, "") + (choice["delta"].get("content") or "")
            reasons[index] = choice.get("finish_reason") or reasons.get(index)
    return [(index, text, reasons[index]) for index, text in sorted(texts.items())]
