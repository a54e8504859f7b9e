"""Memory of the container, or of this process where there is no container with a limit.

Only memory counts that the system can't take back: cached files, such as weights that were read,
don't.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
STATM = Path("/proc/self/statm")
PAGE = os.sysconf("SC_PAGE_SIZE")
UNLIMITED = 2**60  # cgroup v1 writes a number near 2**63 for "no limit"
# file pages that can be dropped; `total_` are those of version 1, with the groups below
RECLAIMABLE = (b"inactive_file", b"active_file", b"slab_reclaimable")
RECLAIMABLE_V1 = (b"total_inactive_file", b"total_active_file")


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Where to read the use, and the limit in bytes; 0 for none."""

    read: Callable[[], int]
    limit: int


def find_memory_use(
    limit: int = 0, cgroups: Path = CGROUPS, own_groups: Path = OWN_GROUPS
) -> MemoryUse:
    """The container's use with its limit, or with `limit` if that is set; this process's use where
    the container has none."""
    for folder, current, most, reclaimable in (
        (_group(cgroups, own_groups, ""), "memory.current", "memory.max", RECLAIMABLE),
        (
            _group(cgroups / "memory", own_groups, "memory"),
            "memory.usage_in_bytes",
            "memory.limit_in_bytes",
            RECLAIMABLE_V1,
        ),
    ):
        found = _limit(folder / most)
        if found:
            return MemoryUse(partial(_group_use, folder, current, reclaimable), limit or found)
    return MemoryUse(_process_use, limit)


def _group(root: Path, own_groups: Path, controller: str) -> Path:
    """The folder of this process's group. Inside a container it is usually `root` itself."""
    try:
        lines = own_groups.read_text(encoding="ascii").splitlines()
    except OSError:
        return root
    for line in lines:
        _, names, path = line.split(":", 2)
        if controller in names.split(",") and (root / path.lstrip("/")).is_dir():
            return root / path.lstrip("/")
    return root


def _limit(file: Path) -> int:
    try:
        raw = file.read_text(encoding="ascii").strip()
    except OSError:
        return 0
    return int(raw) if raw.isdigit() and int(raw) < UNLIMITED else 0


def _group_use(folder: Path, current: str, reclaimable: tuple[bytes, ...]) -> int:
    used = int((folder / current).read_bytes())
    for line in (folder / "memory.stat").read_bytes().splitlines():
        name, _, value = line.partition(b" ")
        if name in reclaimable:
            used -= int(value)
    return max(0, used)


def _process_use() -> int:
    """Resident pages less those of files and shared memory."""
    _, resident, shared, *_ = STATM.read_bytes().split()
    return (int(resident) - int(shared)) * PAGE
