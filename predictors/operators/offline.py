"""One model at work without a server: a request goes through its own queue and engine, turn by turn
on the calling thread. Knows no profiler, no command line and not what is asked.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from predictors.base import BasePredictor
from predictors.errors import EngineFailed, ServingError
from predictors.protocol.v2.values import Scalar, Tensor, V2Request
from predictors.serving.loop import try_call
from predictors.serving.recording import Recorder, Recording

log = logging.getLogger(__name__)

Predictor = BasePredictor[Any, Any, Any]


def question(
    model: str, prompts: Sequence[str], image: bytes | None, parameters: Mapping[str, Scalar]
) -> V2Request:
    """A V2 request of one row per prompt, each beside the same picture if there is one."""
    rows = [prompt.encode() for prompt in prompts]
    inputs = [Tensor("prompt", "BYTES", (len(rows),), rows)]
    if image is not None:
        inputs.append(Tensor("image", "BYTES", (len(rows),), [image] * len(rows)))
    return V2Request(model, "offline", tuple(inputs), dict(parameters))


def warmed(model: Predictor) -> None:
    """Load and warm `model` on this thread, which is its engine thread from now on.

    Raises `EngineFailed` with a sentence for whoever started it; the traceback is in the log.
    """
    _, error = try_call(model.host.loop.prepare)
    if error is None:
        return
    model.stop()
    if not isinstance(error, Exception):
        raise error  # Ctrl-C
    log.error("%s can't be warmed", model.name, exc_info=error)
    reason = error.message if isinstance(error, ServingError) else type(error).__name__
    raise EngineFailed(f"{model.name} can't be warmed: {reason}") from error


def recorded(model: Predictor, request: V2Request, recorder: Recorder, steps: int) -> float:
    """Record `steps` engine steps of `request`, which is asked again for as long as it takes.

    Returns the seconds from the begin of the first step to the recorder's end. Main thread, on a
    model that is `warmed`. Raises what the request's own caller would get, what the recorder
    raised, and `KeyboardInterrupt` after the step in which Ctrl-C came.
    """
    recording = model.record(recorder, steps)
    seconds = 0.0
    try:
        with _between_steps() as is_interrupted:
            while not recording.outcome.done():
                seconds += _answered(model, request, recording, is_interrupted)
    finally:
        recording.end()
        model.host.loop.run_once()  # nobody is left to step for: they leave, and the recorder stops
    recording.outcome.result()
    return seconds


def _answered(
    model: Predictor, request: V2Request, recording: Recording, is_interrupted: threading.Event
) -> float:
    """The seconds of steps until all rows are answered or the recorder has stopped."""
    works = [model.prepare(row) for row in model.decode_v2(request)]
    jobs = model.host.submit(works, request_id=request.id, deadline=None)
    began_s = time.monotonic()
    try:
        while not recording.outcome.done() and model.host.loop.run_once():
            if is_interrupted.is_set():
                raise KeyboardInterrupt
        seconds = time.monotonic() - began_s
        for job in jobs:
            error = job.drain_unread()
            if error is not None:
                raise error
    finally:
        for job in jobs:
            job.cancel()
    return seconds


@contextmanager
def _between_steps() -> Iterator[threading.Event]:
    """Ctrl-C is seen between two steps: inside one, a job would be said to have failed of it."""
    asked = threading.Event()
    was = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, was)
