"""Fuzzes a real server with both embedded models: schemathesis on its own OpenAPI document and on
the Open Inference Protocol's, changed bodies of every media type on every route, and changed
messages over gRPC. No answer is a server error or a status that is not documented.
"""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import httpx
import yaml

from benchmarks.serving.hostile_cases import field, infer
from predictors.settings import FluxSettings, QwenVLSettings, Settings
from tests.fuzz.findings import Finding, printed_about
from tests.fuzz.http_streams import mutate
from tests.fuzz.seeds import form, picture, stored
from tests.fuzz.targets import FORM_TYPE, SPLIT
from tests.http.echo import Running, small_settings
from tests.product.conftest import served_models

DOCUMENT = Path(__file__).with_name("open_inference_rest.yaml")
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "missing_required_header",
)  # fmt: skip
OWN_CHECKS = (*CHECKS, "negative_data_rejection", "unsupported_method")
SCHEMA_S = 1500.0

DOCUMENTED = {200, 400, 404, 405, 413, 415, 501}  # of requests that a queue always has room for
CODES = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED,
}  # fmt: skip
ROUTES = (
    "/v2/models/flux/infer", "/v2/models/qwen-vl/infer", "/v2/models/flux/versions/1/infer",
    "/v1/chat/completions", "/v1/images/generations", "/openai/v1/chat/completions",
    "/v2/repository/index", "/v1/models/flux:predict", "/v1/images/edits", "/v2/models",
)  # fmt: skip
MEDIA = (
    "application/json", "application/json; charset=utf-8", "application/octet-stream",
    "multipart/form-data; boundary=x", "multipart/form-data", "application/x-www-form-urlencoded",
    "text/plain", "application/json; charset=utf-16", "", "*/*", "\xff",
)  # fmt: skip
KINDS = ("v2", "chat", "images_body", "form", "json", "inflating", "head")
SEEDS = {kind: stored(kind) for kind in KINDS}
_PROMPT = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a red circle"]}
_RAW = _PROMPT | {"parameters": {"binary_data_size": 9}}
del _RAW["data"]
_HEAD = json.dumps({"inputs": [_RAW], "parameters": {"seed": 3}}).encode()
GOOD_V2 = [
    json.dumps({"inputs": [_PROMPT]}).encode(),
    json.dumps({"inputs": [_PROMPT], "parameters": {"seed": 1, "timeout": 10**9}}).encode(),
    b"%d%b%b\x05\0\0\0a red" % (len(_HEAD), SPLIT, _HEAD),
]
_SAID = [{"role": "user", "content": "hi"}]
_CHAT = [
    json.dumps({"model": "m", "messages": _SAID, "max_tokens": 2, **more}).encode()
    for more in ({}, {"stream": True}, {"n": 2, "temperature": 1, "seed": 1}, {"stop": ["a"]})
]
_DRAW = [
    json.dumps({"model": "m", "prompt": "a", "size": "64x64", **more}).encode()
    for more in ({}, {"n": 2, "seed": 5}, {"output_format": "webp"}, {"num_inference_steps": 2})
]
_FILE = picture("PNG", "RGB", (64, 64))
_GIVEN = (("model", b"flux"), ("prompt", b"a"), ("image", _FILE))
_EDIT = [
    form(*_GIVEN),
    form(*_GIVEN, ("mask", picture("PNG", "L", (64, 64))), ("strength", b"1"), ("n", b"2")),
    form(*_GIVEN, ("size", b"64x128"), ("strength", b"0")),
]
GOOD = {
    "/v1/chat/completions": _CHAT,
    "/openai/v1/chat/completions": _CHAT,
    "/v1/images/generations": _DRAW,
    "/v1/images/edits": _EDIT,
    "/v2/repository/index": [b"", b"{}", b'{"ready": true}'],
}


@contextmanager
def fuzzed_server() -> Iterator[Running]:
    """Both models, with limits so small that an accepted request takes a fraction of a second."""
    base = small_settings(server={"max_body_bytes": 2 * 2**20}, queue={"capacity": 1000})
    settings = Settings(
        server=base.server,
        queue=base.queue,
        overload=base.overload,
        flux=FluxSettings(max_sequence_length=32, default_steps=1, max_steps=2, max_side=128),
        qwen_vl=QwenVLSettings(max_context=256, default_max_tokens=4),
    )
    logging.getLogger("predictors").setLevel(logging.ERROR)  # a line per request otherwise
    with served_models(settings) as running:
        yield running


