"""The fields of a chat body that concern single tokens: logprobs, biases, how an answer ends, and
which tokens its text shows. V2 takes the same names; its lists and objects are JSON in a text.

Ids are checked for their type here; a model's codec holds them against its vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    flag,
    list_of,
    number,
    said,
    whole,
    wrong,
)
from predictors.protocol.openai.json_texts import parse_json_text

MAX_TOKENS = 2**31 - 1  # largest number that is read
MAX_TOP_LOGPROBS = 20  # as OpenAI
MAX_BIASES = 1024
MAX_BIAS = 100.0  # as OpenAI
MAX_STOP_TOKENS = 128
MAX_TEXT = 65_536  # characters of a V2 parameter
_ID = re.compile(r"(?:0|[1-9][0-9]{0,9}+)", re.ASCII)


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class TokenFields:
    """Checked fields or V2 parameters that concern single tokens."""

    logprobs: bool = False
    top_logprobs: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """By id, without biases of 0."""
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_tokens_as_token_ids: bool = False


UNASKED = TokenFields()

_BIAS = number(-MAX_BIAS, MAX_BIAS)
_STOP_TOKENS = list_of(whole(0, MAX_TOKENS), at_most=MAX_STOP_TOKENS, noun="token ids")


@described(
    {
        "type": "object",
        "maxProperties": MAX_BIASES,
        "propertyNames": {"pattern": f"^{_ID.pattern.replace('+', '')}$"},
        "additionalProperties": dict(_BIAS.schema),
        "description": "Bias by token id.",
    }
)
def _logit_bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict):
        raise wrong(name, "an object of biases by token id", value)
    if len(value) > MAX_BIASES:
        message = f"{name} has {len(value)} token ids; at most {MAX_BIASES} are taken"
        raise InvalidRequest(message, param=name)
    found = []
    for key, bias in value.items():
        if _ID.fullmatch(key) is None:
            raise wrong(name, 'an object of biases by token id, such as {"42": -100}', key)
        found.append((int(key), _BIAS.check(f"{name}.{key}", bias)))
    return tuple(sorted((token, bias) for token, bias in found if bias))


@described(_STOP_TOKENS.schema)
def _stop_token_ids(name: str, value: Any) -> tuple[int, ...]:
    return tuple(sorted(set(_STOP_TOKENS.check(name, value))))


TOKEN_FIELDS: dict[str, DescribedRule] = {
    "logprobs": said("Answer with the log probability of each token.", flag, default=False),
    "top_logprobs": said(
        "So many of the likeliest tokens at each place; needs `logprobs`.",
        whole(0, MAX_TOP_LOGPROBS),
        default=0,
    ),
    "logit_bias": said("Added to the logits of tokens.", _logit_bias),
    "min_tokens": said(
        "The answer does not end before it has so many tokens.", whole(0, MAX_TOKENS), default=0
    ),
    "stop_token_ids": said("Ids of tokens that end an answer.", _stop_token_ids),
    "include_stop_str_in_output": said(
        "The answer keeps the text that ended it.", flag, default=False
    ),
    "skip_special_tokens": said("Control tokens are left out of the text.", flag, default=True),
    "return_tokens_as_token_ids": said(
        "Tokens among logprobs are written as `token_id:ID`.", flag, default=False
    ),
}


def read_token_fields(checked: dict[str, Any]) -> TokenFields:
    """Takes these fields out of a body's checked ones. Raises `InvalidRequest` for fields that
    contradict each other."""
    found = TokenFields(**{name: checked.pop(name) for name in TOKEN_FIELDS if name in checked})
    for name in ("top_logprobs", "return_tokens_as_token_ids"):
        if getattr(found, name) and not found.logprobs:
            raise InvalidRequest(f"{name} needs logprobs, which must be true", param=name)
    return found


def read_token_parameters(given: Mapping[str, Any]) -> TokenFields:
    """The token fields of V2's parameters, in which objects and lists are JSON texts. None counts
    as absent."""
    checked = {}
    for name, value in given.items():
        if value is not None:
            if name in TEXTS:
                value = parse_json_text(name, value, MAX_TEXT, TEXTS[name])
            checked[name] = TOKEN_FIELDS[name].check(name, value)
    return read_token_fields(checked)


TEXTS: Mapping[str, str] = {"logit_bias": '{"42": -100}', "stop_token_ids": "[42, 43]"}
"""Fields that are JSON in a V2 parameter, with an example."""
