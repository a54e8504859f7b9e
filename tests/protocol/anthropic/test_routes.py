"""Anthropic's routes over ASGI with a scripted model: bodies, streams, failures and their form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from predictors import errors, metrics
from predictors.protocol.anthropic.messages_body import MessagesBody
from predictors.protocol.anthropic.routes import COUNT_TOKENS, anthropic_routes
from predictors.protocol.anthropic.routes import MESSAGES as MESSAGES_OPERATION
from predictors.protocol.call import Call
from predictors.protocol.http.app import RestApp
from predictors.protocol.openai.image_routes import edits_operation, images_operation
from predictors.protocol.openai.picture_files import PictureFiles
from predictors.protocol.openai.text_routes import CHAT, COMPLETIONS, RESPONSES
from predictors.protocol.openai.token_routes import DETOKENIZE, TOKENIZE
from predictors.protocol.openai.tokens_body import TokenizeBody
from predictors.protocol.registry import Registry
from predictors.protocol.tasks import MODULES
from predictors.settings import Settings
from tests.protocol.openai.doubles import Chatter, Painter, Wire, post, same_as_golden

GOLDEN = Path(__file__).parents[2] / "golden" / "anthropic"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
TURNS = {"messages": [{"role": "user", "content": "hello"}]}
ASKED: dict[str, dict[str, Any]] = {
    MESSAGES: {"model": "qwen-vl", "max_tokens": 9, **TURNS},
    COUNT: {"model": "qwen-vl", **TURNS},
}


class Speaker(Chatter):
    """Counts tokens too: three for each conversation."""

    async def tokenize(self, body: TokenizeBody, call: Call) -> dict[str, Any]:
        self.note(body, call)  # type: ignore[arg-type]
        if self.error is not None:
            raise self.error
        return {"count": 3, "max_model_len": 9, "tokens": [1, 2, 3], "token_strs": None}

    async def detokenize(self, body: Any, call: Call) -> dict[str, Any]:
        raise AssertionError("no text is asked for here")


def application(*models: Any) -> RestApp:
    return RestApp(anthropic_routes(Registry(models, Settings())), access_log=True)


def error_of(wire: Wire) -> dict[str, Any]:
    """The inner object of Anthropic's error body, which must have both fields and no more."""
    body = wire.json
    assert (body["type"], set(body)) == ("error", {"type", "error"})
    assert set(body["error"]) == {"type", "message"}
    found: dict[str, Any] = body["error"]
    return found


def counted(operation: str, reason: str) -> float:
    series = metrics.requests_total.labels("qwen-vl", "anthropic", operation, reason)
    return series._value.get()  # type: ignore[no-any-return]


async def test_a_body_reaches_the_model_checked_and_is_counted_under_its_route() -> None:
    speaker, before = Speaker(), counted("messages", "ok")
    head = {"anthropic_version": "2023-06-01", "anthropic_beta": "x", "x_api_key": "none"}
    wire = await post(MESSAGES, ASKED[MESSAGES], **head).run(application(speaker))
    assert wire.status == 200
    assert isinstance(speaker.bodies[0], MessagesBody)
    assert counted("messages", "ok") == before + 1


async def test_tokens_of_a_conversation_are_counted() -> None:
    speaker = Speaker()
    wire = await post(COUNT, ASKED[COUNT]).run(application(speaker))
    assert (wire.status, wire.json) == (200, {"input_tokens": 3})
    assert isinstance(speaker.bodies[0], TokenizeBody)


def test_large_bodies_of_every_route_are_read_by_workers() -> None:
    files = PictureFiles(Settings().server)
    drawn = (images_operation(files), edits_operation(files))
    texts = (CHAT, RESPONSES, COMPLETIONS, TOKENIZE, DETOKENIZE)
    for operation in (*texts, *drawn, MESSAGES_OPERATION, COUNT_TOKENS):
        assert operation.decode.__module__ in MODULES, operation.name


