"""The load generator: a process of its own, one event loop, arrivals of a Poisson process.

`python -m tests.load.generator` reads a `Plan` as JSON from standard input and writes the records
to the plan's file. Arrivals never wait for answers; `loop` traffic, for the capacity, has a fixed
number of callers that do.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.load.asks import Ask, digest
from tests.load.calls import GrpcChannels
from tests.load.records import (
    FAILED,
    LATE,
    LEFT,
    OK,
    REFUSED,
    UNANSWERED,
    UNCONNECTED,
    Record,
)
from tests.load.traffic import draw, pool
from tests.load.wire import Cut, Pool, Reply, Wire

PATIENCE_S = 30.0
"""After a deadline: an answer that has not come by then does not come."""
LEAST_REST_S = 0.0005
DRAINING = "503 draining"


@dataclass(frozen=True)
class Plan:
    port: int
    grpc_port: int
    mix: str
    seed: int
    seconds: float
    rate: float = 0.0
    """Arrivals per second; 0: `callers` ask one request after the other."""
    callers: int = 0
    most: int = 0
    """Requests after which no more arrive; 0 is no limit."""
    leavers: float = 0.0
    """Share of requests that are given up at a random time."""
    slow_readers: float = 0.0
    slow_writers: float = 0.0
    fresh: float = 0.1
    """Share of HTTP requests on a new connection."""
    compared: float = 0.05
    deadlines_s: tuple[tuple[float, float], ...] = ((0.15, 3.0), (0.85, 20.0))
    """(share, seconds) of the deadlines, which callers send along."""
    solo: str = ""
    """File with the digests of the solo answers, by key."""
    out: str = ""
    core: int = -1
    source: str = "127.0.0.1"
    headers: tuple[tuple[str, str], ...] = ()
    is_final: bool = False
    """No request is sent again when a used connection turns out to be closed."""

    @classmethod
    def read(cls, text: str) -> Plan:
        fields = json.loads(text)
        for name in ("deadlines_s", "headers"):
            fields[name] = tuple(map(tuple, fields[name]))
        return cls(**fields)


@dataclass(slots=True)
class Manner:
    """A caller's behaviour, drawn before it asks."""

    deadline_s: float
    leaves_after_s: float | None = None
    leaves_by_reset: bool = False
    reads_slowly: bool = False
    writes_for_s: float = 0.0
    is_fresh: bool = False

    @property
    def how(self) -> str:
        if self.leaves_after_s is not None:
            return "leaver"
        return "slow reader" if self.reads_slowly else "slow writer" if self.writes_for_s else ""


def manner_of(plan: Plan, rng: random.Random) -> Manner:
    shares = [share for share, _ in plan.deadlines_s]
    deadline_s = rng.choices([seconds for _, seconds in plan.deadlines_s], shares)[0]
    manner = Manner(deadline_s, is_fresh=rng.random() < plan.fresh)
    kind = rng.random()
    if kind < plan.leavers:
        # half of them early, in the head or in the queue; half of them somewhere in the answer
        manner.leaves_after_s = rng.uniform(0, 0.1) if rng.random() < 0.5 else rng.uniform(0, 4)
        manner.leaves_by_reset = rng.random() < 0.5
    elif kind < plan.leavers + plan.slow_readers:
        manner.reads_slowly = True
    elif kind < plan.leavers + plan.slow_readers + plan.slow_writers:
        manner.writes_for_s = rng.uniform(0.1, 0.8)
    return manner


