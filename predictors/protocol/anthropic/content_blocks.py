"""The messages of `POST /v1/messages` and their blocks, read as messages of a chat.

One message of Anthropic's may be several of a chat: each result of a tool is one. Worker processes
import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.anthropic.tool_blocks import CACHE_MARK, tool_use_rule
from predictors.protocol.images.urls import read_base64, read_data_url
from predictors.protocol.openai.clients import PART_FIELDS
from predictors.protocol.openai.conversation import (
    AnswerWords,
    BodyMessage,
    PicturePart,
    joined_turns,
)
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    dropped,
    list_of,
    one_of,
    require,
    said,
    text,
)
from predictors.protocol.openai.messages import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TEXT,
    part_of,
    text_or_list,
)
from predictors.protocol.openai.objects import (
    checked_later,
    ignored_type,
    object_of,
    type_of,
    type_schemas,
    unsupported,
)
from predictors.protocol.openai.pixel_fields import PIXEL_FIELDS
from predictors.protocol.openai.tool_calls import MAX_CALLS, call_id_rule

MAX_BLOCKS = MAX_PARTS  # of one message
THINKING = ("thinking", "redacted_thinking")
"""Blocks of another model's thoughts, which are left out: no model here reads them."""

# -- texts and pictures ----------------------------------------------------------------------------
TEXT_BLOCK: dict[str, DescribedRule] = {
    "type": one_of("text"),
    "text": text(at_most=MAX_TEXT),
    "cache_control": CACHE_MARK,
    "citations": PART_FIELDS["annotations"],
}
_text_rule = part_of("text", TEXT_BLOCK)

SOURCE: dict[str, DescribedRule] = {
    "type": said("`url` is for a data URL: this server fetches none.", one_of("base64", "url")),
    "media_type": dropped(str, why="a file's format is read from its bytes"),
    "data": text(),
    "url": text(),
}


@object_of(SOURCE, "type")
def _source_rule(name: str, read: dict[str, Any]) -> PicturePart:
    held, other = ("data", "url") if read["type"] == "base64" else ("url", "data")
    require(read, held, where=name)
    path = f"{name}.{held}"
    if other in read:
        problem = f"{name}.{other} does not belong to type {read['type']!r}"
        raise InvalidRequest(problem, param=f"{name}.{other}")
    if held == "url":
        file = read_data_url(read["url"], param=path)
    else:
        file = read_base64(read["data"].encode("utf-8", "surrogatepass"), param=path)
    return PicturePart(file, name)


@described(_source_rule.schema)
def _source(name: str, value: Any) -> object:
    if isinstance(value, dict) and value.get("type") == "file":
        problem = "files are not kept; send the picture itself as base64"
        raise InvalidRequest(f"{name}.type 'file' is not supported: {problem}", param=name)
    return _source_rule.check(name, value)


IMAGE_BLOCK: dict[str, DescribedRule] = {
    "type": one_of("image"),
    "source": _source,
    "cache_control": CACHE_MARK,
    **PIXEL_FIELDS,
}
_image_rule = part_of("source", IMAGE_BLOCK)


def _block(name: str, value: Any) -> tuple[str, str, Any]:
    """Path, type and fields of a block."""
    return name, type_of(name, value), value


def _texts_or(schema: Mapping[str, Any]) -> DescribedRule:
    """A text, or blocks; `schema` describes one."""
    return text_or_list(DescribedRule(_block, schema), at_most=MAX_BLOCKS, noun="blocks")


# -- results of tools ------------------------------------------------------------------------------
def texts_rule(about: str) -> DescribedRule:
    """A text or a list of text blocks. `about` says why nothing else is there."""
    texts = _texts_or(_text_rule.schema)

    def rule(name: str, value: Any) -> tuple[str, ...]:
        return tuple(map(text_of, texts.check(name, value)))

    def text_of(found: str | tuple[str, str, Any]) -> str:
        if isinstance(found, str):
            return found
        path, kind, block = found
        if kind != "text":
            raise unsupported(f"{path}.type", kind, about)
        read: str = _text_rule.check(path, block)
        return read

    return DescribedRule(rule, texts.schema)


