"""What fp8 weights cost in quality: pictures of held-out scenes described by this engine with and
without them, each description read by rule and compared, scene by scene. Knows no server.

`python -m benchmarks.qwen_vl.fp8` writes `results/qwen_vl_fp8.json`. On a GPU the linears are the
product's fp8 kernels, elsewhere their reference in plain torch. Nothing here imports KServe.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.common import paths
from benchmarks.flux.likeness import (
    DIFFERENCE_METHOD,
    SHARE_METHOD,
    difference_interval,
    share_interval,
)
from checkpoints.training import drawing
from checkpoints.training.scenes import Scene, evaluation_scenes, parse_caption
from predictors.chat.engine import ChatEngine
from predictors.chat.inputs import ChatPreparer
from predictors.chat.request import ChatDelta, ChatRequest, Message, Picture, Sampling
from predictors.compute.device.placement import Placement, place
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.serving.job import Job
from predictors.settings import ComputeSettings, ImageLimits, QwenVLSettings

CHECKPOINT = paths.SHAPES_QWEN_VL
RESULTS = paths.RESULTS / "qwen_vl_fp8.json"
DESCRIBE = "Describe this picture."
SCENES_SEED = 2  # as `checkpoints.training.evaluate`
MAX_TOKENS = 120
GOAL_POINTS = -1.0
GREEDY = Sampling(temperature=0.0)


class Collected(Job[Any, ChatDelta]):
    """A job that keeps its tokens."""

    def __init__(self, work: Any) -> None:
        super().__init__("fp8", work)
        self.tokens: list[int] = []

    def emit(self, chunk: ChatDelta) -> None:
        """On this, the only thread."""
        self.tokens += chunk.tokens
        super().emit(chunk)


def describe(images: Sequence[Image.Image], placement: Placement, precision: str) -> list[str]:
    """The descriptions by the engine in `precision`, as many at once as it has slots."""
    settings = QwenVLSettings(slots=32, max_context=512, precision=precision)
    model = Qwen25VLModel(CHECKPOINT)
    engine = ChatEngine(f"fp8-{precision}", model, settings, placement)
    limit, on_device = engine.max_context, placement.is_cuda
    inputs = ChatPreparer("fp8", model, settings, ImageLimits(), limit, on_device=on_device)
    engine.load()
    engine.warm(lambda *_: None)
    jobs = [Collected(inputs.prepare(asked(image))) for image in images]
    waiting = list(jobs)
    while waiting or engine.busy:
        while waiting and engine.admit(waiting[0]):
            waiting.pop(0)
        engine.step(engine.active)
    engine.close()
    return [model.tokenizer.decode(job.tokens, skip_special_tokens=True) for job in jobs]


def asked(image: Image.Image) -> ChatRequest:
    """For a description."""
    file = io.BytesIO()
    image.save(file, "PNG")
    message = Message("user", (Picture(file.getvalue()), DESCRIBE))
    return ChatRequest((message,), GREEDY, seed=0, max_tokens=MAX_TOKENS)


def compare(count: int, placement: Placement) -> dict[str, Any]:
    """Both ways over `count` scenes."""
    scenes = evaluation_scenes(count, seed=SCENES_SEED)
    images = drawing.draw(scenes, seed=SCENES_SEED)
    texts, seconds = {}, {}
    for precision in ("auto", "fp8"):
        started = time.perf_counter()
        texts[precision] = describe(images, placement, precision)
        seconds[precision] = round(time.perf_counter() - started, 1)
    right = {name: _right(found, scenes) for name, found in texts.items()}
    low, high = difference_interval(right["auto"], right["fp8"])
    return {
        "scenes": count,
        "device": _device(placement),
        "torch": torch.__version__,
        "precision": placement.precision,
        "shares": {name: _share(each) for name, each in right.items()},
        "difference_points": round(100 * (sum(right["fp8"]) - sum(right["auto"])) / count, 3),
        "difference_interval_95": [round(100 * low, 3), round(100 * high, 3)],
        "goal_points": GOAL_POINTS,
        "same_words": sum(a == b for a, b in zip(texts["auto"], texts["fp8"], strict=True)),
        "seconds": seconds,
        "methods": {"share": SHARE_METHOD, "difference": DIFFERENCE_METHOD},
    }


def _right(texts: Sequence[str], scenes: Sequence[Scene]) -> list[bool]:
    return [parse_caption(text) == scene for text, scene in zip(texts, scenes, strict=True)]


def _share(right: Sequence[bool]) -> dict[str, Any]:
    low, high = share_interval(sum(right), len(right))
    return {"right": sum(right), "interval_95": [round(low, 4), round(high, 4)]}


def _device(placement: Placement) -> str:
    if placement.is_cuda:
        return torch.cuda.get_device_name(placement.device)
    return platform.processor() or "cpu"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    placement = place(ComputeSettings(device=args.device, dtype=args.dtype))
    report = compare(args.count, placement)
    print(json.dumps(report, indent=1), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
