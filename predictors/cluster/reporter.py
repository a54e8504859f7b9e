"""Writes events and the warm-up annotation to the Kubernetes API, on a daemon thread.

It is best effort, and serving never waits for it. While the API server does not answer, writes wait
in a bounded queue and are merged (see `write_queue`). The log has one line when that begins and one
when the API server answers again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from predictors.cluster.api import ApiRefusal, ApiUnavailable, KubernetesApi
from predictors.cluster.events import (
    PodEvent,
    event_update,
    new_event,
    object_reference,
    unique_event_name,
)
from predictors.cluster.identity import PodIdentity
from predictors.cluster.write_queue import ApiWrite, WriteKey, WriteQueue
from predictors.settings import ClusterSettings

log = logging.getLogger(__name__)

ANNOTATION = "predictors.vision/warm-up"
POD, SERVICE = "Pod", "InferenceService"
SERVING = "serving.kserve.io/v1beta1"
NOT_FOUND, CONFLICT = 404, 409
CLOSE_TIMEOUT_S = 1.0  # how long the end of the process waits for the last writes
MIN_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0  # between attempts while the API server does not answer


class EventReporter:
    """Reports for one pod. `report` and `annotate` may be called on any thread and never block.

    The owner of the process calls `start` and `close`. `close` blocks for at most
    `CLOSE_TIMEOUT_S`.
    """

    def __init__(
        self,
        identity: PodIdentity,
        settings: ClusterSettings,
        *,
        connect: Callable[[PodIdentity, float], KubernetesApi] = KubernetesApi.of_pod,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._connect = connect
        self._changed = threading.Condition()
        self._queue = WriteQueue()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="cluster-reporter", daemon=True)
        # used by the thread only
        self._api: KubernetesApi | None = None
        self._references: dict[str, dict[str, str]] = {}
        self._event_names: dict[WriteKey, str] = {}
        self._written: dict[WriteKey, PodEvent] = {}
        self._refusals: set[str] = set()
        self._pause_s = 0.0
        self._not_before = 0.0
        self._next_deferred = 0.0

    # -- any thread ------------------------------------------------------------------------------
    def report(self, event: PodEvent) -> None:
        """Queue an event about the pod, and about its InferenceService if it has one."""
        now = time.time()
        event = replace(event, first=now, last=now)
        targets = (POD, SERVICE) if self._identity.service else (POD,)
        self._enqueue(*(ApiWrite(target, event=event) for target in targets))

    def annotate(self, text: str) -> None:
        """Queue a new text for the pod's annotation."""
        self._enqueue(ApiWrite(ANNOTATION, text))

    def _enqueue(self, *writes: ApiWrite) -> None:
        with self._changed:
            for write in writes:
                self._queue.add(write)
            self._changed.notify()

    # -- the owner of the process ----------------------------------------------------------------
    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Try the remaining writes once and end. After `timeout_s` the thread is abandoned."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    # -- the thread ------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            writes, is_last = self._next_writes()
            self._send(writes)
            if is_last:
                return

    def _next_writes(self) -> tuple[list[ApiWrite], bool]:
        """Wait until writes are due; True with the last ones before the end."""
        with self._changed:
            while not self._is_closing:
                wait_s = self._due_in_s()
                if wait_s is not None and wait_s <= 0:
                    break
                self._changed.wait(wait_s)
            return self._queue.pop_all(), self._is_closing

    def _due_in_s(self) -> float | None:
        if not self._queue:
            return None
        due = max(self._not_before, self._next_deferred if self._queue.is_deferrable else 0.0)
        return due - time.monotonic()

    def _send(self, writes: list[ApiWrite]) -> None:
        for done, write in enumerate(writes):
            try:
                self._send_one(write)
            except ApiUnavailable as error:
                with self._changed:
                    self._queue.put_back(writes[done:])
                self._back_off(error)
                return
            except ApiRefusal as error:
                self._log_refusal(write, error)
        if writes:
            self._reset_pause()

    def _send_one(self, write: ApiWrite) -> None:
        api = self._api = self._api or self._connect(self._identity, self._settings.timeout_s)
        if write.event is not None:
            self._write_event(api, write, write.event)
            return
        annotated = {"metadata": {"annotations": {ANNOTATION: write.text}}}
        api.patch(self._path(POD), annotated)

    def _write_event(self, api: KubernetesApi, write: ApiWrite, event: PodEvent) -> None:
        events = f"/api/v1/namespaces/{self._identity.namespace}/events"
        written = self._written.get(write.key)
        if written is not None:
            event = event.merged_with(written)
            try:
                api.patch(f"{events}/{self._event_names[write.key]}", event_update(event))
            except ApiRefusal as error:
                if error.status != NOT_FOUND:  # Kubernetes deletes events after an hour
                    raise
                written = None
        if written is None:
            target = self._reference(api, write.target)
            # a retry uses the same name: the first attempt may have succeeded without an answer
            name = self._event_names.setdefault(write.key, unique_event_name(target["name"]))
            try:
                api.create(events, new_event(name, event, target, self._identity.pod))
            except ApiRefusal as error:
                if error.status != CONFLICT:
                    raise
        self._written[write.key] = event

    def _reference(self, api: KubernetesApi, kind: str) -> dict[str, str]:
        if kind not in self._references:
            found = api.get(self._path(kind))
            version = "v1" if kind == POD else SERVING
            self._references[kind] = object_reference(found, version, kind)
        return self._references[kind]

    def _path(self, kind: str) -> str:
        own = self._identity
        if kind == POD:
            return f"/api/v1/namespaces/{own.namespace}/pods/{own.pod}"
        return f"/apis/{SERVING}/namespaces/{own.namespace}/inferenceservices/{own.service}"

    # -- failures --------------------------------------------------------------------------------
    def _reset_pause(self) -> None:
        if self._pause_s:
            log.info("the Kubernetes API answers again")
        self._pause_s = self._not_before = 0.0
        self._next_deferred = time.monotonic() + self._settings.interval_s

    def _back_off(self, error: ApiUnavailable) -> None:
        if not self._pause_s:
            log.warning("the Kubernetes API can't be told, serving goes on without: %s", error)
        if self._api is not None:
            self._api.close()
            self._api = None  # the next attempt reads the token and the CA file again
        self._pause_s = min(max(MIN_PAUSE_S, 2 * self._pause_s), MAX_PAUSE_S)
        self._not_before = time.monotonic() + self._pause_s

    def _log_refusal(self, write: ApiWrite, error: ApiRefusal) -> None:
        what = f"an event on the {write.target}" if write.event else f"annotation {ANNOTATION}"
        if what not in self._refusals:
            self._refusals.add(what)
            log.warning("the Kubernetes API refuses %s, and is not told: %s", what, error)
