"""Streams open when their job is accepted, and say so while nothing comes: heads, comments, errors
that come later, and a caller who leaves meanwhile.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from predictors.cli.child import held_ports
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, Running, serving, small_settings
from tests.http.error_checks import check_full_queue_of_streams
from tests.http.log_lines import logged
from tests.http.openai_echo import Writer
from tests.http.test_nginx import CONFIG, NGINX

CHAT = "/v1/chat/completions"
SOON_S = 0.01
COMMENT = ": still working"


@contextmanager
def held(comment_s: float = 0.0, **queue: Any) -> Iterator[tuple[Running, Writer, ScriptedEngine]]:
    """A chat model whose engine steps only when the test allows it."""
    settings = small_settings(server={"stream_comment_s": comment_s}, queue=queue)
    engine = ScriptedEngine(slots=1)
    model = Writer("held", engine, settings)
    with serving(model, settings=settings) as running:
        try:
            yield running, model, engine
        finally:
            engine.open()


def asked(text: str = "a", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "held", "messages": messages, "stream": True, "max_tokens": 2} | more


def events(lines: Iterator[str]) -> list[Any]:
    """The data of the rest of a stream."""
    found = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def test_the_head_comes_when_the_job_is_accepted() -> None:
    with (
        held() as (running, _, engine),
        running.client() as http,
        http.stream("POST", CHAT, json=asked()) as reply,
    ):
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-request-id"]
        assert engine.steps == []
        engine.open()
        found = events(reply.iter_lines())
        assert [e["choices"][0]["delta"] for e in found[:2]] == [
            {"content": "a:1"},
            {"content": "a:2"},
        ]
        assert found[-1] == "[DONE]"


def test_a_comment_comes_while_nothing_else_does_and_clients_skip_it() -> None:
    with (
        held(SOON_S) as (running, _, engine),
        running.client() as http,
        http.stream("POST", CHAT, json=asked()) as reply,
    ):
        lines = reply.iter_lines()
        assert [next(lines) for _ in range(6)] == [COMMENT, ""] * 3
        engine.allow()
        words = (line for line in lines if line.startswith("data: "))
        assert "a:1" in next(words)
        assert COMMENT in next(line for line in lines if line)  # between two words too
        engine.open()
        assert events(lines)[-1] == "[DONE]"
    with (
        held(SOON_S) as (running, _, engine),
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="-", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(**asked())
        engine.open()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "a:1a:2"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        (asked(model="other"), 404),
        (asked(logit_bias={"x": 1}), 400),
        (asked(max_tokens="x"), 400),
    ],
)
def test_a_refusal_keeps_its_status(body: Any, status: int) -> None:
    with held() as (running, _, _engine), running.client() as http:
        reply = http.post(CHAT, json=body)
        assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")


def test_a_full_queue_keeps_its_status() -> None:
    with held(capacity=1) as (running, _, engine):
        check_full_queue_of_streams(running, engine, CHAT, asked())


@pytest.mark.parametrize("kind", ["deadline", "poisoned"])
def test_a_later_failure_is_an_event_and_counted_as_what_it_is(kind: str) -> None:
    with logged() as lines, held() as (running, model, engine), running.client() as http:
        headers = {"x-request-timeout-ms": "60000"} if kind == "deadline" else {}
        if kind == "poisoned":
            engine.poison["a"] = RuntimeError("secret")
        with http.stream("POST", CHAT, json=asked(), headers=headers) as reply:
            assert reply.status_code == 200
            if kind == "poisoned":
                engine.open()
            else:
                model.let_pass(60.0)
            (last,) = events(reply.iter_lines())  # the error alone: no `[DONE]`
        code = {"deadline": "deadline_exceeded", "poisoned": "job_failed"}[kind]
        assert (last["error"]["code"], last["error"]["type"]) == (code, "server_error")
        assert set(last["error"]) == {"message", "type", "param", "code"}
        assert "secret" not in json.dumps(last)
        (outcome,) = lines.wait(1)
        assert (outcome["reason"], outcome["model"]) == (kind, "held")
        (line,) = lines.wait(1, "access")
        assert line["status"] == 200
        text = http.get("/metrics").text
        assert f'model="held",operation="chat",protocol="openai",reason="{kind}"' in text


@pytest.mark.parametrize("comment_s", [0.0, SOON_S])
def test_a_caller_who_leaves_before_the_first_word_frees_its_place(comment_s: float) -> None:
    with held(comment_s) as (running, model, engine):
        with running.client() as http, http.stream("POST", CHAT, json=asked("first")):
            engine.wait_in_step()
            with running.client() as other, other.stream("POST", CHAT, json=asked("left")) as reply:
                assert reply.status_code == 200
            assert model.left.acquire(timeout=PATIENCE_S)
            assert model.host.jobs.waiting == 0
        engine.open()
    assert ("admit", "left") not in engine.calls


def test_a_proxy_passes_head_and_comments_on_at_once(tmp_path: Path) -> None:
    if not Path(NGINX).exists():
        pytest.skip("nginx is not installed")
    with held_ports(1) as (port,), held(SOON_S) as (running, _, engine):
        config = CONFIG.format(
            folder=tmp_path, port=running.server.http_port, front=port, buffering="on"
        )
        (tmp_path / "nginx.conf").write_text(config)
        command = [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            transport = httpx.HTTPTransport(retries=8)  # until nginx listens
            url = f"http://127.0.0.1:{port}{CHAT}"
            with (
                httpx.Client(transport=transport, timeout=PATIENCE_S) as http,
                http.stream("POST", url, json=asked()) as reply,
            ):
                assert reply.status_code == 200
                lines = reply.iter_lines()
                assert next(lines) == COMMENT
                assert engine.steps == []
                engine.open()
                assert events(lines)[-1] == "[DONE]"
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
