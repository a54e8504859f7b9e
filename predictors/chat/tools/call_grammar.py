"""The grammar of an answer that may or must call tools, in llguidance's Lark. A call is written in
Qwen's format, see `tag_reader`, with `, ` and `: ` between the values of its arguments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from predictors.chat.tools.tag_reader import CLOSING, OPENING
from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import (
    JSON_OBJECT,
    JSON_SCHEMA,
    TOOLS,
    AnswerFormat,
    check_schema,
)
from predictors.protocol.openai.tool_fields import FunctionTool, OfferedTools

ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}
NO_ARGUMENTS: Final[dict[str, Any]] = {"type": "object", "additionalProperties": False}
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space in Qwen's own calls. If more were allowed, an unsure model could write white space
until its answer is cut."""
ANSWER: Final = "answer"
"""The rule of an answer without a call. Each tool has a rule of its arguments."""
_WITHOUT_TAG = rf"/(?s:.*)/ & ~/(?s:.*){OPENING}(?s:.*)/"
_BRANCHING = ("allOf", "anyOf", "oneOf", "$ref", "if", "patternProperties", "not")


def tags_are_tokens(tokenizer: Any) -> bool:
    """True where both tags are tokens of their own; else they are spelled."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return added >= {OPENING, CLOSING}


def tools_format(
    offered: OfferedTools, answer: AnswerFormat | None, *, tags_are_tokens: bool
) -> AnswerFormat:
    """The format of an answer with these tools. `answer` is the format of one without a call.

    Where a call is required or a tool is strict, arguments are valid against its schema; else they
    are a JSON object. `tags_are_tokens`: the tags are tokens of the vocabulary, not spelled.
    Raises `InvalidRequest` for a schema out of bounds, and for an answer's format that can't stand
    beside calls.
    """
    opening, closing = OPENING, CLOSING
    if not tags_are_tokens:
        opening, closing = json.dumps(OPENING), json.dumps(CLOSING)
    names = [tool.name for tool in offered.tools]
    rules = [f"call: {opening} {_quoted(_HEAD)} called {_quoted(_TAIL)} {closing}"]
    rules += _start(offered, answer, is_spelled=not tags_are_tokens)
    places = {names.index(tool.name): tool for tool in offered.called}
    rules.append("called: " + " | ".join(f"function_{i}" for i in places))
    fields = {} if answer is None else {ANSWER: answer.where}
    for i, tool in places.items():
        rule = f"arguments_{i}"
        fields[rule] = tool.where
        rules.append(f"function_{i}: {_quoted(_name(tool))} {rule}")
        is_checked = offered.required or tool.strict
        schema = _arguments(tool) if is_checked else ANY_OBJECT
        rules.append(f"{rule}: %json {_json({**schema, 'x-guidance': SPACING})}")
    return AnswerFormat(TOOLS, "\n".join(("%llguidance {}", *rules, "")), "tools", fields)


_HEAD, _TAIL = '\n{"name": "', "}\n"


def _name(tool: FunctionTool) -> str:
    return f'{tool.name}", "arguments": '


def _start(
    offered: OfferedTools, answer: AnswerFormat | None, *, is_spelled: bool
) -> Iterable[str]:
    """Calls one after the other where one is required, or beside the format of an answer; else
    calls between texts, which hold no opening tag."""
    calls = 'call ("\\n" call)*' if offered.parallel else "call"
    if offered.required:
        return [f"start: {calls}"]
    if answer is not None:
        return [f"start: {calls} | {ANSWER}", f"{ANSWER}: %json {_answer_schema(answer)}"]
    text = [f"TEXT: {_WITHOUT_TAG}"]
    if is_spelled:  # the tag ends the text before it
        text += [f"before[lazy]: TEXT {_quoted(OPENING)}"]
    spoken = "spoken_call*" if offered.parallel else "spoken_call?"
    return [f"start: {spoken} TEXT", *_spoken(is_spelled=is_spelled), *text]


def _spoken(*, is_spelled: bool) -> Sequence[str]:
    if not is_spelled:
        return ["spoken_call: TEXT call"]
    rest = f"{_quoted(_HEAD)} called {_quoted(_TAIL + CLOSING)}"
    return [f"spoken_call: before {rest}"]


def _answer_schema(answer: AnswerFormat) -> str:
    if answer.kind == JSON_OBJECT:
        return _json(ANY_OBJECT)
    if answer.kind == JSON_SCHEMA:
        return answer.text
    raise InvalidRequest(
        f"{answer.where} can't be combined with tools that the model may call or not: only JSON "
        "can; set tool_choice to none or required",
        param=answer.where,
    )


def _arguments(tool: FunctionTool) -> dict[str, Any]:
    if tool.parameters is None:
        return NO_ARGUMENTS
    schema: dict[str, Any] = json.loads(tool.parameters)
    check_schema(tool.where, schema)
    schema["type"] = "object"
    if "properties" in schema and not any(key in schema for key in _BRANCHING):
        schema.setdefault("additionalProperties", False)  # the function takes no others
    return schema


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text)
