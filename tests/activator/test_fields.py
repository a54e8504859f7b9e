"""Fields and metadata as a proxy passes them on."""

from __future__ import annotations

import pytest

from predictors.activator.fields import (
    END_TO_END,
    passed_metadata,
    request_fields,
    request_metadata,
    response_fields,
)


def test_a_request_without_a_host_gets_that_of_the_model() -> None:
    fields = request_fields([], "id", "10.0.0.9", b"model:80")
    assert fields[0] == (b"host", b"model:80")
    assert (b"x-forwarded-for", b"10.0.0.9") in fields


@pytest.mark.parametrize("kept", sorted(END_TO_END))
def test_a_connection_header_removes_no_field_that_the_request_stands_on(kept: bytes) -> None:
    given = [(b"host", b"m"), (b"content-length", b"2"), (kept, b"5"), (b"x-own", b"6")]
    given = list(dict(given).items())
    fields = request_fields([*given, (b"connection", b"close, " + kept)], "id", "", b"model:80")
    assert set(given) <= set(fields)
    assert b"x-own" not in dict(request_fields([*given, (b"connection", b"x-own")], "", "", b"m"))


def test_a_chunked_request_is_chunked_again_and_a_sized_one_keeps_its_length() -> None:
    chunked = request_fields([(b"transfer-encoding", b"chunked")], "id", "", b"m")
    sized = request_fields([(b"content-length", b"7")], "id", "", b"m")
    assert chunked.count((b"transfer-encoding", b"chunked")) == 1
    assert (b"content-length", b"7") in sized
    assert b"transfer-encoding" not in dict(sized)


TIMEOUTS = [("60000", 0.0004, "60000"), ("60000", 12.5, "47500"), ("1500.5", 1.0, "500"),
            ("5", 9.0, "1"), ("soon", 9.0, "soon"), ("1e999", 9.0, "1e999")]  # fmt: skip


@pytest.mark.parametrize(("given", "waited_s", "left"), TIMEOUTS)
def test_what_a_request_waited_is_taken_off_its_timeout(
    given: str, waited_s: float, left: str
) -> None:
    name, raw = "x-request-timeout-ms", given.encode()
    fields = request_fields([(name.encode(), raw)], "id", "", b"m", waited_s)
    assert dict(fields)[name.encode()] == left.encode()
    assert dict(request_metadata([(name, given)], "id", "", waited_s))[name] == left


def test_chunked_content_has_no_length_for_the_caller() -> None:
    given = [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"3"), (b"ETag", b'"a"')]
    assert response_fields(given) == [(b"etag", b'"a"')]


def test_grpcs_own_metadata_stays_behind_but_for_the_rich_status() -> None:
    given: list[tuple[str, str | bytes]] = [
        (":authority", "m"), ("grpc-timeout", "1S"), ("user-agent", "grpc-c"), ("x-own", "1"),
        ("grpc-status-details-bin", b"\x08\x08"),
    ]  # fmt: skip
    assert passed_metadata(given) == [
        ("user-agent", "grpc-c"), ("x-own", "1"), ("grpc-status-details-bin", b"\x08\x08")
    ]  # fmt: skip
    fields = dict(request_metadata([*given, ("x-forwarded-for", "1.1.1.1")], "id", "10.0.0.9"))
    assert fields["x-forwarded-for"] == "1.1.1.1, 10.0.0.9"
    assert fields["x-request-id"] == "id"
    assert "user-agent" not in fields
