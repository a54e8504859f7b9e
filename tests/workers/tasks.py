"""Tasks that the tests run in worker processes."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from predictors.errors import InvalidRequest
from predictors.workers.messages import SharedMemory, result_memory


def double(value: Any) -> Any:
    return value * 2


def in_memory(given: bytes, content: bytes) -> SharedMemory:
    memory = result_memory()
    memory.append(content)
    return memory


def refuse(message: str) -> None:
    raise InvalidRequest(message, param="x")


def fail() -> None:
    raise KeyError("/mnt/secret")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def process() -> int:
    return os.getpid()


def modules() -> list[str]:
    return sorted({name.partition(".")[0] for name in sys.modules})


def fill(num_bytes: int) -> int:
    return len(bytearray(num_bytes))


def wait_for(fd_path: str) -> str:
    with open(fd_path) as pipe:
        return pipe.read()
