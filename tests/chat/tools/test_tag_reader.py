"""Tool calls in the text of an answer: what is one, what stays text, and in which pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.chat.tools.tag_reader import CallPart, Part, TagReader

NAMES = ("count", "look-up", "f")
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "1"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "count", "arguments": {"shape": {"x": [1, "}]"]}}}\n</tool_call>'
Read = list[str | tuple[str, str]]


def joined(parts: Sequence[Part]) -> Read:
    """Texts, and calls with their names and arguments, in order."""
    found: Read = []
    for part in parts:
        if isinstance(part, str):
            assert part
            if found and isinstance(found[-1], str):
                found[-1] += part
            else:
                found.append(part)
        elif part.name is not None:
            assert part.index == sum(isinstance(each, tuple) for each in found)
            found.append((part.name, part.arguments))
        else:
            name, arguments = found[-1]
            found[-1] = (name, arguments + part.arguments)
    return found


def read(*pieces: str) -> Read:
    reader = TagReader(NAMES)
    parts = [part for piece in pieces for part in reader.feed(piece)]
    return joined(parts + reader.end())


ARGUMENTS = '{"a": "1"}'
OTHERS = '{"shape": {"x": [1, "}]"]}}'
TEXTS: dict[str, tuple[str, Read]] = {
    "text": ("Two  words. \n", ["Two  words. \n"]),
    "nothing": ("", []),
    "white space": (" \n", [" \n"]),
    "a call": (CALL, [("f", ARGUMENTS)]),
    "text before": (f"I look.\n{CALL}", ["I look.", ("f", ARGUMENTS)]),
    "text behind": (f"{CALL}\n done \n", [("f", ARGUMENTS), "done \n"]),
    "two calls": (f"{CALL}\n{OTHER}", [("f", ARGUMENTS), ("count", OTHERS)]),
    "text between": (f"{CALL} and\n{OTHER}\n", [("f", ARGUMENTS), "and", ("count", OTHERS)]),
    "no spaces": (
        '<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>', [("f", '{"a":1}')],
    ),
    "a tag in an argument": (
        '<tool_call>\n{"name": "f", "arguments": {"a": "\\"</tool_call>"}}\n</tool_call>',
        [("f", '{"a": "\\"</tool_call>"}')],
    ),
    "escaped quotes": (
        '<tool_call>\n{"name": "f", "arguments": {"a": "\\\\", "b": "\\"}"}}\n</tool_call>',
        [("f", '{"a": "\\\\", "b": "\\"}"}')],
    ),
    "half a tag": ("a <tool", ["a <tool"]),
    "another tag": ("a <tools> </tool_call>", ["a <tools> </tool_call>"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS)
def test_calls_are_read_and_the_rest_stays_text(text: str, expected: Read) -> None:
    assert read(text) == expected
    assert read(*text) == expected


NO_CALLS = {
    "an unknown function": '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
    "no JSON": "<tool_call>\nf(1)\n</tool_call>",
    "a list": '<tool_call>["f", {}]</tool_call>',
    "no arguments": '<tool_call>{"name": "f"}</tool_call>',
    "a name of another type": '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>',
    "arguments of another type": '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
    "a field more": '<tool_call>{"id": 1, "name": "f", "arguments": {}}</tool_call>',
    "deep": f'<tool_call>{{"arguments": {"[" * 5000}{"]" * 5000}}}</tool_call>',
    "no number": '<tool_call>{"arguments": {"a": NaN}, "name": "f"}</tool_call>',
    "never ended": '<tool_call>\n{"name": "g", "arguments": {}}\n</tool',
    "a tag in a tag": f"<tool_call> {CALL}",
}


@pytest.mark.parametrize("text", NO_CALLS.values(), ids=NO_CALLS)
def test_a_block_that_is_no_call_is_given_back_unchanged(text: str) -> None:
    whole = f"before\n {text} \n"
    assert read(whole) == [whole]
    assert read(*whole) == [whole]


def test_a_call_behind_a_block_that_is_none_is_read() -> None:
    wrong = NO_CALLS["an unknown function"]
    assert read(f"{wrong}\n{CALL}") == [wrong, ("f", ARGUMENTS)]


def test_a_call_in_another_order_is_read_once_it_is_whole() -> None:
    text = '<tool_call>{"arguments": {"a" : "é"}, "name": "f"}</tool_call>'
    assert read(text) == [("f", '{"a": "é"}')]
    assert read(*text) == [("f", '{"a": "é"}')]


def test_a_calls_name_comes_first_and_its_arguments_as_they_grow() -> None:
    reader = TagReader(NAMES)
    assert reader.feed('<tool_call>\n{"name": "f", "arguments": ') == []
    assert reader.feed('{"a": "tw') == [CallPart(0, "f", ""), CallPart(0, None, '{"a": "tw')]
    assert not reader.is_complete
    assert reader.feed('o"') == [CallPart(0, None, 'o"')]
    assert reader.feed("}") == [CallPart(0, None, "}")]
    assert reader.is_complete
    assert reader.feed("}\n</tool_ca") == []
    assert reader.feed("ll>") == reader.end() == []
    assert reader.num_calls == 1


def test_an_answer_that_is_cut_in_a_call_keeps_what_came() -> None:
    assert read(CALL[:45]) == [("f", '{"a": ')]


HOSTILE = ("<tool_call>", "<tool_call", " ", "\n<", '{"', "</tool_call", "}", '{"name": "f"')


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_looked_at_twice(text: str) -> None:
    """Little is held back and looked at again for each character."""
    reader = TagReader(NAMES)
    for before in ("", "<tool_call>", CALL[:39]):
        reader.feed(before)
        for character in text * 40:
            reader.feed(character)
            assert len(reader._cut) < 20


_NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_OBJECT = st.dictionaries(st.text(max_size=4), _NESTED, max_size=3)
_CALLS = st.builds(
    lambda name, arguments, ascii, space: (
        f"<tool_call>{space}"
        + json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii)
        + f"{space}</tool_call>"
    ),
    st.sampled_from((*NAMES, "unknown")), _OBJECT, st.booleans(), st.sampled_from(("", "\n", "  ")),
)  # fmt: skip
_SPACES = st.sampled_from(("", "\n"))
_SHREDS = st.sampled_from((
    "<tool_call>", "</tool_call>", "<tool_", "call>", "\n", " ", "{", "}", '"', "\\", "x", "[",
    '{"name": "f", "arguments": ', '"name"', "é",
))  # fmt: skip
_ANSWER = st.lists(_CALLS | _SHREDS | st.text(max_size=5), max_size=8).map("".join)


@settings(max_examples=25)
@given(st.data(), _ANSWER)
def test_the_parts_do_not_depend_on_how_the_text_is_cut(data: st.DataObject, text: str) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    borders = [0, *cuts, len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
    assert read(*pieces) == read(text)
    assert read(*text) == read(text)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), _OBJECT, st.sampled_from(("", "\n"))), max_size=4)
)
def test_what_was_called_is_what_is_read(calls: list[tuple[str, dict[str, object], str]]) -> None:
    text = "".join(
        f'{space}<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n'
        "</tool_call>"
        for name, arguments, space in calls
    )
    found = read(text)
    assert [(each[0], json.loads(each[1])) for each in found] == [
        (name, arguments) for name, arguments, _ in calls
    ]


@settings(max_examples=25)
@given(_ANSWER)
def test_an_answer_without_a_call_is_its_text(text: str) -> None:
    found = read(text)
    if not any(isinstance(each, tuple) for each in found):
        assert "".join(map(str, found)) == text
