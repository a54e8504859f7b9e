"""The `openai` package with the real captioner: responses, their streams and forms, completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from predictors import __version__
from tests.http.echo import PATIENCE_S, Running

MODEL, HELLO = "qwen-vl", "Hello"
DIGIT = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "name": "count_shapes",
    "description": "Counts shapes of a colour.",
    "parameters": {
        "type": "object",
        "properties": {"color": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["color"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Answer(BaseModel):
    sure: bool


@pytest.fixture(params=["/v1", "/openai/v1"])
def client(product: Running, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    url = product.url + request.param
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE_S) as made:
        yield made


def test_a_response_says_what_a_chat_says(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": HELLO}], temperature=0
    )
    response = client.responses.create(model=MODEL, input=HELLO, temperature=0)
    assert response.output_text == said.choices[0].message.content
    assert (response.status, response.object, response.model) == ("completed", "response", MODEL)
    assert response.usage is not None
    assert said.usage is not None
    assert response.usage.input_tokens == said.usage.prompt_tokens
    assert response.usage.output_tokens == said.usage.completion_tokens
    turn: Any = {"role": "user", "content": HELLO}
    turns = [turn, *response.output, turn]
    again = client.responses.create(model=MODEL, input=turns, max_output_tokens=2)
    assert (again.status, again._request_id) == ("incomplete", again.id.removeprefix("resp_"))


def test_a_streamed_response_ends_with_the_whole_one(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=HELLO, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    said = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    assert said == final.output_text != ""
    assert [each.sequence_number for each in events] == list(range(len(events)))  # type: ignore[union-attr]


def test_a_response_has_the_form_that_was_asked_for(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model=MODEL, input=HELLO, text_format=Answer)
    assert isinstance(parsed.output_parsed, Answer)
    form: Any = {"format": {"type": "json_schema", "name": "n", "schema": DIGIT, "strict": True}}
    response = client.responses.create(model=MODEL, input=HELLO, text=form)
    assert json.loads(response.output_text).keys() == {"n"}


def test_a_call_and_its_output_go_round(client: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "How many red shapes are there?"}]
    with client.responses.stream(
        model=MODEL, input=asked, tools=[TOOL], tool_choice="required"
    ) as stream:
        deltas = [x.delta for x in stream if x.type == "response.function_call_arguments.delta"]
        (call,) = stream.get_final_response().output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["color"] in ("red", "blue")
    assert "".join(deltas) == call.arguments
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    ended = client.responses.create(model=MODEL, input=[*asked, call, output], tools=[TOOL])
    assert ended.output


def test_what_is_not_kept_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="whole conversation") as refused:
        client.responses.create(model=MODEL, input=HELLO, previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError, match="answers are not kept"):
        client.responses.retrieve("resp_1")


def test_a_prompt_of_text_is_one_of_its_tokens(client: openai.OpenAI, product: Running) -> None:
    with product.client() as http:
        tokens = http.post("/tokenize", json={"prompt": "a red"}).json()["tokens"]
    fields: Any = {"model": MODEL, "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(prompt=["a red", tokens], logprobs=1, **fields)  # type: ignore[list-item]
    assert whole.choices[0].text == whole.choices[1].text
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.tokens or ()) == whole.usage.completion_tokens // 2  # type: ignore[union-attr]
    chunks = list(client.completions.create(prompt="a red", stream=True, echo=True, **fields))
    said = "".join(chunk.choices[0].text for chunk in chunks)
    assert said == "a red" + whole.choices[0].text


def test_health_and_version_are_vllms(product: Running) -> None:
    with product.client() as http:
        healthy = http.get("/health")
        assert (healthy.status_code, healthy.content) == (200, b"")
        assert http.get("/version").json() == {"version": __version__}
