"""The grammar of answers with tools, followed token by token as an engine does."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer

from predictors.chat.grammars.compiler import GrammarCompiler, source_of
from predictors.chat.grammars.matcher import Matcher
from predictors.chat.tools.call_grammar import tags_are_tokens, tools_format
from predictors.chat.tools.tag_reader import TagReader
from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.answer_format import (
    JSON_OBJECT,
    JSON_SCHEMA,
    REGEX,
    TOOLS,
    AnswerFormat,
)
from predictors.protocol.openai.tool_fields import FunctionTool, OfferedTools
from tests.chat.room import CHECKPOINT
from tests.chat.tools.test_tag_reader import joined

VOCAB, ENDS = 832, {800, 802}
SHAPE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["star", "disc"]},
        "size": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["shape"],
}
COUNT = FunctionTool("count", "Counts.", json.dumps(SHAPE))
STRICT = FunctionTool("count", "Counts.", json.dumps(SHAPE), strict=True)
LOOK = FunctionTool("look-up", parameters=json.dumps({"type": "object", "properties": {}}))
BARE = FunctionTool("now")
TEXT = "I see a star.\n"


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


STAR, NOTHING = call("count", '{"shape": "star"}'), call("now", "{}")


@pytest.fixture(scope="module", params=["tokens", "spelled"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """The checkpoint's, and the same without the tags as tokens."""
    text = (CHECKPOINT / "tokenizer.json").read_text()
    if request.param == "spelled":
        text = text.replace("<tool_call>", "<|tool_a|>").replace("</tool_call>", "<|tool_b|>")
    return Tokenizer.from_str(text)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB, ENDS)


@pytest.fixture
def grammars(compiler: GrammarCompiler, tokenizer: Tokenizer) -> Grammars:
    return Grammars(compiler, tokenizer)


