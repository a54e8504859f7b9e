"""The engine's verbs: admission, chunks, endings, repetition of a failed step, release, caches,
syncs.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from predictors.chat.request import ChatRequest, Sampling
from predictors.chat.runner import ChatRunner
from predictors.chat.vision.pictures import PictureRunner
from predictors.compute.device.placement import place
from predictors.errors import EngineFailed, InvalidRequest, PromptTooLong
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.protocol.openai.chat_body import NO_LIMIT
from predictors.serving.engine import StickyDeviceError
from predictors.settings import ComputeSettings
from tests.chat.injected_failures import fail_after_call
from tests.chat.reference import Reference
from tests.chat.room import CHECKPOINT, Room, chat, deltas_of, png, tokens_of
from tests.tools.syncs import count_host_syncs


def cached(result: str) -> float:
    labels = {"model": "test", "cache": "vision_embedding", "result": result}
    return REGISTRY.get_sample_value("predictors_cache_requests_total", labels) or 0.0


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"predictors_{name}", {"model": "test", **labels}) or 0.0


# -- prompts in chunks ---------------------------------------------------------------------------
@pytest.mark.parametrize("chunk", [1, 5, 32, 64])
def test_a_prompt_in_chunks_gives_the_tokens_of_generate(wild_checkpoint: Path, chunk: int) -> None:
    """Pictures straddle the borders of chunks; with 1 every token is a chunk of its own."""
    room = Room.open(wild_checkpoint, slots=2, prefill_chunk=chunk, page_tokens=7)
    request = chat("look:", png(1, 130, 90), "and", png(2, 60, 160), "then say what you see")
    assert room.inputs.prepare(request).num_prompt_tokens > 64
    assert room.answer(request) == Reference.load(wild_checkpoint).answer(request)


def test_decoding_goes_on_between_the_chunks_of_a_long_prompt(wild_checkpoint: Path) -> None:
    room = Room.open(wild_checkpoint, slots=2, prefill_chunk=16)
    first = room.start(chat("short", max_tokens=30, ignore_eos=True))
    while not tokens_of(first):
        room.engine.step(room.engine.active)
    second = room.start(chat("long " * 40, max_tokens=2, ignore_eos=True))
    before = len(tokens_of(first))
    steps = 0
    while not tokens_of(second):
        room.engine.step(room.engine.active)
        steps += 1
    assert steps > 3
    assert len(tokens_of(first)) == before + steps
    room.finish()


# -- endings -------------------------------------------------------------------------------------
def test_an_answer_ends_at_an_end_token_unless_ignore_eos_is_set(wild: Room) -> None:
    request = chat("end", max_tokens=12, ignore_eos=True)
    tokens = wild.answer(request)
    assert len(tokens) == 12
    ends = wild.model.end_tokens
    wild.model.end_tokens = frozenset([tokens[4]])
    try:
        job = wild.start(replace(request, ignore_eos=False))
        wild.finish()
        assert wild.answer(request) == tokens
    finally:
        wild.model.end_tokens = ends
    assert tokens_of(job) == tokens[: tokens.index(tokens[4]) + 1]
    assert deltas_of(job)[-1].finish_reason == "stop"
    assert job.done


def test_max_tokens_ends_an_answer_and_counts_are_reported(wild: Room) -> None:
    job = wild.start(chat("count", max_tokens=3, ignore_eos=True))
    wild.finish()
    deltas = deltas_of(job)
    assert [d.completion_tokens for d in deltas] == [1, 2, 3]
    assert [d.finish_reason for d in deltas] == [None, None, "length"]
    assert {d.prompt_tokens for d in deltas} == {job.work.num_prompt_tokens}


# -- admission -----------------------------------------------------------------------------------
def test_pages_for_the_worst_case_are_reserved_and_given_back() -> None:
    room = Room.open(slots=4, kv_tokens=128, page_tokens=16)
    request = chat("hi", max_tokens=40)
    prompt = room.inputs.prepare(request).num_prompt_tokens
    first = room.start(replace(request, max_tokens=100 - prompt))
    assert room.pool.num_free == 8 - 7
    second = room.job(request)
    assert not room.engine.admit(second)
    assert room.engine.active == [first]
    room.engine.step(room.engine.active)
    room.engine.evict(first)
    assert room.pool.num_free == 8
    assert value("kv_cache_usage_ratio") == 0
    assert room.engine.admit(second)
    room.finish()
    assert not room.engine.busy
    assert room.pool.num_free == 8
    room.engine.evict(second)  # gone already: nothing happens
    assert room.pool.num_free == 8


def test_no_more_jobs_than_slots_are_admitted(wild: Room) -> None:
    jobs = [wild.start(chat(f"{i}", max_tokens=2)) for i in range(8)]
    ninth = wild.job(chat("ninth"))
    assert not wild.engine.admit(ninth)
    wild.engine.evict(jobs[3])
    assert wild.engine.admit(ninth)
    wild.finish()


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    room = Room.open(slots=1, kv_tokens=32)
    with pytest.raises(PromptTooLong, match=r"is 32 tokens\. .*, 200 in the completion"):
        room.inputs.prepare(chat("hi", max_tokens=200))
    work = room.inputs.prepare(chat("hi", max_tokens=NO_LIMIT))
    assert work.num_prompt_tokens + work.max_tokens == 32
    room.engine.validate(work)
    with pytest.raises(PromptTooLong, match=r"is 32 tokens\. .*requested 33"):
        room.engine.validate(replace(work, max_tokens=work.max_tokens + 1))


# -- a step that fails ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "at"),
    [("reset_slots", 2), *itertools.product(("decode", "prefill", "copy"), (1, 3))],
)
def test_a_step_that_raised_is_repeated_with_the_same_tokens(
    wild: Room, monkeypatch: pytest.MonkeyPatch, method: str, at: int
) -> None:
    sampling = Sampling(temperature=1.0, repetition_penalty=1.2, frequency_penalty=0.4)
    requests = [
        chat(png(1), "first", sampling=sampling, seed=1, ignore_eos=True),
        chat("x" * 300, sampling=sampling, seed=2, ignore_eos=True),
    ]
    alone = [wild.answer(request) for request in requests]
    fail_after_call(monkeypatch, ChatRunner, method, at)
    jobs = [wild.start(request) for request in requests]
    failures = 0
    while wild.engine.busy:
        seen = [len(deltas_of(job)) for job in jobs]
        try:
            wild.engine.step(wild.engine.active)
        except RuntimeError:
            failures += 1
            assert [len(deltas_of(job)) for job in jobs] == seen
            for job in wild.engine.active:  # as the host does when it looks for the culprit
                wild.engine.step([job])
    assert failures == 1
    assert [tokens_of(job) for job in jobs] == alone


def test_a_lost_device_is_reported_as_such(wild: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: ChatRunner, *args: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    job = wild.start(chat("hi"))
    with monkeypatch.context() as patch:
        patch.setattr(ChatRunner, "prefill", lost)
        with pytest.raises(StickyDeviceError):
            wild.engine.step(wild.engine.active)
    wild.engine.evict(job)


# -- pictures ------------------------------------------------------------------------------------
def test_a_repeated_picture_is_encoded_once_and_another_never_takes_its_place(
    wild: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    original = PictureRunner.encode
    monkeypatch.setattr(
        PictureRunner, "encode", lambda self, *one: encoded.append(one) or original(self, *one)
    )
    same, other = chat(png(71), "what?"), chat(png(72), "what?")
    hits = cached("hit")
    first = wild.answer(same)
    assert (len(encoded), cached("hit") - hits) == (1, 0)
    assert wild.answer(same) == first
    assert (len(encoded), cached("hit") - hits) == (1, 1)
    assert wild.answer(other) != first
    assert len(encoded) == 2
    assert wild.answer(chat(png(71), png(72), "what?")) != wild.answer(
        chat(png(72), png(71), "what?")
    )
    assert len(encoded) == 2


def test_the_same_file_at_another_size_is_another_picture(wild_checkpoint: Path) -> None:
    file = png(3, 200, 200)
    small = Room.open(wild_checkpoint, slots=1, max_pixels=112 * 112)
    large = Room.open(wild_checkpoint, slots=1)
    keys = [room.inputs.prepare(chat(file)).pictures[0].prepared.key for room in (small, large)]
    assert keys[0] != keys[1]
    assert small.inputs.prepare(chat(file)).num_prompt_tokens < 60


def test_an_embedding_that_the_cache_dropped_is_kept_by_its_sequence(wild_checkpoint: Path) -> None:
    request = chat(png(1, 160, 160), "describe")
    expected = Room.open(wild_checkpoint, slots=1).answer(request)
    room = Room.open(wild_checkpoint, slots=1, embedding_cache_bytes=0, prefill_chunk=16)
    misses = cached("miss")
    assert room.answer(request) == expected
    assert cached("miss") - misses == 1
    assert room.engine.describe()["caches"]["vision_embedding"] == {"entries": 0, "bytes": 0}


# -- metrics and syncs ---------------------------------------------------------------------------
def test_tokens_and_times_are_counted(wild: Room) -> None:
    names = ("prompt_tokens_total", "vision_tokens_total", "generation_tokens_total")
    counts = ("time_to_first_token_seconds_count", "inter_token_latency_seconds_count")
    before = [value(name) for name in (*names, *counts)]
    job = wild.start(chat(png(90), "count", max_tokens=5, ignore_eos=True))
    wild.finish()
    now = [value(name) for name in (*names, *counts)]
    vision = job.work.pictures[0].length
    grown = [a - b for a, b in zip(now, before, strict=True)]
    assert grown == [job.work.num_prompt_tokens, vision, 5, 1, 4]
    for stage in ("vision_encode", "prefill", "decode"):
        assert value("stage_duration_seconds_count", stage=stage) > 0


def test_a_decode_step_asks_the_device_for_nothing_but_its_tokens(wild: Room) -> None:
    sampled = Sampling(temperature=1.0, top_p=0.9, top_k=5, presence_penalty=1.0)
    requests = [chat(f"{i}", sampling=sampled, max_tokens=6, ignore_eos=True) for i in range(8)]
    jobs = [wild.start(request) for request in requests]
    while not all(tokens_of(job) for job in jobs):
        wild.engine.step(wild.engine.active)
    with count_host_syncs() as found:
        wild.engine.step(wild.engine.active)
    layers = wild.model.shape.layers
    # lists become host tensors (uploads); lengths are read per layer from a host tensor; one read
    assert set(found) <= {"aten::lift_fresh", "Tensor.tolist"}
    assert found["Tensor.tolist"] <= layers + 1
    wild.finish()


def test_an_operator_sees_pages_caches_and_that_nothing_was_captured_late(wild: Room) -> None:
    compiled = wild.engine.describe()["recompilations_after_ready"]  # of the whole process
    job = wild.start(chat(png(95), "look", max_tokens=2, ignore_eos=True))
    running = wild.engine.describe()["running"]
    assert running == {"test": {
        "steps_done": 0, "steps_left": 2, "prompt_done": 0,
        "prompt_tokens": job.work.num_prompt_tokens, "tokens_lost": 0,
        "kv_pages": wild.pool.pages_for(job.work.num_prompt_tokens + 2),
        "is_constrained": False,
    }}  # fmt: skip
    wild.finish()
    told = wild.engine.describe()
    every = wild.pool.num_pages
    assert told["kv_pages"] == {"free": every, "all": every, "preempted": 0}
    assert told["caches"]["prefix"] == {"is_on": False, "pages": 0}  # type: ignore[index]
    assert told["caches"]["vision_embedding"]["entries"] > 0  # type: ignore[index]
    assert (told["captures_after_ready"], told["recompilations_after_ready"]) == (0, compiled)
    assert told["start"] == "plain"
    assert "vision" in told["warm_shapes"]  # type: ignore[operator]


# -- loading -------------------------------------------------------------------------------------
def test_a_checkpoint_without_a_weight_or_with_a_wrong_one_says_which(
    hub_checkpoint: Path, tmp_path: Path
) -> None:
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(CHECKPOINT, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(EngineFailed, match=r"lacks 1 weights, such as model\.norm\.weight"):
        Room.open(broken)
    save_file({**weights, "model.norm.weight": norm[:5].clone()}, broken / "model.safetensors")
    with pytest.raises(EngineFailed, match=r"model\.norm\.weight has shape \[5\]"):
        Room.open(broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(EngineFailed, match="safetensors"):
        Room.open(broken)
    config = json.loads((broken / "config.json").read_text())
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 16, "layer_types": None}
    config["text_config"]["max_window_layers"] = 0
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidRequest, match="sliding window"):
        Qwen25VLModel(broken)


def test_weights_named_as_transformers_five_names_them_load_too(tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    other = shutil.copytree(CHECKPOINT, tmp_path / "new")
    weights = load_file(other / "model.safetensors")
    renamed = {
        name.replace("model.", "model.language_model.", 1)
        if name.startswith("model.")
        else f"model.{name}": tensor
        for name, tensor in weights.items()
    }
    save_file(renamed, other / "model.safetensors")
    placement = place(ComputeSettings(device="cpu", compile="off"))
    ours, theirs = (Qwen25VLModel(x).load(placement) for x in (CHECKPOINT, other))
    towers = (ours.vision._tower, theirs.vision._tower)  # type: ignore[attr-defined]
    for a, b in ((ours.decoder, theirs.decoder), towers):
        assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_a_stretched_context_takes_its_frequencies_from_transformers(tmp_path: Path) -> None:
    import json
    import shutil

    yarn = shutil.copytree(CHECKPOINT, tmp_path / "yarn")
    config = json.loads((yarn / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    (yarn / "config.json").write_text(json.dumps(config))
    assert Qwen25VLModel(yarn).shape.rope_scale != 1.0
    request: ChatRequest = chat(png(5), "far", max_tokens=4)
    assert Room.open(yarn, slots=1).answer(request) == Reference.load(yarn).answer(request)
