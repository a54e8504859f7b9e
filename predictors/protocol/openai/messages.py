"""The messages of a chat body and their parts, checked field by field.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.images.urls import read_data_url
from predictors.protocol.openai.clients import (
    MESSAGE_CLIENTS,
    PART_FIELDS,
    URL_FIELDS,
    merged,
)
from predictors.protocol.openai.conversation import (
    CHAT_ANSWERS,
    BodyMessage,
    MessagePart,
    PicturePart,
    checked_conversation,
)
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    dropped,
    list_of,
    one_of,
    only_values,
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
from predictors.protocol.openai.objects import object_of, type_of, type_schemas, unsupported
from predictors.protocol.openai.pixel_fields import DETAIL, PIXEL_FIELDS, RequestedPixels
from predictors.protocol.openai.reasoning_fields import NOT_READ
from predictors.protocol.openai.tool_calls import NO_OLDER_CALLS, call_id_rule, calls_rule

MAX_TEXT = 2**21  # characters of one part
MAX_MESSAGES = 1024
MAX_PARTS = 1024  # per message; the codec's limit on pictures is lower
ROLES = ("system", "developer", "user", "assistant", "tool")

_KNOWN_ROLE = one_of(*ROLES)


@described(_KNOWN_ROLE.schema)
def _role(name: str, value: Any) -> str:
    if value == "function":
        raise unsupported(name, value, NO_OLDER_CALLS)
    role: str = _KNOWN_ROLE.check(name, value)
    return "system" if role == "developer" else role


_IMAGE_URL: dict[str, DescribedRule] = {
    "url": text(),
    "detail": DETAIL,
    **URL_FIELDS,
}


@object_of(_IMAGE_URL, "url")
def _image_object(name: str, read: dict[str, Any]) -> PicturePart:
    pixels = RequestedPixels(detail=read.get("detail"))
    return PicturePart(read_data_url(read["url"], param=name), name, pixels)


@described({"anyOf": [{"type": "string"}, _image_object.schema]})
def _image_url(name: str, value: Any) -> object:
    # a string is not OpenAI's spelling, but a common one
    return _image_object.check(name, {"url": value} if isinstance(value, str) else value)


def part_of(held: str, rules: Mapping[str, DescribedRule]) -> DescribedRule:
    """A part whose content is in the field `held`."""

    @object_of(rules, "type", held)
    def rule(name: str, read: dict[str, Any]) -> MessagePart:
        part: MessagePart = read[held]
        if isinstance(part, FilmPart):
            part = replace(part, frames=read_frames(read, name))
        asked = {key: read[key] for key in ("detail", *PIXEL_FIELDS) if key in read}
        if asked and isinstance(part, PicturePart | FilmPart):
            part = replace(part, pixels=replace(part.pixels, **asked))
        return part

    return rule


def _openai_part(held: str, rule: DescribedRule, **more: DescribedRule) -> DescribedRule:
    return part_of(held, {"type": text(), held: rule, **more, **PART_FIELDS})


_IN_IMAGE = "send the picture as a data URL in `image`"
_BY_PIXELS = "use min_pixels and max_pixels"
_TEXT_PART = _openai_part("text", text(at_most=MAX_TEXT))
_PARTS: dict[str, DescribedRule] = {
    "text": _TEXT_PART,
    "image_url": _openai_part("image_url", _image_url, **PIXEL_FIELDS),
    # those of OpenAI's Responses
    "input_text": _TEXT_PART,
    "output_text": _TEXT_PART,
    "input_image": _openai_part(
        "image_url",
        _image_url,
        detail=DETAIL,
        file_id=only_values(why="files are not kept"),
        **PIXEL_FIELDS,
    ),
    # of Qwen's own examples
    "image": _openai_part(
        "image",
        _image_url,
        source=only_values(why=_IN_IMAGE),
        url=only_values(why=_IN_IMAGE),
        resized_height=only_values(why=_BY_PIXELS),
        resized_width=only_values(why=_BY_PIXELS),
        **PIXEL_FIELDS,
    ),
    "video_url": _openai_part("video_url", video_url, **FILM_FIELDS, **PIXEL_FIELDS),
    "video": _openai_part("video", video, **FILM_FIELDS, **PIXEL_FIELDS),
}
"""By type."""
_KNOWN_PART = one_of(*_PARTS)
_OTHER_PARTS = ("input_audio", "audio_url", "file", "input_file", "refusal")


@described({"oneOf": type_schemas(_PARTS)})
def _part(name: str, value: Any) -> MessagePart:
    kind = type_of(name, value)
    if kind in _OTHER_PARTS:
        raise unsupported(f"{name}.type", kind, "parts are text, image_url or video_url")
    part: MessagePart = _PARTS[_KNOWN_PART.check(f"{name}.type", kind)].check(name, value)
    return part


text_rule = text(at_most=MAX_TEXT)


def text_or_list(item: DescribedRule, *, at_most: int, noun: str) -> DescribedRule:
    """A text, which is read as a list of it alone, or a list as `list_of` has it."""
    several = list_of(item, at_most=at_most, noun=noun)

    def rule(name: str, value: Any) -> list[Any]:
        if isinstance(value, str):
            return [text_rule.check(name, value)]
        if not isinstance(value, list):
            raise wrong(name, f"a string or a list of {noun}", value)
        found: list[Any] = several.check(name, value)
        return found

    return DescribedRule(rule, {"anyOf": [text_rule.schema, several.schema]})


_TEXT_OR_PARTS = text_or_list(_part, at_most=MAX_PARTS, noun="parts")


@described(_TEXT_OR_PARTS.schema)
def _content(name: str, value: Any) -> tuple[MessagePart, ...]:
    parts = _TEXT_OR_PARTS.check(name, value)
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
    "annotations": PART_FIELDS["annotations"],
    "tool_calls": said("Calls that an assistant's message makes.", calls_rule),
    "function_call": only_values(why=NO_OLDER_CALLS),
    "tool_call_id": said("Id of the call that a tool's message answers.", call_id_rule),
    "reasoning": only_values("", why=NOT_READ),
    "reasoning_content": only_values("", why=NOT_READ),
    **merged(MESSAGE_CLIENTS),
}


@object_of(MESSAGE_FIELDS, "role")
def message_rule(name: str, read: dict[str, Any]) -> BodyMessage:
    role, calls, answered = read["role"], read.get("tool_calls", ()), read.get("tool_call_id")
    if not calls:  # an assistant may call without a word
        require(read, "content", where=name)
    parts = read.get("content", ())
    check_only_texts(f"{name}.content", parts, role)
    if calls and role != "assistant":
        raise _misplaced(f"{name}.tool_calls", "assistant", role)
    if role == "tool":
        require(read, "tool_call_id", where=name)
    elif answered is not None:
        raise _misplaced(f"{name}.tool_call_id", "tool", role)
    return BodyMessage(role, parts, calls, answered, where=name)


def check_only_texts(name: str, parts: Sequence[MessagePart], role: str) -> None:
    """Raise `InvalidRequest` for a picture or a film in `parts`, the field `name` of a message that
    is not a user's."""
    if role == "user":
        return
    for i, part in enumerate(parts):
        if isinstance(part, PicturePart | FilmPart):
            where = f"{name}[{i}]"
            noun = "films" if isinstance(part, FilmPart) else "pictures"
            message = f"{where}: {noun} stand in user messages, not in {role} ones"
            raise InvalidRequest(message, param=where)


def _misplaced(name: str, owner: str, role: str) -> InvalidRequest:
    return InvalidRequest(f"{name} belongs to messages of role {owner}, not {role}", param=name)


_MESSAGE_LIST = list_of(message_rule, at_most=MAX_MESSAGES, noun="messages")


@described({**_MESSAGE_LIST.schema, "minItems": 1})
def messages_rule(name: str, value: Any) -> tuple[BodyMessage, ...]:
    return checked_conversation(name, _MESSAGE_LIST.check(name, value), CHAT_ANSWERS)
