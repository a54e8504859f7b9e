from __future__ import annotations

from typing import Any

import pytest

from predictors.chat.format_parameters import FORMAT_PARAMETERS, read_answer_format
from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import AnswerFormat
from predictors.protocol.v2.values import Parameters


def read(**values: Any) -> AnswerFormat | None:
    return read_answer_format(Parameters(values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"schema": '{"type": "null"}'}, AnswerFormat("json_schema", '{"type":"null"}')),
        ({"schema": "{}"}, AnswerFormat("json_schema", "{}")),
        ({"regex": "a+"}, AnswerFormat("regex", "a+")),
        ({"choice": '["a", "b"]'}, AnswerFormat("choice", '["a","b"]')),
        ({"grammar": "start: /a/"}, AnswerFormat("grammar", "start: /a/")),
        ({"json_object": True}, AnswerFormat("json_object", "")),
        ({"json_object": False}, None),
    ],
    ids=range(8),
)
def test_a_parameter_sets_the_format(values: dict[str, Any], expected: object) -> None:
    found = read(**values)
    assert found == expected
    assert found is None or found.where in values


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"schema": "{"}, "schema"),
        ({"schema": "[]"}, "schema"),
        ({"schema": 3}, "schema"),
        ({"schema": ""}, "schema"),
        ({"schema": "[" * 200_000}, "schema"),
        ({"schema": " " * 300_000 + "{}"}, "schema"),
        ({"schema": '{"minimum": 1e999}'}, "schema"),
        ({"schema": '{"const": "\\ud800"}'}, "schema"),
        ({"choice": '"a"'}, "choice"),
        ({"choice": "a"}, "choice"),
        ({"choice": "[]"}, "choice"),
        ({"regex": ""}, "regex"),
        ({"regex": True}, "regex"),
        ({"regex": "\ud800"}, "regex"),
        ({"json_object": "yes"}, "json_object"),
        ({"schema": "{}", "regex": "a"}, "regex"),
        ({"json_object": True, "choice": '["a"]'}, "json_object"),
    ],
    ids=range(17),
)
def test_a_wrong_parameter_is_refused_by_name(values: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(**values)
    assert caught.value.param == param


def test_every_parameter_is_described() -> None:
    assert FORMAT_PARAMETERS.keys() == {"schema", "regex", "choice", "grammar", "json_object"}
