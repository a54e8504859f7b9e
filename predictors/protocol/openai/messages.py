"""The messages of a chat body and their parts, checked field by field.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.images.urls import read_data_url
from predictors.protocol.openai.clients import (
    MESSAGE_CLIENTS,
    NO_REASONING,
    PART_FIELDS,
    URL_FIELDS,
    merged,
)
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    dropped,
    list_of,
    object_schema,
    one_of,
    only_values,
    read_fields,
    require,
    said,
    text,
    wrong,
)
from predictors.protocol.openai.film_fields import (
    FILM_FIELDS,
    FilmPart,
    read_frames,
    video,
    video_url,
)
from predictors.protocol.openai.pixel_fields import (
    AS_SERVED,
    DETAIL,
    PIXEL_FIELDS,
    RequestedPixels,
)
from predictors.protocol.openai.tool_calls import (
    NO_OLDER_CALLS,
    OpenCalls,
    ToolCall,
    call_id_rule,
    calls_rule,
)

MAX_TEXT = 2**21  # characters of one part
MAX_MESSAGES = 1024
MAX_PARTS = 1024  # per message; the codec's limit on pictures is lower
ROLES = ("system", "developer", "user", "assistant", "tool")


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class PicturePart:
    """A picture in a message: the bytes of an image file, of any format, not decoded yet."""

    file: bytes
    where: str = field(default="image_url", compare=False)
    """The field that held it, such as `messages[0].content[1].image_url`."""
    pixels: RequestedPixels = AS_SERVED


MessagePart = str | PicturePart | FilmPart


@dataclass(frozen=True)
class BodyMessage:
    """One message. `role` is system, user, assistant or tool; pictures and films are in user ones
    only."""

    role: str
    parts: tuple[MessagePart, ...]
    """Empty where an assistant's message is nothing but calls."""
    calls: tuple[ToolCall, ...] = ()
    """Of an assistant's message."""
    call_id: str | None = None
    """Of a tool's message: the id of the call that it answers."""


_KNOWN_ROLE = one_of(*ROLES)


@described(_KNOWN_ROLE.schema)
def _role(name: str, value: Any) -> str:
    if value == "function":
        raise InvalidRequest(f"{name} {value!r} is not supported: {NO_OLDER_CALLS}", param=name)
    role: str = _KNOWN_ROLE.check(name, value)
    return "system" if role == "developer" else role


_IMAGE_URL: dict[str, DescribedRule] = {
    "url": text(),
    "detail": DETAIL,
    **URL_FIELDS,
}


@described({"anyOf": [{"type": "string"}, object_schema(_IMAGE_URL, "url")]})
def _image_url(name: str, value: Any) -> PicturePart:
    if isinstance(value, str):  # not OpenAI's spelling, but a common one
        value = {"url": value}
    read = read_fields(value, _IMAGE_URL, where=name)
    require(read, "url", where=name)
    pixels = RequestedPixels(detail=read.get("detail"))
    return PicturePart(read_data_url(read["url"], param=name), name, pixels)


_TEXT_PART: dict[str, DescribedRule] = {
    "type": text(),
    "text": text(at_most=MAX_TEXT),
    **PART_FIELDS,
}
_PARTS: dict[str, tuple[str, dict[str, DescribedRule]]] = {
    "text": ("text", _TEXT_PART),
    "image_url": (
        "image_url",
        {"type": text(), "image_url": _image_url, **PIXEL_FIELDS, **PART_FIELDS},
    ),
    # those of OpenAI's Responses
    "input_text": ("text", _TEXT_PART),
    "output_text": ("text", _TEXT_PART),
    "input_image": (
        "image_url",
        {
            "type": text(),
            "image_url": _image_url,
            "detail": DETAIL,
            "file_id": only_values(why="files are not kept"),
            **PIXEL_FIELDS,
            **PART_FIELDS,
        },
    ),
    # of Qwen's own examples
    "image": (
        "image",
        {
            "type": text(),
            "image": _image_url,
            "source": only_values(why="send the picture as a data URL in `image`"),
            **PIXEL_FIELDS,
            **PART_FIELDS,
        },
    ),
    "video_url": (
        "video_url",
        {"type": text(), "video_url": video_url, **FILM_FIELDS, **PIXEL_FIELDS, **PART_FIELDS},
    ),
    "video": (
        "video",
        {"type": text(), "video": video, **FILM_FIELDS, **PIXEL_FIELDS, **PART_FIELDS},
    ),
}
"""By type: the field that holds the content, and the rules of all fields."""
_KNOWN_PART = one_of(*_PARTS)
_OTHER_PARTS = ("input_audio", "audio_url", "file", "input_file", "refusal")


