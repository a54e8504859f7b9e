"""The differential fuzzer of HTTP: readers agree on a sample, and a fault of ours is found."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from predictors.protocol.http import parsing
from tests.fuzz import http_campaign
from tests.fuzz.http_agreement import disagreements
from tests.fuzz.http_readers import Nginx, nginx, read_h11, read_ours

X = b" HTTP/1.1\r\nHost: x\r\n"
POST, CODED = b"POST /a" + X, b"Transfer-Encoding: chunked\r\n"
needs_nginx = pytest.mark.skipif(not http_campaign.has_nginx(), reason="nginx is not installed")


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Nginx]:
    async with nginx(tmp_path) as running:
        yield running


@needs_nginx
def test_a_sample_is_read_alike_by_h11_and_nginx() -> None:
    found, counts = asyncio.run(http_campaign.run(7, 300))
    assert [finding.report() for finding in found] == []
    assert counts["messages"] > 120
    assert counts["refused"] > 120


@needs_nginx
async def test_nginx_sends_on_what_is_compared(proxy: Nginx) -> None:
    """Two messages in one connection, a refused one and an unfinished one."""
    first = POST + CODED + b"\r\n2\r\nab\r\n0\r\n\r\n"
    for is_buffered in (True, False):
        reading = await proxy.read(first + b"GET /b" + X + b"\r\n", is_buffered=is_buffered)
        assert [(one.body, one.is_complete) for one in reading.forwarded] == [
            (b"ab", True),
            (b"", True),
        ]
        assert [read_ours([one.raw]).messages[0].target for one in reading.forwarded] == [
            b"/a",
            b"/b",
        ]
        assert reading.statuses == [200, 200]
        refused = await proxy.read(POST + b"Content-Length: a\r\n\r\n", is_buffered=is_buffered)
        assert (refused.forwarded, refused.statuses) == ([], [400])
        cut = await proxy.read(POST + b"Content-Length: 9\r\n\r\nab", is_buffered=is_buffered)
        assert [one for one in cut.forwarded if one.is_complete] == []


def test_h11_reads_what_is_compared() -> None:
    reading = read_h11(POST + CODED + b"\r\n2\r\nab\r\n0\r\n\r\nGET /b" + X + b"\r\n")
    assert [(m.target, m.body) for m in reading.messages] == [(b"/a", b"ab"), (b"/b", b"")]
    assert read_h11(POST + b"Content-Length: a\r\n\r\n").end == "refused"
    assert read_h11(POST + b"Content-Length: 9\r\n\r\nab").end == "incomplete"
    assert read_h11(b"GET /" + X + b"Connection: close\r\n\r\nGET /").end == "closed"


_read_length, _read_fields = parsing._read_length, parsing._read_fields


def octal(value: bytes | None) -> int:
    if value and value.startswith(b"0") and set(value) <= set(b"01234567"):
        return int(value, 8)
    return _read_length(value)


def hyphens(lines: list[bytes]) -> Any:
    """Header names with underscores, as CGI writes them."""
    return _read_fields([re.sub(rb"^[^:]+", lambda m: m[0].replace(b"_", b"-"), x) for x in lines])


def short(self: parsing.SizedBody, left: int) -> None:
    self.left = max(0, left - 1)


FAULTS: dict[str, tuple[object, str, Callable[..., Any]]] = {
    "octal lengths": (parsing, "_read_length", octal),
    "underscores as hyphens": (parsing, "_read_fields", hyphens),
    "a body one byte short": (parsing.SizedBody, "__init__", short),
    "a connection that is never closed": (parsing, "_names_close", lambda connection: False),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_of_the_parser_is_found_by_the_campaign(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name, wrong = FAULTS[fault]
    monkeypatch.setattr(where, name, wrong)
    # h11 alone is quick; nginx sees the same
    found, _ = asyncio.run(http_campaign.run(1, 2000, with_nginx=False, most=1))
    assert found
    assert found[0].kind == "disagreement"
    assert len(found[0].raw) <= len(http_campaign.stream_of(1, found[0].case))


@needs_nginx
async def test_what_nginx_sends_on_must_be_one_message_to_us(
    proxy: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = POST + b"Content-Length: 3\r\n\r\nabc"
    assert await disagreements(proxy, raw) == []
    monkeypatch.setattr(parsing.SizedBody, "__init__", short)
    found = await disagreements(proxy, raw)
    assert any(text.startswith("nginx sends on") for text in found), found
    assert any("nginx reads" in text or "nginx" in text for text in found)
