"""Writes lines to a stream on a thread of its own, so that a slow reader never blocks a caller.

The queue is bounded in lines and bytes. If it is full the newest lines are dropped and counted, and
a note in their place gives the number. A quarter of the queue is reserved for important lines.
"""

from __future__ import annotations

import io
import os
import queue
import select
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

MAX_LINES = 10_000
MAX_BYTES = 4 * 2**20
RESERVE = 0.25  # share of both limits, for important lines
GATHER_S = 0.25  # lines within this time share a wake-up of the thread, which delays requests
FLUSH_S = 2.0  # longest wait for the reader at the end of the process

# a pipe takes this much in one write, without text of other writers in between
ATOMIC_BYTES = select.PIPE_BUF


class LineWriter:
    """Writes to `stream`. `note` makes the line for a number of dropped lines; `on_drop` is called
    with each number.

    Any thread. `put` never blocks. It is reentrant, because a finaliser that logs may run inside
    it.
    """

    def __init__(
        self,
        stream: TextIO,
        note: Callable[[int], str],
        on_drop: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.stream = stream
        self._note = note
        self._on_drop = on_drop
        self._encoding = stream.encoding or "utf-8"
        self._errors = stream.errors or "surrogatepass"
        try:
            self._descriptor = stream.fileno()
        except (OSError, AttributeError):
            self._descriptor = -1  # a stream in memory
        self._most = MAX_LINES, MAX_BYTES
        self._begin()
        _writers.add(self)

    def _begin(self) -> None:
        """Start with an empty queue and a new thread."""
        self._queue: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        self._hurry: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._lines = self._bytes = 0  # queued and not written yet
        self._lost = 0  # dropped and not yet reported by a note
        self._is_closed = False
        self._gave_up = False  # the last flush took too long, and nothing was written since
        threading.Thread(target=self._run, name="log", daemon=True).start()

    # -- any thread ------------------------------------------------------------------------------
    def put(self, line: str, *, keep: bool = False, hurry: bool = False) -> None:
        """Queue a whole line. `keep` may use the reserve; `hurry` is written at once."""
        encoded = line.encode(self._encoding, self._errors)
        share = 1.0 if keep else 1.0 - RESERVE
        lines, octets = self._most
        with self._lock:
            is_full = self._lines >= lines * share or self._bytes + len(encoded) > octets * share
            is_lost = is_full or self._is_closed
            if is_lost:
                self._lost += 1
            else:
                self._lines += 1
                self._bytes += len(encoded)
                self._queue.put(encoded)
        if is_lost:
            self._on_drop(1)
        elif hurry:
            self._hurry.put(None)

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until everything queued is written, and a note of what was dropped; False after
        `timeout_s`. Later calls do not wait until something has been written."""
        written = threading.Event()
        with self._lock:
            if self._is_closed:
                return not self._gave_up
            self._queue.put(written)
        self._hurry.put(None)
        done = written.wait(0.0 if self._gave_up else timeout_s)
        self._gave_up = not done
        return done

    def close(self) -> bool:
        """Flush and end the thread. Later lines are dropped. False if lines were left."""
        done = self.flush()
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        return done

    # -- the thread ------------------------------------------------------------------------------
    def _run(self) -> None:
        is_open = True
        while is_open:
            first = self._queue.get()
            lost = self._take_lost()  # dropped after the lines queued now, before later ones
            lines: list[bytes] = []
            flushes: list[threading.Event] = []
            for item in self._queued(first):
                if isinstance(item, bytes):
                    lines.append(item)
                elif item is None:
                    is_open = False
                else:
                    flushes.append(item)
            self._write(lines)
            if self._queue.empty():
                lost += self._take_lost()
            if lost:
                self._write_note(lost)
            for written in flushes:  # the process may end at once, and the note is out by then
                written.set()
            self._gather()  # a line after a pause is written at once, later ones together

    def _take_lost(self) -> int:
        with self._lock:
            lost, self._lost = self._lost, 0
        return lost

    def _gather(self) -> None:
        try:
            self._hurry.get(timeout=GATHER_S)
            while True:
                self._hurry.get_nowait()
        except queue.Empty:
            pass

    def _queued(
        self, first: bytes | threading.Event | None
    ) -> Iterator[bytes | threading.Event | None]:
        """`first` and everything queued behind it now."""
        yield first
        for _ in range(self._queue.qsize()):
            yield self._queue.get_nowait()

    def _write(self, lines: Sequence[bytes]) -> None:
        for group in _groups(lines):
            size = sum(map(len, group))
            is_out = self._put_out(b"".join(group))
            with self._lock:
                self._lines -= len(group)
                self._bytes -= size
                if not is_out:
                    self._lost += len(group)
            if is_out:
                self._gave_up = False
            else:
                self._on_drop(len(group))

    def _write_note(self, lost: int) -> None:
        line = self._note(lost).encode(self._encoding, self._errors)
        if not self._put_out(line):
            with self._lock:
                self._lost += lost

    def _put_out(self, text: bytes) -> bool:
        """Write all of it, however long it takes; False if the stream can't be written any more."""
        try:
            if self._descriptor < 0:
                self.stream.write(text.decode(self._encoding, self._errors))
                self.stream.flush()
                return True
            # not through the stream: a thread that holds its lock at exit would hang the
            # interpreter
            while text:
                text = text[self._write_some(text) :]
        # the reader is gone, the disk is full, or the stream is closed
        except (OSError, ValueError):
            return False
        return True

    def _write_some(self, text: bytes) -> int:
        try:
            return os.write(self._descriptor, text)
        except BlockingIOError:  # another process that shares the descriptor made it non-blocking
            ready = select.poll()
            ready.register(self._descriptor, select.POLLOUT)
            ready.poll()
            return 0


class LineStream(io.TextIOBase):
    """A replacement for stderr that passes whole lines to a `LineWriter`. `flush` passes on an
    unfinished line and does not wait."""

    def __init__(self, writer: LineWriter) -> None:
        self.writer = writer
        self._begun = ""

    def __getattr__(self, name: str) -> object:
        return getattr(self.writer.stream, name)  # `buffer`, `name` and the like

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.writer.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.writer.stream.errors

    def fileno(self) -> int:
        return self.writer.stream.fileno()

    def isatty(self) -> bool:
        return self.writer.stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        whole, end, self._begun = (self._begun + text).rpartition("\n")
        if end:
            self.writer.put(whole + end, keep=True)
        elif len(self._begun) > ATOMIC_BYTES:
            self.flush()
        return len(text)

    def flush(self) -> None:
        begun, self._begun = self._begun, ""
        if begun:
            self.writer.put(begun, keep=True)


def _groups(lines: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Groups of lines that fit into one atomic write; a longer line is a group of its own."""
    group: list[bytes] = []
    size = 0
    for line in lines:
        if group and size + len(line) > ATOMIC_BYTES:
            yield group
            group, size = [], 0
        group.append(line)
        size += len(line)
    if group:
        yield group


_writers: weakref.WeakSet[LineWriter] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked child has only its own thread, and its parent's queued lines are not its own."""
    for writer in list(_writers):
        writer._begin()


os.register_at_fork(after_in_child=_after_fork)
