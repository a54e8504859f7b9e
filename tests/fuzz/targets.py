"""Readers of callers' bytes, each with the properties that hold for any input.

A check returns True if the bytes are accepted and their meaning is right, False if they are refused
with a documented error. It raises `Fault` or any other exception for a finding. Names are those of
the files in `corpus/`.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson

from predictors.errors import InvalidRequest, ServingError
from predictors.protocol.anthropic.messages_body import decode_messages_body
from predictors.protocol.http.bodies import MAX_DEPTH, parse_json
from predictors.protocol.http.inflating import PIECE_BYTES, Inflation
from predictors.protocol.http.multipart import read_form
from predictors.protocol.images.decode import decode_mask, decode_pixels
from predictors.protocol.images.memory import decoding_bytes
from predictors.protocol.images.urls import read_base64, read_data_url
from predictors.protocol.openai.chat_body import MAX_N, decode_chat_body
from predictors.protocol.openai.completions_body import MAX_PROMPTS, decode_completions_body
from predictors.protocol.openai.edits_body import decode_edits_body
from predictors.protocol.openai.images_body import decode_images_body
from predictors.protocol.openai.responses_body import decode_responses_body
from predictors.protocol.openai.tokens_body import decode_tokenize_body
from predictors.protocol.openai.tool_fields import FunctionTool, OfferedTools
from predictors.protocol.v2.tensors import MAX_ELEMENTS, pack_tensor
from predictors.protocol.v2.values import Tensor, V2Request
from predictors.protocol.v2.wire_json import HEADER, decode_json_request
from predictors.protocol.v2.wire_proto import decode_proto_request, model_of
from predictors.settings import ImageLimits
from tests.fuzz.http_agreement import beside, pieces_of, with_paths
from tests.fuzz.http_readers import read_h11, read_ours

LIMITS = ImageLimits(max_bytes=200_000, max_pixels=250_000, max_side=2000, max_aspect=50.0)
INFLATED_LIMIT = 2**20
TOKENIZER = Path(__file__).parents[2] / "checkpoints/shapes-qwen-vl/tokenizer.json"
SPLIT = b"\n--\n"  # between the header and the body of one input of `v2`
FORM_TYPE = "multipart/form-data; boundary=x"
_LEAKS = re.compile(
    r"(?<![0-9])0x[0-9a-f]{8,}|/(?:usr|work|tmp|root|home|lib)\b|Traceback|site-packages|\bPIL\b"
)
_BIG_NUMBER = re.compile(rb"[0-9]{16}")


class Fault(AssertionError):
    """A property that does not hold for an input."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise Fault(message)


def check_error(error: ServingError) -> None:
    """A refusal has a message that gives nothing of the machine away."""
    expect(isinstance(error, InvalidRequest), f"{type(error).__name__} for what a caller sent")
    expect(error.message, "an error without a message")
    expect(not _LEAKS.search(error.message), f"the error gives away: {error.message!r}")
    expect(len(error.message) < 2000, f"an error of {len(error.message)} characters")


# -- HTTP -----------------------------------------------------------------------------------------
def check_head(raw: bytes) -> bool:
    """Heads and bodies: in any pieces alike, and as h11 reads them. `http_agreement` adds nginx."""
    ours = read_ours([raw])
    expect(read_ours(pieces_of(raw)) == ours, "read otherwise in pieces")
    found = beside(ours, with_paths(read_h11(raw)), "h11")
    expect(not found, "; ".join(found))
    return bool(ours.messages)


