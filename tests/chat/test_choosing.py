"""The choice as a GPU launches it: graphs per width, masks in the device's words, the kernels in
Triton's interpreter. Tokens and scores are those of the plain path.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from predictors.chat.choices import Choices, TokenChoice
from predictors.chat.choosing import TokenChooser
from predictors.chat.constraints import mask_of
from predictors.chat.decoder.passes import DecoderPasses
from predictors.chat.decoder.state import SlotState
from predictors.chat.limits import EngineLimits
from predictors.chat.logit_changes import TokenMasks, num_words
from predictors.chat.request import Controls, Sampling
from predictors.chat.rows import DecodeRows
from predictors.chat.sampling import ONE_PER_SAMPLER, SAMPLERS
from predictors.compute.device.graphs import Graphs
from predictors.compute.device.placement import Placement
from tests import triton_interpreter
from tests.chat.gpu_on_cpu import GpuOnCpu, without_pinned_memory

pytest.importorskip("predictors.chat.decoder.fused_tokens")
assert triton_interpreter

VOCAB, ROWS = 3000, 5
CPU = Placement(torch.device("cpu"), torch.float32, "off")
LIMITS = EngineLimits(8, 16, 100, 512, (1, 8), (16,), 1)
ASKED = (
    Controls(),
    Controls(logit_bias=((3, 9.0), (2999, 5.0)), min_tokens=9, logprobs=5),
    Controls(logprobs=0),
    Controls(min_tokens=3, stop_token_ids=frozenset([11])),
    Controls(),
)


def chooser(placement: Any) -> tuple[TokenChooser, Tensor]:
    """A chooser over slots with penalties, and the logits that its graphs read."""
    state = SlotState(9, 3, VOCAB, CPU.device)
    generator = torch.Generator().manual_seed(1)
    state.seen.copy_(torch.rand(state.seen.shape, generator=generator) < 0.3)
    state.counts.copy_(state.seen * 2.0)
    passes = object.__new__(DecoderPasses)  # it has no decoder
    passes._state = state
    passes.logits = torch.zeros(32, VOCAB)
    made = TokenChooser(passes, state, LIMITS, placement, Graphs("x", placement), [2500, 7])
    for each in made.warm_shapes():
        each.run()
    return made, passes.logits


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> tuple[TokenChooser, Tensor, TokenChooser]:
    without_pinned_memory(monkeypatch)
    return *chooser(GpuOnCpu()), chooser(CPU)[0]


@pytest.mark.parametrize("kind", ONE_PER_SAMPLER, ids=list(SAMPLERS))
def test_graphs_choose_and_score_what_the_plain_path_does(
    both: tuple[TokenChooser, Tensor, TokenChooser], kind: Sampling
) -> None:
    gpu, memory, cpu = both
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    memory[:ROWS] = logits
    kind = replace(kind, repetition_penalty=1.2)
    choices = [
        TokenChoice(i, replace(kind, min_p=0.05 * (i % 2)), i, 2, controls)
        for i, controls in enumerate(ASKED)
    ]
    chosen = []
    for each, given in ((gpu, memory), (cpu, logits)):
        for choice in choices:
            each.reset(choice.slot, choice.controls)
        masks = TokenMasks(each.masks(2), {0: 1, 3: 0})
        for row, first in zip(masks.words, (0, 1500), strict=True):
            allowed = mask_of(frozenset(range(first, first + 90)), num_words(VOCAB))
            row.copy_(torch.from_numpy(allowed))
        chosen.append(each.choose_controlled(given, Choices.of(choices, VOCAB), masks))
    ours, theirs = chosen
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert 1500 <= ours.tokens[0] < 1590
    assert ours.tokens[3] < 90
    assert ours.scores is not None
    assert theirs.scores is not None
    for row in (1, 2):
        assert torch.equal(ours.scores[0].result()[row], theirs.scores[0].result()[row])
        torch.testing.assert_close(ours.scores[1].result()[row], theirs.scores[1].result()[row])
    asked = Choices.of(choices, VOCAB)
    assert torch.equal(gpu.choose(memory, asked), cpu.choose(logits, asked))


@pytest.mark.parametrize("kind", ONE_PER_SAMPLER, ids=list(SAMPLERS))
def test_choices_that_came_with_their_step_choose_the_same(
    both: tuple[TokenChooser, Tensor, TokenChooser], kind: Sampling
) -> None:
    gpu, memory, cpu = both
    memory[:ROWS] = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(4)) * 3
    choices = Choices.of([TokenChoice(i, kind, i, 2) for i in range(ROWS)], VOCAB)
    gpu.inputs.put(DecodeRows(np.zeros((4, ROWS), np.int64), choices), 8)
    found = gpu.choose_placed(choices, 8)
    assert torch.equal(found, cpu.choose(memory[:ROWS].clone(), choices))


def test_a_pass_that_only_scores_takes_the_plain_sampler(
    both: tuple[TokenChooser, Tensor, TokenChooser], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, memory, _ = both
    memory[:2] = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(3))
    rows = [TokenChoice(i, ONE_PER_SAMPLER[0], 0, 0, ASKED[2 * i]) for i in range(2)]
    choices = Choices.of(rows, VOCAB)
    expected = gpu.choose(memory, choices)
    for name in [key for key in gpu._captured if key[0].startswith("controlled")]:
        monkeypatch.delitem(gpu._captured, name)
    found = gpu.choose_controlled(memory, choices, None)
    assert torch.equal(found.tokens, expected)
    assert found.scores is not None
