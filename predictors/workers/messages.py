"""Messages between the server and a worker process: pickled values over a Unix socket.

A message is a header, the pickle (when it is small), and file descriptors. All `bytes` of more than
`LARGE_BYTES` inside the value travel through one file of shared memory: reading it copies without
the interpreter's lock, while unpickling would hold it.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
import struct
import tempfile
from typing import Any

Buffer = bytes | bytearray | memoryview

LARGE_BYTES = 64 * 1024
MAX_FDS = 8  # of one message
_HEADER = struct.Struct("<QQQB")  # inline bytes, offset and bytes of a shared pickle, descriptors


class SharedMemory:
    """An anonymous file of `size` bytes. Owns `fd`, and closes it when deleted. Any thread."""

    __slots__ = ("fd", "size")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size

    @classmethod
    def empty(cls) -> SharedMemory:
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
        """The content without a copy. Writes stay private. The map outlives this object."""
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


Reference = tuple[str, int, int]  # kind, offset or index, size


class ConnectionClosed(Exception): ...


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.large: SharedMemory | None = None
        self.passed: list[SharedMemory] = []

    def persistent_id(self, obj: Any) -> Reference | None:
        if type(obj) is bytes and len(obj) > LARGE_BYTES:
            return "bytes", self.append(obj), len(obj)
        if type(obj) is SharedMemory:
            self.passed.append(obj)
            return "memory", len(self.passed), obj.size
        return None

    def append(self, data: bytes) -> int:
        if self.large is None:
            self.large = SharedMemory.empty()
        return self.large.append(data)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, received: list[SharedMemory]) -> None:
        super().__init__(file)
        self._received = received

    def persistent_load(self, reference: Any) -> Any:
        kind, where, size = reference
        if kind == "bytes":
            return self._received[0].read(where, size)
        memory = self._received[where]
        memory.size = size
        return memory

    def find_class(self, module: str, name: str) -> Any:
        # a worker process that a hostile picture took over must not run code in the server
        if module.startswith("predictors."):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in a message")


def send(connection: socket.socket, value: object) -> None:
    """Write one message. Raises `ConnectionClosed` when the other end is closed."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    payload, offset, size = file.getvalue(), 0, 0
    if len(payload) > LARGE_BYTES:
        offset, size, payload = pickler.append(payload), len(payload), b""
    # the first descriptor is that of the large bytes, or an empty file: indices stay the same
    first = pickler.large or (SharedMemory.empty() if pickler.passed else None)
    memories = [first, *pickler.passed] if first is not None else []
    header = _HEADER.pack(len(payload), offset, size, len(memories))
    try:
        sent = socket.send_fds(connection, [header], [memory.fd for memory in memories])
        assert sent == _HEADER.size  # a fresh message of 25 bytes is never split
        connection.sendall(payload)
    except OSError as error:
        raise ConnectionClosed from error


def receive(connection: socket.socket) -> Any:
    """Raises `ConnectionClosed` at the end, `TimeoutError` after the socket's timeout."""
    try:
        header, fds, _, _ = socket.recv_fds(connection, _HEADER.size, MAX_FDS)
    except TimeoutError:
        raise
    except OSError as error:
        raise ConnectionClosed from error
    received = [SharedMemory(fd, 0) for fd in fds]
    if len(header) != _HEADER.size:
        raise ConnectionClosed
    inline, offset, size, count = _HEADER.unpack(header)
    if len(received) != count:
        raise ConnectionClosed
    payload = received[0].read(offset, size) if size else _exactly(connection, inline)
    return _Unpickler(io.BytesIO(payload), received).load()


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        try:
            piece = connection.recv(size - len(found))
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionClosed from error
        if not piece:
            raise ConnectionClosed
        found += piece
    return bytes(found)
