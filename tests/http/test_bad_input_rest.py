"""Invalid V2 requests over REST: the documented status, an error that names the problem without
internals, and the next valid request on the same connection succeeds.
"""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.http.echo import infer_body
from tests.http.error_checks import check_text, tensor, timed

INFER = "/v2/models/echo/infer"
HEAD = "inference-header-content-length"
JSON = {"content-type": "application/json"}
OCTETS = {"content-type": "application/octet-stream"}


@dataclass(frozen=True)
class Case:
    """One invalid request."""

    name: str
    body: bytes
    words: str
    status: int = 400
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))


def raw(name: str, body: bytes, words: str, **more: Any) -> Case:
    return Case(name, body, words, **more)


def request(name: str, body: Any, words: str, **more: Any) -> Case:
    return Case(name, json.dumps(body).encode(), words, **more)


def one(name: str, entry: Any, words: str, **more: Any) -> Case:
    """A request whose only input is `entry`."""
    return request(name, {"inputs": [entry]}, words, **more)


def two(name: str, entry: Any, words: str) -> Case:
    """A request with a valid prompt and `entry`."""
    return request(name, {"inputs": [tensor(), entry]}, words)


def seed(**more: Any) -> dict[str, Any]:
    return tensor(**({"name": "seed", "datatype": "INT64", "data": [1]} | more))


def parameters(name: str, values: Any, words: str) -> Case:
    return request(name, infer_body(parameters=values), words)


def outputs(name: str, wanted: Any, words: str) -> Case:
    return request(name, infer_body(outputs=wanted), words)


def header(name: str, headers: dict[str, str], words: str, status: int = 400) -> Case:
    return request(name, infer_body(), words, status=status, headers=JSON | headers)


def binary(case: str, raw_bytes: bytes, words: str, **more: Any) -> Case:
    """A binary request: `size` is the input's binary_data_size, `length` the JSON length in the
    header.
    """
    size = more.pop("size", len(raw_bytes))
    length = more.pop("length", None)
    fields = {"drop": ("data",), "parameters": {"binary_data_size": size}} | more
    inputs = [tensor()] if fields.get("name") else []
    head = json.dumps({"inputs": [*inputs, tensor(**fields)]}).encode()
    headers = OCTETS | {HEAD: str(len(head) if length is None else length)}
    return Case(f"binary: {case}", head + raw_bytes, words, headers=headers)


