"""The generator itself: it never waits for answers, says when it was late, reads answers however
they are cut, and sorts what became of a request.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load import pages, sigterm
from tests.load.asks import answer_of, digest
from tests.load.flat import slope
from tests.load.generator import DRAINING, Load, Manner, Plan, loop_runner, manner_of
from tests.load.records import (
    FAILED,
    LATE,
    LEFT,
    OK,
    REFUSED,
    UNANSWERED,
    UNCONNECTED,
    Record,
    summary,
)
from tests.load.traffic import MIXES, draw, pool
from tests.load.wire import Cut, Wire


def record(outcome: str = OK, *, due: float = 0.0, ended: float = 1.0, **fields: object) -> Record:
    base = {"lag_s": 0.0, "status": "200", "deadline_s": 3.0, "work": 1.0}
    return Record("kind", "room", "rest", due, ended_s=ended, outcome=outcome, **base | fields)  # type: ignore[arg-type]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield listener.getsockname()[1]


def test_arrivals_do_not_wait_for_answers(silent_port: int) -> None:
    plan = Plan(silent_port, 1, "one chat", 7, 0.5, rate=100.0, leavers=1.0)
    load = Load(plan, {})
    with loop_runner() as runner:
        runner.run(load.run())
    # the schedule is the seed's, though no request was ever answered
    assert {each.outcome for each in load.records} == {LEFT}
    dues = sorted(each.due_s for each in load.records)
    assert dues[0] == pytest.approx(random.Random(7).expovariate(100.0))
    assert len(dues) >= 25
    assert dues[-1] < 0.5


def test_the_same_seed_makes_the_same_requests() -> None:
    def some(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [(draw("mixed", rng, str(i), 0.5), repr(manner_of(PLAN, rng))) for i in range(40)]

    assert some(3) == some(3)
    assert some(3) != some(4)


REFUSAL = b"HTTP/1.1 503 No\r\ncontent-length: 5\r\nconnection: close\r\n\r\nfull!"


@pytest.mark.parametrize(
    ("answer", "outcome", "status"),
    [(REFUSAL, REFUSED, "503"), (REFUSAL[:-1], UNANSWERED, "cut 503"), (b"", UNANSWERED, "cut")],
    ids=["whole", "a byte is missing", "none"],
)
@pytest.mark.parametrize("how", ["", "slow writer"])
def test_an_answer_before_the_end_of_the_body_counts(
    how: str, answer: bytes, outcome: str, status: str
) -> None:
    """A slow writer goes on after the answer to the first part of its body."""
    slow = float(bool(how))
    plan = Plan(0, 1, "photos", 7, 60.0, rate=100.0, most=1, slow_writers=slow, fresh=1.0)

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        await reader.read()  # as the server does: what still comes is thrown away
        writer.close()

    async def ran() -> Record:
        server = await asyncio.start_server(answered, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        load = Load(replace(plan, port=port), {})
        await load.run()
        server.close()
        return load.records[0]

    with loop_runner() as runner:
        found = runner.run(ran())
    assert (found.how, found.outcome, found.status) == (how, outcome, status)


PLAN = Plan(1, 1, "mixed", 0, 1.0, leavers=0.3, slow_readers=0.1, slow_writers=0.1)


def test_a_manner_is_drawn_as_often_as_asked() -> None:
    rng = random.Random(1)
    hows = [manner_of(PLAN, rng).how for _ in range(2000)]
    assert hows.count("leaver") == pytest.approx(600, abs=80)
    assert hows.count("slow reader") == pytest.approx(200, abs=50)
    assert hows.count("slow writer") == pytest.approx(200, abs=50)


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_the_pool_is_the_same_each_time_and_named_apart(mix: str) -> None:
    first, second = pool(mix), pool(mix)
    assert first == second
    assert len({ask.key for ask in first}) == len(first)


def test_a_request_outside_the_pool_is_unlike_all_others() -> None:
    rng = random.Random(1)
    bodies = [b"".join(draw("mixed", rng, f"1x{i}", 0.0).parts) for i in range(300)]
    assert len(set(bodies)) == 300


STREAM = [
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"a \\u00e4"},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]
CHUNKED = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in STREAM) + b"0\r\n\r\n"
ANSWERS = {
    "stream": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNKED,
    "whole": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "empty": b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
}
BODIES = {"stream": b"".join(STREAM), "whole": b"hello", "empty": b""}


@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(1, 400), max_size=12))
def test_an_answer_is_read_however_it_is_cut(name: str, cuts: list[int]) -> None:
    async def read() -> None:
        wire, raw = Wire(), ANSWERS[name]
        for _ in range(2):  # the second answer on the same connection
            reply = wire.begin(keeps_body=True, is_stream=name == "stream")
            ends = sorted({min(cut, len(raw)) for cut in cuts} | {len(raw)})
            for start, end in zip([0, *ends], ends, strict=False):
                assert not reply.done.done()
                wire.data_received(raw[start:end])
            assert reply.done.done()
            assert bytes(reply.body) == BODIES[name]
            assert reply.num_bytes == len(BODIES[name])
            assert (reply.first_at > 0) == (name == "stream")

    asyncio.run(read())


@pytest.mark.parametrize("raw", [b"HTTP/1.1 xx\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_what_is_no_answer_is_cut(raw: bytes) -> None:
    async def read() -> None:
        wire = Wire()
        reply = wire.begin(keeps_body=True, is_stream=False)
        wire.data_received(raw)
        with pytest.raises(Cut):
            await reply.done

    asyncio.run(read())


def test_a_stream_and_a_whole_answer_of_the_same_choices_have_the_same_digest() -> None:
    asks = pool("qwen-vl")
    stream = next(ask for ask in asks if ask.kind == "chat stream")
    whole = next(ask for ask in asks if ask.kind == "chat text")
    body = b'{"choices":[{"index":0,"message":{"content":"a \xc3\xa4"},"finish_reason":"stop"}]}'
    assert answer_of(stream, b"".join(STREAM), b"") == [(0, "a ä", "stop")]
    assert digest(stream, b"".join(STREAM)) == digest(whole, body)


def test_goodput_counts_right_answers_within_their_deadline() -> None:
    records = [
        record(ended=2.0),
        record(ended=2.0, is_right=True),
        record(ended=2.0, is_right=False),
        record(ended=4.0),  # 4 s after its arrival, with 3 s to go
        record(REFUSED, due=1.5, ended=1.6),
        record(LATE, ended=3.0),
        record(due=-4.0, ended=0.5),  # before the window
    ]
    found = summary(records, 1.0, 5.0)
    assert found.good == pytest.approx(2 / 4, abs=0.01)
    assert found.accepted == pytest.approx(5 / 4, abs=0.01)
    assert found.refused == pytest.approx(1 / 4, abs=0.01)
    assert (found.compared, found.wrong) == (2, 1)
    assert found.refusal_p99_ms == pytest.approx(100.0)


def test_a_late_generator_says_so() -> None:
    found = summary([record(lag_s=0.2)] * 5, 0.0, 2.0)
    assert found.lag_p99_ms == 200.0


@pytest.mark.parametrize(
    ("fields", "fate"),
    [
        ({"outcome": OK, "sent_s": 1.0, "began_s": 4.0}, "answered"),
        ({"outcome": LATE, "sent_s": 1.0}, "answered"),
        ({"outcome": UNANSWERED, "sent_s": 1.0}, "lost"),
        ({"outcome": FAILED, "sent_s": 1.0, "began_s": 2.0}, "lost"),
        ({"outcome": REFUSED, "sent_s": 1.0, "status": DRAINING}, "lost"),
        ({"outcome": REFUSED, "sent_s": 1.0, "status": "UNAVAILABLE"}, "lost"),
        ({"outcome": REFUSED, "sent_s": 1.0, "status": "503"}, "refused before"),
        ({"outcome": REFUSED, "sent_s": 2.0, "status": DRAINING}, "refused at the signal"),
        ({"outcome": REFUSED, "sent_s": 2.9, "status": DRAINING}, "refused at the signal"),
        ({"outcome": UNANSWERED, "sent_s": 2.9}, "lost"),
        ({"outcome": UNANSWERED, "sent_s": 2.9, "began_s": 2.95}, "lost"),
        ({"outcome": REFUSED, "sent_s": 3.5, "status": DRAINING}, "refused after"),
        ({"outcome": UNANSWERED, "sent_s": 3.5}, "refused after"),
        ({"outcome": UNCONNECTED, "sent_s": 0.0}, "refused after"),
        ({"outcome": UNANSWERED, "sent_s": 3.5, "began_s": 3.6}, "broken after"),
        ({"outcome": FAILED, "sent_s": 3.5, "began_s": 3.6}, "broken after"),
    ],
    ids=str,
)
def test_the_fate_of_a_request_around_a_signal(fields: dict[str, object], fate: str) -> None:
    assert sigterm.fate(record(**{"ended": 5.0, **fields}), 2.8, 3.0) == fate  # type: ignore[arg-type]


def test_growth_is_the_slope_of_a_line() -> None:
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx(2.0)
    assert slope([1], [5]) == 0.0


def test_a_caller_without_a_manner_stays_and_reads() -> None:
    assert Manner(1.0).how == ""


def test_pages_show_the_committed_results() -> None:
    found = pages.committed()
    stale = [p.name for p in pages.PAGES if pages.written(p.read_text(), found) != p.read_text()]
    assert stale == [], "run `python -m tests.load.pages`"
