"""The fields of a chat body, checked: `POST /v1/chat/completions`.

`read_body` checks what every chat model shares: names, types and ranges that hold for all.
Whatever depends on the checkpoint (context length, pictures per request, bytes and pixels of a
picture) is the room's to check. Workers import this module: nothing here loads gRPC.
"""

from __future__ import annotations

from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.json_bodies import parse_json
from predictors.protocol.openai.fields import (
    CLIENT_FIELDS,
    MAX_SEED,
    OpenAIBody,
    Rule,
    flag,
    harmless,
    ignored,
    list_of,
    number,
    read_fields,
    read_openai,
    require,
    text,
    whole,
)
from predictors.protocol.openai.messages import read_files, read_messages

MAX_N = 16
MAX_STOPS = 16  # OpenAI's is 4
MAX_STOP_CHARS = 1024
MAX_TOKENS = 2**31 - 1  # of a number that is read at all; it is cut to the context

_NO_TOOLS = "this server calls no tools"
_NO_AUDIO = "answers are text"
_NO_LOGPROBS = "log probabilities are not computed"
_NO_REASONING = "no model here reasons before it answers"


def _stop(name: str, value: Any) -> list[str]:
    """One string or a list; a list comes out. An empty string would stop everything before it
    began."""
    stops = [value] if isinstance(value, str) else value
    each = text(at_most=MAX_STOP_CHARS)
    found: list[str] = list_of(each, at_most=MAX_STOPS, noun="strings")(name, stops)
    if "" in found:
        raise InvalidRequest(f"{name} holds an empty string", param=name)
    return found


def _response_format(name: str, value: Any) -> object:
    rules: dict[str, Rule] = {"type": text(), "json_schema": lambda _, given: given}
    read = read_fields(value, rules, where=name)
    require(read, "type", where=name)
    return harmless("text", why="answers are plain text")(f"{name}.type", read["type"])


def _stream_options(name: str, value: Any) -> dict[str, Any]:
    rules: dict[str, Rule] = {
        "include_usage": flag,
        "include_obfuscation": harmless(False, why="chunks are not padded"),
        "continuous_usage_stats": flag,  # vLLM's: with `include_usage`, counts in every chunk
    }
    return read_fields(value, rules, where=name)


FIELDS: dict[str, Rule] = {
    "model": text(),
    "messages": read_messages,
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
    # cannot change the answer
    **CLIENT_FIELDS,
    "prompt_cache_retention": ignored(str),
    "prompt_cache_options": ignored(dict),
    # only at the value that is served anyway
    "tools": harmless([], why=_NO_TOOLS),
    "tool_choice": harmless("none", why=_NO_TOOLS),
    "parallel_tool_calls": harmless(why=_NO_TOOLS),
    "functions": harmless([], why=_NO_TOOLS),
    "function_call": harmless("none", why=_NO_TOOLS),
    "web_search_options": harmless(why=_NO_TOOLS),
    "logprobs": harmless(False, why=_NO_LOGPROBS),
    "top_logprobs": harmless(0, why=_NO_LOGPROBS),
    "logit_bias": harmless({}, why="tokens can't be weighted one by one"),
    "modalities": harmless(["text"], why=_NO_AUDIO),
    "audio": harmless(why=_NO_AUDIO),
    "prediction": harmless(why="there is no speculative decoding to be guided"),
    "reasoning_effort": harmless("none", why=_NO_REASONING),
    "verbosity": harmless("medium", why="the prompt is what sets the length"),
    "moderation": harmless(why="there is no moderation to be set"),
    "response_format": _response_format,
}


def read_body(body: object) -> dict[str, Any]:
    """The checked body: absent fields are absent, ignored ones dropped, one spelling for each wish.

    Keys and types: `model` str; `messages` as `openai_messages.read_messages` returns them; and
    if given `max_tokens` int (also for `max_completion_tokens`), `temperature`, `top_p`,
    `repetition_penalty`, `presence_penalty`, `frequency_penalty` float, `top_k` int (-1 and 0:
    off), `seed` int, `stop` list of str, `n` int, `ignore_eos` bool, `stream` bool,
    `stream_options` {`include_usage`: bool}. Raises `InvalidRequest` that names the field.
    """
    read = read_fields(body, FIELDS)
    require(read, "model", "messages")
    newer = read.pop("max_completion_tokens", None)
    if newer is not None:
        older = read.setdefault("max_tokens", newer)
        if older != newer:
            message = f"max_tokens {older} and max_completion_tokens {newer} disagree"
            raise InvalidRequest(message, param="max_completion_tokens")
    if "stream_options" in read and not read.get("stream", False):
        message = "stream_options is only taken with stream true"
        raise InvalidRequest(message, param="stream_options")
    return read


def decode(raw: bytes) -> OpenAIBody:
    """The checked body of a request, its pictures' files read from their data URLs."""
    return read_openai(parse_json(raw), lambda value: read_files(read_body(value)))
