"""A budget of bytes: in order, never more than there is, and given back by who leaves."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.workers.budget import MemoryBudget


async def turn() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_large_part_is_not_overtaken_by_later_small_ones() -> None:
    budget, order = MemoryBudget(10), []

    async def take(name: str, size: int) -> None:
        async with budget.hold(size):
            order.append(name)

    async with budget.hold(6):
        tasks = [asyncio.create_task(take(*x)) for x in (("large", 8), ("small", 2))]
        await turn()
        assert order == []
        async with budget.hold(0):  # nothing never waits
            order.append("nothing")
    await asyncio.gather(*tasks)
    assert order == ["nothing", "large", "small"]
    assert budget.free == 10


async def test_who_leaves_while_waiting_makes_way() -> None:
    budget = MemoryBudget(10)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(budget.hold(6))
        large = asyncio.create_task(stack.enter_async_context(budget.hold(8)))
        small = asyncio.create_task(stack.enter_async_context(budget.hold(2)))
        await turn()
        large.cancel()
        await small
    assert budget.free == 10


@given(st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=12))
def test_nothing_is_lost_whoever_leaves_when(callers: list[tuple[int, bool]]) -> None:
    budget = MemoryBudget(10)

    async def hold(size: int) -> None:
        async with budget.hold(size):
            assert budget.free >= 0
            await asyncio.sleep(0)

    async def run() -> None:
        tasks = []
        for size, leaves in callers:
            task = asyncio.create_task(hold(size))
            tasks.append(task)
            await asyncio.sleep(0)
            if leaves:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    assert budget.free == 10


async def test_a_failure_inside_gives_it_back() -> None:
    budget = MemoryBudget(10)
    with pytest.raises(KeyError):
        async with budget.hold(10):
            raise KeyError
    assert budget.free == 10
