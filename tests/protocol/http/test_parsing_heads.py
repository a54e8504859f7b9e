"""Request heads: accepted ones have one meaning, all others are refused with a reason."""

from __future__ import annotations

from functools import partial

import pytest

from predictors.protocol.http.parsing import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    BadHead,
    Head,
    HeadParser,
    parse_head,
)
from tests.cpu_time import assert_linear

X = b"Host: x\r\n"


def head(line: bytes = b"GET / HTTP/1.1", fields: bytes = X) -> Head:
    return parse_head(line + b"\r\n" + fields + b"\r\n")


def test_a_head_is_parsed() -> None:
    found = head(
        b"POST /a%20b?c=d?e HTTP/1.1", b"Host:x:80 \r\nA: \t b, c\t \r\nContent-Length: 07\r\n"
    )
    assert found == Head(
        "POST",
        b"/a%20b",
        b"c=d?e",
        "1.1",
        [(b"host", b"x:80"), (b"a", b"b, c"), (b"content-length", b"07")],
        content_length=7,
        is_chunked=False,
        keeps_alive=True,
        expects_continue=False,
    )


@pytest.mark.parametrize(
    "line",
    [
        b"GET /", b"GET / HTTP/0.9", b"GET / HTTP/2.0", b"GET / HTTP/3", b"GET / HTTP/1.2",
        b"GET / HTTP/1.10", b"GET / HTTP/1", b"GET / http/1.1", b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1", b" GET / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET\t/ HTTP/1.1",
        b"GET /a b HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET /\xe9 HTTP/1.1", b"GET /\x00 HTTP/1.1",
        b"G(T / HTTP/1.1", b"/ HTTP/1.1", b"", b"GET / HTTP/1.1\r", b"PRI * HTTP/2.0",
        b"GET /a#b HTTP/1.1", b"GET http://x/# HTTP/1.1",
    ],
)  # fmt: skip
def test_an_invalid_request_line_is_refused(line: bytes) -> None:
    with pytest.raises(BadHead, match=r"not an HTTP/1\.1 request") as caught:
        head(line)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "fields",
    [
        b"a\r\n", b": b\r\n", b"a : b\r\n", b" a: b\r\n", b"a: b\r\n c\r\n", b"a: b\r\n\tc\r\n",
        b"a: \x00\r\n", b"a: b\rc\r\n", b"a: b\nc: d\r\n", b"a: b\n", b"a(: b\r\n", b"\xe9: b\r\n",
        b"a: \x7f\r\n", b"a: b\x0b\r\n", b"a\tb: c\r\n", b"a: b\r\r\n", b"\tHost: y\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_an_invalid_header_line_is_refused(fields: bytes, first: bool) -> None:
    with pytest.raises(BadHead, match=r"not an HTTP/1\.1 request"):
        head(fields=fields + X if first else X + fields)


@pytest.mark.parametrize(
    "fields",
    [
        b"", X + X, X + b"host: y\r\n", b"Host: a, b\r\n", b"Host:\r\n", b"Host: a b\r\n",
        b"Host: u@x\r\n", b"Host: u:p@x\r\n", b"Host: x/y\r\n", b"Host: http://x\r\n",
        b"Host: x:port\r\n", b"Host: x:123456\r\n", b"Host: x:1:2\r\n", b"Host: [::1\r\n",
        b"Host: ::1\r\n", b"Host: [x]\r\n", b"Host: \xe9\r\n", b"Host: x%0\r\n", b"Host: x?y\r\n",
        b"Host: x#y\r\n", b"Host: x\\y\r\n", b'Host: "x"\r\n', b"Host: <x>\r\n",
    ],
)  # fmt: skip
def test_a_missing_repeated_or_invalid_host_is_refused(fields: bytes) -> None:
    with pytest.raises(BadHead, match=r"Host") as caught:
        head(fields=fields)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "host",
    [
        "x",
        "x:80",
        "x:",
        "a.b-c_d",
        "127.0.0.1:8080",
        "[::1]",
        "[::1]:80",
        "[fe80::1%25eth0]",
        "a%20b",
    ],
)
def test_valid_hosts_are_accepted(host: str) -> None:
    assert head(fields=b"hOST:\t" + host.encode() + b" \r\n").headers == [(b"host", host.encode())]


def test_http_1_0_needs_no_host_and_is_never_kept_alive() -> None:
    found = head(b"GET / HTTP/1.0", b"Connection: keep-alive\r\n")
    assert (found.version, found.keeps_alive) == ("1.0", False)
    with pytest.raises(BadHead, match="Host"):
        head(b"GET / HTTP/1.0", X + X)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://x/a?b", b"/a"), (b"HTTP://X/a?b", b"/a"), (b"https://x?b", b"/"),
        (b"http://x", b"/"), (b"*", b"*"), (b"//x/a", b"//x/a"), (b"/?b", b"/"),
    ],
)  # fmt: skip
def test_a_target_may_be_a_path_an_absolute_url_or_an_asterisk(target: bytes, path: bytes) -> None:
    found = head(b"GET " + target + b" HTTP/1.1")
    assert found.path == path
    assert found.query == (b"b" if b"?" in target else b"")
    assert found.headers == [(b"host", b"x")]


