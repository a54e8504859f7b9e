"""The spans of one request: below its caller's, one for each stage, none for a step."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import openai
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from predictors.chat.sequence import SERIES as CHAT
from predictors.diffusion.predictor import SERIES as DIFFUSION
from predictors.observe import logs, tracing
from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.http.echo import PATIENCE_S, Running, png
from tests.http.log_lines import logged
from tests.product.test_same_answer_everywhere import prompt_tensor

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
DRAW = {"inputs": [prompt_tensor("a small green cross")]}
STAGES = ["parse", "prepare", "queue", "engine", "encode"]
Spans = Any


@pytest.fixture
def spans() -> Iterator[Spans]:
    """Tracing is on, into memory."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing.use(provider)
    yield kept
    tracing.stop()


def tree(spans: Spans) -> tuple[Any, list[str], list[str], dict[str, Any]]:
    """The request's span, the names below it and below the engine's, all by name; well formed."""
    found = {span.name: span for span in spans.get_finished_spans()}
    assert len(found) == len(spans.get_finished_spans())
    (root,) = [span for span in found.values() if span.parent.span_id == int(PARENT, 16)]
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {TRACE}

    def below(parent: Any) -> list[str]:
        mine = [s for s in found.values() if s.parent.span_id == parent.context.span_id]
        slack_ns = 10_000  # seconds as a float
        assert all(s.start_time >= parent.start_time - slack_ns for s in mine)
        assert all(s.start_time <= s.end_time <= parent.end_time + slack_ns for s in mine)
        return [s.name for s in sorted(mine, key=lambda s: (s.start_time, s.end_time))]

    return root, below(root), below(found["engine"]), found


def test_a_picture_over_rest_is_a_tree_below_the_callers_span(
    product: Running, spans: Spans
) -> None:
    with logged() as lines, product.client() as http:
        http.post("/v2/models/flux/infer", json=DRAW, headers=SAMPLED).raise_for_status()
        (line,) = lines.wait(1)
        (access,) = lines.wait(1, "access")
    root, stages, done, found = tree(spans)
    assert root.name == "v2_rest infer"
    assert root.attributes["model"] == "flux"
    assert root.attributes["request_id"] == line["request_id"]
    assert stages == STAGES
    assert [name for name in done if name != "text_encode"] == ["denoise", "vae_decode"]
    assert found["denoise"].attributes["steps"] == 4
    assert found["engine"].attributes["width"] == 128
    assert line["trace_id"] == access["trace_id"] == TRACE


