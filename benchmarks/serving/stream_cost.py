"""Cost of one streamed token in the server's event loop, beside an app that sends constants. The
figure is CPU time of the loop's thread (from /proc): the engine's thread and the client, which is
another process, are not in it.

    python -m benchmarks.serving.stream_cost [--rounds 4] [--label NAME] [--write]

The server is the real one with a scripted engine that gives each of 64 chats one token per step:
`paced` every 3.5 ms, `lockstep` once every stream has read the last token (nothing is coalesced),
`flood` without waiting. `bare` is uvicorn alone with one constant event per token as fast as it
can; `bare_paced` sends one to all streams every 3.5 ms, so that each write wakes a client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import paths
from benchmarks.common.server import running
from predictors.cli.child import free_ports

STREAMS, TOKENS, STEP_S = 64, 128, 0.0035
CHECKPOINT = paths.SHAPES_QWEN_VL
RESULT = paths.RESULTS / "stream_cost.json"
KINDS = ("bare", "bare_paced", "paced", "lockstep", "flood")


# -- the servers, each in a process of its own -----------------------------------------------------
class ScriptedChat:
    """An engine whose step is one token per chat; `kind` decides when the next step may come."""

    slots, spare_slots = STREAMS, 0

    def __init__(self, kind: str, tokens: Sequence[int]) -> None:
        self._kind = kind
        self._tokens = tokens
        self._made: dict[Any, int] = {}

    @property
    def busy(self) -> bool:
        return bool(self._made)

    @property
    def active(self) -> Sequence[Any]:
        return list(self._made)

    def load(self) -> None:
        pass

    def warm(self, progress: Any) -> None:
        pass

    def validate(self, work: Any) -> None:
        pass

    def admit(self, job: Any) -> bool:
        if len(self._made) == self.slots:
            return False
        self._made[job] = 0
        return True

    def step(self, jobs: Sequence[Any]) -> None:
        from predictors.chat.request import ChatDelta

        until = time.perf_counter() + STEP_S
        for job in jobs:
            made = self._made[job] = self._made[job] + 1
            token = self._tokens[made % len(self._tokens)]
            is_last = made >= job.work.max_tokens
            reason = "length" if is_last else None
            job.emit(ChatDelta((token,), job.work.num_prompt_tokens, made, finish_reason=reason))
            if is_last:
                del self._made[job]
                job.finish()
        if self._kind == "paced":
            time.sleep(max(0.0, until - time.perf_counter()))
        while self._kind == "lockstep" and any(job._chunks for job in jobs):
            time.sleep(0.0002)

    def evict(self, job: Any) -> None:
        self._made.pop(job, None)

    def describe(self) -> dict[str, object]:
        return {}

    def close(self) -> None:
        self._made.clear()


def serve_ours(port: int, kind: str) -> None:
    """The product with a scripted engine, until it is killed."""
    from tokenizers import Tokenizer

    from predictors.models.qwen2_5_vl.model import make_predictor
    from predictors.protocol.server import PredictorServer
    from predictors.serving.host import EngineHost
    from predictors.settings import Settings

    settings = Settings()
    settings = replace(settings, server=replace(settings.server, port=port, grpc_port=-1))
    model = make_predictor("qwen", CHECKPOINT, settings)
    text = "a large red circle to the left of a small blue square, and a green triangle above"
    tokens = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).encode(text).ids
    model.host = EngineHost("qwen", ScriptedChat(kind, tokens), settings.queue)
    PredictorServer([model], settings).run()


class Ticker:
    """Wakes all waiting tasks together, each `STEP_S`."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        if self._next is None or self._next.done():
            self._next = loop.create_future()
            loop.call_later(STEP_S, self._next.set_result, None)
        await self._next


def serve_bare(port: int, kind: str) -> None:
    """uvicorn alone, until it is killed."""
    import uvicorn

    event = b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk"}\n\n' % (b"x" * 180)

    wait = Ticker().wait if kind == "bare_paced" else partial(asyncio.sleep, 0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(TOKENS):
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await wait()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off")


# -- the client ------------------------------------------------------------------------------------
async def ask(port: int, body: bytes) -> bytes:
    """One request on a connection of its own; the whole response, head included."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: [::1]\r\ncontent-type: application/json\r\n"
    head += f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = bytearray()
    while part := await reader.read(2**18):
        answer += part
    writer.close()
    return bytes(answer)


def request_body(streams: bool = True) -> bytes:
    turns = [{"role": "user", "content": "where is the red circle?"}]
    body = {"model": "qwen", "messages": turns, "max_tokens": TOKENS, "stream": streams}
    return json.dumps(body | {"ignore_eos": True, "temperature": 0}).encode()


def loop_seconds(pid: int) -> float:
    """CPU seconds of the process's first thread, where the loop is."""
    fields = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


async def one_round(port: int, pid: int) -> dict[str, float]:
    """64 streams at once: rate, CPU per token, events per token."""
    cpu, started = loop_seconds(pid), time.perf_counter()
    answers = await asyncio.gather(*(ask(port, request_body()) for _ in range(STREAMS)))
    seconds, cpu = time.perf_counter() - started, loop_seconds(pid) - cpu
    if not all(b"[DONE]" in answer for answer in answers):
        raise RuntimeError(answers[0][:500].decode(errors="replace"))
    count, events = STREAMS * TOKENS, sum(answer.count(b"data: ") for answer in answers)
    return {
        "tokens_per_s": count / seconds,
        "loop_us_per_token": 1e6 * cpu / count,
        "events_per_token": events / count,
    }


def measure(kind: str, rounds: int) -> dict[str, float]:
    """The median round of a fresh server, the first one left out."""
    (port,) = free_ports(1)
    module = "benchmarks.serving.stream_cost"
    command = [sys.executable, "-m", module, "--serve", kind, "--port", str(port)]
    environment = {"OMP_NUM_THREADS": "1", "PREDICTORS_LOG_LEVEL": "WARNING"}
    log = paths.SCRATCH / f"stream-{kind}.log"
    with running(command, environment, port, log, "/v2/health/ready") as server:
        pid = server.process.pid
        found = [asyncio.run(one_round(port, pid)) for _ in range(rounds + 1)][1:]
    by_cost = sorted(found, key=lambda one: one["loop_us_per_token"])
    return {name: round(value, 2) for name, value in by_cost[len(by_cost) // 2].items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every kind and print a table; `--write` adds it to the results under its label."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--label", default="now")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve = serve_bare if args.serve.startswith("bare") else serve_ours
        serve(args.port, args.serve)
        return 0
    cases = {kind: measure(kind, args.rounds) for kind in KINDS}
    for kind, case in cases.items():
        print(f"{kind:10}", "  ".join(f"{name} {value:>9,.2f}" for name, value in case.items()))
    if args.write:
        written = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        machine = {"when": datetime.now(UTC).isoformat("T", "seconds"), "cpus": os.cpu_count()}
        written[args.label] = machine | {"python": platform.python_version(), "cases": cases}
        RESULT.write_text(json.dumps(written, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
