from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.structured_output.schemas import SCHEMAS, formats
from predictors.chat.detokenize import Vocabulary
from predictors.chat.grammars import matcher as matcher_module
from predictors.chat.grammars.compiler import GrammarCompiler
from predictors.chat.grammars.matcher import (
    GrammarTooComplex,
    Matcher,
    mask_threads,
)
from predictors.protocol.answer_format import (
    choice_format,
    object_format,
    regex_format,
    schema_format,
)
from tests.chat.grammars.walks import ENDS, VOCAB, allowed, begins, takes, text_of, walk

CLOSED = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}


def test_an_answer_may_end_only_where_the_schema_is_satisfied(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = compiler.compile(schema_format("schema", CLOSED)).matcher()
    for token in tokenizer.encode('{"a":"x"}').ids:
        assert not matcher.is_over
        assert token in allowed(matcher)
        assert ENDS.isdisjoint(allowed(matcher))
        assert matcher.accept(token)
    assert matcher.is_over
    assert set(allowed(matcher)) == ENDS
    assert matcher.accept(802)
    assert matcher.is_over


def test_a_grammar_dies_of_a_token_that_it_does_not_take(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(regex_format("regex", "a+")).matcher()
    assert not matcher.accept(5)
    with pytest.raises(GrammarTooComplex):
        allowed(matcher)


def test_matchers_of_one_grammar_do_not_disturb_each_other(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = compiler.compile(choice_format("choice", ["red", "blue"]))
    red, blue = grammar.matcher(), grammar.matcher()
    assert all(red.accept(token) for token in tokenizer.encode("red").ids)
    assert red.is_over
    assert not blue.is_over
    assert all(blue.accept(token) for token in tokenizer.encode("blue").ids)
    assert set(allowed(blue)) == ENDS


def test_masks_of_many_answers_are_made_in_one_call_and_are_those_of_each_alone(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all rows together; those that share a lexer stand side by side."""
    asked = formats()
    grammars = [compiler.compile(asked[name]) for name in ("person", "map", "codes", "pair") * 3]
    matchers = [grammar.matcher() for grammar in grammars]
    rng, calls = random.Random(3), list[list[int]]()

    class Watched:
        """Counts the calls of the library and what they hold."""

        def __init__(self, count: int) -> None:
            self._threads = mask_threads(count)

        def unsafe_compute_mask_ptr(self, states: list[tuple[Any, int]], *where: int) -> None:
            calls.append([row for _, row in states])
            self._threads.unsafe_compute_mask_ptr(states, *where)

    monkeypatch.setattr(matcher_module, "mask_threads", Watched)
    words = np.full((len(matchers) + 1, (VOCAB + 31) // 32), 77, np.int32)
    for _ in range(20):
        calls.clear()
        given = [(matcher, row) for row, matcher in enumerate(matchers)]
        assert Matcher.fill(given, words) == [None] * len(matchers)
        (rows,) = calls
        assert sorted(rows) == list(range(len(matchers)))
        lexers = [id(grammars[row].compiled) for row in rows]
        assert lexers == sorted(lexers)
        assert (words[-1] == 77).all()
        for row, matcher in enumerate(matchers):
            alone = allowed(matcher)
            bits = np.unpackbits(words[row].view(np.uint8), bitorder="little")
            assert np.flatnonzero(bits).tolist() == alone
            assert matcher.accept(rng.choice(alone))


def test_an_answer_that_can_not_go_on_fails_alone(compiler: GrammarCompiler) -> None:
    grammars = [compiler.compile(regex_format("regex", each)) for each in ("a+", "b+", "c+")]
    matchers = [grammar.matcher() for grammar in grammars]
    assert not matchers[1].accept(5)
    words = np.zeros((3, (VOCAB + 31) // 32), np.int32)
    found = Matcher.fill([(matcher, row) for row, matcher in enumerate(matchers)], words)
    assert [type(each) for each in found] == [type(None), GrammarTooComplex, type(None)]
    assert [grammar.compiled.is_full for grammar in grammars] == [False, True, False]


COUNT_STACKS = """
from pathlib import Path
from predictors.chat.grammars.matcher import STACK_BYTES, mask_threads

def num_stacks():
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines]
    return sum(int(end, 16) - int(start, 16) == STACK_BYTES for start, end in ranges)

before = num_stacks()
kept = mask_threads(3)
print(STACK_BYTES, num_stacks() - before)
"""


def test_threads_that_make_masks_have_the_stack_of_a_thread_of_python() -> None:
    """Not the two megabytes of the library's. In a process of its own: here, new threads take over
    the stacks of ended ones."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT_STACKS], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(8 * 2**20), "3"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_random_walk_through_the_masks_ends_in_a_valid_answer(
    name: str, compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    grammar, rng = compiler.compile(formats()[name]), random.Random(name)
    ended = 0
    for _ in range(12):
        tokens, is_ended = walk(grammar, rng, 600)
        ended += is_ended
        if is_ended:
            jsonschema.validate(json.loads(text_of(vocabulary, tokens)), SCHEMAS[name])
    assert ended >= 11


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        ('{"a":"x"}', True),
        ('{ "a": "x" }', True),
        ('{\n    "a" :\n        "x"\n}', True),
        ('{  "a":"x"}', False),
        ("{\n" + " " * 33 + '"a":"x"}', False),
        ('{\n\n"a":"x"}', False),
        (' {"a":"x"}', False),
        ('{"a":"z"}', False),
        ('{"a":"x","b":1}', False),
        ("{}", False),
    ],
)
def test_spaces_between_values_are_bounded(
    text: str, is_taken: bool, compiler: GrammarCompiler
) -> None:
    assert takes(compiler.compile(schema_format("schema", CLOSED)), text) is is_taken


def test_keys_come_in_the_order_of_the_schema(compiler: GrammarCompiler) -> None:
    schema = {"properties": {"b": {"type": "null"}, "a": {"type": "null"}}}
    closed = {"type": "object", "required": ["a", "b"], "additionalProperties": False, **schema}
    grammar = compiler.compile(schema_format("schema", closed))
    assert takes(grammar, '{"b":null,"a":null}')
    assert not begins(grammar, '{"a"')


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        ("{}", True),
        ('{"a": [1, {"b": null}], "é😀": "\\n"}', True),
        ("[]", False),
        ('"a"', False),
        ("{'a': 1}", False),
        ('{"a": 1,}', False),
        ('{"a": "\n"}', False),
        ('{"a": NaN}', False),
    ],
)
def test_a_json_object_is_any_object(text: str, is_taken: bool, compiler: GrammarCompiler) -> None:
    assert takes(compiler.compile(object_format("response_format")), text) is is_taken


def test_a_character_of_several_tokens_is_taken_whole(
    compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    """The captioner writes é, 漢 and 😀 as one token per byte."""
    grammar = compiler.compile(choice_format("choice", ["é漢😀", "e"]))
    assert takes(grammar, "é漢😀")
    matcher = grammar.matcher()
    assert matcher.accept(next(t for t in allowed(matcher) if vocabulary.bytes_of(t) == b"\xc3"))
    assert {vocabulary.bytes_of(token) for token in allowed(matcher)} == {b"\xa9"}


def test_a_control_token_is_never_allowed(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    added = tokenizer.get_added_tokens_decoder()
    control = {i for i, token in added.items() if token.special} - ENDS
    for pattern in ("(?s:.*)", ".*<\\|im_start\\|>.*"):
        assert control.isdisjoint(allowed(compiler.compile(regex_format("r", pattern)).matcher()))