def rows(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


NOT_JSON = "not valid JSON at line 1 column"
DEEP = b"[" * 10_000 + b"]" * 10_000
NESTED = {"a": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}

BODIES = [
    raw("empty body", b"", NOT_JSON),
    raw("plain text", b"draw me a sheep", NOT_JSON),
    raw("truncated JSON", b'{"inputs": [{"name": "pro', NOT_JSON),
    raw("trailing comma", b'{"inputs": [],}', NOT_JSON),
    raw("single quotes", b"{'inputs': []}", NOT_JSON),
    raw("comment", b'{"inputs": [] /* none */}', NOT_JSON),
    raw("two values", b"{} {}", NOT_JSON),
    raw("control character in a string", b'{"id": "\x01"}', NOT_JSON),
    raw("UTF-16", json.dumps(infer_body()).encode("utf-16"), "not UTF-8"),
    raw("invalid UTF-8", b'{"id": "\xff\xfe"}', "not UTF-8"),
    raw("two byte order marks", b"\xef\xbb\xbf" * 2 + b"{}", NOT_JSON),
    raw("a byte order mark alone", b"\xef\xbb\xbf", NOT_JSON),
    raw("a byte order mark inside", b"{\xef\xbb\xbf}", NOT_JSON),
    raw("NaN", b'{"id": NaN}', "NaN"),
    raw("Infinity", b'{"id": -Infinity}', "-Infinity"),
    raw("1e400", b'{"parameters": {"scale": 1e400}}', "too large"),
    raw("5,000 digits", b'{"id": ' + b"9" * 5000 + b"}", "too long"),
    raw("10,000 deep", b'{"id": ' + DEEP + b"}", "nested deeper than 32"),
    request("33 deep", NESTED, "nested deeper than 32"),
    raw("key twice", b'{"id": "a", "inputs": [], "id": "b"}', "'id' twice"),
    raw("key twice inside", b'{"inputs": [{"name": "a", "name": "b"}]}', "'name' twice"),
    raw("lone surrogate in a name", b'{"inputs": [{"name": "\\ud800"}]}', NOT_JSON),
    raw("lone surrogate in data", b'{"inputs": [{"data": ["\\udfff x"]}]}', NOT_JSON),
    request("a list", [], "must be a JSON object"),
    request("a string", "inputs", "must be a JSON object"),
    request("null", None, "must be a JSON object"),
    request("unknown field", infer_body(model="x"), "unknown field 'model'"),
    request("id a number", infer_body(id=7), "id must be a string"),
    request("id of 2,000 characters", infer_body(id="x" * 2000), "at most 1024"),
]
INPUTS = [
    request("no inputs", {}, "inputs must be a list"),
    request("inputs empty", {"inputs": []}, "inputs must be a list of at least one"),
    request("inputs an object", {"inputs": {}}, "inputs must be a list"),
    request("inputs null", {"inputs": None}, "inputs must be a list"),
    request("65 inputs", {"inputs": [tensor()] * 65}, "65 inputs"),
    one("input a string", "prompt", "an input must be a JSON object"),
    one("no name", tensor(drop=("name",)), "no name"),
    one("name empty", tensor(""), "no name"),
    one("name a number", tensor(name=7), "no name"),  # type: ignore[arg-type]
    one("name unknown", tensor("promt"), "unknown input 'promt'"),
    one("name of a megabyte", tensor("x" * 900_000), "unknown input 'xxx"),
    one("name with NUL", tensor("prompt\x00"), "unknown input 'prompt\\x00'"),
    request("input twice", {"inputs": [tensor(), tensor()]}, "'prompt' is given twice"),
    one("unknown field", tensor(dtype="BYTES"), "unknown field 'dtype'"),
    one("datatype unknown", tensor(datatype="NOPE"), "datatype 'NOPE'; known are"),
    one("datatype missing", tensor(drop=("datatype",)), "datatype"),
    one("datatype in small letters", tensor(datatype="bytes"), "datatype 'bytes'"),
    one("datatype a list", tensor(datatype=[]), "datatype"),  # type: ignore[arg-type]
    one("shape missing", tensor(drop=("shape",)), "'prompt' has no shape"),
    one("shape a number", tensor(shape=1), "'prompt' has no shape"),
    one("shape [-1]", tensor(shape=[-1]), "not a list of whole numbers from 0"),
    one("shape [0]", tensor(shape=[0], data=[]), "'prompt' has no rows"),
    one("shape []", tensor(shape=[]), "has shape []"),
    one("shape [2**62, 4]", tensor(shape=[2**62, 4]), "more than 65536", status=413),
    one("shape [2**64]", tensor(shape=[2**64]), "not a list of whole numbers"),
    one("shape [0, 2**62]", tensor(shape=[0, 2**62], data=[]), "has shape"),
    one("shape [1.5]", tensor(shape=[1.5]), "not a list of whole numbers"),
    one("shape ['1']", tensor(shape=["1"]), "not a list of whole numbers"),
    one("shape [true]", tensor(shape=[True]), "not a list of whole numbers"),
    one("shape of 9 dimensions", tensor(shape=[1] * 9), "more than 8 dimensions"),
    one("shape of more", tensor(shape=[2]), "has 1 elements, but its shape means 2"),
    one("shape of less", tensor(data=["a", "b"]), "has 2 elements, but its shape means 1"),
    one("shape [1, 2]", tensor(shape=[1, 2], data=["a", "b"]), "takes [n] or [n, 1]"),
    one("data missing", tensor(drop=("data",)), "'prompt' has no list of data"),
    one("data a string", tensor(data="a"), "'prompt' has no list of data"),
    one("data null", tensor(data=None), "'prompt' has no list of data"),
    one("data ragged", tensor(shape=[2, 2], data=[["a", "b"], ["c"]]), "nested otherwise"),
    one("data nested too far", tensor(data=[["a"]]), "row 0: input 'prompt' holds something"),
    one("data of numbers", tensor(data=[1]), "row 0: input 'prompt' holds something that is no"),
    one("data with null", tensor(shape=[2], data=["a", None]), "row 1: input 'prompt'"),
    one("prompt of numbers", seed(name="prompt"), "datatype INT64; it takes BYTES"),
    two("seed a string", seed(data=["7"]), "row 0: input 'seed' holds something that is no INT64"),
    two("seed 1.5", seed(data=[1.5]), "row 0: input 'seed' holds something that is no INT64"),
    two("seed true", seed(data=[True]), "row 0: input 'seed'"),
    two("seed 2**63", seed(data=[2**63]), "out of INT64's range"),
    two("seed of FP32", seed(datatype="FP32"), "datatype FP32; it takes INT64"),
    two("BOOL 1", seed(datatype="BOOL"), "no BOOL"),
    two("FP16 a string", seed(datatype="FP16", data=["x"]), "no FP16"),
    two("FP32 of 400 digits", seed(datatype="FP32", data=[10**400]), "too large"),
    two("UINT8 300", seed(datatype="UINT8", data=[300]), "out of UINT8's range"),
    two("INT8 -129", seed(datatype="INT8", data=[-129]), "out of INT8's range"),
    two("rows disagree", seed(shape=[2], data=[1, 2]), "prompt has 1, seed has 2"),
    one("parameters a list", tensor(parameters=[]), "must be an object"),
    one("parameter unknown", tensor(parameters={"shared_memory_region": "x"}), "shared_memory"),
    one("parameter nested", tensor(parameters={"encoding": {}}), "'encoding' must be"),
]
PARAMETERS = [
    parameters("a list", [], "parameters must be an object"),
    parameters("nested", {"steps": {"n": 1}}, "parameter 'steps' must be"),
    parameters("a list of words", {"stop": ["a"]}, "parameter 'stop' must be"),
    parameters("null", {"steps": None}, "parameter 'steps' must be"),
    parameters("unknown", {"stepz": 1}, "unknown parameter 'stepz'"),
    parameters("whole 1.5", {"steps": 1.5}, "steps must be a whole number, not '1.5'"),
    parameters("whole 'x'", {"steps": "x"}, "steps must be a whole number"),
    parameters("whole true", {"steps": True}, "steps must be a whole number"),
    parameters("whole of 5,000 digits", {"steps": "9" * 5000}, "steps must be a whole number"),
    parameters("number 'nan'", {"scale": "nan"}, "scale must be a finite number"),
    parameters("number 'inf'", {"scale": "-inf"}, "scale must be a finite number"),
    parameters("number true", {"scale": True}, "scale must be a finite number"),
    parameters("text 7", {"format": 7}, "format must be a string"),
    parameters("timeout -1", {"timeout": -1}, "timeout must be a positive number"),
    parameters("timeout 'soon'", {"timeout": "soon"}, "timeout must be a positive number"),
    parameters("binary_data_output 'yes'", {"binary_data_output": "yes"}, "true or false"),
]
OUTPUTS = [
    outputs("an object", {}, "outputs must be a list"),
    outputs("65", [{"name": str(i)} for i in range(65)], "at most 64"),
    outputs("a string", ["echo"], "an output must be a JSON object"),
    outputs("no name", [{}], "an output has no name"),
    outputs("unknown", [{"name": "ecko"}], "no output 'ecko'; echo has echo, image"),
    outputs("twice", [{"name": "echo"}, {"name": "echo"}], "'echo' is asked for twice"),
    outputs("unknown field", [{"name": "echo", "x": 1}], "unknown field 'x'"),
    outputs("classes", [{"name": "echo", "parameters": {"classification": 1}}], "classification"),
    outputs("binary 1", [{"name": "echo", "parameters": {"binary_data": 1}}], "true or false"),
]
HEADERS = [
    header("text", {"content-type": "text/plain"}, "'text/plain' is not accepted", 415),
    header("form", {"content-type": "application/x-www-form-urlencoded"}, "not accepted", 415),
    header("multipart", {"content-type": "multipart/form-data; boundary=x"}, "multipart", 415),
    header("charset", {"content-type": "application/json; charset=utf-16"}, "'utf-16'", 415),
    header("deflate", {"content-encoding": "deflate"}, "is not valid deflate data"),
    header("br", {"content-encoding": "br"}, "'br' is not accepted", 415),
    raw("gzip", gzip.compress(b"{}")[:-1], "early", headers={"content-encoding": "gzip"}),
    header("timeout -1", {"x-request-timeout-ms": "-1"}, "x-request-timeout-ms must be"),
    header("timeout 0", {"x-request-timeout-ms": "0"}, "x-request-timeout-ms must be"),
    header("timeout soon", {"x-request-timeout-ms": "soon"}, "x-request-timeout-ms must be"),
    header("timeout nan", {"x-request-timeout-ms": "nan"}, "x-request-timeout-ms must be"),
]
BINARY = [
    binary("header length -1", rows(b"a"), HEAD, length=-1),
    binary("header length beyond the body", rows(b"a"), HEAD, length=10**6),
    binary("header length of 30 digits", rows(b"a"), HEAD, length=10**30),
    binary("header length a word", rows(b"a"), HEAD, length="x"),
    binary("header length 1e1", rows(b"a"), HEAD, length="1e1"),
    binary("header length cuts the JSON", rows(b"a"), NOT_JSON, length=10),
    binary("header length 0", rows(b"a"), NOT_JSON, length=0),
    binary("size -1", rows(b"a"), "binary_data_size that is not 0 to 5", size=-1),
    binary("size beyond the body", rows(b"a"), "binary_data_size that is not 0 to 5", size=6),
    binary("size true", rows(b"a"), "binary_data_size", size=True),
    binary("size a word", rows(b"a"), "binary_data_size", size="5"),
    binary("size of less", rows(b"a"), "says it has 1 bytes, but 0 are left", size=4),
    binary("bytes left over", rows(b"a") + b"xx", "2 bytes are left over", size=5),
    binary("data too", rows(b"a"), "both data and binary_data_size", drop=()),
    binary("length beyond the bytes", b"\xff\xff\xff\xff", "says it has 4294967295 bytes"),
    binary("three bytes", b"\x00\x00\x00", "left over after 0 elements"),
    binary("an element too few", b"", "has 0 elements, but its shape means 1"),
    binary("an element too many", rows(b"a", b"b"), "left over after 1 elements"),
    binary("text that is no UTF-8", rows(b"\xff\xfe"), "row 0: prompt is not UTF-8"),
    binary("7 bytes of INT64", b"1234567", "has 7 raw bytes, but its shape means 8",
           name="seed", datatype="INT64"),
    binary("NaN in FP32", struct.pack("<f", float("nan")), "not finite",
           name="seed", datatype="FP32"),
    binary("BOOL 2", b"\x02", "neither 0 nor 1", name="seed", datatype="BOOL"),
]  # fmt: skip
CASES = [*BODIES, *INPUTS, *PARAMETERS, *OUTPUTS, *HEADERS, *BINARY]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_invalid_request_gets_its_status_and_message(
    client: httpx.Client, case: Case, record_property: Any
) -> None:
    with timed(record_property):
        reply = client.post(INFER, content=case.body, headers=case.headers)
    assert reply.status_code == case.status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert list(reply.json()) == ["error"]
    check_text(reply.json()["error"], case.words)
    assert len(reply.headers["x-request-id"]) == 32
    good = client.post(INFER, json=infer_body("still there"))
    assert good.json()["outputs"][0]["data"] == ["still there"]


def test_there_are_at_least_120_different_cases() -> None:
    names = [case.name for case in CASES]
    assert len(CASES) >= 120
    assert len(CASES) == len({(case.body, str(case.headers)) for case in CASES}), sorted(names)
