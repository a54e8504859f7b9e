"""Tools from a body to its answer: an engine with large random weights, which only the grammar
makes call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from predictors.chat.predictor import ChatPredictor
from predictors.errors import InvalidRequest
from predictors.models.qwen2_5_vl.model import make_predictor
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody, read_chat_body
from predictors.protocol.v2.values import Tensor, V2Request
from predictors.settings import ComputeSettings, QwenVLSettings, Settings

CALL = Call({}, protocol="openai", request_id="test")
COUNT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["star", "disc"]},
        "color": {"type": "string", "maxLength": 6},
    },
    "required": ["shape", "color"],
}
NOW: dict[str, Any] = {"type": "object", "properties": {}}
SCHEMAS = {"count_shapes": COUNT, "now": NOW}
ASK = {"role": "user", "content": "How many?"}


@pytest.fixture(scope="module")
def predictor(wild_checkpoint: Path) -> Iterator[ChatPredictor]:
    own = QwenVLSettings(slots=4, max_context=1024)
    settings = Settings(compute=ComputeSettings(device="cpu"), qwen_vl=own)
    made = make_predictor("qwen-vl", wild_checkpoint, settings)
    assert made.load()
    yield made
    made.stop()


def body(**fields: Any) -> ChatBody:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
        for name, schema in SCHEMAS.items()
    ]
    given = {"model": "qwen-vl", "messages": [ASK], "seed": 1, "max_tokens": 120, "temperature": 1}
    return read_chat_body({**given, "tools": tools, **fields})


async def asked(predictor: ChatPredictor, **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await predictor.chat(body(**fields), CALL))["choices"]
    return found


def check(calls: list[dict[str, Any]]) -> None:
    assert len({call["id"] for call in calls}) == len(calls)
    for call in calls:
        assert call["type"] == "function"
        function = call["function"]
        jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])


NAMED = {"type": "function", "function": {"name": "now"}}


async def test_a_required_call_is_made_and_valid(predictor: ChatPredictor) -> None:
    for choice in await asked(predictor, tool_choice="required", n=4, parallel_tool_calls=False):
        message = choice["message"]
        assert choice["finish_reason"] == "tool_calls"
        assert message["content"] is None
        assert len(message["tool_calls"]) == 1
        check(message["tool_calls"])


async def test_a_named_tool_is_called_once(predictor: ChatPredictor) -> None:
    (choice,) = await asked(predictor, tool_choice=NAMED)
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "now", "arguments": "{}"}


async def streamed(predictor: ChatPredictor, **fields: Any) -> list[dict[str, Any]]:
    given = body(stream=True, **fields)
    events = b"".join([some async for some in predictor.chat_stream(given, CALL)])
    chunks = [orjson.loads(line[6:]) for line in events.split(b"\n\n")[:-1]]
    return [choice for chunk in chunks for choice in chunk["choices"]]


async def test_a_streamed_call_is_the_whole_one_in_pieces(predictor: ChatPredictor) -> None:
    fields = {"tool_choice": "required", "parallel_tool_calls": False}
    whole = (await asked(predictor, **fields))[0]["message"]["tool_calls"]
    choices = await streamed(predictor, **fields)
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1]["finish_reason"] in ("tool_calls", "length")
    pieces = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert not any(choice["delta"].get("content") for choice in choices)
    for i, call in enumerate(whole):
        own = [piece for piece in pieces if piece["index"] == i]
        assert own[0]["type"] == "function"
        assert own[0]["id"].startswith("call_")
        assert own[0]["function"]["name"] == call["function"]["name"]
        assert all(piece.keys() == {"index", "function"} for piece in own[1:])
        arguments = [piece["function"]["arguments"] for piece in own]
        assert "".join(arguments) == call["function"]["arguments"]
    assert len(pieces) > len(whole)


async def test_a_tools_answer_is_read_and_answered(predictor: ChatPredictor) -> None:
    (first,) = await asked(predictor, tool_choice=NAMED)
    message = first["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "noon"}
    (second,) = await asked(predictor, messages=[ASK, message, result], tool_choice="none")
    assert "tool_calls" not in second["message"]
    assert second["message"]["content"]


async def test_with_auto_an_answer_is_text_or_valid_calls(predictor: ChatPredictor) -> None:
    for choice in await asked(predictor, n=3, max_tokens=16):
        check(choice["message"].get("tool_calls", []))
        assert "<tool_call>" not in (choice["message"]["content"] or "")
    bias = {str(predictor._vocabulary._tokenizer.token_to_id("<tool_call>")): 100}
    (choice,) = await asked(predictor, logit_bias=bias, parallel_tool_calls=False, max_tokens=60)
    assert len(choice["message"]["tool_calls"]) == 1


async def test_an_answers_own_format_stands_beside_calls(predictor: ChatPredictor) -> None:
    """Agents with an output type send one while they call tools."""
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    schema["additionalProperties"] = False
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    for choice in await asked(predictor, response_format=wanted, n=4, max_tokens=100):
        message = choice["message"]
        if "tool_calls" in message:
            check([call for call in message["tool_calls"] if choice["finish_reason"] != "length"])
        elif choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(message["content"]), schema)


async def test_an_answer_that_is_cut_in_a_call_says_so(predictor: ChatPredictor) -> None:
    (choice,) = await asked(predictor, tool_choice="required", max_tokens=20)
    assert choice["finish_reason"] == "length"


async def test_a_schema_that_no_grammar_takes_is_refused_by_its_tool(
    predictor: ChatPredictor,
) -> None:
    odd = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in (("now", NOW), ("odd", odd))
    ]
    with pytest.raises(InvalidRequest) as refusal:
        await asked(predictor, tools=tools, tool_choice="required")
    assert refusal.value.param == "tools[1].function.parameters.properties.a.not"
    assert await asked(predictor, tools=tools, max_tokens=4)  # with auto only a strict one binds


def test_metadata_says_how_the_model_is_told_of_tools(predictor: ChatPredictor) -> None:
    assert predictor.get_limits()["tools"] == "template"


# -- V2 --------------------------------------------------------------------------------------------
TOOLS = json.dumps([{"type": "function", "function": {"name": "now"}}])


def v2(outputs: tuple[str, ...] = (), **parameters: Any) -> V2Request:
    prompts = Tensor("prompt", "BYTES", (2,), (b"what time?", b"and now?"), text=True)
    given = {"max_tokens": 60, "seed": 1, "temperature": 1.0, **parameters}
    return V2Request("qwen-vl", "1", (prompts,), given, outputs=outputs)


async def test_v2_rows_have_their_calls_as_an_output(predictor: ChatPredictor) -> None:
    asked = v2(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    response = await predictor.infer(asked, CALL)
    columns = {tensor.name: list(tensor.data) for tensor in response.outputs}
    assert columns["text"] == [b"", b""]
    assert columns["finish_reason"] == [b"tool_calls"] * 2
    for row in columns["tool_calls"]:
        (call,) = json.loads(row)
        assert call["function"] == {"name": "now", "arguments": "{}"}
    named = json.dumps(NAMED)
    response = await predictor.infer(v2(tools=TOOLS, tool_choice=named), CALL)
    assert response.outputs[-1].name == "tool_calls"
    response = await predictor.infer(v2(max_tokens=2), CALL)
    assert "tool_calls" not in [tensor.name for tensor in response.outputs]


V2_REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": "[{"}, "tools", "tools is not valid JSON"),
    ({"tools": "{}"}, "tools", "a list of tools"),
    ({"tools": '[{"type": "function", "function": {"name": "a b"}}]'},
     "tools[0].function.name", "1 to 64"),
    ({"tools": "[" * 600_000}, "tools", "at most"),
    ({"tools": TOOLS, "tool_choice": "now"}, "tool_choice", "'required'"),
    ({"tools": TOOLS, "tool_choice": '{"type":'}, "tool_choice", "not valid JSON"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": TOOLS, "stream": True}, "stream", "stream"),
    ({"tools": TOOLS, "regex": "a", "outputs": ()}, "regex", "can't be combined"),
    ({"outputs": ("tool_calls",)}, "tool_calls", "needs the parameter tools"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(V2_REFUSED)))
async def test_v2_tools_are_refused_by_their_parameter(predictor: ChatPredictor, case: int) -> None:
    parameters, param, said = V2_REFUSED[case]
    with pytest.raises(InvalidRequest) as refusal:
        await predictor.infer(v2(**parameters), CALL)
    assert (refusal.value.param, said in refusal.value.message) == (param, True), refusal.value
