"""Which text and which scores of an answer's tokens are shown, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from predictors.chat.detokenize import AnswerReader, Vocabulary, byte_alphabet
from predictors.chat.request import (
    ChatDelta,
    LastDelta,
    PromptReuse,
    ScoredDelta,
    TextOptions,
    TokenLogprob,
    scores_of,
)
from predictors.chat.tracked_reader import TrackedReader
from tests.chat.room import CHECKPOINT

PLAIN = TextOptions()
WITH_STOP = TextOptions(include_stop=True)
SPECIAL = TextOptions(keep_special=True)
ALL = TextOptions(include_stop=True, keep_special=True)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer)


class Spelling:
    """Tokens of the embedded checkpoint, by what they say."""

    def __init__(self, tokenizer: Any) -> None:
        self._letters = {byte: letter for letter, byte in byte_alphabet().items()}
        self._tokenizer = tokenizer
        self.end = tokenizer.token_to_id("<|im_end|>")
        self.control = tokenizer.token_to_id("<|vision_start|>")

    def bytes(self, text: str) -> list[int]:
        """A token per byte."""
        return [self._tokenizer.token_to_id(self._letters[b]) for b in text.encode()]


@pytest.fixture(scope="module")
def spelling(tokenizer: Any) -> Spelling:
    return Spelling(tokenizer)


def scored(tokens: Sequence[int], at: int, reason: str | None) -> ChatDelta:
    """A delta of one token whose logprob is its index, negative."""
    score = TokenLogprob(tokens[at], -float(at), 1, ())
    return ScoredDelta((tokens[at],), 7, at + 1, finish_reason=reason, scores=(score,))


def read(
    vocabulary: Vocabulary,
    tokens: Sequence[int],
    stops: Sequence[str] = (),
    options: TextOptions = PLAIN,
    reason: str = "length",
    min_tokens: int = 0,
) -> list[ChatDelta]:
    """The deltas of an answer that the engine ends with `reason`."""
    reader = TrackedReader(vocabulary, stops, options=options, min_tokens=min_tokens)
    seen: list[ChatDelta] = []
    for at in range(len(tokens)):
        seen += reader.feed(scored(tokens, at, reason if at == len(tokens) - 1 else None))
        if reader.done:
            break
    return seen


def text_of(deltas: Sequence[ChatDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def told(deltas: Sequence[ChatDelta]) -> list[int]:
    """Indices of the tokens whose scores came."""
    return [int(-score.logprob) for delta in deltas for score in scores_of(delta)]


def test_every_token_of_a_plain_answer_has_its_score(
    vocabulary: Vocabulary, spelling: Spelling
) -> None:
    deltas = read(vocabulary, spelling.bytes("a red"))
    assert text_of(deltas) == "a red"
    assert told(deltas) == [0, 1, 2, 3, 4]
    assert [type(delta) for delta in deltas] == [ScoredDelta] * 4 + [LastDelta]


def test_scores_of_parts_of_a_character_come_with_the_character(
    vocabulary: Vocabulary, spelling: Spelling
) -> None:
    deltas = read(vocabulary, spelling.bytes("a🟥b"))
    assert [(d.text, told([d])) for d in deltas] == [("a", [0]), ("🟥", [1, 2, 3, 4]), ("b", [5])]


def test_scores_of_a_character_that_stays_incomplete_come_last(
    vocabulary: Vocabulary, spelling: Spelling
) -> None:
    deltas = read(vocabulary, spelling.bytes("a🟥")[:3])
    assert [(d.text, told([d])) for d in deltas] == [("a", [0]), ("", [1, 2])]


def test_held_text_holds_its_scores_back(vocabulary: Vocabulary, spelling: Spelling) -> None:
    deltas = read(vocabulary, spelling.bytes("aENx"), ["END"])
    assert [(d.text, told([d])) for d in deltas] == [("a", [0]), ("ENx", [1, 2, 3])]


@pytest.mark.parametrize(
    ("options", "text", "indices"), [(PLAIN, "ab", [0, 1]), (WITH_STOP, "abEND", [0, 1, 2, 3, 4])]
)
def test_scores_go_with_the_stop_string(
    vocabulary: Vocabulary, spelling: Spelling, options: TextOptions, text: str, indices: list[int]
) -> None:
    deltas = read(vocabulary, spelling.bytes("abENDcd"), ["END"], options)
    assert (text_of(deltas), told(deltas)) == (text, indices)
    assert deltas[-1].finish_reason == "stop"


def test_a_token_that_a_stop_string_cuts_is_told_once_it_shows_something(
    vocabulary: Vocabulary, tokenizer: Any
) -> None:
    tokens = tokenizer.encode("a red circle").ids
    shown = tokenizer.decode(tokens)
    assert len(tokens) < len(shown), "a token of several letters is needed"
    last = tokenizer.decode(tokens[-1:])
    deltas = read(vocabulary, tokens, [last[1:]])
    assert text_of(deltas) == shown[: len(shown) - len(last) + 1]
    assert told(deltas) == list(range(len(tokens)))
    deltas = read(vocabulary, tokens, [last])
    assert told(deltas) == list(range(len(tokens) - 1))


@pytest.mark.parametrize(
    ("options", "text", "indices"),
    [
        (PLAIN, "ab", [0, 1]),
        (WITH_STOP, "ab", [0, 1, 2]),
        (SPECIAL, "ab", [0, 1]),
        (ALL, "ab<|im_end|>", [0, 1, 2]),
    ],
)
def test_the_end_token_is_shown_where_both_options_ask_for_it(
    vocabulary: Vocabulary, spelling: Spelling, options: TextOptions, text: str, indices: list[int]
) -> None:
    deltas = read(vocabulary, [*spelling.bytes("ab"), spelling.end], (), options, "stop")
    assert (text_of(deltas), told(deltas)) == (text, indices)


@pytest.mark.parametrize(("options", "text"), [(PLAIN, "a"), (WITH_STOP, "ab")])
def test_a_stop_token_of_plain_text_is_left_out_unless_asked_for(
    vocabulary: Vocabulary, spelling: Spelling, options: TextOptions, text: str
) -> None:
    deltas = read(vocabulary, spelling.bytes("ab"), (), options, "stop")
    assert text_of(deltas) == text
    assert len(told(deltas)) == len(text)


def test_control_tokens_within_an_answer_are_written_on_demand(
    vocabulary: Vocabulary, spelling: Spelling
) -> None:
    tokens = [*spelling.bytes("a"), spelling.control, *spelling.bytes("b")]
    assert text_of(read(vocabulary, tokens)) == "ab"
    assert told(read(vocabulary, tokens)) == [0, 1, 2]
    assert text_of(read(vocabulary, tokens, (), SPECIAL)) == "a<|vision_start|>b"


def test_text_of_the_first_tokens_is_no_part_of_a_stop_string(
    vocabulary: Vocabulary, spelling: Spelling
) -> None:
    tokens = spelling.bytes("xaxbx")
    assert text_of(read(vocabulary, tokens, ["x"], min_tokens=3)) == "xaxb"
    assert text_of(read(vocabulary, tokens, ["ax"], min_tokens=2)) == "xaxbx"
    assert text_of(read(vocabulary, tokens, ["x"], min_tokens=0)) == ""


def test_the_last_delta_has_what_the_engine_wrote_after_the_reader_was_made(
    vocabulary: Vocabulary, spelling: Spelling
) -> None:
    (token,) = spelling.bytes("a")
    for stops in ((), ("a",)):
        reuse = PromptReuse()
        readers = (
            AnswerReader(vocabulary, stops, reuse=reuse),
            TrackedReader(vocabulary, stops, reuse=reuse, options=PLAIN),
        )
        reuse.cached_tokens = 32
        for reader in readers:
            (last,) = reader.feed(ChatDelta((token,), 40, 1, finish_reason="length"))
            assert isinstance(last, LastDelta)
            assert last.cached_tokens == 32


@settings(max_examples=100)
@given(
    text=st.text(st.sampled_from("abE🟥ü"), max_size=12),
    stops=st.lists(st.text(st.sampled_from("abEü"), min_size=1, max_size=3), max_size=2),
    shown=st.booleans(),
)
def test_the_tracked_text_is_the_plain_one_and_scores_spell_it(
    vocabulary: Vocabulary, spelling: Spelling, text: str, stops: list[str], shown: bool
) -> None:
    tokens = spelling.bytes(text + "a")
    plain = AnswerReader(vocabulary, stops)
    expected = ""
    for at in range(len(tokens)):
        reason = "length" if at == len(tokens) - 1 else None
        for delta in plain.feed(ChatDelta((tokens[at],), 7, at + 1, finish_reason=reason)):
            expected += delta.text
        if plain.done:
            break
    deltas = read(vocabulary, tokens, stops, WITH_STOP if shown else PLAIN)
    if not shown or not plain.done:
        assert text_of(deltas) == expected
    else:
        assert any(text_of(deltas) == expected + stop for stop in stops)
    assert told(deltas) == list(range(len(text_of(deltas).encode())))
    passed = ""
    for delta in deltas:  # never a score before its text
        passed += delta.text
        assert max(told([delta]), default=-1) < len(passed.encode())
    assert [t for d in deltas for t in d.tokens] == tokens[: deltas[-1].completion_tokens]
