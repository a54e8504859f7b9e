"""A worker process: takes tasks from a socket, one at a time, until the socket is closed.

It is a fresh interpreter (no fork of a process with CUDA and gRPC threads), holds a limit on its
memory, runs at a lower priority than the server, and imports what tasks need: neither torch nor
gRPC. A task is `module:function` of a module that was named at the start.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from predictors.errors import ServingError, TooLarge
from predictors.workers.messages import Closed, receive, send

NICENESS = 10  # the engine and the event loop go first
READY = "ready"


@dataclass(frozen=True, slots=True)
class Task:
    """One call of a function, sent to a worker."""

    name: str
    arguments: tuple[Any, ...]
    is_large: bool
    """Whether memory is given back to the system afterwards."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a task: a value, a refusal of ours, or the traceback of anything else."""

    value: Any = None
    refusal: ServingError | None = None
    trace: str = ""


def main(fd: int, modules: Sequence[str], memory_bytes: int) -> None:
    """Serve tasks of `modules` from the socket `fd` until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    loaded = {name: importlib.import_module(name) for name in modules}
    # after the imports: from here on memory is what tasks ask for
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    with socket.socket(fileno=fd) as connection, contextlib.suppress(Closed):
        send(connection, READY)
        while True:
            task: Task = receive(connection)
            module, _, function = task.name.partition(":")
            send(connection, _outcome(getattr(loaded[module], function), task.arguments))
            if task.is_large:
                del task
                trim()


def _outcome(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(work(*arguments))
    except ServingError as error:
        return Outcome(refusal=error)
    except MemoryError:
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0] // 2**20
        message = f"the request takes more than the {limit} MiB that reading one may take"
        return Outcome(refusal=TooLarge(message))
    except Exception:  # noqa: BLE001 - the server logs it; the worker goes on
        return Outcome(trace=traceback.format_exc())


def trim() -> None:
    """Give free memory of the C heap back to the system. Any thread, without the interpreter's
    lock; does nothing where the C library has no `malloc_trim`."""
    release = getattr(_LIBC, "malloc_trim", None)
    if release is not None:
        release(0)


_LIBC = ctypes.CDLL(None)
