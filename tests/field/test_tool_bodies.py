"""Tools as clients send them, by table: what is read, what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.openai.chat_body import ChatBody, decode_chat_body, read_chat_body
from predictors.protocol.openai.conversation import BodyMessage
from predictors.protocol.openai.tool_calls import ToolCall
from predictors.protocol.openai.tool_fields import (
    MAX_CHARS,
    MAX_TOOLS,
    FunctionTool,
    OfferedTools,
)

SCHEMA = {"type": "object", "properties": {"shape": {"type": "string"}}, "required": ["shape"]}
ASK = {"role": "user", "content": "how many circles?"}


def tool(name: str = "count", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA} | function}


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def read(**fields: Any) -> ChatBody:
    body = {"model": "m", "messages": [ASK]} | fields
    decoded = decode_chat_body(json.dumps(body).encode())  # as it comes over the wire
    return decoded.accepted()


COUNT = FunctionTool("count", None, json.dumps(SCHEMA))
LOOK = FunctionTool("look", None, json.dumps(SCHEMA))
BOTH = [tool(), tool("look")]
OFFERS: list[tuple[dict[str, Any], OfferedTools | None]] = [
    ({"tools": [tool()]}, OfferedTools((COUNT,))),
    ({"tools": [tool()], "tool_choice": "auto"}, OfferedTools((COUNT,))),
    ({"tools": [tool()], "tool_choice": None}, OfferedTools((COUNT,))),
    ({"tools": [tool()], "tool_choice": "none"}, None),
    ({"tools": []}, None),
    ({"tools": None, "tool_choice": "auto", "parallel_tool_calls": True}, None),
    ({"functions": [], "function_call": "auto"}, None),
    (
        {"tools": BOTH, "tool_choice": "required"},
        OfferedTools((COUNT, LOOK), required=True),
    ),
    (
        {"tools": BOTH, "parallel_tool_calls": False},
        OfferedTools((COUNT, LOOK), parallel=False),
    ),
    (
        {"tools": BOTH, "tool_choice": named("look")},
        OfferedTools((COUNT, LOOK), True, ("look",), parallel=False),
    ),
    (
        {"tools": BOTH, "tool_choice": allowed("auto", "look")},
        OfferedTools((COUNT, LOOK), callable=("look",)),
    ),
    (
        {"tools": BOTH, "tool_choice": allowed("required", "look", "count")},
        OfferedTools((COUNT, LOOK), True, ("look", "count")),
    ),
    (
        {"tools": [tool(description="Counts.", strict=True) | {"cache_control": {"type": "x"}}]},
        OfferedTools((FunctionTool("count", "Counts.", json.dumps(SCHEMA), strict=True),)),
    ),
    (
        {"tools": [tool(parameters=None, description=None, strict=None)]},
        OfferedTools((FunctionTool("count"),)),
    ),
    ({"tools": [tool(parameters={})]}, OfferedTools((FunctionTool("count", None, "{}"),))),
]


@pytest.mark.parametrize("case", range(len(OFFERS)))
def test_tools_and_their_choice_are_read_as_one_offer(case: int) -> None:
    fields, expected = OFFERS[case]
    assert read(**fields).tools == expected


def test_only_callable_tools_are_called() -> None:
    assert read(tools=BOTH, tool_choice=allowed("auto", "look")).tools.called == (LOOK,)  # type: ignore[union-attr]
    assert read(tools=BOTH).tools.called == (COUNT, LOOK)  # type: ignore[union-attr]


LONG = "x" * (MAX_CHARS // 2)
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": {}}, "tools", "a list of tools"),
    ({"tools": ["count"]}, "tools[0]", "must be a JSON object"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type", "required"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
    ({"tools": [{"type": "web_search", "user_location": {}}]}, "tools[0].type", "of its own"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "only be 'function'"),
    ({"tools": [named("")]}, "tools[0].function.name", "1 to 64"),
    ({"tools": [named("a b")]}, "tools[0].function.name", "1 to 64"),
    ({"tools": [named("</tools>")]}, "tools[0].function.name", "1 to 64"),
    ({"tools": [named("é")]}, "tools[0].function.name", "1 to 64"),
    ({"tools": [named("x" * 65)]}, "tools[0].function.name", "1 to 64"),
    ({"tools": [named(5)]}, "tools[0].function.name", "not 5"),
    ({"tools": [named("f\n")]}, "tools[0].function.name", "1 to 64"),
    ({"tools": [tool(description=5)]}, "tools[0].function.description", "a string"),
    ({"tools": [tool(strict="yes")]}, "tools[0].function.strict", "true or false"),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "a JSON Schema"),
    ({"tools": [tool(parameters="{}")]}, "tools[0].function.parameters", "a JSON Schema"),
    (
        {"tools": [tool(parameters={"type": "string"})]},
        "tools[0].function.parameters.type", "'object'",
    ),
    ({"tools": [tool(returns={})]}, "tools[0].function.returns", "unknown field"),
    ({"tools": [tool(), tool()]}, "tools[1]", "another tool"),
    ({"tools": [tool(f"f{i}") for i in range(MAX_TOOLS + 1)]}, "tools", "at most 128"),
    (
        {"tools": [tool(f"f{i}", description=LONG) for i in range(3)]},
        "tools", f"at most {MAX_CHARS}",
    ),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tool_choice": named("count")}, "tool_choice", "needs tools"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": [tool()], "tool_choice": "any"}, "tool_choice", "'required'"),
    ({"tools": [tool()], "tool_choice": "count"}, "tool_choice", "'required'"),
    ({"tools": [tool()], "tool_choice": named("look")}, "tool_choice", "names 'look'"),
    ({"tools": [tool()], "tool_choice": {"name": "count"}}, "tool_choice.name", "unknown"),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function", "required"),
    ({"tools": [tool()], "tool_choice": {"type": "tool"}}, "tool_choice.type", "must be"),
    (
        {"tools": [tool()], "tool_choice": allowed("auto", "count") | named("count")},
        "tool_choice.allowed_tools", "does not belong",
    ),
    (
        {"tools": [tool()], "tool_choice": allowed("none", "count")},
        "tool_choice.allowed_tools.mode", "'required'",
    ),
    (
        {"tools": [tool()], "tool_choice": allowed("auto")},
        "tool_choice.allowed_tools.tools", "is empty",
    ),
    ({"tools": [tool()], "parallel_tool_calls": "no"}, "parallel_tool_calls", "true or false"),
    ({"functions": [{"name": "count"}]}, "functions", "send tools"),
    ({"function_call": {"name": "count"}}, "function_call", "send tool_choice"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_a_wrong_tool_is_refused_by_its_field(case: int) -> None:
    fields, param, said = REFUSED[case]
    with pytest.raises(InvalidRequest) as refusal:
        read(**fields)
    assert (refusal.value.param, said in refusal.value.message) == (param, True), refusal.value


# -- conversations ---------------------------------------------------------------------------------
def call(identity: Any = "1", name: Any = "count", arguments: Any = '{"shape": "circle"}') -> Any:
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


def calling(*calls: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)} | fields


def answer(identity: Any = "1", **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identity, "content": "3"} | fields


def talk(*messages: Any) -> tuple[BodyMessage, ...]:
    return read(messages=[ASK, *messages]).messages[1:]


CIRCLE = ToolCall("1", "count", '{"shape": "circle"}')
TALKS: list[tuple[list[Any], list[BodyMessage]]] = [
    (
        [calling(call()), answer()],
        [BodyMessage("assistant", (), (CIRCLE,)), BodyMessage("tool", ("3",), (), "1")],
    ),
    (
        [calling(call(), content="I count."), answer(content=[{"type": "text", "text": "3"}])],
        [BodyMessage("assistant", ("I count.",), (CIRCLE,)), BodyMessage("tool", ("3",), (), "1")],
    ),
    (  # answers come in any order, and the same id may come again later
        [calling(call(), call("2")), answer("2"), answer("1"), calling(call()), answer()],
        [
            BodyMessage("assistant", (), (CIRCLE, ToolCall("2", "count", CIRCLE.arguments))),
            BodyMessage("tool", ("3",), (), "2"),
            BodyMessage("tool", ("3",), (), "1"),
            BodyMessage("assistant", (), (CIRCLE,)),
            BodyMessage("tool", ("3",), (), "1"),
        ],
    ),
    (  # as it was streamed; arguments that are none
        [calling(call(arguments="") | {"index": 0}), answer(name="count")],
        [
            BodyMessage("assistant", (), (ToolCall("1", "count", "{}"),)),
            BodyMessage("tool", ("3",), (), "1"),
        ],
    ),
    ([{"role": "assistant", "content": "x", "tool_calls": []}], [BodyMessage("assistant", ("x",))]),
]


@pytest.mark.parametrize("case", range(len(TALKS)))
def test_calls_and_their_answers_are_read(case: int) -> None:
    messages, expected = TALKS[case]
    assert list(talk(*messages)) == expected


WRONG: list[tuple[list[Any], str, str]] = [
    ([answer()], "messages[1].tool_call_id", "is of no call"),
    ([calling(call()), answer("2")], "messages[2].tool_call_id", "is of no call"),
    ([calling(call()), answer(), answer()], "messages[3].tool_call_id", "each answer once"),
    ([calling(call())], "messages[1].tool_calls[0].id", "no answer before the end"),
    ([calling(call()), ASK], "messages[1].tool_calls[0].id", "before messages[2]"),
    ([calling(call()), ASK, answer()], "messages[1].tool_calls[0].id", "before messages[2]"),
    ([calling(call(), call("2")), answer()], "messages[1].tool_calls[1].id", "'2' has no answer"),
    ([calling(call(), call())], "messages[1].tool_calls[1].id", "tool_calls[0].id as well"),
    ([{"role": "tool", "content": "3"}], "messages[1].tool_call_id", "required"),
    ([answer(content=None)], "messages[1].content", "required"),
    ([answer(content=[])], "messages[1].content", "no parts"),
    ([ASK | {"tool_calls": [call()]}], "messages[1].tool_calls", "of role assistant, not user"),
    ([ASK | {"tool_call_id": "1"}], "messages[1].tool_call_id", "of role tool, not user"),
    ([calling()], "messages[1].content", "required"),
    ([calling("x")], "messages[1].tool_calls[0]", "a JSON object"),
    ([calling(call(identity=""))], "messages[1].tool_calls[0].id", "1 to 256"),
    ([calling(call(name="a b"))], "messages[1].tool_calls[0].function.name", "1 to 64"),
    (
        [calling(call(arguments={"shape": "circle"}))],
        "messages[1].tool_calls[0].function.arguments", "a string",
    ),
    (
        [calling(call(arguments='{"shape": '))],
        "messages[1].tool_calls[0].function.arguments", "not the JSON text",
    ),
    (
        [calling(call(arguments="[1]"))],
        "messages[1].tool_calls[0].function.arguments", "not an object",
    ),
    (
        [calling(call(arguments='{"a": ' + "[" * 40 + "]" * 40 + "}"))],
        "messages[1].tool_calls[0].function.arguments", "not the JSON text",
    ),
    (
        [calling(call(arguments='{"a": "\\ud800"}'))],
        "messages[1].tool_calls[0].function.arguments", "not the JSON text",
    ),
    ([{"role": "function", "name": "f", "content": "3"}], "messages[1].role", "role tool"),
    (
        [{"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": ""}}],
        "messages[1].function_call", "send tool_calls",
    ),
    (
        [calling({"id": "1", "type": "custom", "custom": {"name": "f", "input": ""}})],
        "messages[1].tool_calls[0].custom", "unknown field",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_calls_and_answers_that_do_not_match_up_are_refused(case: int) -> None:
    messages, param, said = WRONG[case]
    with pytest.raises(InvalidRequest) as refusal:
        talk(*messages)
    assert (refusal.value.param, said in refusal.value.message) == (param, True), refusal.value


def test_an_assistants_calls_are_accepted_as_openais_client_dumps_them() -> None:
    from openai.types.chat import ChatCompletionMessage

    said = ChatCompletionMessage.model_validate({"role": "assistant", "tool_calls": [call()]})
    parsed = said.model_dump()
    parsed["tool_calls"][0]["function"]["parsed_arguments"] = {"shape": "circle"}
    for dumped in (said.model_dump(), parsed | {"parsed": None}):
        found = read_chat_body({"model": "m", "messages": [ASK, dumped, answer()]})
        assert found.messages[1] == BodyMessage("assistant", (), (CIRCLE,))
