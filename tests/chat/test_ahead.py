"""One step ahead and several prompts per pass, as on a GPU: the tokens are those of the plain path,
also when other jobs come, leave or end early.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from predictors.chat.request import Sampling
from predictors.chat.rows import DecodeRows, PromptPart
from predictors.chat.runner import ChatRunner
from predictors.chat.vision.pictures import PictureRunner
from predictors.compute.device.placement import HostCopy
from tests.chat.injected_failures import fail_after_call, finish_with_repeats
from tests.chat.reference import Reference
from tests.chat.room import Room, chat, deltas_of, png, tokens_of
from tests.chat.test_invariance import EIGHT, random_traffic

SAMPLED = Sampling(temperature=1.0, repetition_penalty=1.2, frequency_penalty=0.4)


@pytest.fixture(scope="module")
def ahead(wild_checkpoint: Path) -> Room:
    """Short chunks, so that prompts are cut and share passes."""
    return Room.open_ahead(wild_checkpoint, prefill_chunk=64)


@pytest.fixture(scope="module")
def plain(wild: Room) -> list[list[int]]:
    """The tokens of each of the eight alone, each step read at once."""
    return [wild.answer(replace(request, ignore_eos=True)) for request in EIGHT]


def until_told(room: Room, *jobs: Any) -> None:
    """Step until each of these has a token."""
    while not all(tokens_of(job) for job in jobs):
        room.engine.step(room.engine.active)


# -- tokens --------------------------------------------------------------------------------------
def test_answers_are_those_of_generate(wild_checkpoint: Path, ahead: Room) -> None:
    requests = [
        chat("look:", png(1, 130, 90), "and", png(2, 60, 160), "then say what you see"),
        chat("only text", max_tokens=1),
        chat(png(3, 60, 60), "short"),
    ]
    expected = [Reference.load(wild_checkpoint).answer(request) for request in requests]
    assert ahead.answers(requests) == expected


def test_eight_jobs_together_give_the_tokens_of_the_plain_path(
    ahead: Room, plain: list[list[int]]
) -> None:
    assert ahead.answers([replace(request, ignore_eos=True) for request in EIGHT]) == plain


@pytest.mark.parametrize("seed", range(4))
def test_answers_stay_the_same_when_other_jobs_come_leave_or_are_stepped_apart(
    ahead: Room, plain: list[list[int]], seed: int
) -> None:
    stayed = random_traffic(ahead, seed)
    assert stayed == {i: plain[i] for i in stayed}


def test_tokens_of_rows_outlive_the_passes_over_prompts_in_their_step(
    ahead: Room, plain: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pass writes its tokens to the same memory, as graphs do."""
    memory = torch.zeros(64, dtype=torch.int64)
    decode, prefill = ChatRunner.decode, ChatRunner.prefill

    def decode_there(self: ChatRunner, rows: DecodeRows) -> torch.Tensor:
        return memory[: len(rows)].copy_(decode(self, rows))

    def prefill_there(self: ChatRunner, *args: Any) -> torch.Tensor:
        tokens = prefill(self, *args)
        memory.fill_(7)
        return tokens

    monkeypatch.setattr(ChatRunner, "decode", decode_there)
    monkeypatch.setattr(ChatRunner, "prefill", prefill_there)
    monkeypatch.setattr(ChatRunner, "copy", lambda self, tokens: HostCopy(tokens.clone(), None))
    assert ahead.answers([replace(request, ignore_eos=True) for request in EIGHT]) == plain


