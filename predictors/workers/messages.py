"""Messages between the server and a worker process: pickled values over a Unix socket.

A message is a header, the pickle (when it is small), and file descriptors. All `bytes` of more than
`LARGE_BYTES` inside the value travel through one file of shared memory: reading it copies without
the interpreter's lock, while unpickling would hold it. That memory goes to and fro between the two
ends, since new pages cost several times what writing them does.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
import stat
import struct
import tempfile
from typing import Any

Buffer = bytes | bytearray | memoryview

LARGE_BYTES = 64 * 1024
SPARE_BYTES = 16 * 2**20  # of memory that a connection keeps for its next message
MAX_FDS = 8  # of one message
_HEADER = struct.Struct("<QQQB?")
"""Inline bytes, offset and bytes of a shared pickle, descriptors, and whether the first of these is
the memory of large bytes."""


class SharedMemory:
    """An anonymous file, of which `size` bytes are in use. Owns `fd`, and closes it when deleted.
    Any thread."""

    __slots__ = ("_home", "fd", "size")

    def __init__(self, fd: int, size: int, home: WorkerConnection | None = None) -> None:
        self.fd = fd
        self.size = size
        self._home = home

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

    def read_into(self, target: memoryview) -> None:
        """Fill `target`, whose items are bytes, from the beginning. Releases the interpreter's
        lock."""
        done = 0
        with io.FileIO(self.fd, closefd=False) as file:  # macOS has no `preadv`
            file.seek(0)
            while done < len(target):
                read = file.readinto(target[done:])
                if not read:
                    raise OSError(f"{done} of {len(target)} shared bytes are there")
                done += read

    def map(self) -> mmap.mmap:
        """The content without a copy. Writes stay private. The map outlives this object."""
        return mmap.mmap(self.fd, self.size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)

    def close(self) -> None:
        """Give the memory back; idempotent. Maps stay valid."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def give_back(self) -> None:
        """Close it, or leave it to the connection that brought it, for the next message there. No
        map of it may be in use."""
        home, self._home = self._home, None
        if home is None:
            self.close()
        else:
            home.keep(self)

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
    """`large` is memory for large bytes, or None: it is made when it is needed."""

    def __init__(self, file: io.BytesIO, large: SharedMemory | None) -> None:
        super().__init__(file, protocol=5)
        self.large = large
        self.passed: list[SharedMemory] = []

    def persistent_id(self, obj: Any) -> Reference | None:
        if type(obj) is bytes and len(obj) > LARGE_BYTES:
            return "bytes", self.append(obj), len(obj)
        if type(obj) is SharedMemory:
            self.passed.append(obj)
            return "memory", len(self.passed) - 1, obj.size
        return None

    def append(self, data: bytes) -> int:
        if self.large is None:
            self.large = SharedMemory.empty()
        return self.large.append(data)


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, file: io.BytesIO, large: SharedMemory | None, passed: list[SharedMemory]
    ) -> None:
        super().__init__(file)
        self._large = large
        self._passed = passed

    def persistent_load(self, reference: Any) -> Any:
        kind, where, size = reference
        if kind == "bytes":
            if self._large is None:
                raise ConnectionClosed
            return self._large.read(where, size)
        memory = self._passed[where]
        memory.size = size
        return memory

    def find_class(self, module: str, name: str) -> Any:
        # a worker process that a hostile picture took over must not run code in the server
        if module.startswith("predictors."):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in a message")


class WorkerConnection:
    """One end of a socket between the server and a worker process, which takes turns in sending
    with the other end. One thread at a time, but for `keep`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._spare: SharedMemory | None = None
        self._is_closed = False

    def send(self, value: object) -> None:
        """Write one message. Raises `ConnectionClosed` when the other end is closed."""
        file = io.BytesIO()
        pickler = _Pickler(file, self.spare())
        pickler.dump(value)
        payload, offset, size = file.getvalue(), 0, 0
        if len(payload) > LARGE_BYTES:
            offset, size, payload = pickler.append(payload), len(payload), b""
        large = pickler.large
        memories = pickler.passed if large is None else [large, *pickler.passed]
        has_large = large is not None
        header = _HEADER.pack(len(payload), offset, size, len(memories), has_large)
        try:
            sent = socket.send_fds(self._socket, [header], [memory.fd for memory in memories])
            assert sent == _HEADER.size  # a fresh message of 26 bytes is never split
            self._socket.sendall(payload)
        except OSError as error:
            raise ConnectionClosed from error

    def receive(self) -> Any:
        """Raises `ConnectionClosed` at the end, `TimeoutError` after the socket's timeout."""
        try:
            header, fds, _, _ = socket.recv_fds(self._socket, _HEADER.size, MAX_FDS)
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionClosed from error
        received = [SharedMemory(fd, 0, self) for fd in fds]
        if len(header) != _HEADER.size:
            raise ConnectionClosed
        inline, offset, size, count, has_large = _HEADER.unpack(header)
        if len(received) != count or has_large > count:
            raise ConnectionClosed
        large = received.pop(0) if has_large else None
        if size and large is None:
            raise ConnectionClosed
        payload = large.read(offset, size) if size and large else self._exactly(inline)
        value = _Unpickler(io.BytesIO(payload), large, received).load()
        if large is not None:
            large.give_back()
        return value

    def _exactly(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            try:
                piece = self._socket.recv(size - len(found))
            except TimeoutError:
                raise
            except OSError as error:
                raise ConnectionClosed from error
            if not piece:
                raise ConnectionClosed
            found += piece
        return bytes(found)

    def settimeout(self, seconds: float) -> None:
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Idempotent."""
        self._is_closed = True
        self._spare = None
        self._socket.close()

    # -- spare memory ------------------------------------------------------------------------------
    def spare(self) -> SharedMemory | None:
        """Memory that a message brought and that was given back, if there is some. What it holds
        came from the other end or went there, so that end may read it."""
        spare, self._spare = self._spare, None
        return spare

    def keep(self, memory: SharedMemory) -> None:
        """Keep `memory` as the spare one, or close it. Any thread."""
        try:
            found = os.fstat(memory.fd)  # the other end may have sent anything
            is_usable = stat.S_ISREG(found.st_mode) and found.st_size <= SPARE_BYTES
        except OSError:
            is_usable = False
        if self._is_closed or not is_usable or self._spare is not None:
            memory.close()
            return
        memory.size = 0
        self._spare = memory


_of_worker: list[WorkerConnection] = []


def serve_on(connection: WorkerConnection) -> None:
    """Say that this process is a worker at the end of `connection`."""
    _of_worker[:] = [connection]


def result_memory() -> SharedMemory:
    """Memory for a task's result: in a worker process that which came with the task, else new."""
    spare = _of_worker[0].spare() if _of_worker else None
    return SharedMemory.empty() if spare is None else spare
