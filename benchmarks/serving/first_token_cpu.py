"""The CPU's share of a first token: milliseconds of every phase from the body of a chat to the work
that the engine takes, beside floors.

    python -m benchmarks.serving.first_token_cpu [--repeats 15] [--only "jpeg 1024x1024,text"]

Every phase runs on this thread, one after the other, as on a server with a GPU (the device resizes
and cuts pictures), with a new picture for every repeat. `through the workers` is the wall time of
all phases after `requests` with the real worker processes and threads between them. Floors are what
the library in question takes alone. CPU time is hardly moved by a busy machine; wall time is.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import socket
import statistics
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from isal import isal_zlib
from PIL import Image
from torchvision.io import decode_jpeg

from benchmarks.common import paths
from benchmarks.common.machine import machine
from benchmarks.common.run import write_json
from benchmarks.common.tables import columns
from benchmarks.qwen_vl.cases import Pictures, text, url
from predictors.__main__ import build
from predictors.chat.encoders import requests_of
from predictors.chat.inputs import ChatPreparer
from predictors.chat.predictor import ChatPredictor
from predictors.chat.request import ChatRequest
from predictors.chat.row_preparation import RowPreparation
from predictors.environment import from_env
from predictors.protocol.images.decode import Pixels
from predictors.protocol.openai.chat_body import ChatBody, decode_chat_body
from predictors.protocol.tasks import DECODE_PICTURE, decode_picture, make_workers
from predictors.workers.messages import WorkerConnection, serve_on
from predictors.workers.process import Outcome, Task

T = TypeVar("T")

CASES = ("jpeg 1024x1024", "png 1024x1024", "jpeg 448x448", "jpeg 2048x1536", "text")
WARM = 3
RESULT = paths.RESULTS / "first_token_cpu.json"
PACKAGES = ("pillow", "torch", "torchvision", "transformers", "isal")
SETTINGS = {
    "PREDICTORS_COMPUTE_DEVICE": "cpu",
    "PREDICTORS_COMPUTE_THREADS": "1",
    "PREDICTORS_QWEN_VL_MAX_CONTEXT": "8192",
}


@dataclass
class Times:
    """Wall and CPU milliseconds of each phase, in the order of their first appearance."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def of(self, phase: str, work: Callable[..., T], *arguments: Any) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work(*arguments)
        self.cpu.setdefault(phase, []).append(1e3 * (time.process_time() - cpu))
        self.wall.setdefault(phase, []).append(1e3 * (time.perf_counter() - wall))
        return result

    def medians(self) -> dict[str, dict[str, float]]:
        return {
            phase: {
                "cpu_ms": round(statistics.median(self.cpu[phase][WARM:]), 3),
                "wall_ms": round(statistics.median(self.wall[phase][WARM:]), 3),
            }
            for phase in self.wall
        }


@dataclass(frozen=True, slots=True)
class Sent:
    """A chat as it is sent, and the picture file in it, if there is one."""

    raw: bytes
    file: bytes = b""

    @classmethod
    def of(cls, case: str, number: int, pictures: Pictures | None) -> Sent:
        parts: list[dict[str, Any]] = [{"type": "text", "text": text(number)}]
        file = b""
        if pictures is not None:
            file = pictures.jpeg(number) if case.startswith("jpeg") else png(pictures, number)
            parts.insert(0, {"type": "image_url", "image_url": {"url": url(file)}})
        body = {"model": "chat", "max_tokens": 128, "temperature": 0, "stream": True}
        body["messages"] = [{"role": "user", "content": parts}]
        return cls(json.dumps(body).encode(), file)


def png(pictures: Pictures, number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pictures.pixels(number)).save(file, "PNG", compress_level=1)
    return file.getvalue()


class Room:
    """The codec and the preparer of the embedded checkpoint, as on a server with a GPU."""

    def __init__(self) -> None:
        self.settings = from_env(SETTINGS)
        predictor: Any = build("chat", paths.SHAPES_QWEN_VL, self.settings)
        assert isinstance(predictor, ChatPredictor)
        self.codec = predictor._codec
        model = predictor._engine._model
        given = (self.settings.qwen_vl, self.settings.images, lambda: 8192)
        self.preparer = ChatPreparer("chat", model, *given, on_device=True)
        self.patch_maker = model.pictures

    def request(self, body: ChatBody) -> ChatRequest:
        (request,) = requests_of(body, self.codec)
        return request


