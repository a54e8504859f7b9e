"""Logging never waits for a slow reader, and dropped lines are noted."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from predictors.observe import line_writer
from predictors.observe.line_writer import ATOMIC_BYTES, LineStream, LineWriter

PATIENCE_S = 180.0


class Held(io.StringIO):
    """A stream whose writes block while it is shut; it keeps each write."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.began = threading.Event()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.began.set()
        assert self.gate.wait(PATIENCE_S)
        self.writes.append(text)
        return len(text)

    @property
    def text(self) -> str:
        return "".join(self.writes)


@pytest.fixture
def held() -> Iterator[Held]:
    stream = Held()
    yield stream
    stream.gate.set()


Make = Callable[..., LineWriter]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Writers with small limits, closed after the test."""
    made: list[LineWriter] = []
    monkeypatch.setattr(line_writer, "MAX_LINES", 100)
    monkeypatch.setattr(line_writer, "MAX_BYTES", 100_000)
    monkeypatch.setattr(line_writer, "GATHER_S", 0.0)
    monkeypatch.setattr(LineWriter.flush, "__defaults__", (PATIENCE_S,))

    def build(stream: io.StringIO, on_drop: Callable[[int], object] = lambda _: None) -> LineWriter:
        made.append(LineWriter(stream, lambda count: f"{count} missing\n", on_drop))
        return made[-1]

    yield build
    for writer in made:
        if isinstance(writer.stream, Held):
            writer.stream.gate.set()
        writer.close()


def stop_at_first(writer: LineWriter, stream: Held) -> None:
    """Wait until the thread is writing `first`."""
    writer.put("first\n")
    assert stream.began.wait(PATIENCE_S)


def test_lines_are_written_whole_and_in_order(make: Make) -> None:
    stream = io.StringIO()
    writer = make(stream)
    for i in range(50):
        writer.put(f"line {i} é \ud800\n")
    assert writer.flush()
    assert stream.getvalue() == "".join(f"line {i} é \ud800\n" for i in range(50))


def test_without_a_reader_the_newest_lines_are_dropped_and_counted(make: Make, held: Held) -> None:
    dropped: list[int] = []
    writer = make(held, dropped.append)
    stop_at_first(writer, held)
    for i in range(200):
        writer.put(f"{i}\n")
    assert sum(dropped) == 200 - 74  # three quarters of 100, `first` among them
    held.gate.set()
    assert writer.flush()
    writer.put("after\n")
    assert writer.flush()
    kept = "".join(f"{i}\n" for i in range(74))
    assert held.text == f"first\n{kept}{200 - 74} missing\nafter\n"


class HeldNote(Held):
    """One that holds a note of dropped lines for longer."""

    def __init__(self) -> None:
        super().__init__()
        self.note_gate = threading.Event()

    def write(self, text: str) -> int:
        if "missing" in text:
            assert self.note_gate.wait(PATIENCE_S)
        return super().write(text)


def test_a_flush_waits_for_the_note_of_what_was_dropped(make: Make) -> None:
    held = HeldNote()
    writer = make(held)
    stop_at_first(writer, held)
    for _ in range(80):
        writer.put("line\n")
    held.gate.set()
    assert not writer.flush(0.2)
    held.note_gate.set()


def test_the_queue_is_bounded_in_bytes_too(make: Make, held: Held) -> None:
    dropped: list[int] = []
    writer = make(held, dropped.append)
    stop_at_first(writer, held)
    writer.put("a" * 60_000)
    writer.put("b" * 60_000)
    writer.put("c" * 10_000)
    assert sum(dropped) == 1
    held.gate.set()
    assert writer.flush()
    assert re.sub(r"(.)\1{3,}", r"\1", held.text) == "first\nac1 missing\n"


def test_important_lines_have_a_reserve(make: Make, held: Held) -> None:
    dropped: list[int] = []
    writer = make(held, dropped.append)
    stop_at_first(writer, held)
    for _ in range(100):
        writer.put("little\n")
    before = sum(dropped)
    for _ in range(25):
        writer.put("much\n", keep=True)
    assert sum(dropped) == before
    writer.put("much\n", keep=True)
    assert sum(dropped) == before + 1
    held.gate.set()
    assert writer.flush()
    assert held.text.count("much\n") == 25
    assert held.text.endswith(f"{before + 1} missing\n")


def test_dropped_lines_are_noted_without_a_further_line(make: Make, held: Held) -> None:
    writer = make(held)
    for _ in range(75):
        writer.put("line\n")
    assert held.began.wait(PATIENCE_S)
    writer.put("lost\n")
    held.gate.set()
    assert writer.close()
    assert held.text == "line\n" * 75 + "1 missing\n"


def test_after_a_flush_gave_up_the_next_does_not_wait(make: Make, held: Held) -> None:
    writer = make(held)
    stop_at_first(writer, held)
    waited: list[float | None] = []
    real = threading.Event.wait

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        if self is not held.gate:
            waited.append(timeout)
            return real(self, 0.0)
        return real(self, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Event, "wait", wait)
        assert not writer.flush(7.0)
        assert not writer.flush(7.0)
        assert not writer.close()
    assert waited == [7.0, 0.0, 0.0]


def test_lines_after_close_are_counted_as_dropped(make: Make) -> None:
    stream, dropped = io.StringIO(), list[int]()
    writer = make(stream, dropped.append)
    writer.put("line\n")
    assert writer.close()
    writer.put("late\n")
    assert stream.getvalue() == "line\n"
    assert dropped == [1]
    assert writer.close()


def test_put_is_reentrant(make: Make, held: Held) -> None:
    # as a finaliser does that the garbage collector runs there
    dropped: list[int] = []

    def drop(count: int) -> None:
        dropped.append(count)
        if len(dropped) < 5:
            writer.put("again\n")

    writer = make(held, drop)
    stop_at_first(writer, held)
    for _ in range(75):
        writer.put("line\n")
    assert len(dropped) == 5


def test_short_lines_share_an_atomic_write(make: Make, held: Held) -> None:
    writer = make(held)
    stop_at_first(writer, held)
    for _ in range(50):
        writer.put("x" * 199 + "\n")
    writer.put("y" * 10_000 + "\n")
    held.gate.set()
    assert writer.flush()
    sizes = [len(text) for text in held.writes]
    assert sum(sizes) == len("first\n") + 50 * 200 + 10_001
    assert len(sizes) == 5
    assert all(size <= ATOMIC_BYTES or size == 10_001 for size in sizes)


@pytest.fixture
def pipe() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """Both ends of a pipe."""
    reading, writing = os.pipe()
    with (
        open(reading, encoding="utf-8") as reader,
        open(writing, "w", encoding="ascii", errors="backslashreplace") as writer,
    ):
        yield reader, writer


def test_a_descriptor_gets_the_bytes_of_its_stream(
    make: Make, pipe: tuple[io.TextIOWrapper, io.TextIOWrapper]
) -> None:
    reader, stream = pipe
    writer = make(stream)  # type: ignore[arg-type]
    writer.put("é\ud800\n")
    assert reader.readline() == "\\xe9\\ud800\n"


def test_a_non_blocking_descriptor_is_waited_for(
    make: Make, pipe: tuple[io.TextIOWrapper, io.TextIOWrapper]
) -> None:
    reader, stream = pipe
    os.set_blocking(stream.fileno(), False)
    writer = make(stream)  # type: ignore[arg-type]
    for i in range(55):
        writer.put(f"{i} {'z' * 1300}\n")  # more than a pipe holds
    assert [int(reader.readline().split()[0]) for _ in range(55)] == list(range(55))


def test_lines_for_a_closed_reader_are_counted_as_dropped(
    make: Make, pipe: tuple[io.TextIOWrapper, io.TextIOWrapper]
) -> None:
    reader, stream = pipe
    dropped: list[int] = []
    writer = make(stream, dropped.append)  # type: ignore[arg-type]
    reader.close()
    for _ in range(30):
        writer.put("line\n")
    assert writer.flush()
    assert sum(dropped) == 30


def test_a_forked_process_writes_its_own_lines() -> None:
    command = (
        "import os, sys; from predictors.observe.line_writer import LineWriter\n"
        "writer = LineWriter(sys.stderr, str)\n"
        "writer.put('before\\n'); writer.flush()\n"
        "child = os.fork()\n"
        "writer.put('parent\\n' if child else 'child\\n')\n"
        "assert writer.flush()\n"
        "if not child: os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", command],
        capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert sorted(done.stderr.split()) == ["before", "child", "parent"]


def test_line_stream_passes_on_whole_lines(make: Make) -> None:
    stream = io.StringIO()
    writer = make(stream)
    lines = LineStream(writer)
    assert lines.write("half ") == 5
    assert writer.flush()
    assert stream.getvalue() == ""
    lines.write("a line\nand")
    assert writer.flush()
    assert stream.getvalue() == "half a line\n"
    lines.flush()
    assert writer.flush()
    assert stream.getvalue() == "half a line\nand"
    lines.write("z" * 5000)  # without an end, but not for ever
    assert writer.flush()
    assert stream.getvalue().endswith("andz" + "z" * 4999)


def test_line_stream_has_the_attributes_of_its_stream(
    make: Make, pipe: tuple[io.TextIOWrapper, io.TextIOWrapper]
) -> None:
    lines = LineStream(make(pipe[1]))  # type: ignore[arg-type]
    assert lines.fileno() == pipe[1].fileno()
    assert (lines.encoding, lines.errors) == ("ascii", "backslashreplace")
    assert lines.writable()
    assert not lines.isatty()
    assert lines.buffer is pipe[1].buffer  # type: ignore[attr-defined]
