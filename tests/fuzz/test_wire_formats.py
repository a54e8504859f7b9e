"""Hypothesis over the wire formats: structures that are nearly right, in JSON, with raw tensors, as
protobuf, in OpenAI bodies, data URLs and compressed bodies. Every one is read with its meaning, or
refused with a documented error.

`make fuzz` runs it with more examples (`FUZZ_EXAMPLES`), and counts them (`FUZZ_COUNTS`).
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.serving.hostile_cases import field, varint
from predictors.protocol.anthropic import messages_body
from predictors.protocol.openai import (
    chat_body,
    completions_body,
    edits_body,
    images_body,
    responses_body,
    tokens_body,
)
from predictors.protocol.v2.tensors import FORMATS, int_range
from tests.fuzz.seeds import form, picture
from tests.fuzz.targets import SPLIT, TARGETS

MANY = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
)
COUNTS: Counter[str] = Counter()
NAMES = ["prompt", "image", "seed", "x", "", "a" * 70, "é", "\ud800", "\0", "prompt "]
DATATYPES = [*sorted(FORMATS), "BYTES", "BYTES"]
UNKNOWN = ["FP8", "bytes", "BF16", "", "STRING"]
EDGES = [0, 1, -1, 2**15, 2**16, 2**16 + 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64]
ANY = (
    st.none() | st.booleans() | st.sampled_from(EDGES) | st.integers(-5, 70_000)
    | st.sampled_from([0.5, -0.0, 1e300, 1e-320, 65519.9, 65520.0, 3.4028235e38, 3.5e38])
    | st.text(max_size=6) | st.sampled_from(NAMES)
)  # fmt: skip
NESTED = st.recursive(
    ANY, lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=3), below),
    max_leaves=12,
)  # fmt: skip
BYTES = st.binary(max_size=12)


@pytest.fixture(scope="module", autouse=True)
def _counted() -> Iterator[None]:
    yield
    if path := os.environ.get("FUZZ_COUNTS"):
        Path(path).write_text(json.dumps(COUNTS))


def check(target: str, raw: bytes) -> None:
    COUNTS[target] += 1
    COUNTS[f"{target} accepted"] += TARGETS[target](raw)


def nearly(
    expected: st.SearchStrategy[Any], other: st.SearchStrategy[Any] = NESTED
) -> st.SearchStrategy[Any]:
    """The expected values, but for one time in fifteen."""
    return st.integers(0, 14).flatmap(lambda n: other if n == 7 else expected)


def values_of(datatype: str) -> st.SearchStrategy[Any]:
    """Values that a datatype holds, in JSON, and some that it does not."""
    if datatype == "BOOL":
        return st.booleans()
    if datatype in FORMATS and not datatype.startswith("FP"):
        low, high = int_range(datatype)
        return st.sampled_from([0, 1, 7, 127, low, high])
    if datatype in FORMATS:
        return st.sampled_from([0, -1, 0.5, 65504, 1e-320])
    return st.text(max_size=6)


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=bool(len(str(value)) % 2)).encode("utf-8", "replace")


# -- V2 over REST ---------------------------------------------------------------------------------
def names() -> st.SearchStrategy[str]:
    return nearly(st.sampled_from(NAMES[:3]), st.sampled_from(NAMES))


@st.composite
def inputs(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    """One input and its raw bytes."""
    datatype = draw(nearly(st.sampled_from(DATATYPES), st.sampled_from(UNKNOWN)))
    shape = draw(nearly(st.lists(st.integers(0, 3), max_size=3)))
    count = 1
    for side in shape if isinstance(shape, list) else ():
        count *= side if isinstance(side, int) else 1
    count = min(max(count, 0), 64)
    entry = {"name": draw(names()), "datatype": datatype, "shape": shape}
    if draw(st.booleans()):
        values = values_of(datatype) | nearly(values_of(datatype), ANY)
        entry["data"] = draw(nearly(st.lists(values, min_size=count, max_size=count)))
        return entry, b""
    raw = draw(_raw(datatype, count))
    size = draw(nearly(st.just(len(raw)), st.sampled_from([len(raw) - 1, len(raw) + 1, -1, 2**63])))
    entry["parameters"] = draw(nearly(st.just({"binary_data_size": size})))
    return entry, raw


@st.composite
def _raw(draw: st.DrawFn, datatype: str, count: int) -> bytes:
    if datatype in FORMATS:
        size = struct.calcsize("<" + FORMATS[datatype])
        return draw(nearly(st.just(bytes(size * count)), st.binary(max_size=16)))
    rows = draw(st.lists(BYTES, min_size=count, max_size=count))
    wrong = draw(nearly(st.just(0), st.sampled_from([1, -1, 2**31, 2**32 - 1])))
    return b"".join(struct.pack("<I", (len(row) + wrong) % 2**32) + row for row in rows)


@MANY
@given(
    st.lists(inputs(), max_size=4),
    nearly(st.dictionaries(st.sampled_from(["a", "timeout"]), st.integers() | st.text(max_size=3))),
    nearly(st.lists(st.fixed_dictionaries({"name": names()}), max_size=2, unique_by=str)),
    nearly(st.just("exact"), st.sampled_from(["", "-1", "+5", "0", "5.", "1e2", "9" * 25, " 7"])),
    BYTES,
)
def test_v2_requests_over_rest(
    tensors: list[tuple[dict[str, Any], bytes]],
    parameters: Any,
    outputs: Any,
    length: str,
    tail: bytes,
) -> None:
    entries = [entry for entry, _ in tensors]
    body = {"inputs": entries, "parameters": parameters, "outputs": outputs, "id": "1"}
    head = as_json(body if len(tail) % 3 else {"inputs": entries})
    rest = b"".join(raw for _, raw in tensors) + (tail if len(tail) == 11 else b"")
    shown = str(len(head)) if length == "exact" else length
    check("v2", shown.encode("latin-1", "replace") + SPLIT + head + rest)


# -- V2 over gRPC ---------------------------------------------------------------------------------
NUMBERS = st.integers(0, 2**64 - 1).map(varint) | st.sampled_from(EDGES[3:9]).map(varint)
TEXTS = st.text(max_size=5).map(str.encode) | BYTES


def fields(
    numbers: st.SearchStrategy[int], payload: st.SearchStrategy[bytes]
) -> st.SearchStrategy[bytes]:
    """One field: with a length, as a varint, of 4 or 8 bytes, or as a group, which is refused."""
    return st.one_of(
        st.builds(field, numbers, payload),
        st.builds(field, numbers, payload),
        st.builds(lambda n, v: varint(n << 3) + v, numbers, NUMBERS),
        st.builds(lambda n, v: varint(n << 3 | 1) + v, numbers, st.binary(min_size=8, max_size=8)),
        st.builds(lambda n, v: varint(n << 3 | 5) + v, numbers, st.binary(min_size=4, max_size=4)),
        st.builds(lambda n: varint(n << 3 | 3) + varint(n << 3 | 4), numbers),
    )


def message(
    payloads: dict[int, st.SearchStrategy[bytes]], most: int = 5
) -> st.SearchStrategy[bytes]:
    """Fields of these numbers in any order, some of them unknown or of another type."""
    known = [st.builds(field, st.just(number), below) for number, below in payloads.items()]
    other = fields(st.integers(0, 20) | st.sampled_from([2**29 - 1, 2**29]), TEXTS)
    return st.lists(st.one_of(*known * 3, other), max_size=most).map(b"".join)


VALUE = message({3: TEXTS}, 2) | st.sampled_from([b"\x08\x01", b"\x10\x05", b"\x08\x02\x10\x07"])
PARAMETER = st.builds(
    lambda name, value, rest: field(1, name) + field(2, value) + rest,
    st.sampled_from([b"a", b"b", b"content_type"]),
    st.sampled_from([b"\x08\x01", b"\x10\x05", b"\x1a\x02np"]),
    nearly(st.just(b""), message({1: TEXTS, 2: VALUE}, 3)),
)
CONTENTS = st.one_of(
    st.lists(TEXTS, max_size=3).map(lambda rows: b"".join(field(8, row) for row in rows)),
    st.builds(
        lambda number, packed: field(number, packed),
        st.integers(1, 7),
        st.lists(NUMBERS, max_size=3).map(b"".join) | st.binary(max_size=24),
    ),
    st.builds(lambda n, v: varint(n << 3) + v, st.integers(1, 5), NUMBERS),
    message({8: TEXTS}),
)


def contents_of(datatype: str, count: int) -> st.SearchStrategy[bytes]:
    """`count` values in the field of the datatype: packed or each by itself."""
    number = _NUMBER_OF.get(datatype, 8)
    if number == 8:
        rows = st.lists(TEXTS, min_size=count, max_size=count)
        return rows.map(lambda rows: b"".join(field(8, row) for row in rows))
    if number in (6, 7):
        size = 4 if number == 6 else 8
        numbers = st.sampled_from([bytes(size * count), b"\x01" * size * count])
        return numbers.map(lambda packed: field(number, packed))
    small = st.lists(st.sampled_from([0, 1, 1, 100]).map(varint), min_size=count, max_size=count)
    packed = small.map(lambda values: field(number, b"".join(values)))
    return packed | small.map(lambda values: b"".join(varint(number << 3) + v for v in values))


_NUMBER_OF = {
    "BOOL": 1, "INT8": 2, "INT16": 2, "INT32": 2, "INT64": 3, "UINT8": 4, "UINT16": 4, "UINT32": 4,
    "UINT64": 5, "FP32": 6, "FP64": 7,
}  # fmt: skip


@st.composite
def proto_inputs(draw: st.DrawFn) -> bytes:
    datatype = draw(nearly(st.sampled_from(DATATYPES), st.sampled_from(UNKNOWN)))
    count = draw(st.integers(0, 3))
    shape = draw(st.sampled_from([b"\x18" + varint(count), field(3, varint(count)), b"\x18\x01"]))
    base = field(1, draw(st.sampled_from([b"prompt", b"x"]))) + field(2, datatype.encode()) + shape
    contents = [field(5, draw(nearly(contents_of(datatype, count), CONTENTS)))]
    parameters = draw(nearly(st.just([]), st.lists(PARAMETER.map(lambda x: field(4, x)))))
    parts = [base, *contents, *parameters]
    return b"".join(draw(st.permutations(parts)))


@MANY
@given(
    st.lists(proto_inputs().map(lambda x: field(5, x)), min_size=1, max_size=3),
    nearly(st.just([]), st.lists(BYTES.map(lambda x: field(7, x)), max_size=2)),
    message({1: TEXTS, 2: TEXTS, 3: TEXTS, 4: PARAMETER, 6: message({1: TEXTS, 2: PARAMETER})}, 3),
    st.integers(0, 10_000),
)
def test_v2_requests_over_grpc(
    tensors: list[bytes], raws: list[bytes], rest: bytes, cut: int
) -> None:
    raw = b"".join([*tensors, *raws, rest])
    check("proto", raw[: cut % (len(raw) + 1)] if cut % 13 == 12 else raw)


# -- OpenAI ---------------------------------------------------------------------------------------
URLS = st.sampled_from(
    [
        "data:image/png;base64," + base64.b64encode(picture("PNG")).decode(),
        "https://x",
        "data:,",
        "",
    ]
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_image", "image", "file", ""])},
    optional={
        "text": nearly(st.text(max_size=5)),
        "image_url": nearly(URLS | st.fixed_dictionaries({"url": URLS})),
        "image": nearly(URLS),
        "detail": nearly(st.sampled_from(["auto", "low", "high"])),
    },
)
MESSAGES = st.lists(
    nearly(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant", "system", "tool", "developer", "x"]),
                "content": nearly(st.text(max_size=5) | st.lists(nearly(PARTS), max_size=3)),
            },
            optional={"name": nearly(st.text(max_size=3)), "tool_calls": NESTED},
        )
    ),
    max_size=3,
)


def bodies(known: Any, required: dict[str, Any]) -> st.SearchStrategy[Any]:
    more = st.dictionaries(st.sampled_from([*sorted(known), "unknown"]), NESTED, max_size=4)
    return st.builds(lambda base, rest: rest | base, st.fixed_dictionaries(required), more)


@MANY
@given(bodies(chat_body.FIELDS, {"model": st.just("m"), "messages": nearly(MESSAGES)}))
def test_chat_bodies(body: Any) -> None:
    check("chat", as_json(body))


ITEMS = st.lists(
    nearly(
        st.fixed_dictionaries(
            {},
            optional={
                "type": st.sampled_from(["message", "function_call", "function_call_output", "x"]),
                "role": st.sampled_from(["user", "assistant", "x"]),
                "content": nearly(st.text(max_size=5) | st.lists(nearly(PARTS), max_size=3)),
                "call_id": st.sampled_from(["a", "b", ""]),
                "name": st.sampled_from(["f", "f g"]),
                "arguments": st.sampled_from(["{}", "[]", "{"]),
                "output": nearly(st.text(max_size=3)),
            },
        )
    ),
    max_size=4,
)
BLOCKS = st.lists(
    nearly(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "image", "tool_use", "tool_result", "thinking"])},
            optional={
                "text": nearly(st.text(max_size=3)),
                "source": nearly(
                    st.fixed_dictionaries(
                        {"type": st.sampled_from(["base64", "url", "file"])},
                        optional={"data": st.text(max_size=5), "url": st.just("data:,a")},
                    )
                ),
                "id": st.sampled_from(["c", "d"]),
                "tool_use_id": st.sampled_from(["c", "d"]),
                "name": st.sampled_from(["f", "f g"]),
                "input": nearly(st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)),
                "content": nearly(st.text(max_size=3)),
            },
        )
    ),
    max_size=3,
)
TURNS = st.lists(
    nearly(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant", "system"]),
                "content": nearly(st.text(max_size=3) | BLOCKS),
            }
        )
    ),
    max_size=4,
)
PROMPTS = st.text(max_size=3) | st.lists(st.integers(-1, 9) | st.text(max_size=2), max_size=3)


@MANY
@given(
    bodies(
        responses_body.FIELDS,
        {"model": st.just("m"), "input": nearly(st.text(max_size=3) | ITEMS)},
    )
)
def test_responses_bodies(body: Any) -> None:
    check("responses", as_json(body))


@MANY
@given(
    bodies(
        messages_body.FIELDS,
        {"model": st.just("m"), "max_tokens": st.integers(-1, 3), "messages": nearly(TURNS)},
    )
)
def test_messages_bodies(body: Any) -> None:
    check("messages", as_json(body))


@MANY
@given(
    bodies(
        completions_body.FIELDS,
        {"model": st.just("m"), "prompt": nearly(PROMPTS | st.lists(PROMPTS, max_size=2))},
    )
)
def test_completions_bodies(body: Any) -> None:
    check("completions", as_json(body))


@MANY
@given(bodies(tokens_body.TOKENIZE_FIELDS, {}))
def test_tokenize_bodies(body: Any) -> None:
    check("tokenize", as_json(body))


@MANY
@given(bodies(images_body.FIELDS, {"model": st.just("m"), "prompt": nearly(st.text(max_size=5))}))
def test_images_bodies(body: Any) -> None:
    check("images_body", as_json(body))


FORM_NAMES = st.sampled_from([*sorted(edits_body.FIELDS), "image[]", "user[id]", "x", "", "a[b][]"])
FORM_VALUES = st.sampled_from([b"", b"1", b"0.5", b"true", b"auto", b"{", picture("PNG")])


@MANY
@given(
    st.lists(st.tuples(FORM_NAMES, FORM_VALUES | st.binary(max_size=5)), max_size=6),
    st.booleans(),
    st.binary(max_size=3),
    st.integers(0, 600),
)
def test_forms(fields: list[tuple[str, bytes]], is_complete: bool, other: bytes, at: int) -> None:
    given = [("model", b"m"), ("prompt", b"a"), ("image", picture("PNG"))] if is_complete else []
    raw = form(*given, *fields)
    check("form", raw)
    check("form", raw[: at % (len(raw) + 1)] + other + raw[at % (len(raw) + 1) :])


# -- texts and codings ----------------------------------------------------------------------------
@MANY
@given(NESTED, st.binary(max_size=3), st.integers(0, 200))
def test_json_texts(value: Any, other: bytes, at: int) -> None:
    raw = as_json(value)
    check("json", raw)
    check("json", raw[: at % (len(raw) + 1)] + other + raw[at % (len(raw) + 1) :])


@MANY
@given(
    st.sampled_from(["data:", "DATA:", "data%3A", "", " data:", "data:data:"]),
    st.sampled_from(["image/png", "", "text/html", 'image/png;a="b,c"', "*/*", "a" * 1100]),
    st.sampled_from([";base64,", ",", ";BASE64,", "%3Bbase64%2C", ";base64;base64,", ";base64"]),
    BYTES | st.just(picture("PNG", "L", (2, 2))),
    st.sampled_from(["", "=", "\n", "%", "%3D%3d", "%zz", "é", "\0", "====", "-_", " "]),
)  # fmt: skip
def test_data_urls(scheme: str, media: str, comma: str, file: bytes, tail: str) -> None:
    url = scheme + media + comma + base64.b64encode(file).decode() + tail
    check("data_url", url.encode())


CODERS: list[Callable[[bytes], bytes]] = [
    lambda raw: gzip.compress(raw, mtime=0),
    zlib.compress,
    lambda raw: zlib.compress(raw, wbits=-15),
    lambda raw: raw,
]


@MANY
@given(
    st.sampled_from([b"", b"hello", bytes(300_000), bytes(2**20 + 1)]),
    st.lists(st.sampled_from(range(len(CODERS))), max_size=4),
    st.integers(0, 255),
    BYTES,
    st.integers(0, 10_000),
)
def test_compressed_bodies(
    data: bytes, coders: list[int], codings: int, tail: bytes, cut: int
) -> None:
    for number in coders:
        data = CODERS[number](data)
    data = data[: cut % (len(data) + 1)] if cut % 5 == 4 else data
    check("inflating", bytes([codings]) + data + (tail if cut % 3 == 2 else b""))
