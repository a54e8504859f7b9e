"""The messages of `POST /v1/messages` and their blocks, read as messages of a chat.

One message of Anthropic's may be several of a chat: each result of a tool is one. Worker processes
import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.anthropic.tool_blocks import CACHE_MARK, TOOL_USE, read_call
from predictors.protocol.images.urls import read_base64, read_data_url
from predictors.protocol.openai.fields import (
    MAX_NAME,
    DescribedRule,
    described,
    dropped,
    object_schema,
    one_of,
    only_values,
    read_fields,
    require,
    said,
    text,
    wrong,
)
from predictors.protocol.openai.messages import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TEXT,
    BodyMessage,
    PicturePart,
    text_rule,
)
from predictors.protocol.openai.pixel_fields import PIXEL_FIELDS, RequestedPixels
from predictors.protocol.openai.tool_calls import MAX_CALLS, OpenCalls, ToolCall, call_id_rule

MAX_BLOCKS = MAX_PARTS  # of one message
THINKING = ("thinking", "redacted_thinking")
"""Blocks of another model's thoughts, which are left out: no model here reads them."""
_ONLY_EMPTY = "only an empty list is taken back"

# -- texts and pictures ----------------------------------------------------------------------------
TEXT_BLOCK: dict[str, DescribedRule] = {
    "type": one_of("text"),
    "text": text(at_most=MAX_TEXT),
    "cache_control": CACHE_MARK,
    "citations": only_values([], why=_ONLY_EMPTY),
}


def _text(name: str, block: Any) -> str:
    read = read_fields(block, TEXT_BLOCK, where=name)
    require(read, "text", where=name)
    found: str = read["text"]
    return found


SOURCE: dict[str, DescribedRule] = {
    "type": said("`url` is for a data URL: this server fetches none.", one_of("base64", "url")),
    "media_type": dropped(str, why="a file's format is read from its bytes"),
    "data": text(),
    "url": text(),
}


@described(object_schema(SOURCE, "type"))
def _source(name: str, value: Any) -> bytes:
    """The bytes of an image file."""
    if isinstance(value, dict) and value.get("type") == "file":
        problem = "files are not kept; send the picture itself as base64"
        raise InvalidRequest(f"{name}.type 'file' is not supported: {problem}", param=name)
    read = read_fields(value, SOURCE, where=name)
    require(read, "type", where=name)
    held, other = ("data", "url") if read["type"] == "base64" else ("url", "data")
    require(read, held, where=name)
    path = f"{name}.{held}"
    if other in read:
        problem = f"{name}.{other} does not belong to type {read['type']!r}"
        raise InvalidRequest(problem, param=f"{name}.{other}")
    if held == "url":
        return read_data_url(read["url"], param=path)
    return read_base64(read["data"].encode("utf-8", "surrogatepass"), param=path)


IMAGE_BLOCK: dict[str, DescribedRule] = {
    "type": one_of("image"),
    "source": _source,
    "cache_control": CACHE_MARK,
    **PIXEL_FIELDS,
}


def _image(name: str, block: Any) -> PicturePart:
    read = read_fields(block, IMAGE_BLOCK, where=name)
    require(read, "source", where=name)
    pixels = RequestedPixels(read.get("min_pixels"), read.get("max_pixels"))
    return PicturePart(read["source"], f"{name}.source", pixels)


# -- results of tools ------------------------------------------------------------------------------
_TEXT_SCHEMA = object_schema(TEXT_BLOCK, "type", "text")


