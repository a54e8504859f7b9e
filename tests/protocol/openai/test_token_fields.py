"""Fields of single tokens, as JSON and as V2's texts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.openai.chat_body import ChatBody, read_chat_body
from predictors.protocol.openai.token_fields import (
    TEXTS,
    TOKEN_FIELDS,
    UNASKED,
    TokenFields,
    read_token_parameters,
)

NAMES = sorted(TOKEN_FIELDS)


def read(**fields: Any) -> ChatBody:
    messages = [{"role": "user", "content": "hello"}]
    return read_chat_body({"model": "qwen-vl", "messages": messages, **fields})


def as_parameters(fields: dict[str, Any]) -> dict[str, Any]:
    """As `token_parameters` reads them from a V2 request."""
    return {n: json.dumps(v) if n in TEXTS and v is not None else v for n, v in fields.items()}


def test_a_body_without_these_fields_shares_one_value() -> None:
    assert read().tokens is UNASKED
    assert read(**dict.fromkeys(NAMES)).tokens == UNASKED


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"logprobs": False, "top_logprobs": 0, "logit_bias": {}}, TokenFields()),
        ({"stop_token_ids": [], "min_tokens": 0, "skip_special_tokens": True}, TokenFields()),
        ({"logprobs": True}, TokenFields(logprobs=True)),
        ({"logprobs": True, "top_logprobs": 20}, TokenFields(logprobs=True, top_logprobs=20)),
        ({"logprobs": True, "top_logprobs": 2.0}, TokenFields(logprobs=True, top_logprobs=2)),
        (
            {"logit_bias": {"42": -100, "7": 0.5, "9": 0}},
            TokenFields(logit_bias=((7, 0.5), (42, -100.0))),
        ),
        ({"min_tokens": 5}, TokenFields(min_tokens=5)),
        ({"stop_token_ids": [9, 3, 9]}, TokenFields(stop_token_ids=(3, 9))),
        ({"include_stop_str_in_output": True}, TokenFields(include_stop_str_in_output=True)),
        ({"skip_special_tokens": False}, TokenFields(skip_special_tokens=False)),
        (
            {"logprobs": True, "return_tokens_as_token_ids": True},
            TokenFields(logprobs=True, return_tokens_as_token_ids=True),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_chat_and_v2_read_the_same(given: dict[str, Any], expected: TokenFields) -> None:
    assert read(**given).tokens == expected
    assert read_token_parameters(as_parameters(given)) == expected


BAD_BIAS: list[Any] = [
    [], "5", {"a": 1}, {"-1": 1}, {"1.5": 1}, {" 1": 1}, {"01": 1}, {"+1": 1}, {"\u0663": 1},
    {"": 1}, {"1" * 11: 1}, {"1" * 40: 1},
]  # fmt: skip
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"logprobs": 5}, "logprobs"),
    ({"logprobs": "true"}, "logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 1.5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": True}, "top_logprobs"),
    *(({"logit_bias": bias}, "logit_bias") for bias in BAD_BIAS),
    ({"logit_bias": {"1": 100.5}}, "logit_bias.1"),
    ({"logit_bias": {"1": -101}}, "logit_bias.1"),
    ({"logit_bias": {"1": "5"}}, "logit_bias.1"),
    ({"logit_bias": {"1": True}}, "logit_bias.1"),
    ({"logit_bias": {"1": None}}, "logit_bias.1"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 2**31}, "min_tokens"),
    ({"min_tokens": "x"}, "min_tokens"),
    ({"stop_token_ids": {"1": 1}}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [1, "2"]}, "stop_token_ids[1]"),
    ({"stop_token_ids": [None]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [2**31]}, "stop_token_ids[0]"),
    ({"stop_token_ids": list(range(129))}, "stop_token_ids"),
    ({"include_stop_str_in_output": "yes"}, "include_stop_str_in_output"),
    ({"skip_special_tokens": 1}, "skip_special_tokens"),
    ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids"),
]


@pytest.mark.parametrize(("given", "param"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_chat_and_v2_refuse_the_same_by_name(given: dict[str, Any], param: str) -> None:
    for ask in (lambda: read(**given), lambda: read_token_parameters(as_parameters(given))):
        with pytest.raises(InvalidRequest) as refused:
            ask()
        assert refused.value.param == param
        assert param in refused.value.message
        assert len(refused.value.message) < 200


def test_as_many_biases_and_stop_tokens_as_promised_are_read() -> None:
    biases = {str(i): -100 for i in range(1024)}
    found = read(logit_bias=biases, stop_token_ids=list(range(128))).tokens
    assert (len(found.logit_bias), len(found.stop_token_ids)) == (1024, 128)


@pytest.mark.parametrize("text", ["", "x", "{", '{"1": NaN}', '{"1": 1, "1": 2}', "[" * 99])
@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_text_that_is_no_json_is_refused_with_an_example(name: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match="such as") as refused:
        read_token_parameters({name: text})
    assert refused.value.param == name
    assert refused.value.message.startswith(name)


def test_a_text_is_bounded_before_it_is_parsed() -> None:
    with pytest.raises(InvalidRequest, match="at most 65536"):
        read_token_parameters({"logit_bias": "[" * 70_000})
