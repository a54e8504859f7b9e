"""Rows of one step with different adapters and with none: each gets its own answer, which is that
of transformers with its adapters merged.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from predictors.chat.invariance import has_equal_rows
from predictors.chat.request import ChatRequest
from tests.chat.adapters.conftest import Adapted
from tests.chat.adapters.peft_files import merged
from tests.chat.reference import Reference
from tests.chat.room import Room, chat, png, tokens_of
from tests.chat.test_paging import few_pages, run, unexpected

PICTURE = chat(png(3, 120, 90), "describe this picture", max_tokens=12)
TEXT = chat("say what you see in a few words", max_tokens=12)
MIXES: dict[str, dict[str, float]] = {
    "none": {},
    "words": {"words": 1.0},
    "eyes": {"eyes": 1.0},
    "both": {"both": 1.0},
    "two": {"words": 0.5, "eyes": -0.75},
    "three": {"both": 0.3, "eyes": 0.5, "words": 0.25},
}


def asked(adapters: Adapted, request: ChatRequest) -> list[ChatRequest]:
    """The request with each mix."""
    return [adapters.request(request, **scales) for scales in MIXES.values()]


@pytest.mark.parametrize("request_", [PICTURE, TEXT], ids=["picture", "text"])
def test_each_row_of_a_mixed_step_gets_the_tokens_of_transformers_with_its_adapters_merged(
    adapters: Adapted, reference: Reference, request_: ChatRequest
) -> None:
    requests = asked(adapters, request_)
    expected = []
    for scales in MIXES.values():
        with merged(reference.model, adapters.merging(**scales)):
            expected.append(reference.answer(request_))
    assert adapters.room.answers(requests) == expected
    different = {tuple(tokens) for tokens in expected}
    assert len(different) >= (len(MIXES) - 1 if request_ is PICTURE else 3)


def test_a_rows_tokens_are_those_it_gets_alone(adapters: Adapted, room: Room) -> None:
    requests = [replace(r, ignore_eos=True) for r in (*asked(adapters, PICTURE), TEXT, PICTURE)]
    alone = [adapters.room.answer(request) for request in requests]
    assert adapters.room.answers(requests) == alone
    assert adapters.room.answers(requests[::-1]) == alone[::-1]
    assert room.answers(requests[-2:]) == alone[-2:]  # an engine without tables


def test_a_row_without_adapters_keeps_its_bits_beside_rows_with_them(adapters: Adapted) -> None:
    """And one with adapters keeps them beside any others: no row has to decode alone."""
    assert len(adapters.room.runner.decode_widths) == 1
    assert adapters.room.runner.decode_widths[0] > 1
    assert has_equal_rows(adapters.room.runner)


def test_an_adapter_of_scale_zero_changes_nothing(adapters: Adapted) -> None:
    still = adapters.request(PICTURE, words=0.0, both=0.0)
    assert still == replace(PICTURE, adapters=still.adapters)
    assert not still.adapters.scales
    assert adapters.room.answer(still) == adapters.room.answer(PICTURE)


def test_the_order_in_which_adapters_are_named_does_not_matter(adapters: Adapted) -> None:
    one = adapters.request(PICTURE, words=0.5, both=0.25)
    other = adapters.request(PICTURE, both=0.25, words=0.5)
    assert one.adapters == other.adapters
    assert one.adapters.language_key != adapters.request(PICTURE, both=0.5).adapters.language_key


def test_a_slot_that_changes_its_adapter_leaves_nothing_of_the_old_one(
    adapters: Adapted,
) -> None:
    """`words` has rank 4 and `both` rank 2 of fewer linears: each takes the other's slot."""
    first = {n: adapters.room.answer(adapters.request(PICTURE, n)) for n in ("words", "both")}
    for _ in range(2):
        for name in ("both", "eyes", "words"):
            adapters.room.answer(adapters.request(PICTURE, name))
    again = {n: adapters.room.answer(adapters.request(PICTURE, n)) for n in ("both", "words")}
    assert again == first


def test_a_step_that_fails_is_repeated_with_the_same_adapters(
    adapters: Adapted, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = adapters.room
    requests = asked(adapters, PICTURE)
    expected = [room.answer(request) for request in requests]
    jobs = [room.start(request) for request in requests]
    for _ in range(3):
        room.engine.step(room.engine.active)
    with monkeypatch.context() as patched:
        patched.setattr(room.runner, "copy", failing)
        with pytest.raises(RuntimeError, match="on purpose"):
            room.engine.step(room.engine.active)
    while room.engine.busy:
        active = list(room.engine.active)
        room.engine.step(active[::2])
        room.engine.step([job for job in active[1::2] if job in room.engine.active])
    assert [tokens_of(job) for job in jobs] == expected


def failing(tokens: torch.Tensor) -> None:
    raise RuntimeError("on purpose")


def test_rows_with_adapters_that_were_preempted_go_on_with_the_same_tokens(
    wild_adapters: Adapted,
) -> None:
    room = wild_adapters.room
    requests = [replace(r, ignore_eos=True, max_tokens=40) for r in asked(wild_adapters, PICTURE)]
    expected = [room.answer(request) for request in requests]
    jobs = unexpected(room, requests)
    with few_pages(room, 24):
        run(room, jobs)
    assert [tokens_of(job) for job in jobs] == expected
    spent = [job.spent_cost - job.work.cost_with(40) for job in jobs]
    assert sum(lost > 0 for lost in spent) >= 2
