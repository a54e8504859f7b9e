"""The routes beside chat that write text or count tokens, over ASGI with scripted models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from predictors.errors import InvalidRequest, Overloaded, PromptTooLong, StepFailed
from predictors.protocol import refusal_pace
from predictors.protocol.call import Call
from predictors.protocol.openai.completions_body import CompletionsBody
from predictors.protocol.openai.responses_body import ResponsesBody
from predictors.protocol.openai.routes import PREFIXES
from predictors.protocol.openai.tokens_body import DetokenizeBody, TokenizeBody
from predictors.protocol.registry import Registry
from predictors.settings import Settings
from tests.protocol.openai.doubles import (
    Chatter,
    Painter,
    Wire,
    application,
    counted,
    mounted,
    post,
    same_as_golden,
)

RESPONSES, COMPLETIONS = "/v1/responses", "/v1/completions"
ASKED = {RESPONSES: {"model": "qwen-vl", "input": "hello"}}
ASKED[COMPLETIONS] = {"model": "qwen-vl", "prompt": "hello"}
BODIES = {RESPONSES: ResponsesBody, COMPLETIONS: CompletionsBody}


class Counter(Chatter):
    """Serves tokens too: one for each character."""

    async def tokenize(self, body: TokenizeBody, call: Call) -> dict[str, Any]:
        self.note(body, call)  # type: ignore[arg-type]
        tokens = [ord(each) for each in body.prompt or ""]
        counts = {"count": len(tokens), "max_model_len": 9}
        return {**counts, "tokens": tokens, "token_strs": None}

    async def detokenize(self, body: DetokenizeBody, call: Call) -> dict[str, Any]:
        return {"prompt": "".join(map(chr, body.tokens))}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("route", ASKED)
async def test_a_body_reaches_the_model_checked_and_is_counted_under_its_route(
    route: str, prefix: str
) -> None:
    chatter, name = Chatter(), route.rpartition("/")[2]
    before = counted("qwen-vl", name, "ok")
    path = route.replace("/v1", prefix)
    wire = await post(path, ASKED[route], x_request_timeout_ms="5000").run(application(chatter))
    assert wire.status == 200
    assert isinstance(chatter.bodies[0], BODIES[route])
    assert chatter.calls[0].deadline is not None
    assert counted("qwen-vl", name, "ok") == before + 1


@pytest.mark.parametrize("route", ASKED)
async def test_a_model_of_pictures_is_named_its_own_route(route: str) -> None:
    app = application(Painter(), Chatter())
    wire = await post(route, ASKED[route] | {"model": "flux"}).run(app)
    assert wire.status == 400
    assert f"POST {route} does not serve model 'flux'" in wire.error["message"]
    assert "POST /v1/images/generations does" in wire.error["message"]
    assert "serves qwen-vl" in wire.error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_names_the_field_as_this_route_calls_it(stream: bool) -> None:
    for route, ours, theirs in (
        (RESPONSES, "messages", "input"),
        (RESPONSES, "max_tokens", "max_output_tokens"),
        (COMPLETIONS, "messages", "prompt"),
        (COMPLETIONS, "max_tokens", "max_tokens"),
    ):
        chatter = Chatter()
        chatter.error = InvalidRequest("too long", param=ours)
        wire = await post(route, ASKED[route] | {"stream": stream}).run(application(chatter))
        assert (wire.status, wire.error["param"]) == (400, theirs)
        assert wire.error["message"] == ("too long" if ours == theirs else f"{theirs}: too long")


async def test_a_response_that_fails_says_so_in_two_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("predictors.protocol.openai.responses_body.time.time", lambda: 1.0)
    chatter = Chatter()
    chatter.fail_at, chatter.late_error = 2, StepFailed("the engine raised on this job alone")
    body = ASKED[RESPONSES] | {"stream": True}
    wire = await post(RESPONSES, body, x_request_id="r1").run(application(chatter))
    failed, error = wire.body.split(b"\n\n")[-3:-1]
    assert (failed[:22], error[:12]) == (b"event: response.failed", b"event: error")
    numbers = [orjson.loads(x.split(b"data: ")[1])["sequence_number"] for x in (failed, error)]
    assert numbers == [2, 3]  # behind the two events of the double
    assert chatter.closed.is_set()
    same_as_golden("responses_stream_failed.http", wire)


async def test_a_completion_that_fails_ends_without_done() -> None:
    chatter = Chatter()
    chatter.fail_at, chatter.late_error = 1, StepFailed("the engine raised on this job alone")
    wire = await post(COMPLETIONS, ASKED[COMPLETIONS] | {"stream": True}).run(application(chatter))
    last = orjson.loads(wire.body.rstrip().rsplit(b"data: ", 1)[1])
    assert last["error"]["code"] == "job_failed"
    assert b"[DONE]" not in wire.body


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_a_kept_response_is_a_404_with_the_reason(prefix: str) -> None:
    app = application(Chatter())
    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        wire = await Wire(method, f"{prefix}/responses/resp_1{rest}").run(app)
        assert (wire.status, wire.error["code"]) == (404, "not_found")
        assert "answers are not kept" in wire.error["message"]


# -- tokens ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("prefix", ["", *PREFIXES])
async def test_tokens_come_for_the_only_model_without_its_name(prefix: str) -> None:
    app = application(Painter(), counter := Counter())
    before = counted("qwen-vl", "tokenize", "ok")
    wire = await post(f"{prefix}/tokenize", {"prompt": "ab"}).run(app)
    assert wire.json["tokens"] == [97, 98]
    assert counter.bodies == [TokenizeBody("", "ab", None)]
    assert counted("qwen-vl", "tokenize", "ok") == before + 1
    wire = await post(f"{prefix}/detokenize", {"model": "qwen-vl", "tokens": [97, 98]}).run(app)
    assert wire.json == {"prompt": "ab"}


async def test_a_long_list_is_whole() -> None:
    wire = await post("/tokenize", {"prompt": "ab" * 5000}).run(application(Counter()))
    assert wire.json["tokens"] == [97, 98] * 5000


async def test_several_models_have_to_be_told_apart() -> None:
    app = application(Counter("one"), Counter("two"), Chatter())
    wire = await post("/tokenize", {"prompt": "ab"}).run(app)
    assert (wire.status, wire.error["param"]) == (400, "model")
    assert wire.error["message"] == "model is required; served here: one, two"
    assert (await post("/tokenize", {"prompt": "ab", "model": "two"}).run(app)).status == 200
    wire = await post("/tokenize", {"prompt": "ab", "model": "qwen-vl"}).run(app)
    assert "does not serve model 'qwen-vl'" in wire.error["message"]
    wire = await post(COMPLETIONS, ASKED[COMPLETIONS] | {"model": ""}).run(application(Counter()))
    assert wire.status == 404  # only these two routes take a body without a model


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "messages"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ("/tokenize", {"prompt": "a", "min_pixels": 784}, "min_pixels"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a", "stream": True}, "stream"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [0] * 100_001}, "tokens"),
    ],
    ids=map(str, range(11)),
)
async def test_a_wrong_body_of_tokens_is_a_400(path: str, body: Any, param: str) -> None:
    wire = await post(path, body).run(application(Counter()))
    assert (wire.status, wire.error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [({"prompt": "a"}, "prompt"), ({"messages": [{"role": "user", "content": "a"}]}, "messages")],
)
async def test_a_text_that_is_too_long_is_named_as_the_caller_did(body: Any, param: str) -> None:
    counter = Counter()
    counter.error = PromptTooLong.of(9, 20)
    wire = await post("/tokenize", body).run(application(counter))
    assert (wire.status, wire.error["param"]) == (400, param)
    assert wire.error["message"].startswith("This model's maximum context length is 9 tokens.")


async def test_a_wrong_method_is_told_in_openais_form() -> None:
    wire = await Wire("GET", "/tokenize").run(application(Counter()))
    assert (wire.status, wire.error["type"]) == (405, "invalid_request_error")


# -- refusals --------------------------------------------------------------------------------------
async def test_a_refusal_that_waits_holds_nothing_of_its_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry([chatter := Chatter()], Settings())
    chatter.error = Overloaded("full", retry_after_s=1)
    seen: list[tuple[int, object]] = []
    error_was: list[BaseException | None] = [chatter.error]

    async def sleep(seconds: float) -> None:
        assert error_was[0] is not None
        seen.append((registry.bytes_in_flight.used, error_was[0].__traceback__))

    # not asyncio's own: other tests' servers may sleep in this process
    monkeypatch.setattr(refusal_pace, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(registry.refusal_pace, "delay_s", lambda caller: refusal_pace.DELAY_S)
    body = {"model": "qwen-vl", "prompt": "a" * 2**19}
    wire = await post(COMPLETIONS, body).run(mounted(registry))
    assert wire.status == 503
    assert seen == [(0, None)]