# -- schemathesis ---------------------------------------------------------------------------------
def open_inference_document(models: Sequence[str]) -> dict[str, Any]:
    """The protocol's document for these models: its parameters spelt as OpenAPI spells them, paths
    without a version beside those with one, and the statuses of errors, which the protocol's text
    leaves to the server."""
    document = json.loads(json.dumps(yaml.safe_load(DOCUMENT.read_text().replace("${", "{"))))
    paths = document["paths"]
    for path in [path for path in paths if "/versions/" in path]:
        short = json.loads(json.dumps(paths[path]))
        for operation in short.values():
            operation["operationId"] += "_of_any_version"
            operation["parameters"] = operation["parameters"][:1]
        paths[path.replace("/versions/{MODEL_VERSION}", "")] = short
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/error"}}}
    for item in paths.values():
        for operation in item.values():
            for parameter, values in zip(
                operation.get("parameters", ()), (list(models), ["1"]), strict=False
            ):
                parameter["schema"] = {"type": "string", "enum": values}
                operation["responses"]["404"] = {"description": "Unknown", "content": error}
                refused = {"description": "Refused", "content": error}
                operation["responses"].setdefault("400", refused)
            if "requestBody" in operation:
                for status in ("413", "415"):
                    operation["responses"][status] = {"description": "Refused", "content": error}
    found: dict[str, Any] = document
    return found


def with_alternatives(document: Any) -> Any:
    """The same document, in which "one of two fields" is said by `anyOf`. Ours says it by `if`,
    since generators of clients take `anyOf` for a union; schemathesis fails where a file is beside
    an `if` ("Unsupported type: 'Binary'"), and makes no case at the edges of that operation."""
    if isinstance(document, list):
        return [with_alternatives(each) for each in document]
    if not isinstance(document, dict):
        return document
    found = {name: with_alternatives(each) for name, each in document.items()}
    match document:
        case {"if": {"not": {"required": [str()]} as other}, "then": {"required": [str()]} as one}:
            del found["if"], found["then"]
            found["allOf"] = [*found.get("allOf", ()), {"anyOf": [other, one]}]
    return found


REFUSALS = """
[checks]
negative_data_rejection.expected-statuses = ["4xx", "5xx"]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 501]
"""
"""413 refuses a body that its schema refuses, too. 501 is said by routes that are documented as
never served, and by those that the operator left off."""


EVENTS = "SSE event violates schema"
"""Schemathesis reads the schema of a stream as that of each event, with its name. In OpenAPI 3.1 it
is that of the whole text; tests/product/test_openapi_document.py compares events with it."""


def run_schema(
    tool: Path, url: str, part: str, seed: int, examples: int, *, with_edges: bool
) -> tuple[int, list[Finding]]:
    """Run schemathesis. `part` is `schema-own` or `schema-oip`. Returns the number of cases too.

    `with_edges` adds its cases at the edges of every schema, which are thousands."""
    with tempfile.TemporaryDirectory() as folder:
        location, checks = f"{folder}/document.json", OWN_CHECKS
        document = with_alternatives(httpx.get(f"{url}/openapi.json").json())
        if part == "schema-oip":
            document, checks = open_inference_document(["flux", "qwen-vl"]), CHECKS
        Path(location).write_text(json.dumps(document))
        report = Path(folder) / "report.json"
        (Path(folder) / "schemathesis.toml").write_text(REFUSALS)
        phases = "examples,coverage,fuzzing" if with_edges else "fuzzing"
        command = [
            str(tool), "run", location, "--url", url, "--seed", str(seed), "--max-examples",
            str(examples), "--checks", ",".join(checks), "--phases", phases,
            "--report", "json", "--report-json-path", str(report), "--generation-database", "none",
            "--continue-on-failure", "--no-color", "--warnings", "off",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCHEMA_S, cwd=folder)
        if not report.exists():
            raise RuntimeError(f"schemathesis failed: {done.stdout[-3000:]}{done.stderr[-3000:]}")
        read = json.loads(report.read_text())
    cases = read["test_cases"]["generated"]
    findings = [
        Finding(part, "status", seed, 0, _told(each, done.stdout), b"")
        for each in read["failures"] + read["errors"]
        if each["title"] != EVENTS
    ]
    if done.returncode and not read["failures"] + read["errors"]:
        raise RuntimeError(f"schemathesis failed: {done.stdout[-3000:]}")
    return cases, findings


