"""The body of `POST /v1/responses`, checked field by field and read as a chat.

Nothing is kept: fields that refer to earlier answers are refused. Worker processes import this
module, so nothing here loads gRPC.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai import chat_body
from predictors.protocol.openai.chat_body import MAX_TOKENS, BodyOfChat, chat_of
from predictors.protocol.openai.clients import ROUTER_FIELDS, Tables, merged
from predictors.protocol.openai.conversation import BodyMessage
from predictors.protocol.openai.fields import (
    DecodedBody,
    DescribedRule,
    check_body,
    described,
    dropped,
    flag,
    list_of,
    one_of,
    only_values,
    read_fields,
    require,
    said,
    text,
    whole,
    wrong,
)
from predictors.protocol.openai.film_fields import MEDIA_FIELDS
from predictors.protocol.openai.format_fields import FORMAT_FIELDS
from predictors.protocol.openai.messages import MAX_TEXT
from predictors.protocol.openai.objects import changes_nothing, field_value, object_of
from predictors.protocol.openai.reasoning_fields import IN_THE_TEXT, NO_EFFORT
from predictors.protocol.openai.responses_input import input_rule
from predictors.protocol.openai.responses_tools import flat_format, flat_tool_choice, flat_tools
from predictors.protocol.openai.tool_fields import TOOL_FIELDS

MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512  # of `metadata`, as OpenAI
MAX_INCLUDED = 16
MAX_LABEL = 512  # characters of a text that names the caller
_NOT_KEPT = "answers are not kept; send the whole conversation as input"

SPELT = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}
"""Fields of a chat as this route calls them."""


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class ResponsesBody(BodyOfChat):
    """A checked body. `shown` are fields that the answer repeats."""

    spelt = SPELT
    shown: Mapping[str, Any]
    created_at: int = field(default_factory=lambda: int(time.time()), compare=False)
    """Unix seconds."""


def decode_responses_body(raw: bytes) -> DecodedBody[ResponsesBody]:
    """Raises `InvalidRequest` for text that is not JSON."""
    return check_body(parse_json(raw), read_responses_body)


def read_responses_body(body: object) -> ResponsesBody:
    """Raises `InvalidRequest` that names the field."""
    read = read_fields(body, FIELDS)
    require(read, "model", "input")
    assert isinstance(body, dict)
    chat = {name: value for name, value in read.items() if name in FROM_CHAT or name in TOOL_FIELDS}
    chat["messages"] = read["input"]
    if "instructions" in read:
        chat["messages"] = (BodyMessage("system", (read["instructions"],)), *chat["messages"])
    if "max_output_tokens" in read:
        chat["max_tokens"] = read["max_output_tokens"]
    if "text" in read:
        chat["response_format"] = read["text"]
    if "reasoning" in read:
        chat["reasoning"] = read["reasoning"]
    most = chat.pop("top_logprobs", 0)
    if LOGPROBS in read.get("include", ()):
        chat |= {"logprobs": True, "top_logprobs": most}
    elif most:
        message = f"top_logprobs needs include: [{LOGPROBS!r}]"
        raise InvalidRequest(message, param="top_logprobs")
    return ResponsesBody(chat_of(chat), _shown(body, read))


def _shown(body: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that OpenAI's answers repeat, at the values that are in force."""
    given = {name: x for name, x in body.items() if x is not None}
    asked = given.get("text", {}).get("format") or {"type": "text"}
    return {
        "background": False,
        "instructions": read.get("instructions"),
        "max_output_tokens": read.get("max_output_tokens"),
        "max_tool_calls": None,
        "metadata": read.get("metadata", {}),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "prompt_cache_key": read.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": read.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "text": {"format": asked, "verbosity": "medium"},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": [{"strict": False, "parameters": None, **each} for each in given.get("tools", ())],
        "top_logprobs": read.get("top_logprobs", 0),
        "truncation": "disabled",
        "user": read.get("user"),
    }


# -- fields ----------------------------------------------------------------------------------------
@described(
    {
        "type": "object",
        "maxProperties": MAX_PAIRS,
        "propertyNames": {"maxLength": MAX_KEY},
        "additionalProperties": {"type": "string", "maxLength": MAX_VALUE},
    }
)
def metadata_rule(name: str, value: Any) -> dict[str, str]:
    """Pairs that the answer repeats."""
    if not isinstance(value, dict):
        raise wrong(name, "an object of strings", value)
    if len(value) > MAX_PAIRS:
        message = f"{name} has {len(value)} pairs; at most {MAX_PAIRS} are taken"
        raise InvalidRequest(message, param=name)
    for key, each in value.items():
        if not isinstance(each, str):
            raise wrong(f"{name}.{key[:MAX_KEY]}", "a string", each)
        if len(key) > MAX_KEY or len(each) > MAX_VALUE:
            limits = f"keys of at most {MAX_KEY} and values of at most {MAX_VALUE} characters"
            raise InvalidRequest(f"{name} takes {limits}", param=name)
    return value


