"""The tables' slots: who holds them, who is turned out, and who waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.chat.adapters.adapter import ChatAdapter
from predictors.chat.adapters.mix import AdapterMix
from predictors.chat.adapters.slots import AdapterSlots
from predictors.compute.checkpoint.summary import AdapterSummary
from tests.chat.adapters.conftest import TABLES, Adapted, adapted
from tests.chat.room import CHECKPOINT, Room, chat, png, tokens_of

SUMMARY = AdapterSummary("", "", "PEFT", "", 1, {}, 0)
EACH = [ChatAdapter(str(i), f"{i:064}", {}, SUMMARY) for i in range(5)]
ASKED = chat(png(4, 90, 60), "describe it", max_tokens=6, ignore_eos=True)


class Tables:
    """Remembers which adapter was written into which slot."""

    def __init__(self) -> None:
        self.held: dict[int, ChatAdapter] = {}
        self.writes = 0

    def write(self, slot: int, adapter: ChatAdapter) -> None:
        self.held[slot] = adapter
        self.writes += 1


def made(count: int) -> tuple[AdapterSlots, Tables]:
    slots, tables = AdapterSlots(count), Tables()
    slots._tables = tables  # type: ignore[assignment]
    return slots, tables


def mix_of(*numbers: int) -> AdapterMix:
    return AdapterMix.of([(EACH[i], 1.0) for i in numbers])


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 9), st.sets(st.integers(0, 4), min_size=1)), max_size=60),
)
def test_an_adapter_in_use_keeps_its_slot(count: int, moves: list[tuple[int, set[int]]]) -> None:
    """Each move is a job's arrival with some adapters, or its departure if it is there."""
    slots, tables = made(count)
    there: dict[int, set[int]] = {}
    for job, numbers in moves:
        if job in there:
            slots.release(job)
            del there[job]
            continue
        mix = mix_of(*numbers)
        in_use = set().union(*there.values())
        assert slots.has_room(mix) == (len(in_use | numbers) <= count)
        if slots.has_room(mix):
            slots.hold(job, mix)
            there[job] = numbers
        for held in there.values():
            assert {EACH[i] for i in held} <= set(tables.held.values())
        assert set(tables.held) <= set(range(count))
        used = {str(i): sum(i in held for held in there.values()) for i in range(5)}
        assert slots.describe() == {name: count for name, count in used.items() if count}


def test_an_idle_adapter_is_kept_until_its_slot_is_needed() -> None:
    slots, tables = made(2)
    for number in (0, 1, 0, 1, 1):
        slots.hold("job", mix_of(number))
        slots.release("job")
    assert tables.writes == 2
    slots.hold("job", mix_of(2))  # the least recently used one goes
    assert set(tables.held.values()) == {EACH[1], EACH[2]}


def test_a_write_that_fails_leaves_the_slot_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    slots, tables = made(1)
    slots.hold("first", mix_of(0))
    slots.release("first")
    with monkeypatch.context() as patched:
        patched.setattr(tables, "write", failing)
        with pytest.raises(RuntimeError, match="on purpose"):
            slots.hold("second", mix_of(1))
    slots.release("second")
    assert slots.describe() == {}
    assert slots.has_room(mix_of(1))
    slots.hold("third", mix_of(1))
    assert slots.describe() == {"1": 1}


def failing(slot: int, adapter: ChatAdapter) -> None:
    raise RuntimeError("on purpose")


# -- in an engine ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def narrow(adapters: Adapted) -> Adapted:
    """Room for one adapter at a time."""
    room = Room.open(CHECKPOINT, **{**TABLES, "lora_max_active": 1})
    return adapted(room, adapters.folders, lora_max_active=1)


def test_a_job_whose_adapter_has_no_slot_waits_and_others_go_on(
    narrow: Adapted, adapters: Adapted
) -> None:
    engine = narrow.room.engine
    expected = {
        names: adapters.room.answer(adapters.request(ASKED, *names))
        for names in ((), ("words",), ("eyes",))
    }
    words = narrow.room.start(narrow.request(ASKED, "words"))
    eyes = narrow.room.job(narrow.request(ASKED, "eyes"))
    free = engine._pages.pool.num_free
    assert not engine.admit(eyes)
    assert engine._pages.pool.num_free == free  # nothing has changed
    assert eyes not in engine.active
    more = [narrow.room.start(narrow.request(ASKED, *names)) for names in ((), ("words",))]
    narrow.room.finish()
    assert engine.admit(eyes)
    narrow.room.finish()
    found = [tokens_of(job) for job in (words, *more, eyes)]
    assert found == [expected["words",], expected[()], expected["words",], expected["eyes",]]


def test_a_hundred_jobs_with_changing_adapters_all_get_their_answers(
    narrow: Adapted, adapters: Adapted
) -> None:
    short = replace(ASKED, max_tokens=3)
    kinds = [(), ("words",), ("eyes",), ("both",)]
    expected = {n: adapters.room.answer(adapters.request(short, *n)) for n in kinds}
    order = [kinds[(i * i + i // 3) % 4] for i in range(100)]
    assert narrow.room.answers([narrow.request(short, *names) for names in order]) == [
        expected[names] for names in order
    ]


def test_a_job_keeps_an_adapter_that_was_removed_after_it_was_accepted(
    narrow: Adapted, adapters: Adapted
) -> None:
    expected = adapters.room.answer(adapters.request(ASKED, "both"))
    job = narrow.room.job(narrow.request(ASKED, "both"))
    adapter = narrow.named.remove("both")
    try:
        assert adapter in job.work.adapters
        assert narrow.room.engine.admit(job)
        narrow.room.finish()
        assert tokens_of(job) == expected
        assert narrow.room.engine.describe()["adapters"] == {}
    finally:
        narrow.named.add("both", narrow.folders["both"])


def test_a_slot_whose_copy_failed_is_empty_and_can_be_taken() -> None:
    slots, tables = made(1)
    slots.hold("first", mix_of(0))
    slots.release("first")
    write = tables.write

    def failing(slot: int, adapter: ChatAdapter) -> None:
        raise RuntimeError("the copy failed")

    tables.write = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the copy failed"):
        slots.hold("second", mix_of(1))
    slots.release("second")
    tables.write = write  # type: ignore[method-assign]
    for number in (0, 1):  # neither is taken for one that is there
        writes = tables.writes
        assert slots.has_room(mix_of(number))
        slots.hold(number, mix_of(number))
        assert tables.writes == writes + 1
        assert tables.held[0] is EACH[number]
        slots.release(number)
    assert slots.describe() == {}
