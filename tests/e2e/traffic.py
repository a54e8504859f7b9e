"""Clients that ask without a pause while a test changes the world, and a record of every outcome.

Nothing is retried and nothing is cancelled: each question is asked once and its end written down,
with the time. A test puts `around` its change and then says what may have failed meanwhile, which
is nothing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import httpx

Line = Callable[[str], Awaitable[None]]
"""Asks once, under this name, and checks the answer; raises whatever is wrong with it."""
Dial = Callable[[], AbstractAsyncContextManager[Line]]
"""Opens one connection (or a pool of one) and gives a line."""
Ask = Callable[[httpx.AsyncClient, str], Awaitable[None]]

SHOWN = 8  # failures that a message lists


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question and what became of it. Times are Unix seconds."""

    question: str
    began_s: float
    ended_s: float
    failure: str = ""

    def __str__(self) -> str:
        spent = self.ended_s - self.began_s
        return f"{self.question}, after {spent:.2f} s: {self.failure}"


class NothingAsked(AssertionError):
    """A window without a request proves nothing."""


@dataclass
class Window:
    """The questions that overlap with an event."""

    name: str
    began_s: float
    ended_s: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failed(self) -> list[Outcome]:
        """Those that were not answered, or not rightly."""
        return [each for each in self.outcomes if each.failure]

    def assert_none_failed(self, at_least: int = 10) -> None:
        """Raise AssertionError that shows the failures, or `NothingAsked` if too few were asked."""
        if self.failed:
            kinds = Counter(each.failure[:100] for each in self.failed)
            lines = [f"  +{e.began_s - self.began_s:.2f} s {e}" for e in self.failed[:SHOWN]]
            raise AssertionError("\n".join([f"{self}: {dict(kinds)}", *lines]))
        if len(self.outcomes) < at_least:
            raise NothingAsked(f"{self}: at least {at_least} questions are wanted")

    def __str__(self) -> str:
        asked, spent = len(self.outcomes), self.ended_s - self.began_s
        return f"{self.name}: {len(self.failed)} of {asked} questions failed in {spent:.1f} s"


class Traffic:
    """`clients` that ask from `__enter__` to `__exit__`, on an event loop in a thread of its own.

    `pooled`: a client keeps its line; otherwise each question opens one. `pause_s` lies between two
    questions of a client. After `limit_s` the clients stop by themselves, and `around` raises.
    `saved` gets one JSON object per outcome. Methods: the test's thread.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        clients: int = 4,
        pooled: bool = True,
        pause_s: float = 0.05,
        timeout_s: float = 60.0,
        limit_s: float = 300.0,
        saved: Path | None = None,
    ) -> None:
        self._dial = dial
        self._clients = clients
        self._pooled = pooled
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._end_s = time.monotonic() + limit_s
        self._saved = saved
        self._outcomes: list[Outcome] = []
        self._grown = threading.Condition()
        self._stopping = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Let every client finish what it asked, then stop."""
        self.stop()
        self._thread.join(self._timeout_s + 10)
        assert not self._thread.is_alive(), "a client of the traffic does not end"
        if self._saved is not None:
            lines = (json.dumps(asdict(each)) + "\n" for each in self.outcomes)
            self._saved.write_text("".join(lines))

    def stop(self) -> None:
        """Let no client ask again; waits for none."""
        self._stopping.set()

    @property
    def outcomes(self) -> list[Outcome]:
        """All questions that are over."""
        with self._grown:
            return list(self._outcomes)

    def wait_answered(self, count: int, timeout_s: float = 60.0) -> None:
        """Return once `count` more questions were answered rightly: the traffic flows."""
        self._wait_more(count, lambda each: not each.failure, timeout_s)

    def wait_failed(self, count: int, timeout_s: float = 60.0) -> None:
        """Return once `count` more questions failed."""
        self._wait_more(count, lambda each: bool(each.failure), timeout_s)

    def wait_over(self, timeout_s: float) -> None:
        """Return once the clients have stopped by themselves."""
        self._thread.join(timeout_s)

    def _wait_more(self, count: int, kind: Callable[[Outcome], bool], timeout_s: float) -> None:
        with self._grown:
            wanted = sum(map(kind, self._outcomes)) + count
            flowing = self._grown.wait_for(
                lambda: sum(map(kind, self._outcomes)) >= wanted, timeout_s
            )
            last = [each.failure or "right" for each in self._outcomes[-3:]]
        assert flowing, f"the traffic does not flow as expected; the last three: {last}"

    @contextmanager
    def around(self, name: str, settle: int = 4) -> Iterator[Window]:
        """The questions asked while the body runs, and until `settle` more are over after it.

        Raises `NothingAsked` at the end if the clients had stopped.
        """
        window = Window(name, time.time())
        yield window
        with self._grown:
            wanted = len(self._outcomes) + settle
            self._grown.wait_for(
                lambda: self._is_over or len(self._outcomes) >= wanted, self._timeout_s + 10
            )
        window.ended_s = time.time()
        if self._is_over:
            raise NothingAsked(f"{name}: the clients stopped before it was over")
        window.outcomes = [e for e in self.outcomes if e.ended_s >= window.began_s]

    # -- the clients' thread ---------------------------------------------------------------------
    def _run(self) -> None:
        try:
            asyncio.run(self._ask_all())
        finally:
            with self._grown:
                self._is_over = True
                self._grown.notify_all()

    async def _ask_all(self) -> None:
        run = secrets.token_hex(3)
        async with asyncio.TaskGroup() as group:
            for client in range(self._clients):
                name = f"{run}-{client}"
                work = self._ask_pooled(name) if self._pooled else self._ask_afresh(name)
                group.create_task(work)

    def _questions(self, client: str) -> Iterator[str]:
        number = 0
        while not self._stopping.is_set() and time.monotonic() < self._end_s:
            yield f"{client}-{number}"
            number += 1

    async def _ask_pooled(self, client: str) -> None:
        async with self._dial() as line:
            for question in self._questions(client):
                await self._once(question, line)

    async def _ask_afresh(self, client: str) -> None:
        async def line(question: str) -> None:
            async with self._dial() as fresh:
                await fresh(question)

        for question in self._questions(client):
            await self._once(question, line)

    async def _once(self, question: str, line: Line) -> None:
        began_s, failure = time.time(), ""
        try:
            async with asyncio.timeout(self._timeout_s):
                await line(question)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is an outcome
            failure = f"{type(error).__name__}: {error}"
        with self._grown:
            self._outcomes.append(Outcome(question, began_s, time.time(), failure))
            self._grown.notify_all()
        await asyncio.sleep(self._pause_s)


def over_http(base_url: str, ask: Ask, timeout_s: float = 60.0) -> Dial:
    """Lines over HTTP/1.1, one connection each: `ask(client, question)` sends and checks."""

    @asynccontextmanager
    async def dial() -> AsyncIterator[Line]:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        async with httpx.AsyncClient(
            base_url=base_url,
            timeout=timeout_s,
            limits=limits,
            trust_env=False,
            verify=False,  # there is no TLS, and reading the CAs takes longer than asking
        ) as http:

            async def line(question: str) -> None:
                await ask(http, question)

            yield line

    return dial
