"""Options of single tokens over chat and V2, and the logprobs of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tokenizers import Tokenizer

from predictors.base import Answer
from predictors.chat.chunks import ChunkEncoder
from predictors.chat.codec import ChatCodec
from predictors.chat.detokenize import Vocabulary
from predictors.chat.logprobs import LogprobWriters
from predictors.chat.pixel_bounds import PixelLimits
from predictors.chat.request import (
    NO_CONTROLS,
    USUAL_PROMPT,
    USUAL_TEXT,
    ChatDelta,
    ChatRequest,
    Controls,
    LastDelta,
    PromptOptions,
    Sampling,
    ScoredDelta,
    TextOptions,
    TokenLogprob,
)
from predictors.chat.streaming import encode_deltas
from predictors.errors import InvalidRequest
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody, read_chat_body
from predictors.protocol.openai.token_fields import TEXTS
from predictors.protocol.v2.values import Tensor, V2Request, V2Response
from tests.chat.room import CHECKPOINT

CALL = Call({}, protocol="openai", request_id="abc")
VOCABULARY = 1000


@pytest.fixture(scope="module")
def codec() -> ChatCodec:
    vocabulary = Vocabulary(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")), VOCABULARY)
    return ChatCodec(
        *(Sampling(), "float32", 3, PixelLimits(3136, 1_100_000, 1_000_000, 784)),
        logprobs=LogprobWriters(vocabulary),
        variables=frozenset({"add_vision_id"}),
    )


def chat_body(**fields: Any) -> ChatBody:
    messages = [{"role": "user", "content": "a"}]
    return read_chat_body({"model": "qwen-vl", "messages": messages, "seed": 1, **fields})


def v2_request(outputs: tuple[str, ...] = (), **fields: Any) -> V2Request:
    """With the same fields as parameters; lists and objects are JSON in a text."""
    in_text = {*TEXTS, "chat_template_kwargs"}
    given = {n: json.dumps(v) if n in in_text else v for n, v in fields.items()}
    prompt = Tensor("prompt", "BYTES", (1,), (b"a",), text=True)
    return V2Request("qwen-vl", "1", (prompt,), {"seed": 1, **given}, outputs)


def both(codec: ChatCodec, **fields: Any) -> ChatRequest:
    """The request that chat and V2 make of the same fields."""
    (from_chat,) = codec.decode_chat(chat_body(**fields))
    (from_v2,) = codec.decode_v2(v2_request(**fields))
    assert from_chat == from_v2
    return from_chat


def test_a_request_that_asks_for_nothing_shares_the_usual_values(codec: ChatCodec) -> None:
    for request in (*codec.decode_chat(chat_body()), *codec.decode_v2(v2_request())):
        assert request.controls is NO_CONTROLS
        assert request.text is USUAL_TEXT
        assert request.prompt is USUAL_PROMPT


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"logprobs": True}, Controls(logprobs=0)),
        ({"logprobs": True, "top_logprobs": 20}, Controls(logprobs=20)),
        ({"logprobs": False}, NO_CONTROLS),
        ({"logit_bias": {"999": 1, "0": -100}}, Controls(((0, -100.0), (999, 1.0)))),
        ({"min_tokens": 3, "max_tokens": 3}, Controls(min_tokens=3)),
        ({"min_tokens": 3, "max_tokens": -1}, Controls(min_tokens=3)),
        ({"stop_token_ids": [5, 5, 7]}, Controls(stop_token_ids=frozenset((5, 7)))),
    ],
    ids=["none", "most", "off", "bias", "least", "open", "stop"],
)
def test_chat_and_v2_ask_for_the_same_controls(
    codec: ChatCodec, fields: dict[str, Any], expected: Controls
) -> None:
    assert both(codec, **fields).controls == expected


def test_chat_and_v2_ask_for_the_same_text_and_prompt(codec: ChatCodec) -> None:
    assert both(codec, include_stop_str_in_output=True).text == TextOptions(include_stop=True)
    assert both(codec, skip_special_tokens=False).text == TextOptions(keep_special=True)
    asked = both(codec, chat_template_kwargs={"add_vision_id": True, "enable_thinking": False})
    assert asked.prompt == PromptOptions('{"add_vision_id": true}')
    assert both(codec, min_p=0.25).sampling.min_p == 0.25


def test_an_answer_that_goes_on_with_a_message_opens_none(codec: ChatCodec) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    fields = {"model": "qwen-vl", "messages": messages, "continue_final_message": True}
    (request,) = codec.decode_chat(read_chat_body(fields))
    assert request.prompt == PromptOptions(opens_answer=False, continues_last=True)
    (request,) = codec.decode_chat(chat_body(add_generation_prompt=False))
    assert request.prompt == PromptOptions(opens_answer=False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"1000": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"stop_token_ids": [3, 1000]}, "stop_token_ids"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x"),
        ({"chat_template_kwargs": {"enable_thinking": True}},
         "chat_template_kwargs.enable_thinking"),
    ],
)  # fmt: skip
def test_chat_and_v2_refuse_the_same_fields(
    codec: ChatCodec, fields: dict[str, Any], param: str
) -> None:
    for decode in (
        lambda: codec.decode_chat(chat_body(**fields)),
        lambda: codec.decode_v2(v2_request(**fields)),
    ):
        with pytest.raises(InvalidRequest) as refused:
            decode()
        assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": "x"}, "top_logprobs"),
        ({"min_tokens": 1.5}, "min_tokens"),
        ({"skip_special_tokens": "false"}, "skip_special_tokens"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_wrong_types_of_v2_parameters_are_refused_by_name(
    codec: ChatCodec, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        codec.decode_v2(v2_request(**fields))
    assert refused.value.param == param


@pytest.mark.parametrize("name", sorted({*TEXTS, "chat_template_kwargs"}))
def test_a_v2_parameter_that_is_no_text_is_refused(codec: ChatCodec, name: str) -> None:
    request = replace(v2_request(), parameters={name: 5})
    with pytest.raises(InvalidRequest, match=f"{name} must be a string") as refused:
        codec.decode_v2(request)
    assert refused.value.param == name


def test_numbers_in_texts_are_read_over_v2_as_everywhere(codec: ChatCodec) -> None:
    given = v2_request(logprobs=True, top_logprobs="2", min_tokens="3")
    (request,) = codec.decode_v2(given)
    assert request.controls == Controls(min_tokens=3, logprobs=2)


# -- answers -------------------------------------------------------------------------------------
def scores_of(*tokens: int) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(t, -t / 8, 1, ((t, -t / 8), (t + 1, -99.5))) for t in tokens)


DELTAS = (
    ScoredDelta((40,), 9, 1, "he", None, scores_of(40)),
    ScoredDelta((41,), 9, 2, "", None, scores_of(41)),
    ChatDelta((42,), 9, 3, "y"),
    LastDelta((43,), 9, 4, "!", "length", (), scores_of(42, 43), 16),
)


def whole(codec: ChatCodec, body: ChatBody) -> dict[str, Any]:
    requests = codec.decode_chat(body)
    encoder = ChunkEncoder(body, CALL, "float32", requests, codec.logprobs)
    answers = [Answer(request, DELTAS, 1, 2) for request in requests]
    found: dict[str, Any] = orjson.loads(orjson.dumps(encoder.whole(answers)))
    return found


def streamed(codec: ChatCodec, body: ChatBody, *batches: int) -> list[dict[str, Any]]:
    """The chunks of an answer whose deltas come in such batches."""
    requests = codec.decode_chat(body)
    encoder = ChunkEncoder(body, CALL, "float32", requests, codec.logprobs)
    events, first = encoder.opening(), 0
    for size in batches:
        events += encoder.deltas(0, DELTAS[first : first + size], lambda: {"queue_ms": 1})
        first += size
    return [orjson.loads(line[6:]) for line in events.split(b"\n\n")[:-1]]


def content_of(choice: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = choice["logprobs"]["content"]
    return found


def test_a_whole_chat_has_logprobs_as_openais_client_reads_them(codec: ChatCodec) -> None:
    reply = whole(codec, chat_body(logprobs=True, top_logprobs=2))
    (choice,) = ChatCompletion.model_validate(reply).choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [each.logprob for each in choice.logprobs.content] == [-5, -5.125, -5.25, -5.375]
    assert [len(each.top_logprobs) for each in choice.logprobs.content] == [2] * 4
    assert choice.logprobs.refusal is None


@pytest.mark.parametrize("batches", [(1, 1, 1, 1), (4,), (2, 2), (1, 3)])
def test_the_chunks_of_a_stream_have_the_logprobs_of_the_whole(
    codec: ChatCodec, batches: Sequence[int]
) -> None:
    fields = {"logprobs": True, "top_logprobs": 2}
    body = chat_body(stream=True, stream_options={"include_usage": True}, **fields)
    chunks = streamed(codec, body, *batches)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    parts = [content_of(choice) for choice in choices if choice["logprobs"]]
    (expected,) = whole(codec, body)["choices"]
    assert [each for part in parts for each in part] == content_of(expected)
    assert "".join(c["delta"].get("content", "") for c in choices) == "hey!"
    assert choices[0]["logprobs"] is None  # the role
    assert choices[-1]["logprobs"] is None  # the reason
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}


def test_answers_without_logprobs_say_null(codec: ChatCodec) -> None:
    assert whole(codec, chat_body())["choices"][0]["logprobs"] is None
    chunks = streamed(codec, chat_body(stream=True), 2, 2)
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)


def test_tokens_of_logprobs_may_be_ids(codec: ChatCodec) -> None:
    fields = {"logprobs": True, "return_tokens_as_token_ids": True}
    (choice,) = whole(codec, chat_body(**fields))["choices"]
    names = [each["token"] for each in content_of(choice)]
    assert names == [f"token_id:{token}" for token in (40, 41, 42, 43)]
    assert json.loads(column(v2_answer(codec, **fields), "logprobs"))["content"] == content_of(
        choice
    )


def v2_answer(codec: ChatCodec, outputs: tuple[str, ...] = (), **fields: Any) -> V2Response:
    request = v2_request(outputs, **fields)
    (row,) = codec.decode_v2(request)
    return codec.encode_v2(request, [Answer(row, DELTAS, 1, 2)])


def column(response: V2Response, name: str) -> bytes:
    (found,) = (tensor for tensor in response.outputs if tensor.name == name)
    assert (found.datatype, found.shape, found.text) == ("BYTES", (1,), True)
    (value,) = found.data
    assert isinstance(value, bytes)
    return value


def test_v2_answers_with_the_same_logprobs_as_json(codec: ChatCodec) -> None:
    fields = {"logprobs": True, "top_logprobs": 2}
    (choice,) = whole(codec, chat_body(**fields))["choices"]
    response = v2_answer(codec, **fields)
    assert json.loads(column(response, "logprobs")) == choice["logprobs"]
    assert "logprobs" not in {tensor.name for tensor in v2_answer(codec).outputs}


def test_v2s_parts_have_the_logprobs_of_the_whole(codec: ChatCodec) -> None:
    request = v2_request(logprobs=True, top_logprobs=2)
    (row,) = codec.decode_v2(request)
    parts = [encode_deltas(codec, request, row, [delta], (1, 2)) for delta in DELTAS]
    assert [part.is_final for part in parts] == [False, False, False, True]
    told = [each for part in parts for each in json.loads(column(part, "logprobs"))["content"]]
    expected = json.loads(column(v2_answer(codec, logprobs=True), "logprobs"))["content"]
    assert told == expected
    assert b"".join(column(part, "text") for part in parts) == b"hey!"


def test_the_output_of_logprobs_needs_its_parameter(codec: ChatCodec) -> None:
    with pytest.raises(InvalidRequest, match="needs the parameter logprobs") as refused:
        v2_answer(codec, ("text", "logprobs"))
    assert refused.value.param == "logprobs"
    assert v2_answer(codec, ("logprobs",), logprobs=True).outputs


@pytest.mark.parametrize(("cached", "details"), [(None, None), (0, 0), (32, 32)])
def test_usage_counts_cached_tokens_where_prompts_are_kept(
    codec: ChatCodec, cached: int | None, details: int | None
) -> None:
    body = chat_body()
    requests = codec.decode_chat(body)
    encoder = ChunkEncoder(body, CALL, "float32", requests)
    last = LastDelta((1,), 40, 1, "x", "length", (), (), cached)
    used = encoder.whole([Answer(requests[0], (last,), 1, 2)])["usage"]
    assert used.get("prompt_tokens_details") == (
        None if details is None else {"cached_tokens": details}
    )
