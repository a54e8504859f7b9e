"""Pages that prompts share: their names, and that sharing never changes an answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prometheus_client import REGISTRY

from predictors.chat.kv_cache import page_names
from predictors.chat.limits import shares_prefixes
from predictors.chat.pixel_bounds import PixelBounds
from predictors.chat.request import ChatRequest, Message, Picture, Sampling
from predictors.chat.rows import PromptPart
from predictors.chat.runner import ChatRunner
from predictors.chat.vision.pictures import PictureRunner
from predictors.chat.work import ChatWork
from predictors.compute.device.placement import Placement
from predictors.settings import QwenVLSettings
from tests.chat.room import Room, chat, png, tokens_of

SAMPLED = Sampling(
    temperature=1.0, repetition_penalty=1.3, presence_penalty=0.3, frequency_penalty=0.4
)
SYSTEM = Message("system", ("You look at pictures and tell in a few words what is in them. " * 2,))
LETTERS = ("first", "second", "third")


def counted(result: str) -> float:
    labels = {"model": "test", "cache": "prefix", "result": result}
    return REGISTRY.get_sample_value("predictors_cache_requests_total", labels) or 0.0


def asked(picture: bytes, question: str, seed: int = 0) -> ChatRequest:
    """A shared system prompt, a picture and a question."""
    turn = Message("user", (Picture(picture), question))
    return ChatRequest((SYSTEM, turn), SAMPLED, seed, max_tokens=8, ignore_eos=True)


@pytest.fixture(params=["at once", "ahead"])
def sharing(request: pytest.FixtureRequest, wild_checkpoint: Path) -> Room:
    """Empty and sharing; small pages and chunks, so that borders lie everywhere."""
    opened = Room.open_ahead if request.param == "ahead" else Room.open
    return opened(wild_checkpoint, prefix_cache="on", page_tokens=8, prefill_chunk=32)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompt tokens that were computed, pass by pass."""
    found: list[int] = []
    prefill = ChatRunner.prefill

    def reading(self: ChatRunner, pieces: list[PromptPart], width: int) -> torch.Tensor:
        found.append(sum(len(piece.tokens) for piece in pieces))
        return prefill(self, pieces, width)

    monkeypatch.setattr(ChatRunner, "prefill", reading)
    return found


