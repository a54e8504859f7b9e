"""Both models under load: real batches, leaving callers, deadlines, nothing compiled."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.fakes import wait_idle
from tests.faults.rooms import count_accepted
from tests.http.echo import PATIENCE_S, Running
from tests.product.brake import braked, host_of, wait_answered
from tests.product.conftest import Sample
from tests.product.test_same_answer_everywhere import prompt_tensor

LONG_STEPS = 100
LONG_TOKENS = 600


def draw(product: Running, seed: int, **parameters: Any) -> httpx.Response:
    body = {
        "inputs": [prompt_tensor("a small green cross")],
        "parameters": {"seed": seed, **parameters},
    }
    with product.client() as client:
        return client.post("/v2/models/flux/infer", json=body)


def pictures(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return next(o["data"] for o in reply.json()["outputs"] if o["name"] == "image")


def test_jobs_of_different_lengths_share_steps_and_get_what_they_get_alone(
    product: Running, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [{"num_inference_steps": 3 + i, "guidance_scale": 1.0 + i} for i in range(4)]
    alone = [pictures(draw(product, i, **image)) for i, image in enumerate(images)]
    shared = sample("predictors_batch_size_sum", model="flux")
    turns = sample("predictors_batch_size_count", model="flux")
    with ThreadPoolExecutor(len(images)) as pool, braked(product, "flux"):
        accepted = count_accepted(monkeypatch, host_of(product, "flux"))
        tasks = [pool.submit(draw, product, i, **image) for i, image in enumerate(images)]
        for _ in images:
            assert accepted.acquire(timeout=PATIENCE_S)
    assert [pictures(task.result()) for task in tasks] == alone
    jobs = sample("predictors_batch_size_sum", model="flux") - shared
    assert jobs > sample("predictors_batch_size_count", model="flux") - turns  # wider than one


def test_a_caller_who_leaves_a_drawing_stops_it(product: Running, sample: Sample) -> None:
    before = sample("predictors_denoise_steps_total", model="flux")
    body = {
        "inputs": [prompt_tensor("a large white star")],
        "parameters": {"num_inference_steps": LONG_STEPS},
    }
    with braked(product, "flux") as brake:
        leaving = http.client.HTTPConnection("127.0.0.1", product.server.http_port)
        leaving.request("POST", "/v2/models/flux/infer", json.dumps(body))
        brake.wait_held()
        leaving.close()
        wait_answered(product)
    pictures(draw(product, 1, num_inference_steps=1))
    taken = sample("predictors_denoise_steps_total", model="flux") - before
    assert taken == 2  # the step that was about to begin, and the other picture's


def test_a_caller_who_leaves_a_stream_stops_it(product: Running, sample: Sample) -> None:
    before = sample("predictors_generation_tokens_total", model="qwen-vl")
    with (
        openai.OpenAI(base_url=f"{product.url}/v1", api_key="x", max_retries=0) as client,
        braked(product, "qwen-vl", free_steps=8) as brake,
    ):
        asked: dict[str, Any] = {
            "model": "qwen-vl",
            "messages": [{"role": "user", "content": "Hello"}],
        }
        stream = client.chat.completions.create(
            **asked, stream=True, max_tokens=LONG_TOKENS, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        brake.wait_held()
        stream.close()
        wait_answered(product)
        brake.release()
        client.chat.completions.create(**asked, max_tokens=2)
    made = sample("predictors_generation_tokens_total", model="qwen-vl") - before
    assert made < LONG_TOKENS


def test_a_deadline_that_no_drawing_can_meet_is_504_and_leaves_the_next_unharmed(
    product: Running,
) -> None:
    expected = pictures(draw(product, 5))
    with braked(product, "flux"):
        late = draw(product, 5, num_inference_steps=LONG_STEPS, timeout=50_000)
    assert late.status_code == 504
    assert set(late.json()) == {"error"}
    assert pictures(draw(product, 5)) == expected


def test_a_bad_row_names_itself_and_costs_nothing(product: Running, sample: Sample) -> None:
    before = sample("predictors_denoise_steps_total", model="flux")
    seeds = {"name": "seed", "datatype": "INT64", "shape": [2], "data": [1, -2]}
    with product.client() as client:
        body = {"inputs": [prompt_tensor("a", "b"), seeds]}
        reply = client.post("/v2/models/flux/infer", json=body)
    assert reply.status_code == 400
    assert "row 1" in reply.json()["error"]
    assert sample("predictors_denoise_steps_total", model="flux") == before


def test_mixed_traffic_compiles_nothing_and_leaves_no_job_behind(
    product: Running, sample: Sample
) -> None:
    def ask(i: int) -> int:
        if i % 2:
            return draw(product, i, num_inference_steps=2 + i % 3).status_code
        body = {
            "model": "qwen-vl",
            "max_tokens": 4 + i,
            "messages": [{"role": "user", "content": "Hi" * (i + 1)}],
        }
        with product.client() as client:
            return client.post("/v1/chat/completions", json=body).status_code

    # Dynamo counts for the whole process: what other tests compiled before is taken in here
    assert [ask(0), ask(1)] == [200, 200]
    before = sample("predictors_recompilations_total")
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, range(12), timeout=PATIENCE_S * 3)) == {200}
    assert sample("predictors_recompilations_total") == before
    for model in ("flux", "qwen-vl"):
        wait_idle(host_of(product, model))  # an answer comes a moment before
    for name in ("requests_waiting", "requests_running", "kv_cache_usage_ratio"):
        for model in ("flux", "qwen-vl"):
            assert sample(f"predictors_{name}", model=model) == 0, (name, model)
