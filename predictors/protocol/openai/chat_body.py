"""The body of `POST /v1/chat/completions`, checked field by field.

`read_chat_body` checks names, types and ranges that hold for every chat model. Limits of a
checkpoint (context length, pictures per request, pixels of a picture) are checked by its codec.
Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import AnswerFormat
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai.clients import CHAT_CLIENTS, NO_TOOLS, merged
from predictors.protocol.openai.conversation import BodyMessage
from predictors.protocol.openai.coordinates import coordinates_rule
from predictors.protocol.openai.fields import (
    CLIENT_FIELDS,
    DecodedBody,
    DescribedRule,
    check_body,
    described,
    dropped,
    flag,
    list_of,
    number,
    only_values,
    read_fields,
    require,
    said,
    seed_or_drawn,
    take_named,
    text,
    whole,
)
from predictors.protocol.openai.film_fields import (
    AS_SAMPLED,
    MEDIA_FIELDS,
    RequestedFrames,
    read_media,
)
from predictors.protocol.openai.format_fields import FORMAT_FIELDS, read_format
from predictors.protocol.openai.lora_fields import NamedScales, loras
from predictors.protocol.openai.messages import messages_rule
from predictors.protocol.openai.objects import object_of
from predictors.protocol.openai.pixel_fields import (
    AS_SERVED,
    RequestedPixels,
)
from predictors.protocol.openai.reasoning_fields import LIMITS_OF_REASONING, NO_EFFORT
from predictors.protocol.openai.template_fields import (
    AS_USUAL,
    TEMPLATE_FIELDS,
    TemplateFields,
    read_template_fields,
)
from predictors.protocol.openai.token_fields import (
    TOKEN_FIELDS,
    UNASKED,
    TokenFields,
    read_token_fields,
)
from predictors.protocol.openai.tool_fields import (
    OLDER_FIELDS,
    TOOL_FIELDS,
    OfferedTools,
    read_tools,
)

MAX_N = 16
MAX_STOPS = 16  # OpenAI's is 4
MAX_STOP_CHARS = 1024
MAX_TOKENS = 2**31 - 1  # largest number that is read; generation ends with the context anyway
NO_LIMIT = -1  # `max_tokens` up to the end of the context, as llama.cpp and LM Studio read it

_NO_AUDIO = "answers are text"


# Without slots: pickle restores an object that has slots through a Python function.
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
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    pixels: RequestedPixels = AS_SERVED
    """Bounds of pictures and of frames of films that have none of their own."""
    frames: RequestedFrames = AS_SAMPLED
    """Choice of frames for films that have none of their own."""
    loras: NamedScales | None = None
    tools: OfferedTools | None = None
    """None where no tool may be called."""
    tokens: TokenFields = UNASKED
    template: TemplateFields = AS_USUAL
    answer_format: AnswerFormat | None = None
    coordinates: str | None = None
    less_reasoning: str = field(default="", compare=False)
    """The name of the field that asks for less than a model does that always reasons; such a model
    refuses it, and others answer the same without it."""
    spelt: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The caller's names of these fields, where they differ."""


@dataclass(frozen=True)
class BodyOfChat:
    """A checked body that is a chat in other words. `chat` has all that chats have too."""

    spelt: ClassVar[Mapping[str, str]]
    """The names of a chat's fields on its route, where they differ."""
    chat: ChatBody

    @property
    def model(self) -> str:
        return self.chat.model

    @property
    def stream(self) -> bool:
        return self.chat.stream

    @property
    def n(self) -> int:
        """Its jobs."""
        return self.chat.n


def decode_chat_body(raw: bytes) -> DecodedBody[ChatBody]:
    """Raises `InvalidRequest` for text that is not JSON."""
    return check_body(parse_json(raw), read_chat_body)


def read_chat_body(body: object) -> ChatBody:
    """Raises `InvalidRequest` that names the field."""
    return chat_of(read_fields(body, FIELDS))


def chat_of(read: dict[str, Any]) -> ChatBody:
    """The body of checked fields. Raises `InvalidRequest` for fields that do not go together."""
    require(read, "model", "messages")
    newer = read.pop("max_completion_tokens", None)
    if newer is not None:
        if read.get("max_tokens") is None:
            read["spelt"] = {"max_tokens": "max_completion_tokens"}
        older = read.setdefault("max_tokens", newer)
        if older != newer:
            message = f"max_tokens {older} and max_completion_tokens {newer} disagree"
            raise InvalidRequest(message, param="max_completion_tokens")
    if not read.keys().isdisjoint(FORMAT_FIELDS):
        read["answer_format"] = read_format(read)
    if not read.keys().isdisjoint(MEDIA_FIELDS):
        read["pixels"], read["frames"] = read_media(read)
    if not read.keys().isdisjoint(TOOL_FIELDS):
        read["tools"] = read_tools(read)
    if not read.keys().isdisjoint(TOKEN_FIELDS):
        read["tokens"] = read_token_fields(read)
    if not read.keys().isdisjoint(TEMPLATE_FIELDS):
        read["template"] = read_template_fields(read, read["messages"])
    if not read.keys().isdisjoint(LIMITS_OF_REASONING):
        read["less_reasoning"] = take_named(read, LIMITS_OF_REASONING)
    return ChatBody(**read)


