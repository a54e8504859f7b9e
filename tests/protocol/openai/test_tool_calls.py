"""Arguments of calls in conversations: what is taken can be read by any reader of JSON."""

from __future__ import annotations

import json

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.openai.tool_calls import arguments_rule


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('\ufeff{"a": 1}', {"a": 1}),
        (' \n{"a": 1}\t', {"a": 1}),
        ("", {}),
        (" \n", {}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "\N{GRINNING FACE}"}),
        ('{"a": 1.0, "b": 12345678901234567890}', {"a": 1.0, "b": 12345678901234567890}),
    ],
)
def test_arguments_that_are_taken_are_json(text: str, value: object) -> None:
    assert json.loads(arguments_rule.check("arguments", text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff",
        "\ufeff\ufeff{}",
        '{"a": NaN}',
        '{"a": 1, "\\u0061": 2}',
        '{"a": "\\ud800"}',
        '{"a": "\ud800"}',
        "{}{}",
        "{,}",
        "[" * 10_000,
        "[]",
        "null",
    ],
)
def test_other_arguments_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        arguments_rule.check("tool_calls[0].arguments", text)
    assert caught.value.param == "tool_calls[0].arguments"