def part_schemas() -> list[dict[str, Any]]:
    """The schema of a part of each type."""
    found = []
    for kind, (held, rules) in _PARTS.items():
        schema = object_schema(rules, "type", held)
        schema["properties"]["type"] = {"const": kind}
        found.append(schema)
    return found


@described({"oneOf": part_schemas()})
def _part(name: str, value: Any) -> MessagePart:
    if not isinstance(value, dict):
        raise wrong(name, "an object with a type", value)
    kind: Any = value.get("type")
    if isinstance(kind, str) and kind in _OTHER_PARTS:
        message = f"{name}.type {kind!r} is not supported: parts are text, image_url or video_url"
        raise InvalidRequest(message, param=f"{name}.type")
    kind = _KNOWN_PART.check(f"{name}.type", kind)
    held, rules = _PARTS[kind]
    read = read_fields(value, rules, where=name)
    require(read, held, where=name)
    part: MessagePart = read[held]
    if isinstance(part, FilmPart):
        part = replace(part, frames=read_frames(read, name))
    asked = {key: read[key] for key in ("detail", *PIXEL_FIELDS) if key in read}
    if asked and isinstance(part, PicturePart | FilmPart):
        part = replace(part, pixels=replace(part.pixels, **asked))
    return part


text_rule = text(at_most=MAX_TEXT)
_CONTENT_PARTS = list_of(_part, at_most=MAX_PARTS, noun="parts")


@described({"anyOf": [text_rule.schema, _CONTENT_PARTS.schema]})
def _content(name: str, value: Any) -> tuple[MessagePart, ...]:
    if isinstance(value, str):
        return (text_rule.check(name, value),)
    if not isinstance(value, list):
        raise wrong(name, "a string or a list of parts", value)
    parts = _CONTENT_PARTS.check(name, value)
    if not parts:
        raise InvalidRequest(f"{name} has no parts", param=name)
    return tuple(parts)


MESSAGE_FIELDS: dict[str, DescribedRule] = {
    "role": said("Who speaks.", _role),
    "content": said("A text, or parts: texts, pictures, films.", _content),
    "name": dropped(str),
    # OpenAI's client sends an assistant's message back with these fields empty
    "refusal": only_values("", why="only its null is taken back"),
    "audio": only_values(why="messages are text and pictures"),
    "annotations": only_values([], why="only an empty list is taken back"),
    "tool_calls": said("Calls that an assistant's message makes.", calls_rule),
    "function_call": only_values(why=NO_OLDER_CALLS),
    "tool_call_id": said("Id of the call that a tool's message answers.", call_id_rule),
    "reasoning": only_values("", why=NO_REASONING),
    "reasoning_content": only_values("", why=NO_REASONING),
    **merged(MESSAGE_CLIENTS),
}


@described(object_schema(MESSAGE_FIELDS, "role"))
def message_rule(name: str, value: Any) -> BodyMessage:
    read = read_fields(value, MESSAGE_FIELDS, where=name)
    require(read, "role", where=name)
    role, calls, answered = read["role"], read.get("tool_calls", ()), read.get("tool_call_id")
    if not calls:  # an assistant may call without a word
        require(read, "content", where=name)
    parts = read.get("content", ())
    if role != "user":
        for i, part in enumerate(parts):
            if isinstance(part, PicturePart | FilmPart):
                where = f"{name}.content[{i}]"
                noun = "films" if isinstance(part, FilmPart) else "pictures"
                message = f"{where}: {noun} stand in user messages, not in {role} ones"
                raise InvalidRequest(message, param=where)
    if calls and role != "assistant":
        raise _misplaced(f"{name}.tool_calls", "assistant", role)
    if role == "tool":
        require(read, "tool_call_id", where=name)
    elif answered is not None:
        raise _misplaced(f"{name}.tool_call_id", "tool", role)
    return BodyMessage(role, parts, calls, answered)


def _misplaced(name: str, owner: str, role: str) -> InvalidRequest:
    return InvalidRequest(f"{name} belongs to messages of role {owner}, not {role}", param=name)


_MESSAGE_LIST = list_of(message_rule, at_most=MAX_MESSAGES, noun="messages")


@described({**_MESSAGE_LIST.schema, "minItems": 1})
def messages_rule(name: str, value: Any) -> tuple[BodyMessage, ...]:
    messages = _MESSAGE_LIST.check(name, value)
    if not messages:
        raise InvalidRequest(f"{name} is empty; at least one message is needed", param=name)
    for message in messages:
        if message.calls or message.call_id is not None:
            _check_calls(name, messages)
            break
    return tuple(messages)


def _check_calls(name: str, messages: Sequence[BodyMessage]) -> None:
    unanswered = OpenCalls(name)
    for i, message in enumerate(messages):
        unanswered.see(i, message.calls, message.call_id)
    unanswered.close("the end")
