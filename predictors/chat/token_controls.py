"""Controls of single tokens, made of the fields of a chat body or of V2's parameters and held
against the model's vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from predictors.chat.limits import check_controls
from predictors.chat.logprobs import LogprobWriter, LogprobWriters
from predictors.chat.request import NO_CONTROLS, ChatRequest, Controls, TextOptions
from predictors.chat.template_options import prompt_options
from predictors.protocol.openai.chat_body import MAX_TOKENS, NO_LIMIT
from predictors.protocol.openai.template_fields import AS_USUAL, TemplateFields, template_text
from predictors.protocol.openai.token_fields import UNASKED, TokenFields, read_token_parameters
from predictors.protocol.v2.values import Parameters, V2Request

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


class OptionsKnown(Protocol):
    """The parts of a model that options are held against."""

    @property
    def logprobs(self) -> LogprobWriters | None: ...

    @property
    def variables(self) -> frozenset[str]: ...

    @property
    def opens_thinking(self) -> bool: ...


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


def with_options(
    request: ChatRequest, tokens: TokenFields, template: TemplateFields, known: OptionsKnown
) -> ChatRequest:
    """The request under options that few ask for. Raises `InvalidRequest`."""
    if tokens is not UNASKED:
        size = 0 if known.logprobs is None else known.logprobs.vocabulary_size
        text = TextOptions(tokens.include_stop_str_in_output, not tokens.skip_special_tokens)
        controls = controls_of(tokens, size, request.max_tokens)
        request = replace(request, controls=controls, text=text)
    if template is not AS_USUAL:
        options = prompt_options(template, known.variables, opens_thinking=known.opens_thinking)
        request = replace(request, prompt=options)
    return request


def v2_writer(
    request: V2Request, row: ChatRequest, writers: LogprobWriters | None
) -> LogprobWriter | None:
    """The writer of V2's logprobs; None where none are asked for."""
    if row.controls.logprobs is None or writers is None:
        return None
    return writers.of(row, as_ids=request.parameters.get("return_tokens_as_token_ids") is True)
