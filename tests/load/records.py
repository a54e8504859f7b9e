"""The outcome of each request, and sums of many: rates, goodput, quantiles.

All latencies count from the scheduled arrival, so that a caller that had to wait for its turn shows
in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from predictors.cli.bench.intervals import quantile

OK, REFUSED, LATE, LEFT = "ok", "refused", "late", "left"
UNANSWERED, FAILED, UNCONNECTED = "unanswered", "failed", "unconnected"
"""`failed` is an answer of another status; `unanswered` is a connection that ended, or was silent
until patience was over, without a whole answer; `unconnected` never got a connection."""


@dataclass(slots=True)
class Record:
    """One request. Seconds from the start of the run."""

    kind: str
    room: str
    protocol: str
    due_s: float
    lag_s: float
    """From the scheduled arrival until the generator began with it."""
    ended_s: float
    outcome: str
    status: str
    deadline_s: float
    work: float
    first_s: float = 0.0
    """From the scheduled arrival to the first text of a stream; 0 without one."""
    key: str = ""
    is_right: bool | None = None
    """The answer is byte for byte what it was alone; None if not compared."""
    how: str = ""
    """`slow reader`, `slow writer` or `leaver`."""
    sent_s: float = 0.0
    """When the last byte was handed to the kernel."""
    began_s: float = 0.0
    """When the head of the answer came; 0 without one."""
    retries: int = 0

    @property
    def took_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def is_good(self) -> bool:
        in_time = self.took_s <= self.deadline_s
        return self.outcome == OK and in_time and self.is_right is not False


@dataclass(frozen=True, slots=True)
class Summary:
    """A window of a run. Rates are per second, latencies in milliseconds."""

    offered: float
    accepted: float
    refused: float
    good: float
    """Requests answered within their deadline, and right where compared."""
    good_work: float
    """The same in units of work: a large request counts for more."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    first_p50_ms: float | None
    first_p95_ms: float | None
    refusal_p50_ms: float | None
    refusal_p99_ms: float | None
    lag_p99_ms: float | None
    requests: int
    outcomes: dict[str, int]
    """Of the whole run, not only of the window."""
    statuses: dict[str, int]
    compared: int
    wrong: int
    retried: int

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def _ms(values: Iterable[float], share: float) -> float | None:
    found = quantile(values, share)
    return None if found is None else round(1000 * found, 1)


def summary(records: Sequence[Record], begin_s: float, end_s: float) -> Summary:
    """Rates count what ended between `begin_s` and `end_s`; the offered rate, what was due then."""
    seconds = end_s - begin_s
    due = [each for each in records if begin_s <= each.due_s < end_s]
    ended = [each for each in records if begin_s <= each.ended_s < end_s]
    answered = [each.took_s for each in ended if each.outcome == OK and not each.how]
    refusals = [each.took_s for each in ended if each.outcome == REFUSED and not each.how]
    firsts = [each.first_s for each in ended if each.first_s and not each.how]

    def rate(counts: Callable[[Record], bool]) -> float:
        return round(sum(map(counts, ended)) / seconds, 2)

    return Summary(
        offered=round(len(due) / seconds, 2),
        accepted=rate(lambda each: each.outcome in (OK, LATE)),
        refused=rate(lambda each: each.outcome == REFUSED),
        good=rate(lambda each: each.is_good),
        good_work=round(sum(each.work for each in ended if each.is_good) / seconds, 3),
        p50_ms=_ms(answered, 0.5),
        p95_ms=_ms(answered, 0.95),
        p99_ms=_ms(answered, 0.99),
        first_p50_ms=_ms(firsts, 0.5),
        first_p95_ms=_ms(firsts, 0.95),
        refusal_p50_ms=_ms(refusals, 0.5),
        refusal_p99_ms=_ms(refusals, 0.99),
        lag_p99_ms=_ms((each.lag_s for each in records), 0.99),
        requests=len(records),
        outcomes=dict(Counter(each.outcome for each in records)),
        statuses=dict(Counter(each.status for each in records)),
        compared=sum(each.is_right is not None for each in records),
        wrong=sum(each.is_right is False for each in records),
        retried=sum(each.retries for each in records),
    )