def check_inflating(raw: bytes) -> bool:
    """A compressed body. The first byte chooses the codings."""
    codings = [("gzip",), ("deflate",), ("gzip", "deflate"), ("gzip",) * 4][
        raw[0] % 4 if raw else 0
    ]
    data = raw[1:]
    inflation, steps = Inflation(data, codings, INFLATED_LIMIT), 0
    try:
        while not inflation.is_done:
            inflation.advance(1)
            steps += 1
    except InvalidRequest as error:
        check_error(error)
        return False
    finally:
        # each step consumes input or gives output; a member of gzip has 18 bytes at least
        bound = len(codings) * (8 + len(data) + inflation.size // PIECE_BYTES)
        expect(steps <= bound, f"{steps} steps for {len(data)} bytes")
    body = inflation.body(2 * INFLATED_LIMIT)
    expect(isinstance(body, bytes) and len(body) == inflation.size, "another size")
    if len(codings) == 1:
        expect(body == _inflated(data, codings[0]), "zlib reads another body")
    return True


def _inflated(data: bytes, coding: str) -> bytes:
    if coding == "gzip":
        return gzip.decompress(data)
    try:
        return zlib.decompress(data)
    except zlib.error:
        return zlib.decompress(data, -zlib.MAX_WBITS)


# -- JSON -----------------------------------------------------------------------------------------
def check_json(raw: bytes) -> bool:
    try:
        value = parse_json(raw)
    except InvalidRequest as error:
        check_error(error)
        return False
    expect(_depth(value) <= MAX_DEPTH, "nested too deeply")
    json.dumps(value, allow_nan=False).encode()
    expect(json.dumps(value, ensure_ascii=False).encode("utf-8") is not None, "no UTF-8")
    bare = raw.removeprefix(b"\xef\xbb\xbf")
    expect(json.loads(bare.decode()) == value, "json reads otherwise")
    if not _BIG_NUMBER.search(bare):  # orjson has no integers beyond 64 bits
        expect(orjson.loads(bare) == value, "orjson reads otherwise")
    return True


def _depth(value: Any) -> int:
    below = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, below), default=0)


def check_chat(raw: bytes) -> bool:
    return _check_body(decode_chat_body, raw)


def check_responses(raw: bytes) -> bool:
    return _check_body(decode_responses_body, raw)


def check_messages(raw: bytes) -> bool:
    return _check_body(decode_messages_body, raw)


def check_completions(raw: bytes) -> bool:
    return _check_body(decode_completions_body, raw, most=MAX_N * MAX_PROMPTS)


def check_tokenize(raw: bytes) -> bool:
    """Unlike the others it needs no model."""
    found = _decoded(decode_tokenize_body, raw)
    if found is None:
        return False
    expect((found.body.prompt is None) != (found.body.chat is None), "a prompt or a chat")
    return True


def check_images_body(raw: bytes) -> bool:
    return _check_body(decode_images_body, raw)


def _decoded(decode: Callable[[bytes], Any], raw: bytes) -> Any:
    """The decoded body, or None where it was refused."""
    try:
        found = decode(raw)
    except InvalidRequest as error:
        check_error(error)
        return None
    if found.refusal is not None:
        check_error(found.refusal)
        return None
    return found


def _check_body(decode: Callable[[bytes], Any], raw: bytes, most: int = 16) -> bool:
    found = _decoded(decode, raw)
    if found is None:
        return False
    body = json.loads(raw.removeprefix(b"\xef\xbb\xbf"))
    expect(found.body.model == body["model"], "another model")
    expect(found.body.n in range(1, most + 1), "n")
    return True


def check_form(raw: bytes) -> bool:
    """A form with the boundary of `FORM_TYPE`: parts of its own bytes, and the body of an edit."""
    try:
        parts = read_form(raw, FORM_TYPE)
        found = decode_edits_body(raw, FORM_TYPE)
    except InvalidRequest as error:
        check_error(error)
        return False
    expect(sum(len(part.data) for part in parts) <= len(raw), "more data than were sent")
    expect(all(part.data in raw for part in parts), "data that were not sent")
    if found.refusal is not None:
        check_error(found.refusal)
        return False
    sent = {part.name.partition("[")[0] for part in parts}
    expect({"model", "prompt", "image"} <= sent, "a field that was not sent")
    expect(found.body is not None and found.body.n in range(1, 17), "n")
    return True


# -- V2 -------------------------------------------------------------------------------------------
def check_v2(raw: bytes) -> bool:
    """A V2 request over REST: the header's value, `SPLIT`, and the body with its raw tensors."""
    length, found, body = raw.partition(SPLIT)
    headers = {HEADER: length.decode("latin-1")} if found and length else {}
    body = body if found else raw
    try:
        request = decode_json_request(body, headers, "m", files={"image"})
    except InvalidRequest as error:
        check_error(error)
        return False
    _check_request(request)
    again = decode_json_request(*_in_binary(request), "m")
    expect(
        [pack_tensor(t) for t in again.inputs] == [pack_tensor(t) for t in _present(request)],
        "not the same after a round trip",
    )
    return True


