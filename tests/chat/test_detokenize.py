"""Incremental text: whole characters only, stop strings wherever they fall."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from predictors.chat.detokenize import AnswerReader, StopFinder, Vocabulary, byte_alphabet
from predictors.chat.request import ChatDelta, stop_text_of
from tests.chat.room import CHECKPOINT


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer)


def read(
    vocabulary: Vocabulary, tokens: list[int], stops: list[str], cuts: list[int]
) -> list[ChatDelta]:
    """The deltas of an answer that comes in chunks cut at `cuts`; ends as at max_tokens."""
    reader = AnswerReader(vocabulary, stops)
    borders = sorted({0, len(tokens), *(cut % (len(tokens) + 1) for cut in cuts)})
    seen: list[ChatDelta] = []
    for start, end in itertools.pairwise(borders):
        reason = "length" if end == len(tokens) else None
        chunk = ChatDelta(tuple(tokens[start:end]), 1, end, finish_reason=reason)
        seen += reader.feed(chunk)
        if reader.done:
            break
    return seen


def text_of(deltas: list[ChatDelta]) -> str:
    return "".join(delta.text for delta in deltas)


any_text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
cuts = st.lists(st.integers(0, 200), max_size=12)


@settings(max_examples=150)
@given(text=any_text, cuts=cuts)
def test_any_text_comes_back_whole_however_it_is_cut(
    vocabulary: Vocabulary, tokenizer: Any, text: str, cuts: list[int]
) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    deltas = read(vocabulary, tokens, [], cuts)
    assert text_of(deltas) == tokenizer.decode(tokens)
    assert [t for delta in deltas for t in delta.tokens] == tokens
    assert deltas[-1].finish_reason == "length"


@settings(max_examples=100)
@given(
    text=st.text(st.characters(min_codepoint=0x80, codec="utf-8"), min_size=1, max_size=12),
    keep=st.integers(1, 200),
)
def test_an_answer_cut_in_the_middle_never_shows_half_a_character(
    vocabulary: Vocabulary, tokenizer: Any, text: str, keep: int
) -> None:
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    tokens = [tokenizer.token_to_id(letters[byte]) for byte in text.encode()][:keep]
    for delta in read(vocabulary, tokens, [], list(range(len(tokens)))):
        assert delta.text in text  # U+FFFD only where the text itself has it
    shown = text_of(read(vocabulary, tokens, [], list(range(len(tokens)))))
    assert text.startswith(shown)
    assert len(text.encode()[:keep]) - len(shown.encode()) < 4


@settings(max_examples=100)
@given(tokens=st.lists(st.integers(0, 830), min_size=1, max_size=30), cuts=cuts)
def test_any_tokens_read_as_the_tokenizer_reads_them(
    vocabulary: Vocabulary, tokenizer: Any, tokens: list[int], cuts: list[int]
) -> None:
    ours = text_of(read(vocabulary, tokens, [], cuts))
    theirs = tokenizer.decode(tokens, skip_special_tokens=True)
    # the tokenizer shows a cut-off last character as U+FFFD; we drop it
    assert theirs.startswith(ours)
    assert theirs[len(ours) :] in {"", "�"}


def expected_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """By definition: cut where the match begins that ends first, among those the longest."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


few_letters = st.text("abc", min_size=1, max_size=30)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


@settings(max_examples=300)
@given(text=few_letters, stops=stop_lists, cuts=cuts)
def test_a_stop_string_ends_the_answer_wherever_chunks_are_cut(
    vocabulary: Vocabulary, tokenizer: Any, text: str, stops: list[str], cuts: list[int]
) -> None:
    letters = {c: tokenizer.token_to_id(c) for c in "abc"}
    deltas = read(vocabulary, [letters[c] for c in text], stops, cuts)
    wanted, found = expected_stop(text, stops)
    assert text_of(deltas) == wanted
    assert deltas[-1].finish_reason == ("stop" if found else "length")
    stop = stop_text_of(deltas[-1])
    assert (stop in stops and text[len(wanted) :].startswith(stop)) if found else stop is None
    assert all(delta.finish_reason is None for delta in deltas[:-1])


@settings(max_examples=200)
@given(text=few_letters, stops=stop_lists)
def test_only_text_that_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    finder, shown = StopFinder(stops), ""
    for i, letter in enumerate(text):
        shown += finder.feed(letter)
        if finder.found:
            break
        held = text[len(shown) : i + 1]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_a_stop_string_in_the_middle_of_characters_waits_for_whole_ones(
    vocabulary: Vocabulary, tokenizer: Any
) -> None:
    tokens = tokenizer.encode("ja 🌟🌍 nein", add_special_tokens=False).ids
    deltas = read(vocabulary, tokens, ["🌍"], list(range(len(tokens))))
    assert text_of(deltas) == "ja 🌟"
    assert deltas[-1].finish_reason == "stop"


def test_control_tokens_and_ids_beyond_the_vocabulary_have_no_text(
    vocabulary: Vocabulary, tokenizer: Any
) -> None:
    assert vocabulary.bytes_of(tokenizer.token_to_id("<|im_end|>")) == b""
    assert vocabulary.bytes_of(831) == b""
    assert vocabulary.bytes_of(tokenizer.token_to_id("<tool_call>")) == b"<tool_call>"


def test_the_time_spent_is_observed_once(vocabulary: Vocabulary) -> None:
    told: list[float] = []
    reader = AnswerReader(vocabulary, (), told.append)
    reader.feed(ChatDelta((1,), 1, 1))
    assert told == []
    reader.feed(ChatDelta((2,), 1, 2, finish_reason="stop"))
    assert len(told) == 1
