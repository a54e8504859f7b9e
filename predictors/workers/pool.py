"""A pool of worker processes for work that would hold the interpreter's lock: parsing large bodies
and decoding pictures.

Each process has a thread in the server that gives it one task at a time, kills it when a task takes
too long, and starts another in its place. Large tasks never occupy the last free process, so small
tasks do not wait for them. The memory of all tasks together is a budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from predictors.errors import Draining, NotReady, Overloaded, StepFailed, TooLarge
from predictors.workers.messages import ConnectionClosed, WorkerConnection
from predictors.workers.process import READY, Outcome, Task

log = logging.getLogger(__name__)

MAX_WAITING = 256  # tasks in the queue; more are refused
START_TIMEOUT_S = 60.0  # for the imports of a new process on a busy machine
LARGE_TASK_BYTES = 32 * 2**20  # of memory; a task that takes more is large
OWN_BYTES = 128 * 2**20  # of a process, beside the memory of its task
MAX_FAILED_STARTS = 6  # in a row; then liveness fails
STALL_MARGIN_S = 30.0  # beyond a task's time limit
_ROOT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from predictors.workers import process"
_START += "; process.run_worker(int(sys.argv[1]), sys.argv[3].split(','), int(sys.argv[2]))"


@dataclass(slots=True)
class _QueuedTask:
    task: Task
    future: Future[Any] = field(default_factory=Future)


class Workers:
    """A pool of `count` processes, started by `start` or by the first task. Any thread."""

    def __init__(
        self,
        modules: Sequence[str],
        *,
        count: int = 0,
        memory_bytes: int = 2**30,
        timeout_s: float = 30.0,
    ) -> None:
        self.count = max(2, count) if count else min(max(2, len(os.sched_getaffinity(0)) // 2), 4)
        self.memory_bytes = memory_bytes
        self.timeout_s = timeout_s
        self._modules = modules
        self._budget = MemoryBudget(memory_bytes)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._small: deque[_QueuedTask] = deque()
        self._large: deque[_QueuedTask] = deque()
        self._num_large = 0  # running
        self._started_at: dict[int, float] = {}  # of the present task, by process
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._is_closed = False
        self._failed_starts = 0  # in a row, of all processes

    # -- callers -----------------------------------------------------------------------------------
    async def run(self, task: str, *arguments: Any, memory_bytes: int = 0) -> Any:
        """Run `task` (`module:function`) in a worker process, within the memory budget.

        Raises the task's own `ServingError`, `TooLarge` for more than the whole budget,
        `Overloaded` when too many tasks wait, `StepFailed` when the process died or took too long.
        Cancelling removes a task that still waits.
        """
        async with self.memory(memory_bytes):
            return await self.run_within(task, *arguments, memory_bytes=memory_bytes)

    async def run_within(self, task: str, *arguments: Any, memory_bytes: int = 0) -> Any:
        """Like `run`, for a caller that already holds the `memory`."""
        future = self.submit(task, *arguments, memory_bytes=memory_bytes)
        try:
            return await asyncio.wrap_future(future)
        finally:
            # an error refers to this frame and the future to the error: a cycle of megabytes
            del future

    @asynccontextmanager
    async def memory(self, num_bytes: int) -> AsyncIterator[None]:
        """Wait for `num_bytes` of the budget and hold them until the block ends. Event loop only.
        Raises `TooLarge` for more than the whole budget."""
        if num_bytes > self.memory_bytes:
            raise TooLarge(
                f"reading this takes about {num_bytes >> 20} MiB of memory; "
                f"at most {self.memory_bytes >> 20} MiB are given"
            )
        async with self._budget.hold(num_bytes):
            yield

    def submit(self, task: str, *arguments: Any, memory_bytes: int = 0) -> Future[Any]:
        """Queue a task without regard to the budget. Its future may be cancelled while it waits.
        Raises `Overloaded` when too many tasks wait, `Draining` after `close`."""
        is_large = memory_bytes > LARGE_TASK_BYTES
        queued = _QueuedTask(Task(task, arguments, is_large))
        with self._lock:
            if self._is_closed:
                raise Draining("the server is shutting down")
            if len(self._small) + len(self._large) >= MAX_WAITING:
                raise Overloaded(f"{MAX_WAITING} requests wait to be read already; try again later")
            (self._large if is_large else self._small).append(queued)
            self._start_locked()
            self._changed.notify_all()
        return queued.future

    @property
    def waiting(self) -> int:
        """Tasks that no process has begun. Any thread."""
        return len(self._small) + len(self._large)

    @property
    def is_alive(self) -> bool:
        """False once a process that is over its time can't be killed, or none can be started."""
        if self._failed_starts >= MAX_FAILED_STARTS:
            return False
        with self._lock:
            oldest = min(self._started_at.values(), default=None)
        limit_s = self.timeout_s + START_TIMEOUT_S + STALL_MARGIN_S
        return oldest is None or time.monotonic() - oldest <= limit_s

    # -- life --------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start all processes; returns at once. Idempotent."""
        with self._lock:
            self._start_locked()

    def _start_locked(self) -> None:
        if self._threads or self._is_closed:
            return
        self._threads = [
            threading.Thread(target=self._run_process, args=(i,), name=f"worker-{i}", daemon=True)
            for i in range(self.count)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Kill all processes, fail waiting tasks with `Draining`. Blocks briefly; idempotent."""
        with self._lock:
            self._is_closed = True
            left = [*self._small, *self._large]
            self._small.clear()
            self._large.clear()
            processes = list(self._processes.values())
            self._changed.notify_all()
        for queued in left:
            if queued.future.set_running_or_notify_cancel():
                queued.future.set_exception(Draining("the server is shutting down"))
        for process in processes:
            process.kill()
        for thread in self._threads:
            thread.join()

    # -- one thread per process --------------------------------------------------------------------
    def _run_process(self, index: int) -> None:
        connection = self._try_spawn(index)
        while True:
            queued = self._next(index)
            if queued is None:
                break
            connection = self._run_task(index, connection, queued)
            self._after_task(index, queued)
            del queued  # its arguments and its result may be large
        if connection is not None:
            connection.close()
        self._kill(index)

    def _try_spawn(self, index: int) -> WorkerConnection | None:
        try:
            connection = self._spawn(index)
        except (OSError, ConnectionClosed) as error:
            if not self._is_closed:
                self._failed_starts += 1
                log.error("a worker process can't be started", exc_info=error)
            return None
        self._failed_starts = 0
        return connection

    def _run_task(
        self, index: int, connection: WorkerConnection | None, queued: _QueuedTask
    ) -> WorkerConnection | None:
        """Run a task and set its result; returns the connection for the next task.

        A task whose process dies is tried once more: another cause may have killed the process.
        """
        for is_last in (False, True):
            connection = connection or self._try_spawn(index)
            if connection is None:
                self._set_result(queued, NotReady("no process can be started to read this"))
                return None
            if self._send_task(connection, queued, is_last=is_last):
                return connection
            self._kill(index)
            connection.close()
            connection = None
            if queued.future.done():
                break
        return self._try_spawn(index)

    def _next(self, index: int) -> _QueuedTask | None:
        """Block until there is a task for this process; None once the pool is closed."""
        with self._changed:
            while not self._is_closed:
                queued = self._pick()
                if queued is not None:
                    self._started_at[index] = time.monotonic()
                    return queued
                self._changed.wait()
            return None

    def _pick(self) -> _QueuedTask | None:
        # small tasks go first while a large one runs, else a large one: neither starves
        may_take_large = self._num_large < max(1, self.count - 1)
        large_first = self._num_large == 0
        for queue in (self._large, self._small) if large_first else (self._small, self._large):
            while queue and (queue is self._small or may_take_large):
                queued = queue.popleft()
                if queued.future.set_running_or_notify_cancel():
                    self._num_large += queued.task.is_large
                    return queued
        return None

    def _after_task(self, index: int, queued: _QueuedTask) -> None:
        with self._changed:
            self._num_large -= queued.task.is_large
            self._started_at.pop(index, None)
            self._changed.notify_all()

    def _send_task(
        self, connection: WorkerConnection, queued: _QueuedTask, *, is_last: bool
    ) -> bool:
        """Run a task in the process and set its result. Returns False when the process must be
        replaced. If it died, the task fails only if this try `is_last`."""
        try:
            connection.send(queued.task)
            outcome: Outcome = connection.receive()
        except TimeoutError:
            log.error("a worker process was ended: its task took longer than %g s", self.timeout_s)
            message = f"reading this took longer than {self.timeout_s:g} s and was given up"
            self._set_result(queued, StepFailed(message))
            return False
        except (ConnectionClosed, MemoryError, OSError) as error:
            if self._is_closed:
                self._set_result(queued, Draining("the server is shutting down"))
                return False
            if is_last:
                log.error("two worker processes died of a task", exc_info=error)
                self._set_result(
                    queued, StepFailed("the process that read this request died of it")
                )
            return False
        self._set_result(queued, _error_of(outcome), outcome.value)
        return True

    def _set_result(self, queued: _QueuedTask, error: Exception | None, value: Any = None) -> None:
        if error is not None:
            queued.future.set_exception(error)
        else:
            queued.future.set_result(value)

    def _spawn(self, index: int) -> WorkerConnection:
        near, theirs = socket.socketpair()
        ours = WorkerConnection(near)
        try:
            with theirs:
                self._start_process(index, theirs)
            ours.settimeout(START_TIMEOUT_S)
            if ours.receive() != READY:
                raise ConnectionClosed
        except (OSError, TimeoutError, ConnectionClosed):
            ours.close()
            self._kill(index)
            raise
        ours.settimeout(self.timeout_s)
        return ours

    def _start_process(self, index: int, theirs: socket.socket) -> None:
        limit = self.memory_bytes + OWN_BYTES
        arguments = [_ROOT, str(theirs.fileno()), str(limit), ",".join(self._modules)]
        process = subprocess.Popen(
            [sys.executable, "-c", _START, *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            process_group=0,  # of its own: a terminal's Ctrl-C reaches the server's whole group
        )
        with self._lock:
            self._processes[index] = process
            if self._is_closed:
                process.kill()

    def _kill(self, index: int) -> None:
        with self._lock:
            process = self._processes.pop(index, None)
        if process is not None:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()


def _error_of(outcome: Outcome) -> Exception | None:
    if outcome.trace:
        return RuntimeError(f"a task failed in a worker:\n{outcome.trace}")
    return outcome.refusal


class MemoryBudget:
    """A budget of `num_bytes`. Event loop only.

    Later small parts never overtake a large one that waits. Parts of 0 bytes never wait.
    """

    def __init__(self, num_bytes: int) -> None:
        self.free = num_bytes
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        if num_bytes:
            await self._acquire(num_bytes)
        try:
            yield
        finally:
            self.free += num_bytes
            self._grant()

    async def _acquire(self, num_bytes: int) -> None:
        if not self._waiting and num_bytes <= self.free:
            self.free -= num_bytes
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((future, num_bytes))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # granted at the same moment
                self.free += num_bytes
            self._grant()
            raise

    def _grant(self) -> None:
        while self._waiting:
            future, num_bytes = self._waiting[0]
            if future.done():  # its caller left
                self._waiting.popleft()
                continue
            if num_bytes > self.free:
                return
            self._waiting.popleft()
            self.free -= num_bytes
            future.set_result(None)
