"""The `openai` package against the real server: images, chat, streams, models, error classes."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Running, png, serving, small_settings
from tests.http.openai_echo import Artist, Writer, words

HELLO: Any = [{"role": "user", "content": "hello"}]


def client_of(running: Running, prefix: str = "/v1", **more: Any) -> openai.OpenAI:
    options = {"max_retries": 0, "timeout": PATIENCE_S} | more
    return openai.OpenAI(base_url=running.url + prefix, api_key="none", **options)


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    settings = small_settings()
    models = Artist("flux", words(), settings), Writer("qwen-vl", words(), settings)
    with serving(*models, settings=settings) as running:
        yield running


@pytest.fixture(params=["/v1", "/openai/v1"])
def client(served: Running, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with client_of(served, request.param) as made:
        yield made


def test_images_are_base64_beside_the_fields_of_this_server(client: openai.OpenAI) -> None:
    reply = client.images.generate(
        model="flux",
        prompt="a red circle",
        n=2,
        size="64x64",
        response_format="b64_json",
        user="me",
        extra_body={"num_inference_steps": 3, "guidance_scale": 3.5},
    )
    assert reply.data is not None
    assert [base64.b64decode(picture.b64_json or "") for picture in reply.data] == [png(), png()]
    assert [picture.seed for picture in reply.data] == [0, 1]  # type: ignore[attr-defined]


def test_a_chat_completion_without_a_stream(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="qwen-vl", messages=HELLO, max_tokens=2, n=2)
    assert [choice.message.content for choice in reply.choices] == ["hello:1 hello:2"] * 2
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 2
    assert reply._request_id == reply.id


def test_a_streamed_chat_completion_ends_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="qwen-vl",
        messages=HELLO,
        max_completion_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    said = [chunk.choices[0].delta.content for chunk in chunks[:3]]
    assert said == ["hello:1", "hello:2", "hello:3"]
    assert chunks[3].choices[0].finish_reason == "stop"
    assert chunks[4].choices == []
    assert chunks[4].usage is not None
    assert chunks[4].usage.total_tokens == 4
    assert len(chunks) == 5


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["flux", "qwen-vl"]
    model = client.models.retrieve("flux")
    assert (model.id, model.object) == ("flux", "model")
    assert model.ready is True  # type: ignore[attr-defined]


def test_a_bad_field_is_a_bad_request_error_that_names_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="qwen-vl", messages=HELLO, modalities=["audio"])
    assert refused.value.param == "modalities"
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="flux", prompt="x", response_format="hex")  # type: ignore[call-overload]
    assert refused.value.param == "response_format"
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="flux", prompt="x", extra_body={"stepz": 3})
    assert refused.value.param == "stepz"


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-5")
    assert refused.value.code == "model_not_found"


def test_a_model_of_the_other_task_is_a_bad_request_that_names_its_route(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError, match="/v1/images/generations does"):
        client.chat.completions.create(model="flux", messages=HELLO)


def test_a_stream_refused_before_its_first_chunk_raises_at_once(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="qwen-vl", messages=HELLO, stream=True, top_p=7)
    assert refused.value.param == "top_p"


def test_eight_concurrent_streams_each_get_their_own_text(served: Running) -> None:
    def ask(name: str) -> list[str | None]:
        with client_of(served) as client:
            stream = client.chat.completions.create(
                model="qwen-vl",
                messages=[{"role": "user", "content": name}],
                max_tokens=20,
                stream=True,
            )
            return [chunk.choices[0].delta.content for chunk in stream][:-1]

    names = [f"n{i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for name, said in zip(names, pool.map(ask, names), strict=True):
            assert said == [f"{name}:{i}" for i in range(1, 21)]


async def test_the_asynchronous_client_works(served: Running) -> None:
    url = served.url + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="qwen-vl", messages=HELLO, max_tokens=2, stream=True
        )
        said = [chunk.choices[0].delta.content async for chunk in stream]
    assert said == ["hello:1", "hello:2", None]


@dataclass
class Held:
    """A chat model with a held engine, one slot and a queue of one."""

    engine: ScriptedEngine
    writer: Writer
    running: Running

    def ask(self, said: str = "hello", **more: Any) -> Any:
        """A chat completion."""
        with client_of(self.running) as client:
            messages: Any = [{"role": "user", "content": said}]
            return client.chat.completions.create(model="held", messages=messages, **more)

    def stream(self, said: str, **more: Any) -> list[Any]:
        """All chunks of a streamed completion."""
        messages: Any = [{"role": "user", "content": said}]
        with client_of(self.running) as client:
            asked = {"model": "held", "messages": messages, "stream": True} | more
            return list(client.chat.completions.create(**asked))

    def ask_until_accepted(self, pool: ThreadPoolExecutor) -> Future[Any]:
        """Request a completion in a thread; returns once the job is queued."""
        asked = pool.submit(self.ask)
        assert self.writer.accepted.acquire(timeout=PATIENCE_S)
        return asked


@contextmanager
def held(**queue: Any) -> Iterator[Held]:
    engine = ScriptedEngine(slots=1)
    settings = small_settings(queue={"capacity": 1} | queue)
    writer = Writer("held", engine, settings)  # type: ignore[arg-type]
    with serving(writer, settings=settings) as running:
        try:
            yield Held(engine, writer, running)
        finally:
            engine.open()


OVERLOADED = [(503, openai.InternalServerError), (429, openai.RateLimitError)]


@pytest.mark.parametrize(("status", "kind"), OVERLOADED)
def test_a_full_queue_is_refused_at_once_with_retry_after(
    status: int, kind: type[openai.APIStatusError]
) -> None:
    with held(overload_status=status) as model, ThreadPoolExecutor(2) as pool:
        first = model.ask_until_accepted(pool)
        model.engine.wait_in_step()
        second = model.ask_until_accepted(pool)
        for stream in (False, True):
            with pytest.raises(kind) as refused:
                model.ask(stream=stream)
            assert refused.value.status_code == status
            assert refused.value.code == "server_overloaded"
            assert int(refused.value.response.headers["retry-after"]) >= 1
        model.engine.open()
        for asked in (first, second):
            assert asked.result(PATIENCE_S).choices[0].message.content == "hello:1"


def test_more_choices_than_the_queue_holds_are_a_bad_request() -> None:
    with held() as model, pytest.raises(openai.BadRequestError):
        model.ask(n=16)


def test_a_deadline_in_the_queue_is_504_and_never_starts() -> None:
    with held() as model, ThreadPoolExecutor(1) as pool:
        first = model.ask_until_accepted(pool)
        model.engine.wait_in_step()
        soon = {"X-Request-Timeout-Ms": "50"}
        with pytest.raises(openai.InternalServerError) as refused:
            model.ask("late", extra_headers=soon)
        assert refused.value.status_code == 504
        assert refused.value.code == "deadline_exceeded"
        assert refused.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(openai.APIError) as failed:  # its status was sent before
            model.stream("late", extra_headers=soon)
        assert failed.value.code == "deadline_exceeded"
        model.engine.open()
        first.result(PATIENCE_S)
    assert ("admit", "late") not in model.engine.calls


def test_a_failing_job_is_an_internal_server_error_and_the_next_is_served() -> None:
    with held() as model:
        model.engine.open()
        model.engine.poison["bad"] = RuntimeError("secret /mnt/models at 0x7f00")
        with pytest.raises(openai.InternalServerError) as refused:
            model.ask("bad")
        assert refused.value.code == "job_failed"
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert "secret" not in refused.value.response.text
        with pytest.raises(openai.APIError) as failed:
            model.stream("bad")
        assert failed.value.code == "job_failed"
        assert "secret" not in failed.value.message
        assert model.ask().choices[0].message.content == "hello:1"


def test_a_job_that_fails_after_its_first_word_raises_from_the_stream() -> None:
    with held() as model, client_of(model.running) as client:
        model.engine.allow()
        stream = client.chat.completions.create(
            model="held", messages=HELLO, max_tokens=3, stream=True
        )
        assert next(stream).choices[0].delta.content == "hello:1"
        model.engine.poison["hello"] = RuntimeError("secret")
        model.engine.open()
        with pytest.raises(openai.APIError) as failed:
            list(stream)
    assert failed.value.code == "job_failed"
    assert "secret" not in failed.value.message


def test_a_client_that_closes_its_stream_frees_the_slot_within_one_step() -> None:
    with held() as model, client_of(model.running) as client:
        model.engine.allow()
        stream = client.chat.completions.create(
            model="held", messages=HELLO, max_tokens=10**6, stream=True
        )
        assert next(stream).choices[0].delta.content == "hello:1"
        model.engine.wait_in_step()
        stream.close()
        assert model.writer.left.acquire(timeout=PATIENCE_S)
        model.engine.open()
        model.running.stop()
    assert model.engine.steps == [("hello",)] * 2  # the first word, and the step that was held
    assert ("evict", "hello") in model.engine.calls


def test_a_client_that_gives_up_frees_the_slot_within_one_step() -> None:
    with (
        held() as model,
        socket.create_connection(("127.0.0.1", model.running.server.http_port)) as connection,
    ):
        connection.sendall(post("/v1/chat/completions", "held", max_tokens=10**6))
        model.engine.wait_in_step()
        connection.close()
        assert model.writer.left.acquire(timeout=PATIENCE_S)
        model.engine.open()
        model.running.stop()
    assert model.engine.steps == [("hello",)]
    assert ("evict", "hello") in model.engine.calls


def post(path: str, model: str, **more: Any) -> bytes:
    """An HTTP request as bytes."""
    body = json.dumps({"model": model, "messages": HELLO} | more).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
