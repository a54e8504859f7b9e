"""A demo picture by the bare engine: prepared and stepped in this process, without host, queue or
wire. It is the baseline of the same picture over HTTP.

`python -m benchmarks.serving.demo_job` loads and warms. For each line on standard input it draws a
picture and prints the seconds from the decoded request to the finished picture.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from benchmarks.common import paths

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `predictors serve` does

from predictors.__main__ import build
from predictors.diffusion.engine import DiffusionEngine
from predictors.diffusion.predictor import DiffusionPredictor
from predictors.diffusion.scheduling import DiffusionJob
from predictors.protocol.v2.values import Tensor, V2Request
from predictors.settings import Settings

CHECKPOINT = paths.SHAPES_FLUX
PROMPT = "a large red circle to the left of a small blue square on a white background"
SEED = 7


def request() -> V2Request:
    return V2Request(
        model="flux",
        id="1",
        inputs=(
            Tensor("prompt", "BYTES", (1,), (PROMPT.encode(),), text=True),
            Tensor("seed", "INT64", (1,), (SEED,)),
        ),
    )


def draw(predictor: DiffusionPredictor, engine: DiffusionEngine) -> float:
    """Seconds from a decoded request to its last chunk."""
    parameters = predictor.decode_v2(request())[0]
    started = time.perf_counter()
    job = DiffusionJob("bench", predictor.prepare(parameters))
    if not engine.admit(job):
        raise RuntimeError("the engine has no room for one job")
    while not job.done:
        engine.step(engine.active)
    if (failure := job.error) is not None:
        raise failure
    return time.perf_counter() - started


def main() -> None:
    predictor = build("flux", CHECKPOINT, Settings())
    assert isinstance(predictor, DiffusionPredictor)
    engine: Any = predictor.host._engine  # without the host's thread
    engine.load()
    engine.warm(lambda *_: None)
    draw(predictor, engine)  # caches are warm on both sides
    print("ready", flush=True)
    for _ in sys.stdin:
        print(draw(predictor, engine), flush=True)


if __name__ == "__main__":
    main()
