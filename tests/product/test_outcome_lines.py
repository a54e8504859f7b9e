"""Log lines of pictures and chats have sizes, steps and tokens, and none of the words."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from predictors.base import BasePredictor
from predictors.chat.request import ChatRequest, Message, Picture, Sampling
from tests.http.echo import Running
from tests.http.log_lines import logged
from tests.product.test_same_answer_everywhere import prompt_tensor

SECRET = "a large red circle"
HELLO = [{"role": "user", "content": f"Hello {SECRET}"}]


def test_a_pictures_line_has_size_steps_tier_and_tokens(product: Running) -> None:
    body = {"inputs": [prompt_tensor(SECRET, SECRET)]}
    with logged() as lines, product.client() as http:
        assert http.post("/v2/models/flux/infer", json=body).status_code == 200
        (line,) = lines.wait(1)
    told = {"rows", "width", "height", "steps", "tier", "prompt_tokens"}
    assert {k: line[k] for k in told - {"prompt_tokens"}} == {
        "rows": 2, "width": 128, "height": 128, "steps": 4, "tier": "lossless",
    }  # fmt: skip
    assert line["prompt_tokens"] > 0
    assert line["compute_ms"] > 0
    assert SECRET not in lines.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_chats_line_has_its_tokens_and_finish_reason(product: Running, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{product.url}/v1", api_key="-")
    with logged() as lines, client:
        answer: Any = client.chat.completions.create(
            model="qwen-vl", messages=HELLO, max_tokens=3, stream=stream,
            extra_body={"ignore_eos": True}, extra_headers={"x-request-id": "mine"},
        )  # fmt: skip
        if stream:
            list(answer)
        (line,) = lines.wait(1)
    assert (line["protocol"], line["operation"], line["reason"]) == ("openai", "chat", "ok")
    assert (line["request_id"], line["rows"]) == ("mine", 1)
    assert (line["completion_tokens"], line["finish_reason"]) == (3, "length")
    assert (line["pictures"], line["max_tokens"]) == (0, 3)
    assert line["prompt_tokens"] > 3
    assert SECRET not in lines.text


def test_an_operator_who_wants_prompts_gets_those_of_both_models(product: Running) -> None:
    models = product.server.registry.models
    chat = models["qwen-vl"]
    assert isinstance(chat, BasePredictor)
    parts = (Picture(b"x"), "What is this?")
    turns = (Message("system", ("Be short.",)), Message("user", parts))
    told = chat.prompt(ChatRequest(turns, Sampling(), seed=0))
    assert told == "system: Be short.\nuser: What is this?"
