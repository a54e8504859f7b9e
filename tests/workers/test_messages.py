"""Messages between processes arrive unchanged, with large bytes beside the pickle."""

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
from predictors.workers.messages import LARGE_BYTES, ConnectionClosed, SharedMemory, receive, send

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def through(value: Any) -> Any:
    """`value` as the other process receives it."""
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
    send(pair[0], subprocess.CompletedProcess(["true"], 0))  # any class of another package
    with pytest.raises(pickle.UnpicklingError, match="subprocess"):
        receive(pair[1])


def test_a_closed_connection_is_an_error(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(ConnectionClosed):
        receive(pair[1])
    with pytest.raises(ConnectionClosed):
        send(pair[1], "unread")