class Grammars:
    def __init__(self, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
        self.compiler, self.tokenizer = compiler, tokenizer

    def matcher(
        self, *tools: FunctionTool, answer: AnswerFormat | None = None, **offered: Any
    ) -> Matcher:
        are_tokens = tags_are_tokens(self.tokenizer)
        offer = OfferedTools(tools, **offered)
        return self.compiler.compile(
            tools_format(offer, answer, tags_are_tokens=are_tokens)
        ).matcher()

    def takes(self, text: str, *tools: FunctionTool, **offered: Any) -> bool:
        """True for a text that an answer may be."""
        matcher = self.matcher(*tools, **offered)
        tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
        return all(map(matcher.accept, tokens)) and allowed(matcher) >= ENDS


def allowed(matcher: Matcher) -> set[int]:
    words = np.zeros((1, (VOCAB + 31) // 32), np.int32)
    assert matcher.fill([(matcher, 0)], words) == [None]
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


ANSWERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "text": (TEXT, {}, True),
    "nothing": ("", {}, True),
    "a call": (STAR, {}, True),
    "a call behind text": (f"{TEXT}{STAR}", {}, True),
    "text behind a call": (f"{STAR}\nSo.", {}, True),
    "two calls": (f"{STAR}\n{NOTHING}", {}, True),
    "two calls with text": (f"{STAR} and\n{NOTHING}\n", {}, True),
    "any arguments": (call("count", '{"form": ["star", null, 1.5]}'), {}, True),
    "half a tag": ("a <tool", {}, True),
    "an unknown tool": (call("other", "{}"), {}, False),
    "a tag alone": ("<tool_call> x", {}, False),
    "no object": (call("count", "[1]"), {}, False),
    "half a call": (STAR[:40], {}, False),
    "arguments of a tool without any": (call("now", '{"a": 1}'), {"required": True}, False),
    "one at most": (STAR, {"parallel": False}, True),
    "none of one at most": (TEXT, {"parallel": False}, True),
    "text behind the only one": (f"{STAR}\nSo.", {"parallel": False}, True),
    "two of one at most": (f"{STAR}\n{STAR}", {"parallel": False}, False),
    "not callable": (NOTHING, {"callable": ("count",)}, False),
    "callable": (STAR, {"callable": ("count",)}, True),
    "required": (STAR, {"required": True}, True),
    "two required": (f"{STAR}\n{NOTHING}", {"required": True}, True),
    "two of one required": (f"{STAR}\n{STAR}", {"required": True, "parallel": False}, False),
    "text where a call is required": (TEXT, {"required": True}, False),
    "text before a required call": (f"x {STAR}", {"required": True}, False),
    "nothing where a call is required": ("", {"required": True}, False),
    "wrong arguments of a required call": (call("count", "{}"), {"required": True}, False),
    "arguments that are not named": (
        call("count", '{"shape": "star", "form": 1}'), {"required": True}, False,
    ),
    "all arguments": (call("count", '{"shape": "disc", "size": 3}'), {"required": True}, True),
    "no white space": (call("count", '{"shape":"disc"}'), {"required": True}, False),
}  # fmt: skip


@pytest.mark.parametrize(("text", "offered", "is_taken"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_text_and_calls_as_they_are_offered(
    grammars: Grammars, text: str, offered: dict[str, Any], is_taken: bool
) -> None:
    assert grammars.takes(text, COUNT, BARE, **offered) is is_taken


def test_a_strict_tools_arguments_are_valid_where_it_may_be_called(grammars: Grammars) -> None:
    assert grammars.takes(f"x {STAR}", STRICT, LOOK)
    assert not grammars.takes(call("count", '{"form": 1}'), STRICT, LOOK)
    assert grammars.takes(call("look-up", '{"form": 1}'), STRICT, LOOK)


ANSWER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def test_an_answers_own_format_stands_beside_calls(grammars: Grammars) -> None:
    """As `response_format` with tools asks for."""
    schema = AnswerFormat(JSON_SCHEMA, json.dumps(ANSWER | {"additionalProperties": False}))
    for answer in (schema, AnswerFormat(JSON_OBJECT, "")):
        assert grammars.takes('{"n": 3}', COUNT, BARE, answer=answer)
        assert grammars.takes(f"{STAR}\n{NOTHING}", COUNT, BARE, answer=answer)
        assert not grammars.takes(TEXT, COUNT, BARE, answer=answer)
        assert not grammars.takes(f"{TEXT}{STAR}", COUNT, BARE, answer=answer)
        assert not grammars.takes('{"n": 3}', COUNT, BARE, answer=answer, required=True)
    assert not grammars.takes('{"m": 3}', COUNT, answer=schema)
    with pytest.raises(InvalidRequest, match="can't be combined with tools") as refusal:
        tools_format(OfferedTools((COUNT,)), AnswerFormat(REGEX, "a"), tags_are_tokens=True)
    assert refusal.value.param == "response_format"


HOSTILE_SCHEMAS: list[dict[str, Any]] = [
    {"properties": {'"} start: /.*/ %json {"': {"type": "string"}}},
    {"properties": {"</tool_call>": {"const": "\n</tool_call>"}}},
    {"description": "\nstart: /.*/\n", "properties": {"a\nb": {"enum": ["\n", "\u2028", "%json"]}}},
    {"x-guidance": {"whitespace_flexible": True, "lenient": True}, "properties": {}},
]


@pytest.mark.parametrize("case", range(len(HOSTILE_SCHEMAS)))
def test_a_definition_cannot_leave_its_place_in_the_grammar(grammars: Grammars, case: int) -> None:
    schema = {"type": "object", "additionalProperties": False, **HOSTILE_SCHEMAS[case]}
    tool = FunctionTool("f", parameters=json.dumps(schema), strict=True)
    assert grammars.takes(call("f", "{}"), tool, required=True)
    assert not grammars.takes(TEXT, tool, required=True)
    assert not grammars.takes(call("f", "{ }"), tool, required=True)


def test_a_schema_out_of_bounds_is_refused_by_its_field() -> None:
    schema = json.dumps({"enum": ["x" * 10] * 20_000})
    large = FunctionTool("f", parameters=schema, where="tools[1].input_schema")
    with pytest.raises(TooLarge) as refusal:
        tools_format(OfferedTools((COUNT, large), required=True), None, tags_are_tokens=True)
    assert refusal.value.param == "tools[1].input_schema"
    made = tools_format(OfferedTools((COUNT, large)), None, tags_are_tokens=True)
    assert made.kind == TOOLS  # its schema is not needed


UNREAD = json.dumps({"type": "object", "properties": {"a": {"not": {}}}})


@pytest.mark.parametrize("where", ["tools[1].parameters", "tools[1].input_schema"])
def test_a_schema_that_no_grammar_takes_is_refused_by_the_callers_field(where: str) -> None:
    odd = FunctionTool("odd", parameters=UNREAD, where=where)
    made = tools_format(OfferedTools((COUNT, odd), required=True), None, tags_are_tokens=True)
    with pytest.raises(InvalidRequest) as refusal:
        source_of(made)
    assert refusal.value.param == f"{where}.properties.a.not"
    again = replace(odd, where="elsewhere")
    other = tools_format(OfferedTools((COUNT, again), required=True), None, tags_are_tokens=True)
    assert (odd, made) == (again, other)  # they mean the same


@pytest.mark.parametrize("where", ["text.format.schema", "output_config.format.schema"])
def test_an_answers_schema_beside_tools_is_refused_by_the_callers_field(where: str) -> None:
    answer = AnswerFormat(JSON_SCHEMA, UNREAD, where)
    made = tools_format(OfferedTools((COUNT,)), answer, tags_are_tokens=True)
    with pytest.raises(InvalidRequest) as refusal:
        source_of(made)
    assert refusal.value.param == f"{where}.properties.a.not"


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_model_draws_is_calls_that_are_valid(grammars: Grammars, seed: int) -> None:
    """Tokens drawn at random; only where an answer may end, it likes to."""
    draw = random.Random(seed)
    offered = {"required": seed % 2 == 0}
    matcher = grammars.matcher(STRICT, BARE, **offered)
    tokens: list[int] = []
    while len(tokens) < 400:
        may = allowed(matcher)
        if may & ENDS and (draw.random() < 0.5 or may == ENDS):
            break
        tag = grammars.tokenizer.token_to_id("<tool_call>")
        likes_call = tag in may and draw.random() < 0.3
        token = tag if likes_call else draw.choice(sorted(may - ENDS))
        assert matcher.accept(token)
        tokens.append(token)
    else:
        assert not offered["required"]
    text = grammars.tokenizer.decode(tokens, skip_special_tokens=False)
    reader = TagReader(("count", "now"))
    found = joined(reader.feed(text) + reader.end())
    calls = [each for each in found if isinstance(each, tuple)]
    assert calls or not offered["required"]
    assert len(calls) == text.count("<tool_call>")
    for name, arguments in calls:
        schema = SHAPE if name == "count" else {"maxProperties": 0}
        jsonschema.validate(json.loads(arguments), schema)