_TEXT: dict[str, DescribedRule] = {
    "format": flat_format,
    "verbosity": only_values("medium", why="the prompt is what sets the length"),
}

_text = object_of(_TEXT)(field_value("format"))
_REASONING: dict[str, DescribedRule] = {
    "effort": NO_EFFORT,
    "summary": dropped(str, why=IN_THE_TEXT),
    "generate_summary": dropped(str, why=IN_THE_TEXT),
}

_reasoning = object_of(_REASONING)(field_value("effort"))
_STREAM_OPTIONS: dict[str, DescribedRule] = {
    "include_obfuscation": only_values(False, why="events are not padded"),
}

_stream_options = object_of(_STREAM_OPTIONS)(changes_nothing)

INCLUDED = (
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "message.input_image.image_url",
)
"""Parts of items that no answer here has."""
LOGPROBS = "message.output_text.logprobs"
_NAMES = list_of(one_of(LOGPROBS, *INCLUDED), at_most=MAX_INCLUDED, noun="names")


@described({**_NAMES.schema, "description": f"Only {LOGPROBS} has an effect."})
def _include(name: str, value: Any) -> list[str]:
    names: list[str] = _NAMES.check(name, value)
    return names


OTHER_FORMATS = tuple(name for name in FORMAT_FIELDS if name != "response_format")
FROM_CHAT = (
    "model", "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "stop", "ignore_eos", "loras", "stream", "min_p", "logit_bias",
    "min_tokens", "stop_token_ids", "include_stop_str_in_output", "skip_special_tokens",
    "chat_template_kwargs", "top_logprobs", "coordinates", *MEDIA_FIELDS, *OTHER_FORMATS,
)  # fmt: skip
"""Fields with the meaning that they have in a chat."""

OWN_FIELDS: dict[str, DescribedRule] = {
    **{name: chat_body.FIELDS[name] for name in FROM_CHAT},
    "input": said("A text, or the items of the conversation, oldest first.", input_rule),
    "instructions": said("A system message before the input.", text(at_most=MAX_TEXT)),
    "max_output_tokens": said("Most tokens of the answer.", whole(1, MAX_TOKENS)),
    "text": said("The format of the answer.", _text),
    "tools": said("Functions that the model may call.", flat_tools),
    "tool_choice": said("Whether a tool may or must be called, or which one.", flat_tool_choice),
    "parallel_tool_calls": said("An answer may have several calls.", flag, default=True),
    "include": _include,
    "metadata": said("Pairs that the answer repeats.", metadata_rule),
    "user": said("A name of the end user, which the answer repeats.", text(at_most=MAX_LABEL)),
    "safety_identifier": said("The same under OpenAI's newer name.", text(at_most=MAX_LABEL)),
    "prompt_cache_key": said("A text that the answer repeats.", text(at_most=MAX_LABEL)),
    # these can't change the answer
    "store": dropped(bool, why="answers are not kept, and say store: false"),
    "service_tier": dropped(str),
    "prompt_cache_retention": dropped(str),
    "prompt_cache_options": dropped(dict),
    "max_tool_calls": dropped(float, why="it counts calls of built-in tools"),
    # these are only taken at the value that is served anyway
    "stream_options": said("Nothing in it changes the answer.", _stream_options),
    "previous_response_id": only_values(why=_NOT_KEPT),
    "conversation": only_values(why=_NOT_KEPT),
    "background": only_values(False, why="an answer is there when its request ends"),
    "prompt": only_values(why="prompt templates are not kept; send input and instructions"),
    "truncation": only_values("disabled", why="prompts are not shortened"),
    "context_management": only_values([], why="prompts are not shortened"),
    "reasoning": said("Nothing in it changes the answer.", _reasoning),
    "moderation": only_values(why="there is no moderation to be set"),
}
"""OpenAI's and our own fields."""
_OTHER_NAME = "here it is called"
CLIENTS: Tables = {
    "LiteLLM": ROUTER_FIELDS,
    "chats": {
        "messages": only_values(why=f"{_OTHER_NAME} input"),
        "max_tokens": only_values(why=f"{_OTHER_NAME} max_output_tokens"),
        "max_completion_tokens": only_values(why=f"{_OTHER_NAME} max_output_tokens"),
        "response_format": only_values(why=f"{_OTHER_NAME} text.format"),
        "reasoning_effort": only_values(why=f"{_OTHER_NAME} reasoning.effort"),
        "verbosity": only_values(why=f"{_OTHER_NAME} text.verbosity"),
        "n": only_values(1, why="a response is one answer"),
    },
}
FIELDS: dict[str, DescribedRule] = {**merged(CLIENTS), **OWN_FIELDS}
