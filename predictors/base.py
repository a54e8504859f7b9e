"""The whole request path on one screen: decode, prepare, submit, collect, encode.

`BasePredictor` is a KServe `Model`; the rooms subclass it. It knows the order of the path and
which host answers. It knows no tensor name, no prompt, no status code and no torch. Everything runs
on the event loop unless a line says `off_loop`, and nothing here blocks it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from predictors import metrics
from predictors.errors import InvalidRequest
from predictors.flight import Flight, Reader, merged
from predictors.observe import tracing
from predictors.protocol.call import Call, parse_timeout
from predictors.protocol.http.body_reader import fail_at
from predictors.protocol.kserve_sdk import InferRequest, InferResponse, Model
from predictors.protocol.v2.kserve import from_kserve, to_kserve
from predictors.protocol.v2.values import V2Request, V2Response, num_bytes
from predictors.serving.engine import Engine
from predictors.serving.host import JOIN_TIMEOUT_S, EngineHost
from predictors.serving.lifecycle import State
from predictors.serving.recording import Recorder, Recording
from predictors.serving.thread_pools import ThreadPools
from predictors.settings import Settings
from predictors.workers.pool import Workers

R = TypeVar("R")  # request: a validated wish
W = TypeVar("W")  # work: the same, ready for the device
C = TypeVar("C")  # chunk: what comes back, one or many
T = TypeVar("T")

INLINE_BYTES = (
    16 * 1024
)  # larger payloads are decoded in the pool: base64 and pictures would hold the loop
START_PATIENCE_S = 3.0  # how long `stop` waits for a load or a warm-up to notice
MAX_LOGGED = 2000  # characters of a prompt in the log, where the operator wants it there


@dataclass(frozen=True, slots=True)
class Answer(Generic[R, C]):
    """One row answered: its request, its chunks, the ms it waited and computed, rounded up."""

    request: R
    chunks: tuple[C, ...]
    queue_ms: int
    compute_ms: int


@dataclass(frozen=True, slots=True)
class Decoded(Generic[R]):
    """What `preprocess` hands to `predict`."""

    request: V2Request
    rows: list[R]
    as_kserve: bool


@dataclass(frozen=True, slots=True)
class Answered(Generic[R, C]):
    """What `predict` hands to `postprocess`."""

    request: V2Request
    answers: list[Answer[R, C]]
    as_kserve: bool


class BasePredictor(Model, Generic[R, W, C]):  # type: ignore[misc]
    """A model behind every protocol. Subclasses give `room`, an engine and the hooks below."""

    room: ClassVar[str]
    series: ClassVar[metrics.ModelSeries]
    """Label values and series of this kind of model."""
    file_inputs: ClassVar[frozenset[str]] = frozenset()
    """V2 inputs that hold files: base64 where they come in JSON."""
    inline: ClassVar[bool] = (
        False  # True: the hooks are trivial, a thread hop would cost more than they do
    )

    def __init__(
        self,
        name: str,
        engine: Engine[W, C],
        settings: Settings,
        workers: Workers | None = None,
    ) -> None:
        super().__init__(name)
        metrics.register_model(name, self.series)
        metrics.queue_capacity.labels(name).set(settings.queue.capacity)
        self.settings = settings
        self.host: EngineHost[W, C] = EngineHost(name, engine, settings.queue)
        self.workers = workers
        """Processes that decode pictures; None where none were given: then threads do."""
        self._pools = ThreadPools(
            name,
            settings.server.prepare_threads or threads_for(len(os.sched_getaffinity(0))),
            settings.queue.stall_timeout_s,
        )

    # -- the room's hooks ------------------------------------------------------------------------
    def decode_v2(self, request: V2Request) -> list[R]:
        """The rows of a V2 request. Raises `InvalidRequest`. Loop or pool thread."""
        raise NotImplementedError

    def prepare(self, request: R) -> W:
        """Everything the CPU can do before the queue: tokens, noise, patches. Pool thread."""
        raise NotImplementedError

    def encode_v2(self, request: V2Request, answers: list[Answer[R, C]]) -> V2Response:
        """The response of a V2 request. Pool thread."""
        raise NotImplementedError

    def reader(self, work: W) -> Reader[C] | None:
        """What reads this job's chunks on the caller's side, or None to pass them on."""
        return None

    def facts(self, work: W, last: C | None) -> Mapping[str, int | str]:
        """Sizes and counts of one row for the log, never what it says; `last` is the chunk that
        came last.
        """
        return {}

    def prompt(self, request: R) -> str:
        """What one row says, for operators who want it in the log."""
        return ""

    # -- life ------------------------------------------------------------------------------------
    def load(self) -> bool:
        """KServe's hook: compile and warm up, then return. Blocks; cheap when already loaded."""
        self.host.start()
        self.host.wait_ready()
        self.ready = True
        return True

    def start(self) -> None:
        """Begin to load on the engine thread and return at once; `healthy` tells when done."""
        self.host.start()

    def stop(self) -> None:
        """Finish what was accepted, within the drain time, and release the device. Blocks."""
        # a compilation can't be told to end, and has accepted nothing that it might finish
        is_starting = self.host.state in {State.LOADING, State.WARMING}
        self.host.drain(self.settings.server.drain_timeout_s)
        self.host.stop(START_PATIENCE_S if is_starting else JOIN_TIMEOUT_S)
        self._pools.close()

    async def healthy(self) -> bool:
        """Ready means warm: every promised shape compiled, the engine alive, not draining."""
        return self.host.is_ready and self._pools.is_alive

    @property
    def is_alive(self) -> bool:
        """False once the engine or a thread that prepares for it failed or hangs."""
        return self.host.is_alive and self._pools.is_alive

    # -- for operators ---------------------------------------------------------------------------
    def describe(self) -> dict[str, object]:
        """What runs, waits and is cached, as JSON can carry it. Any thread, never blocks."""
        return {"room": self.room, **self.host.describe()}

    def record(self, recorder: Recorder, steps: int) -> Recording:
        """Record the next steps of live traffic, see `EngineHost.record`. Any thread."""
        return self.host.record(recorder, steps)

    # -- KServe's request path -------------------------------------------------------------------
    async def infer(self, request: V2Request, call: Call) -> V2Response:
        """One V2 request of any transport. Cancelling the task cancels its jobs."""
        response, _ = await self(request, headers=call)
        assert isinstance(response, V2Response)
        return response

    def validate(self, payload: Any) -> Any:
        """KServe's wire check; ours was done by the edge."""
        return payload

    async def preprocess(
        self, payload: V2Request | InferRequest, headers: Mapping[str, str] | None = None
    ) -> Decoded[R]:
        """Rows from a V2 request of our edges or of KServe's own server."""
        request = from_kserve(payload) if isinstance(payload, InferRequest) else payload
        num_rows = max((tensor.shape[0] for tensor in request.inputs if tensor.shape), default=1)
        self.host.check_accepting(max(1, num_rows))  # before anything is made for each of them
        as_kserve = request is not payload
        call = self._call(headers)
        timeout_us = request.parameters.get("timeout")
        if timeout_us not in (None, 0):
            call.tighten(parse_timeout(timeout_us, "timeout", unit_s=1e-6))
        with tracing.stage(call.trace, "parse"):
            if self.inline or num_bytes(request) <= INLINE_BYTES:
                return Decoded(request, self.decode_v2(request), as_kserve)
            rows = await self.off_loop(self.decode_v2, request, is_large=True)
            return Decoded(request, rows, as_kserve)

    async def predict(
        self, payload: Decoded[R], headers: Mapping[str, str] | None = None
    ) -> Answered[R, C]:
        """Each row is a job; rows are batched with everybody else's."""
        return Answered(
            payload.request, await self.run(payload.rows, self._call(headers)), payload.as_kserve
        )

    async def postprocess(
        self, result: Answered[R, C], headers: Mapping[str, str] | None = None
    ) -> V2Response | InferResponse:
        """The response; pictures are encoded in the pool."""
        with tracing.stage(self._call(headers).trace, "encode"):
            if self.inline:
                response = self.encode_v2(result.request, result.answers)
            else:
                response = await self.off_loop(self.encode_v2, result.request, result.answers)
        return to_kserve(response, result.request) if result.as_kserve else response

    # -- what every protocol shares --------------------------------------------------------------
    async def submit(self, requests: Sequence[R], call: Call) -> list[Flight[W, C]]:
        """Prepare all rows, then admit them whole or not at all.

        The caller must cancel or exhaust each flight.
        """
        call.facts["rows"] = len(requests)
        if self.settings.server.log_prompts:
            call.facts["prompts"] = [self.prompt(request)[:MAX_LOGGED] for request in requests]
        self.host.reserve(len(requests))  # before any work is spent on preparing
        try:
            started = time.monotonic()
            with tracing.stage(call.trace, "prepare"):
                works = await self._prepare_all(requests, call)
            call.facts.update(merged([self.facts(work, None) for work in works]))
            seconds = time.monotonic() - started
            metrics.stage_seconds.labels(self.name, "prepare").observe(seconds, tracing.exemplar())
            jobs = self.host.submit(
                works, request_id=call.request_id, deadline=call.deadline, is_reserved=True
            )
        finally:
            self.host.release(len(requests))
        return [Flight(job, self.reader(work)) for job, work in zip(jobs, works, strict=True)]

    async def run(self, requests: Sequence[R], call: Call) -> list[Answer[R, C]]:
        """All rows answered, or the first failure; the others are cancelled then."""
        flights = await self.submit(requests, call)
        try:
            if len(flights) == 1:
                chunks = [[c async for c in flights[0].chunks()]]
            else:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(_collect(flight)) for flight in flights]
                chunks = [task.result() for task in tasks]
        except ExceptionGroup as failures:
            raise _first(failures) from failures
        finally:
            self.settle(flights, call)
        return [
            Answer(request, tuple(row), flight.queue_ms, flight.compute_ms)
            for request, row, flight in zip(requests, chunks, flights, strict=True)
        ]

    def settle(self, flights: Sequence[Flight[W, C]], call: Call) -> None:
        """The caller has what it gets: whatever still runs is cancelled, and the call knows what
        the log will tell.
        """
        for flight in flights:
            flight.cancel()
        facts = [self.facts(flight.work, flight.last) for flight in flights]
        if call.trace is not None:
            for flight, told in zip(flights, facts, strict=True):
                flight.trace(call.trace, told)
        call.facts.update(merged(facts))
        call.facts["queue_ms"] = max(flight.queue_ms for flight in flights)
        call.facts["compute_ms"] = max(flight.compute_ms for flight in flights)

    async def off_loop(self, work: Callable[..., T], *args: Any, is_large: bool = False) -> T:
        """Run `work` on one of this predictor's threads, with the request's context variables.

        What may take long goes to threads of its own (`is_large`), so that others do not wait.
        """
        run = copy_context().run
        return await asyncio.wrap_future(self._pools.submit(run, work, *args, is_large=is_large))

    async def prepare_row(self, request: R) -> W:
        """`prepare` off the event loop; a room that has more to wait for overrides it."""
        return await self.off_loop(self.prepare, request)

    async def _prepare_all(self, requests: Sequence[R], call: Call) -> list[W]:
        if self.inline:
            return [self.prepare(request) for request in requests]
        works = []
        for row, request in enumerate(requests):
            try:
                async with fail_at(call.deadline, "the deadline passed before this was prepared"):
                    works.append(await self.prepare_row(request))
            except InvalidRequest as error:
                if len(requests) > 1 and error.row is None:
                    raise type(error)(error.message, param=error.param, row=row) from error
                raise
        return works

    def _call(self, headers: Mapping[str, str] | None) -> Call:
        return Call.of(headers, default_timeout_s=self.settings.queue.default_timeout_s)


def threads_for(cores: int) -> int:
    """Threads that prepare on a machine of so many cores: half of them, since loop, engine and
    torch want some too, and no more than can be kept busy beside one interpreter lock.
    """
    return min(max(2, cores // 2), 8)


async def _collect(flight: Flight[W, C]) -> list[C]:
    return [chunk async for chunk in flight.chunks()]


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    assert isinstance(failure, Exception)
    return failure