# -- one step in flight --------------------------------------------------------------------------
def test_a_step_is_launched_before_the_one_before_it_is_read(
    ahead: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    decode, result = ChatRunner.decode, HostCopy.result
    monkeypatch.setattr(
        ChatRunner, "decode", lambda self, rows: order.append("launch") or decode(self, rows)
    )
    monkeypatch.setattr(HostCopy, "result", lambda self: order.append("read") or result(self))
    job = ahead.start(chat("hi", max_tokens=4, ignore_eos=True))
    told = []
    while ahead.engine.busy:
        ahead.engine.step([job])
        told.append(len(tokens_of(job)))
    # the prompt, three decode steps of which each but the first reads, and one that only reads
    assert order == ["launch", "read"] * 3 + ["read"]
    assert told == [0, 1, 2, 3, 4]
    assert job.done


def test_a_prompt_of_many_chunks_is_not_launched_more_than_a_step_ahead(
    ahead: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    prefill, result = ChatRunner.prefill, HostCopy.result
    monkeypatch.setattr(
        ChatRunner, "prefill", lambda self, *args: order.append("launch") or prefill(self, *args)
    )
    monkeypatch.setattr(HostCopy, "result", lambda self: order.append("read") or result(self))
    ahead.answer(chat("long " * 250, max_tokens=1))
    assert order == ["launch", *["launch", "read"] * (order.count("launch") - 1), "read"]
    assert order.count("launch") > 3


@pytest.mark.parametrize("most", [1, 2])
def test_no_token_is_launched_beyond_max_tokens(
    ahead: Room, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    numbers: list[int] = []
    decode = ChatRunner.decode

    def seen(self: ChatRunner, rows: DecodeRows) -> object:
        numbers.extend(rows.choices.ints[1].tolist())
        return decode(self, rows)

    monkeypatch.setattr(ChatRunner, "decode", seen)
    assert len(ahead.answer(chat("hi", max_tokens=most, ignore_eos=True))) == most
    assert numbers == list(range(1, most))


def test_the_token_after_an_end_of_turn_is_dropped_and_its_slot_serves_the_next(
    ahead: Room, wild: Room
) -> None:
    sampled = replace(SAMPLED, presence_penalty=0.5)
    request = chat("end", max_tokens=12, sampling=sampled, seed=3)
    tokens = wild.answer(replace(request, ignore_eos=True))
    following = chat("next in line", sampling=sampled, seed=4, ignore_eos=True)
    expected = wild.answer(following)
    engine, ends = ahead.engine, ahead.model.end_tokens
    ahead.model.end_tokens = frozenset([tokens[4]])
    try:
        job = ahead.start(request)
        while not job.done:
            engine.step([job])
        assert engine._in_flight is not None  # the surplus token
        free = list(engine._free_slots)
        after = ahead.start(following)
        assert engine._sequences[after].slot == free[-1]
        ahead.finish()
    finally:
        ahead.model.end_tokens = ends
    assert tokens_of(job) == tokens[: tokens.index(tokens[4]) + 1]
    assert deltas_of(job)[-1].finish_reason == "stop"
    assert tokens_of(after) == expected


# -- a step that fails ---------------------------------------------------------------------------
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("owner", "method", "at"),
    [
        (ChatRunner, "reset_slots", 1),
        (ChatRunner, "reset_slots", 2),
        *(
            (owner, method, at)
            for at in (1, 4)
            for owner, method in (
                (ChatRunner, "decode"),
                (ChatRunner, "prefill"),
                (ChatRunner, "copy"),
                (HostCopy, "result"),
                (PictureRunner, "encode"),
            )
        ),
    ],
)
def test_a_step_that_raised_is_repeated_with_the_same_tokens(
    ahead: Room, wild: Room, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, at: int,
    together: bool,
) -> None:  # fmt: skip
    requests = [
        chat(png(at), "first", png(at + 20), sampling=SAMPLED, seed=1, ignore_eos=True),
        chat("x" * 300, sampling=SAMPLED, seed=2, ignore_eos=True, max_tokens=3),
        chat(png(at + 40), png(at + 60), sampling=SAMPLED, seed=3, ignore_eos=True, max_tokens=2),
        chat("short", sampling=SAMPLED, seed=4, ignore_eos=True, max_tokens=1),
    ]
    alone = [wild.answer(request) for request in requests]
    ahead.engine._picture_cache._kept._entries.clear()
    fail_after_call(monkeypatch, owner, method, at)
    jobs = [ahead.start(request) for request in requests]
    assert finish_with_repeats(ahead, jobs, together=together) == 1
    assert [tokens_of(job) for job in jobs] == alone


# -- passes --------------------------------------------------------------------------------------
def test_prompts_share_a_pass_and_one_picture_is_encoded_per_step(
    wild_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room.open_ahead(wild_checkpoint, prefill_chunk=512)
    passes: list[list[PromptPart]] = []
    encoded: list[int] = []
    prefill, encode = ChatRunner.prefill, PictureRunner.encode
    monkeypatch.setattr(
        ChatRunner, "prefill", lambda self, p, width: passes.append(p) or prefill(self, p, width)
    )
    monkeypatch.setattr(
        PictureRunner,
        "encode",
        lambda self, *one: encoded.append(len(passes)) or encode(self, *one),
    )
    monkeypatch.setattr("predictors.chat.planning.PICTURE_TOKENS", 1)
    requests = [chat("one"), chat(png(1), "two"), chat(png(2), "three"), chat("four")]
    jobs = [room.start(request) for request in requests]
    until_told(room, *jobs)
    assert [len(pieces) for pieces in passes] == [4, 1]  # the third is cut before its picture
    assert encoded == [0, 1]
    room.finish()
    assert [tokens_of(job) for job in jobs] == room.answers(requests)
