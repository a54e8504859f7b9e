"""Memory shared by two processes: an anonymous file (memfd), passed as a file descriptor.

It does not need `/dev/shm`, which has 64 MB in a pod and kills a process that overflows it. Closing
the file gives the memory back to the system at once.
"""

from __future__ import annotations

import mmap
import os
import tempfile

Buffer = bytes | bytearray | memoryview


class SharedMemory:
    """An anonymous file of `size` bytes. Owns `fd`, and closes it when deleted. Any thread."""

    __slots__ = ("fd", "size")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size

    @classmethod
    def empty(cls) -> SharedMemory:
        """A new file of 0 bytes."""
        return cls(_anonymous_file(), 0)

    def append(self, data: Buffer) -> int:
        """Append `data` and return its offset. Releases the interpreter's lock."""
        begin, view = self.size, memoryview(data)
        while view.nbytes:
            written = os.pwrite(self.fd, view, self.size)
            self.size += written
            view = view[written:]
        return begin

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """A copy of `size` bytes from `offset`, or of all bytes after it."""
        left = self.size - offset if size is None else size
        whole = os.pread(self.fd, left, offset)
        if len(whole) == left:
            return whole
        raise OSError(f"{len(whole)} of {left} shared bytes are there")

    def map(self) -> mmap.mmap:
        """The content as memory of this process, without a copy. Writes to it stay private. It
        outlives this object."""
        return mmap.mmap(self.fd, self.size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)

    def close(self) -> None:
        """Give the memory back; idempotent. Maps stay valid."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("predictors", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # macOS has no memfd
        return os.dup(file.fileno())
