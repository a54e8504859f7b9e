"""`Call`: the data of a request besides its body, on every protocol.

It holds headers, request id, caller, deadline, priority, log fields and trace. Timeouts and
priorities are parsed here.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from predictors.errors import Forbidden, InvalidRequest
from predictors.observe.tracing import Trace
from predictors.protocol.seeds import draw_number

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-ms"
PRIORITY_HEADER = "x-request-priority"
SINGLE_HEADERS = frozenset(
    {
        "content-type", "authorization", "x-api-key", "inference-header-content-length",
        TIMEOUT_HEADER, PRIORITY_HEADER,
    }
)  # fmt: skip
"""Headers that may not come twice with different values: a proxy may have read the other one."""
MAX_TIMEOUT_S = 24 * 3600.0
DEFAULT_LEVEL = 5
"""Level of a request that names none; levels go from 1 (first) to `LAST_LEVEL`."""
LAST_LEVEL = 10
MAX_LEVEL = 2**64 - 1  # largest that is accepted; above `LAST_LEVEL` all are the same
NUMBER = re.compile(r"\s*[0-9.eE+-]{1,32}\s*", re.ASCII)
_LEVEL = re.compile(r"\s*[0-9]{1,20}\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class AdapterAccess:
    """The adapter that a call names with the model, and the adapters that it may use."""

    own: str = ""
    """The adapter that the model's name ends with, as in `flux:watercolour`; empty without one."""
    allowed: frozenset[str] | None = None
    """The adapters that the caller's key allows: a request must use one or more of them. None: it
    may use any, or none."""

    def named(
        self, model: str, asked: Iterable[tuple[str, float]] | None
    ) -> tuple[tuple[str, float], ...]:
        """The adapter in the name of `model`, with scale 1, and those `asked` for. Raises
        `Forbidden` for one that the caller may not use."""
        own = ((self.own, 1.0),) if self.own else ()
        found = (*own, *(asked or ()))
        for name, _ in found:
            if self.allowed is not None and name not in self.allowed:
                raise Forbidden(f"the API key may not use adapter {name!r} of {model!r}")
        return found


ANY_ADAPTER = AdapterAccess()


class CallerUsage(Protocol):
    """The part of an API key's usage that the path of a request needs; see `KeyUsage`."""

    label: str

    def begin_request(self) -> None: ...

    def begin_jobs(self, count: int) -> None: ...

    def end_request(self, reason: str, jobs: int, seconds: float) -> None: ...


class EventWriter(Protocol):
    """Writes events of one response past the coroutines of its request. Event loop only."""

    @property
    def is_open(self) -> bool:
        """An event may be written now: the stream waits for its next one, and the client reads."""

    def write(self, event: bytes) -> None:
        """Write whole events. Only while `is_open`."""


