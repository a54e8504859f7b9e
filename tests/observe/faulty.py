"""`python -m tests.observe.faulty serve ...`: the command line's server, word for word, with faults
that a test switches on by files in the folder `FAULTS`.

    hang-MODEL   the next step of that model waits until the file is gone
    once-MODEL   the next step of that model is done, and those after it hang as by hang-MODEL
    hold-MODEL   loading that model waits until the file is gone
    compile      the next step of flux calls a function that is not compiled yet
    memory       every step of flux runs out of memory
    lose         the next step of flux finds that the device's context is lost

and by what a picture's prompt says: `POISON` makes each step with it raise, `BUG` its preparation.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = "FAULTS"
POISON, BUG = "a poisoned prompt", "a prompt that meets a bug"
LOOK_EVERY_S = 0.02


class OutOfMemoryError(RuntimeError):
    """Named like torch's: the host recognises it by its name."""


class Faults:
    """The folder. A fault is on while its file is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def is_on(self, name: str) -> bool:
        """True if the file is there."""
        return (self._folder / name).exists()

    def take(self, name: str) -> bool:
        """True if it was on; now it is off."""
        was = self.is_on(name)
        self.clear(name)
        return was

    def wait_off(self, name: str) -> None:
        """Return once the file is gone."""
        pause = threading.Event()
        while self.is_on(name):
            pause.wait(LOOK_EVERY_S)

    # -- the test's side -------------------------------------------------------------------------
    def set(self, name: str) -> None:
        """Switch it on."""
        (self._folder / name).touch()

    def clear(self, name: str) -> None:
        """Switch it off."""
        (self._folder / name).unlink(missing_ok=True)


def infest(faults: Faults) -> None:
    """Put the faults into both rooms."""
    from predictors.chat.engine import ChatEngine
    from predictors.diffusion.engine import DiffusionEngine
    from predictors.diffusion.predictor import DiffusionPredictor

    rooms: dict[str, Any] = {"flux": DiffusionEngine, "qwen-vl": ChatEngine}
    for model, engine in rooms.items():
        _infest_engine(model, engine, faults)
    prepare = DiffusionPredictor.prepare

    def with_a_bug(self: Any, request: Any) -> Any:
        if request.prompt == BUG:
            raise KeyError("what nobody thought of")
        return prepare(self, request)

    DiffusionPredictor.prepare = with_a_bug  # type: ignore[method-assign]


def _infest_engine(model: str, engine: Any, faults: Faults) -> None:
    load, step = engine.load, engine.step

    def held_load(self: Any) -> None:
        faults.wait_off(f"hold-{model}")
        load(self)

    def faulty_step(self: Any, jobs: Sequence[Any]) -> None:
        faults.wait_off(f"hang-{model}")
        if model == "flux":
            _break_pictures(faults, jobs)
        if faults.take(f"once-{model}"):
            faults.set(f"hang-{model}")
        step(self, jobs)

    engine.load, engine.step = held_load, faulty_step


def _break_pictures(faults: Faults, jobs: Sequence[Any]) -> None:
    if faults.is_on("memory"):
        raise OutOfMemoryError("tried to allocate a picture")
    if faults.take("lose"):
        from predictors.serving.engine import StickyDeviceError

        raise StickyDeviceError("an illegal memory access was encountered")
    if faults.take("compile"):
        import torch
        import torch._dynamo

        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    if any(job.work.request.prompt == POISON for job in jobs):
        raise RuntimeError("poison")


if __name__ == "__main__":
    from predictors.__main__ import main

    infest(Faults(Path(os.environ[FOLDER])))
    sys.exit(main())
