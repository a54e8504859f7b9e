"""Controls of single tokens, made of the fields of a chat body or of V2's parameters and held
against the model's vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from predictors.chat.limits import check_controls
from predictors.chat.logprobs import LogprobWriters
from predictors.chat.request import NO_CONTROLS, ChatRequest, Controls, TextOptions
from predictors.protocol.openai.chat_body import MAX_TOKENS, NO_LIMIT
from predictors.protocol.openai.template_fields import AS_USUAL, TemplateFields, template_text
from predictors.protocol.openai.token_fields import UNASKED, TokenFields, read_token_parameters
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
    return read_token_parameters(present) if present else UNASKED


def template_parameters(parameters: Parameters) -> TemplateFields:
    found = parameters.read_text("chat_template_kwargs")
    return AS_USUAL if found is None else TemplateFields(template_text(found))


def controls_of(asked: TokenFields, vocabulary_size: int, max_tokens: int | None) -> Controls:
    """Raises `InvalidRequest` for ids beyond the vocabulary and numbers that contradict each other;
    the engine compares with the `max_tokens` that a request without a number gets."""
    found = Controls(
        logit_bias=asked.logit_bias,
        min_tokens=asked.min_tokens,
        stop_token_ids=frozenset(asked.stop_token_ids),
        logprobs=asked.top_logprobs if asked.logprobs else None,
    )
    if max_tokens is None or max_tokens == NO_LIMIT:
        max_tokens = MAX_TOKENS
    check_controls(found, vocabulary_size, max_tokens)
    return found if found != NO_CONTROLS else NO_CONTROLS


def with_controls(
    request: ChatRequest, asked: TokenFields, writers: LogprobWriters | None
) -> ChatRequest:
    """The request with what `asked` says of tokens and text."""
    size = 0 if writers is None else writers.vocabulary_size
    text = TextOptions(asked.include_stop_str_in_output, not asked.skip_special_tokens)
    return replace(request, controls=controls_of(asked, size, request.max_tokens), text=text)
