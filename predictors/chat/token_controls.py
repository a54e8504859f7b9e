"""What a caller asks of single tokens, as the engine and the reader of the answer take it: from a
chat body or from V2's parameters, held against the model's vocabulary.
"""

from __future__ import annotations

from typing import Any

from predictors.chat.request import (
    NO_CONTROLS,
    USUAL_TEXT,
    Controls,
    TextOptions,
)
from predictors.errors import InvalidRequest
from predictors.protocol.openai.template_fields import AS_USUAL, TemplateFields, template_text
from predictors.protocol.openai.token_fields import UNASKED, TokenFields, read_token_texts
from predictors.protocol.v2.values import Parameters

FLAGS = (
    "logprobs", "include_stop_str_in_output", "skip_special_tokens", "return_tokens_as_token_ids",
)  # fmt: skip
NUMBERS = ("top_logprobs", "min_tokens")
TEXTS = ("logit_bias", "stop_token_ids")


def token_parameters(parameters: Parameters) -> TokenFields:
    given: dict[str, Any] = {name: parameters.read_flag(name) for name in FLAGS}
    given |= {name: parameters.read_int(name) for name in NUMBERS}
    given |= {name: parameters.read_text(name) for name in TEXTS}
    present = {name: value for name, value in given.items() if value is not None}
    return read_token_texts(present) if present else UNASKED


def template_parameters(parameters: Parameters) -> TemplateFields:
    found = parameters.read_text("chat_template_kwargs")
    return AS_USUAL if found is None else TemplateFields(template_text(found))


def controls_of(asked: TokenFields, vocabulary_size: int, max_tokens: int | None) -> Controls:
    """Raises `InvalidRequest` for ids beyond the vocabulary and numbers that contradict each
    other."""
    if asked is UNASKED:
        return NO_CONTROLS
    for name, tokens in (
        ("logit_bias", [token for token, _ in asked.logit_bias]),
        ("stop_token_ids", asked.stop_token_ids),
    ):
        if tokens and max(tokens) >= vocabulary_size:
            problem = f"{name} holds token id {max(tokens)}; the model has 0 to"
            raise InvalidRequest(f"{problem} {vocabulary_size - 1}", param=name)
    check_least(asked.min_tokens, max_tokens)
    return Controls(
        logit_bias=asked.logit_bias,
        min_tokens=asked.min_tokens,
        stop_token_ids=frozenset(asked.stop_token_ids),
        logprobs=asked.top_logprobs if asked.logprobs else None,
    )


def check_least(min_tokens: int, max_tokens: int | None) -> None:
    """Raise `InvalidRequest` for more `min_tokens` than `max_tokens`, where both are numbers of
    tokens."""
    if max_tokens is not None and 0 <= max_tokens < min_tokens:
        message = f"min_tokens {min_tokens} is above max_tokens {max_tokens}; lower it"
        raise InvalidRequest(message, param="min_tokens")


def text_options_of(asked: TokenFields) -> TextOptions:
    if asked is UNASKED:
        return USUAL_TEXT
    return TextOptions(asked.include_stop_str_in_output, not asked.skip_special_tokens)
