"""The command line as in a pod: its ServiceAccount lies where the first argument says, its last
words may take the seconds of the second, the others are the command line's own. A model loads once
stdin has a byte or its end. Everything else is the product's.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from predictors import __main__ as root
from predictors.cluster import story
from predictors.cluster.account import find_account
from predictors.cluster.reporter import Reporter
from predictors.operators import serve
from predictors.serving.lifecycle import State

FOLDER, LAST_WORDS_S = Path(sys.argv[1]), float(sys.argv[2])
report_state = serve._report_state


class Patient(Reporter):
    """Told how long it may take to tell what is left."""

    def close(self, timeout_s: float = LAST_WORDS_S) -> None:
        """As ever."""
        super().close(timeout_s)


def held(model: Any, told: Any, state: State) -> None:
    """Whoever has said that it loads waits for the test."""
    report_state(model, told, state)
    if state is State.LOADING:
        os.read(0, 1)


if __name__ == "__main__":
    root.find_account = partial(find_account, folder=FOLDER)  # type: ignore[assignment]
    serve._report_state = held
    story.Reporter = Patient  # type: ignore[misc]
    sys.exit(root.main(sys.argv[3:]))
