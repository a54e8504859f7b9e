"""Sends load to one server: an open loop with Poisson arrivals, or clients in a closed loop.

One event loop, HTTP/1.1. The lag of the arrivals is measured, too: where it is not small the
generator is what is measured.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from predictors.cli.asking import choice_texts
from predictors.cli.bench.mix import LoadRequest, Mix
from predictors.cli.endpoint import (
    MAX_ANSWER_BYTES,
    MAX_ERROR_BYTES,
    error_words,
    is_on_this_machine,
    request_headers,
)
from predictors.cli.event_reader import EventReader, read_object
from predictors.cli.outcomes import VerbFailed

MAX_IN_FLIGHT = 10_000
"""Of an open loop: beyond it an arrival is counted as not sent."""
NOT_SENT, LOST, TOO_LATE, BAD_ANSWER = "not sent", "connection lost", "timeout", "bad answer"


@dataclass(slots=True)
class Sample:
    """One request. Seconds; those of an open loop count from the scheduled arrival."""

    name: str
    due_s: float
    """From the start of the load."""
    lag_s: float = 0.0
    status: str = ""
    """The HTTP status, or why there is none."""
    is_ok: bool = False
    latency_s: float = 0.0
    first_s: float | None = None
    """To the first token; None for an answer that is no stream."""
    gaps_s: list[float] = field(default_factory=list)
    """Between chunks that have text."""
    tokens: int = 0
    words: str = ""
    """The server's own, of an answer that is an error."""

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first one."""
        if self.first_s is None or self.tokens < 2:
            return None
        return (self.latency_s - self.first_s) / (self.tokens - 1)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """`rate` arrivals per second, or `clients` that wait for their answers; until `seconds` are
    over or `requests` were begun."""

    seconds: float
    requests: int = 0
    rate: float = 0.0
    clients: int = 1
    seed: int = 0


class Target:
    """A server under load. An async context manager; event loop."""

    def __init__(self, url: str, key: str, mix: Mix, timeout_s: float) -> None:
        self.url = url
        self.mix = mix
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={**request_headers(key), "content-type": "application/json"},
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not is_on_this_machine(url),
        )

    async def __aenter__(self) -> Target:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, request: LoadRequest, sample: Sample, due: float) -> None:
        """Send `request` and fill `sample`; `due` is a time of `time.monotonic`."""
        sample.lag_s = time.monotonic() - due
        try:
            await self._ask(request, sample, due)
        except httpx.TimeoutException:
            sample.status, sample.is_ok = TOO_LATE, False
        except (httpx.HTTPError, httpx.StreamError):
            sample.status, sample.is_ok = LOST, False
        except VerbFailed:
            sample.status, sample.is_ok = BAD_ANSWER, False
        sample.latency_s = time.monotonic() - due

    async def _ask(self, request: LoadRequest, sample: Sample, due: float) -> None:
        async with self._client.stream("POST", request.path, content=request.content) as response:
            sample.status = str(response.status_code)
            is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
            if response.is_success and is_stream:
                await _read_stream(response, sample, due)
                return
            content = await _read_whole(response)
        sample.is_ok = response.is_success
        if response.is_success:
            sample.tokens = _counted_tokens(read_object(content))
        elif content.startswith(b"{"):
            sample.words = error_words(read_object(content))


async def _read_whole(response: httpx.Response) -> bytes:
    limit = MAX_ANSWER_BYTES if response.is_success else MAX_ERROR_BYTES
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > limit:
            raise VerbFailed("the answer is too large")
    return bytes(content)


async def _read_stream(response: httpx.Response, sample: Sample, due: float) -> None:
    reader, last, counted = EventReader(), 0.0, 0
    async for piece in response.aiter_bytes():
        now = time.monotonic()
        for event in reader.feed(piece):
            if event.get("error"):
                sample.status = "200 and then an error"
                sample.words = error_words(event)
                return
            counted = max(counted, _counted_tokens(event))
            if not any(text for text, _ in choice_texts(event)):
                continue
            sample.tokens += 1
            if sample.first_s is None:
                sample.first_s = now - due
            else:
                sample.gaps_s.append(now - last)
            last = now
    sample.tokens = counted or sample.tokens
    sample.is_ok = reader.is_done
    if not reader.is_done:
        sample.status = "200 and no end"


def _counted_tokens(answer: Mapping[str, Any]) -> int:
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, Mapping) else 0
    return count if isinstance(count, int) else 0


async def run_load(target: Target, plan: LoadPlan) -> tuple[list[Sample], float]:
    """The samples of one load, and the seconds until its last answer."""
    samples: list[Sample] = []
    began = time.monotonic()
    await (_open_loop if plan.rate else _closed_loop)(target, plan, samples, began)
    return samples, time.monotonic() - began


async def _open_loop(target: Target, plan: LoadPlan, samples: list[Sample], began: float) -> None:
    rng, tasks = random.Random(plan.seed), set[asyncio.Task[None]]()
    due = began + rng.expovariate(plan.rate)
    while due < began + plan.seconds and not (plan.requests and len(samples) >= plan.requests):
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        request = target.mix.draw(rng)
        sample = Sample(request.name, due - began)
        samples.append(sample)
        if len(tasks) >= MAX_IN_FLIGHT:
            sample.status = NOT_SENT
        else:
            task = asyncio.create_task(target.ask(request, sample, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        due += rng.expovariate(plan.rate)
    if tasks:
        await asyncio.gather(*tasks)


async def _closed_loop(target: Target, plan: LoadPlan, samples: list[Sample], began: float) -> None:
    async def client(number: int) -> None:
        rng = random.Random(f"{plan.seed}/{number}")
        while time.monotonic() < began + plan.seconds:
            if plan.requests and len(samples) >= plan.requests:
                return
            request = target.mix.draw(rng)
            due = time.monotonic()
            sample = Sample(request.name, due - began)
            samples.append(sample)
            await target.ask(request, sample, due)
            if not sample.is_ok and not sample.status.isdigit():
                await asyncio.sleep(0.1)  # a server that is gone is not asked a million times

    await asyncio.gather(*map(client, range(plan.clients)))


async def warm_up(target: Target, report: Callable[[Sample], Awaitable[None]]) -> None:
    """One request of each kind, not counted."""
    for request in target.mix.first_of_each():
        sample = Sample(request.name, 0.0)
        await target.ask(request, sample, time.monotonic())
        await report(sample)
