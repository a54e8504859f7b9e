"""Inflating of request bodies: every coding and stack of them, bounded work, hostile data."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import InvalidRequest, TooLarge, UnsupportedMedia
from predictors.protocol.bytes_in_flight import BytesInFlight, Charge
from predictors.protocol.http.inflating import (
    ACCEPTED,
    CHUNK_BYTES,
    MAX_CODINGS,
    MAX_MEMBERS,
    PIECE_BYTES,
    PIECES,
    Inflation,
    codings_of,
)
from predictors.workers.messages import SharedMemory

LIMIT = 2**21
TEXT = b'{"model": "flux"}'
EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"  # stored, not the last one, no data


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACK: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate as zlib": ("deflate", zlib.compress),
    "deflate as bare data": ("deflate", raw_deflate),
}


def inflate(raw: bytes, *codings: str, limit: int = LIMIT) -> bytes:
    inflation = Inflation(raw, codings, limit)
    while not inflation.is_done:
        inflation.advance()
    found = inflation.body(limit)
    assert isinstance(found, bytes)
    return found


def sizes_of(inflation: Inflation) -> list[int]:
    """The bytes that each call made, to the end."""
    found = []
    while not inflation.is_done:
        before = inflation.size
        inflation.advance()
        found.append(inflation.size - before)
        assert found[-1] <= PIECES * PIECE_BYTES
    return found


@pytest.mark.parametrize(
    ("header", "codings"),
    [
        ("", ()),
        ("identity", ()),
        ("gzip", ("gzip",)),
        ("GZip ", ("gzip",)),
        ("x-gzip", ("gzip",)),
        ("deflate", ("deflate",)),
        ("gzip, identity", ("gzip",)),
        (", gzip ,", ("gzip",)),
        ("deflate,gzip", ("deflate", "gzip")),
    ],
)
def test_the_codings_of_a_header_are_in_the_order_of_their_application(
    header: str, codings: tuple[str, ...]
) -> None:
    assert codings_of(header) == codings


@pytest.mark.parametrize(
    "header",
    ["br", "zstd", "compress", "x-compress", "gzip, br", "gzip;q=1", "*", "aes128gcm", "gzip gzip",
     "gzip," * MAX_CODINGS + "gzip", "gzip," * 10_000, "é", "x-"],
)  # fmt: skip
def test_a_coding_that_is_not_offered_is_refused_with_those_that_are(header: str) -> None:
    if header == "x-":
        assert codings_of(header) == ()
        return
    with pytest.raises(UnsupportedMedia) as caught:
        codings_of(header)
    assert caught.value.accept_encoding == ACCEPTED
    assert len(caught.value.message) < 200


@given(
    st.binary(max_size=200).map(lambda data: data * 700),
    st.lists(st.sampled_from(list(PACK)), min_size=1, max_size=MAX_CODINGS),
)
def test_a_body_comes_back_whatever_it_was_packed_with(data: bytes, names: list[str]) -> None:
    raw = data
    for name in names:
        raw = PACK[name][1](raw)
    assert inflate(raw, *(PACK[name][0] for name in names)) == data


@given(st.integers(0, 80), st.sampled_from(list(PACK)))
def test_a_body_that_ends_early_is_refused(cut: int, name: str) -> None:
    coding, pack = PACK[name]
    raw = pack(TEXT)
    with pytest.raises(InvalidRequest, match=r"end too early|not valid"):
        inflate(raw[: min(cut, len(raw) - 1)], coding)


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("more", [b"\x00", b"x", b"{}", b"\x00" * 20_000, TEXT * 2000])
def test_data_behind_the_end_are_refused(name: str, more: bytes) -> None:
    coding, pack = PACK[name]
    with pytest.raises(InvalidRequest, match=r"not valid gzip|goes on behind|end too early"):
        inflate(pack(TEXT) + more, coding)


@pytest.mark.parametrize(
    ("raw", "coding"),
    [
        (TEXT, "gzip"),
        (TEXT, "deflate"),
        (zlib.compress(TEXT), "gzip"),
        (gzip.compress(TEXT, mtime=0), "deflate"),
        (gzip.compress(TEXT, mtime=0)[:-8] + b"\x00" * 8, "gzip"),  # a wrong checksum
        (zlib.compress(TEXT)[:-4] + b"\x00" * 4, "deflate"),
        (b"\x78\xbb" + b"\x00" * 8, "deflate"),  # needs a dictionary
        (b"\x00" * 100, "deflate"),
        (b"\xff" * 100, "gzip"),
    ],
)
def test_other_data_are_refused_without_the_librarys_words(raw: bytes, coding: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        inflate(raw, coding)
    assert type(caught.value) is InvalidRequest
    assert "Error" not in caught.value.message


def test_the_members_of_a_gzip_body_are_joined() -> None:
    assert inflate(gzip.compress(b"[1,") + gzip.compress(b"") + gzip.compress(b"2]"), "gzip") == (
        b"[1,2]"
    )
    assert inflate(gzip.compress(b"") * MAX_MEMBERS, "gzip") == b""
    with pytest.raises(InvalidRequest, match="more than 4096 gzip members"):
        inflate(gzip.compress(b"") * (MAX_MEMBERS + 1), "gzip")


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("times", [1, 2])
def test_a_bomb_is_stopped_at_the_limit(name: str, times: int) -> None:
    coding, pack = PACK[name]
    raw = bytes(16 * LIMIT)
    for _ in range(times):
        raw = pack(raw)
    inflation = Inflation(raw, (coding,) * times, LIMIT)
    with pytest.raises(TooLarge, match=f"larger than the limit of {LIMIT} bytes"):
        sizes_of(inflation)
    assert inflation.size <= LIMIT + PIECE_BYTES


def test_data_that_inflate_to_nothing_are_read_in_bounded_parts() -> None:
    raw = EMPTY_BLOCK * 400_000
    inflation = Inflation(raw + raw_deflate(b""), ("deflate",), LIMIT)
    sizes = sizes_of(inflation)
    assert len(sizes) >= len(raw) // (PIECES * CHUNK_BYTES)
    assert set(sizes) == {0}


def test_a_large_body_ends_in_shared_memory() -> None:
    data = bytes(range(256)) * 8192
    memory = SharedMemory.empty()
    memory.append(gzip.compress(data, 1))
    inflation = Inflation(memory, ("gzip",), LIMIT)
    while not inflation.is_done:
        inflation.advance()
    found = inflation.body(2**20)
    assert isinstance(found, SharedMemory)
    assert found.read() == data
    small = Inflation(gzip.compress(data), ("gzip",), LIMIT)
    while not small.is_done:
        small.advance()
    assert isinstance(small.body(64 * 1024), SharedMemory)


@given(st.lists(st.integers(0, 200_000), max_size=6), st.integers(0, 2**20))
def test_bytes_given_back_are_charged_no_more(sizes: list[int], spare: int) -> None:
    total = BytesInFlight(2**30, lambda used: None)
    charge, plain = Charge(total), Charge(BytesInFlight(2**30, lambda used: None))
    charge.add(spare)
    for size in sizes:
        charge.add(size)
        plain.add(size)
    charge.remove(spare)
    assert charge.num_bytes == plain.num_bytes == total.used
    charge.close()
    assert total.used == 0
