"""Splits the energy of a device among jobs, in proportion to the engine seconds charged to them.

A driver counts energy over a fraction of a second and not per step. A job's joules are the mean
power of each window times the job's seconds in it. A window's idle time is charged to no job, and
another process on the same card is part of its mean power.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from predictors import metrics
from predictors.serving.host import EngineHost
from predictors.serving.job import Job

MOST_ENDED = 10_000
"""Most ended jobs that wait for the next window. If a driver hangs, the oldest are dropped."""


@dataclass(slots=True)
class _Spent:
    """Engine seconds of a job that past windows have counted, and its joules so far."""

    seconds: float = 0.0
    joules: float = 0.0


@dataclass(frozen=True, slots=True)
class _Ended:
    number: int
    used_s: float
    is_answered: bool
    exemplar: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class _Window:
    used_s: dict[int, float]
    """Engine seconds charged in it, by the number of the job."""
    ended: list[_Ended]


@dataclass(slots=True)
class _Ledger:
    """The jobs of one engine."""

    host: EngineHost[Any, Any]
    spent: dict[int, _Spent] = field(default_factory=dict)
    """By arrival number."""
    ended: deque[_Ended] = field(default_factory=lambda: deque(maxlen=MOST_ENDED))


class EnergySplit:
    """The energy of the engines of `hosts`, which share a device. Made before the hosts start.

    Nothing is kept and no series exists before `split` is called for the first time.
    """

    def __init__(self, hosts: Sequence[EngineHost[Any, Any]]) -> None:
        self._ledgers = [_Ledger(host) for host in hosts]
        self._is_on = False
        for ledger in self._ledgers:
            ledger.host.events.subscribe(on_ended=partial(self._note_end, ledger.ended))

    def split(self, joules: float, seconds: float) -> None:
        """The device took `joules` in the last `seconds`: count them by model, and observe those
        of the jobs that were answered since. One thread; the engines never wait for it."""
        if not self._is_on:
            self._is_on = True
            for ledger in self._ledgers:
                metrics.energy_joules_total.labels(ledger.host.model)
                metrics.request_energy_joules.labels(ledger.host.model)
        windows = [_window(ledger) for ledger in self._ledgers]
        charged_s = sum(sum(window.used_s.values()) for window in windows)
        # two engines may be charged for the same second of the device
        watts = joules / max(seconds, charged_s)
        for ledger, window in zip(self._ledgers, windows, strict=True):
            model = ledger.host.model
            for number, used_s in window.used_s.items():
                ledger.spent[number].joules += watts * used_s
            metrics.energy_joules_total.labels(model).inc(watts * sum(window.used_s.values()))
            for ended in window.ended:
                spent = ledger.spent.pop(ended.number)
                if ended.is_answered:
                    metrics.request_energy_joules.labels(model).observe(
                        spent.joules, ended.exemplar
                    )

    def _note_end(self, ended: deque[_Ended], job: Job[Any, Any]) -> None:
        if self._is_on:
            # not the job itself, which holds pictures
            ended.append(_Ended(job.arrival_number, job.used_s, job.error is None, job.exemplar))


def _window(ledger: _Ledger) -> _Window:
    """Engine seconds since the last window, and the jobs that ended in it."""
    running = ledger.host.jobs.running  # first: a job is noted as ended before it is removed
    ended = [ledger.ended.popleft() for _ in range(len(ledger.ended))]
    used = {job.arrival_number: job.used_s for job in running}
    used |= {each.number: each.used_s for each in ended}
    ledger.spent = {number: ledger.spent.get(number, _Spent()) for number in used}
    found = {}
    for number, used_s in used.items():
        spent = ledger.spent[number]
        # an engine may take back seconds that it had charged in advance
        found[number] = max(0.0, used_s - spent.seconds)
        spent.seconds = max(spent.seconds, used_s)
    return _Window(found, ended)
