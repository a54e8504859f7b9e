"""Functions that run in worker processes: parsing of large bodies, decoding of pictures.

Workers import this module, so neither it nor its imports may load torch or gRPC. A `decode`
function takes the body's bytes first; for a small body it is called in the server's own process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from predictors.errors import InvalidRequest
from predictors.protocol.films.decode import FilmFacts, FilmFrames, decode_frames, probe_frames
from predictors.protocol.films.memory import frames_bytes, probing_bytes
from predictors.protocol.images.decode import Pixels, decode_mask, decode_pixels
from predictors.protocol.images.memory import decoding_bytes
from predictors.settings import FilmLimits, ImageLimits, ServerSettings
from predictors.workers.messages import SharedMemory
from predictors.workers.pool import Workers
from predictors.workers.process import memory_limit, silenced_libraries

T = TypeVar("T")

MODULES = (
    "predictors.protocol.tasks",
    "predictors.protocol.v2.wire_json",
    "predictors.protocol.v2.wire_proto",
    "predictors.protocol.openai.chat_body",
    "predictors.protocol.openai.responses_body",
    "predictors.protocol.openai.completions_body",
    "predictors.protocol.openai.tokens_body",
    "predictors.protocol.openai.images_body",
    "predictors.protocol.openai.edits_body",
    "predictors.protocol.anthropic.messages_body",
)
"""Modules that a worker imports; tasks are functions of these."""

RUN_DECODE = "predictors.protocol.tasks:run_decode"
DECODE_PICTURE = "predictors.protocol.tasks:decode_picture"
DECODE_MASK = "predictors.protocol.tasks:decode_mask_file"
PROBE_FILM = "predictors.protocol.tasks:probe_film"
DECODE_FILM = "predictors.protocol.tasks:decode_film"
PARSE_FACTOR = 8  # bytes of memory per byte of a body: 4 per character of a str, and copies
PARSE_BYTES = 2**20
DECODE_FACTOR = 2  # times the expected memory that decoding a picture may take
DECODE_SLACK_BYTES = 48 * 2**20  # beside that, for a decoder's code, tables and threads
MESSAGE_FACTOR = 3  # per byte of a protobuf message, whose fields are slices


def make_workers(settings: ServerSettings) -> Workers:
    """The worker processes of a server; they start with `start` or the first large request."""
    return Workers(
        MODULES,
        count=settings.workers,
        memory_bytes=settings.worker_memory_bytes,
        timeout_s=settings.worker_timeout_s,
    )


async def decode_large(
    workers: Workers,
    decode: Callable[..., T],
    raw: bytes | SharedMemory,
    *arguments: Any,
    factor: int = PARSE_FACTOR,
) -> T:
    """Call `decode(raw, *arguments)` in a worker process, which takes ownership of `raw`.

    Raises the exceptions of `decode` and of `Workers.run`.
    """
    size = raw.size if isinstance(raw, SharedMemory) else len(raw)
    name = f"{decode.__module__}:{decode.__name__}"
    memory_bytes = PARSE_BYTES + factor * size
    # not closed on cancellation: the task may be on its way to a worker, which then closes it
    value: T = await workers.run(RUN_DECODE, name, raw, arguments, memory_bytes=memory_bytes)
    if isinstance(raw, SharedMemory):
        raw.close()
    return value


def run_decode(name: str, raw: bytes | SharedMemory, arguments: Sequence[Any]) -> Any:
    """Call `name` (`module:function`) with the body's bytes. Runs in a worker."""
    module, _, function = name.partition(":")
    assert module in MODULES
    whole = raw.read() if isinstance(raw, SharedMemory) else raw
    return getattr(importlib.import_module(module), function)(whole, *arguments)


def decode_picture(raw: bytes, limits: ImageLimits, param: str, row: int | None) -> Pixels:
    """Decode an image file to RGB pixels in shared memory. Runs in a worker.

    A file whose data need far more memory than its header tells is refused.
    """
    return _decode_file(decode_pixels, raw, limits, param, row)


def decode_mask_file(raw: bytes, limits: ImageLimits, param: str, row: int | None) -> Pixels:
    """`decode_mask` of a file, as `decode_picture`. Runs in a worker."""
    return _decode_file(decode_mask, raw, limits, param, row)


def _decode_file(
    decode: Callable[..., Pixels], raw: bytes, limits: ImageLimits, param: str, row: int | None
) -> Pixels:
    expected = decoding_bytes(raw, limits.max_pixels)
    try:
        with memory_limit(DECODE_SLACK_BYTES + DECODE_FACTOR * expected), silenced_libraries():
            return decode(raw, limits, param=param, row=row, in_worker=True)
    except MemoryError as error:
        message = f"{param} takes more memory to decode than its header tells"
        raise InvalidRequest(message, param=param, row=row) from error


def probe_film(raw: bytes, limits: FilmLimits, param: str, row: int | None) -> FilmFacts:
    """`probe_frames` within limits of memory. Runs in a worker."""
    expected = probing_bytes(len(raw), limits.max_frame_pixels)
    with _film_limits(expected, param, row):
        return probe_frames(raw, limits, param=param, row=row)


def decode_film(
    raw: bytes,
    facts: FilmFacts,
    indices: Sequence[int],
    limits: FilmLimits,
    param: str,
    row: int | None,
) -> FilmFrames:
    """`decode_frames` within limits of memory. Runs in a worker."""
    with _film_limits(frames_bytes(facts, len(indices), len(raw)), param, row):
        return decode_frames(raw, indices, limits, param=param, row=row)


@contextmanager
def _film_limits(expected: int, param: str, row: int | None) -> Iterator[None]:
    # the library itself is no part of a film's memory
    with suppress(ImportError):
        importlib.import_module("av")
    try:
        with memory_limit(DECODE_SLACK_BYTES + DECODE_FACTOR * expected), silenced_libraries():
            yield
    except MemoryError as error:
        message = f"{param} takes more memory to decode than its header tells"
        raise InvalidRequest(message, param=param, row=row) from error
