"""A model that breaks after its warm-up: values that are not finite are a 500 `job_failed` for the
picture or answer that has them, on every wire and at every tier, and nothing beside it changes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import grpc
import httpx
import openai
import pytest
import torch

from predictors.__main__ import build
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.tasks import make_workers
from predictors.settings import ComputeSettings, FluxSettings, QwenVLSettings, Settings
from tests.http.echo import PATIENCE_S, Running, serving, small_settings
from tests.product.brake import host_of, wait_answered
from tests.variants import FLUX, QWEN

TIERS = ("lossless", "high", "turbo")
SOUND, BROKEN = "a large red circle", "a large blue square that breaks"
"""The prompt of a picture, or the question of a chat; whatever says `breaks` does."""
BREAKS = "breaks"
AFTER = 2
"""Steps, or tokens, before it breaks."""
TOKENS = 8
Ask = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """Both embedded models at all tiers, a step's rows of several callers in one pass."""
    base = small_settings()
    settings = Settings(
        server=base.server,
        queue=base.queue,
        overload=base.overload,
        compute=ComputeSettings(device="cpu"),
        flux=FluxSettings(
            sizes="64x64", default_size="64x64", max_sequence_length=16, default_steps=4,
            tiers=",".join(TIERS), slots=4,
        ),
        qwen_vl=QwenVLSettings(slots=4, max_context=256, prefix_cache="on", page_tokens=16),
    )  # fmt: skip
    workers = make_workers(settings.server)
    models = [build("flux", FLUX, settings, workers), build("qwen", QWEN, settings, workers)]
    started = serving(*models, settings=settings, wait_ready=False, workers=workers)  # type: ignore[arg-type]
    with closing(workers), started as found:
        for model in models:
            model.host.wait_ready(PATIENCE_S)
        break_pictures(host_of(found, "flux")._engine)
        break_answers(host_of(found, "qwen")._engine)
        yield found


def break_pictures(engine: Any) -> None:
    """One latent of a picture whose prompt says so becomes NaN after some steps."""
    step = engine._run_step

    def run(finished: Any, group: Any) -> None:
        step(finished, group)
        for slot in group:
            if BREAKS in slot.job.work.request.prompt and slot.started_state.calls_done == AFTER:
                latents = slot.started_state.latents.clone()
                latents[1, 2] = torch.nan
                slot.started_state.latents = latents

    engine._run_step = run


def break_answers(engine: Any) -> None:
    """The cache of an answer whose prompt says so becomes NaN after some tokens."""
    step, tokenizer = engine.step, engine._model.tokenizer

    def run(jobs: Any) -> None:
        for sequence in list(engine._sequences.values()):
            if len(sequence.answer) < AFTER:
                continue
            if BREAKS in tokenizer.decode(sequence.work.tokens.tolist()):
                own = list(sequence.pages[sequence.num_shared :])
                for cache in engine._launcher.runner._passes.caches:
                    cache[:, own] = torch.nan
        step(jobs)

    engine.step = run


@pytest.fixture
def http(running: Running) -> Iterator[httpx.Client]:
    with running.client() as found:
        yield found


# -- the wires -------------------------------------------------------------------------------------
def picture_over_v2(running: Running, prompt: str, tier: str) -> tuple[int, Any]:
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [prompt]}
    body = {"inputs": [tensor], "parameters": {"seed": 5, "tier": tier}}
    with running.client() as http:
        reply = http.post("/v2/models/flux/infer", json=body)
    if reply.status_code != 200:
        return reply.status_code, reply.json()["error"]
    return 200, base64.b64decode(reply.json()["outputs"][0]["data"][0])


def picture_over_openai(running: Running, prompt: str, tier: str) -> tuple[int, Any]:
    body = {"model": "flux", "prompt": prompt, "tier": tier, "seed": 5}
    with running.client() as http:
        reply = http.post("/v1/images/generations", json=body)
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert error["code"] == "job_failed"
        return reply.status_code, error["message"]
    return 200, base64.b64decode(reply.json()["data"][0]["b64_json"])


def over_grpc(running: Running, model: str, prompt: str, **parameters: Any) -> tuple[int, Any]:
    request = pb.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(prompt.encode())
    for name, value in parameters.items():
        field = "string_param" if isinstance(value, str) else "int64_param"
        setattr(request.parameters[name], field, value)
    with grpc.insecure_channel(running.grpc_target) as channel:
        try:
            reply = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
        except grpc.RpcError as error:
            status = {grpc.StatusCode.INTERNAL: 500}
            return status.get(error.code(), 0), error.details()
    return 200, reply.raw_output_contents[0][4:]


def picture_over_grpc(running: Running, prompt: str, tier: str) -> tuple[int, Any]:
    return over_grpc(running, "flux", prompt, seed=5, tier=tier)


