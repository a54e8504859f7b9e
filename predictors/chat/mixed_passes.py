"""Passes on a GPU over parts of prompts and rows that decode together, so that the weights are read
once for both. Each is one CUDA graph for its width of prompts, beside as many rows as the widest
decode step has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from predictors.chat.choosing import PassChoice, TokenChooser
from predictors.chat.decoder.decoder import Decoder
from predictors.chat.decoder.passes import DecoderPasses, num_prompt_ints
from predictors.chat.limits import EngineLimits
from predictors.chat.logit_changes import MaskSource
from predictors.chat.promised import PassKind, PromisedPass
from predictors.chat.rows import (
    DecodeRows,
    PromptPart,
    choices_of,
    pack_prompts,
    replay_prompts,
    warm_part,
    warm_rows,
)
from predictors.chat.sampling import GREEDY
from predictors.compute.device.graphs import Captured, Graphs
from predictors.compute.device.placement import Placement
from predictors.compute.profiling.profiler import staged


class MixedPasses:
    """The mixed passes of one engine. `launch` a pass, then choose the tokens of its rows, then
    those of its prompts. Rows and prompts have no adapters. Engine thread only; all methods launch
    work and return at once."""

    def __init__(
        self,
        decoder: Decoder,
        passes: DecoderPasses,
        chooser: TokenChooser,
        limits: EngineLimits,
        placement: Placement,
        graphs: Graphs,
        padding: int,
    ) -> None:
        """`padding` is the slot of rows that no sequence has."""
        self.widths = limits.mixed_widths
        """Widths of prompts that can be launched, ascending: those that are warm."""
        self.rows = limits.decode_widths[-1]
        """Most rows that decode."""
        self._decoder = decoder
        self._passes = passes
        self._chooser = chooser
        self._limits = limits
        self._placement = placement
        self._graphs = graphs
        self._padding = padding
        self._captured: dict[int, Captured[Tensor]] = {}

    @staged("mixed")
    @torch.no_grad()
    def launch(self, parts: Sequence[PromptPart], width: int, rows: DecodeRows) -> None:
        """Read parts of prompts in `width` rows, one of `widths`, beside a decode step."""
        self._chooser.inputs.put(rows, self.rows)
        ints, firsts = pack_prompts(parts, width, self._limits.page_tokens, self._padding)
        embedding = self._decoder.embedding.weight
        replay_prompts(self._captured[width], embedding, parts, firsts, ints)

    @torch.no_grad()
    def choose_rows(self, rows: DecodeRows, masks: MaskSource | None) -> PassChoice:
        """The next tokens of the rows. With `masks` they have controls, as `decode_controlled` of a
        `ChatRunner` has them."""
        if masks is None:
            placed = self._chooser.choose_placed(rows.choices, self.rows)
            return PassChoice(placed.clone())  # `choose_first` uses this memory
        return self._chooser.choose_controlled(self._passes.logits, rows.choices, masks())

    @torch.no_grad()
    def choose_first(self, parts: Sequence[PromptPart], masks: MaskSource | None) -> PassChoice:
        """The first tokens of the parts with a choice, after `choose_rows`. `masks` as there."""
        choices, logits = choices_of(parts, self._decoder.shape.vocab), self._passes.logits
        if len(choices):  # a choice reads the first rows of the logits
            ended = logits[self.rows : self.rows + len(choices)].clone()
            logits[: len(choices)].copy_(ended)
        if masks is None:
            return PassChoice(self._chooser.choose(logits, choices))
        return self._chooser.choose_controlled(logits, choices, masks())

    # -- warm-up ---------------------------------------------------------------------------------
    def warm_shapes(self, check: Callable[[Tensor, str], None]) -> list[PromisedPass]:
        """Every promised width, the largest first. `check` gets the tokens of a run of each, and
        its name."""
        names = {width: f"mixed {width}" for width in self._limits.mixed_widths[::-1]}
        return [
            PromisedPass(PassKind.MIXED, width, name, partial(self._warm, width, name, check))
            for width, name in names.items()
        ]

    def _warm(self, width: int, name: str, check: Callable[[Tensor, str], None]) -> None:
        if width not in self._captured:
            self._capture(width, name)
        check(self.run_warm(width), name)

    def _capture(self, width: int, name: str) -> None:
        shape, place, inputs = self._decoder.shape, self._placement, self._chooser.inputs
        rows = warm_rows(self.rows, self._padding, shape.vocab, GREEDY)
        inputs.put(rows, self.rows)
        size = (width, shape.hidden)
        like = [
            torch.zeros(size, dtype=place.dtype, device=place.device),
            torch.zeros(num_prompt_ints(width), dtype=torch.int64, device=place.device),
        ]
        if shape.deepstack:
            like.append(
                torch.zeros((shape.deepstack, *size), dtype=place.dtype, device=place.device)
            )
        run = partial(self._passes.fused_mixed, inputs.rows(self.rows))
        self._captured[width] = self._graphs.capture(run, tuple(like), name)

    def run_warm(self, width: int) -> Tensor:
        """The first tokens (1,) of a pass over a prompt of no request beside no request's rows, in
        the slot and page of padding."""
        limits = self._limits
        length = min(width, limits.max_context)
        part = warm_part(length, self._padding, limits.pages_per_slot, GREEDY)
        rows = warm_rows(self.rows, self._padding, self._decoder.shape.vocab, GREEDY)
        self.launch([part], width, rows)
        self.choose_rows(rows, None)
        return self.choose_first([part], None).tokens
