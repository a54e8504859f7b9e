"""The memory budget: first come first served, never overdrawn, and nothing is lost."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.workers.budget import MemoryBudget


async def let_all_run() -> None:
    """Let every task run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_large_part_is_not_overtaken_by_later_small_ones() -> None:
    budget, order = MemoryBudget(10), []

    async def take(name: str, size: int) -> None:
        async with budget.hold(size):
            order.append(name)

    async with budget.hold(6):
        tasks = [asyncio.create_task(take(*x)) for x in (("large", 8), ("small", 2))]
        await let_all_run()
        assert order == []
        async with budget.hold(0):  # 0 bytes never wait
            order.append("nothing")
    await asyncio.gather(*tasks)
    assert order == ["nothing", "large", "small"]
    assert budget.free == 10


async def test_a_cancelled_caller_does_not_block_the_next_one() -> None:
    budget = MemoryBudget(10)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(budget.hold(6))
        large = asyncio.create_task(stack.enter_async_context(budget.hold(8)))
        small = asyncio.create_task(stack.enter_async_context(budget.hold(2)))
        await let_all_run()
        large.cancel()
        await small
    assert budget.free == 10


@given(st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=12))
def test_all_bytes_are_free_again_whichever_callers_are_cancelled(
    callers: list[tuple[int, bool]],
) -> None:
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


async def test_an_error_inside_the_block_frees_the_bytes() -> None:
    budget = MemoryBudget(10)
    with pytest.raises(KeyError):
        async with budget.hold(10):
            raise KeyError
    assert budget.free == 10
