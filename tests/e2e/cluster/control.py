"""Ask the supervisor of the cluster that is up to stop or start a component, or what is running.

A test calls `stop` and `start` (or `python -m tests.e2e.cluster component stop|start NAME`) from
inside the cluster's network namespace or outside of it: the socket is a file.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

from tests.e2e.cluster.places import ClusterError, saved_site

ANSWER_S = 120.0


def ask(verb: str, name: str = "", control: Path | None = None) -> object:
    """The supervisor's answer; raises `ClusterError` with its words, or when there is none."""
    path = control or saved_site().control
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(str(path))
            connection.sendall(json.dumps({"verb": verb, "name": name}).encode() + b"\n")
            reply = json.loads(connection.makefile().readline())
    except (OSError, ValueError) as error:
        raise ClusterError(f"the cluster's supervisor does not answer: {error}") from None
    if "error" in reply:
        raise ClusterError(reply["error"])
    answer: object = reply["ok"]
    return answer


def stop(name: str) -> None:
    """End a component and leave it ended; raises `ClusterError`."""
    ask("stop", name)


def start(name: str) -> None:
    """Start a component that was stopped, and wait until it is ready; raises `ClusterError`."""
    ask("start", name)