@pytest.mark.parametrize(
    "target", [b"http://y/", b"http://x:80/", b"http://u@x/", b"http:///", b"ftp://x/", b"x",
               b"x:80", b"?a", b"**", b"http://[::1/"],
)  # fmt: skip
def test_other_targets_are_refused(target: bytes) -> None:
    with pytest.raises(BadHead, match="target") as caught:
        head(b"GET " + target + b" HTTP/1.1")
    assert caught.value.status == 400


def test_the_targets_host_replaces_a_missing_host_header() -> None:
    assert head(b"GET http://y:1/ HTTP/1.0", b"").headers == [(b"host", b"y:1")]


@pytest.mark.parametrize("line", [b"CONNECT x:443 HTTP/1.1", b"CONNECT /x HTTP/1.1"])
def test_connect_is_refused(line: bytes) -> None:
    with pytest.raises(BadHead, match="no proxy") as caught:
        head(line)
    assert caught.value.status == 501


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: +1\r\n", b"Content-Length: -1\r\n", b"Content-Length: 1, 1\r\n",
        b"Content-Length: 0x1\r\n", b"Content-Length: 1 1\r\n", b"Content-Length:\r\n",
        b"Content-Length: 1.0\r\n", b"Content-Length: 1_0\r\n", b"Content-Length: \xb2\r\n",
        b"Content-Length: " + b"1" * 19 + b"\r\n", b"Content-Length: 1\r\nContent-Length: 1\r\n",
        b"Content-Length: 1\r\ncontent-length: 2\r\n",
        b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding: chunked;a=b\r\n", b"Transfer-Encoding:\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        b'Transfer-Encoding: "chunked"\r\n', b"Transfer-Encoding : chunked\r\n",
    ],
)  # fmt: skip
def test_ambiguous_body_framing_is_refused(fields: bytes) -> None:
    with pytest.raises(BadHead) as caught:
        head(b"POST / HTTP/1.1", X + fields)
    assert caught.value.status == 400


def test_http_1_0_with_transfer_encoding_is_refused() -> None:
    assert head(fields=X + b"transfer-encoding:\tCHUNKED \r\n").is_chunked
    with pytest.raises(BadHead, match=r"HTTP/1\.0"):
        head(b"POST / HTTP/1.0", X + b"Transfer-Encoding: chunked\r\n")


@pytest.mark.parametrize(
    "fields", [b"Connection: close\r\n", b"Connection: a\r\nConnection: b,Close\r\n"]
)
def test_connection_close_ends_keep_alive(fields: bytes) -> None:
    assert not head(fields=X + fields).keeps_alive


def test_only_100_continue_is_a_valid_expectation() -> None:
    assert head(fields=X + b"Expect: 100-Continue\r\n").expects_continue
    assert not head(b"GET / HTTP/1.0", b"Expect: 100-continue\r\n").expects_continue
    for value in (b"tea", b"100-continue, tea", b"100-continue\r\nExpect: tea"):
        with pytest.raises(BadHead, match="expectation") as caught:
            head(fields=X + b"Expect: " + value + b"\r\n")
        assert caught.value.status == 417


def test_the_number_of_header_lines_is_limited() -> None:
    assert len(head(fields=X + b"a:\r\n" * (MAX_HEADERS - 1)).headers) == MAX_HEADERS
    with pytest.raises(BadHead, match="256 header lines") as caught:
        head(fields=X + b"a:\r\n" * MAX_HEADERS)
    assert caught.value.status == 431


def test_the_size_of_a_head_is_limited() -> None:
    begin, end = b"GET / HTTP/1.1\r\nHost: x\r\na: ", b"\r\n\r\n"
    fits = begin + b"b" * (MAX_HEAD_BYTES - len(begin) - len(end)) + end
    found = HeadParser().next_head(bytearray(fits))
    assert found is not None
    for raw in (fits.replace(b"b\r", b"bb\r"), fits[:-4] + b"bbbbb"):
        with pytest.raises(BadHead, match="65536") as caught:
            HeadParser().next_head(bytearray(raw))
        assert caught.value.status == 431


@pytest.mark.parametrize(
    "unit",
    [b"a:\r\n", b"a: \t \t\r\n", b"a", b" ", b"a:b", b"\t", b"a: b,c;d\r\n", b"!", b"a:\r\n\r"],
)
def test_parsing_time_is_linear_in_the_head(unit: bytes) -> None:
    def refusing(raw: bytes) -> None:
        with pytest.raises(BadHead):
            parse_head(raw)

    begin, end = b"GET / HTTP/1.1\r\nHost: x\r\n", b"\0\r\n\r\n"
    assert_linear(lambda n: partial(refusing, begin + unit * n + end), 100_000 // len(unit))


def test_a_head_in_single_bytes_is_searched_once() -> None:
    class Counting(bytearray):
        searched = 0

        def find(self, what: bytes, begin: int = 0, end: int = 2**62) -> int:  # type: ignore[override]
            Counting.searched += min(len(self), end) - begin
            return super().find(what, begin, end)

    raw = b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100 + b"\r\n"
    unread, reader, found = Counting(), HeadParser(), None
    for i in range(len(raw)):
        unread += raw[i : i + 1]
        found = reader.next_head(unread)
        assert (found is None) == (i < len(raw) - 1)
    assert Counting.searched < 8 * len(raw) + 110 * 20_100  # plus the first line once per line end
