"""Completions, responses and tokens from the real predictor, most of them without a template."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import orjson
import pytest

from predictors.chat.predictor import ChatPredictor
from predictors.errors import InvalidRequest, Overloaded, PromptTooLong
from predictors.models.qwen2_5_vl.model import make_predictor
from predictors.protocol.anthropic.messages_body import read_count_body
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import read_chat_body
from predictors.protocol.openai.completions_body import CompletionsBody, read_completions_body
from predictors.protocol.openai.responses_body import read_responses_body
from predictors.protocol.openai.tokens_body import (
    TokenizeBody,
    read_detokenize_body,
    read_tokenize_body,
)
from predictors.protocol.serves import ServesChat, ServesTokens
from tests.chat.test_predictor import PICTURE, SETTINGS

CALL = Call({}, protocol="openai", request_id="test")
ENDED = "<|im_end|>"


@pytest.fixture(scope="module")
def predictor(wild_checkpoint: Path) -> Iterator[ChatPredictor]:
    made = make_predictor("qwen-vl", wild_checkpoint, SETTINGS)
    assert made.load()
    yield made
    made.stop()


def completion(prompt: Any, **fields: Any) -> CompletionsBody:
    given = {"model": "m", "prompt": prompt, "seed": 1, "max_tokens": 6, "ignore_eos": True}
    return read_completions_body(given | fields)


async def tokens_of(predictor: ChatPredictor, **body: Any) -> list[int]:
    found: list[int] = (await predictor.tokenize(read_tokenize_body(body), CALL))["tokens"]
    return found


async def test_it_serves_text_and_tokens(predictor: ChatPredictor) -> None:
    assert isinstance(predictor, ServesChat)
    assert isinstance(predictor, ServesTokens)


async def test_a_text_and_its_tokens_are_the_same_prompt(predictor: ChatPredictor) -> None:
    text = "a red circle "
    tokens = await tokens_of(predictor, prompt=text)
    replies = [await predictor.chat(completion(each), CALL) for each in (text, tokens, [tokens])]
    texts = [reply["choices"][0]["text"] for reply in replies]
    assert len(set(texts)) == 1
    assert replies[0]["usage"]["prompt_tokens"] == len(tokens)
    back = await predictor.detokenize(read_detokenize_body({"tokens": tokens}), CALL)
    assert back == {"prompt": text}


async def test_a_stream_has_the_text_of_the_whole_answer(predictor: ChatPredictor) -> None:
    asked = completion(["a", "red"], n=2, temperature=1.0)
    whole = await predictor.chat(asked, CALL)
    raw = b"".join([each async for each in predictor.chat_stream(asked, CALL)])
    joined = dict.fromkeys(range(4), "")
    for line in raw.split(b"\n\n")[:-1]:
        for choice in orjson.loads(line[6:])["choices"]:
            joined[choice["index"]] += choice["text"]
    assert joined == {choice["index"]: choice["text"] for choice in whole["choices"]}


async def test_a_response_says_what_a_chat_says(predictor: ChatPredictor) -> None:
    fields = {"model": "m", "seed": 3, "temperature": 1.0, "ignore_eos": True}
    parts = [{"type": "input_image", "image_url": PICTURE}, {"type": "input_text", "text": "a"}]
    turns = [{"role": "user", "content": parts}]
    chat = read_chat_body(fields | {"messages": turns, "max_tokens": 7})
    asked = read_responses_body(fields | {"input": turns, "max_output_tokens": 7})
    said, response = await predictor.chat(chat, CALL), await predictor.chat(asked, CALL)
    text = response["output"][0]["content"][0]["text"]
    assert text == said["choices"][0]["message"]["content"]
    assert response["usage"]["input_tokens"] == said["usage"]["prompt_tokens"]
    counted = await predictor.tokenize(read_tokenize_body({"messages": turns}), CALL)
    assert counted["count"] == said["usage"]["prompt_tokens"]  # the picture's tokens among them
    assert counted["max_model_len"] == 512


async def test_a_streamed_response_opens_when_its_job_is_accepted(predictor: ChatPredictor) -> None:
    asked = read_responses_body({"model": "m", "input": "a", "stream": True})
    stream = predictor.chat_stream(asked, CALL)
    async with aclosing(stream):  # type: ignore[type-var]
        first = await anext(stream)
    assert first.startswith(b"event: response.created\n")
    assert first.count(b"\n\n") == 2


async def test_text_behind_a_call_is_behind_it_in_the_prompt_of_both_routes(
    predictor: ChatPredictor,
) -> None:
    use = {"type": "tool_use", "id": "1", "name": "count", "input": {}}
    turn = {"role": "assistant", "content": [use, {"type": "text", "text": "wait"}]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]}
    asked = {"role": "user", "content": "a"}
    one = read_count_body({"model": "m", "messages": [asked, turn, result]})
    items = [
        asked,
        {"type": "function_call", "call_id": "1", "name": "count", "arguments": "{}"},
        {"role": "assistant", "content": "wait"},
        {"type": "function_call_output", "call_id": "1", "output": ""},
    ]
    chat = read_responses_body({"model": "m", "input": items}).chat
    prompts = [
        (await predictor.tokenize(each, CALL))["tokens"]
        for each in (one, TokenizeBody("m", None, chat))
    ]
    assert prompts[0] == prompts[1]
    text = predictor._preparer._model.tokenizer.decode(prompts[0], skip_special_tokens=False)
    assert f"</tool_call>\nwait{ENDED}\n" in text


async def test_a_control_token_in_a_text_is_plain_text(predictor: ChatPredictor) -> None:
    (control,) = predictor._preparer._model.tokenizer.encode(ENDED).ids
    written = await tokens_of(predictor, prompt=f"a{ENDED}")
    assert control not in written
    assert len(written) > 2
    shown = await predictor.detokenize(read_detokenize_body({"tokens": [control]}), CALL)
    assert shown["prompt"] == ENDED
    assert await predictor.chat(completion([control]), CALL)  # ids mean what they say


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([10**6], "the model's are 0 to"),
        ("\ud800", "surrogate"),
        ("a " * 600, "maximum context length"),
        ("a" * 2**21, "maximum context length"),
        ([1] * 600, "maximum context length"),
    ],
    ids=["unknown", "surrogate", "long text", "far too long text", "long ids"],
)
async def test_a_prompt_that_cannot_be_read_is_refused(
    predictor: ChatPredictor, prompt: Any, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await predictor.chat(completion(prompt), CALL)


async def test_a_token_of_pictures_is_refused(predictor: ChatPredictor) -> None:
    token = predictor._preparer._model.image_token
    with pytest.raises(InvalidRequest, match="stands for pictures"):
        await predictor.chat(completion([1, token]), CALL)
    with pytest.raises(InvalidRequest, match="the model's are 0 to"):
        await predictor.detokenize(read_detokenize_body({"tokens": [10**6]}), CALL)


async def test_long_messages_are_refused_with_their_number(predictor: ChatPredictor) -> None:
    turns = [{"role": "user", "content": "a " * 600}]
    with pytest.raises(PromptTooLong, match="maximum context length is 512"):
        await predictor.tokenize(read_tokenize_body({"messages": turns}), CALL)
    assert len(await tokens_of(predictor, prompt="a " * 600)) > 512


def fill(predictor: ChatPredictor) -> int:
    """Take every place of the queue, and return their number."""
    for count in itertools.count():
        try:
            predictor.host.reserve(1)
        except Overloaded:
            return count
    raise AssertionError("the queue has no end")


async def test_tokens_have_a_place_in_the_queue(predictor: ChatPredictor) -> None:
    before = fill(predictor)
    try:
        with pytest.raises(Overloaded):
            await tokens_of(predictor, prompt="a")
    finally:
        predictor.host.release(before)
    for _ in range(3):
        with pytest.raises(PromptTooLong):
            await tokens_of(predictor, prompt="a" * 2**21)
    assert await tokens_of(predictor, prompt="") == []
    assert fill(predictor) == before  # places came back, also after a refusal
    predictor.host.release(before)
