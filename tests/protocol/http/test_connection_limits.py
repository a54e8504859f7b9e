"""Who may come in, who makes room, and what is kept for probes."""

from __future__ import annotations

import resource

import pytest

from predictors.protocol.http import connection_limits
from predictors.protocol.http.connection_limits import (
    ConnectionLimit,
    is_probe,
    max_connections,
    raise_file_limit,
)
from predictors.protocol.http.parsing import Head, parse_head
from tests.protocol.http.doubles import Talk, turns


class Caller:
    """A connection that knows whether it was ended."""

    def __init__(self) -> None:
        self.is_ended = False

    def abort(self) -> None:
        self.is_ended = True


def head(line: str) -> Head:
    return parse_head(f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


WORK, PROBE = head("POST /v2/models/a/infer"), head("GET /v2/health/live")


def entered(limit: ConnectionLimit, count: int) -> list[Caller]:
    callers = [Caller() for _ in range(count)]
    assert all(limit.add(caller) for caller in callers)
    return callers


def test_a_newcomer_ends_whoever_has_waited_longest() -> None:
    limit = ConnectionLimit(8)
    callers = entered(limit, 8)
    assert limit.start_request(callers[0], WORK)
    newcomers = entered(limit, 2)
    assert [caller.is_ended for caller in callers] == [False, True, True] + [False] * 5
    limit.end_request(callers[0])  # answered: now it waits, but not for long
    entered(limit, 7)
    assert [caller.is_ended for caller in callers] == [False] + [True] * 7
    assert all(caller.is_ended for caller in newcomers)
    entered(limit, 1)
    assert callers[0].is_ended


def test_who_has_gone_takes_no_place() -> None:
    limit = ConnectionLimit(8)
    for _ in range(3):
        for caller in entered(limit, 8):
            limit.remove(caller)
            limit.end_request(caller)  # the answer of one that has gone already
            assert not caller.is_ended


def test_no_request_ends_for_a_newcomer_and_the_last_places_are_for_probes() -> None:
    limit = ConnectionLimit(8)
    busy = entered(limit, 6)
    assert all(limit.start_request(caller, WORK) for caller in busy)
    late, probing = entered(limit, 2)
    assert not limit.start_request(late, WORK)
    assert limit.start_request(probing, PROBE)
    (other,) = entered(limit, 1)  # in place of the late one
    assert late.is_ended
    assert limit.start_request(other, PROBE)
    turned_away = Caller()
    assert not limit.add(turned_away)
    assert not turned_away.is_ended
    entered(limit, 1)
    assert turned_away.is_ended, "it makes room for the next"
    assert not any(caller.is_ended for caller in (*busy, probing, other))
    limit.end_request(busy[0])
    (last,) = entered(limit, 1)
    assert not limit.start_request(last, WORK)  # a probe runs in the place of work meanwhile
    limit.end_request(probing)
    limit.end_request(other)
    assert limit.start_request(last, WORK)


def test_a_limit_that_is_reached_is_logged_once_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limit = ConnectionLimit(8)
    entered(limit, 50)
    assert [record.getMessage() for record in caplog.records] == [
        "8 HTTP connections are open, that is the limit: those that have waited longest for a "
        "request are closed"
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GET /", True), ("GET /metrics", True), ("HEAD /v2/health/live", True),
        ("GET /v2/health/ready?x=y", True), ("GET /v2/models/a/ready", True),
        ("GET /v2/models/a/versions/1/ready", True), ("POST /v2/health/live", False),
        ("GET /v2/models/a", False), ("GET /v2/models/a/b/c/ready", False), ("GET /v2", False),
        ("GET /v2/models/a/infer", False), ("GET /v2/health/live/", False),
    ],
)  # fmt: skip
def test_a_probe_only_asks_how_the_server_is(line: str, expected: bool) -> None:
    assert is_probe(head(line)) == expected


@pytest.mark.parametrize(
    ("files", "wanted", "expected"),
    [
        (200, 0, 102), (1024, 0, 576), (65_536, 0, 8192), (65_536, 20_000, 20_000), (200, 100, 100),
        (200, 500, 102), (40, 0, 8), (65_536, 1, 8), (resource.RLIM_INFINITY, 0, 8192),
        (resource.RLIM_INFINITY, 9_000, 9_000),
    ],
)  # fmt: skip
def test_connections_are_bounded_by_the_files_that_may_be_open(
    monkeypatch: pytest.MonkeyPatch, files: int, wanted: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    assert max_connections(wanted) == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1024, 4096), (4096, 4096)), ((1024, 2**20), (65_536, 2**20)), ((2**20, 2**20), None),
        ((1024, resource.RLIM_INFINITY), (65_536, resource.RLIM_INFINITY)), ((200, 200), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)  # fmt: skip
def test_the_limit_of_open_files_is_raised_and_never_lowered(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], expected: tuple[int, int] | None
) -> None:
    was_set = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: was_set.append(new))
    raise_file_limit()
    assert was_set == ([] if expected is None else [expected])
    assert connection_limits.MAX_FILES == 65_536


async def test_an_idle_connection_ends_for_a_newcomer_and_a_busy_one_does_not() -> None:
    limit = ConnectionLimit(4)
    body = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab"
    probe = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    talks = [Talk(limit) for _ in range(4)]
    for talk in talks[:2]:
        talk.line.feed(body)  # two are busy: the others are for probes
    talks.append(Talk(limit))
    await turns()
    assert [talk.line.is_aborted for talk in talks] == [False, False, True, False, False]
    talks[3].line.feed(body)
    talks[4].line.feed(probe)
    await turns()
    assert talks[3].statuses() == [503]
    assert b"\r\nretry-after: 1\r\n" in talks[3].line.written
    assert b'{"error":"the server has no place' in talks[3].line.written
    assert talks[4].statuses() == [200]
    talks[0].line.feed(b"cd")
    await turns()
    assert talks[0].statuses() == [200]
    for talk in talks:
        talk.end()
        await talk.settled()
