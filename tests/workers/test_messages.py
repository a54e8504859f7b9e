"""Messages between processes: whatever goes in comes out, large bytes beside the pickle."""

from __future__ import annotations

import pickle
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.errors import InvalidRequest, Overloaded, TooLarge
from predictors.workers.messages import LARGE_BYTES, Closed, receive, send
from predictors.workers.shared_memory import SharedMemory

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both ends of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def through(value: Any) -> Any:
    """`value` as the other side gets it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=send, args=(ours, value))
        sender.start()
        found = receive(theirs)
        sender.join()
    return found


@settings(max_examples=30)
@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.binary(),
        lambda x: st.lists(x) | st.tuples(x, x) | st.dictionaries(st.text(), x),
    )
)
def test_values_come_out_as_they_went_in(value: Any) -> None:
    assert through(value) == value


@pytest.mark.parametrize("size", [0, LARGE_BYTES, LARGE_BYTES + 1, 5_000_000])
def test_bytes_of_every_size_come_out_as_they_went_in(size: int) -> None:
    value = {"a": [b"x" * size, b"small", bytes(size)], "text": "ü" * size}
    assert through(value) == value


def test_shared_memory_is_handed_on_without_a_copy() -> None:
    memory = SharedMemory.empty()
    memory.append(b"abc")
    memory.append(b"def")
    found = through([b"y" * 100_000, memory])[1]
    assert isinstance(found, SharedMemory)
    assert found.read() == b"abcdef"
    memory.append(b"!")  # the same file
    assert found.read(0, 7) == b"abcdef!"


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("wrong", param="x", row=3),
        TooLarge("much"),
        Overloaded("full", retry_after_s=7),
    ],
)
def test_failures_of_ours_come_out_whole(error: Exception) -> None:
    found = through(error)
    assert type(found) is type(error)
    assert vars(found) == vars(error)
    assert str(found) == str(error)


def test_a_message_can_not_make_this_process_run_anything(pair: Pair) -> None:
    send(pair[0], subprocess.CompletedProcess(["true"], 0))  # any class that is not ours
    with pytest.raises(pickle.UnpicklingError, match="subprocess"):
        receive(pair[1])


def test_the_end_of_the_other_side_is_told(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(Closed):
        receive(pair[1])
    with pytest.raises(Closed):
        send(pair[1], "nobody reads this")
