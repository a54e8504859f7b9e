"""The traffic driver of the end-to-end tests, against a server in this process that can misbehave:
what fails is written down once, and nothing that failed is ever tried again or left out."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.traffic import NothingAsked, Traffic, over_http
from tests.fakes import PATIENCE_S


class Scripted:
    """An HTTP/1.1 server on a thread of its own, that answers as `mode` says."""

    def __init__(self) -> None:
        self.mode = "good"
        self.port = 0
        self.connections = 0
        self.questions: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])

    def start(self) -> None:
        self._thread.start()
        assert self._up.wait(PATIENCE_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._over.wait()
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.questions.append(head.split(" ")[1])
                mode = self.mode  # the test's thread may change it at any time
                if mode == "silent":
                    await self._over.wait()
                if mode in {"cut", "silent"}:
                    break
                status, body = {
                    "good": ("200 OK", b"right"),
                    "wrong": ("200 OK", b"wrong"),
                    "refuse": ("503 Service Unavailable", b"right"),
                }[mode]
                length = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(length.encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
def server() -> Iterator[Scripted]:
    """A server that answers rightly until it is set otherwise."""
    scripted = Scripted()
    scripted.start()
    yield scripted
    scripted.stop()


async def ask(http: httpx.AsyncClient, question: str) -> None:
    """One question whose right answer is known."""
    reply = await http.get(f"/{question}")
    assert reply.status_code == 200, str(reply.status_code)
    assert reply.text == "right", reply.text


@contextmanager
def asking(server: Scripted, **options: object) -> Iterator[Traffic]:
    """Traffic to this server that flows."""
    named = {"clients": 3, "pause_s": 0.0, "timeout_s": PATIENCE_S, **options}
    with Traffic(over_http(f"http://127.0.0.1:{server.port}", ask), **named) as traffic:  # type: ignore[arg-type]
        traffic.wait_answered(6)
        yield traffic


def test_a_change_without_a_failed_request_passes(server: Scripted) -> None:
    with asking(server) as traffic, traffic.around("nothing", settle=20) as window:
        pass
    window.assert_none_failed()
    assert len(window.outcomes) >= 20


@pytest.mark.parametrize(
    ("mode", "said"),
    [("refuse", "503"), ("wrong", "wrong"), ("cut", "RemoteProtocolError")],
)
def test_whatever_goes_wrong_meanwhile_is_shown(server: Scripted, mode: str, said: str) -> None:
    with asking(server) as traffic:
        with traffic.around("a bad change", settle=20) as window:
            server.mode = mode
        server.mode = "good"
    with pytest.raises(AssertionError, match=f"a bad change: .* questions failed.*{said}"):
        window.assert_none_failed()


def test_one_failure_among_thousands_is_enough(server: Scripted) -> None:
    with asking(server) as traffic, traffic.around("a blink", settle=100) as window:
        server.mode = "refuse"
        before = len(traffic.outcomes)
        traffic.wait_failed(1)
        server.mode = "good"
        traffic.wait_answered(50)
    assert before < len(traffic.outcomes)
    assert 1 <= len(window.failed) < len(window.outcomes)
    with pytest.raises(AssertionError, match="a blink"):
        window.assert_none_failed()


def test_an_unanswered_request_fails_at_its_deadline(server: Scripted) -> None:
    with asking(server, timeout_s=0.2) as traffic, traffic.around("silence", settle=3) as window:
        server.mode = "silent"
        traffic.wait_failed(3)  # what was asked before may still be answered meanwhile
    assert len(window.failed) >= 3
    assert {each.failure.split(":")[0] for each in window.failed} == {"TimeoutError"}


def test_nothing_is_asked_twice_and_every_question_has_one_outcome(server: Scripted) -> None:
    with asking(server) as traffic:
        server.mode = "cut"
        traffic.wait_failed(10)
        server.mode = "good"
        traffic.wait_answered(10)
    asked = [question.removeprefix("/") for question in server.questions]
    assert len(set(asked)) == len(asked)
    assert sorted(asked) == sorted(each.question for each in traffic.outcomes)


def test_a_pooled_client_keeps_its_connection(server: Scripted) -> None:
    with asking(server, pooled=True) as traffic:
        traffic.wait_answered(50)
    assert server.connections == 3


def test_otherwise_each_question_has_a_connection_of_its_own(server: Scripted) -> None:
    with asking(server, pooled=False) as traffic:
        traffic.wait_answered(50)
    assert server.connections == len(traffic.outcomes) == len(server.questions)


def test_a_window_has_only_what_overlaps_it(server: Scripted) -> None:
    with asking(server) as traffic:
        server.mode = "refuse"
        traffic.wait_failed(5)
        server.mode = "good"
        traffic.wait_answered(10)
        with traffic.around("afterwards", settle=10) as window:
            traffic.wait_answered(10)
        window.assert_none_failed()
    assert any(each.failure for each in traffic.outcomes)
    assert all(each.ended_s >= window.began_s for each in window.outcomes)


def test_too_few_questions_prove_nothing(server: Scripted) -> None:
    with asking(server) as traffic, traffic.around("a moment", settle=1) as window:
        pass
    with pytest.raises(NothingAsked, match="at least 100000"):
        window.assert_none_failed(at_least=100000)


def test_clients_that_stopped_by_themselves_prove_nothing(server: Scripted) -> None:
    dial = over_http(f"http://127.0.0.1:{server.port}", ask)
    with Traffic(dial, clients=1, pause_s=0.0, timeout_s=0.2, limit_s=0.5) as traffic:
        traffic.wait_over(PATIENCE_S)
        with pytest.raises(NothingAsked, match="stopped"), traffic.around("too late"):
            pass


def test_a_server_that_is_not_there_is_no_traffic() -> None:
    dial = over_http("http://127.0.0.1:9", ask)
    with Traffic(dial, clients=1) as traffic:
        traffic.wait_failed(1)
        with pytest.raises(AssertionError, match=r"does not flow.*ConnectError"):
            traffic.wait_answered(1, timeout_s=0.5)


def test_the_record_is_kept(server: Scripted, tmp_path: Path) -> None:
    with asking(server, saved=tmp_path / "traffic.jsonl") as traffic:
        pass
    lines = [json.loads(line) for line in (tmp_path / "traffic.jsonl").read_text().splitlines()]
    assert [line["question"] for line in lines] == [e.question for e in traffic.outcomes]
