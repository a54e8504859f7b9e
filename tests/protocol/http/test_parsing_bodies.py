"""The chunked coding: decoded alike for any split of the input, as by h11, or refused."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.protocol.http.parsing import (
    CHUNKS_PER_CALL,
    FREE_OVERHEAD_BYTES,
    MAX_LINE_BYTES,
    BadChunk,
    ChunkedBody,
)
from tests.protocol.http.doubles import split


def decode_parts(parts: list[bytes]) -> tuple[bytes, bytes] | None:
    """The body and the bytes after it; None while the body is incomplete."""
    coded, unread, body = ChunkedBody(), bytearray(), b""
    for part in parts:
        unread += part
        more = True
        while more and not coded.is_complete:
            found, more = coded.decode(unread)
            body += found
    return (body, bytes(unread)) if coded.is_complete else None


def by_h11(raw: bytes) -> tuple[bytes, bytes] | None:
    wire = h11.Connection(h11.SERVER)
    wire.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + raw)
    assert isinstance(wire.next_event(), h11.Request)
    body = b""
    while isinstance(event := wire.next_event(), h11.Data):
        body += bytes(event.data)
    return (body, wire.trailing_data[0]) if isinstance(event, h11.EndOfMessage) else None


GOOD = (
    b"5\r\nhello\r\n" b"00B;name;x=y; q=\"a;\\\"b\"\r\n\r\n0\r\n\r\n1234\r\n"
    b"0\r\nTrailer: x\r\nUpgrade: h2c\r\n\r\nGET"
)  # fmt: skip


def test_a_chunked_body_is_decoded_alike_in_any_pieces() -> None:
    expected = (b"hello\r\n0\r\n\r\n1234", b"GET")
    assert by_h11(GOOD) == expected
    assert decode_parts(split(GOOD, *range(len(GOOD)))) == expected
    for cut in range(len(GOOD)):
        assert decode_parts(split(GOOD, cut)) == expected, cut
        assert decode_parts([GOOD[: min(cut, len(GOOD) - 3)]]) in (None, (expected[0], b""))


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n", b"g\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r\n", b"1\n",
        b"1\r\r\n", b"1 ;a\r\n", b"1;\r\n", b"1;a b\r\n", b'1;a="\r\n', b"1;a=\x00\r\n",
        b"1;a\x00\r\n", b"1;a\n\r\n", b"1" * 17 + b"\r\n", b"1\r\nxx", b"1\r\nx\n", b"1\r\nx\rx",
        b"1\r\nx1\r\n", b"_\r\n",
        b"1_0\r\n", b"1\r\nx\r\n\r\n", b"0\r\nx\r\n", b"0\r\n: y\r\n", b"0\r\nx : y\r\n",
        b"0\r\n x: y\r\n",
        b"0\r\nx: y\n", b"0\r\n\n", b"0\r\nx: y\r\n z\r\n", b"0\r\nx: \x00\r\n", b"0\r\n\rx",
    ],
)  # fmt: skip
def test_malformed_chunks_are_refused_in_any_pieces(raw: bytes) -> None:
    for parts in (
        [raw],
        *(split(raw, cut) for cut in range(len(raw))),
        split(raw, *range(len(raw))),
    ):
        with pytest.raises(BadChunk):
            decode_parts(parts)


@pytest.mark.parametrize(
    "raw",
    [
        b"1;a=" + b"b" * MAX_LINE_BYTES, b"1;a=" + b"b" * MAX_LINE_BYTES + b"\r\n",
        b"0\r\na: " + b"b" * MAX_LINE_BYTES, b"0\r\n" + b"a: b\r\n" * 1400,
        b"1\r\nx\r\n" * (FREE_OVERHEAD_BYTES // 3), b"1;a=b\r\nx\r\n" * (FREE_OVERHEAD_BYTES // 6),
    ],
)  # fmt: skip
def test_the_overhead_of_chunk_framing_is_bounded(raw: bytes) -> None:
    with pytest.raises(BadChunk):
        decode_parts([raw])


def test_one_call_decodes_a_bounded_number_of_chunks() -> None:
    unread = bytearray(b"1\r\nx\r\n" * (2 * CHUNKS_PER_CALL) + b"0\r\n\r\n")
    coded = ChunkedBody()
    sizes = [len(coded.decode(unread)[0]) for _ in range(3)]
    assert sizes == [CHUNKS_PER_CALL - 1, CHUNKS_PER_CALL, 1]
    assert coded.is_complete


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.sampled_from([b"", b";a", b";a=b"]))),
    st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from(b"\r\n 0;a\x00"), st.booleans()), max_size=2
    ),
    st.lists(st.integers(0, 400)),
)  # fmt: skip
def test_decoded_bodies_equal_those_of_h11(
    chunks: list[tuple[bytes, bytes]], edits: list[tuple[int, int, bool]], cuts: list[int]
) -> None:
    raw = b"".join(b"%x%b\r\n%b\r\n" % (len(body), ext, body) for body, ext in chunks)
    raw += b"0\r\n\r\n"
    for at, what, replaces in edits:
        at %= len(raw)
        raw = raw[:at] + bytes([what]) + raw[at + replaces :]
    try:
        ours = decode_parts(split(raw, *(cut for cut in cuts if cut < len(raw))))
    except BadChunk:
        assert edits
    else:
        assert ours == by_h11(raw)
