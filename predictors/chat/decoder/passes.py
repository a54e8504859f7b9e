"""The decoder's forward passes as functions of tensors: a decode step and a prompt pass, each in
plain torch and fused for a GPU.

Both forms read and write the same pages and slots, so either continues where the other ended.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from predictors.chat.adapters.changes import DenseChanges, PlainChanges
from predictors.chat.adapters.operations import AdaptedOperations, StepwiseOperations
from predictors.chat.adapters.tables import AdapterTables
from predictors.chat.decoder.control_state import ControlState
from predictors.chat.decoder.decoder import Decoder
from predictors.chat.decoder.operations import (
    Angles,
    CachePlaces,
    Operations,
    PlainOperations,
    values_of,
)
from predictors.chat.decoder.paged import TILE
from predictors.chat.decoder.state import SlotState
from predictors.chat.limits import EngineLimits
from predictors.chat.sampling import SAMPLERS
from predictors.chat.scheduling import PACK_PROMPTS
from predictors.chat.scores import score_tokens
from predictors.compute.device.placement import Placement

if TYPE_CHECKING:
    from predictors.chat.decoder.fused import PromptTiles


class DecoderPasses:
    """Over one pool of pages. A fused pass writes its result to `logits` (rows, vocab) fp32, in
    memory that stays where it is. Adapted passes need `tables`. Engine thread only."""

    def __init__(
        self,
        decoder: Decoder,
        state: SlotState,
        limits: EngineLimits,
        placement: Placement,
        tables: AdapterTables | None = None,
    ) -> None:
        shape, device = decoder.shape, placement.device
        pool = (2, 1 + limits.num_pages, limits.page_tokens, shape.kv_heads, shape.head_dim)
        self.caches = [
            torch.zeros(pool, dtype=placement.dtype, device=device) for _ in range(shape.layers)
        ]
        self._decoder = decoder
        self._state = state
        self._tables = tables
        self.logits = torch.empty(0)
        self._everywhere: Angles | None = None
        if placement.is_cuda:
            self._prepare_fused(limits, device)

    def _prepare_fused(self, limits: EngineLimits, device: torch.device) -> None:
        from predictors.chat.decoder.fused import DecodeScratch  # Triton needs CUDA

        shape, rows = self._decoder.shape, max(*limits.decode_widths, PACK_PROMPTS)
        most = rows + PACK_PROMPTS if limits.mixed_widths else rows
        self.logits = torch.empty(most, shape.vocab, dtype=torch.float32, device=device)
        positions = torch.arange(limits.max_context + 1, device=device)
        self._everywhere = self._decoder.angles(positions.expand(3, -1))
        self._scratch = DecodeScratch.of(rows, shape.kv_heads, shape.head_dim, device)

    # -- plain -----------------------------------------------------------------------------------
    def step(
        self, tokens: Tensor, positions: Tensor, places: Tensor, pages: Tensor, spans: Tensor
    ) -> Tensor:
        """Logits (rows, vocab) fp32 of one token (rows,) int64 per sequence; `positions` (rows,)
        for all axes; the rest as in `paged_attention`."""
        ops = PlainOperations(CachePlaces(places, pages, spans))
        return self._step(tokens, positions, ops)

    def adapted_step(
        self,
        tokens: Tensor,
        positions: Tensor,
        places: Tensor,
        pages: Tensor,
        spans: Tensor,
        rank_rows: Tensor,
        scales: Tensor,
    ) -> Tensor:
        """`step` with adapters, see `PlainChanges`."""
        ops = PlainOperations(CachePlaces(places, pages, spans))
        changes = PlainChanges(self._adapters, rank_rows, scales)
        return self._step(tokens, positions, AdaptedOperations(ops, changes))

    def _step(self, tokens: Tensor, positions: Tensor, ops: Operations) -> Tensor:
        decoder = self._decoder
        angles = decoder.angles(positions.expand(3, -1))
        stream = decoder(decoder.embedding(tokens), angles, self.caches, ops)
        return decoder.logits(stream, ops)

    @property
    def _adapters(self) -> AdapterTables:
        assert self._tables is not None
        return self._tables

    def prompt(
        self,
        embedded: Tensor,
        positions: Tensor,
        last: Tensor,
        places: Tensor,
        pages: Tensor,
        spans: Tensor,
        deepstack: Tensor | None = None,
    ) -> Tensor:
        """Logits (1, vocab) fp32 after row `last` (1,) int64 of a part of one prompt, embeddings
        (rows, hidden), `deepstack` (levels, rows, hidden) in models that have it."""
        ops = PlainOperations(CachePlaces(places, pages, spans))
        return self._prompt(embedded, positions, last, ops, deepstack)

    def adapted_prompt(
        self,
        embedded: Tensor,
        positions: Tensor,
        last: Tensor,
        places: Tensor,
        pages: Tensor,
        spans: Tensor,
        rank_rows: Tensor,
        scales: Tensor,
        deepstack: Tensor | None = None,
    ) -> Tensor:
        """`prompt` with adapters, see `PlainChanges`."""
        ops = PlainOperations(CachePlaces(places, pages, spans))
        changes = PlainChanges(self._adapters, rank_rows, scales)
        adapted = AdaptedOperations(ops, changes)
        return self._prompt(embedded, positions, last, adapted, deepstack)

    def _prompt(
        self,
        embedded: Tensor,
        positions: Tensor,
        last: Tensor,
        ops: Operations,
        deepstack: Tensor | None,
    ) -> Tensor:
        decoder = self._decoder
        stream = decoder(embedded, decoder.angles(positions), self.caches, ops, deepstack)
        return decoder.logits(values_of(stream).index_select(0, last), ops)

    # -- fused -----------------------------------------------------------------------------------
    def fused_step(self, ints: Tensor, weights: Tensor | None = None) -> Tensor:
        """A decode step for ints (4, rows) int64: slot, tokens in the cache, rotary position,
        number of the newest token in its answer. The token itself comes from the slot's state.
        With adapters, `weights` (rows, their slots) float32. Writes and returns
        `logits[:rows]`."""
        from predictors.chat.decoder.fused import DecodePlaces, decode_operations
        from predictors.chat.decoder.fused_tokens import embed_newest

        slots, lengths, positions, numbers = ints.unbind()
        places = DecodePlaces(slots, lengths, positions, self._state.tables)
        decoder = self._decoder
        linear = decoder.first.attention.qkv
        ops = self._adapted(decode_operations(places, self._scratch, linear), weights)
        x = embed_newest(self._state, slots, numbers, decoder.embedding.weight)
        assert self._everywhere is not None
        stream = decoder(x, self._everywhere, self.caches, ops)
        return decoder.logits(stream, ops, self.logits[: len(slots)])

    def _adapted(self, ops: StepwiseOperations, weights: Tensor | None) -> Operations:
        """`ops` with the adapters of each row, if there are any."""
        if weights is None:
            return ops
        repeated = self._adapters.repeated(weights)
        return AdaptedOperations(ops, DenseChanges(self._adapters, repeated))

    def fused_prompt(
        self, embedded: Tensor, ints: Tensor, deepstack: Tensor | None = None
    ) -> Tensor:
        """Parts of prompts: embeddings (rows, hidden), `num_prompt_ints` integers, `deepstack`
        (levels, rows, hidden) in models that have it. Writes and returns `logits` after the last
        row of each part."""
        return self.fused_adapted_prompt(embedded, ints, None, deepstack)

    def fused_adapted_prompt(
        self,
        embedded: Tensor,
        ints: Tensor,
        weights: Tensor | None,
        deepstack: Tensor | None = None,
    ) -> Tensor:
        """As `fused_prompt`, with adapters: `weights` (rows, adapter slots) float32."""
        from predictors.chat.decoder.fused import prompt_operations

        tiles, angles, last = self._tiles(ints, len(embedded))
        ops = self._adapted(prompt_operations(tiles, self._scratch), weights)
        decoder = self._decoder
        stream = decoder(embedded, angles, self.caches, ops, deepstack)
        ended = values_of(stream).index_select(0, last)
        return decoder.logits(ended, ops, self.logits[:PACK_PROMPTS])

    def _tiles(self, ints: Tensor, rows: int) -> tuple[PromptTiles, Angles, Tensor]:
        """The tiles, angles and last rows of the integers of a pass over prompts of so many
        rows."""
        from predictors.chat.decoder.fused import PromptTiles

        tiles = rows // TILE
        sizes = (rows, 3 * rows, rows, tiles, tiles, tiles, PACK_PROMPTS)
        _, positions, places, slots, starts, real, last = ints.split(sizes)
        found = PromptTiles(places, slots, starts, real, self._state.tables)
        return found, self._decoder.angles(positions.view(3, rows)), last

    def fused_mixed(
        self, step: Tensor, embedded: Tensor, ints: Tensor, deepstack: Tensor | None = None
    ) -> Tensor:
        """The decode step of `step` (4, rows), as `fused_step` has it, and the parts of prompts
        that `fused_prompt` would read, in one pass. Writes and returns `logits`: first those of the
        step's rows, then those after the last row of each part."""
        from predictors.chat.decoder.fused import DecodePlaces, FusedMixed
        from predictors.chat.decoder.fused_tokens import embed_newest

        slots, lengths, positions, numbers = step.unbind()
        places = DecodePlaces(slots, lengths, positions, self._state.tables)
        first, count, decoder = len(embedded), len(slots), self._decoder
        tiles, angles, last = self._tiles(ints, first)
        assert self._everywhere is not None
        ops = FusedMixed(tiles, places, self._scratch, self._everywhere)
        newest = embed_newest(self._state, slots, numbers, decoder.embedding.weight)
        x = torch.cat((embedded, newest))
        if deepstack is not None:
            deepstack = F.pad(deepstack, (0, 0, 0, count))  # nothing for rows that decode
        stream = values_of(decoder(x, angles, self.caches, ops, deepstack))
        told = torch.cat((stream[first:], stream.index_select(0, last)))
        return decoder.logits(told, ops, self.logits[: count + PACK_PROMPTS])

    def fused_choice(self, sampler: str, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The choice of tokens over `logits[:rows]`, as a function of its ints and floats."""
        from predictors.chat.decoder.fused_tokens import choose_greedy

        logits = self.logits[:rows]
        if sampler == "greedy":
            return partial(choose_greedy, self._state, logits)
        return partial(self._state.choose_tokens, SAMPLERS[sampler], logits)

    def fused_controlled_choice(
        self, sampler: str, rows: int, controls: ControlState
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """As `fused_choice`, for rows with controls: the masks are in `controls.words`."""
        from predictors.chat.decoder.fused_tokens import choose_controlled

        return partial(choose_controlled, controls, sampler, self.logits[:rows])

    def fused_scores(self, rows: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """`score_tokens` over `logits[:rows]`."""
        return partial(score_tokens, self.logits[:rows])


def num_prompt_ints(rows: int) -> int:
    return 5 * rows + 3 * (rows // TILE) + PACK_PROMPTS
