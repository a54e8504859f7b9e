"""Reading of small files that an operator mounts and replaces while the process serves."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_mounted(path: Path | str, most: int) -> tuple[bytes, os.stat_result]:
    """At most `most` bytes of a regular file, and its state before they were read.

    Raises `OSError`, also for a pipe or device, which could block the reading thread for ever.
    Blocks.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(most), found
