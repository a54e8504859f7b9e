"""A worker process: runs tasks from a socket, one at a time, until the socket is closed.

It is a new interpreter, not a fork of a process with CUDA and gRPC threads. Its memory is limited,
its priority is lower than the server's, and it imports neither torch nor gRPC. A task is
`module:function` of a module that was named at the start.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictors.errors import ServingError, TooLarge
from predictors.workers.messages import ConnectionClosed, WorkerConnection, serve_on

NICENESS = 10  # the engine and the event loop go first
READY = "ready"


@dataclass(frozen=True, slots=True)
class Task:
    """A function call that is sent to a worker process."""

    name: str
    arguments: tuple[Any, ...]
    is_large: bool
    """True to give free memory back to the system afterwards."""


@dataclass(frozen=True, slots=True)
class Outcome:
    value: Any = None
    refusal: ServingError | None = None
    trace: str = ""


def run_worker(fd: int, modules: Sequence[str], memory_bytes: int) -> None:
    """Run tasks of `modules` from the socket `fd` until its other end is closed."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    loaded = {name: importlib.import_module(name) for name in modules}
    # after the imports, so that only the memory of tasks counts
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    connection = WorkerConnection(socket.socket(fileno=fd))
    serve_on(connection)
    with contextlib.closing(connection), contextlib.suppress(ConnectionClosed):
        connection.send(READY)
        while True:
            task: Task = connection.receive()
            module, _, function = task.name.partition(":")
            connection.send(_outcome(getattr(loaded[module], function), task.arguments))
            if task.is_large:
                del task
                trim()


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """Lets the block take `num_bytes` more memory than the process has now, at most its own limit.
    More is a `MemoryError`, or the failure of a library. No-op where Linux does not tell."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
    except OSError:
        yield
        return
    limit = pages * resource.getpagesize() + num_bytes
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


@contextmanager
def silenced_libraries() -> Iterator[None]:
    """Discards what C libraries write to standard error in the block, which callers could fill.
    For a process of one thread."""
    null, kept = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _outcome(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(work(*arguments))
    except ServingError as error:
        return Outcome(refusal=error)
    except MemoryError:
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0] // 2**20
        message = f"the request takes more than the {limit} MiB that reading one may take"
        return Outcome(refusal=TooLarge(message))
    except Exception:  # noqa: BLE001 - the server logs it and the worker process goes on
        return Outcome(trace=traceback.format_exc())


def trim() -> None:
    """Give free memory of the C heap back to the system, without the interpreter's lock. Any
    thread; no-op where the C library has no `malloc_trim`."""
    release = getattr(_LIBC, "malloc_trim", None)
    if release is not None:
        release(0)


_LIBC = ctypes.CDLL(None)
