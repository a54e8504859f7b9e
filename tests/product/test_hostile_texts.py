"""Malformed and oversized bodies on `/v1/responses` and `/v1/messages`: each is answered, or
refused in the form of its route, and none is a failure of the server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
LARGE = "a" * 3_000_000  # read by a worker process
USER = {"role": "user", "content": "Hello"}
TEXT = {"type": "text", "text": "a"}
ITEM = {"type": "input_text", "text": "a"}


def message(*blocks: Any, **fields: Any) -> dict[str, Any]:
    """A body whose one message has these blocks."""
    turn = {"role": "user", "content": list(blocks)} if blocks else USER
    return {"model": "qwen-vl", "max_tokens": 1, "messages": [turn], **fields}


def response(items: Any = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": "qwen-vl", "max_output_tokens": 1, "input": items, **fields}


def image(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", **source}}


def use(identity: str, **more: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": identity, "name": "f", "input": {}} | more


def called(*calls: Any) -> dict[str, Any]:
    return message(messages=[USER, {"role": "assistant", "content": list(calls)}])


def call(arguments: str, identity: str = "c") -> dict[str, Any]:
    return {"type": "function_call", "call_id": identity, "name": "f", "arguments": arguments}


def nested(depth: int) -> Any:
    found: Any = "a"
    for _ in range(depth):
        found = {"a": found}
    return found


MALFORMED = {
    "nothing": b"",
    "half": b'{"model": "qwen-vl"',
    "no UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "deep lists": b"[" * 30_000,
    "deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "a name twice": b'{"model": "qwen-vl", "model": "qwen-vl"}',
    "infinity": b'{"model": "qwen-vl", "temperature": 1e999}',
    "a large whole number": b'{"model": "qwen-vl", "max_tokens": 1%b}' % (b"0" * 900),
    "half a pair": b'{"model": "\\ud800"}',
    "a model of 3 MB": json.dumps({"model": LARGE}).encode(),
    "a name of 3 MB": json.dumps({LARGE: 1}).encode(),
    "30,000 names": json.dumps({f"x{i}": 1 for i in range(30_000)}).encode(),
}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "1,000 blocks": (MESSAGES, message(*[TEXT] * 1000)),
    "blocks that are lists": (MESSAGES, message(*[[]] * 9000)),
    "a block of 3 MB": (MESSAGES, message(TEXT | {"text": LARGE})),
    "a type of 3 MB": (MESSAGES, message({"type": LARGE})),
    "a type of a list": (MESSAGES, message({"type": ["text"]})),
    "no source": (MESSAGES, message({"type": "image", "source": []})),
    "an empty image": (MESSAGES, message(image(data=""))),
    "an image of dots": (MESSAGES, message(image(data="." * 9000))),
    "an image of 3 MB that is none": (MESSAGES, message(image(data=LARGE))),
    "an image of text": (MESSAGES, message(image(data="aGVsbG8="), TEXT)),
    "64 images": (MESSAGES, message(*[image(data="aGVsbG8=")] * 64)),
    "an address": (MESSAGES, message(image(data=None, type="url", url="https://" + LARGE))),
    "a list of systems": (MESSAGES, message(system=[None] * 1000)),
    "a result without a call": (MESSAGES, message({"type": "tool_result", "tool_use_id": "c"})),
    "700 calls": (MESSAGES, called(*[use(f"c{i}") for i in range(700)])),
    "one call 700 times": (MESSAGES, called(*[use("c")] * 700)),
    "a call's id of 3 MB": (MESSAGES, called(use(LARGE))),
    "an input of 3 MB": (MESSAGES, called(use("c", input={"a": LARGE}))),
    "a deep input": (MESSAGES, called(use("c", input=nested(24)))),
    "a deep schema": (MESSAGES, message(tools=[{"name": "f", "input_schema": nested(24)}])),
    "a choice of a choice": (MESSAGES, message(tool_choice={"type": {"type": "any"}})),
    "stops of 3 MB": (MESSAGES, message(stop_sequences=[LARGE])),
    "a format of formats": (MESSAGES, message(output_config={"format": {"format": {}}})),
    "a pattern without an end": (
        MESSAGES,
        message(output_config={"format": {
            "type": "json_schema", "schema": {"type": "string", "pattern": "(a|b)*" * 1000},
        }}),
    ),
    "1,000 assistants": (
        MESSAGES, message(messages=[USER, *[{"role": "assistant", "content": [TEXT]}] * 1000])
    ),
    "1,024 items": (RESPONSES, response([USER] * 1024)),
    "1,000 parts": (RESPONSES, response([{"role": "user", "content": [ITEM] * 1000}])),
    "items that are lists": (RESPONSES, response([[]] * 900)),
    "an input of 3 MB more": (RESPONSES, response(LARGE)),
    "an item's type of 3 MB": (RESPONSES, response([{"type": LARGE}])),
    "nothing but thoughts": (RESPONSES, response([{"type": "reasoning"}] * 1024)),
    "600 calls": (RESPONSES, response([call("{}", str(i)) for i in range(600)])),
    "deep arguments": (RESPONSES, response([call('{"a":' * 5000 + "1" + "}" * 5000)])),
    "arguments of lists": (RESPONSES, response([call("[" * 25_000)])),
    "arguments of 3 MB": (RESPONSES, response([call(LARGE)])),
    "3,000 pairs": (RESPONSES, response(metadata={str(i): "x" for i in range(3000)})),
    "tools of tools": (RESPONSES, response(tools=[[[]]])),
    "tools of nothing": (RESPONSES, response(tools=[None])),
    "a text of a list": (RESPONSES, response(text=[])),
    "a format of a list": (RESPONSES, response(text={"format": [1]})),
    "a format of nothing": (RESPONSES, response(text={"format": {"type": None}})),
    "includes of 3 MB": (RESPONSES, response(include=[LARGE])),
}  # fmt: skip


@pytest.fixture(scope="module")
def raw() -> dict[str, tuple[str, bytes]]:
    return {name: (path, json.dumps(body).encode()) for name, (path, body) in BODIES.items()}


def check(reply: httpx.Response, path: str) -> None:
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, reply.text[:300]
    body = reply.json()
    if reply.status_code == 200:
        return
    assert reply.status_code in (400, 404, 413)
    assert set(body) == ({"type", "error"} if path == MESSAGES else {"error"})
    assert body["error"]["message"]
    assert len(reply.content) < 10_000


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_body_is_refused(http: httpx.Client, name: str, path: str) -> None:
    reply = http.post(path, content=MALFORMED[name], headers={"content-type": "application/json"})
    check(reply, path)
    assert reply.status_code != 200


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_answered_or_refused(
    http: httpx.Client, raw: dict[str, tuple[str, bytes]], name: str
) -> None:
    path, body = raw[name]
    check(http.post(path, content=body, headers={"content-type": "application/json"}), path)
