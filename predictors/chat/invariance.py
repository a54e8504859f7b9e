"""Decoding that other sequences never change by a bit: one width of decode steps, and the check
that a row's bits do not depend on its place in them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from predictors.chat.adapters.changes import SlotScales
from predictors.chat.choices import Choices, TokenChoice
from predictors.chat.decoder.state import SlotReset
from predictors.chat.rows import DecodeRows
from predictors.chat.runner import ChatRunner
from predictors.chat.sampling import GREEDY

log = logging.getLogger(__name__)


def fix_width(runner: ChatRunner) -> None:
    """Make answers independent of other requests: decode in the largest width only, or row by row
    where its rows differ in bits."""
    runner.packs = False  # how a prompt is cut must not depend on others either
    runner.decode_widths = runner.decode_widths[-1:]
    if not has_equal_rows(runner):
        log.warning("rows of a decode step differ in bits on this machine; decoding one by one")
        runner.decode_widths = (1,)


@torch.no_grad()
def has_equal_rows(runner: ChatRunner) -> bool:
    """True if a sequence gets the same bits on every row, beside any others.

    A matmul's kernel may treat its last rows differently. Call it before the first admission: it
    writes to pages.
    """
    # rows without an adapter are compared with those of the other pass
    slots = runner.adapter_slots
    mixed = [(), *(((slot, 1.0),) for slot in range(slots))]
    return _have_equal_bits(runner, [()]) and (not slots or _have_equal_bits(runner, mixed))


def _have_equal_bits(runner: ChatRunner, adapters: Sequence[SlotScales]) -> bool:
    """True if rows that have these adapters in turn give the same bits beside each other as
    alone."""
    token, limits = min(runner.vocab, 1000) - 1, runner.limits
    width = min(runner.decode_widths[-1], limits.slots, limits.num_pages)
    order = list(range(width))
    rows = DecodeRows(
        np.array([(slot, 0, 7 * slot, 0) for slot in order]).T,
        Choices.of([TokenChoice(slot, GREEDY, 0, 1) for slot in order], runner.vocab),
        [adapters[i % len(adapters)] for i in order],
    )
    runner.reset_slots([SlotReset(slot, [1 + slot], np.array([0])) for slot in order])
    for slot in order:
        runner.put_newest(slot, (token - slot) % (token + 1))
    whole = runner.step_logits(rows).clone()
    for turn in order[1:]:
        turned = runner.step_logits(rows.take(order[turn:] + order[:turn]))
        if not torch.equal(turned[:width].roll(turn, 0), whole[:width]):
            return False
    alone = torch.cat([runner.step_logits(rows.take([i]))[:1].clone() for i in order])
    return torch.equal(alone, whole[:width])
