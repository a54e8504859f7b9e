"""Copies bytes of files into tensors on a device, through pinned memory, with several threads. Each
reader thread has a stream and two buffers: while one is copied, the other is filled.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from predictors.errors import EngineFailed

# One thread copies from the page cache at a few GB/s, a tenth of what the bus to a GPU takes, and
# without pinned memory the driver copies everything once more. Measured on an H200 with 6 GB in
# /dev/shm, in GB/s: 4.4 with 1 reader, 8.3 with 2, 15.7 with 4, 24.5 with 8 and 31.1 with 12, all
# at 32 MiB per buffer; 28.9 with 8 readers at 8 MiB. `get_tensor` and `to` give 5.8. Host memory:
# readers x 2 x `buffer_bytes`, at most 128 MiB by default, pinned on CUDA and kept by torch. Device
# memory besides the targets: readers x `buffer_bytes`, if dtype or layout change.
NUM_READERS = min(8, os.cpu_count() or 1)
BUFFER_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Extent:
    """The place of a target's values in a file: `offset` bytes from its beginning, row-major, in
    `dtype`. `target` has any shape and dtype. `name` is for messages."""

    target: Tensor
    file: Path
    offset: int
    dtype: torch.dtype
    name: str

    @property
    def num_bytes(self) -> int:
        return self.target.numel() * self.dtype.itemsize


def split_extent(extent: Extent, most: int) -> Iterator[Extent]:
    """Split `extent` along its first dimensions into parts of at most `most` bytes, but at least
    one element. No part is empty."""
    size = extent.num_bytes
    if size <= most or extent.target.ndim == 0:
        if size:
            yield extent
        return
    row = size // extent.target.shape[0]
    step = max(1, most // row)
    for start in range(0, extent.target.shape[0], step):
        rows = extent.target[start : start + step]
        part = replace(extent, target=rows, offset=extent.offset + start * row)
        if row > most:
            yield from split_extent(replace(part, target=rows[0]), most)
        else:
            yield part


def fill(
    extents: Iterable[Extent], num_readers: int = NUM_READERS, buffer_bytes: int = BUFFER_BYTES
) -> None:
    """Read every extent into its target. All targets are on one device.

    Copies may still be in flight on return; work launched on the current stream sees the data.
    Raises `EngineFailed` naming file and tensor if a file can't be read or is too short.
    """
    with torch.inference_mode():  # in-place writes to parameters, and to inference tensors
        parts = [part for extent in extents for part in split_extent(extent, buffer_bytes)]
    if not parts:
        return
    parts.sort(key=lambda part: (part.file, part.offset))  # disks are faster when read in order
    device = parts[0].target.device
    with ExitStack() as stack:
        files = {file: stack.enter_context(_OpenFile(file)) for file in {p.file for p in parts}}
        queue = _Queue(parts)
        readers = [
            _Reader(queue, files, device, buffer_bytes) for _ in range(min(num_readers, len(parts)))
        ]
        try:
            with ThreadPoolExecutor(len(readers), "weights") as pool:
                for done in [pool.submit(reader.run) for reader in readers]:
                    done.result()
        finally:
            for reader in readers:
                reader.join()


class _OpenFile:
    """A file descriptor. `read` may be called on several threads."""

    def __init__(self, file: Path) -> None:
        self.name = f"{file.parent.name}/{file.name}"
        self._file = file
        self._descriptor = -1

    def __enter__(self) -> _OpenFile:
        try:
            self._descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise EngineFailed(f"{self.name} can't be opened") from error
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, into: memoryview, tensor: str) -> None:
        """Fill `into` with the bytes from `offset`. `tensor` is for messages."""
        done = 0
        while done < len(into):
            try:
                got = os.preadv(self._descriptor, [into[done:]], offset + done)
            except OSError as error:
                raise EngineFailed(f"{self.name} can't be read at tensor {tensor}") from error
            if got == 0:
                raise EngineFailed(f"{self.name} ends within tensor {tensor}; fetch it again")
            done += got


class _Queue:
    """Parts that no reader has taken yet. Any thread."""

    def __init__(self, parts: Sequence[Extent]) -> None:
        self._parts = iter(parts)
        self._lock = threading.Lock()

    def next(self) -> Extent | None:
        with self._lock:
            return next(self._parts, None)

    def close(self) -> None:
        with self._lock:
            self._parts = iter(())


class _Reader:
    """Buffers and stream of one thread. Made and joined on the caller's thread, run on another."""

    def __init__(
        self, queue: _Queue, files: dict[Path, _OpenFile], device: torch.device, buffer_bytes: int
    ) -> None:
        self._queue = queue
        self._files = files
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        is_cuda = device.type == "cuda"
        if is_cuda:
            self._stream = torch.cuda.Stream(device)
            # work launched before may still use the targets' memory
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._buffers = [_Buffer(buffer_bytes, is_cuda) for _ in range(2)]

    def run(self) -> None:
        try:
            with torch.cuda.stream(self._stream), torch.inference_mode():
                for buffer in cycle(self._buffers):
                    part = self._queue.next()
                    if part is None:
                        return
                    self._copy(part, buffer)
        finally:
            self._queue.close()  # already empty, unless this reader failed: then all stop

    def join(self) -> None:
        """Make the caller's current stream wait for this reader's copies."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _copy(self, part: Extent, buffer: _Buffer) -> None:
        into = buffer.wait_free()[: part.num_bytes]
        self._files[part.file].read(part.offset, into.numpy().data, part.name)
        target = part.target
        values = into.view(part.dtype).view(target.shape)
        try:
            if target.dtype != part.dtype or not target.is_contiguous():
                # otherwise torch would convert on the host
                values = values.to(target.device, non_blocking=True)
            target.copy_(values, non_blocking=True)
        except RuntimeError as error:  # the device is lost or out of memory
            name = self._files[part.file].name
            raise EngineFailed(f"tensor {part.name} of {name} can't be copied") from error
        buffer.mark_copying()


class _Buffer:
    """Host memory that is reused only after its last copy has finished."""

    def __init__(self, num_bytes: int, is_cuda: bool) -> None:
        self._memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_cuda)
        self._copied = torch.cuda.Event() if is_cuda else None

    def wait_free(self) -> Tensor:
        """The memory, after its last copy has finished."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._memory

    def mark_copying(self) -> None:
        """Note that a copy from it was launched on the current stream."""
        if self._copied is not None:
            self._copied.record()
