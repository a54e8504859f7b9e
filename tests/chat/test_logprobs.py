"""Scores as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.types.chat.chat_completion import ChoiceLogprobs
from tokenizers import Tokenizer

from predictors.chat.detokenize import Vocabulary, byte_alphabet
from predictors.chat.logprobs import SCORES_PER_PIECE, LogprobWriters
from predictors.chat.request import (
    ChatRequest,
    Controls,
    Sampling,
    TextOptions,
    TokenLogprob,
)
from tests.chat.room import CHECKPOINT


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def writers(tokenizer: Any) -> LogprobWriters:
    return LogprobWriters(Vocabulary(tokenizer, size=10_000))


def asked(keep_special: bool = False) -> ChatRequest:
    text = TextOptions(keep_special=keep_special)
    return ChatRequest((), Sampling(), 0, controls=Controls(logprobs=1), text=text)


def entry(writers: LogprobWriters, token: int, **options: Any) -> dict[str, Any]:
    request = asked(options.pop("keep_special", False))
    writer = writers.of(request, as_ids=options.pop("as_ids", False))
    (found,) = writer.content([TokenLogprob(token, -0.5, 1, ((token, -0.5),))])
    (top,) = found.pop("top_logprobs")
    assert top == found
    return found


def test_a_token_is_its_text_and_its_bytes(writers: LogprobWriters, tokenizer: Any) -> None:
    token = tokenizer.encode(" red").ids[0]
    shown = tokenizer.decode([token])
    expected = {"token": shown, "logprob": -0.5, "bytes": list(shown.encode())}
    assert entry(writers, token) == expected


def test_a_part_of_a_character_is_written_as_its_bytes(
    writers: LogprobWriters, tokenizer: Any
) -> None:
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    token = tokenizer.token_to_id(letters[0xF0])
    assert entry(writers, token) == {"token": "\\xf0", "logprob": -0.5, "bytes": [0xF0]}


def test_a_control_token_has_bytes_where_the_text_shows_it(
    writers: LogprobWriters, tokenizer: Any
) -> None:
    token, name = tokenizer.token_to_id("<|im_end|>"), "<|im_end|>"
    assert entry(writers, token) == {"token": name, "logprob": -0.5, "bytes": None}
    shown = entry(writers, token, keep_special=True)
    assert shown == {"token": name, "logprob": -0.5, "bytes": list(name.encode())}


def test_a_token_beyond_the_tokenizer_has_neither_text_nor_bytes(writers: LogprobWriters) -> None:
    assert entry(writers, 9_999) == {"token": "", "logprob": -0.5, "bytes": None}


def test_tokens_may_be_written_as_their_ids(writers: LogprobWriters, tokenizer: Any) -> None:
    token = tokenizer.encode("a").ids[0]
    found = entry(writers, token, as_ids=True)
    assert (found["token"], found["bytes"]) == (f"token_id:{token}", [ord("a")])


def test_what_json_cant_hold_is_the_least_number_of_openai(writers: LogprobWriters) -> None:
    writer = writers.of(asked(), as_ids=False)
    (found,) = writer.content([TokenLogprob(5, float("-inf"), 1, ())])
    assert found["logprob"] == -9999.0


@pytest.mark.parametrize("count", [0, 1, SCORES_PER_PIECE, 2 * SCORES_PER_PIECE + 1])
def test_a_whole_answers_list_is_that_of_its_parts(writers: LogprobWriters, count: int) -> None:
    writer = writers.of(asked(), as_ids=False)
    scores = [TokenLogprob(i % 300, -i / 7, 2, ((3, -0.25), (4, -2.0))) for i in range(count)]
    whole = orjson.loads(orjson.dumps(writer.whole(scores)))
    assert whole == orjson.loads(orjson.dumps(writer.part(scores)))
    parsed = ChoiceLogprobs.model_validate(whole)
    assert parsed.content is not None
    assert [each.logprob for each in parsed.content] == [score.logprob for score in scores]