def _check_request(request: V2Request) -> None:
    total = 0
    for tensor in request.inputs:
        expect(len(tensor.data) == math.prod(tensor.shape), "elements do not fit the shape")
        total += len(tensor.data)
        if tensor.datatype == "BYTES":
            expect(all(isinstance(x, bytes | None) for x in tensor.data), "BYTES that are none")
        else:
            pack_tensor(tensor)  # every value is one of its datatype
    expect(total <= MAX_ELEMENTS, "too many elements")
    request.id.encode()
    json.dumps(dict(request.parameters), allow_nan=False)


def _present(request: V2Request) -> list[Tensor]:
    return [tensor for tensor in request.inputs if None not in tensor.data]


def _in_binary(request: V2Request) -> tuple[bytes, dict[str, str]]:
    """The request with all of its inputs as raw bytes."""
    packed = [pack_tensor(tensor) for tensor in _present(request)]
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": len(data)},
        }
        for tensor, data in zip(_present(request), packed, strict=True)
    ] or [{"name": "none", "datatype": "BYTES", "shape": [0], "data": []}]
    head = json.dumps({"inputs": inputs}).encode()
    return head + b"".join(packed), {HEADER: str(len(head))}


_CONTENTS = {
    "BOOL": "bool", "INT8": "int", "INT16": "int", "INT32": "int", "INT64": "int64",
    "UINT8": "uint", "UINT16": "uint", "UINT32": "uint", "UINT64": "uint64", "FP32": "fp32",
    "FP64": "fp64", "BYTES": "bytes",
}  # fmt: skip


def check_proto(raw: bytes) -> bool:
    """A `ModelInferRequest`: accepted with protobuf's meaning, or refused."""
    from predictors.protocol.kserve_sdk import pb  # which loads gRPC

    try:
        ours = decode_proto_request(raw)
        model = model_of(raw)
    except InvalidRequest as error:
        check_error(error)
        return False
    theirs = pb.ModelInferRequest.FromString(raw)
    expect(model == (theirs.model_name, theirs.model_version), "another model")
    expect((ours.model, ours.version, ours.id) == (*model, theirs.id), "another id")
    _check_request(ours)
    _check_parameters(ours.parameters, theirs.parameters)
    expect(len(ours.inputs) == len(theirs.inputs), "another number of inputs")
    for i, (a, b) in enumerate(zip(ours.inputs, theirs.inputs, strict=True)):
        expect((a.name, a.datatype, a.shape) == (b.name, b.datatype, tuple(b.shape)), "input")
        _check_parameters(a.parameters, b.parameters)
        if theirs.raw_input_contents:
            expect(pack_tensor(a) == theirs.raw_input_contents[i], "other raw contents")
        else:
            values = list(getattr(b.contents, _CONTENTS[a.datatype] + "_contents"))
            expect(list(a.data) == values, "other contents")
    expect(list(ours.outputs) == [output.name for output in theirs.outputs], "other outputs")
    return True


def _check_parameters(ours: Any, theirs: Any) -> None:
    for name, value in ours.items():
        kind = theirs[name].WhichOneof("parameter_choice")
        # Triton's double and uint64 are unknown to KServe's message
        if kind is not None:
            real = getattr(theirs[name], kind)
            expect(real == value and type(real) is type(value), f"parameter {name!r}")
    taken = {"content_type", "binary_data_output"}
    expect(set(theirs) - set(ours) <= taken, "a parameter is missing")