@dataclass
class Load:
    """One run of a plan."""

    plan: Plan
    solo: dict[str, str]
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pool = Pool(self.plan.port, self.plan.source)
        self._channels = GrpcChannels(self.plan.grpc_port)
        self.started = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self.started = time.monotonic()
        print(self.started, flush=True)  # the clock is the same for all processes of a machine
        await (self._open_loop() if self.plan.rate else self._closed_loop())
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._pool.close()
        await self._channels.close()

    # -- arrivals --------------------------------------------------------------------------------
    async def _open_loop(self) -> None:
        plan, rng = self.plan, random.Random(self.plan.seed)
        due = self.started + rng.expovariate(plan.rate)
        number = 0
        while due < self.started + plan.seconds and not (plan.most and number >= plan.most):
            rest = due - time.monotonic()
            if rest > LEAST_REST_S:
                await asyncio.sleep(rest)
            elif number % 16 == 0:
                await asyncio.sleep(0)  # behind: the answers are read all the same
            ask = draw(plan.mix, rng, f"{plan.seed}x{number}", plan.compared)
            task = asyncio.create_task(self._one(ask, manner_of(plan, rng), due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            number += 1
            due += rng.expovariate(plan.rate)

    async def _closed_loop(self) -> None:
        plan, end = self.plan, self.started + self.plan.seconds

        async def caller(number: int) -> None:
            rng = random.Random(f"{plan.seed}/{number}")
            count = 0
            while time.monotonic() < end:
                ask = draw(plan.mix, rng, f"{plan.seed}x{number}x{count}", plan.compared)
                await self._one(ask, manner_of(plan, rng), time.monotonic())
                count += 1

        await asyncio.gather(*map(caller, range(plan.callers)))

    # -- one request -----------------------------------------------------------------------------
    async def _one(self, ask: Ask, manner: Manner, due: float) -> None:
        began = time.monotonic()
        record = Record(
            ask.kind, ask.room, ask.protocol, due - self.started, began - due, 0.0, UNANSWERED,
            "", manner.deadline_s, ask.work, key=ask.key, how=manner.how,
        )  # fmt: skip
        try:
            if ask.protocol == "grpc":
                await self._over_grpc(ask, manner, record)
            else:
                await self._over_http(ask, manner, record)
        except TimeoutError:
            record.status = "silent"
        if manner.leaves_after_s is not None and record.outcome == UNANSWERED:
            record.outcome = LEFT
        record.ended_s = time.monotonic() - self.started
        self.records.append(record)

    async def _over_http(self, ask: Ask, manner: Manner, record: Record) -> None:
        is_slow = manner.reads_slowly
        try:
            wire = await self._pool.get(is_fresh=manner.is_fresh, small_buffer=is_slow)
        except OSError as error:
            record.outcome, record.status = UNCONNECTED, type(error).__name__
            return
        is_used = wire.num_answers > 0
        reply = wire.begin(keeps_body=bool(ask.key), is_stream=ask.is_stream, reads_slowly=is_slow)
        left = None
        if manner.leaves_after_s is not None:
            left = asyncio.get_running_loop().call_later(
                manner.leaves_after_s, lambda: wire.leave(with_reset=manner.leaves_by_reset)
            )
        try:
            async with asyncio.timeout(manner.deadline_s + PATIENCE_S):
                await self._send(wire, reply, ask, manner)
                record.sent_s = time.monotonic() - self.started
                await reply.done
        except Cut as error:
            if is_used and not reply.status and not self.plan.is_final and not manner.how:
                record.retries += 1
                await self._over_http(ask, Manner(manner.deadline_s, is_fresh=True), record)
                return
            record.status = f"cut {reply.status or ''}".strip()
            record.began_s = reply.began_at and reply.began_at - self.started
            if str(error) and "lost" not in str(error):
                record.status = f"bad answer: {error}"
            return
        except TimeoutError:
            wire.leave(with_reset=True)
            raise
        finally:
            if left is not None:
                left.cancel()
        self._judge_http(ask, reply, record)
        self._pool.put(wire)

    async def _send(self, wire: Wire, reply: Reply, ask: Ask, manner: Manner) -> None:
        """Write the request. It ends early where the answer came before the whole of the body and
        closed the connection, as a refusal does."""
        more = (("x-request-timeout-ms", str(int(manner.deadline_s * 1000))), *self.plan.headers)
        head = ask.head(more)
        if not manner.writes_for_s:
            wire.write((head, *ask.parts))
            return
        whole = head + b"".join(ask.parts)
        size = -(-len(whole) // 8)
        for start in range(0, len(whole), size):
            if reply.done.done() and not wire.is_open:
                return
            wire.write((whole[start : start + size],))
            await asyncio.sleep(manner.writes_for_s / 8)

    def _judge_http(self, ask: Ask, reply: Reply, record: Record) -> None:
        record.began_s = reply.began_at - self.started
        record.status = str(reply.status)
        if reply.first_at:
            record.first_s = reply.first_at - self.started - record.due_s
        body = bytes(reply.body)
        if reply.status == 200 and ask.is_stream and not reply.tail.endswith(b"data: [DONE]\n\n"):
            code = reply.tail.partition(b'"code":"')[2].partition(b'"')[0].decode()
            record.status = f"200 and then {code}"
            record.outcome = LATE if code == "deadline_exceeded" else FAILED
            return
        record.outcome = {200: OK, 503: REFUSED, 429: REFUSED, 504: LATE}.get(reply.status, FAILED)
        if reply.status == 503 and b"shutting down" in body:
            record.status = DRAINING
        if record.outcome == FAILED:
            record.status = f"{reply.status} {body[:200].decode(errors='replace')}"
        if record.outcome == OK and ask.key and self.solo:
            record.is_right = digest(ask, body, reply.head) == self.solo[ask.key]

    async def _over_grpc(self, ask: Ask, manner: Manner, record: Record) -> None:
        metadata = self.plan.headers
        leaves_after_s = manner.leaves_after_s
        record.sent_s = time.monotonic() - self.started
        code, body = await self._channels.call(
            ask.path, ask.parts[0], manner.deadline_s, PATIENCE_S, metadata, leaves_after_s
        )
        record.status = code
        record.outcome = {
            "OK": OK, "RESOURCE_EXHAUSTED": REFUSED, "UNAVAILABLE": REFUSED,
            "DEADLINE_EXCEEDED": LATE, "CANCELLED": UNANSWERED,
        }.get(code, UNANSWERED if code.startswith("lost: ") else FAILED)  # fmt: skip
        if record.outcome == OK and ask.key and self.solo:
            record.is_right = digest(ask, body) == self.solo[ask.key]


async def solo_answers(port: int, grpc_port: int, mix: str) -> dict[str, str]:
    """The digest of each request of the pool, asked one after the other."""
    plan = Plan(port, grpc_port, mix, 0, 0.0, fresh=0.0)
    load, found = Load(plan, {}), {}
    wires, channels = Pool(port), GrpcChannels(grpc_port)
    for ask in pool(mix):
        if ask.protocol == "grpc":
            code, body = await channels.call(ask.path, ask.parts[0], 120.0, PATIENCE_S)
            head, is_ok = b"", code == "OK"
        else:
            wire = await wires.get()
            reply = wire.begin(keeps_body=True, is_stream=ask.is_stream)
            async with asyncio.timeout(120.0 + PATIENCE_S):
                await load._send(wire, reply, ask, Manner(120.0))
                await reply.done
            wires.put(wire)
            body, head, is_ok = bytes(reply.body), reply.head, reply.status == 200
            code = str(reply.status)
        if not is_ok:
            raise RuntimeError(f"{ask.key} alone: {code} {body[:300]!r}")
        found[ask.key] = digest(ask, body, head)
    wires.close()
    await channels.close()
    return found


def loop_runner() -> asyncio.Runner:
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def main() -> None:
    plan = Plan.read(sys.stdin.read())
    if plan.core >= 0:
        os.sched_setaffinity(0, {plan.core})
    solo = json.loads(Path(plan.solo).read_text()) if plan.solo else {}
    draw(plan.mix, random.Random(0), "warm", 0.0)
    gc.collect()
    gc.freeze()
    gc.disable()  # its pauses would be lag; a run is short
    load = Load(plan, solo)
    cpu = time.process_time()
    with loop_runner() as runner:
        runner.run(load.run())
    found: dict[str, Any] = {
        "plan": asdict(plan),
        "cpu_s": round(time.process_time() - cpu, 2),
        "started": load.started,
        "records": [asdict(each) for each in load.records],
    }
    Path(plan.out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
