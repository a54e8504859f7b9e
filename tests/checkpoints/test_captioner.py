"""The embedded captioner behind a server: boxes in the caller's pixels, JSON, a tool that it calls
by itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from checkpoints.training import structured
from checkpoints.training.evaluate_boxes import SIDES, Case, ask, draw_cases, evaluate_boxes
from predictors.__main__ import build
from predictors.protocol.tasks import make_workers
from tests.http.echo import Running, serving, small_settings

CAPTIONER = Path(__file__).resolve().parents[2] / "checkpoints" / "shapes-qwen-vl"
START_S = 150.0
NUM_SCENES = 40
NUM_ASKED = 12
COUNT = {
    "type": "function",
    "function": {
        "name": "count_shapes",
        "description": "Count the shapes in the picture.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@pytest.fixture(scope="module")
def captioner() -> Iterator[Running]:
    settings = small_settings(server={"max_body_bytes": 8 * 2**20})
    workers = make_workers(settings.server)
    model = build("qwen-vl", CAPTIONER, settings, workers)
    served: list[Any] = [model]
    with (
        closing(workers),
        serving(*served, settings=settings, wait_ready=False, workers=workers) as running,
    ):
        model.host.wait_ready(START_S)
        yield running


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return draw_cases(NUM_SCENES)


def said(http: httpx.Client, case: Case, question: str, **fields: Any) -> dict[str, Any]:
    """The message that answers a question about a case's picture."""
    file = io.BytesIO()
    case.image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {"model": "qwen-vl", "messages": [{"role": "user", "content": content}],
            "max_pixels": 20_000, "max_tokens": 160, **fields}  # fmt: skip
    reply = http.post("/v1/chat/completions", json=body).raise_for_status()
    message: dict[str, Any] = reply.json()["choices"][0]["message"]
    return message


def test_boxes_hit_the_drawn_shapes_in_the_callers_pixels_at_three_sizes(
    captioner: Running, cases: list[Case]
) -> None:
    rows = {row["name"]: row for row in evaluate_boxes(ask(captioner.url, "qwen-vl"), cases)}
    assert rows["figures hit"]["share"] >= 0.9
    for side in SIDES:
        assert rows[f"figures hit in pictures of {side}x{side}"]["share"] >= 0.9


def test_json_without_a_grammar_is_the_scenes(captioner: Running, cases: list[Case]) -> None:
    with captioner.client() as http:
        texts = [said(http, case, structured.LIST[0])["content"] for case in cases[:NUM_ASKED]]
    right = [
        json.loads(text) == json.loads(structured.scene_text(case.scene))
        for text, case in zip(texts, cases, strict=False)
    ]
    assert sum(right) >= 0.9 * NUM_ASKED


def test_a_count_is_a_call_of_the_tool_and_a_description_is_none(
    captioner: Running, cases: list[Case]
) -> None:
    calls, sentences = 0, 0
    with captioner.client() as http:
        for case in cases[:NUM_ASKED]:
            counted = said(http, case, "How many shapes are there?", tools=[COUNT])
            made = [each["function"] for each in counted.get("tool_calls") or ()]
            calls += made == [{"name": "count_shapes", "arguments": "{}"}]
            described = said(http, case, "Describe this picture.", tools=[COUNT])
            sentences += not described.get("tool_calls") and bool(described["content"])
    assert min(calls, sentences) >= 0.9 * NUM_ASKED