def chat_body(prompt: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "qwen", "messages": [{"role": "user", "content": prompt}], "temperature": 0,
        "max_tokens": TOKENS, "ignore_eos": True, **more,
    }  # fmt: skip


def answer_over_openai(running: Running, prompt: str, tier: str) -> tuple[int, Any]:
    with running.client() as http:
        reply = http.post("/v1/chat/completions", json=chat_body(prompt))
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert error["code"] == "job_failed"
        return reply.status_code, error["message"]
    assert reply.json()["usage"]["completion_tokens"] == TOKENS
    return 200, reply.json()["choices"][0]["message"]["content"]


def answer_over_v2(running: Running, prompt: str, tier: str) -> tuple[int, Any]:
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [prompt]}
    parameters = {"temperature": 0, "max_tokens": TOKENS}
    with running.client() as http:
        body = {"inputs": [tensor], "parameters": parameters}
        reply = http.post("/v2/models/qwen/infer", json=body)
    if reply.status_code != 200:
        return reply.status_code, reply.json()["error"]
    return 200, reply.json()["outputs"][0]["data"][0]


def answer_over_grpc(running: Running, prompt: str, tier: str) -> tuple[int, Any]:
    return over_grpc(running, "qwen", prompt, temperature=0, max_tokens=TOKENS)


PICTURES = {"v2": picture_over_v2, "openai": picture_over_openai, "grpc": picture_over_grpc}
ANSWERS = {"v2": answer_over_v2, "openai": answer_over_openai, "grpc": answer_over_grpc}


def fails_alone(running: Running, ask: Callable[[Running, str, str], Any], tier: str) -> None:
    alone = ask(running, SOUND, tier)
    assert alone[0] == 200
    with ThreadPoolExecutor(3) as callers:
        asked = [callers.submit(ask, running, p, tier) for p in (SOUND, BROKEN, SOUND)]
        first, broken, last = (each.result() for each in asked)
    assert first == last == alone
    assert broken[0] == 500
    assert "values are not finite" in broken[1]
    assert ask(running, SOUND, tier) == alone


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("wire", PICTURES)
def test_a_picture_that_is_not_finite_is_a_500_at_every_tier_and_its_neighbours_are_not(
    running: Running, wire: str, tier: str
) -> None:
    fails_alone(running, PICTURES[wire], tier)


@pytest.mark.parametrize("wire", ANSWERS)
def test_an_answer_that_is_not_finite_is_a_500_and_its_neighbours_are_not(
    running: Running, wire: str
) -> None:
    fails_alone(running, ANSWERS[wire], "")


def test_a_streamed_answer_ends_with_an_error_event_after_its_sound_tokens(
    http: httpx.Client,
) -> None:
    with http.stream("POST", "/v1/chat/completions", json=chat_body(BROKEN, stream=True)) as reply:
        assert reply.status_code == 200
        events = [line.removeprefix("data: ") for line in reply.iter_lines() if line[:5] == "data:"]
    made = [json.loads(event) for event in events if event != "[DONE]"]
    assert made[-1]["error"]["code"] == "job_failed"
    assert "not finite" in made[-1]["error"]["message"]
    assert not any(c["finish_reason"] for event in made[:-1] for c in event["choices"])


def test_the_openai_client_raises_it_in_a_stream(running: Running) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client:
        stream: Any = client.chat.completions.create(**chat_client_body(), stream=True)
        with pytest.raises(openai.APIError, match="not finite"):
            list(stream)


def chat_client_body() -> dict[str, Any]:
    body = chat_body(BROKEN)
    return body | {"extra_body": {"ignore_eos": body.pop("ignore_eos")}}


def test_one_row_of_a_call_fails_the_call_and_not_the_engine(http: httpx.Client) -> None:
    prompts = [SOUND, BROKEN, SOUND]
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [3], "data": prompts}
    reply = http.post("/v2/models/flux/infer", json={"inputs": [tensor]})
    assert reply.status_code == 500
    assert "not finite" in reply.json()["error"]
    for model in ("flux", "qwen"):
        assert http.get(f"/v2/models/{model}/ready").status_code == 200


def test_the_same_prompt_is_answered_again_once_the_model_is_sound(running: Running) -> None:
    """Nothing of a broken answer is kept: no page of its prompt, no embedding of its words."""
    wait_answered(running)
    engine = host_of(running, "qwen")._engine
    assert answer_over_openai(running, BROKEN, "")[0] == 500
    wait_answered(running)
    mended, engine.step = engine.step, type(engine).step.__get__(engine)
    try:
        found = answer_over_openai(running, BROKEN, "")
        assert found[0] == 200
        assert answer_over_openai(running, BROKEN, "") == found
    finally:
        engine.step = mended
