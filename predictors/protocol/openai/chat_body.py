"""The body of `POST /v1/chat/completions`, checked field by field.

`read_chat_body` checks names, types and ranges that hold for every chat model. Limits of a
checkpoint (context length, pictures per request, pixels of a picture) are checked by its codec.
Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.images.urls import read_data_url
from predictors.protocol.openai.fields import (
    CLIENT_FIELDS,
    MAX_SEED,
    DecodedBody,
    Rule,
    check_body,
    dropped,
    flag,
    list_of,
    number,
    one_of,
    only_values,
    read_fields,
    require,
    text,
    whole,
    wrong,
)
from predictors.protocol.openai.pixel_fields import (
    AS_SERVED,
    DETAIL,
    PIXEL_FIELDS,
    RequestedPixels,
    processor_kwargs,
    read_pixels,
)

MAX_N = 16
MAX_STOPS = 16  # OpenAI's is 4
MAX_STOP_CHARS = 1024
MAX_TOKENS = 2**31 - 1  # largest number that is read; generation ends with the context anyway
MAX_TEXT = 2**21  # characters of one part
MAX_MESSAGES = 1024
MAX_PARTS = 1024  # per message; the codec's limit on pictures is lower
ROLES = ("system", "developer", "user", "assistant")

_NO_TOOLS = "this server calls no tools"
_NO_AUDIO = "answers are text"
_NO_LOGPROBS = "log probabilities are not computed"
_NO_REASONING = "no model here reasons before it answers"


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class PicturePart:
    """A picture in a message: the bytes of an image file, of any format, not decoded yet."""

    file: bytes
    where: str = field(default="image_url", compare=False)
    """The field that held it, such as `messages[0].content[1].image_url`."""
    pixels: RequestedPixels = AS_SERVED


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
    """Also from `max_completion_tokens`."""
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
    pixels: RequestedPixels = AS_SERVED
    """Of all pictures but those that ask for others."""


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
    if not read.keys().isdisjoint(PIXELS):
        read["pixels"] = read_pixels(read)
    if "stream_options" in read and not read.get("stream", False):
        message = "stream_options is only taken with stream true"
        raise InvalidRequest(message, param="stream_options")
    return ChatBody(**read)


# -- messages --------------------------------------------------------------------------------------
def _role(name: str, value: Any) -> str:
    if value in ("tool", "function"):
        raise InvalidRequest(f"{name} {value!r} is not supported: {_NO_TOOLS}", param=name)
    role: str = one_of(*ROLES)(name, value)
    return "system" if role == "developer" else role


def _image_url(name: str, value: Any) -> PicturePart:
    if isinstance(value, str):  # not OpenAI's spelling, but a common one
        value = {"url": value}
    read = read_fields(value, _IMAGE_URL, where=name)
    require(read, "url", where=name)
    pixels = RequestedPixels(detail=read.get("detail"))
    return PicturePart(read_data_url(read["url"], param=name), name, pixels)


_IMAGE_URL: dict[str, Rule] = {
    "url": text(),
    "detail": DETAIL,
}
_PARTS: dict[str, dict[str, Rule]] = {
    "text": {"type": text(), "text": text(at_most=MAX_TEXT)},
    # beside the picture, as in Qwen's own calls
    "image_url": {"type": text(), "image_url": _image_url, **PIXEL_FIELDS},
}
_OTHER_PARTS = ("input_audio", "audio_url", "video_url", "file", "refusal")


def _part(name: str, value: Any) -> str | PicturePart:
    if not isinstance(value, dict):
        raise wrong(name, "an object with a type", value)
    kind: Any = value.get("type")
    if isinstance(kind, str) and kind in _OTHER_PARTS:
        message = f"{name}.type {kind!r} is not supported: parts are text or image_url"
        raise InvalidRequest(message, param=f"{name}.type")
    kind = one_of(*_PARTS)(f"{name}.type", kind)
    read = read_fields(value, _PARTS[kind], where=name)
    require(read, kind, where=name)
    part: str | PicturePart = read[kind]
    numbers = {key: read[key] for key in PIXEL_FIELDS if key in read}
    if numbers and isinstance(part, PicturePart):
        part = replace(part, pixels=replace(part.pixels, **numbers))
    return part


def _content(name: str, value: Any) -> tuple[str | PicturePart, ...]:
    if isinstance(value, str):
        return (text(at_most=MAX_TEXT)(name, value),)
    if not isinstance(value, list):
        raise wrong(name, "a string or a list of parts", value)
    parts = list_of(_part, at_most=MAX_PARTS, noun="parts")(name, value)
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
    "reasoning": only_values("", why="no model here reasons before it answers"),
    "reasoning_content": only_values("", why="no model here reasons before it answers"),
}


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


def _messages(name: str, value: Any) -> tuple[BodyMessage, ...]:
    messages = list_of(_message, at_most=MAX_MESSAGES, noun="messages")(name, value)
    if not messages:
        raise InvalidRequest(f"{name} is empty; at least one message is needed", param=name)
    return tuple(messages)


# -- other fields ----------------------------------------------------------------------------------
def _stop(name: str, value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    each = text(at_most=MAX_STOP_CHARS)
    found = list_of(each, at_most=MAX_STOPS, noun="strings")(name, stops)
    if "" in found:  # it would end every answer before its first character
        raise InvalidRequest(f"{name} holds an empty string", param=name)
    return tuple(found)


def _response_format(name: str, value: Any) -> object:
    rules: dict[str, Rule] = {"type": text(), "json_schema": lambda _, given: given}
    read = read_fields(value, rules, where=name)
    require(read, "type", where=name)
    return only_values("text", why="answers are plain text")(f"{name}.type", read["type"])


def _stream_options(name: str, value: Any) -> StreamOptions:
    rules: dict[str, Rule] = {
        "include_usage": flag,
        "include_obfuscation": only_values(False, why="chunks are not padded"),
        "continuous_usage_stats": flag,
    }
    return StreamOptions(**read_fields(value, rules, where=name))


PIXELS: dict[str, Rule] = {**PIXEL_FIELDS, "mm_processor_kwargs": processor_kwargs}
FIELDS: dict[str, Rule] = {
    **PIXELS,
    "model": text(),
    "messages": _messages,
    "max_tokens": whole(1, MAX_TOKENS),
    "max_completion_tokens": whole(1, MAX_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0, 1, above=True),
    "top_k": whole(-1, MAX_TOKENS),
    "repetition_penalty": number(0, 100, above=True),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "seed": whole(0, MAX_SEED),
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
    "tool_choice": only_values("none", why=_NO_TOOLS),
    "parallel_tool_calls": only_values(why=_NO_TOOLS),
    "functions": only_values([], why=_NO_TOOLS),
    "function_call": only_values("none", why=_NO_TOOLS),
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
