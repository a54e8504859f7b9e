"""One model without a server: warm it, or record steps of one request, on the calling thread.

The request goes through the model's own queue and engine, step by step.
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
from predictors.operators.starting import follow_start
from predictors.protocol.v2.values import Scalar, Tensor, V2Request
from predictors.serving.loop import try_call
from predictors.serving.recording import Recorder, Recording

log = logging.getLogger(__name__)

Predictor = BasePredictor[Any, Any, Any]


def offline_request(
    model: str, prompts: Sequence[str], image: bytes | None, parameters: Mapping[str, Scalar]
) -> V2Request:
    """A V2 request of one row per prompt, each beside the same picture if there is one."""
    rows = [prompt.encode() for prompt in prompts]
    inputs = [Tensor("prompt", "BYTES", (len(rows),), rows)]
    if image is not None:
        inputs.append(Tensor("image", "BYTES", (len(rows),), [image] * len(rows)))
    return V2Request(model, "offline", tuple(inputs), dict(parameters))


def warm_model(model: Predictor) -> None:
    """Load and warm `model` on this thread, which is its engine thread from now on.

    Raises `EngineFailed` with the reason in one sentence; the traceback is in the log.
    """
    _, error = try_call(model.host.loop.load_and_warm)
    if error is None:
        return
    model.stop()
    if not isinstance(error, Exception):
        raise error  # Ctrl-C
    log.error("%s can't be warmed", model.name, exc_info=error)
    reason = error.message if isinstance(error, ServingError) else type(error).__name__
    raise EngineFailed(f"{model.name} can't be warmed: {reason}") from error


def warm_models(models: Sequence[Predictor]) -> Iterator[tuple[str, float]]:
    """Load, warm and stop one model after the other; yields the name of each, and the seconds that
    it took.

    All on this thread: torch does not survive two threads that compile one after the other. Raises
    `EngineFailed` as `warm_model`.
    """
    for model in models:
        began_s = time.monotonic()
        follow_start(model)
        warm_model(model)
        model.stop()
        yield model.name, round(time.monotonic() - began_s, 3)


def record_steps(model: Predictor, request: V2Request, recorder: Recorder, steps: int) -> float:
    """Record `steps` engine steps of `request`, which is repeated as often as needed.

    Returns the seconds from the start of the first step to the recorder's end. Main thread, after
    `warm_model`. Raises the failure of the request or of the recorder, and `KeyboardInterrupt`
    after the step in which Ctrl-C came.
    """
    recording = model.host.record(recorder, steps)
    seconds = 0.0
    try:
        with _interrupt_between_steps() as is_interrupted:
            while not recording.outcome.done():
                seconds += _run_request(model, request, recording, is_interrupted)
    finally:
        recording.end()
        model.host.loop.run_once()  # evicts what is left and stops the recorder
    recording.outcome.result()
    return seconds


def _run_request(
    model: Predictor, request: V2Request, recording: Recording, is_interrupted: threading.Event
) -> float:
    """Step until all rows are answered or the recorder has stopped; returns the seconds taken."""
    works = [model.prepare(row) for row in model.decode_v2(request)]
    jobs = model.host.submit(works, request_id=request.id, deadline=None)
    began_s = time.monotonic()
    try:
        while not recording.outcome.done() and model.host.loop.run_once():
            if is_interrupted.is_set():
                raise KeyboardInterrupt
        seconds = time.monotonic() - began_s
        for job in jobs:
            error = job.error
            if error is not None:
                raise error
    finally:
        for job in jobs:
            job.cancel()
    return seconds


@contextmanager
def _interrupt_between_steps() -> Iterator[threading.Event]:
    """Ctrl-C sets the event: an exception inside a step would count as a failure of a job."""
    asked = threading.Event()
    was = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, was)
