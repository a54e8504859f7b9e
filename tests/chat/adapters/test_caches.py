"""The prefix cache and the picture cache never mix what adapters change, and share the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from predictors.chat.kv_cache import page_names
from predictors.chat.request import ChatRequest, Message, Picture
from tests.chat.adapters.conftest import TABLES, Adapted, adapted
from tests.chat.room import GREEDY, Room, png

SYSTEM = Message("system", ("You look at pictures and tell in a few words what is in them. " * 2,))
ASKED = ChatRequest(
    (SYSTEM, Message("user", (Picture(png(5, 120, 90)), "what is this, please tell me?"))),
    GREEDY, seed=0, max_tokens=8, ignore_eos=True,
)  # fmt: skip
NAMES: tuple[tuple[str, ...], ...] = ((), ("words",), ("eyes",), ("both",), ("words", "eyes"))


def counted(cache: str, result: str) -> float:
    labels = {"model": "test", "cache": cache, "result": result}
    return REGISTRY.get_sample_value("predictors_cache_requests_total", labels) or 0.0


@pytest.fixture(scope="module", params=["at once", "ahead"])
def sharing(request: pytest.FixtureRequest, adapters: Adapted, wild_checkpoint: Path) -> Adapted:
    """The same adapters over an engine that shares prefixes."""
    opened = Room.open_ahead if request.param == "ahead" else Room.open
    settings = {"prefix_cache": "on", "page_tokens": 8, "prefill_chunk": 32}
    return adapted(opened(wild_checkpoint, **TABLES, **settings), adapters.folders)


def test_shared_pages_and_pictures_never_change_an_answer(
    sharing: Adapted, wild_adapters: Adapted
) -> None:
    fresh = wild_adapters
    expected = [fresh.room.answer(fresh.request(ASKED, *names)) for names in NAMES]
    assert len({tuple(tokens) for tokens in expected}) == len(NAMES)
    requests = [sharing.request(ASKED, *names) for names in NAMES]
    hits = counted("prefix", "hit")
    for order in (requests, requests[::-1]):
        found = [sharing.room.answer(request) for request in order]
        assert found == (expected if order is requests else expected[::-1])
    assert counted("prefix", "hit") - hits >= len(NAMES)  # all of the second round
    assert sharing.room.answers(requests) == expected


def names_of(adapters: Adapted, *names: str) -> tuple[bytes, ...]:
    return page_names(adapters.room.inputs.prepare(adapters.request(ASKED, *names)), 8)


def test_pages_are_named_by_the_adapters_that_change_them(adapters: Adapted) -> None:
    plain, words, eyes, both = (names_of(adapters, *n) for n in NAMES[:4])
    work = adapters.room.inputs.prepare(ASKED)
    before = work.pictures[0].start // 8
    assert before > 2
    assert eyes[:before] == plain[:before]  # the tower changes nothing before the picture
    assert not set(eyes[before:]) & set(plain)
    assert not set(words) & {*plain, *eyes}
    assert not set(both) & {*plain, *eyes, *words}
    half = page_names(adapters.room.inputs.prepare(adapters.request(ASKED, words=0.5)), 8)
    assert not set(half) & set(words)


def test_a_picture_is_encoded_again_for_the_towers_adapters_alone(adapters: Adapted) -> None:
    request = replace(ASKED, messages=(Message("user", (Picture(png(77, 90, 90)), "what?")),))
    seen = []
    for names in ((), ("words",), ("eyes",), ("eyes", "words"), ("both",), ("both",)):
        misses = counted("vision_embedding", "miss")
        adapters.room.answer(adapters.request(request, *names))
        seen.append(counted("vision_embedding", "miss") - misses)
    assert seen == [1, 0, 1, 0, 1, 0]


def test_an_adapter_under_another_name_shares_what_the_first_one_made(
    sharing: Adapted, tmp_path: Path
) -> None:
    sharing.named.add("copy", sharing.folders["both"])
    try:
        request = replace(ASKED, messages=(Message("user", (Picture(png(78)), "what? " * 9)),))
        first = sharing.room.answer(sharing.request(request, "both"))
        hits = counted("prefix", "hit")
        assert sharing.room.answer(sharing.request(request, "copy")) == first
        assert counted("prefix", "hit") == hits + 1
    finally:
        sharing.named.remove("copy")
