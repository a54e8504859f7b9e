"""Compiled passes: the same tokens, and nothing compiles once the engine is warm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._inductor.config

from predictors.chat.request import ChatRequest, Controls, Sampling
from tests.chat.room import GREEDY, Room, chat, png
from tests.variants import nested, variant, weights

SAMPLED = Sampling(temperature=1.0, top_p=0.9, top_k=30, frequency_penalty=0.5)
CONTROLS = Controls(logit_bias=((5, 3.0),), min_tokens=2, logprobs=2)
TRAFFIC = (
    chat("greedy, short", max_tokens=5),
    chat(png(1, 40, 40), "small picture"),
    chat(png(2, 300, 120), "large picture", png(3, 90, 90), sampling=SAMPLED, seed=4),
    chat("x" * 200, sampling=replace(SAMPLED, top_k=0, top_p=1.0), seed=5, max_tokens=3),
    chat("long " * 60, sampling=replace(GREEDY, presence_penalty=1.0)),
    chat(png(1, 40, 40), "the same picture again", max_tokens=1),
    chat("greedy with controls", max_tokens=3, controls=CONTROLS),
    chat("drawn", sampling=Sampling(min_p=0.1), seed=6, max_tokens=3, controls=CONTROLS),
    chat("sampled", sampling=replace(SAMPLED, min_p=0.1), max_tokens=3, controls=CONTROLS),
)


def mixed(room: Room) -> list[list[int]]:
    """Traffic of every kind: alone, together, one leaving early."""
    requests: list[ChatRequest] = [replace(r, ignore_eos=True) for r in TRAFFIC]
    alone = [room.answer(request) for request in requests]
    leaver = room.start(requests[2])
    room.engine.step(room.engine.active)
    room.engine.evict(leaver)
    assert room.answers(requests) == alone
    return alone


@pytest.mark.parametrize("deterministic", ["on", "off"])
def test_mixed_traffic_compiles_nothing_after_warming(
    wild_checkpoint: Path, deterministic: str
) -> None:
    """Dynamo alone (`aot_eager`): recompilations are its own, no compiler is needed."""
    room = Room.open(
        wild_checkpoint, "aot_eager", slots=2, prefill_chunk=64, deterministic=deterministic
    )
    compiled = mixed(room)
    assert room.engine.guard.check() == 0
    eager = Room.open(wild_checkpoint, slots=2, prefill_chunk=64, deterministic=deterministic)
    assert compiled == mixed(eager)


def test_the_guard_would_notice_a_shape_that_was_not_warmed(wild_checkpoint: Path) -> None:
    room = Room.open(wild_checkpoint, "aot_eager", slots=1, prefill_chunk=16)
    room.runner.decode_widths = (3,)
    room.answer(chat("hi", max_tokens=2))
    assert room.engine.guard.check() > 0


def first_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [n for n in tensors if n.startswith(("model.layers.1.", "model.layers.2."))]:
        del tensors[name]


@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # Inductor's own imports
def test_inductor_gives_the_same_tokens_and_compiles_nothing_later(
    wild_checkpoint: Path, tmp_path: Path
) -> None:
    """One layer and one width: each shape costs seconds of a C++ compiler."""
    one = nested("config.json", "text_config", num_hidden_layers=1, layer_types=["full_attention"])
    thin = variant(
        wild_checkpoint, tmp_path / "thin", one, weights("model.safetensors", first_layer)
    )
    # no pool of processes, no trial programs; torch's own patch, for pytest's takes the options
    # away in the end
    with torch._inductor.config.patch({"compile_threads": 1, "cpp.vec_isa_ok": True}):
        room = Room.open(thin, "inductor", slots=1, prefill_chunk=1)
        eager = Room.open(thin, slots=1, prefill_chunk=1)
        for request in (TRAFFIC[1], replace(TRAFFIC[3], sampling=SAMPLED)):
            assert room.answer(request) == eager.answer(request)
        assert room.engine.guard.check() == 0
