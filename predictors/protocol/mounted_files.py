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
    # an opener: a descriptor that was opened before is leaked if the path is a folder
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(most), found
