"""Runs the product's command line as in a pod. The first argument is the folder of the
ServiceAccount, the second the seconds that the reporter may take to close, and the others are the
command line's own. A model loads once stdin has a byte or ends.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from predictors import __main__ as root
from predictors.cluster import lifecycle_events
from predictors.cluster.identity import find_pod_identity
from predictors.cluster.reporter import EventReporter
from predictors.operators import serve
from predictors.serving.lifecycle import State

FOLDER, CLOSE_TIMEOUT_S = Path(sys.argv[1]), float(sys.argv[2])
report_state = serve.report_state


class Patient(EventReporter):
    """Takes the time to close from the command line."""

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        super().close(timeout_s)


def held(model: Any, events: Any, state: State) -> None:
    """Report the state; a model's load waits for the test."""
    report_state(model, events, state)
    if state is State.LOADING:  # before the engine thread begins
        engine, load = model.host._engine, model.host._engine.load

        def load_late() -> None:
            os.read(0, 1)
            load()

        engine.load = load_late


if __name__ == "__main__":
    root.find_pod_identity = partial(find_pod_identity, folder=FOLDER)  # type: ignore[assignment]
    serve.report_state = held
    lifecycle_events.EventReporter = Patient  # type: ignore[misc]
    sys.exit(root.main(sys.argv[3:]))
