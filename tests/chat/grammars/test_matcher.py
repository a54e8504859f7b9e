from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from predictors.chat.grammars.compiler import GrammarCompiler
from predictors.chat.grammars.matcher import Matcher
from predictors.protocol.answer_format import AnswerFormat, schema_format

FOLDER = "checkpoints/shapes-qwen-vl"
VOCAB = 832
ENDS = {800, 802}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(f"{FOLDER}/tokenizer.json")


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB, ENDS)


def allowed(matcher: Matcher) -> set[int]:
    words = np.zeros((VOCAB + 31) // 32, np.int32)
    matcher.fill(words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def test_an_answer_may_end_only_where_the_schema_is_satisfied(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    closed = schema_format("response_format", {**schema, "additionalProperties": False})
    matcher = compiler.compile(closed).matcher()
    for token in tokenizer.encode('{"a":"x"}').ids:
        assert not matcher.is_over
        assert token in allowed(matcher)
        assert ENDS.isdisjoint(allowed(matcher))
        assert matcher.accept(token)
    assert matcher.is_over
    assert allowed(matcher) == ENDS
    assert matcher.accept(802)
    assert matcher.is_over


def test_a_token_outside_of_the_grammar_is_not_accepted(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(AnswerFormat("regex", "a+")).matcher()
    assert not matcher.accept(5)


def test_matchers_of_one_grammar_do_not_disturb_each_other(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = compiler.compile(AnswerFormat("choice", '["red","blue"]'))
    red, blue = grammar.matcher(), grammar.matcher()
    for token in tokenizer.encode("red").ids:
        assert red.accept(token)
    assert red.is_over
    assert not blue.is_over
    for token in tokenizer.encode("blue").ids:
        assert blue.accept(token)
    assert allowed(blue) == ENDS
