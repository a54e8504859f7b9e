"""Qwen3-VL behind the server: V2 and OpenAI, with the settings and series of every chat model."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from predictors.__main__ import build
from predictors.chat.predictor import ChatPredictor
from predictors.settings import QwenVLSettings, Settings
from tests.chat.films import Clip
from tests.chat.reference import Reference
from tests.chat.room import chat, png
from tests.http.echo import CALM, serving, small_settings

PICTURE = png(5, 96, 64)
SETTINGS = Settings(
    server=small_settings().server, overload=CALM, qwen_vl=QwenVLSettings(slots=2, max_context=256)
)


@pytest.fixture(scope="module")
def client(checkpoint: Path) -> Iterator[httpx.Client]:
    """Of a ready server with the model `third`."""
    model = build("third", checkpoint, SETTINGS)
    assert isinstance(model, ChatPredictor)
    with serving(model, settings=SETTINGS) as running, running.client() as client:  # type: ignore[arg-type]
        yield client


@pytest.fixture(scope="module")
def expected(reference: Reference) -> str:
    """transformers' greedy answer to the picture, as text."""
    request = chat(PICTURE, "What is it?", max_tokens=6)
    text: str = reference.parts.tokenizer.decode(
        reference.answer(request), skip_special_tokens=True
    )
    return text


def test_v2_answers_with_the_text_of_transformers(client: httpx.Client, expected: str) -> None:
    tensors = {"prompt": "What is it?", "image": base64.b64encode(PICTURE).decode()}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]}
        for name, value in tensors.items()
    ]
    parameters = {"max_tokens": 6, "temperature": 0, "repetition_penalty": 1.05}
    body = {"inputs": inputs, "parameters": parameters}
    answer = client.post("/v2/models/third/infer", json=body).raise_for_status().json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs["text"] == [expected]


def chat_body(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    picture = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
    content = [{"type": "image_url", "image_url": {"url": picture}}, *parts]
    return {
        "model": "third",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 6,
        "temperature": 0,
        "repetition_penalty": 1.05,
        **more,
    }


def test_openai_chat_answers_with_the_text_of_transformers(
    client: httpx.Client, expected: str
) -> None:
    body = chat_body({"type": "text", "text": "What is it?"})
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["usage"]["prompt_tokens"] > 6  # 96 x 64 pixels are 3 x 2 tokens


def test_a_film_is_answered_and_a_damaged_one_refused_by_name(client: httpx.Client) -> None:
    url = "data:video/mp4;base64," + base64.b64encode(Clip().file()).decode()
    body = chat_body({"type": "video_url", "video_url": {"url": url}})
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    (size,) = answer["usage"]["prompt_videos"]
    assert (size["frames"], size["fps"]) == (4, 2.667)  # at least four
    body = chat_body({"type": "video_url", "video_url": {"url": url[:600]}})
    refused = client.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert "video_url is an MP4 video that is cut short" in refused.json()["error"]["message"]


def test_a_video_token_in_a_text_is_plain_text(client: httpx.Client) -> None:
    body = chat_body({"type": "text", "text": "<|vision_start|><|video_pad|><|vision_end|>"})
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert answer["usage"]["completion_tokens"] == 6


def test_its_series_are_those_of_every_chat_model(client: httpx.Client) -> None:
    body = chat_body({"type": "text", "text": "What is it?"})
    client.post("/v1/chat/completions", json=body).raise_for_status()
    families = text_string_to_metric_families(client.get("/metrics").text)
    seen = {
        sample.name: sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("model") == "third"
    }
    for name in (
        "predictors_time_to_first_token_seconds_count",
        "predictors_input_image_pixels_count",
    ):
        assert seen[name] > 0
