"""Forms are read as they were written, and hostile ones are refused with the reason, within
limits."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.http.multipart import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_PARTS,
    is_form,
    read_form,
)
from tests.fuzz.work import steps

TYPE = "multipart/form-data; boundary=frontier"
PNG = b"\x89PNG\r\n\x1a\n\0\0--frontier\r\n\r--\n"


def part(name: str = "prompt", data: bytes = b"a red circle", *heads: bytes) -> bytes:
    first = b'Content-Disposition: form-data; name="%b"' % name.encode()
    return b"\r\n".join([b"--frontier", first, *heads, b"", data, b""])


def form(*parts: bytes) -> bytes:
    return b"".join(parts or [part()]) + b"--frontier--\r\n"


def with_head(*heads: bytes) -> bytes:
    return b"\r\n".join([b"--frontier", *heads, b"", b"data", b""]) + b"--frontier--\r\n"


def named(options: bytes) -> bytes:
    return with_head(b"Content-Disposition: " + options)


def fields(raw: bytes, content_type: str = TYPE) -> list[tuple[str, bytes, bool]]:
    return [(each.name, each.data, each.is_file) for each in read_form(raw, content_type)]


# -- what is read ----------------------------------------------------------------------------------
def test_parts_are_read_in_their_order_with_their_bytes() -> None:
    picture = part("image[]", PNG, b"Content-Type: image/png").replace(
        b'"image[]"', b'"image[]"; filename="a.png"'
    )
    assert fields(form(part(), picture, part("prompt", b""))) == [
        ("prompt", b"a red circle", False),
        ("image[]", PNG, True),
        ("prompt", b"", False),
    ]


@pytest.mark.parametrize(
    ("options", "name", "is_file"),
    [
        (b"form-data; name=image", "image", False),
        (b'FORM-DATA; NAME="image"', "image", False),
        (b'form-data ; name="image" ; filename="C:\\a;b.png"', "image", True),
        (rb'form-data; name="a\"b\\c"', 'a"b\\c', False),
        (b"form-data; name=image; filename=", "image", True),
        (b"form-data; name=image; filename*=UTF-8''a%20b.png", "image", True),
        ('form-data; name="zürich"; filename="🦊"'.encode(), "zürich", True),
        (b'form-data; filename="a"; name="image";', "image", True),
    ],
)
def test_names_are_read_in_every_spelling(options: bytes, name: str, is_file: bool) -> None:
    assert fields(named(options)) == [(name, b"data", is_file)]


@pytest.mark.parametrize(
    "raw",
    [
        form(part()) + b"an epilogue --frontier",
        b"\r\n" + form(part()),
        form(part()).removesuffix(b"\r\n"),
        with_head(b'Content-Disposition: form-data; name="prompt"').replace(
            b"data\r\n--", b"a red circle\r\n--"
        ),
        form(part("prompt", b"a red circle", b"Content-Transfer-Encoding: BINARY")),
        form(part("prompt", b"a red circle", b"Content-Type: text/plain; charset=UTF-8")),
        form(part("prompt", b"a red circle", b'Content-Type: text/plain;charset="us-ascii"')),
        form(part("prompt", b"a red circle", b"Content-Type: application/octet-stream")),
        form(part("prompt", b"a red circle", b"Content-Type:", b"Content-Length: 12")),
    ],
)
def test_harmless_differences_change_nothing(raw: bytes) -> None:
    assert fields(raw) == [("prompt", b"a red circle", False)]


def test_white_space_after_a_boundary_is_skipped() -> None:
    first, second = part(), part("n", b"2").replace(b"--frontier", b"--frontier \t")
    assert fields(form(first, second)) == [("prompt", b"a red circle", False), ("n", b"2", False)]


def test_a_form_without_parts_is_empty() -> None:
    assert fields(b"--frontier--") == []


@pytest.mark.parametrize(
    "content_type",
    [
        'Multipart/Form-Data; boundary="frontier"',
        "multipart/form-data;charset=utf-8;Boundary=frontier",
        "multipart/form-data ; boundary=frontier ;",
    ],
)
def test_the_boundary_is_read_in_every_spelling(content_type: str) -> None:
    assert is_form(content_type)
    assert len(read_form(form(), content_type)) == 1


def test_a_boundary_may_have_the_signs_of_rfc_2046() -> None:
    boundary = "gc0p4Jq0M2Yt08j34c0p'()+_,-./:=? x"
    raw = form().replace(b"frontier", boundary.encode())
    assert len(read_form(raw, f'multipart/form-data; boundary="{boundary}"')) == 1


@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8"), min_size=1), st.binary()), max_size=8)
)
def test_what_httpx_writes_is_read(sent: list[tuple[str, bytes]]) -> None:
    files: Any = [(name, ("f", data)) for name, data in sent]
    request = httpx.Request("POST", "http://x", files=files or {"none": b""})
    read = read_form(request.read(), request.headers["content-type"])
    if sent and all(len(name.encode()) < 60 and name.isprintable() for name, _ in sent):
        wrote = [(name.replace('"', "%22"), data) for name, data in sent]
        plain = [(each.name.replace('"', "%22"), each.data) for each in read]
        assert [data for _, data in plain] == [data for _, data in wrote]
        if not any("\\" in name for name, _ in sent):
            assert plain == wrote


# -- what is refused -------------------------------------------------------------------------------
NO_BOUNDARY = "multipart/form-data"
REFUSED: dict[str, tuple[bytes, str, str]] = {
    "no boundary named": (form(), NO_BOUNDARY, "has no boundary"),
    "an empty boundary": (form(), f'{NO_BOUNDARY}; boundary=""', "has no boundary"),
    "a boundary too long": (form(), f"{NO_BOUNDARY}; boundary={'b' * 71}", "1 to 70"),
    "a boundary with a line end": (form(), f'{NO_BOUNDARY}; boundary="a\r\nb"', "1 to 70"),
    "a boundary with signs": (form(), f"{NO_BOUNDARY}; boundary=é", "1 to 70"),
    "two boundaries": (form(), f"{TYPE}; boundary=b", "boundary twice"),
    "another boundary": (form(), f"{NO_BOUNDARY}; boundary=b", "does not have the boundary"),
    "another type": (form(), "multipart/mixed; boundary=frontier", "must be multipart/form-data"),
    "an empty body": (b"", TYPE, "after 0 bytes without its closing boundary"),
    "only the boundary": (b"--frontier", TYPE, "after 10 bytes without"),
    "no closing boundary": (form()[:-14], TYPE, "without its closing boundary"),
    "cut in the data": (form()[:80], TYPE, "without its closing boundary"),
    "cut in the headers": (form()[:30], TYPE, "without its closing boundary"),
    "line feeds alone": (form().replace(b"\r\n", b"\n"), TYPE, "end with LF"),
    "carriage returns alone": (form().replace(b"\r\n", b"\r"), TYPE, "malformed at byte"),
    "a preamble": (b"preamble\r\n" + form(), TYPE, "malformed at byte 0"),
    "no headers": (with_head(), TYPE, "part 0 of the form has no header"),
    "headers without an end": (b"--frontier\r\n" + b"A: b\r\n" * 3, TYPE, "the header a twice"),
    "a header without a colon": (with_head(b"Content-Disposition"), TYPE, "malformed at byte"),
    "a folded header": (with_head(b"A: b", b" c: d"), TYPE, "malformed at byte"),
    "a header twice": (with_head(b"A: b", b"a: c"), TYPE, "header a twice"),
    "a long header": (with_head(b"A: " + b"b" * MAX_HEADER_BYTES), TYPE, "malformed at byte"),
    "a long header name": (with_head(b"A" * 9000 + b": b"), TYPE, "malformed at byte"),
    "many headers": (
        with_head(*[b"A%d: b" % i for i in range(MAX_HEADERS + 1)]),
        TYPE,
        f"at most {MAX_HEADERS} headers",
    ),
    "no name": (named(b"form-data"), TYPE, "part 0 of the form has no header"),
    "an empty name": (named(b'form-data; name=""'), TYPE, "part 0 of the form has no header"),
    "an encoded name": (named(b"form-data; name*=utf-8''a"), TYPE, "has no header"),
    "two names": (named(b"form-data; name=a; name=b"), TYPE, "name twice"),
    "an attachment": (named(b'attachment; name="a"'), TYPE, "has no header"),
    "an open quote": (named(b'form-data; name="a'), TYPE, "header of the form is malformed"),
    "a name not in UTF-8": (named(b'form-data; name="\xff"'), TYPE, "not UTF-8"),
    "another charset": (
        form(part("prompt", b"x", b"Content-Type: text/plain; charset=iso-8859-1")),
        TYPE,
        "prompt has the charset 'iso-8859-1'; send utf-8",
    ),
    "base64": (
        form(part("image", b"aGk=", b"Content-Transfer-Encoding: base64")),
        TYPE,
        "image has the content-transfer-encoding 'base64'",
    ),
    "a form in the form": (
        form(part("image", b"", b"Content-Type: multipart/mixed; boundary=b")),
        TYPE,
        "image is a form inside the form",
    ),
    "a type that is none": (form(part("a", b"", b"Content-Type: ;;")), TYPE, "malformed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_form_is_refused_with_the_reason(case: str) -> None:
    raw, content_type, reason = REFUSED[case]
    with pytest.raises(InvalidRequest) as caught:
        read_form(raw, content_type)
    assert reason in caught.value.message
    assert not isinstance(caught.value, TooLarge)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (form(*[part()] * (MAX_PARTS + 1)), f"more than {MAX_PARTS} parts"),
        (form(*[b"--frontier\r\n"] * 10**5), f"more than {MAX_PARTS} parts"),
        (form(part("image", b"\r\n--frontier" * 10**5)), f"more than {MAX_PARTS} parts"),
        (named(b"form-data; name=" + b"n" * 257), "a name of 257 bytes; at most 256"),
    ],
    ids=["parts", "boundaries", "boundaries in the data", "name"],
)
def test_more_than_the_limits_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(TooLarge, match=reason):
        read_form(raw, TYPE)


def test_as_many_parts_as_the_limit_are_read() -> None:
    assert len(read_form(form(*[part()] * MAX_PARTS), TYPE)) == MAX_PARTS


def test_a_text_that_is_not_utf_8_is_refused_by_name() -> None:
    (found,) = read_form(form(part("prompt", b"Z\xfcrich")), TYPE)
    with pytest.raises(InvalidRequest, match="prompt is not UTF-8") as caught:
        found.text()
    assert caught.value.param == "prompt"


def test_refusals_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(InvalidRequest):
        read_form(b"--frontier\r\n\0: a\r\n\r\n", TYPE)
    assert not caplog.records


# -- any bytes -------------------------------------------------------------------------------------
@settings(max_examples=300)
@given(st.data())
def test_a_form_is_never_read_as_another_one_when_it_is_cut_or_changed(data: st.DataObject) -> None:
    whole = form(part(), part("image", PNG))
    cut = data.draw(st.integers(0, len(whole)))
    raw = (
        whole[:cut] + data.draw(st.binary(max_size=8)) + whole[cut + data.draw(st.integers(0, 8)) :]
    )
    try:
        found = read_form(raw, TYPE)
    except InvalidRequest:
        return
    assert sum(len(each.data) for each in found) <= len(raw)
    assert all(each.data in raw for each in found)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: form(part("image", b"\r\n-" * n)),
        lambda n: form(part("image", b"\r\n--frontie" * n)),
        lambda n: form(part("image", PNG * n)),
        lambda n: named(b"form-data; name=" + b'"' + rb"\"" * n),
        lambda n: named(b"form-data" + b"; a=b" * n),
        lambda n: with_head(b"A: " + b" " * n),
        lambda n: b"--frontier\r\n" + b"a" * n,
        lambda n: b"\r\n" * n,
        lambda n: b"--frontier\r\n" * n,
    ],
)
def test_the_work_of_a_hostile_form_is_linear(make: Any) -> None:
    small, large = (steps(lambda n=n: read_form(make(n), TYPE)) for n in (300, 1200))
    assert large <= 6 * small + 200, (small, large)
