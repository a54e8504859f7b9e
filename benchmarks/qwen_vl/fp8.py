"""Quality cost of fp8 weights: pictures of held-out scenes described by this engine with and
without them. Each description is read by rules and compared with its scene.

`python -m benchmarks.qwen_vl.fp8` writes `results/qwen_vl_fp8.json`. On a GPU the linears run the
product's fp8 kernels, elsewhere their reference in plain torch.
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
from tokenizers import Tokenizer

from benchmarks.common import paths
from benchmarks.common.run import write_json
from benchmarks.common.stats import (
    DIFFERENCE_METHOD,
    SHARE_METHOD,
    difference_interval,
    share_interval,
)
from benchmarks.qwen_vl.options import QwenVLOptions
from benchmarks.qwen_vl.ours import Ours
from checkpoints.training import drawing
from checkpoints.training.scenes import Scene, evaluation_scenes, parse_caption
from predictors.compute.device.placement import Placement, place
from predictors.settings import ComputeSettings

CHECKPOINT = paths.SHAPES_QWEN_VL
RESULTS = paths.RESULTS / "qwen_vl_fp8.json"
DESCRIBE = "Describe this picture."
SCENES_SEED = 2  # as `checkpoints.training.evaluate`
MAX_TOKENS = 120
GOAL_POINTS = -1.0
SLOTS = 32


def describe(images: Sequence[Image.Image], placement: Placement, precision: str) -> list[str]:
    """Greedy descriptions by the engine in `precision`, `SLOTS` at a time."""
    options = QwenVLOptions(
        folder=str(CHECKPOINT), device=str(placement.device), is_toy=True, slots=SLOTS
    )
    ours = Ours(
        options,
        QWEN_VL_MAX_CONTEXT="512",
        QWEN_VL_PRECISION=precision,
        COMPUTE_DTYPE=str(placement.dtype).removeprefix("torch."),
    )
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    texts = []
    for first in range(0, len(images), SLOTS):
        works = [
            ours.prepare(png(image), DESCRIBE, tokens=MAX_TOKENS, ignore_eos=False)
            for image in images[first : first + SLOTS]
        ]
        texts += [tokenizer.decode(job.tokens) for job in ours.answers(works)]
    ours.engine.close()
    return texts


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def compare(count: int, placement: Placement) -> dict[str, Any]:
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    placement = place(ComputeSettings(device=args.device, dtype=args.dtype))
    report = compare(args.count, placement)
    print(json.dumps(report, indent=1), flush=True)
    write_json(args.out, report)


if __name__ == "__main__":
    main()
