"""Data URLs and base64 as people write them, on every wire; what is neither is refused by name."""

from __future__ import annotations

import base64
import binascii
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import InvalidRequest
from predictors.protocol.images.urls import read_base64, read_data_url
from tests.http.echo import png

# both alphabets differ in it, its base64 ends with padding, and it is long enough for a line break
FILE = png((251, 255, 254), (32, 32)) + bytes(range(256))[::-1] + b"\xfb\xff\xbf\xfe\xfd"
STANDARD = base64.b64encode(FILE).decode()
URL_SAFE = base64.urlsafe_b64encode(FILE).decode()

HEADS = [
    "data:image/png;base64,",
    "data:image/jpeg;base64,",
    "data:image;base64,",
    "data:image/*;base64,",
    "data:*/*;base64,",
    "data:;base64,",
    "data:base64,",
    "data:application/octet-stream;base64,",
    "data:binary/octet-stream;base64,",
    "data:text/plain;base64,",
    "data:image/svg+xml;base64,",
    "data:image/png; base64,",
    "data: image/png ; base64 ,",
    "data:image/png;charset=utf-8;base64,",
    "data:image/png;base64;charset=utf-8,",
    "data:image/png;name=a.png;base64,",
    'data:image/png;name="a, b;.png";base64,',
    "data:image/png;name=" + "x" * 900 + ";base64,",
    "data:image/png;name=%C3%BC.png;base64,",
    "DATA:IMAGE/PNG;BASE64,",
    "  data:image/png;base64,",
    "\ndata:image/png;base64,",
    "data%3Aimage%2Fpng%3Bbase64%2C",
    "data%3aimage/png;base64%2c",
    "data:image/png,",
]
BODIES = {
    "standard": STANDARD,
    "url-safe": URL_SAFE,
    "without padding": STANDARD.rstrip("="),
    "url-safe without padding": URL_SAFE.rstrip("="),
    "with too much padding": STANDARD + "==",
    "percent-encoded": quote(STANDARD, safe=""),
    "percent-encoded in small letters": quote(STANDARD, safe="").replace("%2B", "%2b"),
    "in lines": base64.encodebytes(FILE).decode(),
    "in lines with carriage returns": base64.encodebytes(FILE).decode().replace("\n", "\r\n"),
    "in percent-encoded lines": quote(base64.encodebytes(FILE).decode()),
    "with white space around": f" \t{STANDARD}\r\n ",
}


def as_chat(text: str) -> bytes:
    return read_data_url(text, param="messages[0].content[1].image_url")


def as_v2(text: str) -> bytes:
    return read_base64(text.encode(), param="image", row=3)


def test_the_file_tells_all_forms_apart() -> None:
    assert len({*BODIES.values()}) == len(BODIES)
    assert {"+", "/", "="} <= {*STANDARD}
    assert {"-", "_"} <= {*URL_SAFE}


@pytest.mark.parametrize("read", [as_chat, as_v2])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_read(head: str, read: Callable[[str], bytes]) -> None:
    for body in BODIES.values():
        assert read(head + body) == FILE


@pytest.mark.parametrize("read", [as_chat, as_v2])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_base64_of_a_picture_needs_no_head(body: str, read: Callable[[str], bytes]) -> None:
    assert read(body) == FILE


@pytest.mark.parametrize("read", [as_chat, as_v2])
def test_a_picture_may_be_percent_encoded_without_base64(read: Callable[[str], bytes]) -> None:
    assert read("data:image/png," + quote(FILE, safe="")) == FILE
    drawing = "<svg xmlns='http://www.w3.org/2000/svg'/>"
    assert read("data:image/svg+xml;utf8," + quote(drawing)) == drawing.encode()
    assert read("data:image/svg+xml," + drawing) == drawing.encode()


