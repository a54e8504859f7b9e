"""The body of `POST /v1/chat/completions`, checked field by field.

`read_chat_body` checks names, types and ranges that hold for every chat model. Limits of a
checkpoint (context length, pictures per request, pixels of a picture) are checked by its codec.
Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.images import read_data_url
from predictors.protocol.openai.clients import (
    CHAT_CLIENTS,
    MESSAGE_CLIENTS,
    PART_FIELDS,
    URL_FIELDS,
    merged,
)
from predictors.protocol.openai.fields import (
    CLIENT_FIELDS,
    DecodedBody,
    DescribedRule,
    Rule,
    check_body,
    described,
    dropped,
    flag,
    list_of,
    number,
    object_schema,
    one_of,
    only_values,
    read_fields,
    require,
    seed_or_drawn,
    text,
    whole,
    wrong,
)

MAX_N = 16
MAX_STOPS = 16  # OpenAI's is 4
MAX_STOP_CHARS = 1024
MAX_TOKENS = 2**31 - 1  # largest number that is read; generation ends with the context anyway
NO_LIMIT = -1  # `max_tokens` up to the end of the context, as llama.cpp and LM Studio read it
MAX_TEXT = 2**21  # characters of one part
MAX_MESSAGES = 1024
MAX_PARTS = 1024  # per message; the codec's limit on pictures is lower
ROLES = ("system", "developer", "user", "assistant")

_NO_TOOLS = "this server calls no tools"
_NO_AUDIO = "answers are text"
_NO_LOGPROBS = "log probabilities are not computed"
_NO_REASONING = "no model here reasons before it answers"
_FULL_DETAIL = "pictures are always read in full, within the server's pixel limits"


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class PicturePart:
    """A picture in a message: the bytes of an image file, of any format, not decoded yet."""

    file: bytes


@dataclass(frozen=True)
class BodyMessage:
    """One message. `role` is system, user or assistant; pictures are in user messages only."""

    role: str
    parts: tuple[str | PicturePart, ...]


@dataclass(frozen=True)
class StreamOptions:
    include_usage: bool = False
    continuous_usage_stats: bool = False
    """vLLM's field: with `include_usage`, token counts in every chunk."""


