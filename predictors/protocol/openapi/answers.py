"""The answers of chat as schemas for the OpenAPI document: whole ones and the chunks of a stream.

Answers may have further fields, so nothing here forbids them.
"""

from __future__ import annotations

from predictors.protocol.openai.token_fields import MAX_TOP_LOGPROBS
from predictors.protocol.openapi.parts import Json, complete_object, schema_ref

_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_TOKEN: Json = {
    "token": {"type": "string", "description": "Its text; bytes of a part of a character as \\xf0"},
    "logprob": {
        "type": "number",
        "maximum": 0,
        "description": "Natural, of the raw logits: before temperature, penalties and bias",
    },
    "bytes": {
        "type": ["array", "null"],
        "items": {"type": "integer", "minimum": 0, "maximum": 255},
        "description": "Of UTF-8; null of a control token that the text does not show",
    },
}
_SIZE: Json = complete_object({"width": _COUNT, "height": _COUNT, "tokens": _COUNT})
_TOP: Json = {"type": "array", "maxItems": MAX_TOP_LOGPROBS, "items": schema_ref("LikelyToken")}


def chat_answer_schemas() -> Json:
    """Components by name: `ChatAnswer`, `ChatChunk`, and what they are made of."""
    return {
        "LikelyToken": complete_object(_TOKEN),
        "ChoiceLogprobs": complete_object(
            {
                "content": {
                    "type": "array",
                    "description": "One entry per token of the text, in order",
                    "items": complete_object({**_TOKEN, "top_logprobs": _TOP}),
                },
                "refusal": {"type": "null"},
            }
        ),
        "ChatUsage": _usage(),
        "ChatAnswer": _answer("chat.completion", "message", with_usage=True),
        "ChatChunk": _answer("chat.completion.chunk", "delta", with_usage=False),
    }


def _usage() -> Json:
    schema = complete_object(
        {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}
    )
    cached = {**complete_object({"cached_tokens": _COUNT})}
    about = "Tokens of the prompt that the prefix cache held, where it is on"
    schema["properties"] |= {
        "prompt_tokens_details": {**cached, "description": about},
        "prompt_images": {"type": "array", "items": _SIZE},
    }
    return schema


def _answer(kind: str, said: str, *, with_usage: bool) -> Json:
    logprobs = {"anyOf": [schema_ref("ChoiceLogprobs"), {"type": "null"}]}
    reason = {"type": ["string", "null"]}
    choice = complete_object(
        {"index": _COUNT, said: {"type": "object"}, "logprobs": logprobs, "finish_reason": reason}
    )
    head = {"id": _TEXT, "object": {"const": kind}, "created": _COUNT, "model": _TEXT}
    choices = {"type": "array", "items": choice}
    times = complete_object({"queue_ms": _COUNT, "compute_ms": _COUNT})
    schema = complete_object({**head, "choices": choices})
    usage = schema_ref("ChatUsage")
    schema["properties"] |= {
        "usage": usage if with_usage else {"anyOf": [usage, {"type": "null"}]},
        "timings": times,
        "precision": _TEXT,
        "seed": _COUNT,
    }
    return schema