def texts_rule(about: str) -> DescribedRule:
    """A text or a list of text blocks. `about` says why nothing else is there."""
    several = {"type": "array", "maxItems": MAX_BLOCKS, "items": _TEXT_SCHEMA}

    def rule(name: str, value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            return (text_rule.check(name, value),)
        found = []
        for path, kind, block in _blocks(name, value):
            if kind != "text":
                raise _refused(path, kind, about)
            found.append(_text(path, block))
        return tuple(found)

    return DescribedRule(rule, {"anyOf": [text_rule.schema, several]})


TOOL_RESULT: dict[str, DescribedRule] = {
    "type": one_of("tool_result"),
    "tool_use_id": call_id_rule,
    "content": texts_rule("results of tools are texts; pictures stand in the user's own blocks"),
    "is_error": dropped(bool, why="the model reads the content, which says what failed"),
    "cache_control": CACHE_MARK,
}


def _result(name: str, block: Any) -> BodyMessage:
    read = read_fields(block, TOOL_RESULT, where=name)
    require(read, "tool_use_id", where=name)
    return BodyMessage("tool", read.get("content") or ("",), (), read["tool_use_id"])


# -- messages --------------------------------------------------------------------------------------
def _blocks(name: str, value: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """Path, type and fields of each block of a list. Raises `InvalidRequest`."""
    if not isinstance(value, list):
        raise wrong(name, "a string or a list of blocks", value)
    if len(value) > MAX_BLOCKS:
        message = f"{name} has {len(value)} blocks; at most {MAX_BLOCKS} are taken"
        raise InvalidRequest(message, param=name)
    found = []
    for i, block in enumerate(value):
        path = f"{name}[{i}]"
        if not isinstance(block, dict):
            raise wrong(path, "an object with a type", block)
        if block.get("type") is None:
            raise InvalidRequest(f"{path}.type is required", param=f"{path}.type")
        if not isinstance(block["type"], str):
            raise wrong(f"{path}.type", "a string", block["type"])
        found.append((path, block["type"], block))
    return found


def _refused(path: str, kind: str, why: str) -> InvalidRequest:
    message = f"{path}.type {kind[:MAX_NAME]!a} is not supported: {why}"
    return InvalidRequest(message, param=f"{path}.type")


_USER_PARTS: Mapping[str, Callable[[str, Any], str | PicturePart]] = {
    "text": _text,
    "image": _image,
}


def _user(name: str, value: Any) -> list[BodyMessage]:
    """The results of tools, which come first, and the user's own message."""
    results: list[BodyMessage] = []
    parts: list[str | PicturePart] = []
    for path, kind, block in _blocks(name, value):
        if kind == "tool_result":
            if parts:
                message = f"{path}: tool_result blocks stand before texts and pictures"
                raise InvalidRequest(message, param=path)
            results.append(_result(path, block))
        elif (read := _USER_PARTS.get(kind)) is not None:
            parts.append(read(path, block))
        else:
            raise _refused(path, kind, "a user's blocks are text, image and tool_result")
    if not results and not parts:
        raise InvalidRequest(f"{name} has no blocks", param=name)
    return [*results, *([BodyMessage("user", tuple(parts))] if parts else [])]


def _assistant(name: str, value: Any) -> list[BodyMessage]:
    """One message; none where nothing is left without thoughts."""
    texts: list[str] = []
    calls: dict[str, ToolCall] = {}
    for path, kind, block in _blocks(name, value):
        if kind == "text":
            texts.append(_text(path, block))
        elif kind == "tool_use":
            call = read_call(path, block)
            if call.id in calls:
                message = f"{path}.id: another call has the id {call.id[:40]!a} as well"
                raise InvalidRequest(message, param=f"{path}.id")
            calls[call.id] = call
        elif kind not in THINKING:
            raise _refused(path, kind, "an assistant's blocks are text and tool_use")
    if len(calls) > MAX_CALLS:
        message = f"{name} has {len(calls)} calls; at most {MAX_CALLS} are taken"
        raise InvalidRequest(message, param=name)
    if not texts and not calls:
        return []
    return [BodyMessage("assistant", tuple(texts), tuple(calls.values()))]


def _block_schema(*tables: Mapping[str, DescribedRule]) -> dict[str, Any]:
    needed: dict[str, tuple[str, ...]] = {
        "text": ("text",),
        "image": ("source",),
        "tool_result": ("tool_use_id",),
    }
    needed |= {"tool_use": ("id", "name", "input")}
    schemas: list[dict[str, Any]] = []
    for table in tables:
        (kind,) = table["type"].schema["enum"]
        schemas.append(object_schema(table, "type", *needed[kind]))
        schemas[-1]["properties"]["type"] = {"const": kind}
    return {"type": "array", "maxItems": MAX_BLOCKS, "items": {"oneOf": schemas}}


def _passed(name: str, value: Any) -> Any:
    """The same value: the role says which rules it has."""
    return value


_CONTENT = _block_schema(TEXT_BLOCK, IMAGE_BLOCK, TOOL_RESULT, TOOL_USE)
_CONTENT["items"]["oneOf"].append(
    {
        "type": "object",
        "properties": {"type": {"enum": list(THINKING)}},
        "required": ["type"],
        "description": "Ignored: no model here reads it.",
    }
)
MESSAGE: dict[str, DescribedRule] = {
    "role": said("Who speaks.", one_of("user", "assistant")),
    "content": DescribedRule(
        _passed,
        {"anyOf": [text_rule.schema, _CONTENT], "description": "A text, or blocks."},
    ),
}


def _message(name: str, value: Any) -> list[BodyMessage]:
    read = read_fields(value, MESSAGE, where=name)
    require(read, "role", "content", where=name)
    role, content, path = read["role"], read["content"], f"{name}.content"
    if isinstance(content, str):
        return [BodyMessage(role, (text_rule.check(path, content),))]
    return _user(path, content) if role == "user" else _assistant(path, content)


@described(
    {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_MESSAGES,
        "items": object_schema(MESSAGE, "role", "content"),
    }
)
def messages_of_blocks(name: str, value: Any) -> tuple[BodyMessage, ...]:
    """The messages of a chat."""
    if not isinstance(value, list):
        raise wrong(name, "a list of messages", value)
    if len(value) > MAX_MESSAGES:
        message = f"{name} has {len(value)} messages; at most {MAX_MESSAGES} are taken"
        raise InvalidRequest(message, param=name)
    turns: list[list[BodyMessage]] = []  # neighbours of an assistant are one
    places: list[int] = []  # of the messages that they came from
    for i, each in enumerate(value):
        for found in _message(f"{name}[{i}]", each):
            if turns and found.role == turns[-1][0].role == "assistant":
                turns[-1].append(found)
            else:
                turns.append([found])
                places.append(i)
    messages = [_one_message(turn) for turn in turns]
    if not messages:
        raise InvalidRequest(f"{name} is empty; at least one message is needed", param=name)
    _check_calls(name, messages, places)
    return tuple(messages)


def _one_message(turn: Sequence[BodyMessage]) -> BodyMessage:
    if len(turn) == 1:
        return turn[0]
    parts = tuple(part for message in turn for part in message.parts)
    calls = tuple(call for message in turn for call in message.calls)
    return BodyMessage(turn[0].role, parts, calls)


def _check_calls(name: str, messages: Sequence[BodyMessage], places: Sequence[int]) -> None:
    """Raise `InvalidRequest` for a call without its result, and the reverse."""
    unanswered = OpenCalls(name)
    try:
        for i, message in zip(places, messages, strict=True):
            unanswered.see(i, message.calls, message.call_id)
        unanswered.close("the end")
    except InvalidRequest as error:
        words = f"{error.message} (here they are tool_use and tool_result blocks)"
        raise InvalidRequest(words, param=(error.param or name).rpartition(".")[0]) from error
