"""A mixed pass against a decode step and a pass over prompts, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from predictors.chat.choices import TokenChoice
from predictors.chat.decoder.decoder import Decoder, DecoderShape
from predictors.chat.decoder.passes import DecoderPasses
from predictors.chat.decoder.state import SlotState
from predictors.chat.limits import EngineLimits
from predictors.chat.rows import PromptPart, pack_prompts
from predictors.chat.sampling import GREEDY
from tests.chat.decoder.test_fused import OPTIONS, SHAPE, assert_near, fused
from tests.chat.gpu_on_cpu import GpuOnCpu

PAGE, PAGES, SLOTS, WIDTH = 16, 4, 5, 64
LIMITS = EngineLimits(SLOTS, PAGE, SLOTS * PAGES, PAGE * PAGES, (2,), (WIDTH,), 0, (WIDTH,))
STEP = torch.tensor([[4, 1], [37, 0], [20, 0], [3, 0]])
"""Slot, tokens in the cache, rotary position and number of two rows that decode."""


def passes_of(shape: DecoderShape) -> tuple[DecoderPasses, SlotState]:
    """Passes with random weights and pages, alike at each call."""
    torch.manual_seed(4)
    decoder = Decoder(shape).requires_grad_(False)
    for name, weight in decoder.named_parameters():
        if "norm" in name:
            weight.copy_(1 + 0.3 * torch.randn(weight.shape))
    placement: Any = GpuOnCpu()
    state = SlotState(SLOTS, PAGES, shape.vocab, placement.device)
    state.tables[:SLOTS] = 1 + torch.randperm(SLOTS * PAGES).view(SLOTS, PAGES)
    state.feed.copy_(torch.randint(0, shape.vocab, state.feed.shape))
    passes = DecoderPasses(decoder, state, LIMITS, placement)
    for cache in passes.caches:
        cache.copy_(torch.randn(cache.shape))
    return passes, state


def parts_of(state: SlotState) -> list[PromptPart]:
    """A prompt's end, another's middle and a short one whole."""
    random = np.random.default_rng(5)
    parts = []
    for slot, start, count, ends in ((2, 21, 17, True), (0, 16, 16, False), (3, 0, 1, True)):
        choice = TokenChoice(slot, GREEDY, 0, 0) if ends else None
        positions = random.integers(0, 60, (3, count))
        pages = state.tables[slot].tolist()
        tokens = random.integers(0, 200, count)
        parts.append(PromptPart(slot, start, tokens, positions, pages, (), choice))
    return parts


@pytest.mark.parametrize("shape", [SHAPE, OPTIONS], ids=["bias", "norms and DeepStack"])
def test_a_mixed_pass_gives_the_logits_and_the_pages_of_two_passes(
    shape: DecoderShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "is_available", lambda: False)  # of kernels for Hopper
    made = {}
    for kind in ("mixed", "apart"):
        passes, state = passes_of(shape)
        decoder: Decoder = passes._decoder
        ints, _ = pack_prompts(parts_of(state), WIDTH, PAGE, state.padding)
        embedded = decoder.embedding(ints[:WIDTH])
        torch.manual_seed(6)
        size = (shape.deepstack, WIDTH, shape.hidden)
        deepstack = torch.randn(size) if shape.deepstack else None
        if kind == "mixed":
            logits = passes.fused_mixed(STEP, embedded, ints, deepstack).clone()
            rows, ended = logits[:2], logits[2:4]
        else:
            rows = passes.fused_step(STEP).clone()
            ended = passes.fused_prompt(embedded, ints, deepstack)[:2].clone()
        assert not passes._scratch.arrivals.any()
        real = [cache[:, 1:].clone() for cache in passes.caches]  # the first is padding's
        made[kind] = [rows, ended, *real, state.seen, state.counts, state.counted]
    for ours, theirs in zip(made["mixed"], made["apart"], strict=True):
        near(ours, theirs)


def near(found: Tensor, expected: Tensor) -> None:
    if found.is_floating_point():
        assert_near(found, expected.double())
    else:
        assert torch.equal(found, expected)
