"""Warm-up runs a text, pictures and a history through the whole model, leaves nothing behind, and
names what it finds wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from predictors.chat.rehearsal import Rehearsal, conversations
from predictors.chat.template_checks import PROBES
from predictors.errors import EngineFailed
from tests.chat.room import Room, chat, png


def rehearsal(room: Room) -> Rehearsal:
    return Rehearsal(room.runner, room.pictures, room.pool, room.model.tokenizer)


def rehearse(room: Room) -> list[str]:
    """The names of the conversations that were tried."""
    own, tried = rehearsal(room), []
    for what, work in conversations("test", room.model, room.inputs, on_device=False):
        own.run(what, work)
        tried.append(what)
    return tried


@pytest.fixture(scope="module", params=[16, 256])
def small(request: pytest.FixtureRequest, wild_checkpoint: Path) -> Room:
    """Large random weights, prompts in several chunks or in one."""
    return Room.open(wild_checkpoint, slots=2, prefill_chunk=request.param, prefix_cache="on")


def test_every_conversation_is_tried_and_nothing_is_left_of_it(small: Room) -> None:
    asked = chat(png(1), "what is in this picture", ignore_eos=True)
    before = small.answer(asked)
    named = small.pool.num_named
    assert rehearse(small) == [*PROBES, "a film"]
    assert small.pool.num_free == small.pool.num_pages
    assert small.pool.num_named == named
    assert not small.engine.busy
    assert small.answer(asked) == before


def test_it_looks_at_the_logits_that_a_job_would_have(
    small: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    look = Rehearsal._check

    def check(self: Rehearsal, logits: torch.Tensor, what: str) -> None:
        seen.append(int(logits[0].argmax()))
        look(self, logits, what)

    monkeypatch.setattr(Rehearsal, "_check", check)
    own, told = rehearsal(small), []
    for what, work in conversations("test", small.model, small.inputs, on_device=False):
        own.run(what, work)
        job = small.job(chat("x"))
        job.work = work
        assert small.engine.admit(job)
        small.finish()
        told.append(job._chunks[0].tokens[0])
    assert seen[::2] == told
    assert len(seen) == 2 * (len(PROBES) + 1)


def test_a_likeliest_token_beyond_the_tokenizer_fails_the_start(small: Room) -> None:
    class Shorter:
        def id_to_token(self, token: int) -> None:
            return None

    shorter: Any = Shorter()
    own = Rehearsal(small.runner, small.pictures, small.pool, shorter)
    work = next(iter(conversations("test", small.model, small.inputs, on_device=False)))[1]
    with pytest.raises(EngineFailed, match=r"likeliest token .* which the tokenizer does not have"):
        own.run("a turn of text", work)
    assert small.pool.num_free == small.pool.num_pages


def test_a_conversation_that_does_not_fit_is_left_out_with_a_word(
    wild_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = Room.open(wild_checkpoint, slots=1, max_context=32, page_tokens=16)
    with caplog.at_level(logging.WARNING):
        tried = rehearse(room)
    missing = set(PROBES) - set(tried)
    assert missing
    assert {name for name in PROBES if f"test: {name} was not tried" in caplog.text} == missing


def test_a_sampler_that_does_not_obey_a_mask_fails_the_start(
    small: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("predictors.chat.logit_changes.change_logits", lambda logits, _: logits)
    with pytest.raises(EngineFailed, match="under a mask that allows token"):
        rehearse(small)
    assert small.pool.num_free == small.pool.num_pages
