"""The numbers of a decode step and of the choices after it, side by side in the memory that a GPU's
graphs read, so that one copy brings all of them.

Each copy is two operations of torch. Each of these releases the interpreter's lock, and the engine
thread may have to wait for a busy event loop to get it back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from predictors.chat.choices import NEUTRAL, NUM_PLAIN, Choices, choice_padding, put_widened
from predictors.chat.rows import DecodeRows
from predictors.compute.device.placement import Placement, staging_memory

ROW_INTS = 4
"""Rows of `DecodeRows.ints`."""
FLOAT_ROWS = 3
"""Rows of 64 bits that hold the choice's five rows of floats."""


class StepInputs:
    """Device memory for each width: ints (5, width) int64 and floats (5, width) fp32 of the
    choices, as `pack_choices` gives them, and ints (4, width) int64 of `DecodeRows`. Engine thread
    only."""

    def __init__(
        self, widths: Sequence[int], vocab: int, padding_slot: int, placement: Placement
    ) -> None:
        self._vocab = vocab
        self._padding_slot = padding_slot
        self._placement = placement
        size = NUM_PLAIN + FLOAT_ROWS + ROW_INTS
        with torch.inference_mode(False):  # may be written in either mode
            self._memory = {
                width: torch.zeros(size * width, dtype=torch.int64, device=placement.device)
                for width in widths
            }

    def choice(self, width: int) -> tuple[Tensor, Tensor]:
        """The memory of a choice's integers and floats."""
        ints, floats, _ = _parts(self._memory[width], width)
        return ints, floats

    def rows(self, width: int) -> Tensor:
        """The memory of a decode step's integers."""
        return _parts(self._memory[width], width)[2]

    def put(self, rows: DecodeRows, width: int) -> None:
        """Copy a step's numbers and those of its choice, with padding in the other rows."""
        host = staging_memory(self._memory[width].shape, torch.int64, self._placement)
        self._put_choices(host, rows.choices, width)
        placed = _parts(host, width)[2].numpy()
        put_widened(placed, rows.ints, (self._padding_slot, 0, 0, 0))
        self._memory[width].copy_(host, non_blocking=True)

    def _put_choices(self, host: Tensor, choices: Choices, width: int) -> None:
        ints, floats, _ = _parts(host, width)
        padding = choice_padding(self._vocab, self._padding_slot)
        put_widened(ints.numpy(), choices.ints[:NUM_PLAIN], padding)
        put_widened(floats.numpy(), choices.floats[:NUM_PLAIN], NEUTRAL[:NUM_PLAIN])


def _parts(memory: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A choice's integers and floats, and a step's integers, as views of `memory`."""
    ints, floats, rows = memory.view(-1, width).split((NUM_PLAIN, FLOAT_ROWS, ROW_INTS))
    as_floats = floats.view(-1).view(torch.float32)
    return ints, as_floats[: NUM_PLAIN * width].view(NUM_PLAIN, width), rows
