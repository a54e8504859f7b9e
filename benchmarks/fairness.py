"""One caller beside another on one engine: times of a polite caller alone and beside a greedy one,
the shares of two equals, and goodput beyond capacity. Callers and engine share a process.

`python -m benchmarks.fairness --task qwen` and `--task flux` take the embedded checkpoints on any
device; `--full` takes random weights of full size, made on the device. `--http` takes the chat
model's server, with streaming clients in processes of their own at two addresses. Prints ratios and
writes JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import paths
from benchmarks.common.machine import machine
from benchmarks.common.run import rounded, write_json
from predictors.__main__ import build
from predictors.base import BasePredictor
from predictors.cli.bench.intervals import quantile
from predictors.errors import ServingError
from predictors.protocol.call import Call
from predictors.serving.job import Job
from predictors.settings import (
    ComputeSettings,
    FluxSettings,
    QueueSettings,
    QwenVLSettings,
    Settings,
)

RESULTS = paths.RESULTS / "fairness.json"
GREEDY = 100
"""Connections of the greedy caller."""
CAPACITY = 128
SETTLE_S = 3.0
HTTP_SETTLE_S = 5.0  # the clients' processes start, too
HTTP_S = 240.0
FULL_FLUX = {"sizes": "512x512", "default_size": "512x512", "tiers": "lossless,high"}

Predictor = BasePredictor[Any, Any, Any]
MakeRequest = Callable[[int], Any]


def chat_requests(tokens: int, text: str) -> MakeRequest:
    from predictors.chat.request import ChatRequest, Message, Sampling

    def make(number: int) -> ChatRequest:
        message = Message("user", (f"{number}: {text}",))
        return ChatRequest((message,), Sampling(0.0), seed=0, max_tokens=tokens, ignore_eos=True)

    return make


def picture_requests(predictor: Any, side: int, steps: int, tier: str) -> MakeRequest:
    from predictors.diffusion.request import ImageParameters

    asked = ImageParameters(
        "a red circle", width=side, height=side, num_inference_steps=steps, tier=tier or None
    )
    return lambda number: predictor._codec.limits.resolve(replace(asked, seed=number))


# -- models ----------------------------------------------------------------------------------------
def open_predictor(task: str, device: str, folder: Path, *, is_full: bool) -> Predictor:
    """Loaded and warm; `folder` keeps the random weights of full size."""
    compute = ComputeSettings(device=device)
    queue = QueueSettings(capacity=CAPACITY, default_timeout_s=0.0)
    settings = Settings(
        queue=queue,
        compute=compute,
        flux=FluxSettings(
            **(FULL_FLUX if is_full else {"sizes": "64x64", "default_size": "64x64"})
        ),
        qwen_vl=QwenVLSettings(),
    )
    if not is_full:
        checkpoint = paths.SHAPES_QWEN_VL if task == "qwen" else paths.SHAPES_FLUX
        return build(task, checkpoint, settings)
    if task == "qwen":
        from benchmarks.qwen_vl import random_weights as chat_weights
        from benchmarks.qwen_vl.sizes import THREE

        chat_weights.make(folder, THREE.full, torch.device(device))
        return build(task, folder, settings)
    from benchmarks.flux import random_weights
    from predictors.diffusion.predictor import DiffusionPredictor
    from predictors.models.flux.model import FluxModel

    made = random_weights.write_folder(folder, random_weights.FULL)
    models = random_weights.make(made, torch.device(device), torch.bfloat16)
    return DiffusionPredictor(task, FluxModel(models.folder, models.opened), settings)


class Charged:
    """Engine seconds by caller: the sum of all that `Job.charge` was told."""

    def __init__(self) -> None:
        self.by_caller: defaultdict[str, float] = defaultdict(float)
        charge = Job.charge

        def counted(job: Any, seconds: float) -> None:
            self.by_caller[job.caller.name] += seconds
            charge(job, seconds)

        Job.charge = counted  # type: ignore[method-assign]


# -- callers ---------------------------------------------------------------------------------------
class Caller:
    """Closed loops of one caller."""

    def __init__(self, predictor: Predictor, name: str, make: MakeRequest) -> None:
        self.seconds: list[float] = []
        self.refused = 0
        self._predictor, self._name, self._make = predictor, name, make
        self._number = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def one(self, timeout_s: float | None = None) -> bool:
        """One request; True if it was answered."""
        call = Call({}, protocol="v2_rest")
        call.caller = self._name
        self._number += 1
        started = time.monotonic()
        if timeout_s is not None:
            call.deadline = started + timeout_s
        try:
            await self._predictor.run([self._make(self._number)], call)
        except ServingError:
            self.refused += 1
            return False
        self.seconds.append(time.monotonic() - started)
        return True

    async def _loop(self) -> None:
        while True:
            if not await self.one():
                await asyncio.sleep(0.05)

    def start(self, connections: int) -> None:
        self._tasks = [asyncio.create_task(self._loop()) for _ in range(connections)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def in_turn(predictor: Predictor, make: MakeRequest, seconds: float) -> list[float]:
    """The times of one polite caller's requests, one after the other."""
    polite = Caller(predictor, "polite", make)
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(polite.seconds) < 3:
        if not await polite.one():
            await asyncio.sleep(0.05)
    return polite.seconds


