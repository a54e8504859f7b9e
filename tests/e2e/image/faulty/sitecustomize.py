"""Makes a step of an engine hang while the file /tmp/hang exists: what a lost device looks like.

Python imports a module of this name at every start. It waits in place of the engine's `step`, on
the engine thread, after the host has noted that a step began; everything else is the product's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from predictors.serving.loop import EngineLoop

HANG = Path("/tmp/hang")
LOOK_AGAIN_S = 0.05

start_loop: Callable[..., None] = EngineLoop.__init__


def start_faulty_loop(self: Any, model: str, engine: Any, *others: Any, **named: Any) -> None:
    """`EngineLoop.__init__`, with an engine that may hang."""
    step = engine.step

    def hang_or_step(*arguments: Any) -> Any:
        while HANG.exists():
            time.sleep(LOOK_AGAIN_S)
        return step(*arguments)

    engine.step = hang_or_step
    start_loop(self, model, engine, *others, **named)


EngineLoop.__init__ = start_faulty_loop  # type: ignore[method-assign]
