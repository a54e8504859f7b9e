"""The cost of FLUX's batch invariance on the CPU: one denoise forward of several pictures with
matmul and GELU row by row (as served), batched plainly (bits change with the neighbours), padded to
one fixed width, and picture by picture.

`python -m benchmarks.flux.width` prints one JSON object: milliseconds of processor time per forward
pass (median; processor time, because the machine may be shared) for 1, 2, 4 and 8 pictures.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.common import paths
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.modules import operations
from predictors.models.flux.modules.operations import Plain
from predictors.models.flux.modules.rotary import rotary_table
from predictors.models.flux.modules.transformer import EAGER, Shape, Transformer

CHECKPOINT = paths.SHAPES_FLUX
SLOTS = 8
WIDTHS = (1, 2, 4, 8)


def cases() -> dict[str, tuple[Shape, int, int, int]]:
    """By name: shape, text tokens, patches per side, repetitions."""
    small = read_checkpoint(CHECKPOINT)[0].shape
    large = Shape(
        num_double=1, num_single=1, num_heads=12, head_dim=128, in_channels=64, out_channels=64,
        text_dim=64, pooled_dim=64, has_guidance=True, rotary_axes=(16, 56, 56),
    )  # fmt: skip
    return {
        "shapes-flux, 128x128, 64 text tokens": (small, 64, 8, 15),
        "shapes-flux, 256x256, 64 text tokens": (small, 64, 16, 7),
        "1 + 1 blocks x 1536, 128x128, 64 text tokens": (large, 64, 8, 3),
    }


@contextmanager
def plainly() -> Iterator[None]:
    """Inside, whole batches go through every layer, as if `apart` did not exist."""
    served = operations.apart
    operations.apart = lambda layer, *inputs: layer(*inputs)
    try:
        yield
    finally:
        operations.apart = served


def policies(forward: Callable[[int], Tensor]) -> dict[str, Callable[[int], object]]:
    """Ways to compute a step of n pictures, where `forward` takes a number of rows."""

    def plain(n: int) -> Tensor:
        with plainly():
            return forward(n)

    return {
        "row by row where it matters": forward,
        "plain": plain,
        f"fixed width {SLOTS}": lambda _: plain(SLOTS),
        "picture by picture": lambda n: [forward(1) for _ in range(n)],
    }


def measure(shape: Shape, num_text: int, side: int, repeat: int) -> dict[str, dict[int, float]]:
    """Median milliseconds by policy and number of pictures."""
    torch.manual_seed(0)
    model = Transformer(shape).requires_grad_(False)
    latents = torch.randn(SLOTS, side * side, shape.in_channels)
    context = torch.randn(SLOTS, num_text, shape.dim)
    modulation = torch.randn(SLOTS, shape.modulation_dim)
    rotary = rotary_table(num_text, side, side, shape.rotary_axes)

    def forward(n: int) -> Tensor:
        velocity: Tensor = model(Plain(), EAGER, latents[:n], context[:n], modulation[:n], rotary)
        return velocity

    ways = policies(forward)
    times: dict[str, dict[int, list[float]]] = {w: {n: [] for n in WIDTHS} for w in ways}
    for turn in range(repeat + 1):  # alternating, so that a busy minute hits all alike
        for n in WIDTHS:
            for way, run in ways.items():
                started = time.process_time()
                run(n)
                if turn:
                    times[way][n].append((time.process_time() - started) * 1e3)
    return {
        way: {n: round(statistics.median(found), 1) for n, found in by_width.items()}
        for way, by_width in times.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = {name: measure(*case) for name, case in cases().items()}
    print(json.dumps({"torch": torch.__version__, "threads": 1, "ms_per_pass": found}, indent=1))


if __name__ == "__main__":
    main()
