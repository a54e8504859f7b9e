"""Odd bodies on every JSON route of a live server: each is refused by the name that its field has
in the body, or means what it says, and none is a server's error."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.body_paths import is_there

USER = {"role": "user", "content": "hi"}
PROMPT = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COMPLETIONS, IMAGES, INFER = "/v1/completions", "/v1/images/generations", "/v2/models/qwen-vl/infer"
COUNT, TOKENIZE, DETOKENIZE = "/v1/messages/count_tokens", "/tokenize", "/detokenize"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": "qwen-vl", "messages": [USER], "max_tokens": 2},
    RESPONSES: {"model": "qwen-vl", "input": "hi", "max_output_tokens": 2},
    MESSAGES: {"model": "qwen-vl", "messages": [USER], "max_tokens": 2},
    COUNT: {"model": "qwen-vl", "messages": [USER]},
    COMPLETIONS: {"model": "qwen-vl", "prompt": "hi", "max_tokens": 2},
    IMAGES: {"model": "flux", "prompt": "a", "size": "64x64", "num_inference_steps": 1},
    TOKENIZE: {"model": "qwen-vl", "prompt": "hi"},
    DETOKENIZE: {"model": "qwen-vl", "tokens": [1, 2]},
    INFER: {"inputs": [PROMPT], "parameters": {"max_tokens": 2}},
}
JSON = {"content-type": "application/json"}


def not_json(text: bytes) -> Iterator[bytes]:
    """Bodies that are no JSON object, or one that two readers understand in two ways."""
    start = text[1:]
    yield from (b"", b"null", b"[]", b'"hi"', b"1", b"[%b]" % text, text * 2, text + b"x")
    yield from (
        text.decode().encode("utf-16"),
        b"\xef\xbb\xbf" * 2 + text,
        text[:-1] + b',"u":"\xe9"}',
    )
    for odd in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b'"\\ud800"'):
        yield b'{"user": %b, %b' % (odd, start)
    yield b'{"seed": 1, "seed": 2, ' + start
    yield b'{"x": ' + b"[" * 10_000 + b"]" * 10_000 + b", " + start
    yield text.replace(b'"', b"'")
    yield text + b"// a comment"


@pytest.mark.parametrize("path", GOOD)
def test_a_text_that_is_no_json_object_is_refused(http: httpx.Client, path: str) -> None:
    text = json.dumps(GOOD[path]).encode()
    for raw in not_json(text):
        answer = http.post(path, content=raw, headers=JSON)
        assert answer.status_code in (400, 413), (raw[:80], answer.text)
    for name in ("qqqqqq", "\0", "a.b", "k" * 100_000):
        answer = http.post(path, json=GOOD[path] | {name: None})
        assert answer.status_code == 400, name[:80]
        assert "unknown field" in answer.text


@pytest.mark.parametrize("path", GOOD)
def test_types_and_encodings_of_bodies(http: httpx.Client, path: str) -> None:
    text = json.dumps(GOOD[path]).encode()
    packed = gzip.compress(text, mtime=0)
    usual = "application/json"
    taken: list[tuple[bytes, dict[str, str]]] = [
        (b"\xef\xbb\xbf" + text, {}), (text, {"content-type": "application/json;charset=UTF-8"}),
        (text, {"content-type": 'APPLICATION/JSON; charset="utf-8"'}),
        (packed, {"content-encoding": "gzip"}),
    ]  # fmt: skip
    refused: list[tuple[bytes, dict[str, str]]] = [
        (text, {"content-type": "text/plain"}), (text, {"content-type": f"{usual}, {usual}"}),
        (text, {"content-type": f"{usual}; charset=utf-16"}), (text, {"content-encoding": "gzip"}),
        (text, {"content-encoding": "br"}), (packed[:-4], {"content-encoding": "gzip"}),
        (text, {"content-type": "multipart/form-data; boundary=x"}),
    ]  # fmt: skip
    for raw, headers in taken:
        answer = http.post(path, content=raw, headers=JSON | headers)
        assert answer.status_code == 200, (headers, answer.text)
    for raw, headers in refused:
        answer = http.post(path, content=raw, headers=JSON | headers)
        assert answer.status_code in (400, 415), (headers, answer.text)


TOOL = {"type": "function", "function": {"name": "f"}}
UNREAD = {"type": "object", "properties": {"x": {"not": {}}}}
STRICT = {"name": "f", "parameters": UNREAD, "strict": True}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": UNREAD}}
LONG = "word " * 30_000
WRONG: dict[str, dict[str, list[Any]]] = {
    CHAT: {
        "messages": [
            [], {}, "hi", [None], [{"content": "a"}], [{"role": "user"}], [USER | {"role": "User"}],
            [USER | {"content": []}], [USER | {"content": ["a"]}], [USER] * 1025,
            [USER | {"content": [{"text": "a"}]}], [USER | {"content": [{"type": None}]}],
            [USER | {"content": [{"type": "text", "text": "a", "image_url": {"url": "x"}}]}],
            [USER | {"content": [{"type": "input_audio", "input_audio": {}}]}],
            [USER | {"content": [{"type": "image_url", "image_url": []}]}],
            [USER | {"content": [{"type": "image_url", "image_url": "https://a.example/x.png"}]}],
            [USER | {"content": LONG}], [USER, {"role": "assistant", "content": None}],
            [USER, {"role": "function", "name": "f", "content": "a"}],
        ],
        "temperature": [-1, 2.01, "1", True, []], "top_p": [0, 1.1], "n": [0, -1, 17, 1.5, "1"],
        "seed": [-2, 2**64, 10**30, "1", 1.5], "max_tokens": [0, -2, 2**31, 10**6, "3"],
        "max_completion_tokens": [1, 0], "stop": ["", [""], [None], {}, 1, ["a"] * 17, "a" * 1025],
        "logit_bias": [[], {"x": 1}, {"-1": 1}, {"01": 1}, {"1": 101}, {"1": True}, {"1": None}],
        "top_logprobs": [5, 21, -1], "logprobs": [1], "stream": [1, "true"],
        "response_format": ["json", {}, {"type": "grammar"}, {"type": "json_schema"}, SCHEMA],
        "stream_options": [[], {"x": 1}, {"include_usage": 1}],
        "tools": [{}, [{}], [{"type": "function"}], [TOOL, TOOL], [{"type": "custom"}],
                  [{"type": "function", "function": STRICT}]],
        "tool_choice": ["any", "required", {}, {"type": "function", "function": {"name": "x"}}],
        "metadata": [[]], "modalities": [["audio"]], "audio": [{}], "functions": [[TOOL]],
        "prediction": [{}], "verbosity": ["low"], "reasoning_effort": ["high"], "best_of": [2],
        "stop_token_ids": [[-1], [10**9], [True]], "loras": [{}, "x", [{"name": "x", "scale": 1}]],
        "continue_final_message": [True], "chat_template_kwargs": [[], {"x": 1}],
        "guided_json": ["{", []], "guided_regex": ["("], "guided_choice": [[""]],
    },
    RESPONSES: {
        "input": [[], [{}], [None], [{"type": "item_reference", "id": "x"}], LONG],
        "max_output_tokens": [0, 10**6], "include": [["x"]], "truncation": ["auto"],
        "text": [{"format": {}}, {"verbosity": "low"},
                 {"format": {"type": "json_schema", "name": "a", "schema": UNREAD}}],
        "tools": [[{"type": "function"} | STRICT], [{"type": "web_search"}]],
        "metadata": [{"a": 1}, {"a": "x" * 513}], "previous_response_id": ["x"], "n": [2],
        "background": [True], "tool_choice": [{"type": "function"}], "top_logprobs": [3],
    },
    COMPLETIONS: {
        "prompt": [[], [[]], ["a", 1], [1, "a"], [True], [-1], [10**9], ["a"] * 129, "", LONG],
        "suffix": ["x"], "logprobs": [True, 21], "best_of": [3], "max_tokens": [0, 10**6],
    },
    IMAGES: {
        "n": [0, 17], "size": ["", "64", "0x0", "65x64", " 64x64", "64x64\n", "9999999x64"],
        "quality": ["x"], "response_format": ["x"], "output_format": ["gif"],
        "output_compression": [101, 50], "background": ["transparent"], "seed": [-2, 2**64],
        "guidance_scale": [-1, 1e308], "num_inference_steps": [0, 10**6], "tier": ["x"],
        "partial_images": [2], "loras": [[{}]], "image": ["x"], "prompt": ["a" * 200_000, 1],
    },
    TOKENIZE: {"prompt": [1, [], LONG * 20], "messages": [[USER]], "tools": [[TOOL]]},
    DETOKENIZE: {"tokens": [[-1], [10**9], [1.5], [True], ["1"], [[1]], "1", [1] * 100_001]},
}  # fmt: skip


@pytest.mark.parametrize("path", WRONG)
def test_an_odd_value_is_refused_by_its_path_in_the_body(http: httpx.Client, path: str) -> None:
    for name, values in WRONG[path].items():
        for value in values:
            body = GOOD[path] | {name: value}
            answer = http.post(path, json=body)
            assert answer.status_code in (400, 413), (name, str(value)[:80], answer.text[:300])
            error = answer.json()["error"]
            said = (error["param"], error["message"])
            may_lack = "required" in error["message"]
            assert is_there(error["param"], body, may_lack=may_lack), (name, said)


TOOL_OF_MESSAGES = {"name": "f", "input_schema": UNREAD, "strict": True}
FORMAT = {"format": {"type": "json_schema", "schema": UNREAD}}
NAMED: list[tuple[str, dict[str, Any], str]] = [
    (MESSAGES, {"tools": [TOOL_OF_MESSAGES]}, "tools[0].input_schema.properties.x.not"),
    (MESSAGES, {"output_config": FORMAT}, "output_config.format.schema.properties.x.not"),
    (MESSAGES, {"output_config": FORMAT, "tools": [{"name": "f", "input_schema": {}}]},
     "output_config.format.schema.properties.x.not"),
    (MESSAGES, {"stop_sequences": [""]}, "stop_sequences"),
    (MESSAGES, {"max_tokens": 0}, "max_tokens"), (MESSAGES, {"n": 2}, "n"),
    (INFER, {"inputs": [PROMPT, PROMPT]}, "'prompt'"), (INFER, {"inputs": {}}, "inputs"),
    (INFER, {"inputs": [PROMPT | {"shape": [2]}]}, "'prompt'"),
    (INFER, {"inputs": [PROMPT | {"shape": [2**62]}]}, "'prompt'"),
    (INFER, {"inputs": [PROMPT | {"data": [None]}]}, "'prompt'"),
    (INFER, {"parameters": {"max_tokens": [3]}}, "max_tokens"),
    (INFER, {"parameters": {"tools": json.dumps([{"type": "function", "function": STRICT}])}},
     "tools[0].function.parameters.properties.x.not"),
    (INFER, {"outputs": [{"name": "zz"}]}, "'zz'"), (INFER, {"id": 1}, "id"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "named"), NAMED, ids=map(str, range(len(NAMED))))
def test_where_an_error_is_a_sentence_alone_it_has_the_field(
    http: httpx.Client, path: str, fields: dict[str, Any], named: str
) -> None:
    answer = http.post(path, json=GOOD[path] | fields)
    assert answer.status_code in (400, 413)
    error = answer.json()["error"]
    assert named in (error["message"] if isinstance(error, dict) else error)


NULLS = {
    CHAT: ("temperature", "top_p", "n", "seed", "max_completion_tokens", "stop", "logit_bias",
           "logprobs", "top_logprobs", "response_format", "stream", "stream_options", "tools",
           "tool_choice", "parallel_tool_calls", "modalities", "audio", "user", "metadata", "store",
           "service_tier", "reasoning_effort", "functions", "function_call", "prediction",
           "web_search_options", "presence_penalty", "frequency_penalty", "verbosity"),
    RESPONSES: ("text", "instructions", "reasoning", "temperature", "tools", "include", "metadata"),
    MESSAGES: ("system", "stop_sequences", "thinking", "tools", "tool_choice", "metadata"),
    COMPLETIONS: ("suffix", "logprobs", "echo", "best_of", "n", "stop", "logit_bias", "stream"),
    IMAGES: ("n", "quality", "style", "response_format", "background", "user", "seed", "stream"),
}  # fmt: skip


@pytest.mark.parametrize("path", NULLS)
def test_null_is_the_same_as_a_field_that_is_left_out(http: httpx.Client, path: str) -> None:
    greedy = {"temperature": 0} if "images" not in path else {"seed": 1}
    fields = dict.fromkeys(NULLS[path]) | greedy
    answers = [http.post(path, json=GOOD[path] | each) for each in (greedy, fields)]
    assert [answer.status_code for answer in answers] == [200, 200]
    plain, nulled = (answer.json() for answer in answers)
    held = {CHAT: "choices", COMPLETIONS: "choices", MESSAGES: "content", IMAGES: "data"}.get(path)
    if held is None:
        held, plain, nulled = "content", plain["output"][0], nulled["output"][0]
    assert plain[held] == nulled[held]
