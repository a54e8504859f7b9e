"""Lines to a stream from a thread of its own: a reader that has stopped reading stops no caller.

What waits is bounded in lines and bytes. Beyond that the newest lines are dropped, so that what led
to the trouble is kept in order, and counted; a note in the place of the gap says how many they are.
A quarter of the queue is kept for lines that the caller marks as important.
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
RESERVE = 0.25  # of both, for lines that are kept before others
GATHER_S = 0.25  # lines of this time share a wake-up of the thread, which delays a request or two
FLUSH_S = 2.0  # the most that an end of the process waits for its reader

ATOMIC_BYTES = select.PIPE_BUF  # a pipe takes so much at once: no other writer's text gets between


class LineWriter:
    """Writes to `stream`. `note` makes the line that tells of a number of dropped ones, `on_drop`
    is called with each number.

    Any thread may call anything. `put` never blocks and may be interrupted by itself: a finaliser
    that logs runs in the middle of it.
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
        """Nothing is queued, and a thread waits for lines."""
        self._queue: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        self._hurry: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._lines = self._bytes = 0  # put and not written yet
        self._lost = 0  # dropped and not told of yet
        self._is_closed = False
        self._gave_up = False  # the last flush took too long, and nothing was written since
        threading.Thread(target=self._run, name="log", daemon=True).start()

    # -- any thread ------------------------------------------------------------------------------
    def put(self, line: str, *, keep: bool = False, hurry: bool = False) -> None:
        """Queue a line, its end included. One to `keep` may use the reserve; one in a `hurry` is
        written at once."""
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
        """Wait until everything that was put is written; False if that took too long. After that
        nobody waits again until something was written."""
        if self._is_closed:
            return not self._gave_up
        written = threading.Event()
        self._queue.put(written)
        self._hurry.put(None)
        done = written.wait(0.0 if self._gave_up else timeout_s)
        self._gave_up = not done
        return done

    def close(self) -> bool:
        """Flush and end the thread; what is put later is dropped. False if lines were left."""
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
            lost = self._take_lost()  # after what is queued now, before what is put from now on
            lines: list[bytes] = []
            for item in self._taken(first):
                if isinstance(item, bytes):
                    lines.append(item)
                    continue
                self._write(lines)
                lines = []
                if item is None:
                    is_open = False
                else:
                    item.set()
            self._write(lines)
            if self._queue.empty():
                lost += self._take_lost()
            if lost:
                self._tell(lost)
            self._gather()  # a line after a pause goes out at once, those behind it together

    def _take_lost(self) -> int:
        with self._lock:
            lost, self._lost = self._lost, 0
        return lost

    def _gather(self) -> None:
        """Return after `GATHER_S`, or as soon as somebody is in a hurry."""
        try:
            self._hurry.get(timeout=GATHER_S)
            while True:
                self._hurry.get_nowait()
        except queue.Empty:
            pass

    def _taken(
        self, first: bytes | threading.Event | None
    ) -> Iterator[bytes | threading.Event | None]:
        """`first` and what is queued behind it now."""
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

    def _tell(self, lost: int) -> None:
        line = self._note(lost).encode(self._encoding, self._errors)
        if not self._put_out(line):
            with self._lock:
                self._lost += lost

    def _put_out(self, text: bytes) -> bool:
        """Write it all, for as long as it takes; False where nobody will ever read it."""
        try:
            if self._descriptor < 0:
                self.stream.write(text.decode(self._encoding, self._errors))
                self.stream.flush()
                return True
            # not through the stream: whoever holds its lock at the end would hang the interpreter
            while text:
                text = text[self._write_some(text) :]
        except (OSError, ValueError):  # the reader has gone, the disk is full, the stream is closed
            return False
        return True

    def _write_some(self, text: bytes) -> int:
        try:
            return os.write(self._descriptor, text)
        except BlockingIOError:  # somebody who shares the descriptor made it so
            ready = select.poll()
            ready.register(self._descriptor, select.POLLOUT)
            ready.poll()
            return 0


class LineStream(io.TextIOBase):
    """A text stream, to stand for a process's stderr, whose whole lines go through a `LineWriter`.
    `flush` passes on what has no end yet and waits for nobody."""

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
    """Lines that fit into one atomic write together, or a longer one alone."""
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
    """A forked child has no threads but its own; the parent's lines are the parent's."""
    for writer in list(_writers):
        writer._begin()


os.register_at_fork(after_in_child=_after_fork)