TOOL_RESULT: dict[str, DescribedRule] = {
    "type": one_of("tool_result"),
    "tool_use_id": call_id_rule,
    "content": texts_rule("results of tools are texts; pictures stand in the user's own blocks"),
    "is_error": dropped(bool, why="the model reads the content, which says what failed"),
    "cache_control": CACHE_MARK,
}


@object_of(TOOL_RESULT, "type", "tool_use_id")
def _result_rule(name: str, read: dict[str, Any]) -> BodyMessage:
    parts = read.get("content") or ("",)
    return BodyMessage("tool", parts, (), read["tool_use_id"], where=name)


# -- messages --------------------------------------------------------------------------------------
_TYPES = {
    "text": _text_rule,
    "image": _image_rule,
    "tool_result": _result_rule,
    "tool_use": tool_use_rule,
}
_ANY_BLOCK = {"oneOf": [*type_schemas(_TYPES), ignored_type(*THINKING)]}
_BLOCKS = _texts_or(_ANY_BLOCK)


def _user(name: str, blocks: list[tuple[str, str, Any]]) -> list[BodyMessage]:
    """The results of tools, which come first, and the user's own message."""
    results: list[BodyMessage] = []
    parts: list[str | PicturePart] = []
    for path, kind, block in blocks:
        if kind == "tool_result":
            if parts:
                message = f"{path}: tool_result blocks stand before texts and pictures"
                raise InvalidRequest(message, param=path)
            results.append(_result_rule.check(path, block))
        elif kind in ("text", "image"):
            parts.append(_TYPES[kind].check(path, block))
        else:
            why = "a user's blocks are text, image and tool_result"
            raise unsupported(f"{path}.type", kind, why)
    if not results and not parts:
        raise InvalidRequest(f"{name} has no blocks", param=name)
    return [*results, *([BodyMessage("user", tuple(parts), where=name)] if parts else [])]


def _assistant(name: str, blocks: list[tuple[str, str, Any]]) -> list[BodyMessage]:
    """A message for each block; none for thoughts."""
    found: list[BodyMessage] = []
    num_calls = 0
    for path, kind, block in blocks:
        if kind == "text":
            parts = (_text_rule.check(path, block),)
            found.append(BodyMessage("assistant", parts, where=path))
        elif kind == "tool_use":
            calls = (tool_use_rule.check(path, block),)
            found.append(BodyMessage("assistant", (), calls, where=path))
            num_calls += 1
        elif kind not in THINKING:
            why = "an assistant's blocks are text and tool_use"
            raise unsupported(f"{path}.type", kind, why)
    if num_calls > MAX_CALLS:
        message = f"{name} has {num_calls} calls; at most {MAX_CALLS} are taken"
        raise InvalidRequest(message, param=name)
    return found


MESSAGE: dict[str, DescribedRule] = {
    "role": said("Who speaks.", one_of("user", "assistant")),
    "content": said("A text, or blocks.", checked_later(_BLOCKS.schema)),
}


@object_of(MESSAGE, "role", "content")
def _message(name: str, read: dict[str, Any]) -> list[BodyMessage]:
    role, content, path = read["role"], read["content"], f"{name}.content"
    found = _BLOCKS.check(path, content)
    if isinstance(content, str):
        return [BodyMessage(role, tuple(found), where=name)]
    return _user(path, found) if role == "user" else _assistant(path, found)


_MESSAGE_LIST = list_of(_message, at_most=MAX_MESSAGES, noun="messages")


@described({**_MESSAGE_LIST.schema, "minItems": 1})
def messages_of_blocks(name: str, value: Any) -> tuple[BodyMessage, ...]:
    """The messages of a chat."""
    found = _MESSAGE_LIST.check(name, value)
    return joined_turns(
        name,
        (message for messages in found for message in messages),
        joins_texts=True,
        words=AnswerWords("a tool_result block", "tool_use_id"),
    )
