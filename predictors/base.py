"""`BasePredictor`: the path of a request, from a decoded body to the response.

`infer` decodes, prepares, submits, collects and encodes; OpenAI routes of a subclass use the same
`submit` and `run`. A subclass supplies an engine and the hooks that translate its task. Everything
runs on the event loop and never blocks it; slow work goes to a thread through `off_loop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from predictors import metrics
from predictors.errors import Draining, EngineFailed, InvalidRequest
from predictors.observe import tracing
from predictors.protocol.call import ANY_ADAPTER, Call, parse_priority, parse_timeout
from predictors.protocol.http.bodies import fail_at
from predictors.protocol.kserve_sdk import (
    POST_HIST_TIME,
    PRE_HIST_TIME,
    PREDICT_HIST_TIME,
    InferRequest,
    InferResponse,
    Model,
)
from predictors.protocol.v2.kserve import from_kserve, to_kserve
from predictors.protocol.v2.values import V2Request, V2Response, num_bytes
from predictors.serving.accounts import Caller
from predictors.serving.admission import costs_of
from predictors.serving.engine import Engine
from predictors.serving.estimates import Costs
from predictors.serving.host import JOIN_TIMEOUT_S, EngineHost
from predictors.serving.lifecycle import State
from predictors.serving.submission import Reader, Submission
from predictors.serving.thread_pools import ThreadPools, threads_for
from predictors.settings import Settings
from predictors.workers.pool import Workers

if TYPE_CHECKING:
    from predictors.compute.device.sharing import SharedCard

R = TypeVar("R")  # request: validated, frozen
W = TypeVar("W")  # work: a request prepared for the device
C = TypeVar("C")  # chunk: a piece of the result
T = TypeVar("T")

# Larger payloads are decoded in the pool: base64 and pictures would block the event loop.
INLINE_BYTES = 16 * 1024
START_PATIENCE_S = 3.0  # how long `stop` waits for a load or a warm-up to notice
caller_of = lru_cache(1024)(Caller)  # most requests come from few callers
LATE = "the deadline passed before this was prepared"
MAX_LOGGED = 2000  # characters of a prompt in the log, where `server.log_prompts` is on


@dataclass(frozen=True, slots=True)
class Answer(Generic[R, C]):
    """A finished row, with the milliseconds that it spent in queue and engine, rounded up."""

    request: R
    chunks: tuple[C, ...]
    queue_ms: int
    compute_ms: int
    request_id: str = ""


class BasePredictor(Model, Generic[R, W, C]):  # type: ignore[misc]
    """A model behind every protocol. Subclasses supply `task`, `series` and the hooks below."""

    task: ClassVar[str]
    """Name of the task in settings, metrics and the admin state."""
    series: ClassVar[metrics.ModelSeries]
    """Label values and series of this kind of model."""
    file_inputs: ClassVar[frozenset[str]] = frozenset()
    """V2 inputs that hold files: base64 where they come in JSON."""
    inline: ClassVar[bool] = False
    """True where the hooks take less time than a thread hop: they run on the event loop."""

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
        kserve_histograms = (PRE_HIST_TIME, PREDICT_HIST_TIME, POST_HIST_TIME)
        self._kserve_timers = [series.labels(model_name=name) for series in kserve_histograms]
        self._receive_seconds = metrics.stage_seconds.labels(name, "receive")
        self._prepare_seconds = metrics.stage_seconds.labels(name, "prepare")
        self.settings = settings
        self.host: EngineHost[W, C] = EngineHost(name, engine, settings.queue)
        self.workers = workers
        """Processes that decode pictures; None: threads decode them."""
        self._thread_waits: set[asyncio.Future[Any]] = set()
        self._is_cut_off = False
        self._pools = ThreadPools(
            name,
            settings.server.prepare_threads or threads_for(len(os.sched_getaffinity(0))),
            settings.queue.stall_timeout_s,
        )

    # -- hooks of a task -------------------------------------------------------------------------
    @abstractmethod
    def decode_v2(self, request: V2Request) -> list[R]:
        """The rows of a V2 request. Raises `InvalidRequest`. Event loop or pool thread."""

    @abstractmethod
    def prepare(self, request: R) -> W:
        """Everything the CPU can do before the queue: tokens, noise, patches. Pool thread."""

    def costs(self, requests: Sequence[R]) -> Costs:
        """The cost of all rows by kind of work, before they are prepared, in the unit of
        `work.cost`. Event loop: it must take microseconds."""
        return costs_of(requests)

    def least_costs(self, requests: Sequence[R]) -> Costs | None:
        """As `costs`, if each row ends as early as it can; None if they can't end early."""
        return None

    @abstractmethod
    def encode_v2(self, request: V2Request, answers: list[Answer[R, C]]) -> V2Response:
        """The response of a V2 request. Pool thread."""

    def reader(self, work: W) -> Reader[C] | None:
        """A reader that transforms the job's chunks, or None to pass them on as they are."""
        return None

    def log_fields(self, work: W, last: C | None) -> Mapping[str, int | str]:
        """Sizes and counts of one row for the log and its span, never its text. `last` is the
        chunk that came last."""
        return {}

    def prompt(self, request: R) -> str:
        """The text of one row, logged where `server.log_prompts` is on."""
        return ""

    # -- the path of a request -------------------------------------------------------------------
    async def infer(self, request: V2Request, call: Call) -> V2Response:
        """Answer one V2 request of any transport. Cancelling the task cancels its jobs."""
        before, during, after = self._kserve_timers
        with tracing.TimedStage(before, call.trace, "parse"):
            rows = await self._decode(request, call)
        with tracing.TimedStage(during):
            answers = await self.run(rows, call)
        with tracing.TimedStage(after, call.trace, "encode"):
            return await self._encode(request, answers)

    def check_room(self, call: Call, rows: int = 1) -> None:
        """Raise what a request of so many rows would be refused with now."""
        caller = caller_of(call.caller, call.weight, call.priority)
        self.host.check_accepting(rows, caller, deadline=call.deadline)
        call.is_room_checked = True

    async def _decode(self, request: V2Request, call: Call) -> list[R]:
        """The rows of a request. Its parameters `timeout` and `priority` change `call`."""
        num_rows = max((tensor.shape[0] for tensor in request.inputs if tensor.shape), default=1)
        is_small = self.inline or num_bytes(request) <= INLINE_BYTES
        # before anything is made for each row; `reserve` checks again once they are decoded
        if num_rows > 1 or not is_small or not call.is_room_checked:
            self.check_room(call, max(1, num_rows))
        timeout_us = request.parameters.get("timeout")
        if timeout_us is False or timeout_us not in (None, 0):  # which Python counts as 0
            call.tighten(parse_timeout(timeout_us, "timeout", unit_s=1e-6))
        if "priority" in request.parameters:
            call.priority = parse_priority(request.parameters["priority"], "priority")
        if call.adapters is not ANY_ADAPTER:
            request = replace(request, adapters=call.adapters)
        return await self.read_rows(request, call, is_small=is_small)

    async def read_rows(self, request: V2Request, call: Call, *, is_small: bool) -> list[R]:
        """`decode_v2`, in the pool for a large request; a subclass with more to wait for overrides
        this."""
        if is_small:
            return self.decode_v2(request)
        return await self.off_loop(self.decode_v2, request, is_large=True)

    async def _encode(self, request: V2Request, answers: list[Answer[R, C]]) -> V2Response:
        if self.inline:
            return self.encode_v2(request, answers)
        return await self.off_loop(self.encode_v2, request, answers)

    async def run(self, requests: Sequence[R], call: Call) -> list[Answer[R, C]]:
        """Answer all rows, or raise the first failure and cancel the others."""
        submissions = await self.submit(requests, call)
        try:
            if len(submissions) == 1:
                chunks = [await submissions[0].collect()]
            else:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(row.collect()) for row in submissions]
                chunks = [task.result() for task in tasks]
        except ExceptionGroup as failures:
            raise _first_failure(failures) from failures
        finally:
            self.finish_call(submissions, call)
        return [
            Answer(request, tuple(row), each.queue_ms, each.compute_ms, call.request_id)
            for request, row, each in zip(requests, chunks, submissions, strict=True)
        ]

    async def submit(self, requests: Sequence[R], call: Call) -> list[Submission[W, C]]:
        """Prepare all rows, then queue them all or none.

        The caller must pass the submissions to `finish_call`, however it ends.
        """
        call.begin_jobs(len(requests))
        call.log_fields["rows"] = len(requests)
        if self.settings.server.log_prompts:
            call.log_fields["prompts"] = [self.prompt(row)[:MAX_LOGGED] for row in requests]
        caller = caller_of(call.caller, call.weight, call.priority)
        # before any work is spent on preparing
        least_costs = None if call.deadline is None else self.least_costs(requests)
        self.host.reserve(len(requests), caller, self.costs(requests), call.deadline, least_costs)
        try:
            started, exemplar = time.monotonic(), tracing.exemplar()
            self._receive_seconds.observe(started - call.began_at, exemplar)
            with tracing.stage(call.trace, "prepare"):
                works = await self._prepare_all(requests, call)
            call.log_fields.update(merge_rows([self.log_fields(work, None) for work in works]))
            self._prepare_seconds.observe(time.monotonic() - started, exemplar)
            jobs = self.host.submit(
                works,
                request_id=call.request_id,
                deadline=call.deadline,
                caller=caller,
                is_reserved=True,
            )
        except BaseException:
            self.host.release(len(requests), caller)
            raise
        return [Submission(job, self.reader(work)) for job, work in zip(jobs, works, strict=True)]

    def finish_call(self, submissions: Sequence[Submission[W, C]], call: Call) -> None:
        """Cancel the rows that still run, and write their times and log fields to `call`."""
        for submission in submissions:
            submission.cancel()
            call.used_s += submission.used_s
        fields = [self.log_fields(submission.work, submission.last) for submission in submissions]
        if call.trace is not None:
            for submission, attributes in zip(submissions, fields, strict=True):
                submission.add_spans(call.trace, attributes)
        call.log_fields.update(merge_rows(fields))
        call.log_fields["queue_ms"] = max(submission.queue_ms for submission in submissions)
        call.log_fields["compute_ms"] = max(submission.compute_ms for submission in submissions)

    async def _prepare_all(self, requests: Sequence[R], call: Call) -> list[W]:
        if self.inline:
            return [self.prepare(request) for request in requests]
        works = []
        for row, request in enumerate(requests):
            try:
                works.append(await self.prepare_row(request, call.deadline))
            except InvalidRequest as error:
                if call.protocol != "openai" and len(requests) > 1 and error.row is None:
                    raise type(error)(error.message, param=error.param, row=row) from error
                raise
        return works

    async def prepare_row(self, request: R, deadline: float | None = None) -> W:
        """`prepare` in the pool; a subclass with more to wait for overrides this. Raises
        `DeadlineExceeded` at `deadline`, in seconds of `time.monotonic()`."""
        async with fail_at(deadline, LATE):
            return await self.off_loop(self.prepare, request)

    async def off_loop(self, work: Callable[..., T], *args: Any, is_large: bool = False) -> T:
        """Run `work` on a thread of this predictor, with the request's context variables. Work that
        may take long (`is_large`) has threads of its own: other work does not wait behind it."""
        run = copy_context().run
        pool = self._pools.submit(run, work, *args, is_large=is_large)
        wait: asyncio.Future[T] = asyncio.wrap_future(pool)
        self._thread_waits.add(wait)
        try:
            return await wait
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_cut_off and task is not None and not task.cancelling():
                raise Draining(f"{self.name} was shut down before this was done") from None
            raise
        finally:
            self._thread_waits.discard(wait)

    # -- KServe's own server ---------------------------------------------------------------------
    async def predict(
        self, payload: InferRequest, headers: Mapping[str, str] | None = None
    ) -> InferResponse:
        """KServe's hook, called and timed by its `Model.__call__`. Concurrent calls share steps."""
        request = from_kserve(payload)
        call = Call.of(headers, default_timeout_s=self.settings.queue.default_timeout_s)
        answers = await self.run(await self._decode(request, call), call)
        return to_kserve(await self._encode(request, answers), request)

    # -- life ------------------------------------------------------------------------------------
    def share(self, card: SharedCard) -> None:
        """Have the engine take turns with others on `card`, if it can. Before `start`."""

    def load(self) -> bool:
        """KServe's hook: compile and warm up, then return. Blocks; cheap when already loaded."""
        self.host.start()
        self.host.wait_ready()
        self.ready = True
        return True

    def start(self, on_failed: Callable[[EngineFailed], None] | None = None) -> None:
        """Begin to load on the engine thread and return at once; `healthy` is true when done.

        `on_failed` is called on the engine thread after a failure of the engine.
        """
        if on_failed is not None:
            self.host.events.subscribe(on_failed=on_failed)
        self.host.start()

    def cut_off(self) -> None:
        """Fail whatever is accepted and not answered, also what waits for a thread that prepares or
        encodes. Blocks until the engine has seen it."""
        self._is_cut_off = True
        for wait in list(self._thread_waits):
            with contextlib.suppress(RuntimeError):  # its loop has ended
                wait.get_loop().call_soon_threadsafe(wait.cancel)
        self.host.drain(0.0)

    def stop(self) -> None:
        """Finish what was accepted, within the drain time, and release the device. Blocks."""
        # A compilation can't be interrupted, and there is no accepted work to finish yet.
        is_starting = self.host.state in {State.LOADING, State.WARMING}
        self.host.drain(self.settings.server.drain_timeout_s)
        self.host.stop(START_PATIENCE_S if is_starting else JOIN_TIMEOUT_S)
        self._pools.close()

    # -- state -----------------------------------------------------------------------------------
    async def healthy(self) -> bool:
        """True while the model is warm, the engine alive, and nothing draining."""
        return self.host.is_ready and self._pools.is_alive

    @property
    def warming(self) -> tuple[int, int] | None:
        """As `EngineHost.warming`."""
        return self.host.warming

    @property
    def backlog(self) -> int:
        """Calls that wait for a thread that prepares or encodes."""
        return self._pools.waiting

    @property
    def is_alive(self) -> bool:
        """False once the engine or a thread that prepares for it failed or hangs."""
        return self.host.is_alive and self._pools.is_alive

    def get_parameters(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def get_limits(self) -> Mapping[str, Any]:
        return {}

    def describe(self) -> dict[str, object]:
        """Running and waiting jobs and caches, as JSON values. Any thread, never blocks."""
        return {"room": self.task, **self.host.describe()}


def merge_rows(rows: Sequence[Mapping[str, int | str]]) -> dict[str, object]:
    """The fields of all rows: one value where the rows agree, else a list of one per row."""
    if len(rows) == 1:
        return dict(rows[0])
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    return {name: x if len(set(x)) > 1 else x[0] for name, x in columns.items()}


def _first_failure(failures: BaseExceptionGroup[Exception]) -> Exception:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    assert isinstance(failure, Exception)
    return failure