STATUSES = [
    (errors.InvalidRequest("no"), 400, "invalid_request_error"),
    (errors.ContentRefused("no"), 400, "invalid_request_error"),
    (errors.UnsupportedMedia("no"), 415, "invalid_request_error"),
    (errors.NotSupported("no"), 501, "invalid_request_error"),
    (errors.Unauthorized("no"), 401, "authentication_error"),
    (errors.Forbidden("no"), 403, "permission_error"),
    (errors.NotFound("no"), 404, "not_found_error"),
    (errors.TooLarge("no"), 413, "request_too_large"),
    (errors.QuotaExceeded("no", retry_after_s=1), 429, "rate_limit_error"),
    (errors.Overloaded("no", retry_after_s=1), 503, "overloaded_error"),
    (errors.NotReady("no"), 503, "overloaded_error"),
    (errors.DeadlineExceeded("no"), 504, "timeout_error"),
    (errors.StepFailed("no"), 500, "api_error"),
    (RuntimeError("secret"), 500, "api_error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), STATUSES, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_has_its_status_and_anthropics_form(
    error: Exception, status: int, kind: str, stream: bool
) -> None:
    speaker = Speaker()
    speaker.error = error
    body = ASKED[MESSAGES] | {"stream": stream}
    wire = await post(MESSAGES, body).run(application(speaker))
    assert (wire.status, error_of(wire)["type"]) == (status, kind)
    assert "secret" not in error_of(wire)["message"]


async def test_a_stream_that_fails_ends_with_an_error_event() -> None:
    speaker = Speaker()
    speaker.fail_at, speaker.late_error = 2, errors.StepFailed("the engine raised on this job")
    body = ASKED[MESSAGES] | {"stream": True}
    wire = await post(MESSAGES, body).run(application(speaker))
    name, data = wire.body.rstrip().rsplit(b"\n\n", 1)[1].split(b"\n")
    assert name == b"event: error"
    error = {"type": "api_error", "message": "the engine raised on this job"}
    assert orjson.loads(data.removeprefix(b"data: ")) == {"type": "error", "error": error}
    assert speaker.closed.is_set()


async def test_refusals_match_the_golden_files() -> None:
    app = application(Speaker(), Painter())
    head = {"x_request_id": "r1"}
    for name, path, body in (
        ("no_such_model.http", MESSAGES, ASKED[MESSAGES] | {"model": "claude"}),
        ("bad_field.http", MESSAGES, ASKED[MESSAGES] | {"top_p": 2}),
        ("wrong_kind.http", COUNT, ASKED[COUNT] | {"model": "flux"}),
        ("no_such_route.http", "/v1/messages/batches", {}),
    ):
        same_as_golden(name, await post(path, body, **head).run(app), GOLDEN)
    wire = await Wire("GET", MESSAGES, **head).run(app)
    same_as_golden("wrong_method.http", wire, GOLDEN)


async def test_a_message_names_the_field_that_it_is_about() -> None:
    speaker = Speaker()
    speaker.error = errors.InvalidRequest("it is no picture", param="messages[0].content[1].source")
    wire = await post(MESSAGES, ASKED[MESSAGES]).run(application(speaker))
    assert error_of(wire)["message"] == "messages[0].content[1].source: it is no picture"
    for path in (MESSAGES, COUNT):
        speaker.error = errors.InvalidRequest(
            "the template can't go on", param="continue_final_message"
        )
        wire = await post(path, ASKED[path]).run(application(speaker))
        assert error_of(wire)["message"] == "messages: the template can't go on"


async def test_a_prompt_beyond_the_context_is_said_in_the_words_that_clients_look_for() -> None:
    speaker = Speaker()
    speaker.error = errors.PromptTooLong.of(100, 90, 20)
    wire = await post(MESSAGES, ASKED[MESSAGES]).run(application(speaker))
    assert error_of(wire)["message"].startswith("prompt is too long: ")
