"""The first parts of the Qwen benchmark: the machine with the random checkpoint, and the best rates
of the card.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.common import ceilings as card
from benchmarks.common.clock import Clock
from benchmarks.common.machine import machine
from benchmarks.common.run import PartialResults
from benchmarks.qwen_vl import random_weights
from benchmarks.qwen_vl.options import QwenVLOptions

TOKENS = (1433, 5476)
"""A prompt with a picture of 1024x1024; the patches of that picture."""


def make(options: QwenVLOptions, results: PartialResults) -> None:
    """The machine, and the random checkpoint, which is made if it is not there."""
    device = torch.device(options.device)
    results.add("machine", machine(device=options.device))
    made = random_weights.make(Path(options.folder), options.config, device)
    results.add("checkpoint", made)


def ceilings(options: QwenVLOptions, results: PartialResults) -> None:
    """Matmul and copy, operations and bytes per second; a copy reads and writes."""
    clock = Clock(torch.device(options.device))
    dtype = torch.bfloat16 if clock.is_cuda else torch.float32
    found = card.measure(clock, dtype, 16, 128, () if options.is_toy else TOKENS)
    results.add("bf16", found.ceilings.bf16)
    results.add("fp8", found.ceilings.fp8)
    results.add("copy_bytes_per_s", found.copy_bytes_per_s)
    results.add("attention", {str(n): rate for n, rate in found.ceilings.attention.items()})
