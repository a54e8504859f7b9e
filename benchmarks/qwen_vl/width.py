"""The cost of batch invariance on the CPU: a decode step at one fixed width, at the smallest width
that fits, and row by row.

`python -m benchmarks.qwen_vl.width` prints one JSON object: milliseconds of processor time per
decode step (median; processor time, because the machine may be shared) for 1, 2, 4 and 8 live
sequences.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.common import paths
from predictors.chat.choices import Choices, TokenChoice
from predictors.chat.decoder.decoder import Decoder, DecoderShape
from predictors.chat.decoder.rotary import axes_in_blocks, inverse_frequencies
from predictors.chat.decoder.state import SlotReset
from predictors.chat.limits import EngineLimits
from predictors.chat.request import Sampling
from predictors.chat.rows import DecodeRows
from predictors.chat.runner import ChatRunner
from predictors.compute.device.graphs import Graphs
from predictors.compute.device.placement import Placement
from predictors.models.qwen2_5_vl.config import read_shapes

CHECKPOINT = paths.SHAPES_QWEN_VL
PLACEMENT = Placement(torch.device("cpu"), torch.float32, "off")
SLOTS, CONTEXT, PAGE = 8, 256, 16
POLICIES = {"fixed width 8": (8,), "smallest width": (1, 2, 4, 8), "row by row": (1,)}


def shapes() -> dict[str, tuple[DecoderShape, int]]:
    """Decoders by name, with the number of repetitions: the demo's, and two layers of the 3B."""
    _, small, _ = read_shapes(CHECKPOINT)
    large = DecoderShape(
        vocab=8192, hidden=2048, mlp=11008, layers=2, heads=16, kv_heads=2, head_dim=128,
        eps=1e-6, frequencies=tuple(inverse_frequencies(128, 1e6).tolist()),
        axes=axes_in_blocks((16, 24, 24)), rope_scale=1.0, tied=True, max_positions=32768,
    )  # fmt: skip
    return {"shapes-qwen-vl, 3 layers x 128": (small, 200), "3B, 2 layers x 2048": (large, 15)}


def runner_of(text: DecoderShape, widths: tuple[int, ...]) -> ChatRunner:
    pages = SLOTS * CONTEXT // PAGE
    limits = EngineLimits(SLOTS, PAGE, pages, CONTEXT, widths, (CONTEXT,))
    decoder = Decoder(text).requires_grad_(False)
    runner = ChatRunner(decoder, limits, PLACEMENT, Graphs("width", PLACEMENT))
    prompt = np.array([1, 2, 3])
    runner.reset_slots([SlotReset(slot, pages_of(slot), prompt) for slot in range(SLOTS)])
    return runner


def pages_of(slot: int) -> list[int]:
    each = CONTEXT // PAGE
    return list(range(1 + slot * each, 1 + (slot + 1) * each))


def step(runner: ChatRunner, live: int) -> None:
    """One token for `live` sequences of 100 tokens, as the engine does it."""
    greedy = Sampling(temperature=0.0)
    slots = range(live)
    choices = [TokenChoice(slot, greedy, 0, 1) for slot in slots]
    ints = np.array([(slot, 100, 100, 0) for slot in slots]).T
    rows = DecodeRows(ints, Choices.of(choices, runner.vocab))
    width = runner.decode_widths[-1]
    groups = [rows.take(slots[first : first + width]) for first in range(0, live, width)]
    runner.copy(torch.cat([runner.decode(group) for group in groups])).result()


def processor_ms(work: Callable[[], None], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        started = time.process_time()
        work()
        times.append((time.process_time() - started) * 1e3)
    return round(statistics.median(times), 3)


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[int, float]]] = {}
    for name, (text, repeat) in shapes().items():
        found[name] = {}
        for policy, widths in POLICIES.items():
            runner = runner_of(text, widths)
            step(runner, SLOTS)
            found[name][policy] = {
                live: processor_ms(lambda r=runner, n=live: step(r, n), repeat)  # type: ignore[misc]
                for live in (1, 2, 4, 8)
            }
    print(json.dumps({"torch": torch.__version__, "threads": 1, "ms_per_step": found}, indent=1))


if __name__ == "__main__":
    main()
