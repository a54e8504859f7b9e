"""What the other parts stand on: the checkpoint, the machine's name, its best rates. Knows no
engine and no peer.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.common import ceilings as flux_ceilings
from benchmarks.common.clock import Clock
from benchmarks.common.run import Notes, Options
from benchmarks.flux import report as flux_report
from benchmarks.qwen_vl import random_weights as qwen_vl_random

TOKENS = (1433, 5476)
"""A prompt with a picture of 1024x1024; the patches of that picture."""


def make(options: Options, notes: Notes) -> None:
    """The random checkpoint, where it is not there yet."""
    device = torch.device(options.device)
    notes.tell("machine", flux_report.machine(device))
    changes = qwen_vl_random.TOY if options.is_toy else qwen_vl_random.FULL
    notes.tell("checkpoint", qwen_vl_random.make(Path(options.folder), changes, device))


def ceilings(options: Options, notes: Notes) -> None:
    """Matmul and copy, operations and bytes per second; a copy reads and writes."""
    clock = Clock(torch.device(options.device))
    dtype = torch.bfloat16 if clock.is_cuda else torch.float32
    found = flux_ceilings.measure(clock, dtype, 16, 128, () if options.is_toy else TOKENS)
    notes.tell("bf16", found.ceilings.bf16)
    notes.tell("fp8", found.ceilings.fp8)
    notes.tell("copy_bytes_per_s", found.copy_bytes_per_s)
    notes.tell("attention", {str(n): rate for n, rate in found.ceilings.attention.items()})
