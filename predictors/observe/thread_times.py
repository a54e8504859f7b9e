"""Processor time of this process's threads by name, from Linux's /proc. The kernel knows threads by
number only; Python knows the names of those that it started.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

OTHERS = "others"
"""Threads that Python did not start: those of torch, CUDA and gRPC."""
_NUMBER = re.compile(r"[-_]\d+( \(.*\))?$")  # of a thread in its pool


def seconds_by_thread() -> dict[str, float]:
    """Processor seconds of the running threads since their start, in the kernel's ticks of 10 ms.
    Threads of a pool are one entry, without their numbers. Empty where there is no /proc. Any
    thread; about 20 us for each thread of the process."""
    names = {each.native_id: _NUMBER.sub("", each.name) for each in threading.enumerate()}
    try:
        tasks = list(Path("/proc/self/task").iterdir())
    except OSError:
        return {}
    found: dict[str, float] = {}
    for task in tasks:
        name = names.get(int(task.name), OTHERS)
        found[name] = found.get(name, 0.0) + processor_seconds(task)
    return {name: round(seconds, 2) for name, seconds in found.items()}


def processor_seconds(folder: Path) -> float:
    """Of the thread or process of a folder of /proc, in user and kernel mode; 0 if it has ended."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
