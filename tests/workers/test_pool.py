"""The pool of worker processes: results, errors, dead processes, limits and order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.errors import (
    Draining,
    InvalidRequest,
    NotReady,
    Overloaded,
    StepFailed,
    TooLarge,
)
from predictors.protocol.tasks import MODULES, decode_large
from predictors.protocol.v2 import wire_json as v2_json
from predictors.workers import pool
from predictors.workers.messages import SharedMemory
from predictors.workers.pool import MemoryBudget, Workers
from tests.fakes import PATIENCE_S

TASKS = "tests.workers.tasks"


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers([TASKS], count=2, memory_bytes=256 * 2**20)
    yield made
    made.close()


def process_ids(workers: Workers) -> list[int]:
    return [process.pid for process in workers._processes.values()]


class Gate:
    """A task that runs until the test lets it end."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / name
        os.mkfifo(self.path)

    def task(self) -> tuple[str, str]:
        return f"{TASKS}:wait_for", str(self.path)

    def open(self, text: str = "done") -> None:
        """Let the task end, once it has started."""
        self.path.write_text(text)


def wait_until_started(gates: list[Gate]) -> ExitStack:
    """Block until each task runs in a process of its own. They end when this is closed."""
    pipes = ExitStack()
    for gate in gates:
        pipes.enter_context(gate.path.open("w"))  # waits for its reader
    return pipes


async def test_a_task_runs_in_another_process(workers: Workers) -> None:
    assert await workers.run(f"{TASKS}:double", b"ab" * 100_000) == b"ab" * 200_000
    found = await workers.run(f"{TASKS}:process")
    assert found != os.getpid()
    assert found in process_ids(workers)
    assert os.getpgid(found) == found  # no Ctrl-C of the server's terminal reaches it


async def test_results_are_each_their_own_while_their_memory_is_used_again(
    workers: Workers,
) -> None:
    sizes = [300_000, 100, 150_000, 200_000, 1, 70_000]

    async def one(number: int) -> bool:
        content = bytes([number]) * sizes[number % len(sizes)]
        given = content[:90_000] + bytes(number)  # large and small arguments
        found = await workers.run(f"{TASKS}:in_memory", given, content)
        is_same = found.read() == content
        if number % 3:  # others are kept until the test ends
            found.give_back()
        held.append(found)
        return is_same

    held: list[SharedMemory] = []
    assert all(await asyncio.gather(*map(one, range(60))))


async def test_the_next_task_gets_the_memory_that_was_given_back(workers: Workers) -> None:
    places = set()
    for number in range(8):  # of two processes
        found = await workers.run(f"{TASKS}:in_memory", b"", bytes(number))
        places.add(os.fstat(found.fd).st_ino)
        found.give_back()
    assert len(places) <= 2


async def test_a_serving_error_of_a_task_reaches_its_caller(workers: Workers) -> None:
    with pytest.raises(InvalidRequest, match="no such thing") as refused:
        await workers.run(f"{TASKS}:refuse", "no such thing")
    assert refused.value.param == "x"


async def test_any_other_error_of_a_task_is_no_serving_error(workers: Workers) -> None:
    with pytest.raises(RuntimeError, match="KeyError"):
        await workers.run(f"{TASKS}:fail")
    assert await workers.run(f"{TASKS}:double", 2) == 4


async def test_a_process_that_dies_fails_its_task_alone_and_is_replaced(workers: Workers) -> None:
    with pytest.raises(StepFailed, match="died of it"):
        await workers.run(f"{TASKS}:die")
    answers = await asyncio.gather(*(workers.run(f"{TASKS}:double", i) for i in range(20)))
    assert answers == [2 * i for i in range(20)]


async def test_a_task_that_allocates_more_than_its_limit_is_too_large(
    workers: Workers,
) -> None:
    with pytest.raises(TooLarge, match="more than the 384 MiB"):
        await workers.run(f"{TASKS}:fill", 2**30)
    assert await workers.run(f"{TASKS}:fill", 2**20) == 2**20
    with pytest.raises(TooLarge, match="takes about 300 MiB of memory; at most 256 MiB"):
        await workers.run(f"{TASKS}:fill", 1, memory_bytes=300 * 2**20)


async def test_a_task_that_takes_too_long_is_killed_with_its_process(tmp_path: Path) -> None:
    workers = Workers([TASKS], count=2, timeout_s=0.2)
    try:
        with pytest.raises(StepFailed, match=r"longer than 0\.2 s"):
            await workers.run(*Gate(tmp_path, "never opened").task())
        assert workers.is_alive
        answer = None
        while answer is None:  # on a busy machine this may take too long as well
            with suppress(StepFailed):
                answer = await workers.run(f"{TASKS}:double", 1)
        assert answer == 2
    finally:
        workers.close()


