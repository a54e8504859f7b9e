"""The answers of OpenAI's routes as schemas for the OpenAPI document: whole ones and events.

Answers may have further fields, so nothing here forbids them. A test holds the answers of a server
against these schemas, in which each field that comes must be named.
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
        "ChatMessage": _MESSAGE,
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
    reason = {"type": ["string", "null"], "description": "`stop`, `length` or `tool_calls`."}
    words = schema_ref("ChatMessage")
    choice = complete_object(
        {"index": _COUNT, said: words, "logprobs": logprobs, "finish_reason": reason}
    )
    return _text_answer(kind, choice, with_usage=with_usage)


def _text_answer(kind: str, choice: Json, *, with_usage: bool) -> Json:
    head = {
        "id": _TEXT,
        "object": {"type": "string", "enum": [kind]},
        "created": _COUNT,
        "model": _TEXT,
        "choices": {"type": "array", "items": choice},
    }
    schema = complete_object(head)
    usage = schema_ref("ChatUsage")
    schema["properties"] |= {
        "usage": usage if with_usage else {"anyOf": [usage, {"type": "null"}]},
        **_EFFORT,
    }
    if with_usage:
        schema["required"].append("usage")
    return schema


_TIMES = complete_object({"queue_ms": _COUNT, "compute_ms": _COUNT})
_EFFORT: Json = {"timings": _TIMES, "precision": _TEXT, "seed": _COUNT}
_CALL = {
    "type": "object",
    "description": "A call of a tool.",
    "properties": {
        "index": _COUNT,
        "id": _TEXT,
        "type": _TEXT,
        "function": {
            "type": "object",
            "properties": {"name": _TEXT, "arguments": _TEXT},
        },
    },
}
_MESSAGE: Json = {
    "type": "object",
    "description": "A message, or what is new of it.",
    "properties": {
        "role": _TEXT,
        "content": {"type": ["string", "null"]},
        "refusal": {"type": ["string", "null"]},
        "tool_calls": {"type": "array", "items": _CALL},
        "boxes": {"type": "array", "items": {"type": "object"}},
    },
}


# -- completions, responses, tokens ----------------------------------------------------------------
def completion_schemas() -> Json:
    numbers = {"type": "array", "items": {"type": ["number", "null"]}}
    texts = {"type": "array", "items": _TEXT}
    likely = {"type": "object", "additionalProperties": {"type": "number"}}
    fields = {
        "text_offset": {"type": "array", "items": _COUNT},
        "tokens": texts,
        "token_logprobs": numbers,
        "top_logprobs": {"type": "array", "items": {"anyOf": [likely, {"type": "null"}]}},
    }
    logprobs = {"anyOf": [complete_object(fields), {"type": "null"}]}
    reason = {"type": ["string", "null"]}
    choice = complete_object(
        {"index": _COUNT, "text": _TEXT, "logprobs": logprobs, "finish_reason": reason}
    )
    kind = "text_completion"
    return {
        "ChatUsage": _usage(),
        "CompletionAnswer": _text_answer(kind, choice, with_usage=True),
        "CompletionChunk": _text_answer(kind, choice, with_usage=False),
    }


def response_schemas() -> Json:
    """Schemas of the answers of `/v1/responses`. All events have a type and a number; the rest
    differs."""
    head = {
        "id": _TEXT,
        "object": {"type": "string", "enum": ["response"]},
        "created_at": _COUNT,
        "status": {
            "type": "string",
            "enum": ["in_progress", "completed", "incomplete", "failed"],
        },
        "model": _TEXT,
        "output": {"type": "array", "items": schema_ref("ResponseItem")},
    }
    whole = complete_object(head)
    either: Json = {"type": ["object", "null"]}
    whole["properties"] |= dict.fromkeys(("error", "incomplete_details", "usage"), either)
    whole["properties"] |= _EFFORT
    event = complete_object({"type": _TEXT, "sequence_number": _COUNT})
    return {
        "ResponseItem": {
            "type": "object",
            "required": ["id", "type", "status"],
            "properties": {
                "id": _TEXT,
                "type": {"type": "string", "enum": ["message", "function_call"]},
                "status": _TEXT,
                "role": _TEXT,
                "content": {"type": "array", "items": {"type": "object"}},
                "name": _TEXT,
                "call_id": _TEXT,
                "arguments": _TEXT,
            },
        },
        "ResponseObject": whole,
        "ResponseEvent": event,
    }


def message_schemas() -> Json:
    """Schemas of the answers of `/v1/messages`. All events have a type; the rest differs."""
    whole = complete_object(
        {
            "id": _TEXT,
            "type": {"type": "string", "enum": ["message"]},
            "role": {"type": "string", "enum": ["assistant"]},
            "model": _TEXT,
            "content": {"type": "array", "items": schema_ref("MessageBlock")},
            "stop_reason": {
                "type": "string",
                "enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"],
            },
            "stop_sequence": {"type": ["string", "null"]},
            "usage": schema_ref("MessageUsage"),
        }
    )
    whole["properties"] |= {**_EFFORT, "boxes": {"type": "array", "items": {"type": "object"}}}
    counts = ("input_tokens", "output_tokens")
    cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
    usage = complete_object(dict.fromkeys((*counts, *cached), _COUNT))
    usage["properties"]["prompt_images"] = {"type": "array", "items": _SIZE}
    return {
        "MessageBlock": {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"type": "string", "enum": ["text", "tool_use"]},
                "text": _TEXT,
                "id": _TEXT,
                "name": _TEXT,
                "input": {"type": "object"},
                "partial_json": {**_TEXT, "description": "The input of a call that was cut off."},
            },
        },
        "MessageUsage": usage,
        "MessageAnswer": whole,
        "MessageEvent": complete_object({"type": _TEXT}),
        "MessageTokens": complete_object({"input_tokens": _COUNT}),
    }


def token_schemas() -> Json:
    tokens = {
        "count": _COUNT,
        "max_model_len": _COUNT,
        "tokens": {"type": "array", "items": _COUNT},
    }
    found = complete_object(tokens)
    texts = {"type": ["array", "null"], "items": _TEXT}
    found["properties"]["token_strs"] = texts
    return {"TokensAnswer": found, "TextAnswer": complete_object({"prompt": _TEXT})}


# -- pictures --------------------------------------------------------------------------------------
def picture_schemas() -> Json:
    effort: Json = {
        "output_format": _TEXT,
        "size": _TEXT,
        "usage": _picture_usage(),
        "timings": _TIMES,
        "prompt_tokens_unread": _COUNT,
        "provenance": _TEXT,
        "tier": _TEXT,
        "precision": _TEXT,
        "num_inference_steps": _COUNT,
        "num_model_steps": _COUNT,
    }
    used = complete_object({"name": _TEXT, "scale": {"type": "number"}})
    more: Json = {"strength": {"type": "number"}, "loras": {"type": "array", "items": used}}
    picture: Json = {
        "type": "object",
        "required": ["seed"],
        "properties": {
            "b64_json": {"type": "string", "contentEncoding": "base64"},
            "url": {"type": "string", "format": "uri"},
            "seed": _COUNT,
            "blank": {"type": "boolean", "description": "A checker withheld the picture."},
        },
    }
    pictures = {"type": "array", "items": schema_ref("Picture")}
    whole = complete_object({"created": _COUNT, "data": pictures, **effort})
    whole["properties"] |= more
    event = complete_object({"type": _TEXT})
    event["properties"] |= {
        **picture["properties"],
        **effort,
        **more,
        "created_at": _COUNT,
        "quality": _TEXT,
        "background": _TEXT,
        "partial_image_index": _COUNT,
        "step": _COUNT,
        "steps": _COUNT,
    }
    event["description"] = "Its type ends in `.progress`, `.partial_image` or `.completed`."
    return {"Picture": picture, "PicturesAnswer": whole, "PictureEvent": event}


def _picture_usage() -> Json:
    details = complete_object({"text_tokens": _COUNT, "image_tokens": _COUNT})
    return complete_object(
        {
            "input_tokens": _COUNT,
            "input_tokens_details": details,
            "output_tokens": _COUNT,
            "total_tokens": _COUNT,
        }
    )


# -- models ----------------------------------------------------------------------------------------
def listing_schemas() -> Json:
    card: Json = {
        "id": _TEXT,
        "object": {"type": "string", "enum": ["model"]},
        "created": _COUNT,
        "owned_by": _TEXT,
    }
    model = complete_object(card)
    model["properties"] |= {
        "parent": {"type": "string", "description": "The model of an adapter."},
        "max_model_len": {**_COUNT, "description": "Tokens of prompt and answer; of chat models."},
        "name": _TEXT,
        "ready": {"type": "boolean"},
    }
    cards = {"type": "array", "items": schema_ref("ModelCard")}
    names = {"type": "array", "items": _TEXT}
    kind = {"type": "string", "enum": ["list"]}
    return {
        "ModelCard": model,
        "ModelCards": complete_object({"object": kind, "data": cards, "models": names}),
    }