# -- fields ----------------------------------------------------------------------------------------
_ONE_STOP = text(at_most=MAX_STOP_CHARS)
_STOPS = list_of(_ONE_STOP, at_most=MAX_STOPS, noun="strings")


@described({"anyOf": [_ONE_STOP.schema, _STOPS.schema]})
def _stop(name: str, value: Any) -> tuple[str, ...]:
    is_one = isinstance(value, str)
    found = [_ONE_STOP.check(name, value)] if is_one else _STOPS.check(name, value)
    if "" in found:  # it would end every answer before its first character
        raise InvalidRequest(f"{name} holds an empty string", param=name)
    return tuple(found)


_STREAM_OPTIONS: dict[str, DescribedRule] = {
    "include_usage": said("One more event at the end has the token counts.", flag, default=False),
    "include_obfuscation": only_values(False, why="chunks are not padded"),
    "continuous_usage_stats": said(
        "Every event has the token counts so far; needs `include_usage`.", flag, default=False
    ),
}


@object_of(_STREAM_OPTIONS)
def _stream_options(name: str, read: dict[str, Any]) -> StreamOptions:
    """Without `stream` they change nothing: a whole answer has its usage."""
    return StreamOptions(**read)


OWN_FIELDS: dict[str, DescribedRule] = {
    **MEDIA_FIELDS,
    "model": said("Name of the model, of one of its aliases, or `MODEL:ADAPTER`.", text()),
    "messages": said("The conversation, oldest message first.", messages_rule),
    "max_tokens": said(
        "Most tokens of an answer; -1 goes on to the end of the context.",
        whole(1, MAX_TOKENS, or_value=NO_LIMIT),
    ),
    "max_completion_tokens": said(
        "OpenAI's newer name of `max_tokens`.", whole(1, MAX_TOKENS, or_value=NO_LIMIT)
    ),
    "temperature": said("How freely tokens are drawn; 0 always takes the likeliest.", number(0, 2)),
    "top_p": said(
        "Only the likeliest tokens that have this probability together are drawn.",
        number(0, 1, above=True),
    ),
    "top_k": said(
        "Only so many of the likeliest tokens are drawn; -1 and 0 are all.", whole(-1, MAX_TOKENS)
    ),
    "repetition_penalty": said(
        "Above 1, tokens of the prompt and the answer are drawn less often.",
        number(0, 100, above=True),
    ),
    "presence_penalty": said(
        "Taken from the logit of each token that the answer has.", number(-2, 2)
    ),
    "frequency_penalty": said(
        "Taken from the logit of a token each time that the answer has it.", number(-2, 2)
    ),
    "min_p": said(
        "Tokens less likely than this part of the likeliest one are not drawn.", number(0, 1)
    ),
    **TOKEN_FIELDS,
    **TEMPLATE_FIELDS,
    "seed": seed_or_drawn,
    "stop": said("Texts that end an answer, which does not have them.", _stop),
    "n": said("Answers to one prompt; answer i uses seed + i.", whole(1, MAX_N), default=1),
    "loras": loras,
    **TOOL_FIELDS,
    **FORMAT_FIELDS,
    "coordinates": said(
        "The pixels that coordinates in `boxes` of the answer count.",
        coordinates_rule,
        default="model",
    ),
    "ignore_eos": said(
        "The answer goes on to `max_tokens`, whatever the model says.", flag, default=False
    ),  # vLLM's; benchmarks need it
    "stream": said("Answer with server-sent events as tokens come.", flag, default=False),
    "stream_options": said("What the events of a stream have beside text.", _stream_options),
    # these can't change the answer
    **CLIENT_FIELDS,
    "prompt_cache_retention": dropped(str),
    "prompt_cache_options": dropped(dict),
    # these are only taken at the value that is served anyway
    **OLDER_FIELDS,
    "web_search_options": only_values(why=NO_TOOLS),
    "modalities": only_values(["text"], why=_NO_AUDIO),
    "audio": only_values(why=_NO_AUDIO),
    "prediction": only_values(why="there is no speculative decoding to be guided"),
    "reasoning_effort": NO_EFFORT,
    "verbosity": only_values("medium", why="the prompt is what sets the length"),
    "moderation": only_values(why="there is no moderation to be set"),
}
"""OpenAI's and our own fields."""
FIELDS: dict[str, DescribedRule] = {**merged(CHAT_CLIENTS), **OWN_FIELDS}
