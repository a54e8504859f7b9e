"""The numbers of a decode step and of the choices after it, side by side in the memory that a GPU's
graphs read, so that one copy brings all of them.

A step is two operations of torch, and the rest is numpy: each of torch's operations, views
included, releases the interpreter's lock, and the engine thread may have to wait for a busy event
loop to get it back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from predictors.chat.choices import NEUTRAL, NUM_PLAIN, choice_padding, put_widened
from predictors.chat.rows import DecodeRows
from predictors.compute.device.placement import Placement, staging_memory

FLOAT_ROWS = 3
"""Rows of 64 bits that hold the choice's five rows of floats."""
ROW_INTS = 4
"""Rows of `DecodeRows.ints`."""
NUM_ROWS = NUM_PLAIN + FLOAT_ROWS + ROW_INTS
CHOICE = slice(NUM_PLAIN)
FLOATS = slice(NUM_PLAIN, NUM_PLAIN + FLOAT_ROWS)
ROWS = slice(NUM_PLAIN + FLOAT_ROWS, NUM_ROWS)


class StepInputs:
    """Device memory for each width: ints (5, width) int64 and floats (5, width) fp32 of the
    choices, as `pack_choices` gives them, and ints (4, width) int64 of `DecodeRows`. Engine thread
    only."""

    def __init__(
        self, widths: Sequence[int], vocab: int, padding_slot: int, placement: Placement
    ) -> None:
        self._placement = placement
        self._choice_padding = choice_padding(vocab, padding_slot)
        self._row_padding = (padding_slot, 0, 0, 0)
        with torch.inference_mode(False):  # may be written in either mode
            self._memory = {
                width: torch.zeros((NUM_ROWS, width), dtype=torch.int64, device=placement.device)
                for width in widths
            }

    def choice(self, width: int) -> tuple[Tensor, Tensor]:
        """The memory of a choice's integers and floats."""
        memory = self._memory[width]
        floats = memory[FLOATS].view(-1).view(torch.float32)
        return memory[CHOICE], floats[: NUM_PLAIN * width].view(NUM_PLAIN, width)

    def rows(self, width: int) -> Tensor:
        """The memory of a decode step's integers."""
        return self._memory[width][ROWS]

    def put(self, rows: DecodeRows, width: int) -> None:
        """Copy a step's numbers and those of its choice, with padding in the other rows."""
        # new memory at each step: torch gives it out again only once the copy from it has run
        host = staging_memory((NUM_ROWS, width), torch.int64, self._placement)
        numbers, choices = host.numpy(), rows.choices
        floats = numbers[FLOATS].ravel().view(np.float32)[: NUM_PLAIN * width]
        put_widened(numbers[CHOICE], choices.ints[:NUM_PLAIN], self._choice_padding)
        put_widened(
            floats.reshape(NUM_PLAIN, width), choices.floats[:NUM_PLAIN], NEUTRAL[:NUM_PLAIN]
        )
        put_widened(numbers[ROWS], rows.ints, self._row_padding)
        self._memory[width].copy_(host, non_blocking=True)
