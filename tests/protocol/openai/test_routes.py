"""The OpenAI routes over ASGI: bodies, statuses, error bodies, models, counts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors import metrics
from predictors.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    NotReady,
    OutOfMemory,
    Overloaded,
    ServingError,
    StepFailed,
    TooLarge,
)
from predictors.protocol.openai.images_body import ImagesBody
from predictors.protocol.openai.routes import PREFIXES
from predictors.protocol.registry import Registry
from predictors.settings import QueueSettings, ServerSettings, Settings
from tests.protocol.openai.doubles import (
    CHAT,
    CIRCLE,
    HELLO,
    IMAGES,
    Chatter,
    Deaf,
    Painter,
    Wire,
    application,
    counted,
    mounted,
    post,
    same_as_golden,
)
from tests.protocol.openai.test_chat_body import CASES as CHAT_CASES
from tests.protocol.openai.test_images_body import CASES as IMAGES_CASES


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_every_route_is_there_under_both_prefixes(prefix: str) -> None:
    app = application(Painter(), Chatter())
    assert (await post(f"{prefix}/chat/completions", HELLO).run(app)).status == 200
    assert (await post(f"{prefix}/images/generations", CIRCLE).run(app)).status == 200
    assert (await Wire("GET", f"{prefix}/models").run(app)).status == 200
    assert (await Wire("GET", f"{prefix}/models/flux").run(app)).status == 200


async def test_the_model_gets_the_checked_body_and_the_call() -> None:
    painter = Painter()
    body = CIRCLE | {"size": "64x32", "user": "me", "n": 2}
    wire = await post(IMAGES, body, x_request_id="abc").run(application(painter))
    assert painter.bodies == [ImagesBody(**CIRCLE, width=64, height=32, n=2)]
    assert painter.calls[0].request_id == "abc"
    assert painter.calls[0].protocol == "openai"
    assert len(wire.json["data"]) == 2


async def test_responses_match_the_golden_files() -> None:
    app = application(Painter(), Chatter())
    same_as_golden("images.http", await post(IMAGES, CIRCLE, x_request_id="r1").run(app))
    same_as_golden("chat.http", await post(CHAT, HELLO, x_request_id="r1").run(app))


async def test_refusals_match_the_golden_files() -> None:
    app = application(Painter(), Chatter())
    for name, path, body in [
        ("bad_field.http", CHAT, HELLO | {"temperature": "hot"}),
        ("no_such_model.http", IMAGES, CIRCLE | {"model": "x"}),
    ]:
        same_as_golden(name, await post(path, body, x_request_id="r1").run(app))
    same_as_golden("wrong_method.http", await Wire("GET", CHAT, x_request_id="r1").run(app))


async def test_every_response_carries_the_callers_request_id_or_a_new_one() -> None:
    app = application(Painter(), Chatter())
    for wire in (
        post(IMAGES, CIRCLE),
        post(CHAT, HELLO | {"stream": True}),
        post(CHAT, b"{"),
        Wire("GET", "/v1/models"),
        Wire("GET", "/v1/models/nope"),
        Wire("PUT", "/v1/models"),
        Wire("GET", "/v1/nowhere"),
    ):
        assert len((await wire.run(app)).answered["x-request-id"]) == 32
    wire = await post(IMAGES, CIRCLE, x_request_id="two words").run(app)
    assert wire.answered["x-request-id"] != "two words"


async def test_an_internal_error_shows_the_request_id_and_no_detail(caplog: Any) -> None:
    chatter = Chatter()
    chatter.error = RuntimeError("secret /mnt/models at 0x7f00")
    for stream in (False, True):
        wire = await post(CHAT, HELLO | {"stream": stream}, x_request_id="r7").run(
            application(chatter)
        )
        assert wire.status == 500
        assert wire.error["code"] == "internal_error"
        assert wire.error["type"] == "server_error"
        assert "r7" in wire.error["message"]
        assert b"secret" not in wire.body
    assert "secret" in caplog.text


FAULTS: list[tuple[ServingError, int, str, str | None, str | None]] = [
    (InvalidRequest("no", param="seed"), 400, "invalid_request_error", None, None),
    (TooLarge("no"), 413, "invalid_request_error", "content_too_large", None),
    (Overloaded("full", retry_after_s=2.5), 503, "server_error", "server_overloaded", "3"),
    (DeadlineExceeded("late"), 504, "server_error", "deadline_exceeded", None),
    (NotReady("warming"), 503, "server_error", "model_not_ready", "5"),
    (Draining("going"), 503, "server_error", "server_draining", "5"),
    (EngineFailed("dead"), 503, "server_error", "engine_failed", None),
    (OutOfMemory("no room"), 503, "server_error", "out_of_memory", None),
    (StepFailed("poison"), 500, "server_error", "job_failed", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "retry_after"), FAULTS, ids=lambda x: str(x)[:20]
)
async def test_a_refusal_before_the_first_chunk_has_its_own_status(
    error: ServingError, status: int, kind: str, code: str, retry_after: str | None, stream: bool
) -> None:
    chatter = Chatter()
    chatter.error = error
    wire = await post(CHAT, HELLO | {"stream": stream}).run(application(chatter))
    assert wire.status == status
    assert wire.answered["content-type"] == "application/json"
    assert wire.answered.get("retry-after") == retry_after
    assert wire.error == {
        "message": error.message,
        "type": kind,
        "param": getattr(error, "param", None),
        "code": code,
    }
    assert chatter.closed.is_set() == stream


async def test_a_full_queue_is_429_where_the_setting_says_so() -> None:
    painter = Painter()
    painter.error = Overloaded("full", retry_after_s=0.2)
    settings = Settings(queue=QueueSettings(overload_status=429))
    wire = await post(IMAGES, CIRCLE).run(application(painter, settings=settings))
    assert (wire.status, wire.answered["retry-after"]) == (429, "1")
    assert wire.error["type"] == "rate_limit_error"


async def test_an_unknown_model_is_a_404_in_openais_format_and_counted_as_unknown() -> None:
    before = counted("unknown", "chat", "not_found")
    wire = await post(CHAT, HELLO | {"model": "gpt-5"}).run(application(Chatter()))
    assert wire.status == 404
    assert wire.error["code"] == "model_not_found"
    assert wire.error["param"] == "model"
    assert "'gpt-5'" in wire.error["message"]
    assert counted("unknown", "chat", "not_found") == before + 1


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_the_refusal_of_a_model_on_the_wrong_route_names_the_right_route(prefix: str) -> None:
    app = application(Painter(), Chatter(), Deaf("deaf"))
    wire = await post(f"{prefix}/chat/completions", HELLO | {"model": "flux"}).run(app)
    assert (wire.status, wire.error["param"]) == (400, "model")
    assert "POST /v1/images/generations does" in wire.error["message"]
    wire = await post(f"{prefix}/images/generations", CIRCLE | {"model": "qwen-vl"}).run(app)
    assert (wire.status, wire.error["param"]) == (400, "model")
    assert "POST /v1/chat/completions does" in wire.error["message"]
    wire = await post(f"{prefix}/images/generations", CIRCLE | {"model": "deaf"}).run(app)
    assert (wire.status, wire.error["param"]) == (400, "model")
    assert "does not serve model 'deaf'" in wire.error["message"]


def nested(depth: int) -> bytes:
    return b'{"model":"flux","prompt":' + b"[" * depth + b"]" * depth + b"}"


BODIES: list[tuple[str, bytes, dict[str, str], int]] = [
    ("empty", b"", {}, 400),
    ("not JSON", b"prompt=x", {}, 400),
    ("cut short", b'{"model":"flux","prompt":"x', {}, 400),
    ("two values", b'{"model":"flux","prompt":"x"}{}', {}, 400),
    ("trailing comma", b'{"model":"flux","prompt":"x",}', {}, 400),
    ("single quotes", b"{'model':'flux'}", {}, 400),
    ("a list", b"[]", {}, 400),
    ("null", b"null", {}, 400),
    ("a number", b"1", {}, 400),
    ("NaN", b'{"model":"flux","prompt":"x","guidance_scale":NaN}', {}, 400),
    ("Infinity", b'{"model":"flux","prompt":"x","guidance_scale":-Infinity}', {}, 400),
    ("1e400", b'{"model":"flux","prompt":"x","guidance_scale":1e400}', {}, 400),
    ("duplicate", b'{"model":"flux","prompt":"x","prompt":"y"}', {}, 400),
    ("duplicate beside a colon", b'{"model":"flux","prompt":"x:","prompt":"y"}', {}, 400),
    ("nested 10", nested(10), {}, 400),
    ("nested 10,000", nested(10_000), {}, 400),
    ("nested open", b'{"a":' + b"[" * 100_000, {}, 400),
    ("not UTF-8", b'{"model":"flux","prompt":"\xff"}', {}, 400),
    ("UTF-16", '{"model":"flux","prompt":"x"}'.encode("utf-16"), {}, 400),
    ("two byte order marks", b'\xef\xbb\xbf\xef\xbb\xbf{"model":"flux","prompt":"x"}', {}, 400),
    ("half a surrogate pair", b'{"model":"flux","prompt":"\\ud800"}', {}, 400),
    ("half a surrogate pair in a name", b'{"model":"flux","prompt":"x","\\udfff":1}', {}, 400),
    ("digits without end", b'{"model":"flux","prompt":"x","seed":' + b"9" * 5000 + b"}", {}, 400),
    ("seed 2^64", b'{"model":"flux","prompt":"x","seed":18446744073709551616}', {}, 400),
    ("model of a megabyte", b'{"model":"' + b"x" * 10**6 + b'","prompt":"x"}', {}, 404),
    ("model with dots", b'{"model":"../flux","prompt":"x"}', {}, 404),
    ("model with NUL", b'{"model":"flux\\u0000","prompt":"x"}', {}, 404),
    ("form", b"model=flux", {"content_type": "application/x-www-form-urlencoded"}, 415),
    ("multipart", b"--x", {"content_type": "multipart/form-data; boundary=x"}, 415),
    ("octets", b"{}", {"content_type": "application/octet-stream"}, 415),
    ("text", b"{}", {"content_type": "text/plain"}, 415),
    ("latin-1", b"{}", {"content_type": "application/json; charset=latin-1"}, 415),
    ("half a gzip", b"\x1f\x8b", {"content_encoding": "gzip"}, 400),
    ("half a deflate", b"x", {"content_encoding": "deflate"}, 400),
    ("brotli", b"x", {"content_encoding": "br"}, 415),
    ("announced too large", b"{}", {"content_length": "999999999999"}, 413),
    ("too large", b'{"model":"flux","prompt":"' + b"x" * 2**20 + b'"}', {}, 413),
    ("timeout not a number", b"{}", {"x_request_timeout_ms": "soon"}, 400),
    ("timeout negative", b"{}", {"x_request_timeout_ms": "-1"}, 400),
    ("timeout zero", b"{}", {"x_request_timeout_ms": "0"}, 400),
    ("timeout NaN", b"{}", {"x_request_timeout_ms": "nan"}, 400),
]


@pytest.mark.parametrize(
    ("raw", "headers", "status"), [b[1:] for b in BODIES], ids=[b[0] for b in BODIES]
)
async def test_an_unreadable_body_is_refused_and_the_next_request_served(
    raw: bytes, headers: dict[str, str], status: int
) -> None:
    settings = Settings(
        server=ServerSettings(max_body_bytes=2**20 + 100 if status == 404 else 2**20)
    )
    painter = Painter()
    app = application(painter, settings=settings)
    for path in (IMAGES, CHAT):
        wire = await post(path, raw, **headers).run(app)
        # on the chat route a prompt is an unknown field, whatever the model
        assert wire.status == (400 if (status, path) == (404, CHAT) else status)
        assert wire.error["type"] == "invalid_request_error"
        assert len(wire.error["message"]) < 300
    assert painter.bodies == []
    assert (await post(IMAGES, CIRCLE).run(app)).status == 200


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", ""])
async def test_json_is_accepted_with_any_spelling_of_its_media_type_or_none(kind: str) -> None:
    app = application(Painter())
    assert (await post(IMAGES, CIRCLE, content_type=kind).run(app)).status == 200


async def test_a_deadline_header_reaches_the_model() -> None:
    painter = Painter()
    app = application(painter)
    await post(IMAGES, CIRCLE, x_request_timeout_ms="60000").run(app)
    await post(IMAGES, CIRCLE).run(app)
    short, default = (call.deadline for call in painter.calls)
    assert short is not None
    assert default is not None
    assert 500 < default - short < 600  # the default is 600 s


async def test_each_request_is_counted_once_however_it_ends() -> None:
    chatter = Chatter("counted")
    app = application(chatter)
    body = HELLO | {"model": "counted"}
    await post(CHAT, body).run(app)
    await post(CHAT, body | {"stream": True}).run(app)
    assert counted("counted", "chat", "ok") == 2
    await post(CHAT, body | {"top_p": 7}).run(app)
    assert counted("counted", "chat", "invalid_input") == 1
    chatter.fail_at, chatter.late_error = 1, StepFailed("poison")
    await post(CHAT, body | {"stream": True}).run(app)
    assert counted("counted", "chat", "poisoned") == 1
    assert counted("counted", "chat", "ok") == 2


async def test_a_draining_server_refuses_new_requests_with_server_draining() -> None:
    registry = Registry([Chatter()], Settings())
    app = mounted(registry)
    registry.drain()
    try:
        wire = await post(CHAT, HELLO).run(app)
    finally:
        metrics.draining.set(0)
    assert (wire.status, wire.answered["retry-after"]) == (503, "5")
    assert wire.error["code"] == "server_draining"
    assert registry.in_flight == 0


async def test_the_list_of_models_has_openais_and_kserves_fields() -> None:
    app = application(Painter(), Chatter())
    listed = (await Wire("GET", "/v1/models").run(app)).json
    assert listed["object"] == "list"
    assert listed["models"] == ["flux", "qwen-vl"]
    assert [set(card) for card in listed["data"]] == [{"id", "object", "created", "owned_by"}] * 2
    assert [card["id"] for card in listed["data"]] == ["flux", "qwen-vl"]
    assert {card["object"] for card in listed["data"]} == {"model"}
    assert all(isinstance(card["created"], int) for card in listed["data"])


async def test_a_chat_models_card_has_its_context_as_vllm_calls_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chatter = Chatter()
    monkeypatch.setattr(chatter, "get_limits", lambda: {"max_context": 4096})
    app = application(Painter(), chatter)
    listed = (await Wire("GET", "/v1/models").run(app)).json
    assert [card.get("max_model_len") for card in listed["data"]] == [None, 4096]
    assert (await Wire("GET", "/v1/models/qwen-vl").run(app)).json["max_model_len"] == 4096


async def test_one_model_shows_its_readiness_in_status_and_field() -> None:
    painter = Painter()
    app = application(painter)
    ready = await Wire("GET", "/v1/models/flux").run(app)
    assert ready.status == 200
    assert ready.json["name"] == ready.json["id"] == "flux"
    assert ready.json["ready"] is True
    painter.is_ready = False
    warming = await Wire("GET", "/openai/v1/models/flux").run(app)
    assert warming.status == 503
    assert warming.json == ready.json | {"ready": False}


async def test_retrieving_an_unknown_model_is_a_404() -> None:
    wire = await Wire("GET", "/v1/models/gpt-5").run(application(Painter()))
    assert wire.status == 404
    assert wire.error["code"] == "model_not_found"


VALID = [
    orjson.dumps(HELLO),
    orjson.dumps(HELLO | {"stream": True, "stop": ["a", "b"], "temperature": 0.5}),
    orjson.dumps(CIRCLE | {"size": "64x64", "n": 2, "seed": 1}),
]
TOKENS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\\u",
    b"\xff",
    b"\0",
    b"1e999",
    b"null",
    b"-",
    b"n",
]


@settings(max_examples=200)
@given(
    st.sampled_from(VALID) | st.binary(max_size=40),
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from(TOKENS), st.booleans()), max_size=4),
    st.sampled_from([CHAT, IMAGES]),
)
def test_any_bytes_get_a_response_below_500(
    raw: bytes, edits: list[tuple[int, bytes, bool]], path: str
) -> None:
    for at, token, replaces in edits:
        raw = raw[:at] + token + raw[at + (len(token) if replaces else 0) :]
    wire = asyncio.run(post(path, raw).run(application(Painter(), Chatter())))
    assert wire.is_complete
    assert wire.status in {200, 400, 404}
    if wire.status != 200:
        assert wire.error["type"] == "invalid_request_error"


WRONG = [(CHAT, *case) for case in CHAT_CASES] + [(IMAGES, *case) for case in IMAGES_CASES]


async def test_every_wrong_field_is_a_400_and_the_next_request_is_served() -> None:
    chatter, painter = Chatter(), Painter()
    app = application(chatter, painter)
    for path, title, body, param in WRONG:
        raw = json.dumps(body).encode()
        wire = await post(path, raw).run(app)
        assert wire.status == 400, title
        if b"NaN" not in raw and b"Infinity" not in raw:  # those are no JSON and name no field
            assert wire.error["param"] == (param or None), title
        assert wire.error["type"] == "invalid_request_error", title
    assert chatter.bodies == painter.bodies == []
    assert (await post(CHAT, HELLO).run(app)).status == 200
    assert (await post(IMAGES, CIRCLE).run(app)).status == 200
    assert len(WRONG) > 160
