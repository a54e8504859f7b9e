"""Formats from the body to the answer, with the engine's thread."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from benchmarks.structured_output.schemas import SCHEMAS
from predictors.chat.predictor import ChatPredictor
from predictors.errors import InvalidRequest
from predictors.models.qwen2_5_vl.model import make_predictor
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import read_chat_body
from predictors.protocol.v2.values import Tensor, V2Request
from predictors.settings import ComputeSettings, QwenVLSettings, Settings
from tests.chat.room import CHECKPOINT

CALL = Call({}, protocol="openai", request_id="format")
SETTINGS = Settings(
    compute=ComputeSettings(device="cpu"), qwen_vl=QwenVLSettings(slots=4, max_context=512)
)
EVENT = json.dumps(SCHEMAS["event"])


@pytest.fixture(scope="module")
def predictor() -> Iterator[ChatPredictor]:
    made = make_predictor("captioner", CHECKPOINT, SETTINGS)
    assert made.load()
    yield made
    made.stop()


def chat(predictor: ChatPredictor, **fields: Any) -> list[dict[str, Any]]:
    body = {
        "model": "captioner",
        "messages": [{"role": "user", "content": "Answer."}],
        "temperature": 1.5,
        "seed": 3,
        "max_tokens": 300,
        **fields,
    }
    answer = asyncio.run(predictor.chat(read_chat_body(body), CALL))
    choices: list[dict[str, Any]] = answer["choices"]
    return choices


def v2(predictor: ChatPredictor, **parameters: Any) -> list[str]:
    prompt = Tensor("prompt", "BYTES", (2,), [b"Answer.", b"Answer again."], text=True)
    given = {"temperature": 1.5, "seed": 3, "max_tokens": 300, **parameters}
    request = V2Request("captioner", "", (prompt,), given, ())
    answer = asyncio.run(predictor.infer(request, CALL))
    tensors = {tensor.name: list(tensor.data) for tensor in answer.outputs}
    assert tensors["finish_reason"] == [b"stop"] * 2
    return [text.decode() for text in tensors["text"]]


def test_choices_of_a_chat_have_the_schema(predictor: ChatPredictor) -> None:
    named = {"name": "event", "schema": SCHEMAS["event"]}
    asked = {"type": "json_schema", "json_schema": named}
    choices = chat(predictor, response_format=asked, n=3)
    assert [choice["finish_reason"] for choice in choices] == ["stop"] * 3
    for choice in choices:
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMAS["event"])


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}-[a-f]{2}"}, "[0-9]{3}-[a-f]{2}"),
        ({"guided_choice": ["red", "dark blue"]}, "red|dark blue"),
        ({"guided_grammar": 'root ::= "<" [a-c]{2,3} ">"'}, "<[a-c]{2,3}>"),
    ],
    ids=["regex", "choice", "grammar"],
)
def test_an_answer_has_its_format(
    fields: dict[str, Any], pattern: str, predictor: ChatPredictor
) -> None:
    (choice,) = chat(predictor, **fields)
    assert re.fullmatch(pattern, choice["message"]["content"])


def test_rows_of_v2_have_the_schema(predictor: ChatPredictor) -> None:
    for text in v2(predictor, schema=EVENT):
        jsonschema.validate(json.loads(text), SCHEMAS["event"])
    assert set(v2(predictor, choice='["yes", "no"]')) <= {"yes", "no"}


def test_an_answer_that_is_cut_begins_a_valid_one(predictor: ChatPredictor) -> None:
    (choice,) = chat(predictor, guided_choice=["a long answer that is cut"], max_tokens=3)
    assert choice["finish_reason"] == "length"
    assert "a long answer that is cut".startswith(choice["message"]["content"])


@pytest.mark.parametrize(
    ("parameter", "value"), [("schema", '{"not": {}}'), ("regex", "("), ("grammar", "start: x")]
)
def test_a_format_that_can_not_be_kept_is_refused_before_it_is_queued(
    parameter: str, value: str, predictor: ChatPredictor
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        v2(predictor, **{parameter: value})
    assert (caught.value.param or "").startswith(parameter)