# -- pictures -------------------------------------------------------------------------------------
def check_image(raw: bytes) -> bool:
    estimate = decoding_bytes(raw, LIMITS.max_pixels)
    try:
        pixels = decode_pixels(raw, LIMITS, in_worker=True)
    except InvalidRequest as error:
        check_error(error)
        return False
    levels = decode_mask(raw, LIMITS, in_worker=True)
    expect((levels.width, levels.height) == (pixels.width, pixels.height), "a mask of another size")
    expect(levels.memory.size == levels.width * levels.height, "levels do not fit the size")
    levels.memory.close()
    with_memory = pixels.memory.size
    pixels.memory.close()
    expect(with_memory == 3 * pixels.width * pixels.height, "pixels do not fit the size")
    expect(pixels.width * pixels.height <= LIMITS.max_pixels, "more pixels than the limit")
    expect(estimate >= with_memory, f"estimated at {estimate} bytes, took {with_memory}")
    return True


def check_png(raw: bytes) -> bool:
    """`check_image` of a PNG whose checksums are made right first, so that changes pass them."""
    return check_image(with_checksums(raw))


def with_checksums(raw: bytes) -> bytes:
    fixed, position = bytearray(raw), 8
    while position + 12 <= len(fixed):
        end = position + 8 + int.from_bytes(fixed[position : position + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[position + 4 : end]))
        position = end + 4
    return bytes(fixed)


def check_data_url(raw: bytes) -> bool:
    text = raw.decode("utf-8", "replace")
    is_read = False
    for read in (lambda: read_data_url(text), lambda: read_base64(raw, param="image", row=0)):
        try:
            file = read()
        except InvalidRequest as error:
            check_error(error)
            continue
        expect(len(file) <= len(text.encode()), "a file larger than its text")
        is_read = True
    return is_read


# -- tools ----------------------------------------------------------------------------------------
def check_tools(raw: bytes) -> bool:
    """A chat body with tools, as far as its compiled grammar."""
    from predictors.chat.tools.call_grammar import tools_format

    if not check_chat(raw):
        return False
    body = decode_chat_body(raw).accepted()
    if body.tools is None:
        return False
    try:
        made = tools_format(body.tools, body.answer_format, tags_are_tokens=True)
        matcher = _compiler().compile(made).matcher()
    except InvalidRequest as error:
        check_error(error)
        return False
    expect(not matcher.is_over, "an answer that is over before it begins")
    return True


@functools.cache
def _compiler() -> Any:
    from tokenizers import Tokenizer

    from predictors.chat.grammars.compiler import GrammarCompiler

    return GrammarCompiler(Tokenizer.from_file(str(TOKENIZER)), 832, (800, 802))


def check_calls(raw: bytes) -> bool:
    """An answer: its parts are the same however it comes, and no word of it is lost."""
    text = raw.decode("utf-8", "replace")
    said, calls = read = _calls((text,))
    for size in (1, 2, 7, 64):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        expect(_calls(pieces) == read, "read otherwise in pieces")
    expect(calls or said == text, "an answer without a call is not its text")
    return bool(calls)


def _calls(texts: Iterable[str]) -> tuple[str, list[list[str]]]:
    """The text of an answer that comes in these, and its calls: names and arguments."""
    from predictors.chat.pieces import PieceReader, TextPiece
    from predictors.chat.request import ChatDelta, ChatRequest, Sampling

    offered = OfferedTools((FunctionTool("count"), FunctionTool("f")))
    reader = PieceReader(ChatRequest((), Sampling(), seed=0, tools=offered))
    said, calls = "", list[list[str]]()
    deltas = [*(ChatDelta((), 1, 1, text) for text in texts), ChatDelta((), 1, 1, "", "stop")]
    for delta in deltas:
        for piece in reader.read([delta]):
            if isinstance(piece, TextPiece):
                said += piece.text
                continue
            if piece.name is not None:
                calls.append([piece.name, ""])
            calls[piece.index][1] += piece.arguments
    return said, calls


TARGETS: dict[str, Callable[[bytes], bool]] = {
    "head": check_head,
    "inflating": check_inflating,
    "json": check_json,
    "chat": check_chat,
    "responses": check_responses,
    "messages": check_messages,
    "completions": check_completions,
    "tokenize": check_tokenize,
    "images_body": check_images_body,
    "form": check_form,
    "v2": check_v2,
    "proto": check_proto,
    "image": check_image,
    "png": check_png,
    "data_url": check_data_url,
    "tools": check_tools,
    "calls": check_calls,
}