class Call(dict[str, str]):
    """Headers by lower-case name, and what was read from them. Event loop."""

    def __init__(
        self,
        headers: Mapping[str, str],
        *,
        protocol: str,
        request_id: str | None = None,
        deadline: float | None = None,
    ) -> None:
        super().__init__(headers)
        self.protocol = protocol
        """Metric label."""
        self.began_at = time.monotonic()
        """When its head had come; over gRPC its whole message."""
        self.request_id = request_id or clean_request_id(self.get(REQUEST_ID_HEADER))
        self.address = ""
        """Where the request comes from; behind trusted proxies, as they say. Empty if unknown."""
        self.caller = ""
        """Name of the caller: its key's, else that in the gateway's header, else its address. Work
        is shared and accounted by it."""
        self.models: frozenset[str] = frozenset()
        """Names of the models that the caller may use; empty: all."""
        self.adapters = ANY_ADAPTER
        """Set by `Registry.find` with the model."""
        self.usage: CallerUsage | None = None
        """The use of its API key so far; None without one."""
        self.is_room_checked = False
        """The queue had room for one row when `check_room` asked it."""
        self.num_jobs = 0
        """Jobs that the request was allowed to begin."""
        self.used_s = 0.0
        """Engine seconds that its jobs were charged."""
        self.weight = 1.0
        """The caller's share of an engine, relative to others'."""
        self.priority = 0
        """Order among the caller's own requests: a higher one goes first."""
        self.repeated = ""
        """The header that `repeated_header` found, over gRPC; HTTP refuses such a call at once."""
        self.deadline = deadline
        """Seconds of `time.monotonic()`, None for no deadline."""
        self.log_fields: dict[str, object] = {}
        """Fields of the line that logs the request's outcome."""
        self.trace: Trace | None = None
        self.writer: EventWriter | None = None
        """Set once the first item of a streamed answer was sent, if others may be written so."""

    @classmethod
    def of(
        cls,
        headers: Mapping[str, str] | None,
        *,
        protocol: str = "v2_rest",
        default_timeout_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> Call:
        """Raises `InvalidRequest` as `read_deadline` and `read_priority`."""
        call = cls({k.lower(): v for k, v in (headers or {}).items()}, protocol=protocol)
        call.read_deadline(default_timeout_s, clock)
        call.read_priority()
        return call

    def begin_jobs(self, count: int) -> None:
        """Count jobs against the limits of the caller's API key, until the request ends. Raises
        `QuotaExceeded` or `InvalidRequest`."""
        if self.usage is not None:
            self.usage.begin_jobs(count)
        self.num_jobs += count

    def read_deadline(
        self, default_timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Set the deadline from `x-request-timeout-ms`, else to the default; 0 is none.

        Raises `InvalidRequest` for a header that is not a positive number.
        """
        raw = self.get(TIMEOUT_HEADER)
        timeout_s = (
            default_timeout_s if raw is None else parse_timeout(raw, TIMEOUT_HEADER, unit_s=1e-3)
        )
        self.deadline = clock() + timeout_s if timeout_s > 0 else None

    def read_priority(self) -> None:
        """Set the priority from `x-request-priority`, if it is there. Raises `InvalidRequest` as
        `parse_priority`."""
        raw = self.get(PRIORITY_HEADER)
        if raw is not None:
            self.priority = parse_priority(raw, PRIORITY_HEADER)

    def tighten(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Bring the deadline forward to `timeout_s` from now; never push it back."""
        deadline = clock() + timeout_s
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)


def repeated_header(pairs: Iterable[tuple[str, object]]) -> str:
    """The name of one of `SINGLE_HEADERS` that is there with two values; empty without one."""
    seen: dict[str, object] = {}
    for name, value in pairs:
        if name in SINGLE_HEADERS and seen.setdefault(name, value) != value:
            return name
    return ""


def check_single(repeated: str) -> None:
    """Raise `InvalidRequest` for what `repeated_header` found."""
    if repeated:
        raise InvalidRequest(
            f"the request has two {repeated} headers with different values; send one",
            param=repeated,
        )


def parse_timeout(raw: object, name: str, *, unit_s: float) -> float:
    """Seconds from a number or numeric string in units of `unit_s`."""
    if isinstance(raw, str) and not NUMBER.fullmatch(raw):
        raise InvalidRequest(f"{name} must be a positive number", param=name)
    try:
        value = float(raw) * unit_s  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if isinstance(raw, bool) or not 0 < value < math.inf:
        raise InvalidRequest(f"{name} must be a positive number", param=name)
    return min(value, MAX_TIMEOUT_S)


def parse_priority(raw: object, name: str) -> int:
    """The value of `Call.priority` for a level as in V2's schedule policy: 1 goes first, larger
    ones later, and 0 is the default, `DEFAULT_LEVEL`. A whole number or its text.

    Raises `InvalidRequest` for anything else, and outside of 0 to `MAX_LEVEL`.
    """
    is_text = isinstance(raw, str) and _LEVEL.fullmatch(raw)
    is_whole = isinstance(raw, int | float) and not isinstance(raw, bool) and raw == raw // 1
    level = int(raw) if is_text or is_whole else -1  # type: ignore[call-overload]
    if not 0 <= level <= MAX_LEVEL:
        raise InvalidRequest(
            f"{name} must be a whole number from 0 to {MAX_LEVEL}: 1 goes first, 0 is the default",
            param=name,
        )
    return DEFAULT_LEVEL - min(level or DEFAULT_LEVEL, LAST_LEVEL)


def clean_request_id(raw: str | None) -> str:
    """The caller's id if it is short printable ASCII without spaces, else a new one."""
    if raw and len(raw) <= 128 and raw.isascii() and raw.isprintable() and " " not in raw:
        return raw
    return f"{draw_number():016x}{draw_number():016x}"
