"""Time to answer a wrong request and to refuse one when the queue is full, while the engine is
drawing. Measured at the caller, on the demo's FLUX checkpoint with all slots and the whole queue
taken.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

import httpx

from benchmarks.common import paths
from predictors.cli.child import ServerProcess

CHECKPOINT = paths.SHAPES_FLUX
LOG = paths.SCRATCH / "refusals.log"
ROUTE = "/v2/models/flux/infer"
CAPACITY, SLOTS = 64, 4
ROUNDS = 20


def picture(rows: int, **parameters: object) -> dict[str, Any]:
    prompt = {
        "name": "prompt",
        "datatype": "BYTES",
        "shape": [rows],
        "data": ["a red circle"] * rows,
    }
    return {"inputs": [prompt], "parameters": parameters}


WRONG: tuple[dict[str, Any], ...] = (
    {},
    {"inputs": []},
    picture(1, width=17),
    picture(1, num_inference_steps=-1),
    picture(1, guidance_scale="high"),
    picture(1, no_such_parameter=1),
    picture(CAPACITY + 1),
    {"inputs": [{"name": "prompt", "datatype": "FP32", "shape": [1], "data": [1.5]}]},
    {"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["one"]}]},
)


async def timed(client: httpx.AsyncClient, body: dict[str, Any], statuses: set[int]) -> float:
    """Milliseconds to the answer. Raises `RuntimeError` if its status is not one of `statuses`."""
    started = time.perf_counter()
    response = await client.post(ROUTE, json=body)
    took = 1000 * (time.perf_counter() - started)
    if response.status_code not in statuses:
        raise RuntimeError(f"{response.status_code} for {str(body)[:200]}: {response.text[:200]}")
    return took


async def take(client: httpx.AsyncClient, rows: int) -> asyncio.Task[httpx.Response]:
    """Submit long jobs; returns while they run or wait."""
    body = picture(rows, num_inference_steps=100, width=512, height=512)
    task = asyncio.create_task(client.post(ROUTE, json=body))
    await asyncio.sleep(0.5)
    return task


async def under_load(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=120.0) as client:
        tasks = [await take(client, SLOTS), await take(client, CAPACITY - 1)]
        wrong = [await timed(client, body, {400}) for body in WRONG]
        tasks.append(await take(client, 1))
        full = [await timed(client, picture(1), {503}) for _ in range(ROUNDS)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {"refused_ms": spread(full), "wrong_ms": spread(wrong)}


def spread(took: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(took), "slowest": max(took)}


def measure() -> dict[str, Any]:
    with ServerProcess({"flux": CHECKPOINT}, LOG) as server:
        server.wait_ready(300.0, lambda what: None)
        return asyncio.run(under_load(server.url))