async def test_large_tasks_leave_a_process_for_small_ones(workers: Workers, tmp_path: Path) -> None:
    large = [Gate(tmp_path, f"large {i}") for i in range(3)]
    running = [
        asyncio.create_task(workers.run(*gate.task(), memory_bytes=64 * 2**20)) for gate in large
    ]
    for i in range(5):  # while one large task runs and two wait
        assert await workers.run(f"{TASKS}:double", i) == 2 * i
    for gate in large:
        await asyncio.to_thread(gate.open)
    assert await asyncio.gather(*running) == ["done"] * 3


async def test_a_task_that_is_cancelled_while_it_waits_never_runs(
    workers: Workers, tmp_path: Path
) -> None:
    gates = [Gate(tmp_path, str(i)) for i in range(2)]
    busy = [asyncio.create_task(workers.run(*gate.task())) for gate in gates]
    await asyncio.sleep(0)
    waiting = asyncio.create_task(workers.run(f"{TASKS}:die"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with await asyncio.to_thread(wait_until_started, gates):
        before = set(process_ids(workers))
    await asyncio.gather(*busy)
    assert await workers.run(f"{TASKS}:double", 1) == 2
    assert set(process_ids(workers)) == before, "the cancelled task ran"


async def test_tasks_beyond_the_queue_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_WAITING", 2)
    workers = Workers([TASKS], count=2)
    gates = [Gate(tmp_path, str(i)) for i in range(2)]
    running = [asyncio.create_task(workers.run(*gate.task())) for gate in gates]
    await asyncio.sleep(0)
    try:
        refusals = []
        for _ in range(5):  # two of all may be taken by a process at once
            try:
                workers.submit(f"{TASKS}:double", 1)
            except Overloaded as error:
                refusals.append(error.message)
        assert refusals
        assert refusals[-1].startswith("2 requests wait")
        for gate in gates:
            await asyncio.to_thread(gate.open)
        assert await asyncio.gather(*running) == ["done", "done"]
    finally:
        workers.close()


def test_closing_fails_all_tasks_and_leaves_no_process(tmp_path: Path) -> None:
    workers = Workers([TASKS], count=2)
    gates = [Gate(tmp_path, str(i)) for i in range(4)]
    futures = [workers.submit(*gate.task()) for gate in gates]
    workers.submit(f"{TASKS}:double", 1).cancel()
    with wait_until_started(gates[:2]):
        pids = process_ids(workers)
        workers.close()
        workers.close()
    assert len(pids) == 2
    for future in futures:
        with pytest.raises((StepFailed, Draining)):
            future.result(PATIENCE_S)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(Draining):
        workers.submit(f"{TASKS}:double", 1)


async def test_the_worker_processes_of_the_product_import_neither_torch_nor_grpc() -> None:
    workers = Workers([*MODULES, TASKS], count=2)
    try:
        loaded = set(await workers.run(f"{TASKS}:modules"))
    finally:
        workers.close()
    assert not loaded & {"torch", "grpc", "kserve", "transformers", "starlette", "numpy"}
    assert {"predictors", "PIL", "orjson"} <= loaded


async def test_a_process_that_died_while_idle_costs_no_request(workers: Workers) -> None:
    await workers.run(f"{TASKS}:double", 1)
    for pid in process_ids(workers):
        os.kill(pid, signal.SIGKILL)
    answers = [await workers.run(f"{TASKS}:double", i) for i in range(6)]
    assert answers == [0, 2, 4, 6, 8, 10]


async def test_without_a_process_that_starts_tasks_are_refused_and_liveness_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    workers = Workers([TASKS], count=2)
    try:
        for _ in range(pool.MAX_FAILED_STARTS):
            with pytest.raises(NotReady, match="no process can be started"):
                await workers.run(f"{TASKS}:double", 1)
        assert not workers.is_alive
        monkeypatch.undo()
        assert await workers.run(f"{TASKS}:double", 1) == 2
        assert workers.is_alive
    finally:
        workers.close()


async def test_cancelling_while_a_task_is_sent_harms_no_process(tmp_path: Path) -> None:
    workers = Workers([*MODULES, TASKS], count=2)
    gates = [Gate(tmp_path, str(i)) for i in range(2)]
    try:
        running = [asyncio.create_task(workers.run(*gate.task())) for gate in gates]
        with await asyncio.to_thread(wait_until_started, gates):
            before = set(process_ids(workers))
        await asyncio.gather(*running)
        for _ in range(30):
            memory = SharedMemory.empty()
            memory.append(bytes(2**20))
            task = asyncio.create_task(
                decode_large(workers, v2_json.decode_json_request, memory, {}, "m")
            )
            del memory
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises((asyncio.CancelledError, InvalidRequest)):
                await task
        assert await workers.run(f"{TASKS}:double", 1) == 2
        assert set(process_ids(workers)) == before
    finally:
        workers.close()


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
