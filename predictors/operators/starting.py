"""Reports a model's start: its progress and states as log lines and Kubernetes events."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

from predictors.base import BasePredictor
from predictors.cluster.lifecycle_events import LifecycleEvents
from predictors.serving.lifecycle import StartProgress, State

log = logging.getLogger("predictors")

Predictor = BasePredictor[Any, Any, Any]


def report_ready(models: Iterable[str], address: str) -> None:
    log.info("ready: %s at %s", ", ".join(models), address)


def address_of(host: str, port: int, *, is_secure: bool) -> str:
    """The address for a browser on this machine; a wildcard is the loopback address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown_host = f"[{host}]" if ":" in host else host
    return f"{'https' if is_secure else 'http'}://{shown_host}:{port}/"


def follow_start(model: Predictor, events: LifecycleEvents | None = None) -> None:
    """Report each shape that `model` warms: as a line of the log, and to `events`."""
    model.host.events.subscribe(on_progress=partial(_report_progress, model.name, events))


def _report_progress(model: str, events: LifecycleEvents | None, progress: StartProgress) -> None:
    if progress.shape:
        log.info("warming: %s %s (%d/%d)", model, progress.shape, progress.done, progress.total)
        if events is not None:
            is_ready = progress.phase == "planned"
            events.warmed(model, progress.shape, progress.done, progress.total, is_ready=is_ready)


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
