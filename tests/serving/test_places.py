"""Waiting places: all for a caller that is alone, at most half beside others, and a newcomer finds
some."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import Overloaded
from predictors.serving.accounts import Account, Caller
from predictors.serving.places import Places
from tests.fakes import ScriptedEngine, Task
from tests.serving.conftest import MakeHost, busy, submit

A, B, D, E = (Caller(name) for name in "abde")


@given(
    st.integers(1, 9), st.integers(0, 3), st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 6)))
)
def test_any_order_of_coming_and_leaving_keeps_the_rules(
    capacity: int, free_slots: int, moves: list[tuple[int, int]]
) -> None:
    places = Places(capacity)
    accounts = [Account(str(i)) for i in range(5)]
    half = (capacity + 1) // 2
    for who, rows in moves:
        account = accounts[who]
        held = [each.places for each in accounts]
        others = [n for i, n in enumerate(held) if i != who]
        if rows <= 0:
            places.add(account, -min(-rows, account.places))
            continue
        is_accepted = rows <= places.free(account.places, free_slots)
        own, total = account.places + rows, sum(held) + rows
        if not any(others):
            assert is_accepted == (own <= capacity + free_slots)
        else:
            if is_accepted:
                assert total <= capacity + half + free_slots
                assert own <= half + free_slots
            counted = own + sum(min(n, half) for n in others)
            fits = own <= half + free_slots and counted <= capacity + free_slots
            fits |= own <= capacity // sum(n > 0 for n in [*others, 1])
            assert is_accepted == (fits and total <= capacity + half + free_slots)
        if is_accepted:
            places.add(account, rows)
    assert places.taken == sum(each.places for each in accounts)
    for account in accounts:
        places.add(account, -account.places)
    assert places.free(0, free_slots) == capacity + free_slots


def fill(host: object, caller: Caller) -> int:
    """Submit single jobs until one is refused; returns how many were accepted."""
    accepted = 0
    with suppress(Overloaded):
        while True:
            submit(host, Task(f"{caller.name}{accepted}"), caller=caller)  # type: ignore[arg-type]
            accepted += 1
    return accepted


def test_behind_a_caller_that_took_all_places_others_find_some(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, capacity=64)
    busy(host, engine)
    assert fill(host, A) == 64
    assert fill(host, B) == 32
    assert fill(host, D) == 0  # one and a half times the capacity wait: that is the bound
    assert fill(host, A) == 0
    engine.open()


def test_every_further_caller_finds_its_equal_part(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, capacity=64)
    busy(host, engine)
    submit(host, Task("first"), caller=A)
    assert fill(host, B) == 32
    assert fill(host, A) == 31
    assert fill(host, D) == 64 // 3
    assert fill(host, E) == 96 - 32 - 32 - 21
    engine.open()


def test_a_caller_over_its_half_gets_no_more_while_another_waits(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, capacity=8)
    busy(host, engine)
    fill(host, A)
    [guest] = submit(host, Task("guest"), caller=B)
    with pytest.raises(Overloaded, match="this caller has 8 of the 4 places") as refused:
        submit(host, Task("more"), caller=A)
    assert "b" not in refused.value.message.split()
    guest.cancel()
    with pytest.raises(Overloaded, match="the queue is full: 8 of 8 places"):
        submit(host, Task("more"), caller=A)
    engine.open()


def test_rows_in_preparation_count_for_their_caller(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=1)
    host = make_host(engine, capacity=8)
    busy(host, engine)
    host.reserve(8, A)
    assert fill(host, B) == 4
    with pytest.raises(Overloaded):
        host.check_accepting(1, A)
    host.release(8, A)
    assert fill(host, A) == 4
    engine.open()


def test_a_spare_slot_is_a_place_for_who_may_use_it(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=2, spare_slots=2)
    host = make_host(engine, capacity=4)
    [job, _] = submit(host, Task("a0", 99), Task("a1", 99), caller=A)
    engine.wait_in_step()
    assert fill(host, A) == 4
    assert fill(host, B) == 2 + 1  # half, and the one spare slot that is its share of two
    assert not job.done
    engine.open()


def test_after_all_have_left_the_accounts_are_forgotten(make_host: MakeHost) -> None:
    engine = ScriptedEngine(slots=2, gated=False)
    host = make_host(engine, start=False)
    host.loop.load_and_warm()
    for i in range(500):
        host.reserve(1, Caller(f"c{i}"))
        submit(host, Task(f"t{i}"), caller=Caller(f"c{i}"))
        host.release(1, Caller(f"c{i}"))
        host.loop.run_once()
    accounts = host.jobs._accounts
    assert (accounts._open, accounts._present, accounts._running) == ({}, {}, {})
    assert len(accounts._debts) == 0
