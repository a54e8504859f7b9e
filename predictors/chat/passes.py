"""The decoder's two forward passes as functions of tensors: a decode step and a prompt pass, each
in plain torch and fused for a GPU. Knows slots and pages; knows no sequence and no graph.

Both forms read and write the same state, so what one has written the other goes on from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from predictors.chat.decoder.decoder import Decoder
from predictors.chat.decoder.operations import Angles, CachePlaces, PlainOperations
from predictors.chat.decoder.paged import TILE
from predictors.chat.device_state import Slots
from predictors.chat.kv_cache import Limits
from predictors.chat.token_choice import WAYS, choose
from predictors.compute.device.placement import Placement

PACK_PIECES = 32
"""Most pieces of prompts in one fused pass."""


class Passes:
    """Over one pool of pages. `logits` (rows, vocab) fp32 is where a fused pass leaves its own."""

    def __init__(
        self, decoder: Decoder, state: Slots, limits: Limits, placement: Placement
    ) -> None:
        shape, device = decoder.shape, placement.device
        pool = (2, 1 + limits.num_pages, limits.page_tokens, shape.kv_heads, shape.head_dim)
        self.caches = [
            torch.zeros(pool, dtype=placement.dtype, device=device) for _ in range(shape.layers)
        ]
        self._decoder = decoder
        self._state = state
        self.logits = torch.empty(0)
        self._everywhere: Angles | None = None
        if placement.is_cuda:
            self._prepare_fused(limits, device)

    def _prepare_fused(self, limits: Limits, device: torch.device) -> None:
        from predictors.chat.decoder.fused import Scratch  # Triton is not there without CUDA

        shape, rows = self._decoder.shape, max(*limits.decode_widths, PACK_PIECES)
        self.logits = torch.empty(rows, shape.vocab, dtype=torch.float32, device=device)
        positions = torch.arange(limits.max_context + 1, device=device)
        self._everywhere = self._decoder.angles(positions.expand(3, -1))
        self._scratch = Scratch.of(rows, shape.kv_heads, shape.head_dim, device)

    # -- plain -----------------------------------------------------------------------------------
    def step(
        self, tokens: Tensor, positions: Tensor, places: Tensor, pages: Tensor, spans: Tensor
    ) -> Tensor:
        """Logits (rows, vocab) fp32 of one token (rows,) int64 per sequence; `positions` (rows,)
        for all axes; the rest as `paged_attention` has it."""
        decoder, ops = self._decoder, PlainOperations(CachePlaces(places, pages, spans))
        angles = decoder.angles(positions.expand(3, -1))
        stream = decoder(decoder.embedding(tokens), angles, self.caches, ops)
        return decoder.logits(stream, ops)

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
        """Logits (1, vocab) fp32 after row `last` (1,) int64 of one piece, embeddings (rows,
        hidden), `deepstack` (levels, rows, hidden) of models that have it."""
        decoder, ops = self._decoder, PlainOperations(CachePlaces(places, pages, spans))
        stream = decoder(embedded, decoder.angles(positions), self.caches, ops, deepstack)
        return decoder.logits(stream.index_select(0, last), ops)

    # -- fused -----------------------------------------------------------------------------------
    def fused_step(self, ints: Tensor) -> Tensor:
        """The same for ints (4, rows) int64: slot, tokens in the cache, rotary position, number of
        the newest token in its answer, which is fed from the state. Leaves `logits[:rows]`."""
        from predictors.chat.decoder.fused import FusedMany, FusedOne, Standing
        from predictors.chat.decoder.fused_tokens import fed

        slots, lengths, positions, numbers = ints.unbind()
        standing = Standing(slots, lengths, positions, self._state.tables)
        kind = FusedOne if len(slots) == 1 else FusedMany
        ops, decoder = kind(standing, self._scratch), self._decoder
        x = fed(self._state, slots, numbers, decoder.embedding.weight)
        assert self._everywhere is not None
        stream = decoder(x, self._everywhere, self.caches, ops)
        return self.logits[: len(slots)].copy_(decoder.logits(stream, ops))

    def fused_prompt(
        self, embedded: Tensor, ints: Tensor, deepstack: Tensor | None = None
    ) -> Tensor:
        """Pieces of prompts, embeddings (rows, hidden), `num_prompt_ints` integers, `deepstack`
        (levels, rows, hidden) of models that have it. Leaves `logits` after the last row of each
        piece."""
        from predictors.chat.decoder.fused import FusedPrompt, Tiles

        rows = len(embedded)
        tiles = rows // TILE
        sizes = (rows, 3 * rows, rows, tiles, tiles, tiles, PACK_PIECES)
        _, positions, places, slots, starts, real, last = ints.split(sizes)
        ops = FusedPrompt(Tiles(places, slots, starts, real, self._state.tables))
        decoder = self._decoder
        angles = decoder.angles(positions.view(3, rows))
        stream = decoder(embedded, angles, self.caches, ops, deepstack)
        ended = stream.index_select(0, last)
        return self.logits[:PACK_PIECES].copy_(decoder.logits(ended, ops))

    def fused_choice(self, way: str, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
        """`choose` over `logits[:rows]`, as a function of its ints and floats."""
        from predictors.chat.decoder.fused_tokens import best

        logits = self.logits[:rows]
        pick = WAYS[way]
        if way != "greedy":
            return partial(choose, pick, self._state, logits)
        return partial(best, self._state, logits)


def num_prompt_ints(rows: int) -> int:
    """Length of `fused_prompt`'s ints."""
    return 5 * rows + 3 * (rows // TILE) + PACK_PIECES