def step_by_step(room: Room, sent: Sequence[Sent]) -> Times:
    """All phases on this thread. The two ends of a socket stand for server and worker process."""
    times = Times()
    server, worker = map(WorkerConnection, socket.socketpair())
    with closing(server), closing(worker):
        for each in sent:
            body = times.of("parse", decode_chat_body, each.raw).accepted()
            request = times.of("requests", room.request, body)
            prepared = []
            for picture in request.pictures:
                digest = times.of("digest", picture.digest)
                arguments = (picture.raw, room.settings.images, picture.where, None)
                task = times.of("to the worker", passed, server, worker, arguments)
                pixels = times.of("decode", decode_picture, *task)
                found = times.of("from the worker", passed_back, worker, server, pixels)
                make = room.preparer.prepare_pixels
                prepared.append(times.of("prepare", make, picture, digest, found))
            times.of("assemble", room.preparer.assemble, request, prepared)
    return times


def passed(
    near: WorkerConnection, far: WorkerConnection, arguments: tuple[Any, ...]
) -> tuple[Any, ...]:
    near.send(Task(DECODE_PICTURE, arguments, is_large=False))
    task: Task = far.receive()
    serve_on(far)
    return task.arguments


def passed_back(near: WorkerConnection, far: WorkerConnection, pixels: Pixels) -> Pixels:
    near.send(Outcome(pixels))
    outcome: Outcome = far.receive()
    found: Pixels = outcome.value
    return found


def through_the_workers(room: Room, sent: Sequence[Sent]) -> Times:
    """Wall time of what follows `requests`, with processes and threads as in the server."""
    times = Times()
    requests = [room.request(decode_chat_body(each.raw).accepted()) for each in sent]
    workers = make_workers(room.settings.server)

    async def off_loop(work: Callable[..., T], *arguments: Any, is_large: bool = False) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)

    async def one(work: Awaitable[object]) -> None:
        began = time.perf_counter()
        await work
        times.wall.setdefault("through the workers", []).append(1e3 * (time.perf_counter() - began))

    async def every() -> None:
        rows = RowPreparation(room.preparer, room.settings.images, off_loop)
        for request in requests:
            await one(rows.prepare(request, workers))

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(every())
    workers.close()
    times.cpu = times.wall  # of other processes, which this one can't ask
    return times


def floors(case: str, sent: Sequence[Sent]) -> Times:
    """Of a picture: its base64, its compression and its pixels, each by the fastest at hand."""
    times = Times()
    for each in sent:
        coded = base64.b64encode(each.file)
        times.of("floor: base64", base64.b64decode, coded)
        if case.startswith("jpeg"):
            file = torch.frombuffer(bytearray(each.file), dtype=torch.uint8)
            picture = times.of("floor: libjpeg-turbo", decode_jpeg, file).permute(1, 2, 0)
            levels = picture.contiguous()
        else:
            levels = torch.from_numpy(np.asarray(Image.open(io.BytesIO(each.file))).copy())
            deflated = zlib.compress(levels.numpy().tobytes(), 1)
            times.of("floor: inflate (ISA-L)", isal_zlib.decompress, deflated)
        same, wide = torch.empty_like(levels), torch.empty(levels.shape)
        times.of("floor: copy of the pixels", same.copy_, levels)
        times.of("floor: pixels to float32", wide.copy_, levels)
    return times


def measure(room: Room, case: str, repeats: int) -> dict[str, dict[str, float]]:
    count = repeats + WARM
    pictures = None
    if case != "text":
        width, _, height = case.split()[1].partition("x")
        pictures = Pictures(int(width), int(height))
    first, second = (
        [Sent.of(case, base + i, pictures) for i in range(count)] for base in (0, count)
    )
    found = step_by_step(room, first).medians()
    whole = {
        key: round(sum(phase[key] for phase in found.values()), 3) for key in ("cpu_ms", "wall_ms")
    }
    found["all phases"] = whole
    if pictures is not None:
        found |= through_the_workers(room, second).medians()
        del found["through the workers"]["cpu_ms"]
        found |= floors(case, first).medians()
        found["file"] = {"bytes": statistics.median(len(each.file) for each in first)}
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--write", action="store_true", help=f"into {RESULT.name}")
    asked = parser.parse_args(arguments)
    room = Room()
    cases = {case: measure(room, case, asked.repeats) for case in asked.only.split(",")}
    for case, found in cases.items():
        rows = [(case, "CPU ms", "wall ms")]
        rows += [
            (phase, *(f"{one.get(key, float('nan')):.2f}" for key in ("cpu_ms", "wall_ms")))
            for phase, one in found.items()
            if phase != "file"
        ]
        print(f"\n{columns(rows)}")
    if asked.write:
        write_json(RESULT, {"machine": machine(PACKAGES), "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
