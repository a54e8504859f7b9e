"""Lines of gRPC's core on stderr for heads that it can't read: there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from predictors.observe.logs import silence_grpc
from tests.http.echo import PATIENCE_S
from tests.http.http2 import END_STREAM, connect
from tests.http.test_grpc_hostile import EMPTY, LIVE

ROOT = Path(__file__).resolve().parents[2]
CALLS = 50
ODD_HEADS = {
    "te": {"te": "gzip"},
    "timeout": {"grpc-timeout": "soon"},
    "scheme": {":scheme": "gopher"},
    "encoding": {"grpc-encoding": "lzma"},
}


def written(how: str) -> bytes:
    """The bytes that a server writes to stderr while calls with such heads come."""
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.http.serve_silent", how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environ,
    )
    with process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        for head in ODD_HEADS.values():
            with connect(port) as connection:
                for number in range(1, 2 * CALLS, 2):
                    connection.open(LIVE, number, head)
                    connection.part(EMPTY, number, END_STREAM)
                assert connection.ping()
        _, found = process.communicate(timeout=PATIENCE_S)
    return found


def test_heads_that_cant_be_read_write_nothing() -> None:
    assert written("silent") == b""


def test_without_that_each_of_them_is_a_line() -> None:
    """Why it is done. A newer gRPC that writes none makes it needless."""
    assert written("loud").count(b"Error parsing") == CALLS * len(ODD_HEADS)


@pytest.mark.parametrize("own", ["", "DEBUG"])
def test_an_operators_own_choice_stays(own: str) -> None:
    environ = {"GRPC_VERBOSITY": own} if own else {}
    silence_grpc(environ)
    assert environ["GRPC_VERBOSITY"] == (own or "NONE")