@dataclass(frozen=True)
class ChatBody:
    """A checked body. None means that the field is absent or null."""

    model: str
    messages: tuple[BodyMessage, ...]
    max_tokens: int | None = None
    """Also from `max_completion_tokens`. `NO_LIMIT` goes on to the end of the context."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """-1 and 0 mean off."""
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()


def decode_chat_body(raw: bytes) -> DecodedBody[ChatBody]:
    """Raises `InvalidRequest` for text that is not JSON."""
    return check_body(parse_json(raw), read_chat_body)


def read_chat_body(body: object) -> ChatBody:
    """Raises `InvalidRequest` that names the field."""
    read = read_fields(body, FIELDS)
    require(read, "model", "messages")
    newer = read.pop("max_completion_tokens", None)
    if newer is not None:
        older = read.setdefault("max_tokens", newer)
        if older != newer:
            message = f"max_tokens {older} and max_completion_tokens {newer} disagree"
            raise InvalidRequest(message, param="max_completion_tokens")
    return ChatBody(**read)


# -- messages --------------------------------------------------------------------------------------
@described({"type": "string", "enum": list(ROLES)})
def _role(name: str, value: Any) -> str:
    if value in ("tool", "function"):
        raise InvalidRequest(f"{name} {value!r} is not supported: {_NO_TOOLS}", param=name)
    role: str = one_of(*ROLES)(name, value)
    return "system" if role == "developer" else role


_IMAGE_URL: dict[str, Rule] = {
    "url": text(),
    "detail": only_values("auto", "high", "original", why=_FULL_DETAIL),
    **URL_FIELDS,
}


@described({"anyOf": [{"type": "string"}, object_schema(_IMAGE_URL, "url")]})
def _image_url(name: str, value: Any) -> PicturePart:
    if isinstance(value, str):  # not OpenAI's spelling, but a common one
        value = {"url": value}
    read = read_fields(value, _IMAGE_URL, where=name)
    require(read, "url", where=name)
    return PicturePart(read_data_url(read["url"], param=name))


_TEXT_PART: dict[str, Rule] = {"type": text(), "text": text(at_most=MAX_TEXT), **PART_FIELDS}
_PARTS: dict[str, tuple[str, dict[str, Rule]]] = {
    "text": ("text", _TEXT_PART),
    "image_url": ("image_url", {"type": text(), "image_url": _image_url, **PART_FIELDS}),
    # those of OpenAI's Responses
    "input_text": ("text", _TEXT_PART),
    "output_text": ("text", _TEXT_PART),
    "input_image": (
        "image_url",
        {
            "type": text(),
            "image_url": _image_url,
            "detail": _IMAGE_URL["detail"],
            "file_id": only_values(why="files are not kept"),
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
            **PART_FIELDS,
        },
    ),
}
"""By type: the field that holds the content, and the rules of all fields."""
_OTHER_PARTS = ("input_audio", "audio_url", "video_url", "video", "file", "input_file", "refusal")


def part_schemas() -> list[dict[str, Any]]:
    """The schema of a part of each type."""
    found = []
    for kind, (held, rules) in _PARTS.items():
        schema = object_schema(rules, "type", held)
        schema["properties"]["type"] = {"const": kind}
        found.append(schema)
    return found


@described({"oneOf": part_schemas()})
def _part(name: str, value: Any) -> str | PicturePart:
    if not isinstance(value, dict):
        raise wrong(name, "an object with a type", value)
    kind: Any = value.get("type")
    if isinstance(kind, str) and kind in _OTHER_PARTS:
        message = f"{name}.type {kind!r} is not supported: parts are text or image_url"
        raise InvalidRequest(message, param=f"{name}.type")
    kind = one_of(*_PARTS)(f"{name}.type", kind)
    held, rules = _PARTS[kind]
    read = read_fields(value, rules, where=name)
    require(read, held, where=name)
    part: str | PicturePart = read[held]
    return part


_CONTENT_PARTS = list_of(_part, at_most=MAX_PARTS, noun="parts")


@described({"anyOf": [{"type": "string", "maxLength": MAX_TEXT}, _CONTENT_PARTS.schema]})
def _content(name: str, value: Any) -> tuple[str | PicturePart, ...]:
    if isinstance(value, str):
        return (text(at_most=MAX_TEXT)(name, value),)
    if not isinstance(value, list):
        raise wrong(name, "a string or a list of parts", value)
    parts = _CONTENT_PARTS(name, value)
    if not parts:
        raise InvalidRequest(f"{name} has no parts", param=name)
    return tuple(parts)


MESSAGE_FIELDS: dict[str, Rule] = {
    "role": _role,
    "content": _content,
    "name": dropped(str),
    # OpenAI's client sends an assistant's message back with these fields empty
    "refusal": only_values("", why="only its null is taken back"),
    "audio": only_values(why="messages are text and pictures"),
    "annotations": only_values([], why="only an empty list is taken back"),
    "tool_calls": only_values([], why=_NO_TOOLS),
    "function_call": only_values(why=_NO_TOOLS),
    "tool_call_id": only_values(why=_NO_TOOLS),
    "reasoning": only_values("", why=_NO_REASONING),
    "reasoning_content": only_values("", why=_NO_REASONING),
    **merged(MESSAGE_CLIENTS),
}


@described(object_schema(MESSAGE_FIELDS, "role", "content"))
def _message(name: str, value: Any) -> BodyMessage:
    read = read_fields(value, MESSAGE_FIELDS, where=name)
    require(read, "role", "content", where=name)
    role, parts = read["role"], read["content"]
    if role != "user":
        for i, part in enumerate(parts):
            if isinstance(part, PicturePart):
                where = f"{name}.content[{i}]"
                message = f"{where}: pictures stand in user messages, not in {role} ones"
                raise InvalidRequest(message, param=where)
    return BodyMessage(role, parts)


_MESSAGE_LIST = list_of(_message, at_most=MAX_MESSAGES, noun="messages")


@described({**_MESSAGE_LIST.schema, "minItems": 1})
def _messages(name: str, value: Any) -> tuple[BodyMessage, ...]:
    messages = _MESSAGE_LIST(name, value)
    if not messages:
        raise InvalidRequest(f"{name} is empty; at least one message is needed", param=name)
    return tuple(messages)


# -- other fields ----------------------------------------------------------------------------------
_STOPS = list_of(text(at_most=MAX_STOP_CHARS), at_most=MAX_STOPS, noun="strings")


@described({"anyOf": [{"type": "string", "maxLength": MAX_STOP_CHARS}, _STOPS.schema]})
def _stop(name: str, value: Any) -> tuple[str, ...]:
    found = _STOPS(name, [value] if isinstance(value, str) else value)
    if "" in found:  # it would end every answer before its first character
        raise InvalidRequest(f"{name} holds an empty string", param=name)
    return tuple(found)


@described({"type": "object", "properties": {"type": {"const": "text"}}, "required": ["type"]})
def _response_format(name: str, value: Any) -> object:
    rules: dict[str, Rule] = {"type": text(), "json_schema": lambda _, given: given}
    read = read_fields(value, rules, where=name)
    require(read, "type", where=name)
    return only_values("text", why="answers are plain text")(f"{name}.type", read["type"])


_STREAM_OPTIONS: dict[str, Rule] = {
    "include_usage": flag,
    "include_obfuscation": only_values(False, why="chunks are not padded"),
    "continuous_usage_stats": flag,
}


@described(object_schema(_STREAM_OPTIONS))
def _stream_options(name: str, value: Any) -> StreamOptions:
    """Without `stream` they change nothing: a whole answer has its usage."""
    return StreamOptions(**read_fields(value, _STREAM_OPTIONS, where=name))


OWN_FIELDS: dict[str, DescribedRule] = {
    "model": text(),
    "messages": _messages,
    "max_tokens": whole(1, MAX_TOKENS, or_value=NO_LIMIT),
    "max_completion_tokens": whole(1, MAX_TOKENS, or_value=NO_LIMIT),
    "temperature": number(0, 2),
    "top_p": number(0, 1, above=True),
    "top_k": whole(-1, MAX_TOKENS),
    "repetition_penalty": number(0, 100, above=True),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "seed": seed_or_drawn,
    "stop": _stop,
    "n": whole(1, MAX_N),
    "ignore_eos": flag,  # vLLM's; benchmarks need it
    "stream": flag,
    "stream_options": _stream_options,
    # these can't change the answer
    **CLIENT_FIELDS,
    "prompt_cache_retention": dropped(str),
    "prompt_cache_options": dropped(dict),
    # these are only taken at the value that is served anyway
    "tools": only_values([], why=_NO_TOOLS),
    "tool_choice": only_values("none", "auto", why=_NO_TOOLS),
    "parallel_tool_calls": dropped(bool, why=_NO_TOOLS),
    "functions": only_values([], why=_NO_TOOLS),
    "function_call": only_values("none", "auto", why=_NO_TOOLS),
    "web_search_options": only_values(why=_NO_TOOLS),
    "logprobs": only_values(False, why=_NO_LOGPROBS),
    "top_logprobs": only_values(0, why=_NO_LOGPROBS),
    "logit_bias": only_values({}, why="tokens can't be weighted one by one"),
    "modalities": only_values(["text"], why=_NO_AUDIO),
    "audio": only_values(why=_NO_AUDIO),
    "prediction": only_values(why="there is no speculative decoding to be guided"),
    "reasoning_effort": only_values("none", why=_NO_REASONING),
    "verbosity": only_values("medium", why="the prompt is what sets the length"),
    "moderation": only_values(why="there is no moderation to be set"),
    "response_format": _response_format,
}
"""OpenAI's and our own fields."""
FIELDS: dict[str, DescribedRule] = {**merged(CHAT_CLIENTS), **OWN_FIELDS}
