"""The engine on a GPU in float32: graphs, kernels, pages, packed and cut prompts, caches. Tokens
are those of transformers on the CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from predictors.chat.rehearsal import Rehearsal, conversations
from predictors.chat.request import Sampling
from predictors.chat.template_checks import PROBES
from predictors.errors import EngineFailed
from tests.chat.reference import Reference
from tests.chat.room import CHECKPOINT, Room, chat, png, tokens_of
from tests.chat.test_not_finite import SAMPLINGS, failed
from tests.models.qwen2_5_vl.test_parity import pairs
from tests.tools.syncs import no_host_syncs

pytestmark = pytest.mark.gpu

CHUNK = 96
LONG: dict[str, Any] = {"ignore_eos": True, "max_tokens": 24}


def open_on_gpu(checkpoint: Path, *, on_device: bool) -> Room:
    """Float32, prompts cut at 96 tokens; `on_device`: pictures are resized there."""
    settings = {"prefill_chunk": CHUNK, "page_tokens": 16}
    return Room.open(checkpoint, "auto", "cuda", dtype="float32", on_device=on_device, **settings)


@pytest.fixture(scope="module")
def gpu() -> Room:
    """The embedded checkpoint, pictures prepared as transformers does."""
    return open_on_gpu(CHECKPOINT, on_device=False)


def test_fifty_conversations_are_answered_as_by_generate_and_again_from_the_caches(
    gpu: Room, reference: Reference
) -> None:
    requests = pairs()
    expected = [reference.answer(request) for request in requests]
    assert gpu.answers(requests) == expected
    assert gpu.answers(requests) == expected
    assert [gpu.answer(request) for request in requests[:12]] == expected[:12]


def test_large_random_weights_are_answered_alike(
    wild_checkpoint: Path,
) -> None:
    requests = pairs()[:20]
    reference = Reference.load(wild_checkpoint)
    expected = [reference.answer(request) for request in requests]
    assert open_on_gpu(wild_checkpoint, on_device=False).answers(requests) == expected


def test_pictures_resized_on_the_device_are_described_alike(reference: Reference) -> None:
    requests = [chat(png(i, 40 + 7 * i, 130 - 3 * i), "Describe the picture.") for i in range(16)]
    found = open_on_gpu(CHECKPOINT, on_device=True).answers(requests)
    expected = [reference.answer(request) for request in requests]
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 15


def test_mixed_traffic_makes_the_host_wait_for_nothing_and_captures_nothing(gpu: Room) -> None:
    drawn = Sampling(temperature=1.0, top_k=20, frequency_penalty=0.3)
    requests = [
        dataclasses.replace(request, sampling=drawn if i % 3 else request.sampling, seed=i)
        for i, request in enumerate(pairs()[10:40])
    ]
    jobs = [gpu.job(request) for request in requests]
    with no_host_syncs():
        while jobs or gpu.engine.busy:
            while jobs and gpu.engine.admit(jobs[0]):
                jobs.pop(0)
            gpu.engine.step(gpu.engine.active)
    assert gpu.engine.guard.check() == 0
    assert gpu.engine._graphs.count_after_ready == 0


# after the others: a second engine compiles, which the first one's guard counts
@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def sharing(request: pytest.FixtureRequest) -> Iterator[Room]:
    """Prompts share pages; pictures are resized on the device."""
    settings: dict[str, Any] = {"prefix_cache": "on", "page_tokens": 16, "prefill_chunk": CHUNK}
    room = Room.open(
        CHECKPOINT, "auto", "cuda", dtype=request.param, on_device=True, slots=4, **settings
    )
    yield room
    room.engine.close()


@pytest.mark.parametrize("way", SAMPLINGS)
def test_a_row_that_is_not_finite_fails_alone_in_every_sampler(sharing: Room, way: str) -> None:
    room = sharing
    asked = [
        chat(png(i), "Describe the picture.", seed=i, sampling=SAMPLINGS[way], **LONG)
        for i in range(3)
    ]
    alone = [room.answer(request) for request in asked]
    jobs = [room.start(request) for request in asked]
    while not all(len(tokens_of(job)) >= 3 for job in jobs):
        room.engine.step(room.engine.active)
    own = room.engine._sequences[jobs[1]]
    for cache in room.runner._passes.caches:  # those of the system prompt are everybody's
        cache[:, list(own.pages[own.num_shared :])] = float("nan")
    with no_host_syncs():
        room.finish()
    failed(jobs[1])
    assert 3 <= len(tokens_of(jobs[1])) < 24
    assert [len(tokens_of(jobs[i])) for i in (0, 2)] == [24, 24]
    if room.engine.describe()["precision"] == "float32":
        assert tokens_of(jobs[1]) == alone[1][: len(tokens_of(jobs[1]))]
        assert [tokens_of(jobs[i]) for i in (0, 2)] == [alone[i] for i in (0, 2)]
    assert room.answer(asked[1]) == alone[1]  # nothing of the spoilt pages is shared
    assert room.engine.guard.check() == 0
    assert room.engine._graphs.count_after_ready == 0


def test_the_conversations_of_the_warm_up_run_in_its_graphs(sharing: Room) -> None:
    own = Rehearsal(sharing.runner, sharing.pictures, sharing.pool, sharing.model.tokenizer)
    works = dict(conversations("test", sharing.model, sharing.inputs, on_device=True))
    for what, work in works.items():
        own.run(what, work)
    assert list(works) == list(PROBES)
    assert sharing.engine.guard.check() == 0
    assert sharing.engine._graphs.count_after_ready == 0
    damaged = Rehearsal(sharing.runner, sharing.pictures, sharing.pool, sharing.model.tokenizer)
    norm = sharing.runner._decoder.norm.weight
    kept = norm.detach().clone()
    with torch.no_grad():
        for value, said in ((0.0, "are all equal"), (float("nan"), "are not finite")):
            norm.fill_(value)
            with pytest.raises(EngineFailed, match=said):
                damaged.run("a turn of text", works["a turn of text"])
        norm.copy_(kept)
