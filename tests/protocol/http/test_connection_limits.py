"""The limit on open connections: which one is closed for a new one, and slots kept for probes."""

from __future__ import annotations

import resource

import pytest

from predictors.protocol.http import connection_limits
from predictors.protocol.http.connection_limits import (
    RESERVED_FILES,
    ConnectionLimit,
    is_probe,
    max_connections,
    max_grpc_connections,
    proxied_requests,
    raise_file_limit,
)
from predictors.protocol.http.parsing import Head, parse_head
from tests.protocol.http.doubles import ConnectionUnderTest, run_loop


class FakeConnection:
    def __init__(self) -> None:
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


def head(line: str) -> Head:
    return parse_head(f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


WORK, PROBE = head("POST /v2/models/a/infer"), head("GET /v2/health/live")


def add_connections(limit: ConnectionLimit, count: int) -> list[FakeConnection]:
    connections = [FakeConnection() for _ in range(count)]
    assert all(limit.add(connection) for connection in connections)
    return connections


def test_a_new_connection_replaces_the_one_idle_longest() -> None:
    limit = ConnectionLimit(8)
    connections = add_connections(limit, 8)
    assert limit.start_request(connections[0], WORK)
    later = add_connections(limit, 2)
    assert [each.is_aborted for each in connections] == [False, True, True] + [False] * 5
    limit.end_request(connections[0])  # answered: idle again
    add_connections(limit, 7)
    assert [connection.is_aborted for connection in connections] == [False] + [True] * 7
    assert all(connection.is_aborted for connection in later)
    add_connections(limit, 1)
    assert connections[0].is_aborted


def test_a_closed_connection_does_not_count() -> None:
    limit = ConnectionLimit(8)
    for _ in range(3):
        for connection in add_connections(limit, 8):
            limit.remove(connection)
            limit.end_request(connection)  # its request ends after it was closed
            assert not connection.is_aborted


def test_busy_connections_stay_open_and_the_last_slots_are_for_probes() -> None:
    limit = ConnectionLimit(8)
    busy = add_connections(limit, 6)
    assert all(limit.start_request(connection, WORK) for connection in busy)
    late, probing = add_connections(limit, 2)
    assert not limit.start_request(late, WORK)
    assert limit.start_request(probing, PROBE)
    (other,) = add_connections(limit, 1)  # replaces the idle one
    assert late.is_aborted
    assert limit.start_request(other, PROBE)
    (newer,) = add_connections(limit, 1)  # a probe that is not answered at once is not read
    assert probing.is_aborted
    assert not limit.start_request(newer, WORK)
    assert not any(connection.is_aborted for connection in (*busy, other))
    limit.end_request(busy[0])
    (last,) = add_connections(limit, 1)
    assert limit.start_request(last, WORK)


def test_with_requests_in_all_places_a_new_connection_is_refused() -> None:
    limit = ConnectionLimit(8)
    busy = add_connections(limit, 8)
    for connection in busy:
        limit._idle.pop(connection)  # as if none were kept for probes
    refused = FakeConnection()
    assert not limit.add(refused)
    assert not refused.is_aborted
    add_connections(limit, 1)
    assert refused.is_aborted, "a refused connection is closed for the next one"
    assert not any(connection.is_aborted for connection in busy)


@pytest.mark.parametrize("limit", [8, 32, 200])
def test_probes_whose_clients_do_not_read_keep_no_place_from_others(limit: int) -> None:
    places = ConnectionLimit(limit)
    probing = add_connections(places, limit)
    assert all(places.start_request(connection, PROBE) for connection in probing)
    assert places.num_busy == 0
    for i, request in enumerate([PROBE, WORK, PROBE, WORK]):
        [connection] = add_connections(places, 1)
        assert places.start_request(connection, request)
        assert [each.is_aborted for each in probing] == [True] * (i + 1) + [False] * (limit - i - 1)
    assert places.num_busy == 2
    places.end_request(probing[0])  # it is closed
    assert places.num_open == limit


def test_a_request_is_never_ended_for_a_probe_or_a_new_connection() -> None:
    limit = ConnectionLimit(32)
    working = add_connections(limit, 28)
    assert all(limit.start_request(connection, WORK) for connection in working)
    for _ in range(40):
        [connection] = add_connections(limit, 1)
        assert limit.start_request(connection, PROBE)
    assert not any(connection.is_aborted for connection in working)


def test_reaching_the_limit_is_logged_once_per_interval(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limit = ConnectionLimit(8)
    add_connections(limit, 50)
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
def test_health_readiness_and_metrics_are_probes(line: str, expected: bool) -> None:
    assert is_probe(head(line)) == expected


@pytest.mark.parametrize(
    ("files", "wanted", "expected"),
    [
        (200, 0, 102), (1024, 0, 576), (65_536, 0, 8192), (65_536, 20_000, 20_000), (200, 100, 100),
        (200, 500, 102), (40, 0, 8), (65_536, 1, 8), (resource.RLIM_INFINITY, 0, 8192),
        (resource.RLIM_INFINITY, 9_000, 9_000),
    ],
)  # fmt: skip
def test_max_connections_depend_on_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, files: int, wanted: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    assert max_connections(wanted) == expected


@pytest.mark.parametrize(
    ("files", "wanted", "held", "expected"),
    [
        (256, 0, 100, (54, 36)), (1024, 0, 100, (216, 144)), (4096, 0, 100, (864, 576)),
        (65_536, 0, 100, (8192, 1024)), (65_536, 0, 5000, (8192, 5000)),
        (65_536, 40_000, 100, (23_552, 1024)), (40, 0, 100, (8, 8)), (1024, 50, 1, (50, 144)),
        (resource.RLIM_INFINITY, 0, 100, (8192, 1024)),
    ],
)  # fmt: skip
def test_what_a_proxy_takes_has_a_second_file_each(
    monkeypatch: pytest.MonkeyPatch,
    files: int,
    wanted: int,
    held: int,
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    connections, calls = found = proxied_requests(wanted, held)
    assert found == expected
    if 40 < files != resource.RLIM_INFINITY:
        assert 2 * connections + calls + max_grpc_connections() <= files - RESERVED_FILES


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


async def test_an_idle_connection_is_closed_for_a_new_one_and_a_busy_one_is_not() -> None:
    limit = ConnectionLimit(4)
    body = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab"
    probe = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    connections = [ConnectionUnderTest(limit) for _ in range(4)]
    for connection in connections[:2]:
        connection.transport.feed(body)  # two are busy; the other slots are for probes
    connections.append(ConnectionUnderTest(limit))
    await run_loop()
    aborted = [each.transport.is_aborted for each in connections]
    assert aborted == [False, False, True, False, False]
    connections[3].transport.feed(body)
    connections[4].transport.feed(probe)
    await run_loop()
    assert connections[3].statuses() == [503]
    assert b"\r\nretry-after: 1\r\n" in connections[3].transport.written
    assert b'{"error":"the server has no place' in connections[3].transport.written
    assert connections[4].statuses() == [200]
    connections[0].transport.feed(b"cd")
    await run_loop()
    assert connections[0].statuses() == [200]
    for connection in connections:
        connection.close()
        await connection.wait_answered()


BODIES = {
    "that comes slowly": (b"Content-Length: 1000000\r\n\r\n{", False),
    "that is too large to read on": (b"Content-Length: 99999999\r\n\r\n{", True),
    "in chunks": (b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", True),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_refused_request_keeps_no_place_while_its_body_comes(name: str) -> None:
    """As of a caller without a key, who is answered before the body."""
    rest, is_last = BODIES[name]
    limit = ConnectionLimit(8)
    connection = ConnectionUnderTest(limit)
    connection.transport.feed(b"POST /early HTTP/1.1\r\nHost: x\r\n" + rest)
    await run_loop()
    assert connection.statuses() == [415]
    assert limit.num_busy == 0
    assert connection.transport.has_sent_eof is is_last
    connection.close()
    await connection.wait_answered()
