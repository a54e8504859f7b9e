"""Tells the Kubernetes API what happens, on a daemon thread that nobody waits for. Knows retries,
rates and the API; not what there is to tell.

Best effort: `tell` and `annotate` only remember. While the API server does not answer, what was
remembered waits (equal things become one, see `pending`), one line in the log says so, and one more
says that it is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from predictors.cluster.account import Account
from predictors.cluster.api import Api, Refused, Unreachable
from predictors.cluster.events import Notice, event_name, new_event, reference, repetition
from predictors.cluster.pending import Errand, Key, Pending
from predictors.settings import ClusterSettings

log = logging.getLogger(__name__)

ANNOTATION = "predictors.vision/warm-up"
POD, SERVICE = "Pod", "InferenceService"
SERVING = "serving.kserve.io/v1beta1"
GONE, EXISTS = 404, 409
LAST_WORDS_S = 1.0  # how long the end of the process waits for what is left to tell
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class Reporter:
    """One pod's word to the API server. `tell`, `annotate`: any thread, never block.

    `start` and `close` belong to whoever owns the process; `close` blocks for `LAST_WORDS_S` at
    most.
    """

    def __init__(
        self,
        account: Account,
        settings: ClusterSettings,
        *,
        connect: Callable[[Account, float], Api] = Api,
    ) -> None:
        self._account = account
        self._settings = settings
        self._connect = connect
        self._changed = threading.Condition()
        self._pending = Pending()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="cluster-reporter", daemon=True)
        # the thread's own
        self._api: Api | None = None
        self._references: dict[str, dict[str, str]] = {}
        self._names: dict[Key, str] = {}
        self._told: dict[Key, Notice] = {}
        self._refusals: set[str] = set()
        self._pause_s = 0.0
        self._not_before = 0.0
        self._next_relaxed = 0.0

    # -- any thread ------------------------------------------------------------------------------
    def tell(self, notice: Notice) -> None:
        """An event about the pod, and about its InferenceService if it has one."""
        now = time.time()
        notice = replace(notice, first=now, last=now)
        targets = (POD, SERVICE) if self._account.service else (POD,)
        self._remember(*(Errand(target, notice=notice) for target in targets))

    def annotate(self, text: str) -> None:
        """What the pod's annotation says from now on."""
        self._remember(Errand(ANNOTATION, text))

    def _remember(self, *errands: Errand) -> None:
        with self._changed:
            for errand in errands:
                self._pending.add(errand)
            self._changed.notify()

    # -- the owner of the process ----------------------------------------------------------------
    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def close(self, timeout_s: float = LAST_WORDS_S) -> None:
        """Tell what is left, once, and end; after `timeout_s` the thread is left behind."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    # -- the thread ------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            errands, is_last = self._next_errands()
            self._do(errands)
            if is_last:
                return

    def _next_errands(self) -> tuple[list[Errand], bool]:
        """What is due, as soon as something is, and whether that was all."""
        with self._changed:
            while not self._is_closing:
                wait_s = self._due_in_s()
                if wait_s is not None and wait_s <= 0:
                    break
                self._changed.wait(wait_s)
            return self._pending.take(), self._is_closing

    def _due_in_s(self) -> float | None:
        if not self._pending:
            return None
        due = max(self._not_before, self._next_relaxed if self._pending.can_wait else 0.0)
        return due - time.monotonic()

    def _do(self, errands: list[Errand]) -> None:
        for done, errand in enumerate(errands):
            try:
                self._run_errand(errand)
            except Unreachable as error:
                with self._changed:
                    self._pending.put_back(errands[done:])
                self._back_off(error)
                return
            except Refused as error:
                self._refused(errand, error)
        if errands:
            self._answered()

    def _run_errand(self, errand: Errand) -> None:
        api = self._api = self._api or self._connect(self._account, self._settings.timeout_s)
        if errand.notice is not None:
            self._publish(api, errand, errand.notice)
            return
        annotated = {"metadata": {"annotations": {ANNOTATION: errand.text}}}
        api.patch(self._path(POD), annotated)

    def _publish(self, api: Api, errand: Errand, notice: Notice) -> None:
        events = f"/api/v1/namespaces/{self._account.namespace}/events"
        told = self._told.get(errand.key)
        if told is not None:
            notice = notice.after(told)
            try:
                api.patch(f"{events}/{self._names[errand.key]}", repetition(notice))
            except Refused as error:
                if error.status != GONE:  # events live for an hour
                    raise
                told = None
        if told is None:
            about = self._reference(api, errand.target)
            # the name is the same in a second try, for the first may have come through unanswered
            name = self._names.setdefault(errand.key, event_name(about["name"]))
            try:
                api.create(events, new_event(name, notice, about, self._account.pod))
            except Refused as error:
                if error.status != EXISTS:
                    raise
        self._told[errand.key] = notice

    def _reference(self, api: Api, kind: str) -> dict[str, str]:
        if kind not in self._references:
            found = api.get(self._path(kind))
            version = "v1" if kind == POD else SERVING
            self._references[kind] = reference(found, version, kind)
        return self._references[kind]

    def _path(self, kind: str) -> str:
        own = self._account
        if kind == POD:
            return f"/api/v1/namespaces/{own.namespace}/pods/{own.pod}"
        return f"/apis/{SERVING}/namespaces/{own.namespace}/inferenceservices/{own.service}"

    # -- how it goes -----------------------------------------------------------------------------
    def _answered(self) -> None:
        if self._pause_s:
            log.info("the Kubernetes API answers again")
        self._pause_s = self._not_before = 0.0
        self._next_relaxed = time.monotonic() + self._settings.interval_s

    def _back_off(self, error: Unreachable) -> None:
        if not self._pause_s:
            log.warning("the Kubernetes API can't be told, serving goes on without: %s", error)
        if self._api is not None:
            self._api.close()
            self._api = None  # the next one reads token and authority anew
        self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
        self._not_before = time.monotonic() + self._pause_s

    def _refused(self, errand: Errand, error: Refused) -> None:
        what = f"an event on the {errand.target}" if errand.notice else f"annotation {ANNOTATION}"
        if what not in self._refusals:
            self._refusals.add(what)
            log.warning("the Kubernetes API refuses %s, and is not told: %s", what, error)