# -- names ---------------------------------------------------------------------------------------
def test_a_name_depends_on_everything_before_the_end_of_its_page(wild: Room) -> None:
    base = wild.inputs.prepare(asked(png(1), "what is this, please tell me?"))
    names = page_names(base, 8)
    assert len(names) == (base.num_prompt_tokens - 1) // 8
    assert len(set(names)) == len(names)
    for index in range(base.num_prompt_tokens):
        tokens = base.tokens.clone()
        tokens[index] += 1
        other = page_names(replace(base, tokens=tokens), 8)
        same = [a == b for a, b in zip(names, other, strict=True)]
        assert same == [page < index // 8 for page in range(len(names))]


def test_pictures_of_equal_size_have_equal_tokens_but_not_equal_names(wild: Room) -> None:
    works = [wild.inputs.prepare(asked(png(i), "what?")) for i in (1, 2)]
    assert torch.equal(works[0].tokens, works[1].tokens)
    first, second = (page_names(work, 8) for work in works)
    start = works[0].pictures[0].start // 8
    assert first[:start] == second[:start]
    assert not set(first[start:]) & set(second[start:])


@pytest.mark.parametrize("tokens", [1, 8, 9, 16, 17])
def test_the_last_token_of_a_prompt_is_never_in_a_named_page(wild: Room, tokens: int) -> None:
    work: ChatWork = wild.inputs.prepare(chat("x" * 100))
    cut = replace(work, tokens=work.tokens[:tokens])
    assert len(page_names(cut, 8)) == (tokens - 1) // 8


# -- answers -------------------------------------------------------------------------------------
def test_a_shared_prefix_never_changes_an_answer(
    sharing: Room, wild: Room, read: list[int]
) -> None:
    """Other pictures of the same size, other questions, sampled with penalties over the prompt."""
    requests = [
        asked(png(picture), f"what is the {word} thing here?", seed)
        for seed, (picture, word) in enumerate([(p, w) for p in (1, 2, 3) for w in LETTERS])
    ]
    expected = [wild.answer(request) for request in requests]
    assert len({tuple(tokens) for tokens in expected}) == len(requests)
    total = sum(sharing.inputs.prepare(request).num_prompt_tokens for request in requests)
    read.clear()
    hits = counted("hit")
    assert [sharing.answer(request) for request in requests] == expected
    assert sum(read) < total / 2
    assert counted("hit") - hits == len(requests) - 1
    read.clear()
    assert sharing.answers(requests) == expected  # all at once, everything is there by now
    assert sum(read) <= 8 * len(requests)


def test_the_same_text_with_another_picture_is_answered_for_that_picture(
    sharing: Room, wild: Room
) -> None:
    requests = [replace(asked(png(i), "what is it?"), seed=1) for i in (11, 12, 11, 13, 12)]
    expected = [wild.answer(request) for request in requests]
    assert len({tuple(tokens) for tokens in expected}) == 3
    assert [sharing.answer(request) for request in requests] == expected


def test_the_next_message_of_a_conversation_reads_only_new_pages(
    sharing: Room, wild: Room, read: list[int]
) -> None:
    opening = asked(png(21, 90, 120), "what is in the upper half?")
    messages = (
        *opening.messages,
        Message("assistant", ("a square and a circle",)),
        Message("user", ("and below?", Picture(png(22)))),
    )
    following = replace(opening, messages=messages)
    expected = [wild.answer(opening), wild.answer(following)]
    read.clear()
    assert sharing.answer(opening) == expected[0]
    first = sum(read)
    assert sharing.answer(following) == expected[1]
    total = sharing.inputs.prepare(following).num_prompt_tokens
    # all but the start of the assistant's turn and what does not fill a page
    assert sum(read) - first <= total - (first - 16)


def test_prompts_that_arrive_together_share_the_pages_the_first_one_reads(
    sharing: Room, wild: Room, read: list[int]
) -> None:
    requests = [asked(png(31, 120, 120), f"question {i}", i) for i in range(6)]
    expected = [wild.answer(request) for request in requests]
    total = sum(wild.inputs.prepare(request).num_prompt_tokens for request in requests)
    read.clear()
    assert sharing.answers(requests) == expected
    assert sum(read) < total / 2


def test_a_picture_inside_a_shared_prefix_is_not_encoded(
    sharing: Room, wild: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(png(41), "what is in the picture that you see before you now?")
    expected = wild.answer(request)
    sharing.answer(request)
    sharing.engine._picture_cache._kept._entries.clear()

    def never(self: PictureRunner, *picture: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(PictureRunner, "encode", never)
    assert sharing.answer(request) == expected


# -- pages ---------------------------------------------------------------------------------------
def test_sharers_leave_the_pages_they_read_as_they_are(sharing: Room) -> None:
    request = asked(png(51), "a question of some length, so that there are pages", 1)
    sharing.answer(request)
    pool, caches = sharing.pool, sharing.runner._passes.caches
    pages = list(pool._name_of)
    before = [cache[:, pages].clone() for cache in caches]
    others = [replace(request, seed=i) for i in range(4)] + [asked(png(51), "another")]
    sharing.answers(others)
    leaver = sharing.start(request)
    sharing.engine.step([leaver])
    sharing.engine.evict(leaver)
    for cache, kept in zip(caches, before, strict=True):
        assert torch.equal(cache[:, pages], kept)
    assert pool.num_free == pool.num_pages


def test_kept_pages_never_stand_in_the_way_of_an_admission(wild_checkpoint: Path) -> None:
    room = Room.open(
        wild_checkpoint, slots=2, prefix_cache="on", page_tokens=8, kv_tokens=96, max_context=256
    )
    plain = Room.open(wild_checkpoint, slots=2, max_context=256)
    requests = [asked(png(i), f"question {i}", i) for i in range(8)]
    evicted = counted("evict")
    assert [room.answer(request) for request in requests] == [plain.answer(r) for r in requests]
    pool = room.pool
    assert counted("evict") > evicted
    assert (pool.num_free, pool.usage) == (pool.num_pages, 0.0)
    assert 0 < pool.num_named <= pool.num_pages
    assert room.engine.describe()["caches"]["prefix"] == {"is_on": True, "pages": pool.num_named}  # type: ignore[index]


def test_pages_that_were_left_half_read_are_not_shared(sharing: Room, wild: Room) -> None:
    request = asked(png(61, 120, 120), "what?")
    leaver = sharing.start(request)
    sharing.engine.step([leaver])
    assert not tokens_of(leaver)
    sharing.engine.evict(leaver)
    assert sharing.answer(request) == wild.answer(request)


# -- the setting ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("setting", "device", "is_deterministic", "expected"),
    [
        ("auto", "cuda", False, True),
        ("auto", "cuda", True, False),
        ("auto", "cpu", False, False),
        ("on", "cpu", True, True),
        ("off", "cuda", False, False),
    ],
)
def test_prefixes_are_kept_on_a_gpu_unless_history_must_not_matter(
    setting: str, device: str, is_deterministic: bool, expected: bool
) -> None:
    placement = Placement(torch.device(device), torch.float32, "off")
    deterministic = "on" if is_deterministic else "off"
    settings = QwenVLSettings(prefix_cache=setting, deterministic=deterministic)
    assert shares_prefixes(settings, placement) == expected


def test_prefixes_are_not_kept_by_default_on_the_cpu(wild: Room) -> None:
    assert wild.pool.num_named == 0


def test_one_file_at_two_budgets_shares_what_is_before_it_and_no_more(
    wild: Room, sharing: Room
) -> None:
    def at(most: int) -> ChatRequest:
        picture = Picture(png(31, 200, 200), bounds=PixelBounds(3136, most))
        turn = Message("user", (picture, "what is this?"))
        return ChatRequest((SYSTEM, turn), SAMPLED, 0, max_tokens=8, ignore_eos=True)

    small, large = at(112 * 112), at(200 * 200)
    expected = [wild.answer(small), wild.answer(large)]
    assert expected[0] != expected[1]
    for _ in range(2):
        assert [sharing.answer(small), sharing.answer(large)] == expected
    first, second = (page_names(sharing.inputs.prepare(each), 8) for each in (small, large))
    start = sharing.inputs.prepare(small).pictures[0].start
    same = [a == b for a, b in zip(first, second, strict=False)]
    assert same == [8 * (page + 1) <= start for page in range(len(first))]
