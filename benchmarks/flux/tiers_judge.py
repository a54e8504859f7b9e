"""Judges drawings by rules, in one process per core. Imported by those processes, so it imports
little.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType

from PIL import Image

from benchmarks.flux.likeness import Pixels
from checkpoints.training import checker
from checkpoints.training.scenes import Scene

SHARE = 16  # pictures per errand: 0.25 s of a core


def judge(pictures: Sequence[Pixels], scenes: Sequence[Scene]) -> list[bool]:
    """For each picture, True if its scene is read in it: ground, sizes, colours, kinds, places."""
    found = [checker.read(Image.fromarray(picture)) for picture in pictures]
    return [read == scene for read, scene in zip(found, scenes, strict=True)]


class Verdicts:
    def __init__(self, parts: Sequence[Future[list[bool]]]) -> None:
        self._parts = parts

    def wait(self) -> list[bool]:
        """One per picture, in order."""
        return [is_right for part in self._parts for is_right in part.result()]


class Judges:
    """Worker processes, spawned: a forked one would break the CUDA context."""

    def __init__(self, workers: int = 0) -> None:
        self._pool = ProcessPoolExecutor(
            workers or len(os.sched_getaffinity(0)), get_context("spawn")
        )
        self._pool.submit(int)  # they import while the engine loads

    def __enter__(self) -> Judges:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, pictures: Sequence[Pixels], scenes: Sequence[Scene]) -> Verdicts:
        """Returns at once."""
        shares = (slice(i, i + SHARE) for i in range(0, len(pictures), SHARE))
        return Verdicts(
            [self._pool.submit(judge, pictures[share], scenes[share]) for share in shares]
        )
