"""Streamed pictures against the real server: OpenAI's client, callers who leave or do not read, a
full queue, keys, a drain.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from tests.fakes import EchoEngine, ScriptedEngine
from tests.http.echo import PATIENCE_S, Running, png, serving, small_settings
from tests.http.error_checks import check_full_queue_of_streams
from tests.http.openai_echo import Artist
from tests.http.test_keys import ANN, bearer, keyed
from tests.http.test_slow_readers import TIMEOUT_S, read_to_end, send_request

IMAGES = "/v1/images/generations"
__all__ = ["keyed"]
LARGE = bytes(20_000_000)


@contextmanager
def held(**queue: Any) -> Iterator[tuple[Running, Artist, ScriptedEngine]]:
    """A picture model whose engine steps only when the test allows it."""
    settings = small_settings(queue=queue)
    engine = ScriptedEngine(slots=1)
    model = Artist("flux", engine, settings)
    with serving(model, settings=settings) as running:
        try:
            yield running, model, engine
        finally:
            engine.open()


def asked(prompt: str = "a", **more: Any) -> dict[str, Any]:
    body = {"model": "flux", "prompt": prompt, "stream": True, "num_inference_steps": 3}
    return body | more


def client_of(running: Running) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{running.url}/v1", api_key="-", max_retries=0, timeout=PATIENCE_S
    )


def test_openais_client_reads_previews_and_the_picture() -> None:
    with held() as (running, _, engine), client_of(running) as client:
        stream = client.images.generate(
            model="flux",
            prompt="a red circle",
            stream=True,
            partial_images=2,
            extra_body={"num_inference_steps": 3},
        )
        assert not engine.steps  # the head came with the job's acceptance
        engine.open()
        found = list(stream)
    assert [event.type for event in found] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    first, second, last = found
    assert isinstance(first, openai.types.ImageGenPartialImageEvent)
    assert isinstance(second, openai.types.ImageGenPartialImageEvent)
    assert isinstance(last, openai.types.ImageGenCompletedEvent)
    assert [first.partial_image_index, second.partial_image_index] == [0, 1]
    assert base64.b64decode(first.b64_json) == Artist.preview
    assert base64.b64decode(last.b64_json) == png()
    assert last.usage.total_tokens == 2
    assert (last.size, last.background, last.quality) == ("8x8", "opaque", "auto")


def test_openais_client_takes_progress_events_as_they_are() -> None:
    with held() as (running, _, engine), client_of(running) as client:
        engine.open()
        stream: Any = client.images.generate(
            model="flux",
            prompt="a",
            stream=True,
            extra_body={"num_inference_steps": 2, "progress": True},
        )
        found = list(stream)
    assert [event.type for event in found] == [
        "image_generation.progress",
        "image_generation.progress",
        "image_generation.completed",
    ]
    assert [(event.step, event.steps) for event in found[:2]] == [(1, 2), (2, 2)]


def test_a_late_failure_raises_in_openais_client() -> None:
    with held() as (running, _, engine), client_of(running) as client:
        engine.poison["a"] = RuntimeError("secret")
        stream = client.images.generate(model="flux", prompt="a", stream=True, partial_images=1)
        engine.open()
        with pytest.raises(openai.APIError) as failed:
            list(stream)
        assert failed.value.code == "job_failed"
        assert "secret" not in str(failed.value)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (asked(model="other"), 404),
        (asked(n=2), 400),
        (asked(partial_images=9), 400),
        (asked(stream=False, partial_images=1), 400),
    ],
    ids=["404", "n", "too many", "no stream"],
)
def test_a_refusal_keeps_its_status(body: Any, status: int) -> None:
    with held() as (running, _, _engine), running.client() as http:
        reply = http.post(IMAGES, json=body)
        assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")


def test_a_full_queue_keeps_its_status() -> None:
    with held(capacity=1) as (running, _, engine):
        check_full_queue_of_streams(running, engine, IMAGES, asked())


def test_a_drain_refuses_streams_and_finishes_those_that_run() -> None:
    with (
        held() as (running, _, engine),
        running.client() as http,
        running.client() as other,
        other.stream("POST", IMAGES, json=asked(partial_images=2)) as accepted,
    ):
        engine.wait_in_step()
        loop = running.server._loop
        assert loop is not None
        loop.call_soon_threadsafe(running.server.registry.drain)
        reply = http.post(IMAGES, json=asked())
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_draining")
        engine.open()
        assert "image_generation.completed" in accepted.read().decode()


def test_a_caller_who_leaves_frees_its_slot_while_others_go_on() -> None:
    with held() as (running, model, engine):
        with (
            running.client() as http,
            http.stream("POST", IMAGES, json=asked("left", partial_images=3)) as reply,
        ):
            engine.take_steps(1)
            lines = reply.iter_lines()
            assert next(lines) == "event: image_generation.partial_image"
            engine.wait_in_step()  # of its second step
        assert model.left.wait(PATIENCE_S)
        with running.client() as http, http.stream("POST", IMAGES, json=asked("next")) as reply:
            engine.open()
            text = "".join(reply.iter_lines())
        assert "image_generation.completed" in text
    taken = [call for call in engine.calls if call[0] == "step" and "left" in call]
    assert len(taken) <= 2  # the step that ran when it left, and none after it


def test_a_client_that_does_not_read_is_cut_off() -> None:
    settings = small_settings(server={"write_timeout_s": TIMEOUT_S})
    words = EchoEngine(steps=lambda task: task.steps, chunk=lambda task, i: "x")
    model = Artist("flux", words, settings)
    model.preview = LARGE
    body = asked(partial_images=3)
    with serving(model, settings=settings) as running, send_request(running, IMAGES, body) as sock:
        running.wait_idle()
        assert model.left.wait(PATIENCE_S)
        assert read_to_end(sock) < len(LARGE), "the response was not cut off"


def test_the_head_and_comments_come_before_the_first_event() -> None:
    settings = small_settings(server={"stream_comment_s": 0.01})
    engine = ScriptedEngine(slots=1)
    with (
        serving(Artist("flux", engine, settings), settings=settings) as running,
        running.client() as http,
        http.stream("POST", IMAGES, json=asked(partial_images=1)) as reply,
    ):
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = reply.iter_lines()
        assert [next(lines) for _ in range(4)] == [": still working", ""] * 2
        engine.open()
        data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [each["type"].rpartition(".")[2] for each in data] == ["partial_image", "completed"]


def test_a_stream_needs_a_key_where_others_do(keyed: Running) -> None:
    body = asked(model="artist", partial_images=1, num_inference_steps=1)
    with keyed.client() as http:
        reply = http.post(IMAGES, json=body)
        assert (reply.status_code, reply.headers["content-type"]) == (401, "application/json")
        reply = http.post(IMAGES, json=body, headers=bearer(ANN))
        assert reply.status_code == 200
        assert "image_generation.completed" in reply.text