async def beside(
    predictor: Predictor, mine: MakeRequest, greedy: MakeRequest, seconds: float
) -> dict[str, Any]:
    """The polite caller alone, then beside a hundred connections of a greedy one."""
    await in_turn(predictor, mine, 1.0)
    alone = await in_turn(predictor, mine, seconds / 2)
    crowd = Caller(predictor, "greedy", greedy)
    crowd.start(GREEDY)
    await asyncio.sleep(SETTLE_S)
    before, started = len(crowd.seconds), time.monotonic()
    crowded = await in_turn(predictor, mine, seconds)
    took = time.monotonic() - started
    answered = len(crowd.seconds) - before
    await crowd.stop()
    found = {"alone": spread(alone), "beside": spread(crowded), "greedy_per_s": answered / took}
    return found | {"p95_ratio": found["beside"]["p95"] / found["alone"]["p95"]}


async def shares(
    predictor: Predictor, charged: Charged, one: MakeRequest, two: MakeRequest, seconds: float
) -> dict[str, Any]:
    """The engine seconds of two callers of a hundred connections each."""
    callers = [Caller(predictor, "one", one), Caller(predictor, "two", two)]
    for caller in callers:
        caller.start(GREEDY)
    await asyncio.sleep(SETTLE_S)
    before = [charged.by_caller[name] for name in ("one", "two")]
    await asyncio.sleep(seconds)
    used = [charged.by_caller[n] - b for n, b in zip(("one", "two"), before, strict=True)]
    for caller in callers:
        await caller.stop()
    return {"engine_s": used, "least_share": min(used) / sum(used), "charged": sum(used) / seconds}


async def goodput(predictor: Predictor, make: MakeRequest, seconds: float) -> dict[str, Any]:
    """Answers per second of closed loops, then of arrivals at 1 and 3 times that rate, answered
    within five times the time of a full engine."""
    crowd = Caller(predictor, "all", make)
    crowd.start(GREEDY)
    await asyncio.sleep(SETTLE_S)
    before = len(crowd.seconds)
    await asyncio.sleep(seconds)
    capacity = (len(crowd.seconds) - before) / seconds
    full_s = quantile(crowd.seconds[before:], 0.5) or 1.0
    await crowd.stop()
    found: dict[str, Any] = {"capacity_per_s": capacity}
    for factor in (1.0, 3.0):
        open_loop = Caller(predictor, "all", make)
        tasks, end = [], time.monotonic() + seconds
        due = time.monotonic()
        while due < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(open_loop.one(5 * full_s)))
            due += 1 / (capacity * factor)
        rate = len(open_loop.seconds) / seconds
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        found[f"at {factor:g}"] = {"good_per_s": rate, "refused": open_loop.refused}
    return found


