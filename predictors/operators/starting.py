"""Reports of a model's start, as log lines and Kubernetes events, and what follows its warm-up."""

from __future__ import annotations

import gc
import logging
from functools import partial
from typing import Any

from predictors.base import BasePredictor
from predictors.cluster.lifecycle_events import LifecycleEvents
from predictors.serving.lifecycle import StartProgress, State

log = logging.getLogger("predictors")

Predictor = BasePredictor[Any, Any, Any]


def follow_start(model: Predictor, events: LifecycleEvents | None = None) -> None:
    """Report each shape that `model` warms: as a line of the log, and to `events`."""
    model.host.events.subscribe(on_progress=partial(_report_progress, model.name, events))


def freeze_loaded_objects() -> None:
    """Exclude all objects that are loaded by now from garbage collection. Any thread.

    A full collection visits every object of torch and transformers and holds the interpreter for a
    third of a second, in which no token is sent and no step is launched.
    """
    gc.collect()  # or the present garbage would be kept for ever
    gc.freeze()


def _report_progress(model: str, events: LifecycleEvents | None, progress: StartProgress) -> None:
    if progress.shape:
        log.info("warming: %s %s (%d/%d)", model, progress.shape, progress.done, progress.total)
        if events is not None:
            events.warmed(model, progress.shape, progress.done, progress.total)


def report_state(model: Predictor, events: LifecycleEvents, state: State) -> None:
    """Report a change of `model`'s state to `events`."""
    match state:
        case State.LOADING:
            events.loading(model.name)
        case State.WARMING:
            events.warming(model.name)
        case State.READY:
            events.ready(model.name)
        case State.FAILED:
            events.failed(model.name, model.host.failure.message)
