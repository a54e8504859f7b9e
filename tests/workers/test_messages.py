"""Messages between processes arrive unchanged, with large bytes beside the pickle."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.errors import InvalidRequest, Overloaded, TooLarge
from predictors.workers.messages import (
    LARGE_BYTES,
    SPARE_BYTES,
    ConnectionClosed,
    SharedMemory,
    WorkerConnection,
)

Pair = tuple[WorkerConnection, WorkerConnection]


@contextmanager
def connected() -> Iterator[Pair]:
    ours, theirs = map(WorkerConnection, socket.socketpair())
    with closing(ours), closing(theirs):
        yield ours, theirs


@pytest.fixture
def pair() -> Iterator[Pair]:
    with connected() as both:
        yield both


def through(value: Any) -> Any:
    """`value` as the other process receives it."""
    with connected() as both:
        return passed(*both, value)


def passed(near: WorkerConnection, far: WorkerConnection, value: Any) -> Any:
    sender = threading.Thread(target=near.send, args=(value,))
    sender.start()
    found = far.receive()
    sender.join()
    return found


@settings(max_examples=30)
@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.binary(),
        lambda x: st.lists(x) | st.tuples(x, x) | st.dictionaries(st.text(), x),
    )
)
def test_values_arrive_unchanged(value: Any) -> None:
    assert through(value) == value


@pytest.mark.parametrize("size", [0, LARGE_BYTES, LARGE_BYTES + 1, 5_000_000])
def test_bytes_of_every_size_arrive_unchanged(size: int) -> None:
    value = {"a": [b"x" * size, b"small", bytes(size)], "text": "ü" * size}
    assert through(value) == value


def test_shared_memory_is_passed_without_a_copy() -> None:
    memory = SharedMemory.empty()
    memory.append(b"abc")
    memory.append(b"def")
    found = through([b"y" * 100_000, memory])[1]
    assert isinstance(found, SharedMemory)
    assert found.read() == b"abcdef"
    memory.append(b"!")  # the same file
    assert found.read(0, 7) == b"abcdef!"


# -- memory that goes to and fro -------------------------------------------------------------------
def place_of(memory: SharedMemory) -> int:
    """Tells memories apart, whatever their descriptors."""
    return os.fstat(memory.fd).st_ino


def test_memory_that_was_given_back_carries_the_next_message_and_its_answer(pair: Pair) -> None:
    ours, theirs = pair
    first = SharedMemory.empty()
    first.append(b"1" * 100_000)
    (brought,) = passed(theirs, ours, [first])
    where = place_of(brought)
    brought.give_back()
    file = b"2" * 90_000
    assert passed(ours, theirs, ["a task", file]) == ["a task", file]
    spare = theirs.spare()
    assert spare is not None
    assert (place_of(spare), spare.size) == (where, 0)
    spare.append(b"3" * 80_000)
    (answer,) = passed(theirs, ours, [spare])
    assert place_of(answer) == where
    assert answer.read() == b"3" * 80_000  # and no rest of what was longer


def test_memory_goes_along_with_a_message_that_has_nothing_large(pair: Pair) -> None:
    ours, theirs = pair
    passed(theirs, ours, b"1" * 100_000)
    assert passed(ours, theirs, "small") == "small"
    assert theirs.spare() is not None
    assert ours.spare() is None


def test_memory_in_use_is_not_written_by_later_messages(pair: Pair) -> None:
    ours, theirs = pair
    memory = SharedMemory.empty()
    memory.append(b"1" * 100_000)
    (held,) = passed(theirs, ours, [memory])
    for content in (b"2", b"3"):
        passed(ours, theirs, content * 100_000)
        passed(theirs, ours, content * 100_000)
    assert held.read() == b"1" * 100_000


def test_of_several_memories_that_come_back_one_is_kept_and_no_large_one(pair: Pair) -> None:
    ours, theirs = pair
    memories: list[SharedMemory] = []
    for size in (SPARE_BYTES + 1, 10, 10):
        memory = SharedMemory.empty()
        memory.append(bytes(size))
        memories += passed(theirs, ours, [memory])
    large, one, other = memories
    for each in memories:
        each.give_back()
    assert [each.fd >= 0 for each in (large, one, other)] == [False, True, False]
    assert ours.spare() is one


def test_a_descriptor_that_is_no_memory_is_closed_and_not_kept(pair: Pair) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    (brought,) = passed(pair[1], pair[0], [SharedMemory(reading, 0)])
    brought.give_back()
    assert brought.fd < 0
    assert pair[0].spare() is None


def test_a_connection_that_is_closed_keeps_nothing() -> None:
    with connected() as (ours, theirs):
        memory = SharedMemory.empty()
        memory.append(b"1")
        (brought,) = passed(theirs, ours, [memory])
    brought.give_back()
    assert brought.fd < 0


def test_memory_is_read_into_a_buffer_and_a_file_that_is_too_short_is_an_error() -> None:
    memory = SharedMemory.empty()
    memory.append(b"abcdef")
    target = bytearray(6)
    memory.read_into(memoryview(target))
    assert target == b"abcdef"
    with pytest.raises(OSError, match="6 of 7 shared bytes"):
        memory.read_into(memoryview(bytearray(7)))


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("wrong", param="x", row=3),
        TooLarge("much"),
        Overloaded("full", retry_after_s=7),
    ],
)
def test_serving_errors_arrive_with_all_their_fields(error: Exception) -> None:
    found = through(error)
    assert type(found) is type(error)
    assert vars(found) == vars(error)
    assert str(found) == str(error)


def test_a_message_with_a_foreign_class_is_refused(pair: Pair) -> None:
    pair[0].send(subprocess.CompletedProcess(["true"], 0))  # any class of another package
    with pytest.raises(pickle.UnpicklingError, match="subprocess"):
        pair[1].receive()


def test_a_closed_connection_is_an_error(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(ConnectionClosed):
        pair[1].receive()
    with pytest.raises(ConnectionClosed):
        pair[1].send("unread")