# -- over HTTP -------------------------------------------------------------------------------------
def over_http(checkpoint: Path, *, is_full: bool) -> dict[str, Any]:
    """Times of streamed answers of a polite client, alone and beside a hundred greedy ones."""
    from benchmarks.common import server as servers
    from benchmarks.qwen_vl import client
    from benchmarks.qwen_vl.answers import Answered
    from benchmarks.qwen_vl.cases import Case
    from predictors.cli.child import free_ports

    tokens = 128 if is_full else 16
    polite = Case(1, "text", 24 if is_full else 6, tokens)
    greedy = Case(GREEDY, "text", 2400 if is_full else 200, tokens)
    (port,) = free_ports(1)
    command, env = servers.ours(port, checkpoint, {"QUEUE_CAPACITY": str(CAPACITY)})
    log = paths.SCRATCH / "fairness.log"
    found: dict[str, Any] = {}

    def ask(case: Case, first: int, source: str) -> list[Answered]:
        return client.measure(case, port, servers.MODEL, first, HTTP_S, source)

    def times(answers: list[Answered]) -> dict[str, Any]:
        good = [each for each in answers if each.error is None]
        tpot = [each.tpot_ms for each in good if each.tpot_ms is not None]
        return {
            **spread([each.ended - each.sent for each in good]),
            "ttft_ms_p50": quantile([each.ttft_ms for each in good], 0.5),
            "ms_per_token_p50": quantile(tpot, 0.5),
        }

    with servers.running(command, env, port, log, "/v2/health/ready"):
        ask(Case(8, "text", 16, tokens), 10**6, "127.0.0.2")
        found["alone"] = times(ask(polite, 2 * 10**6, "127.0.0.2"))
        with ThreadPoolExecutor(1) as pool:
            crowd = pool.submit(ask, greedy, 3 * 10**6, "127.0.0.1")
            # part of the case: the greedy caller was there before
            time.sleep(HTTP_SETTLE_S if is_full else SETTLE_S)
            answers = ask(polite, 4 * 10**6, "127.0.0.2")
            is_beside = not crowd.done()
            all_of_it = crowd.result()
    found["beside"] = times(answers)
    good = [each for each in all_of_it if each.error is None]
    took = max(each.ended for each in good) - min(each.sent for each in good)
    found["greedy"] = {**times(all_of_it), "per_s": len(good) / took}
    found["was beside to its end"] = is_beside
    found["p95_ratio"] = found["beside"]["p95"] / found["alone"]["p95"]
    return found


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    found = {f"p{int(share * 100)}": quantile(seconds, share) for share in (0.5, 0.95)}
    return {"requests": len(seconds), **found}


# -- the run ---------------------------------------------------------------------------------------
async def measure(
    task: str, predictor: Predictor, charged: Charged, seconds: float, *, is_full: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def part(name: str, work: Any) -> None:
        found[name] = await work
        print(f"{task} {name}: {json.dumps(rounded(found[name]))}", flush=True)

    if task == "qwen":
        short = chat_requests(64 if is_full else 16, "what is in this? " * 4)
        long = chat_requests(256 if is_full else 48, "tell me all of it. " * 4)
        reading = chat_requests(8, "a long story, word by word. " * (150 if is_full else 10))
        await part("beside equals", beside(predictor, short, short, seconds))
        await part("beside long answers", beside(predictor, short, long, seconds))
        await part("beside long prompts", beside(predictor, short, reading, seconds))
        await part("shares", shares(predictor, charged, short, short, seconds))
        await part("shares of unlike", shares(predictor, charged, short, reading, seconds))
        await part("goodput", goodput(predictor, short, seconds))
    else:
        side = 512 if is_full else 64
        for tier in ("lossless", "high") if is_full else ("",):
            brief = picture_requests(predictor, side, 8, tier)
            many = picture_requests(predictor, side, 50, tier)
            await part(f"beside equals {tier}", beside(predictor, brief, brief, seconds))
            await part(f"beside many steps {tier}", beside(predictor, brief, many, seconds))
            await part(f"shares {tier}", shares(predictor, charged, brief, many, seconds))
    state = predictor.host.describe()
    found["after ready"] = {
        name: state.get(f"{name}_after_ready") for name in ("recompilations", "captures")
    }
    if torch.cuda.is_available():
        found["after ready"]["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print(f"{task} after ready: {found['after ready']}", flush=True)
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--task", choices=("qwen", "flux"), default="qwen")
    parser.add_argument("--full", action="store_true", help="random weights of full size")
    parser.add_argument("--http", action="store_true", help="through the chat model's server")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/fairness"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    folder = asked.folder / asked.task
    size = "full" if asked.full else "embedded"
    if asked.http:
        found = over_http(folder if asked.full else paths.SHAPES_QWEN_VL, is_full=asked.full)
        print(f"qwen http: {json.dumps(rounded(found))}", flush=True)
        keep(asked.out, f"qwen http {size}", found, asked.device)
        return
    charged = Charged()
    predictor = open_predictor(asked.task, asked.device, folder, is_full=asked.full)
    predictor.load()
    try:
        measured = measure(asked.task, predictor, charged, asked.seconds, is_full=asked.full)
        found = asyncio.run(measured)
    finally:
        predictor.stop()
    keep(asked.out, f"{asked.task} {size}", found, asked.device)


def keep(out: Path, name: str, found: dict[str, Any], device: str) -> None:
    """Add the figures to the file."""
    kept = json.loads(out.read_text()) if out.exists() else {}
    kept[name] = {"machine": machine(device=device), **rounded(found)}
    write_json(out, kept)


if __name__ == "__main__":
    main(sys.argv[1:])
