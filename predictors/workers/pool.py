"""A pool of worker processes for what would hold the interpreter's lock: parsing large bodies and
decoding pictures.

Each process has a thread here that gives it one task at a time, ends it when a task takes too long,
and starts another one in its place. Large tasks never occupy the last free process, so that small
ones do not wait for them. Memory that tasks may take together is a budget that callers wait for in
order.
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
from predictors.workers.budget import MemoryBudget
from predictors.workers.messages import Closed, receive, send
from predictors.workers.process import READY, Outcome, Task

log = logging.getLogger(__name__)

MAX_WAITING = 256  # tasks; one more is refused
START_TIMEOUT_S = 60.0  # for the imports of a new process on a busy machine
LARGE_TASK_BYTES = 32 * 2**20  # of memory: what takes more is a large task
OWN_BYTES = 128 * 2**20  # of a process beside what its task takes
MAX_FAILED_STARTS = 6  # then the server is not alive any more
STALL_MARGIN_S = 30.0  # beyond a task's time limit
_ROOT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from predictors.workers import process"
_START += "; process.main(int(sys.argv[1]), sys.argv[3].split(','), int(sys.argv[2]))"


@dataclass(slots=True)
class _Waiting:
    task: Task
    future: Future[Any] = field(default_factory=Future)


class Workers:
    """The pool. Processes are started by `start`, or with the first task. Any thread."""

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
        self._small: deque[_Waiting] = deque()
        self._large: deque[_Waiting] = deque()
        self._num_large = 0  # running
        self._began: dict[int, float] = {}  # by process: when its task began
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._is_closed = False
        self._failed_starts = 0  # one after the other, of all processes

    # -- callers -----------------------------------------------------------------------------------
    async def run(self, task: str, *arguments: Any, memory_bytes: int = 0) -> Any:
        """The value of `task` (`module:function`) in a worker, once the budget has room.

        Raises the task's own `ServingError`, `TooLarge` for more than the whole budget,
        `Overloaded` when too many wait, `StepFailed` when the process died or took too long.
        Cancelling takes the task back as long as it waits.
        """
        async with self.memory(memory_bytes):
            return await self.run_within(task, *arguments, memory_bytes=memory_bytes)

    async def run_within(self, task: str, *arguments: Any, memory_bytes: int = 0) -> Any:
        """The same for a caller who holds the memory already, see `memory`."""
        future = self.submit(task, *arguments, memory_bytes=memory_bytes)
        try:
            return await asyncio.wrap_future(future)
        finally:
            # a failure refers to this frame, and the future to the failure: a circle of megabytes
            del future

    @asynccontextmanager
    async def memory(self, num_bytes: int) -> AsyncIterator[None]:
        """Hold `num_bytes` of the budget, waiting for them in order. Event loop only."""
        if num_bytes > self.memory_bytes:
            raise TooLarge(
                f"reading this takes about {num_bytes >> 20} MiB of memory; "
                f"at most {self.memory_bytes >> 20} MiB are given"
            )
        async with self._budget.hold(num_bytes):
            yield

    def submit(self, task: str, *arguments: Any, memory_bytes: int = 0) -> Future[Any]:
        """Queue a task, whatever memory is free; the future may be cancelled while it waits."""
        is_large = memory_bytes > LARGE_TASK_BYTES
        waiting = _Waiting(Task(task, arguments, is_large))
        with self._lock:
            if self._is_closed:
                raise Draining("the server is shutting down")
            if len(self._small) + len(self._large) >= MAX_WAITING:
                raise Overloaded(f"{MAX_WAITING} requests wait to be read already; try again later")
            (self._large if is_large else self._small).append(waiting)
            self._start_locked()
            self._changed.notify_all()
        return waiting.future

    @property
    def is_alive(self) -> bool:
        """False once a task is over its time and its process could not be ended, or once no process
        can be started."""
        if self._failed_starts >= MAX_FAILED_STARTS:
            return False
        with self._lock:
            oldest = min(self._began.values(), default=None)
        limit_s = self.timeout_s + START_TIMEOUT_S + STALL_MARGIN_S
        return oldest is None or time.monotonic() - oldest <= limit_s

    @property
    def process_ids(self) -> list[int]:
        """Of the processes that run now."""
        with self._lock:
            return [process.pid for process in self._processes.values()]

    # -- life --------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start all processes; returns at once. Idempotent."""
        with self._lock:
            self._start_locked()

    def _start_locked(self) -> None:
        if self._threads or self._is_closed:
            return
        self._threads = [
            threading.Thread(target=self._keep, args=(i,), name=f"worker-{i}", daemon=True)
            for i in range(self.count)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End all processes; whoever waits is refused. Blocks for moments. Idempotent."""
        with self._lock:
            self._is_closed = True
            left = [*self._small, *self._large]
            self._small.clear()
            self._large.clear()
            processes = list(self._processes.values())
            self._changed.notify_all()
        for waiting in left:
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(Draining("the server is shutting down"))
        for process in processes:
            process.kill()
        for thread in self._threads:
            thread.join()

    # -- one thread a process ----------------------------------------------------------------------
    def _keep(self, index: int) -> None:
        connection = self._try_spawn(index)
        while True:
            waiting = self._next(index)
            if waiting is None:
                break
            connection = self._serve(index, connection, waiting)
            self._done(index, waiting)
            del waiting  # its arguments and its answer may be large
        if connection is not None:
            connection.close()
        self._end(index)

    def _try_spawn(self, index: int) -> socket.socket | None:
        try:
            connection = self._spawn(index)
        except (OSError, Closed) as error:
            if not self._is_closed:
                self._failed_starts += 1
                log.error("a worker process can't be started", exc_info=error)
            return None
        self._failed_starts = 0
        return connection

    def _serve(
        self, index: int, connection: socket.socket | None, waiting: _Waiting
    ) -> socket.socket | None:
        """Have the task answered; returns the connection for the next one.

        A task whose process dies is tried once more: it may have died of something else.
        """
        for is_last in (False, True):
            connection = connection or self._try_spawn(index)
            if connection is None:
                self._answer(waiting, NotReady("no process can be started to read this"))
                return None
            if self._ask(connection, waiting, is_last=is_last):
                return connection
            self._end(index)
            connection.close()
            connection = None
            if waiting.future.done():
                break
        return self._try_spawn(index)

    def _next(self, index: int) -> _Waiting | None:
        """The next task for this process; None once the pool is closed."""
        with self._changed:
            while not self._is_closed:
                waiting = self._pick()
                if waiting is not None:
                    self._began[index] = time.monotonic()
                    return waiting
                self._changed.wait()
            return None

    def _pick(self) -> _Waiting | None:
        # small ones first, which can't starve the large: they have at most all but one process
        may_take_large = self._num_large < max(1, self.count - 1)
        turns = (self._large, self._small) if self._num_large == 0 else (self._small, self._large)
        for queue in turns:
            while queue and (queue is self._small or may_take_large):
                waiting = queue.popleft()
                if waiting.future.set_running_or_notify_cancel():
                    self._num_large += waiting.task.is_large
                    return waiting
        return None

    def _done(self, index: int, waiting: _Waiting) -> None:
        with self._changed:
            self._num_large -= waiting.task.is_large
            self._began.pop(index, None)
            self._changed.notify_all()

    def _ask(self, connection: socket.socket, waiting: _Waiting, *, is_last: bool) -> bool:
        """Have the task done and its caller answered; False when the process must be replaced. If
        it died, the caller is only answered when this `is_last` of all tries."""
        try:
            send(connection, waiting.task)
            outcome: Outcome = receive(connection)
        except TimeoutError:
            log.error("a worker process was ended: its task took longer than %g s", self.timeout_s)
            message = f"reading this took longer than {self.timeout_s:g} s and was given up"
            self._answer(waiting, StepFailed(message))
            return False
        except (Closed, MemoryError, OSError) as error:
            if self._is_closed:
                self._answer(waiting, Draining("the server is shutting down"))
                return False
            if is_last:
                log.error("two worker processes died of a task", exc_info=error)
                self._answer(waiting, StepFailed("the process that read this request died of it"))
            return False
        self._answer(waiting, _error_of(outcome), outcome.value)
        return True

    def _answer(self, waiting: _Waiting, error: Exception | None, value: Any = None) -> None:
        if error is not None:
            waiting.future.set_exception(error)
        else:
            waiting.future.set_result(value)

    def _spawn(self, index: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._start_process(index, theirs)
            ours.settimeout(START_TIMEOUT_S)
            if receive(ours) != READY:
                raise Closed
        except (OSError, TimeoutError, Closed):
            ours.close()
            self._end(index)
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
        )
        with self._lock:
            self._processes[index] = process
            if self._is_closed:
                process.kill()

    def _end(self, index: int) -> None:
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
