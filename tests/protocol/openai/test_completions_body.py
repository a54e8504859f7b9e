"""The body of `POST /v1/completions`: prompts of text and of ids, and refusals by name."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.openai.completions_body import FIELDS, read_completions_body

PROMPTS: list[tuple[Any, tuple[Any, ...]]] = [
    ("a", ("a",)),
    (["a", "b"], ("a", "b")),
    ([1, 2, 0], ((1, 2, 0),)),
    ([[1, 2], [3]], ((1, 2), (3,))),
    (["a", [3]], ("a", (3,))),
]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "a"} | fields


@pytest.mark.parametrize(("given", "read"), PROMPTS, ids=map(str, range(len(PROMPTS))))
def test_a_prompt_is_text_or_ids_or_a_list_of_them(given: Any, read: tuple[Any, ...]) -> None:
    found = read_completions_body(body(prompt=given, n=3))
    assert found.prompts == read
    assert (found.n, found.chat.n) == (3 * len(read), 3)
    assert pickle.loads(pickle.dumps(found)) == found


def test_an_answer_has_openais_sixteen_tokens_unless_it_is_told() -> None:
    assert read_completions_body(body()).chat.max_tokens == 16
    assert read_completions_body(body(max_tokens=3)).chat.max_tokens == 3


def test_fields_of_a_chat_mean_the_same() -> None:
    read = read_completions_body(
        body(temperature=0.5, top_k=-1, stop=["x"], seed=3, stream=True, best_of=1, echo=True)
    )
    chat = read.chat
    assert (chat.temperature, chat.top_k, chat.stop, chat.seed) == (0.5, -1, ("x",), 3)
    assert (read.stream, read.echo, chat.messages) == (True, True, ())


def test_logprobs_are_a_number_as_they_were_at_openais() -> None:
    for number in (0, 5):
        tokens = read_completions_body(body(logprobs=number)).chat.tokens
        assert (tokens.logprobs, tokens.top_logprobs) == (True, number)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "is required"),
    ({"prompt": ""}, "prompt", "is empty"),
    ({"prompt": []}, "prompt", "is empty"),
    ({"prompt": [[]]}, "prompt[0]", "is empty"),
    ({"prompt": ["a", ""]}, "prompt[1]", "is empty"),
    ({"prompt": {"a": 1}}, "prompt", "a string or a list"),
    ({"prompt": [{}]}, "prompt[0]", "a string or a list"),
    ({"prompt": [None]}, "prompt[0]", "a string or a list"),
    ({"prompt": [1, "a"]}, "prompt[1]", "a token id"),
    ({"prompt": [1, -1]}, "prompt[1]", "a token id"),
    ({"prompt": [1, 2.5]}, "prompt[1]", "a token id"),
    ({"prompt": [[1, True]]}, "prompt[0][1]", "a token id"),
    ({"prompt": [1, 2**31]}, "prompt[1]", "a token id"),
    ({"prompt": [1] * 100_001}, "prompt", "at most 100000"),
    ({"prompt": ["a"] * 129}, "prompt", "at most 128"),
    ({"prompt": "a" * (2**21 + 1)}, "prompt", "at most"),
    ({"suffix": "b"}, "suffix", "fill in"),
    ({"best_of": 2}, "best_of", "every choice"),
    ({"best_of": 2, "n": 3}, "best_of", "every choice"),
    ({"prompt": [1], "echo": True}, "echo", "prompts of text"),
    ({"logprobs": True}, "logprobs", "whole number"),
    ({"logprobs": 21}, "logprobs", "whole number"),
    ({"logprobs": 1, "echo": True}, "logprobs", "prompt are not computed"),
    ({"max_tokens": 0}, "max_tokens", "whole number"),
    ({"n": 17}, "n", "whole number"),
    ({"messages": []}, "messages", "unknown field"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_a_wrong_body_is_refused_by_the_name_of_its_field(
    fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        read_completions_body(body(**fields))
    assert refused.value.param == param


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_null_is_the_same_as_leaving_a_field_out(name: str) -> None:
    if name not in ("model", "prompt"):
        assert read_completions_body(body(**{name: None})) == read_completions_body(body())