def _told(group: dict[str, Any], console: str) -> str:
    title = group["title"]
    return f"{title}: {json.dumps(group)[:1500]}\n{printed_about(console, title)}"


_KIND_OF = {"infer": "v2", "chat": "chat", "edits": "form"}


# -- REST -----------------------------------------------------------------------------------------
def make_request(seed: int, case: int) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body. Headers with signs beyond ASCII are those that HTTP allows."""
    random = Random(f"{seed}:rest:{case}")
    path, headers = random.choice(ROUTES), {}
    kind = random.choice(KINDS)
    if random.random() < 0.6:
        kind = next((each for name, each in _KIND_OF.items() if name in path), "images_body")
    raw = random.choice(GOOD.get(path, GOOD_V2) if random.random() < 0.4 else SEEDS[kind])
    raw = raw.replace(b'"m"', b'"qwen-vl"' if "chat" in path else b'"flux"')
    for _ in range(random.choice((0, 0, 1, 1, 2))):
        raw = mutate(random, raw)
    length, is_split, body = raw.partition(SPLIT)
    if is_split:
        raw = body
        headers["inference-header-content-length"] = _as_value(length)
    usual = FORM_TYPE if raw.lstrip().startswith(b"--x") else MEDIA[0]
    media = random.choice(MEDIA) if random.random() < 0.4 else usual
    if media:
        headers["content-type"] = media
    if random.random() < 0.2:
        coding = random.choice(
            ("gzip", "deflate", "br", "gzip, deflate", "identity", "x-gzip", ",")
        )
        headers["content-encoding"] = coding
        if random.random() < 0.7:
            raw = gzip.compress(raw, mtime=0) if "gzip" in coding else zlib.compress(raw)
    if "multipart" in media and random.random() < 0.8:
        part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        raw = part + raw + b"\r\n--x--\r\n"
    return path, headers, raw


def _as_value(raw: bytes) -> str:
    return raw.translate(None, bytes(set(range(32)) | {127})).decode("latin-1").strip()


def run_rest(url: str, seed: int, cases: int) -> tuple[list[Finding], Counter[str]]:
    found, counts = [], Counter[str]()
    with httpx.Client(base_url=url, timeout=60.0) as http:
        for case in range(cases):
            path, headers, raw = make_request(seed, case)
            encoded = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = http.post(path, content=raw, headers=encoded)  # type: ignore[arg-type]
            counts[str(answer.status_code)] += 1
            problem = _problem_of(answer)
            if problem:
                message = f"POST {path} {headers}: {problem}"
                found.append(Finding("rest", "status", seed, case, message, raw))
    return found, counts


def _problem_of(answer: httpx.Response) -> str:
    if answer.status_code not in DOCUMENTED:
        return f"status {answer.status_code}: {answer.text[:300]}"
    if answer.status_code != 200 and "error" not in answer.json():
        return f"an error of another form: {answer.text[:300]}"
    return ""


# -- gRPC -----------------------------------------------------------------------------------------
def run_grpc(target: str, seed: int, cases: int) -> tuple[list[Finding], Counter[str]]:
    found, counts = [], Counter[str]()
    text = field(1, b"prompt") + field(2, b"BYTES") + b"\x18\x01"
    limit = field(4, field(1, b"max_tokens") + field(2, b"\x10\x02"))
    good = infer(text + field(5, field(8, b"a red circle"))) + limit
    seeds = [field(1, b"qwen-vl") + raw for raw in stored("proto")]
    with grpc.insecure_channel(target) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for case in range(cases):
            random = Random(f"{seed}:grpc:{case}")
            raw = random.choice((good, random.choice(seeds)))
            for _ in range(random.randint(0, 2)):
                raw = mutate(random, raw)
            try:
                ask(raw, timeout=60.0)
                code, details = grpc.StatusCode.OK, ""
            except grpc.RpcError as error:
                code, details = error.code(), error.details()
            counts[code.name] += 1
            if code not in CODES:
                message = f"{code.name}: {details[:300]}"
                found.append(Finding("grpc", "status", seed, case, message, raw))
    return found, counts