def test_a_file_in_v2_may_be_of_any_kind() -> None:
    for file in (b"hello", b"\xfb\xff", b"x", b""):
        assert as_v2(base64.b64encode(file).decode()) == file
        assert as_v2(base64.urlsafe_b64encode(file).decode().rstrip("=")) == file


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1/a.png", "is a web address, and this server fetches none; send the"),
        (" https://example.com/a.png", "is a web address, and this server fetches none"),
        ("HTTPS://allowed@evil.example/", "fetches none"),
        ("http://[::ffff:169.254.169.254]/", "fetches none"),
        ("file:///etc/passwd", "not a data URL"),
        ("/proc/self/environ", "not a data URL"),
        ("/9j/photos/a", "not a data URL"),
        ("C:\\photos\\a.png", "not a data URL"),
        ("ftp://example.com/a.png", "not a data URL"),
        ("blob:https://example.com/0", "not a data URL"),
        ("gopher://x", "not a data URL"),
        ("javascript:alert(1)", "not a data URL"),
        ("", "not a data URL"),
        ("aGVsbG8=", "not a data URL"),
        (base64.b64encode(b"%PDF-1.7\n").decode(), "not a data URL"),
        (STANDARD[:400] + "!" + STANDARD[400:], "is base64 that is damaged"),
        ("data:image/png;base64", "malformed data URL"),
        ("data:", "malformed data URL"),
        ("data:image/png;name=" + "x" * 2000 + ";base64,AAAA", "malformed data URL"),
        ("data:image/png,aGVsbG8=", "without ';base64'"),
        ("data:,hello", "without ';base64'"),
        ("data:image/png," + "%41" * (2**20 + 1), "more than 1048576 percent escapes"),
        ("data:text/html;base64,aGVsbG8=", "a data URL of text/html"),
        ("data:application/pdf;base64,aGVsbG8=", "a data URL of application/pdf"),
        ("data:video/mp4;base64,AAAA", "a data URL of video/mp4"),
        ("data:image/png;base64,aGVs,bG8=", "base64 is damaged"),
        ("data:image/png;base64,aGVsb", "base64 is damaged"),
        ("data:image/png;base64,aG=VsbG8", "base64 is damaged"),
        ("data:image/png;base64,%", "base64 is damaged"),
        ("data:image/png;base64,Zürich", "base64 is damaged"),
        ("data:image/png;base64,\ud800", "base64 is damaged"),
        ("data:image/png;base64," * 1000, "base64 is damaged"),
    ],
)
def test_other_urls_are_refused_and_never_fetched(url: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        read_data_url(url, param="messages[0]")
    assert caught.value.param == "messages[0]"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello!", "row 3: image is not base64"),
        ("A", "row 3: image is not base64"),
        ("QUJD==QUJD==", "row 3: image is not base64"),
        ("http://a/b", "row 3: image is not base64 but a web address, and this server fetches"),
        ("file:///etc/passwd", "row 3: image is not base64"),
        ("data:image/png;base64,!", "row 3: image is a data URL whose base64 is damaged"),
    ],
)
def test_other_text_in_v2_is_refused_by_row(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        as_v2(text)
    assert caught.value.message.startswith(words)
    assert (caught.value.param, caught.value.row) == ("image", 3)


@given(st.text(st.sampled_from("data:;,%2CbBase64/+-_= \n\"'x\u00fc"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (as_chat, as_v2):
        with suppress(InvalidRequest):
            assert isinstance(read(text), bytes)


CODED = st.binary(max_size=40).map(base64.b64encode) | st.text("ABCdz+/=\n-_", max_size=40).map(
    str.encode
)


@given(CODED)
def test_base64_is_read_as_the_standard_library_reads_it(coded: bytes) -> None:
    signs = coded.translate(bytes.maketrans(b"-_", b"+/"), b"\n").rstrip(b"=")
    try:
        expected = base64.b64decode(signs + b"=" * (-len(signs) % 4), validate=True)
    except binascii.Error:
        with pytest.raises(InvalidRequest):
            as_v2(coded.decode())
    else:
        assert as_v2(coded.decode()) == expected


@pytest.mark.parametrize(
    "of_length",
    [
        lambda n: "data:image/png;base64," + "A" * n,
        lambda n: "data:image/png;base64," + "%2B" * (n // 3),
        lambda n: "data:image/png;base64," + "\n" * n,
        lambda n: "data:image/png;base64," + "=" * n,
        lambda n: "data:" + ";" * n,
        lambda n: 'data:"' * n,
        lambda n: " " * n,
        lambda n: "data%3a" + "%2" * n,
    ],
)
def test_reading_takes_memory_linear_in_the_text(of_length: Callable[[int], str]) -> None:
    peaks = []
    for size in (2**20, 2**21):
        text = of_length(size)
        tracemalloc.start()
        with suppress(InvalidRequest):
            as_v2(text)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.2 * peaks[0] + 10_000
    assert peaks[1] < 8 * len(text)