def test_a_picture_over_grpc_is_the_same_tree(product: Running, spans: Spans) -> None:
    request = pb.ModelInferRequest(model_name="flux")
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"a large blue square")
    with logged() as lines, grpc.insecure_channel(product.grpc_target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(request, metadata=tuple(SAMPLED.items()), timeout=PATIENCE_S)
        lines.wait(1)
    root, stages, done, _ = tree(spans)
    assert (root.name, stages) == ("v2_grpc infer", STAGES)
    assert [name for name in done if name != "text_encode"] == ["denoise", "vae_decode"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_prefill_and_decode(product: Running, spans: Spans, stream: bool) -> None:
    with logged() as lines, openai.OpenAI(base_url=f"{product.url}/v1", api_key="-") as client:
        answer: Any = client.chat.completions.create(
            model="qwen-vl", messages=[{"role": "user", "content": "Hello"}], max_tokens=3,
            stream=stream, extra_body={"ignore_eos": True}, extra_headers=SAMPLED,
        )  # fmt: skip
        if stream:
            list(answer)
        lines.wait(1)
    root, stages, done, found = tree(spans)
    assert (root.name, root.attributes["reason"]) == ("openai chat", "ok")
    assert stages == (STAGES[:-1] if stream else STAGES)
    assert done == ["prefill", "decode"]
    assert found["engine"].attributes["completion_tokens"] == 3


def test_a_refusal_is_one_failed_span(product: Running, spans: Spans) -> None:
    with product.client() as http, logged() as lines:
        answer = http.post("/v2/models/flux/infer", content=b"{", headers=SAMPLED)
        assert answer.status_code == 400
        lines.wait(1)
    (span,) = spans.get_finished_spans()
    assert span.attributes["error.type"] == "invalid_input"
    assert not span.status.is_ok


UNASKED = {"vae_encode", "preview", "check"}  # stages of other requests and settings
EXEMPLIFIED = {
    "flux": {
        ("predictors_request_duration_seconds", ""),
        ("predictors_queue_duration_seconds", ""),
        ("predictors_time_to_first_image_seconds", ""),
        *(("predictors_stage_duration_seconds", stage) for stage in {*DIFFUSION.stages} - UNASKED),
    },
    "qwen-vl": {
        ("predictors_request_duration_seconds", ""),
        ("predictors_queue_duration_seconds", ""),
        ("predictors_time_to_first_token_seconds", ""),
        *(("predictors_stage_duration_seconds", stage) for stage in CHAT.stages),
    },
}


@pytest.mark.parametrize("model", EXEMPLIFIED)
def test_histograms_of_durations_have_the_trace_as_exemplar(
    product: Running, spans: Spans, model: str
) -> None:
    del spans
    trace = uuid.uuid4().hex
    tensors = {
        "flux": [prompt_tensor(f"a red circle, {trace}")],  # no prompt of the cache
        "qwen-vl": [prompt_tensor("What is this?"), picture_tensor(trace)],
    }[model]
    with product.client() as http, logged() as lines:
        headers = {"traceparent": f"00-{trace}-{PARENT}-01"}
        body = {"inputs": tensors}
        http.post(f"/v2/models/{model}/infer", json=body, headers=headers).raise_for_status()
        lines.wait(1)
        wanted = {"accept": "application/openmetrics-text; version=1.0.0"}
        text = http.get("/metrics", headers=wanted).text
        plain = http.get("/metrics").text
    assert exemplified(text, trace) == {(name, model, stage) for name, stage in EXEMPLIFIED[model]}
    assert trace not in plain
    assert " # {" not in plain


def exemplified(text: str, trace: str) -> set[tuple[str, str, str]]:
    """Name, model and stage of each histogram that shows `trace`, in seconds that it can be of."""
    found = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.exemplar is not None and sample.exemplar.labels == {"trace_id": trace}:
                assert 0 <= sample.exemplar.value <= float(sample.labels["le"])
                name = sample.name.removesuffix("_bucket")
                found.add((name, sample.labels["model"], sample.labels.get("stage", "")))
    return found


def picture_tensor(trace: str) -> dict[str, Any]:
    """A picture that is in no cache."""
    colour = tuple(int(trace[i : i + 2], 16) for i in (0, 2, 4))
    file = base64.b64encode(png(colour, size=(56, 56))).decode()  # type: ignore[arg-type]
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": [file]}


def test_what_the_pool_logs_is_said_to_be_of_its_request(product: Running, spans: Spans) -> None:
    """Threads of the pool are shared."""
    del spans
    body = {"inputs": [prompt_tensor("a red circle")]}
    work: Any = product.server.registry.models["flux"]
    seen: list[str] = []
    encode = work.encode_v2

    def encoded(request: Any, answers: Any) -> Any:
        seen.append(logs.request_id.get())
        return encode(request, answers)

    with product.client() as http, pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "encode_v2", encoded)
        for name in ("one", "two"):
            headers = {"x-request-id": name}
            http.post("/v2/models/flux/infer", json=body, headers=headers).raise_for_status()
    assert seen == ["one", "two"]


def test_what_the_caller_did_not_sample_leaves_nothing(product: Running, spans: Spans) -> None:
    with product.client() as http, logged() as lines:
        http.post("/v2/models/flux/infer", json=DRAW, headers=NOT_SAMPLED).raise_for_status()
        (line,) = lines.wait(1)
    assert spans.get_finished_spans() == ()
    assert "trace_id" not in line


def test_without_an_exporter_nothing_is_traced(product: Running) -> None:
    with product.client() as http, logged() as lines:
        http.post("/v2/models/flux/infer", json=DRAW, headers=SAMPLED).raise_for_status()
        (line,) = lines.wait(1)
    assert "trace_id" not in line
    assert tracing.begin("x", SAMPLED, {}) is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_tracing_is_off_unless_an_endpoint_is_named(environ: dict[str, str]) -> None:
    assert tracing.configure_tracing(environ) is False
    assert tracing.begin("x", SAMPLED, {}) is None


def test_spans_reach_a_collector_by_the_standard_variables() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the exporter")
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    code = (
        "import os, json; from predictors.observe import tracing;"
        "assert tracing.configure_tracing(os.environ);"
        "tracing.begin('asked', {}, {'protocol': 'p'}).end({'model': 'm'}); tracing.stop(120)"
    )
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        run = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | there, timeout=300, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        server.shutdown()
    assert run.returncode == 0, json.dumps(run.stderr)
    ((path, body),) = got
    assert path == "/v1/traces"
    assert b"asked" in body
