"""Fields of single tokens through the whole predictor, beside transformers' own `generate`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import torch
from transformers import MinPLogitsWarper

from predictors.chat.predictor import ChatPredictor
from predictors.errors import InvalidRequest
from predictors.models.qwen2_5_vl.model import make_predictor
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody, read_chat_body
from predictors.protocol.openai.token_fields import TEXTS
from predictors.protocol.v2.values import Tensor, V2Request, V2Response
from predictors.settings import ComputeSettings, QwenVLSettings, Settings
from tests.chat.reference import Reference
from tests.chat.room import CHECKPOINT, chat

CALL = Call({}, protocol="openai", request_id="test")
SETTINGS = Settings(
    compute=ComputeSettings(device="cpu", compile="off"),
    qwen_vl=QwenVLSettings(slots=4, max_context=512, prefix_cache="on"),
)
QUESTION = "Describe this picture."
GREEDY = {"temperature": 0, "repetition_penalty": 1, "max_tokens": 12}


@pytest.fixture(scope="module")
def predictor() -> Iterator[ChatPredictor]:
    made = make_predictor("qwen-vl", CHECKPOINT, SETTINGS)
    assert made.load()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def generated(reference: Reference) -> dict[str, Any]:
    """Greedy tokens of the reference and their raw logits (tokens, vocabulary)."""
    return generate(reference)


def generate(reference: Reference, **options: Any) -> dict[str, Any]:
    given = reference.inputs(chat(QUESTION))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        out = reference.model.generate(
            **given,
            do_sample=False,
            temperature=None,
            repetition_penalty=1.0,
            max_new_tokens=12,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
    tokens = out.sequences[0, given["input_ids"].shape[1] :].tolist()
    return {"tokens": tokens, "logits": torch.cat(out.logits).float()}


def body(text: str = QUESTION, **fields: Any) -> ChatBody:
    messages = fields.pop("messages", [{"role": "user", "content": text}])
    return read_chat_body({"model": "qwen-vl", "messages": messages, "seed": 1, **fields})


async def choice_of(predictor: ChatPredictor, **fields: Any) -> dict[str, Any]:
    """The only choice of a whole chat."""
    reply = orjson.loads(orjson.dumps(await predictor.chat(body(**{**GREEDY, **fields}), CALL)))
    (choice,) = reply["choices"]
    found: dict[str, Any] = choice
    return found


def ids(choice: dict[str, Any]) -> list[int]:
    return [int(each["token"].removeprefix("token_id:")) for each in choice["logprobs"]["content"]]


BY_ID = {"logprobs": True, "return_tokens_as_token_ids": True}
WITH_END = {**BY_ID, "include_stop_str_in_output": True}


async def test_logprobs_of_a_greedy_answer_are_those_of_generate(
    predictor: ChatPredictor, generated: dict[str, Any]
) -> None:
    choice = await choice_of(predictor, **WITH_END, top_logprobs=20)
    assert ids(choice) == generated["tokens"]
    content = choice["logprobs"]["content"]
    expected = generated["logits"].log_softmax(-1)
    for each, row, token in zip(content, expected, generated["tokens"], strict=True):
        assert each["logprob"] == pytest.approx(float(row[token]), abs=2e-5)
        best = row.topk(20)
        told = [other["logprob"] for other in each["top_logprobs"]]
        assert told == pytest.approx(best.values.tolist(), abs=2e-5)
        assert sum(map(float, row.exp())) == pytest.approx(1, abs=1e-5)


async def test_logprobs_are_of_raw_logits_whatever_changes_them(
    predictor: ChatPredictor, generated: dict[str, Any]
) -> None:
    first, expected = generated["tokens"][0], generated["logits"].log_softmax(-1)[0]
    fields = {"temperature": 0.5, "repetition_penalty": 1.3, "presence_penalty": 1, "min_p": 0.9}
    forced = {"logit_bias": {str(first + 1): 100}, "max_tokens": 1}
    choice = await choice_of(predictor, **fields, **forced, **BY_ID, top_logprobs=1)
    (entry,) = choice["logprobs"]["content"]
    assert ids(choice) == [first + 1]
    assert entry["logprob"] == pytest.approx(float(expected[first + 1]), abs=2e-5)
    (likeliest,) = entry["top_logprobs"]
    assert likeliest["token"] == f"token_id:{first}"


async def test_the_bytes_of_all_entries_are_the_text(predictor: ChatPredictor) -> None:
    choice = await choice_of(predictor, logprobs=True)
    joined = b"".join(bytes(each["bytes"]) for each in choice["logprobs"]["content"])
    assert joined.decode() == choice["message"]["content"] != ""
    assert all(each["top_logprobs"] == [] for each in choice["logprobs"]["content"])


async def test_biases_are_those_of_generate(
    predictor: ChatPredictor, reference: Reference, generated: dict[str, Any]
) -> None:
    tokens = generated["tokens"]
    biases = {tokens[0]: -100.0, tokens[1]: 2.5, tokens[2] + 1: 1.25}
    options = {"sequence_bias": [[[token], bias] for token, bias in biases.items()]}
    expected = generate(reference, **options)["tokens"]
    assert expected != tokens
    fields = {"logit_bias": {str(token): bias for token, bias in biases.items()}}
    assert ids(await choice_of(predictor, **fields, **WITH_END)) == expected


async def test_min_p_leaves_the_tokens_that_transformers_leaves(
    predictor: ChatPredictor, generated: dict[str, Any]
) -> None:
    logits = generated["logits"][:1].clone()
    best = logits.topk(6)
    # biased so that each of six tokens is half as likely as the one before, at temperature 2
    wanted = [float(best.values[0, 0]) - 1.4 * i for i in range(6)]
    bias = [want - float(has) for want, has in zip(wanted, best.values[0], strict=True)]
    tokens = best.indices[0].tolist()
    logits[0, tokens] += torch.tensor(bias)
    kept = MinPLogitsWarper(0.4)(None, logits / 2.0)[0].isfinite()
    allowed = set(kept.nonzero()[:, 0].tolist())
    assert allowed == set(tokens[:2])
    fields = {"temperature": 2, "repetition_penalty": 1, "top_p": 1, "top_k": 0, "max_tokens": 1}
    biases = {str(token): each for token, each in zip(tokens, bias, strict=True)}
    seen = []
    for min_p in (0, 0.4):
        asked = body(**fields, **WITH_END, n=16, min_p=min_p, logit_bias=biases)
        reply = orjson.loads(orjson.dumps(await predictor.chat(asked, CALL)))
        seen.append({token for choice in reply["choices"] for token in ids(choice)})
    assert seen[0] - allowed
    assert seen[1] == allowed
    certain = await choice_of(predictor, **WITH_END, temperature=2, min_p=1)
    assert ids(certain) == generated["tokens"]


async def test_a_least_length_is_that_of_generate(
    predictor: ChatPredictor, reference: Reference, generated: dict[str, Any]
) -> None:
    made = len(generated["tokens"])
    assert made < 12, "the answer must end early"
    expected = generate(reference, min_new_tokens=made + 1)["tokens"]
    found = await choice_of(predictor, min_tokens=made + 1, **WITH_END)
    assert ids(found) == expected
    with pytest.raises(InvalidRequest, match="min_tokens") as refused:
        await choice_of(predictor, min_tokens=13)
    assert refused.value.param == "min_tokens"


async def test_a_least_length_above_what_the_context_leaves_is_refused(
    predictor: ChatPredictor,
) -> None:
    for most in (None, -1):
        with pytest.raises(InvalidRequest, match="min_tokens 600") as refused:
            await choice_of(predictor, min_tokens=600, max_tokens=most)
        assert refused.value.param == "min_tokens"


async def test_a_stop_token_ends_the_answer_and_is_shown_on_demand(
    predictor: ChatPredictor, generated: dict[str, Any]
) -> None:
    usual = await choice_of(predictor, **BY_ID)
    token = generated["tokens"][1]
    before = next(i for i, each in enumerate(generated["tokens"]) if each == token)
    for extra, count in (({}, before), ({"include_stop_str_in_output": True}, before + 1)):
        for ignores in (False, True):
            fields = {"stop_token_ids": [token], "ignore_eos": ignores, **BY_ID, **extra}
            choice = await choice_of(predictor, **fields)
            assert choice["finish_reason"] == "stop"
            assert ids(choice) == generated["tokens"][:count]
            assert usual["message"]["content"].startswith(choice["message"]["content"])


async def test_control_tokens_are_shown_on_demand(predictor: ChatPredictor) -> None:
    usual = (await choice_of(predictor))["message"]["content"]
    shown = await choice_of(predictor, skip_special_tokens=False, include_stop_str_in_output=True)
    assert shown["message"]["content"] == f"{usual}<|im_end|>"
    hidden = await choice_of(predictor, skip_special_tokens=False)
    assert hidden["message"]["content"] == usual


async def test_an_answer_goes_on_with_a_message(predictor: ChatPredictor) -> None:
    whole: str = (await choice_of(predictor))["message"]["content"]
    begun = whole[: whole.index(" ", 1)]
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": begun},
    ]
    rest = await choice_of(predictor, messages=messages, continue_final_message=True)
    assert begun + rest["message"]["content"] == whole


async def test_a_stream_has_the_logprobs_of_the_whole(predictor: ChatPredictor) -> None:
    fields = {**GREEDY, "logprobs": True, "top_logprobs": 2, "stop": [" "], "n": 2}
    whole = orjson.loads(orjson.dumps(await predictor.chat(body(**fields), CALL)))["choices"]
    events = b"".join([e async for e in predictor.chat_stream(body(**fields, stream=True), CALL)])
    chunks = [orjson.loads(line[6:]) for line in events.split(b"\n\n")[:-1]]
    for expected in whole:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == expected["index"]]
        told = [each for c in own if c["logprobs"] for each in c["logprobs"]["content"]]
        assert told == expected["logprobs"]["content"] != []


def v2_request(**fields: Any) -> V2Request:
    prompt = Tensor("prompt", "BYTES", (1,), (QUESTION.encode(),), text=True)
    given = {n: json.dumps(v) if n in TEXTS else v for n, v in (GREEDY | fields).items()}
    return V2Request("qwen-vl", "1", (prompt,), {"seed": 1, **given}, is_streamed=True)


def column(response: V2Response, name: str) -> bytes:
    (found,) = (tensor for tensor in response.outputs if tensor.name == name)
    (value,) = found.data
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": True, "top_logprobs": 3},
        {"logprobs": True, "include_stop_str_in_output": True, "skip_special_tokens": False},
        {"logprobs": True, "logit_bias": {"5": 4.5}, "min_p": 0.1, "temperature": 1.0},
        {"logprobs": True, "min_tokens": 8, "stop_token_ids": [1, 2, 3]},
    ],
    ids=["top", "end", "bias", "least"],
)
async def test_v2_whole_and_in_parts_answers_as_chat(
    predictor: ChatPredictor, fields: dict[str, Any]
) -> None:
    choice = await choice_of(predictor, **fields)
    request = v2_request(**fields)
    response = await predictor.infer(request, CALL)
    assert column(response, "text").decode() == choice["message"]["content"]
    assert json.loads(column(response, "logprobs")) == choice["logprobs"]
    request = v2_request(**fields, stream=True)
    parts = [part async for part in predictor.infer_stream(request, CALL)]
    assert b"".join(column(p, "text") for p in parts) == column(response, "text")
    told = [each for p in parts for each in json.loads(column(p, "logprobs"))["content"]]
    assert told == choice["logprobs"]["content"]


async def test_tokens_of_the_prefix_cache_are_counted(predictor: ChatPredictor) -> None:
    long = "one two three four " * 12
    used = []
    for stop in (None, None, [" "]):
        fields = {**GREEDY, "max_tokens": 3, "stop": stop}
        used.append((await predictor.chat(body(long, **fields), CALL))["usage"])
    first, *others = [usage["prompt_tokens_details"]["cached_tokens"] for usage in used]
    assert len(set(others)) == 1
    assert first < others[0] < used[0]["prompt_tokens"]
